"""Shards from before they said what they labelled: found out, where it can be proved.

Knows shards and sources of files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from router.actions import ActionSpace
from router.records import OracleRecord, from_table
from training.oracle.growth.folder import Shard, rewritten, rows_of
from training.oracle.growth.told import BAD_KEY, LABELLED_KEY, asked_of, labelled_in, told_of
from training.sources.tasks import FileSource, shards


def adopted(
    there: Sequence[Shard], source: FileSource, content: str, size: int, space: ActionSpace
) -> list[Shard]:
    """Have shards of before tell what they labelled, if that can be known; return the shards.

    Args:
        source: as it is now.
        content: what the source said of its content then.
        size: pictures a shard.
        space: the actions that were labelled.
    """
    import pyarrow.parquet as pq

    then = _source_then(there, source, content)
    if then is None:
        return list(there)
    asked, parts = asked_of(then), dict(shards(len(then), size))
    found = []
    for shard in there:
        if shard.labelled is not None or shard.number not in parts:
            found.append(shard)
            continue
        table = pq.read_table(shard.path)
        bad = json.loads((table.schema.metadata or {}).get(BAD_KEY, b"[]"))
        records = from_table(table, OracleRecord)
        told = told_of(then, asked, space, parts[shard.number], records, bad)
        labelled = list(map(labelled_in, json.loads(told[LABELLED_KEY])))
        found.append(rewritten(shard, [True] * shard.n_rows, labelled))
    return found


def _source_then(there: Sequence[Shard], source: FileSource, content: str) -> FileSource | None:
    """Return what shards of before were planned from: the source, or that of it which they answer,
    where its content proves it. None where it has changed otherwise.
    """
    if source.parameters()["content"] == content:
        return source
    answered = {
        (picture if source.picture_ids else "", question_id, question)
        for shard in there
        for _, picture, question_id, question in rows_of(shard.path)
    }
    pictures = []
    for name, path, asks in source.pictures:
        picture = name if source.picture_ids else ""
        old = tuple(a for a in asks if (picture, a.question_id, a.question) in answered)
        pictures += [(name, path, old)] if old else []
    then = replace(source, pictures=tuple(pictures))
    return then if then.parameters()["content"] == content else None
