"""What the rows of an oracle table are: repeats by their questions, units settled, metrics named.

Knows the oracle's columns; does not know files, nor what is fitted on the questions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.records import units_of
from training.errors import NotEnoughData
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


def without_repeats(
    table: Any, metadata: list[dict[str, Any]], n_actions: int
) -> tuple[Any, list[dict[str, Any]], NDArray[np.float64] | None]:
    """Return the questions alone, and the scores of their repeats (n, R, A) beside them.

    A repeat is the same question in other words. It must not count as a question of its own: it
    would weigh twice what it repeats, and train what it is meant to check.
    """
    originals = [row for row, facts in enumerate(metadata) if "repeat_of" not in facts]
    if len(originals) == len(metadata):
        return table, metadata, None
    if not originals:
        raise NotEnoughData("these data hold repeats of questions only; collect the questions too")
    pictures, names = table["picture_id"].to_pylist(), table["question_id"].to_pylist()
    place = {(pictures[row], names[row]): number for number, row in enumerate(originals)}
    found: dict[int, list[list[float]]] = {}
    for row, facts in enumerate(metadata):
        original = place.get((pictures[row], facts.get("repeat_of")))
        if original is not None:
            found.setdefault(original, []).append(table["scores"][row].as_py())
    most = max(map(len, found.values()), default=0)
    again = np.full((len(originals), most, n_actions), np.nan)
    for original, scores in found.items():
        again[original, : len(scores)] = scores
    return table.take(originals), [metadata[row] for row in originals], again if most else None


def metrics_of(table: Any, has_reference: NDArray[np.bool_]) -> NDArray[np.str_]:
    """Return (n,): how each row was scored; rows of before do not say, they had two ways."""
    before = (AGREEMENT, EXACT)
    told = zip(table["metric"].to_pylist(), has_reference.tolist(), strict=True)
    return np.array([before[known] if name is None else name for name, known in told], np.str_)
