"""Columns of oracle data that are small in memory: features in a file, names as numbers."""
