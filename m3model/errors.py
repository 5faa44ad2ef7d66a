"""The package's own errors. Bad values are ValueErrors too, so callers may catch either."""

from __future__ import annotations

from typing import Any


class CheckpointMismatch(ValueError):
    """The weights on disk are not exactly the weights of the model; the message names the keys."""


class ConversionError(ValueError):
    """A checkpoint that cannot be converted; the message says why and what to do."""


class RelevanceUnavailable(ValueError):
    """A source of relevance that this model or folder cannot give; the message says what would."""


class BadPicture(ValueError):
    """A picture that cannot be read; ``code`` is for programs, the message says what to do."""

    code = "invalid_image"


class PictureTooLarge(BadPicture):
    """A picture with more pixels than are accepted; nothing of it was decoded."""

    code = "image_too_large"


class EngineUnavailable(RuntimeError):
    """An engine that cannot be started; the message says why and what to do."""


class EngineError(RuntimeError):
    """Something an engine reports about one request."""


class EngineBusy(EngineError):
    """Too many requests wait already: try again later."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} requests are waiting already; try again later")
        self.waiting = waiting


class EngineClosed(EngineError):
    """The engine takes no more work, and did not finish this request."""


class BadRequest(EngineError, ValueError):
    """The request contradicts itself or the model (ids, shapes, sampling, a repeated id)."""


class PromptTooLong(BadRequest):
    """The expanded prompt can never fit; `tokens` is its length and `limit` the longest allowed."""

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(
            f"the prompt has {tokens} tokens with its pictures, this model reads at most {limit}: "
            "shorten the text or choose a coarser scale"
        )
        self.tokens = tokens
        self.limit = limit


class RequestCancelled(EngineError):
    """Somebody cancelled the request before it ended."""


class RequestFailed(EngineError):
    """Generation raised for this request; the cause is attached, other requests go on."""


def refuse_mismatch(where: str, info: dict[str, Any]) -> None:
    """Nothing, if every tensor of model and checkpoint found its counterpart.

    Args:
        where: the checkpoint, for the message.
        info: what `from_pretrained(..., output_loading_info=True)` reports.

    Raises:
        CheckpointMismatch: naming every key that is missing, unexpected or of the wrong shape.
    """
    found = {
        "missing": sorted(info.get("missing_keys", ())),
        "unexpected": sorted(info.get("unexpected_keys", ())),
        "wrong shape": sorted(str(entry) for entry in info.get("mismatched_keys", ())),
        "errors": [str(message) for message in info.get("error_msgs") or ()],
    }
    parts = [f"{label}: {', '.join(names)}" for label, names in found.items() if names]
    if parts:
        raise CheckpointMismatch(f"{where} does not hold this model's weights. {'; '.join(parts)}")
