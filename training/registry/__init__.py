"""The router registry, written: its changes, its journal, lineage, names and versions."""
