"""What the service does with capacity to spare: it labels its audited requests.

`labelling` starts, watches and ends the one process that does it, `last` is what that process
becomes first: one that every other comes before.
"""
