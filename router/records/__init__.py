"""What is written down: oracle labels, decisions and feedback, with their Arrow schemas.

`rows` are the records, `tables` their Arrow form, `arrays` the oracle's columns for fitting,
`pictures` says who a picture is and which split it is of, `looks` which pictures look alike.
"""

from typing import Any

from router.records.arrays import OracleArrays, oracle_arrays
from router.records.looks import look_of
from router.records.pictures import Split, calibrates, picture_id, split_of, units_of
from router.records.rows import DecisionRecord, FeedbackRecord, OracleRecord, Record
from router.records.tables import (
    READ_VERSIONS,
    SCHEMA_VERSION,
    conform,
    from_table,
    schema_of,
    to_table,
)

__all__ = [
    "READ_VERSIONS",
    "SCHEMA_VERSION",
    "DecisionRecord",
    "FeedbackRecord",
    "OracleArrays",
    "OracleRecord",
    "Record",
    "Split",
    "calibrates",
    "conform",
    "from_table",
    "look_of",
    "oracle_arrays",
    "picture_id",
    "schema_of",
    "split_of",
    "to_table",
    "units_of",
]


def __getattr__(name: str) -> Any:
    # The schemas as constants, made on first use so that this module loads without pyarrow.
    types = {
        "ORACLE_SCHEMA": OracleRecord,
        "DECISION_SCHEMA": DecisionRecord,
        "FEEDBACK_SCHEMA": FeedbackRecord,
    }
    if name in types:
        return schema_of(types[name])
    raise AttributeError(f"module 'router.records' has no attribute {name!r}")
