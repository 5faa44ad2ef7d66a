"""A log folder as it lies on disk: records that survive whatever dies, and how they are read.

`layout` names the files, `segments` is their growing form, `reading` reads everything at once,
`compaction` turns segments into Parquet, `erasing` takes a picture out, `stats` counts.
"""

from router.log.compaction import Compacted, compact
from router.log.erasing import Erasure, erase
from router.log.faults import LogBusy, NewerLog, Skipped
from router.log.reading import Log, Notes, read_log, tables

__all__ = [
    "Compacted",
    "Erasure",
    "Log",
    "LogBusy",
    "NewerLog",
    "Notes",
    "Skipped",
    "compact",
    "erase",
    "read_log",
    "tables",
]
