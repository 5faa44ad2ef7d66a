"""`m3-train`: flags, progress and tables; the work is in the other rooms of `training`."""

from training.cli.program import main

__all__ = ["main"]
