"""The router folder: what is written, what is checked when it is read, and its version.

Knows file names, digests and JSON; knows nothing of decisions. Every file is plain text and
nothing in a folder runs when it is loaded: config.json (policy), schema.json (features),
scale_0001.txt ... (LightGBM texts), calibration.json (with a probe row and, where there is one, the
linear half), second_look.json where the router has one, README.md (card). Format 2, written where
the router may also choose a focus, adds actions.json (the space) and focus_02.txt ... (boosters,
numbered by the place of their action).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.exceptions import NotFittedError

from router.actions import ActionSpace, uniform_space
from router.errors import FeatureMismatch, RouterFileError
from router.features.schema import FeatureSchema, feature_schema
from router.places import Place
from router.policy import Policy
from router.predictor.calibration import Calibration
from router.predictor.chain import ComplexityPredictor
from router.predictor.linear import LinearScores
from router.second_look import SecondLook

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

CONFIG_FILE = "config.json"
SCHEMA_FILE = "schema.json"
CALIBRATION_FILE = "calibration.json"
SECOND_LOOK_FILE = "second_look.json"
ACTIONS_FILE = "actions.json"
BOOSTER_FILES = ("scale_*.txt", "focus_*.txt")
CARD_FILE = "README.md"
_BOOSTER_NAME = r"(scale|focus)_\d+\.txt"
CARD_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
FORMATS = (1, 2)  # of scales alone, and of a space with foci


@dataclass(frozen=True)
class RouterParts:
    """What a router is made of.

    Raises:
        FeatureMismatch: a predictor of another number of features than the schema has.
        ValueError: parts that do not fit each other.
    """

    predictor: ComplexityPredictor
    schema: FeatureSchema
    policy: Policy
    metadata: dict[str, Any]
    second_look: SecondLook | None
    space: ActionSpace

    def __post_init__(self) -> None:
        names, scales, costs = self.schema.names, self.schema.scales, self.policy.costs
        n_features, n_actions = self.predictor.n_features_in_, self.predictor.n_scales_
        if len(names) != n_features:
            raise FeatureMismatch(
                f"the schema has {len(names)} features, the predictor {n_features}"
            )
        if len(self.space) != n_actions or len(scales) != len(costs):
            raise ValueError(
                f"{len(self.space)} actions, {n_actions} predicted; {len(scales)} scales, "
                f"{len(costs)} costs: these must be equal"
            )
        if self.space.scales != scales:
            raise ValueError(f"the space has the scales {self.space.scales}, the schema {scales}")
        coarsest = min(action.coarse for action in self.space.actions)
        if coarsest < scales[0]:
            raise ValueError(f"a focus from {coarsest} is coarser than every scale {scales}")
        look = self.second_look
        if look is not None and look.actions != self.space.names:
            raise ValueError(
                f"the second look is at {', '.join(look.actions)}, "
                f"the actions are {', '.join(self.space.names)}"
            )


def booster_files(space: ActionSpace) -> list[str]:
    """Return the name of each action's booster file; nothing of an action's name is in it."""
    return [
        f"scale_{action.coarse:04d}.txt" if action.is_uniform else f"focus_{place:02d}.txt"
        for place, action in enumerate(space.actions)
    ]


def version_of(files: Mapping[str, bytes]) -> str:
    """Return 12 hex digits of sha256 over names and contents."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name} {len(files[name])}\n".encode())
        digest.update(files[name])
    return digest.hexdigest()[:12]


def predictor_hash(files: Mapping[str, bytes]) -> str:
    """Return 12 hex digits of all that shapes a choice except the price: what is certified.

    A request held to a bound gets no second look, so that file does not count either.
    """
    config = json.loads(files[CONFIG_FILE])
    facts = {name: config.get(name) for name in ("format", "scales", "costs", "schema_hash")}
    # The model's hash covers its vision tower and readout, the schema's a text encoder.
    facts["model_hash"] = config["metadata"].get("model_hash")
    counted = {name: data for name, data in files.items() if name != SECOND_LOOK_FILE}
    return version_of({**counted, CONFIG_FILE: _json(facts)})


def render(parts: RouterParts) -> dict[str, bytes]:
    """Return the files that decide: all but the card. Equal parts give equal bytes."""
    uniform = parts.space.is_uniform
    config = {
        "format": 1 if uniform else 2,
        "scales": list(parts.schema.scales),
        "costs": list(parts.policy.costs),
        "cost_unit": parts.policy.cost_unit,
        "price": parts.policy.price,
        "finest_only": parts.policy.finest_only,
        "schema_hash": parts.schema.hash,
        "metadata": parts.metadata,
    }
    again = parts.second_look
    return {
        CONFIG_FILE: _json(config),
        SCHEMA_FILE: _json(parts.schema.to_json()),
        **_render_predictor(parts.predictor, parts.space),
        **({} if uniform else {ACTIONS_FILE: _json(parts.space.to_json())}),
        **({} if again is None else {SECOND_LOOK_FILE: again.to_bytes()}),
    }


def read_files(folder: Place) -> dict[str, bytes]:
    """Return the files of a folder that decide; a card, plots and reports do not count."""
    named = {CONFIG_FILE, SCHEMA_FILE, CALIBRATION_FILE, SECOND_LOOK_FILE, ACTIONS_FILE}
    there: list[Place] = list(folder.iterdir())
    return {
        path.name: path.read_bytes()
        for path in sorted(there, key=lambda path: path.name)
        if path.is_file() and (path.name in named or re.fullmatch(_BOOSTER_NAME, path.name))
    }


def parse(files: Mapping[str, bytes]) -> RouterParts:
    """Return the parts of a router's files, checked throughout.

    Raises:
        RouterFileError: a file is missing or damaged, the router was fitted on other features
            than this program computes, or it predicts other numbers than when it was saved.
    """
    named = (CONFIG_FILE, SCHEMA_FILE, CALIBRATION_FILE)
    missing = [name for name in named if name not in files]
    if missing:
        raise RouterFileError(f"missing {', '.join(missing)}")
    config, stored = _object(files, CONFIG_FILE), _object(files, SCHEMA_FILE)
    if config.get("format") not in FORMATS:
        raise RouterFileError(
            f"it is of format {config.get('format')!r}; this program reads format "
            f"{' and '.join(map(str, FORMATS))}: update it, or fit the router again"
        )
    try:
        scales = tuple(int(scale) for scale in config["scales"])
        policy = Policy(
            costs=tuple(config["costs"]),
            price=float(config["price"]),
            cost_unit=str(config["cost_unit"]),
            finest_only=bool(config["finest_only"]),
        )
        metadata = dict(config["metadata"])
        schema = feature_schema(
            [int(scale) for scale in stored["scales"]],
            int(stored["grid_side"]),
            int(stored["embedding_dim"]),
            str(stored["relevance"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise RouterFileError(f"{CONFIG_FILE} or {SCHEMA_FILE} is damaged: {error!r}") from error
    if stored != schema.to_json() or config.get("schema_hash") != schema.hash:
        raise RouterFileError(
            "it was fitted on other features than this program computes "
            f"({config.get('schema_hash')}, here {schema.hash}); fit it again"
        )
    if scales != schema.scales or len(policy.costs) != len(scales):
        raise RouterFileError(
            f"scales {scales} with {len(policy.costs)} costs, but the schema has {schema.scales}"
        )
    space = _parse_space(files, scales, config["format"])
    boosters = {name for name in files if re.fullmatch(_BOOSTER_NAME, name)}
    surplus = boosters - set(booster_files(space))
    if surplus:
        raise RouterFileError(f"boosters of other scales: {', '.join(sorted(surplus))}")
    predictor = _parse_predictor(files, space)
    look = _parse_second_look(files)
    try:
        return RouterParts(predictor, schema, policy, metadata, look, space)
    except ValueError as error:
        raise RouterFileError(str(error)) from error


def plain_card(parts: RouterParts, version: str) -> str:
    """Return the text of README.md: what the router is, its dial, and what is known about it."""
    from huggingface_hub import ModelCard

    card = ModelCard.from_template(
        card_data(),
        template_path=str(CARD_TEMPLATE),
        version=version,
        policy=parts.policy,
        second_look=parts.second_look is not None,
        schema_hash=parts.schema.hash,
        n_features=len(parts.schema.names),
        rows=list(zip(parts.schema.scales, parts.policy.costs, strict=True)),
        foci=[action for action in parts.space.actions if not action.is_uniform],
        facts=json.dumps(parts.metadata, indent=1, sort_keys=True),
    )
    return f"{card}\n"


def card_data() -> "ModelCardData":
    """Return what a Hub reads about any router, without the card's words."""
    from huggingface_hub import ModelCardData

    return ModelCardData(
        library_name="m3-router",
        license="apache-2.0",
        tags=["m3-router", "lightgbm", "adaptive-visual-tokens"],
    )


def _render_predictor(predictor: ComplexityPredictor, space: ActionSpace) -> dict[str, bytes]:
    if not hasattr(predictor, "boosters_"):
        raise NotFittedError("this ComplexityPredictor is not fitted yet; call fit first")
    texts = {
        name: text.encode()
        for name, text in zip(booster_files(space), predictor.model_texts_, strict=True)
    }
    params = predictor.get_params()
    if params["bases"] is None:  # as before there were any: equal routers give equal bytes
        del params["bases"]
    else:
        params["bases"] = list(params["bases"])
    stored = {
        "params": params,
        "n_features": predictor.n_features_in_,
        "calibrations": {
            name: calibration.to_json()
            for name, calibration in zip(space.names, predictor.calibrations_, strict=True)
        },
        "boosters_sha256": {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()},
        "probe_row": [float(value) for value in predictor.probe_row_],
        "probe_p_suffices": predictor.predict_proba(predictor.probe_row_[None])[0].tolist(),
    }
    if predictor.linear_ is not None:
        stored["linear"] = predictor.linear_.to_json()
    return {**texts, CALIBRATION_FILE: _json(stored)}


def _parse_space(files: Mapping[str, bytes], scales: tuple[int, ...], written: int) -> ActionSpace:
    if written == 1:
        if ACTIONS_FILE in files:
            raise RouterFileError(f"{ACTIONS_FILE} in a folder of format 1, which has none")
        return uniform_space(scales)
    if ACTIONS_FILE not in files:
        raise RouterFileError(f"missing {ACTIONS_FILE}")
    try:
        return ActionSpace.from_json(json.loads(files[ACTIONS_FILE]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RouterFileError(f"{ACTIONS_FILE} is damaged: {error!r}") from error


def _parse_predictor(files: Mapping[str, bytes], space: ActionSpace) -> ComplexityPredictor:
    names = booster_files(space)
    missing = [name for name in names if name not in files]
    if missing:
        raise RouterFileError(f"missing {', '.join(missing)}")
    stored = _object(files, CALIBRATION_FILE)
    try:
        params = dict(stored["params"])
        if "bases" in params:
            params["bases"] = tuple(map(int, params["bases"]))
        made = ComplexityPredictor(**params)
        made.n_features_in_ = int(stored["n_features"])
        made.calibrations_ = [
            Calibration.from_json(stored["calibrations"][name]) for name in space.names
        ]
        if "linear" in stored:
            made.linear_ = LinearScores.from_json(stored["linear"])
        digests = dict(stored["boosters_sha256"])
        probe = np.asarray(stored["probe_row"], dtype=np.float32)
        expected = np.asarray(stored["probe_p_suffices"], dtype=np.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise RouterFileError(f"{CALIBRATION_FILE} is damaged: {error!r}") from error
    for name in names:
        # LightGBM's parser may end the process on a damaged text: never show it one.
        if hashlib.sha256(files[name]).hexdigest() != digests.get(name):
            raise RouterFileError(f"{name} is not the file this router was saved with")
    try:
        made.adopt([files[name].decode() for name in names])
    except ValueError as error:
        raise RouterFileError(f"{CALIBRATION_FILE} is damaged: {error}") from error
    made.probe_row_ = probe
    widths = {int(booster.num_feature()) for booster in made.boosters_}
    if made.linear_ is not None:
        shape = made.linear_.weights.shape
        if shape != (len(space), made.n_features_in_):
            raise RouterFileError(f"{CALIBRATION_FILE} is damaged: linear weights of shape {shape}")
    if widths != {made.n_features_in_} or probe.shape != (made.n_features_in_,):
        raise RouterFileError(f"boosters of {sorted(widths)} features, not {made.n_features_in_}")
    found = made.predict_proba(probe[None])[0]
    if expected.shape != found.shape or not np.allclose(found, expected, rtol=0.0, atol=1e-6):
        raise RouterFileError(
            f"the probe row now gives {found.tolist()}, when saved {expected.tolist()}"
        )
    return made


def _parse_second_look(files: Mapping[str, bytes]) -> SecondLook | None:
    if SECOND_LOOK_FILE not in files:
        return None
    try:
        return SecondLook.from_json(_object(files, SECOND_LOOK_FILE))
    except (ValueError, KeyError, TypeError) as error:
        raise RouterFileError(f"{SECOND_LOOK_FILE} is damaged: {error!r}") from error


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        value = json.loads(files[name])
    except ValueError as error:
        raise RouterFileError(f"{name} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise RouterFileError(f"{name} is damaged: it holds no JSON object")
    return value
