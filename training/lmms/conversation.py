"""A task's question as the service would get it: conversation, pixels, question, how to answer.

A wish is honoured or refused by name, never ignored. Knows lmms-eval's plain messages and settings;
knows nothing of models, and does not import lmms-eval.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m3model.engine.interface import Sampling
from m3model.errors import BadPicture, BadRequest
from m3model.pictures import CHECKED_BEFORE, decode_picture
from training.errors import TrainingError

DEFAULT_TOKENS = 1024  # of an answer, where a task says nothing: as lmms-eval's own models
KNOWN = ("max_new_tokens", "until", "do_sample", "temperature", "top_p", "seed")
# Settings that change nothing here, with the values that do not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1, None),
    "image_aspect_ratio": ("pad", None),  # pictures are padded to squares, whatever is asked
    "repetition_penalty": (1, None),
    "use_cache": (True, None),
}
PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")  # that a PNG keeps as they are


@dataclass(frozen=True)
class Asked:
    """One question: ``messages`` as the processor takes them, the pixels (H, W, 3) uint8 of their
    pictures in order, the text that a router looks at, and how the answer is drawn.
    """

    messages: tuple[dict[str, Any], ...]
    pictures: tuple[NDArray[np.uint8], ...]
    question: str
    sampling: Sampling


def asked_of(messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Asked:
    """Return the question of a document's messages and a task's ``generation_kwargs``.

    Raises:
        TrainingError: something that cannot be asked: a video, audio, a setting of another kind.
    """
    pictures: list[NDArray[np.uint8]] = []
    plain = tuple(_plain(message, pictures) for message in messages)
    return Asked(plain, tuple(pictures), question_of(plain), sampling_of(settings))


def question_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of the last message, which is the user's; where that is only a picture, the
    latest earlier text of the user's. As in the service.

    Raises:
        TrainingError: there is none.
    """
    if not messages or messages[-1]["role"] != "user":
        raise TrainingError("the last message is not the user's: m3 answers questions only")
    is_shown = any(part["type"] == "image" for part in messages[-1]["content"])
    for message in (messages[-1], *(messages[-2::-1] if is_shown else ())):
        texts = [part["text"] for part in message["content"] if part["type"] == "text"]
        if message["role"] == "user" and (question := "\n".join(texts).strip()):
            return question
    raise TrainingError("the last message has no text: m3 answers questions only")


def sampling_of(settings: Mapping[str, Any]) -> Sampling:
    """Return how a task wants its answers drawn.

    Raises:
        TrainingError: a setting that cannot be honoured; it is named.
    """
    for name, value in settings.items():
        if name not in KNOWN and value not in NEUTRAL.get(name, ()):
            hint = f"; --gen_kwargs {name}={NEUTRAL[name][0]} drops it" if name in NEUTRAL else ""
            raise TrainingError(f"m3 cannot honour the task's {name}={value!r}{hint}")
    until = settings.get("until") or ()
    temperature = settings.get("temperature")
    samples = settings.get("do_sample")
    if samples is None:
        samples = bool(temperature)
    try:
        if not samples:  # then the others say nothing
            temperature, top_p = 0.0, 1.0
        else:
            temperature = 1.0 if temperature is None else float(temperature)
            top_p = float(settings.get("top_p") or 1.0)
        return Sampling(
            max_new_tokens=int(settings.get("max_new_tokens") or DEFAULT_TOKENS),
            temperature=temperature,
            top_p=top_p,
            seed=settings.get("seed"),
            stop=tuple([until] if isinstance(until, str) else until),
        )
    except (BadRequest, TypeError, ValueError) as error:
        raise TrainingError(f"m3 cannot honour the task's settings: {error}") from error


def pixels_of(picture: Any) -> NDArray[np.uint8]:
    """Return the pixels, (H, W, 3) uint8 RGB, of what a task shows: a Pillow picture or a file.

    Of other than plain colour pictures they are what the service would see of them as PNG.

    Raises:
        TrainingError: it is neither, or cannot be read.
    """
    try:
        if isinstance(picture, str | Path):
            return decode_picture(Path(picture).read_bytes(), CHECKED_BEFORE)
        if not isinstance(picture, Image.Image):
            raise TrainingError(
                f"m3 reads pictures only, the task shows a {type(picture).__name__}"
            )
        if picture.mode == "RGB":
            return np.asarray(picture)
        file = io.BytesIO()
        kept = picture if picture.mode in PNG_MODES else picture.convert("RGB")
        kept.save(file, "PNG", compress_level=1)
        return decode_picture(file.getvalue(), CHECKED_BEFORE)
    except (BadPicture, OSError) as error:
        raise TrainingError(f"a picture of the task cannot be read: {error}") from error


def _plain(message: Mapping[str, Any], pictures: list[NDArray[np.uint8]]) -> dict[str, Any]:
    """Return the message as the processor takes it; its pictures are added to the list."""
    said, content = message.get("role"), message.get("content")
    if said not in ("system", "user", "assistant"):
        raise TrainingError(f"m3 knows no role {said!r}")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or ()
    plain: list[dict[str, str]] = []
    for part in parts:
        kind = part.get("type")
        if kind == "text":
            plain.append({"type": "text", "text": str(part["text"])})
        elif kind == "image" and said == "user":
            pictures.append(pixels_of(part["url"]))
            plain.append({"type": "image"})
        elif kind == "image":
            raise TrainingError(
                f"a picture stands in a message of the role {said}: m3 reads the user's"
            )
        else:
            raise TrainingError(f"m3 reads text and pictures, no {kind}: choose another task")
    return {"role": said, "content": plain}
