"""Replay on audited traffic, and the gate that a router must pass to be put in force."""
