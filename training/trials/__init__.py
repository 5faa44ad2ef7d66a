"""Routers on trial, judged: `operations` by what the service logged of both arms, `accuracy` by
audits, `judging` by both, `shadows` by where a shadow would have done otherwise."""
