"""What tests of labelling read back."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from router.records import OracleRecord, from_table


def records_in(out: Path) -> Iterator[OracleRecord]:
    for path in sorted(out.glob("oracle-*.parquet")):
        yield from from_table(pq.read_table(path), OracleRecord)
