"""What the rows of an oracle table are: repeats by their questions, units settled, metrics named.

Knows the oracle's columns; does not know files, nor what is fitted on the questions.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.records import units_of
from training.errors import NotEnoughData
from training.oracle.columns.names import Coding
from training.scoring import AGREEMENT, EXACT


def settled(table: Any) -> Any:
    """Return the table with one group a picture, the one its first row tells.

    Before anything is left out: of a question that was labelled again the later row stays.
    """
    import pyarrow as pa

    column = table["group_id"]
    if column.null_count == len(column):
        return table
    units = units_of(table["picture_id"].to_pylist(), column.to_pylist())
    place = table.schema.get_field_index("group_id")
    return table.set_column(place, "group_id", pa.array(units, pa.string()))


def once(table: Any) -> Any:
    """Return the table with each question about a picture once, the last one; see `last_of`."""
    told = [json.loads(text or "{}").get("asked") for text in table["metadata"].to_pylist()]
    codings = [Coding(), Coding(), Coding()]
    named = (table["picture_id"].to_pylist(), table["question"].to_pylist(), map(repr, told))
    for coding, texts in zip(codings, named, strict=True):
        coding.add(texts)
    return table.take(last_of(*(coding.codes for coding in codings)))


def last_of(*codes: NDArray[np.integer]) -> NDArray[np.intp]:
    """Return the rows (ascending) after which none has the same codes.

    A question that two folders (or two requests) hold counts once, or it would weigh double. Within
    another conversation it is another one: a log's rows say which, as ``asked`` in their metadata.

    Args:
        codes: (n,) each.
    """
    order = np.lexsort(codes)
    changes = np.any([code[order[1:]] != code[order[:-1]] for code in codes], axis=0)
    return np.sort(order[np.append(changes, True)])


def without_repeats(
    pictures: NDArray[np.integer],
    question_ids: NDArray[np.str_],
    repeat_of: dict[int, str],
    scores: NDArray[np.floating],
) -> tuple[NDArray[np.intp], NDArray[np.float64] | None]:
    """Return the rows that are questions, and the scores of their repeats (n, R, A) beside them.

    A repeat is the same question in other words. It must not count as a question of its own: it
    would weigh twice what it repeats, and train what it is meant to check.

    Args:
        repeat_of: by row, the question that it repeats.
    """
    originals = np.setdiff1d(np.arange(len(pictures)), np.array(list(repeat_of), np.intp))
    if not repeat_of:
        return originals, None
    if not len(originals):
        raise NotEnoughData("these data hold repeats of questions only; collect the questions too")
    named = zip(pictures[originals].tolist(), question_ids[originals].tolist(), strict=True)
    place = {key: number for number, key in enumerate(named)}
    found: dict[int, list[NDArray[np.floating]]] = {}
    for row, name in repeat_of.items():
        original = place.get((int(pictures[row]), name))
        if original is not None:
            found.setdefault(original, []).append(scores[row])
    most = max(map(len, found.values()), default=0)
    again = np.full((len(originals), most, scores.shape[1]), np.nan)
    for original, others in found.items():
        again[original, : len(others)] = others
    return originals, again if most else None


def metrics_of(table: Any, has_reference: NDArray[np.bool_]) -> NDArray[np.str_]:
    """Return (n,): how each row was scored; rows of before do not say, they had two ways."""
    before = (AGREEMENT, EXACT)
    told = zip(table["metric"].to_pylist(), has_reference.tolist(), strict=True)
    return np.array([before[known] if name is None else name for name, known in told], np.str_)
