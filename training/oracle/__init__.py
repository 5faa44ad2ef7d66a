"""Every action on every question: the labels a router learns from.

`collection` runs it over `workers`, `labelling` asks the model (`rows`: which questions share a
sequence, `packed`: how they are answered in one), `scoring` says what is right, `data` reads the
Parquet again.
"""

from training.oracle.collection import CollectResult, collect
from training.oracle.data import OracleData, read_oracle
from training.scoring import exact_match, normalise

__all__ = ["CollectResult", "OracleData", "collect", "exact_match", "normalise", "read_oracle"]
