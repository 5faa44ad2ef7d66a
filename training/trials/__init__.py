"""Routers on trial, judged: `operations` by what the service logged of both arms, `accuracy` by
audits, `shadows` by where a shadow would have done otherwise."""
