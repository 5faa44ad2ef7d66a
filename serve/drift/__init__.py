"""Traffic that changes: what is seen of it while serving, and what a router is held to then."""
