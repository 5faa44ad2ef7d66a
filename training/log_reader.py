"""Reads the service's decision log and feedback as plain rows.

Knows the folder layout (``decisions/``, ``feedback/``) and the Arrow schemas of router.records;
does not know pictures, models or the oracle.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.errors import BadRecord

_DECISION_COLUMNS = [
    "request_id", "picture_ids", "question", "model", "scale", "router_version", "audited",
    "status",
]  # fmt: skip


def rows(folder: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of every Parquet file of a folder, in file-name order, as dictionaries.

    Raises:
        BadRecord: a file is not the log's Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in sorted(folder.glob("*.parquet")):
        try:
            table = pq.read_table(path, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise BadRecord(f"cannot read the log file {path}: {error}".splitlines()[0]) from error
        missing = set(columns) - set(table.column_names)
        if missing:
            raise BadRecord(f"{path} lacks the columns {', '.join(sorted(missing))}")
        yield from table.to_pylist()


def audited_decisions(folder: Path, left_out: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Yield each audited decision on one picture that can be asked again; count the others.

    A request that was logged twice (a retried write) is yielded once.
    """
    seen: set[str] = set()
    for row in rows(folder / "decisions", _DECISION_COLUMNS):
        if row["request_id"] in seen:
            continue
        seen.add(row["request_id"])
        if not row["audited"]:
            left_out["not audited"] += 1
        elif row["status"] != "ok":
            left_out["of failed requests"] += 1
        elif not row["picture_ids"]:
            left_out["without a picture"] += 1
        elif len(row["picture_ids"]) > 1:
            left_out["with several pictures"] += 1
        elif not row["question"]:
            left_out["without a stored question"] += 1
        else:
            yield row


def latest_feedback(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the newest feedback of each request: ``{request_id: {"reference", "score"}}``."""
    newest: dict[str, dict[str, Any]] = {}
    for row in rows(folder / "feedback", ["request_id", "time_utc", "reference", "score"]):
        before = newest.get(row["request_id"])
        if before is None or row["time_utc"] >= before["time_utc"]:
            newest[row["request_id"]] = row
    return newest
