"""The oracle as one public table with a datasheet, and the scoring of others' picks."""

from training.published.score import read_picks, score_picks
from training.published.table import Published, publish, read_published

__all__ = ["Published", "publish", "read_picks", "read_published", "score_picks"]
