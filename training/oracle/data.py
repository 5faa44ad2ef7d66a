"""Oracle data as arrays: folders of shards, checked to belong together, split by unit.

A unit is a picture, or what it belongs to: a document, a video, pictures that look alike.

Knows the Arrow schema of the oracle; does not know how it was collected nor what is fitted on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.actions import ActionSpace
from router.features.schema import FeatureSchema
from router.features.scripts import taught_by
from router.predictor.matrix import Matrix
from router.records import Split, split_of
from router.router import Router
from training.errors import MixedData, NotEnoughData
from training.oracle.columns.features import IN_MEMORY
from training.oracle.columns.names import Coding, Facts, Texts, numbered
from training.oracle.columns.shards import Columns, batches, columns_of
from training.oracle.manifest import checked_schema, schema_of, shards_of, space_of
from training.oracle.questions import last_of, once, settled, without_repeats
from training.scoring import METRICS, agreement_of


@dataclass(frozen=True)
class EncodeCost:
    """The part of a request that two looks at a picture pay once; 0 where the data do not tell."""

    flops: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)  # by hardware, analytic


@dataclass(frozen=True)
class OracleData:
    """n questions under A actions, as arrays. Row i of everything is the same question.

    ``scores``, ``soft`` (P(reference answer)), ``confidence``, ``visual_tokens``: (n, A) float64,
    columns as in ``space``, the anchor last; ``features`` (n, F) float32, in a file where they are
    many; ``flops`` (K,) of the K uniform scales, or None. ``units`` are what no split divides
    (`router.records.units_of`) and what counts as one picture; ``pictures`` (n,) are their numbers
    0..P-1. ``metrics`` say how rows were scored.
    """

    picture_ids: Texts
    units: Texts
    question_ids: NDArray[np.str_]
    groups: NDArray[np.str_]  # "dataset/kind": what a static policy may know
    scores: NDArray[np.float64]
    soft: NDArray[np.float64]
    confidence: NDArray[np.float64]
    features: Matrix
    has_reference: NDArray[np.bool_]
    metrics: NDArray[np.str_]
    thresholds: NDArray[np.float64]  # a score from here on is right
    size_px: NDArray[np.float64]  # NaN where unknown
    metadata: Sequence[dict[str, Any]]
    visual_tokens: NDArray[np.float64]
    space: ActionSpace
    flops: NDArray[np.float64] | None
    schema: FeatureSchema
    feature_schema: str
    model_hash: str
    sources: tuple[str, ...]
    data_hash: str
    repeats: NDArray[np.float64] | None = None  # (n, R, A) scores of other wordings, else NaN
    seconds: dict[str, list[float]] = field(default_factory=dict)  # hardware: (K,), analytic
    encode: EncodeCost = EncodeCost()
    label_recipe: str | None = None  # what the folders' have in common; None: not known of all
    scripts: tuple[str, ...] = ()  # that the questions are written in

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def pictures(self) -> NDArray[np.int64]:
        """Return (n,): the number of each question's unit."""
        return numbered(self.units)[1]

    @property
    def n_pictures(self) -> int:
        """Return how many different pictures there are, what belongs together counted as one."""
        return int(self.pictures.max(initial=-1)) + 1

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """Return (n, A): whether each action's answer counts as right."""
        enough: NDArray[np.bool_] = self.scores >= self.thresholds[:, None]
        return enough

    @property
    def one_kind(self) -> bool | None:
        """Return whether all questions have a reference, or all have none; None: some have."""
        some = bool(self.has_reference.any())
        return some if some == bool(self.has_reference.all()) else None

    @property
    def scales(self) -> tuple[int, ...]:
        """Return the K uniform scales, ascending."""
        return self.space.scales

    @cached_property
    def tokens(self) -> NDArray[np.float64]:
        """Return (K,): the visual tokens of each scale."""
        return np.array(self.scales, dtype=np.float64)

    @cached_property
    def splits(self) -> NDArray[np.str_]:
        """Return (n,): the split each question's unit belongs to, for all time."""
        names, inverse = numbered(self.units)
        return np.array([split_of(name) for name in names.tolist()])[inverse]

    def take(self, rows: NDArray[Any]) -> OracleData:
        """Return the questions of a mask or index array."""
        index = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return OracleData(
            **{
                name: getattr(self, name)[index]
                for name in (
                    "picture_ids", "units", "question_ids", "groups", "scores", "soft",
                    "confidence", "features", "has_reference", "metrics", "thresholds", "size_px",
                    "visual_tokens",
                )
            },
            metadata=_chosen(self.metadata, index),
            space=self.space, flops=self.flops, schema=self.schema,
            feature_schema=self.feature_schema, model_hash=self.model_hash,
            sources=self.sources, data_hash=self.data_hash, seconds=self.seconds,
            encode=self.encode, label_recipe=self.label_recipe, scripts=self.scripts,
            repeats=None if self.repeats is None else self.repeats[index],
        )  # fmt: skip

    def split(self, name: Split) -> OracleData:
        """Return the questions of one split."""
        return self.take(self.splits == name)

    def per_action(self, per_scale: Sequence[float] | NDArray[np.floating]) -> NDArray[np.float64]:
        """Return (n, A) what every action takes of a resource that is told per scale (K,).

        Between two scales it is read off the line through them, at the tokens of the row.
        """
        taken: NDArray[np.float64] = np.interp(self.visual_tokens, self.tokens, per_scale)
        return taken

    def columns(self, space: ActionSpace) -> NDArray[np.intp]:
        """Return where the actions of another space over the same scales stand in these data.

        Actions are the same where they read the same, whatever a predictor starts them from.

        Raises:
            MixedData: other scales, or an action that the data do not hold.
        """
        if space.scales != self.scales:
            raise MixedData(
                f"actions over the scales {_named(space.scales)}, data over {_named(self.scales)}: "
                "the anchor must be the same; collect with the other model"
            )
        here = [replace(action, base="") for action in self.space.actions]
        wanted = [replace(action, base="") for action in space.actions]
        absent = [action.name for action in wanted if action not in here]
        if absent:
            raise MixedData(
                f"the data do not hold the actions {', '.join(absent)} (they have "
                f"{', '.join(self.space.names)}): collect with the same version"
            )
        return np.array([here.index(action) for action in wanted], dtype=np.intp)

    def only(self, space: ActionSpace) -> OracleData:
        """Return the same questions under the actions of another space alone.

        Raises:
            MixedData: as `columns`.
        """
        if space == self.space:
            return self
        columns = self.columns(space)
        names = ("scores", "soft", "confidence", "visual_tokens")
        tables = {name: getattr(self, name)[:, columns] for name in names}
        repeats = None if self.repeats is None else self.repeats[..., columns]
        return replace(self, **tables, space=space, repeats=repeats)


def _chosen(metadata: Sequence[dict[str, Any]], rows: NDArray[Any]) -> Sequence[dict[str, Any]]:
    return metadata[rows] if isinstance(metadata, Facts) else [metadata[row] for row in rows]


def read_oracle(
    folders: Sequence[Path], *, in_memory: int = IN_MEMORY, schema: FeatureSchema | None = None
) -> OracleData:
    """Return the questions of the folders together; a question that several hold is taken once.

    Args:
        in_memory: bytes of features beyond which they lie in a file without a name, in TMPDIR.
        schema: of their features; None: the one that this version computes.

    Raises:
        TrainingError: a folder holds no oracle data.
        MixedData: different models, scales, actions or feature schemas.
        NotEnoughData: no question at all.
    """
    paths, manifest, data_hash = shards_of(folders)
    schema = checked_schema(schema or schema_of(manifest), manifest)
    found = columns_of(paths, len(schema.names), in_memory)
    if found is None:
        raise _no_question(folders)
    return _arrays(found, manifest, schema, data_hash)


def oracle_table(folders: Sequence[Path]) -> tuple[Any, dict[str, Any], str]:
    """Return the folders' oracle records as one Arrow table, the first manifest and a hash.

    Raises:
        TrainingError, MixedData, NotEnoughData: as `read_oracle`.
    """
    import pyarrow as pa

    paths, manifest, data_hash = shards_of(folders)
    tables = [table for path in paths for table in batches(path)]
    if not sum(table.num_rows for table in tables):
        raise _no_question(folders)
    return once(settled(pa.concat_tables(tables))), manifest, data_hash


def _no_question(folders: Sequence[Path]) -> NotEnoughData:
    return NotEnoughData(f"{', '.join(map(str, folders))} holds no question; collect some first")


def _arrays(
    found: Columns, manifest: dict[str, Any], schema: FeatureSchema, data_hash: str
) -> OracleData:
    space = space_of(manifest)
    same = {column: manifest[column] for column in ("model_hash", "feature_schema")}
    same["action_space"] = None if manifest.get("actions") is None else space.hash
    for column, wanted in same.items():
        told = sorted(map(str, found.told[column]))
        if found.told[column] != {wanted}:
            raise MixedData(f"the shards and their manifest differ in {column}: {told[:3]}")
    if found.scores.shape[1] != len(space):
        raise MixedData(f"{found.scores.shape[1]} scores a question for {len(space)} actions")
    asked = Coding()
    told_asked = found.metadata.telling("asked")
    asked.add(repr(told_asked.get(row)) for row in range(len(found.scores)))
    kept = last_of(found.pictures.codes, found.questions.codes, asked.codes)
    originals, again = without_repeats(
        found.pictures.codes[kept], found.question_ids[kept],
        found.metadata[kept].telling("repeat_of"), found.scores[kept],
    )  # fmt: skip
    kept = kept[originals]
    everything = len(kept) == len(found.scores)
    return OracleData(
        picture_ids=found.pictures[kept],
        units=found.units[kept],
        question_ids=found.question_ids[kept],
        groups=found.groups[kept],
        scores=found.scores[kept].astype(np.float64),
        soft=found.soft[kept].astype(np.float64),
        confidence=found.confidence[kept].astype(np.float64),
        features=found.features if everything else found.features[kept],
        has_reference=found.has_reference[kept],
        metrics=found.metrics[kept],
        thresholds=found.thresholds[kept],
        size_px=found.size_px[kept],
        metadata=found.metadata[kept],
        visual_tokens=found.visual_tokens[kept].astype(np.float64),
        space=space,
        flops=np.array(manifest["flops"], float) if manifest.get("flops") else None,
        schema=schema,
        feature_schema=schema.hash,
        model_hash=manifest["model_hash"],
        sources=tuple(numbered(found.sources[kept])[0].tolist()),
        data_hash=data_hash,
        repeats=again,
        seconds=dict(manifest.get("analytic_seconds") or {}),
        encode=EncodeCost(**(manifest.get("encode") or {})),
        label_recipe=manifest.get("label_recipe"),
        scripts=taught_by(numbered(found.questions[kept])[0].tolist()),
    )


def check_fits(router: Router, data: OracleData) -> OracleData:
    """Return the data under the router's actions alone.

    Raises:
        MixedData: the router was made for other features or scales than the data's, or for actions
            that they do not hold.
    """
    if router.schema.hash != data.feature_schema or tuple(router.scales) != data.scales:
        raise MixedData(
            f"the router was fitted on features {router.schema.hash} at scales "
            f"{_named(router.scales)}, the data hold {data.feature_schema} at "
            f"{_named(data.scales)}: fit a router on these data"
        )
    return data.only(router.space)


def _named(scales: Sequence[int]) -> str:
    return "/".join(map(str, scales))


def scored_by(data: OracleData) -> str:
    """Return in words what right means in these data."""
    names = sorted(set(data.metrics[data.has_reference].tolist()))
    known = " or ".join(METRICS[name].words if name in METRICS else name for name in names)
    others = set(data.metrics[~data.has_reference].tolist())
    agreement = " or ".join(
        agreement_of(name.partition("/")[2] or None).words for name in sorted(others)
    )
    if not agreement:
        return known
    return f"{known} where a reference is known, else {agreement}" if known else agreement
