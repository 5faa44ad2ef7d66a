"""Oracle records as columns, for fitting and evaluation.

Knows the oracle's columns and what must be alike in them; knows nothing of files, routers or the
service.
Notation: n records, K scales, A actions, F features.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from router.records.pictures import split_of, units_of
from router.records.rows import OracleRecord
from router.records.tables import conform

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class OracleArrays:
    """Oracle records as columns, ready for fitting: rows are (picture, question) pairs.

    Attributes:
        picture_ids, question_ids, questions, kinds, datasets: (n,) object arrays of str.
        units: (n,) object array of what each picture belongs to, see `units_of`.
        splits: (n,) object array of `split_of` each unit.
        scales: K scales, ascending, the same for all rows.
        actions: names of the A actions, the same for all rows; scales alone are named by them.
        action_space: hash of the space they are of; None where no row tells it.
        features: (n, F) float32 with the schema hash ``feature_schema``.
        scores, p_reference, confidence: (n, A) float32.
        visual_tokens: (n, A) int32.
    """

    picture_ids: np.ndarray
    question_ids: np.ndarray
    questions: np.ndarray
    kinds: np.ndarray
    datasets: np.ndarray
    units: np.ndarray
    splits: np.ndarray
    scales: tuple[int, ...]
    actions: tuple[str, ...]
    action_space: str | None
    features: np.ndarray
    feature_schema: str
    scores: np.ndarray
    p_reference: np.ndarray
    confidence: np.ndarray
    visual_tokens: np.ndarray


def oracle_arrays(table: "pa.Table") -> OracleArrays:
    """Return oracle records as arrays for fitting and evaluation, without a Python object a row.

    Raises:
        ValueError: no rows, several sets of scales or of actions, or several feature schemas in
            one table.
    """
    checked = conform(table, OracleRecord).combine_chunks()
    n = checked.num_rows
    if n == 0:
        raise ValueError("the oracle table has no rows; collect some first")

    def texts(column: str) -> np.ndarray:
        return np.asarray(checked[column].to_pylist(), dtype=object)

    def matrix(column: str) -> np.ndarray:
        lists = checked[column].combine_chunks()
        flat: np.ndarray = lists.flatten().to_numpy(zero_copy_only=False)
        lengths = np.unique(lists.value_lengths().to_numpy(zero_copy_only=False))
        if len(lengths) != 1:
            raise ValueError(f"column {column} has rows of different lengths: {lengths.tolist()}")
        return flat.reshape(n, int(lengths[0]))

    scales = matrix("scales")
    if (scales != scales[0]).any():
        raise ValueError("the oracle table mixes records with different scales")
    actions, action_space = _one_space(checked, tuple(int(scale) for scale in scales[0]))
    schemas = sorted(set(checked["feature_schema"].to_pylist()))
    if len(schemas) != 1:
        raise ValueError(f"the oracle table mixes feature schemas {', '.join(schemas)}")
    picture_ids = texts("picture_id")
    units = units_of(picture_ids.tolist(), checked["group_id"].to_pylist())
    splits = {unit: split_of(unit) for unit in set(units)}
    return OracleArrays(
        picture_ids=picture_ids,
        question_ids=texts("question_id"),
        questions=texts("question"),
        kinds=texts("kind"),
        datasets=texts("dataset"),
        units=np.asarray(units, dtype=object),
        splits=np.asarray([splits[unit] for unit in units], dtype=object),
        scales=tuple(int(scale) for scale in scales[0]),
        actions=actions,
        action_space=action_space,
        features=matrix("features"),
        feature_schema=schemas[0],
        scores=matrix("scores"),
        p_reference=matrix("p_reference"),
        confidence=matrix("confidence"),
        visual_tokens=matrix("visual_tokens"),
    )


def _one_space(table: "pa.Table", scales: tuple[int, ...]) -> tuple[tuple[str, ...], str | None]:
    """Return the names of the actions that all rows are answered by, and their space's hash.

    Raises:
        ValueError: there are several.
    """
    # Few spaces stand in many rows: what differs is found without a Python object a row.
    names = table["actions"].combine_chunks()
    spaces = table["action_space"].unique().to_pylist()
    uniform = tuple(str(scale) for scale in scales)
    if names.null_count == len(names):
        found = uniform
    else:
        found = tuple(names.drop_null()[0].as_py())
        lengths = names.value_lengths().fill_null(0).unique().to_pylist()
        width = len(found)
        flat = names.flatten().dictionary_encode().indices.to_numpy()
        same = lengths == [width] and (flat.reshape(-1, width) == flat[:width]).all()
        if not same:
            raise ValueError("the oracle table mixes records of different actions")
    if len(spaces) != 1:
        raise ValueError("the oracle table mixes records of different action spaces")
    return found, spaces[0]
