"""Oracle data as arrays: folders of shards, checked to belong together, split by unit.

A unit is a picture, or what it belongs to: a document, a video, pictures that look alike.

Knows the Arrow schema of the oracle; does not know how it was collected nor what is fitted on it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3model.engine.recipe import model_of, shared_recipe
from router.actions import ActionSpace, uniform_space
from router.features.schema import FeatureSchema, feature_schema
from router.features.scripts import taught_by
from router.records import OracleRecord, Split, conform, oracle_arrays, split_of
from router.router import Router
from training.errors import MixedData, NotEnoughData, TrainingError
from training.oracle.collection import MANIFEST
from training.oracle.growth.folder import finished_shards
from training.oracle.questions import metrics_of, settled, without_repeats
from training.scoring import METRICS, agreement_of
from training.scoring.metric import THRESHOLD


@dataclass(frozen=True)
class EncodeCost:
    """The part of a request that two looks at a picture pay once; 0 where the data do not tell."""

    flops: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)  # by hardware, analytic


@dataclass(frozen=True)
class OracleData:
    """n questions under A actions, as arrays. Row i of everything is the same question.

    ``scores``, ``soft`` (P(reference answer)), ``confidence``, ``visual_tokens``: (n, A) float64,
    columns as in ``space``, the anchor last; ``features`` (n, F) float32; ``flops`` (K,) of the K
    uniform scales, or None. ``units`` are what no split divides (`router.records.units_of`) and
    what counts as one picture; ``pictures`` (n,) are their numbers 0..P-1. ``metrics`` say how rows
    were scored.
    """

    picture_ids: NDArray[np.str_]
    units: NDArray[np.str_]
    question_ids: NDArray[np.str_]
    groups: NDArray[np.str_]  # "dataset/kind": what a static policy may know
    scores: NDArray[np.float64]
    soft: NDArray[np.float64]
    confidence: NDArray[np.float64]
    features: NDArray[np.float32]
    has_reference: NDArray[np.bool_]
    metrics: NDArray[np.str_]
    thresholds: NDArray[np.float64]  # a score from here on is right
    size_px: NDArray[np.float64]  # NaN where unknown
    metadata: list[dict[str, Any]]
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
        return np.unique(self.units, return_inverse=True)[1].astype(np.int64)

    @property
    def n_pictures(self) -> int:
        """Return how many different pictures there are, what belongs together counted as one."""
        return len(np.unique(self.units))

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """Return (n, A): whether each action's answer counts as right."""
        enough: NDArray[np.bool_] = self.scores >= self.thresholds[:, None]
        return enough

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
        names, inverse = np.unique(self.units, return_inverse=True)
        return np.array([split_of(name) for name in names])[inverse]

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
            metadata=[self.metadata[i] for i in index],
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


def read_oracle(folders: Sequence[Path]) -> OracleData:
    """Return the questions of the folders together; a question that several hold is taken once.

    Raises:
        TrainingError: a folder holds no oracle data.
        MixedData: different models, scales, actions or feature schemas.
        NotEnoughData: no question at all.
    """
    return _arrays(*oracle_table(folders))


def oracle_table(folders: Sequence[Path]) -> tuple[Any, dict[str, Any], str]:
    """Return the folders' oracle records as one Arrow table, the first manifest and a hash.

    Raises:
        TrainingError, MixedData, NotEnoughData: as `read_oracle`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    manifests, tables = [], []
    digest = hashlib.sha256()
    for folder in folders:
        manifests.append(read_manifest(folder))
        paths = finished_shards(folder, manifests[-1])
        written = manifests[-1].get("shards", 0)  # told when a run has finished
        if len(paths) < written:
            raise TrainingError(
                f"{folder} has {len(paths)} of the {written} oracle-*.parquet that were written: "
                "bring the others back, or run the same `m3-train collect` again"
            )
        for path in paths:
            try:
                tables.append(conform(pq.read_table(path), OracleRecord))
            except (OSError, pa.ArrowException, ValueError) as error:
                raise TrainingError(
                    f"cannot read {path}: {str(error).splitlines()[0]}; delete it and run the same "
                    "`m3-train collect` again"
                ) from error
            digest.update(path.read_bytes())
    first = manifests[0]
    for folder, manifest in zip(folders[1:], manifests[1:], strict=True):
        for key in ("model_hash", "scales", "feature_schema"):
            if manifest[key] != first[key]:
                raise MixedData(
                    f"{folders[0]} and {folder} differ in {key} ({first[key]!s:.40} and "
                    f"{manifest[key]!s:.40}): collect both with the same model and version"
                )
        recipes = [each["label_recipe"] for each in (first, manifest) if "label_recipe" in each]
        if len(set(map(model_of, recipes))) > 1:
            raise MixedData(
                f"{folders[0]} and {folder} were answered by different models (label_recipe "
                f"{recipes[0]} and {recipes[1]}): collect both with the same model, tokenizer, "
                "template and preprocessing"
            )
        spaces = [space_of(each) for each in (first, manifest)]
        if spaces[0] != spaces[1]:
            raise MixedData(
                f"{folders[0]} and {folder} differ in their actions "
                f"({' and '.join(', '.join(space.names) for space in spaces)}): collect both with "
                "the same version, and both or neither with --no-focus"
            )
    first = {**first, "label_recipe": shared_recipe(m.get("label_recipe") for m in manifests)}
    table = pa.concat_tables(tables) if tables else None
    if table is None or table.num_rows == 0:
        raise NotEnoughData(f"{', '.join(map(str, folders))} holds no question; collect some first")
    return once(settled(table)), first, digest.hexdigest()[:16]


def once(table: Any) -> Any:
    """Return the table with each question about a picture once, the last one.

    A question that two folders (or two requests) hold counts once, or it would weigh double. Within
    another conversation it is another one: a log's rows say which, as ``asked`` in their metadata.
    """
    told = [json.loads(text or "{}").get("asked") for text in table["metadata"].to_pylist()]
    names = ("picture_id", "question")
    asked = zip(*(table[name].to_pylist() for name in names), told, strict=True)
    last = {key: row for row, key in enumerate(asked)}
    return table.take(sorted(last.values()))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an oracle folder."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(
            f"{folder} holds no oracle data (no {MANIFEST}); run `m3-train collect` first"
        ) from error
    except json.JSONDecodeError as error:
        raise TrainingError(f"{path} is not valid JSON: {error}") from error
    missing = {"model_hash", "scales", "feature_schema", "grid_side", "embedding_dim", "relevance"}
    missing -= set(manifest)
    if missing:
        raise TrainingError(f"{path} lacks {', '.join(sorted(missing))}")
    return dict(manifest)


def space_of(manifest: dict[str, Any]) -> ActionSpace:
    """Return the actions of a folder; those of before knew the scales alone.

    Raises:
        TrainingError: they are damaged.
    """
    stored = manifest.get("actions")
    if stored is None:
        return uniform_space([int(scale) for scale in manifest["scales"]])
    try:
        return ActionSpace.from_json(stored)
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{MANIFEST} holds damaged actions: {error}") from error


def _arrays(table: Any, manifest: dict[str, Any], data_hash: str) -> OracleData:
    scales = tuple(int(scale) for scale in manifest["scales"])
    relevance = str(manifest["relevance"])
    schema = feature_schema(scales, manifest["grid_side"], manifest["embedding_dim"], relevance)
    if schema.hash != manifest["feature_schema"]:
        raise MixedData(
            f"the data hold features {manifest['feature_schema']}, this version computes "
            f"{schema.hash}: collect them again"
        )
    space = space_of(manifest)
    same = {column: manifest[column] for column in ("model_hash", "feature_schema")}
    same["action_space"] = None if manifest.get("actions") is None else space.hash
    for column, wanted in same.items():
        found = table[column].unique().to_pylist()
        if found != [wanted]:
            raise MixedData(f"the shards and their manifest differ in {column}: {found[:3]}")
    metadata = [json.loads(text) if text else {} for text in table["metadata"].to_pylist()]
    table, metadata, again = without_repeats(table, metadata, len(space))
    try:
        arrays = oracle_arrays(table)
    except ValueError as error:
        raise MixedData(str(error)) from error
    has_reference = np.array([r is not None for r in table["reference"].to_pylist()])
    if arrays.scores.shape[1] != len(space):
        raise MixedData(f"{arrays.scores.shape[1]} scores a question for {len(space)} actions")
    return OracleData(
        picture_ids=arrays.picture_ids.astype(np.str_),
        units=arrays.units.astype(np.str_),
        question_ids=arrays.question_ids.astype(np.str_),
        groups=np.array(
            [f"{d}/{k}" for d, k in zip(arrays.datasets, arrays.kinds, strict=True)], np.str_
        ),
        scores=arrays.scores.astype(np.float64),
        soft=arrays.p_reference.astype(np.float64),
        confidence=arrays.confidence.astype(np.float64),
        features=arrays.features,
        has_reference=has_reference,
        metrics=metrics_of(table, has_reference),
        thresholds=np.array(
            [THRESHOLD if t is None else t for t in table["threshold"].to_pylist()]
        ),
        size_px=np.array([np.nan if v is None else v for v in table["size_px"].to_pylist()]),
        metadata=metadata,
        visual_tokens=arrays.visual_tokens.astype(np.float64),
        space=space,
        flops=np.array(manifest["flops"], float) if manifest.get("flops") else None,
        schema=schema,
        feature_schema=schema.hash,
        model_hash=manifest["model_hash"],
        sources=tuple(sorted(set(table["source"].to_pylist()))),
        data_hash=data_hash,
        repeats=again,
        seconds=dict(manifest.get("analytic_seconds") or {}),
        encode=EncodeCost(**(manifest.get("encode") or {})),
        label_recipe=manifest.get("label_recipe"),
        scripts=taught_by(table["question"].unique().to_pylist()),
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
