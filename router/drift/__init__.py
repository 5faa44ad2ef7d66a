"""The population that a router was fitted on, and how far what comes later has moved from it."""
