"""Labels that must not stay, or that others replace, are taken out of their shards.

Knows tombstones and what is asked now; does not know why something was asked otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.log.tombstones import Erased
from router.records import OracleRecord
from training.oracle.growth.folder import Shard, current, rewritten, rows_of
from training.oracle.growth.told import Asked


def without_erased(there: Sequence[Shard], erased: Erased) -> list[Shard]:
    """Take erased pictures out of the shards, and out of what these say; return the shards."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    gone = {name[:16] for name in erased.requests}
    if not gone:
        return list(there)
    kept = []
    for shard in there:
        table = pq.read_table(shard.path, columns=["picture_id"])
        flags = erased.hidden(table, OracleRecord)
        labelled = None
        if shard.labelled is not None:
            labelled = [entry for entry in shard.labelled if entry.picture not in gone]
        if flags is None and (labelled is None or len(labelled) == len(shard.labelled or ())):
            kept.append(shard)
        else:
            rows = [True] * shard.n_rows if flags is None else pc.invert(flags).to_pylist()
            kept.append(rewritten(shard, rows, labelled))
    return kept


def without_stale(
    there: Sequence[Shard], asked: Sequence[Asked], *, passed_stay: bool
) -> list[Shard]:
    """Take labels that others replace out of the shards; return the shards.

    Args:
        passed_stay: keep labels of what the source does not ask any more; else they go too.
    """
    here, wanted = current(there, asked), {each.picture for each in asked}
    now = {
        row
        for shard in there
        for entry in shard.labelled or ()
        if here.get(entry.picture) == shard.number
        for row in entry.rows
    }
    kept = []
    for shard in there:
        before = shard.labelled or ()
        labelled = [
            entry
            for entry in before
            if here.get(entry.picture) == shard.number
            or (passed_stay and entry.picture not in wanted)
        ]
        mine = {row for entry in labelled for row in entry.rows}
        if len(labelled) == len(before) and shard.n_rows <= len(mine):
            kept.append(shard)
            continue
        rows = [
            name in mine or (passed_stay and name not in now) for name, *_ in rows_of(shard.path)
        ]
        same = len(labelled) == len(before) and all(rows)
        kept.append(shard if same else rewritten(shard, rows, labelled))
    return kept
