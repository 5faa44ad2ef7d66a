"""Every action on every question: the labels a router learns from.

`collection` runs it over `workers`, `labelling` asks the model (`rows`: which questions share a
sequence, `packed`: how they are answered in one), `data` reads the Parquet again (`questions`:
which rows count), `tally` at first sight; `growth` tells what a folder holds already. What is right
is `training.scoring`'s to say.
"""

from training.oracle.collection import CollectResult, collect
from training.oracle.data import OracleData, read_oracle
from training.scoring import exact_match, normalise

__all__ = ["CollectResult", "OracleData", "collect", "exact_match", "normalise", "read_oracle"]
