"""Whether a router still fits its traffic: what it was fitted on, what has changed, what to do."""
