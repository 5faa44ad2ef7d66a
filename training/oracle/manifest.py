"""What a folder of oracle data says of itself, and whether several belong together.

Knows manifests and the bytes of shards; nothing of the rows in them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m3model.engine.recipe import model_of, shared_recipe
from router.actions import ActionSpace, uniform_space
from router.features.schema import FeatureSchema, feature_schema
from training.errors import MixedData, TrainingError
from training.oracle.collection import MANIFEST
from training.oracle.growth.folder import finished_shards


def shards_of(folders: Sequence[Path]) -> tuple[list[Path], dict[str, Any], str]:
    """Return the folders' shards, what their manifests have in common, and a hash of the data.

    Raises:
        TrainingError: a folder holds no oracle data, or not all of it.
        MixedData: different models, scales, actions or feature schemas.
    """
    manifests, shards = [], list[Path]()
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
            with path.open("rb") as file:
                while piece := file.read(2**20):
                    digest.update(piece)
        shards += paths
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
    return shards, first, digest.hexdigest()[:16]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an oracle folder.

    Raises:
        TrainingError: there is none, or it is damaged.
    """
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


def schema_of(manifest: dict[str, Any]) -> FeatureSchema:
    """Return the feature schema that this version computes for such data."""
    scales, relevance = tuple(map(int, manifest["scales"])), str(manifest["relevance"])
    return feature_schema(scales, manifest["grid_side"], manifest["embedding_dim"], relevance)


def checked_schema(schema: FeatureSchema, manifest: dict[str, Any]) -> FeatureSchema:
    """Return the schema.

    Raises:
        MixedData: the data's features are others.
    """
    if schema.hash != manifest["feature_schema"]:
        raise MixedData(
            f"the data hold features {manifest['feature_schema']}, this version computes "
            f"{schema.hash}: collect them again"
        )
    return schema
