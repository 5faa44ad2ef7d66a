"""Replay on audited traffic, the gate, and which router is in force."""
