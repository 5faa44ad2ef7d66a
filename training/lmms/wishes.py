"""A run's wishes, as lmms-eval's ``--model_args`` tell them: honoured, or refused in a sentence.

Knows model and router folders; knows nothing of tasks, and does not import lmms-eval.
"""

from __future__ import annotations

from pathlib import Path

from m3model import M3Config, default_model_path
from m3model.relevance.choice import relevance_name
from router import default_router_path
from router.actions import default_space
from router.router import Router
from training.errors import TrainingError
from training.lmms.answering import Answerer
from training.lmms.deciding import AUTO, AtFocus, AtScale, Routed, check_router
from training.lmms.encoding import PictureEncoder

FEW_AT_ONCE = 32  # questions in flight with batch_size=auto


def answerer_of(
    pretrained: str | None = None,
    scale: int | str | None = None,
    focus: str | None = None,
    router: str | None = None,
    *,
    device: str | None = None,
    text_encoder: str | None = None,
) -> Answerer:
    """Return a loaded checkpoint that answers as was wished.

    Args:
        pretrained: model folder; None is the embedded model.
        scale: visual tokens a picture, or "auto", which is also meant where no focus is named.
        focus: name of a focus of the model's default actions.
        router: its folder, with "auto"; None is the shipped one for the embedded model.
        device: torch device; None takes a GPU where there is one.
        text_encoder: CLIP folder, where router or focus need relevance of that kind.

    Raises:
        TrainingError: wishes that contradict each other or the model.
        RouterFileError: the router's folder is damaged.
    """
    folder = default_model_path() if pretrained is None else Path(pretrained)
    if not (folder / "config.json").is_file():
        raise TrainingError(f"{folder} is not a model folder: give pretrained=DIR")
    if focus is not None and scale is not None:
        raise TrainingError("give scale or focus, not both")
    if router is not None and (focus is not None or scale not in (None, AUTO)):
        raise TrainingError("router=DIR decides with scale=auto only: leave one of them out")
    clip = None if text_encoder is None else Path(text_encoder)
    if focus is not None:
        at_focus = _at_focus(folder, focus)
        name = relevance_name(folder, text_encoder=clip)
        encoder = PictureEncoder(folder, device=device, relevance=name, text_encoder=clip)
        return Answerer(encoder, at_focus)
    if scale in (None, AUTO):
        chosen = _router_folder(folder, router)
        found = Router.from_pretrained(chosen)
        name = found.schema.relevance
        encoder = PictureEncoder(folder, device=device, relevance=name, text_encoder=clip)
        check_router(found, chosen, encoder)
        return Answerer(encoder, Routed(found))
    at_scale = _at_scale(folder, scale)
    return Answerer(PictureEncoder(folder, device=device), at_scale)


def batch_of(told: int | str) -> int:
    """Return how many questions are in flight together.

    Raises:
        TrainingError: no positive number, and not "auto".
    """
    if told == "auto":
        return FEW_AT_ONCE
    if not str(told).isdecimal() or int(told) < 1:
        raise TrainingError(f"batch_size must be a positive number or auto, got {told!r}")
    return int(told)


def _at_scale(folder: Path, scale: int | str | None) -> AtScale:
    scales = tuple(M3Config.from_pretrained(folder).scales)
    if str(scale) not in map(str, scales):
        raise TrainingError(
            f"no scale {scale}: this model has {', '.join(map(str, scales))}, and auto"
        )
    return AtScale(int(str(scale)))


def _at_focus(folder: Path, name: str) -> AtFocus:
    space = default_space(tuple(M3Config.from_pretrained(folder).scales))
    names = [action.name for action in space.actions if not action.is_uniform]
    if name not in names:
        raise TrainingError(f"no focus {name!r}: this model has {', '.join(names) or 'none'}")
    return AtFocus(space, name)


def _router_folder(model: Path, router: str | None) -> Path:
    shipped = default_router_path()
    if router is None and model.resolve() == default_model_path() and shipped.is_dir():
        return shipped
    if router is None or not Path(router).is_dir():
        raise TrainingError(f"scale=auto needs the router of {model}: give router=DIR")
    return Path(router)
