"""What a log folder holds, in numbers, and its newest decisions.

Knows the folder through its reader; prints nothing.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from router.log.layout import IMAGES, KINDS, LIVE, PARQUET, SEGMENT
from router.log.reading import Notes, tables
from router.log.tombstones import read_erased
from router.places import Place
from router.records import DecisionRecord, schema_of

SHOWN = (
    "time_utc", "request_id", "model", "actions", "scale", "visual_tokens", "reason", "status",
    "total_ms", "audited",
)  # fmt: skip


def stats(log: Place) -> dict[str, Any]:
    """Return what a log holds: records, days, files, bytes, and what cannot be read.

    Raises:
        FileNotFoundError: no such folder.
    """
    _must_exist(log)
    found: dict[str, Any] = {}
    torn, skipped = [], []
    for name, kind in KINDS.items():
        audited = ["audited"] if kind is DecisionRecord else []
        notes, rows, n_audited = Notes(skip_newer=True), 0, 0
        times: list[Any] = []
        for table in tables(log, kind, notes, ["time_utc", *audited]):
            rows += table.num_rows
            if table.num_rows:
                times += pc.min_max(table["time_utc"]).as_py().values()
            if audited:
                n_audited += pc.sum(table["audited"]).as_py() or 0
        found[name] = {
            "rows": rows,
            "live_rows": notes.live_rows,
            "parquet_files": notes.files,
            "bytes": _size(log / name, PARQUET),
            "first": min(times).isoformat() if times else None,
            "last": max(times).isoformat() if times else None,
        }
        if audited:
            found[name]["audited"] = n_audited
        torn += notes.torn
        skipped += notes.skipped
    return {
        **found,
        "live": {
            "segments": sum(1 for _ in (log / LIVE).glob(f"*{SEGMENT}")),
            "bytes": _size(log / LIVE, SEGMENT),
        },
        "pictures": {
            "files": sum(1 for _ in (log / IMAGES).glob("*.png")),
            "bytes": _size(log / IMAGES, ".png"),
        },
        "erased_pictures": len(read_erased(log).requests),
        "torn": torn,
        "skipped": [{"file": each.file, "why": each.why} for each in skipped],
    }


def newest(log: Place, n_rows: int) -> list[dict[str, Any]]:
    """Return the newest decisions, the newest last, with the columns `SHOWN`.

    Raises:
        FileNotFoundError: no such folder.
        NewerLog: a file was written by a newer version of this program.
    """
    _must_exist(log)
    schema = schema_of(DecisionRecord)
    best = pa.schema([schema.field(name) for name in SHOWN]).empty_table()
    for table in tables(log, DecisionRecord, Notes(), SHOWN):
        both = pa.concat_tables([best, table])
        best = both.take(pc.sort_indices(both, [("time_utc", "ascending")])[-n_rows:])
    return list(best.to_pylist())


def _must_exist(log: Place) -> None:
    if not log.is_dir():
        raise FileNotFoundError(2, "no such log folder", str(log))


def _size(folder: Place, suffix: str) -> int:
    there: list[Place] = list(folder.rglob(f"*{suffix}"))
    return sum(path.stat().st_size for path in there if path.is_file())
