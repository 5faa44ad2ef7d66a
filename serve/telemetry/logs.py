"""Lines of the log, as text or JSON, with the id of the request they are about.

A failure is told by its kind and place: its words may quote what a caller sent. Knows Python's
logging; what is worth a line is decided where it happens.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

Format = Literal["text", "json"]
WITHHELD = "its words are not logged: they may quote the request (log_prompts shows them)"

# A box per request, filled once its name is known: threads and tasks that work on it see the same.
_request: ContextVar[list[str] | None] = ContextVar("m3_request", default=None)
_named_elsewhere: Callable[[], str] = str


def begin_request() -> None:
    """Note that what follows, in this task and those that it starts, is about one request."""
    _request.set([])


def name_request(request_id: str) -> None:
    """Give the request that is worked on here its name."""
    box = _request.get()
    if box is not None:
        box[:] = [request_id]


def request_id() -> str:
    """Return the name of the request that is worked on here, "" for none."""
    return next(iter(_request.get() or ()), "") or _named_elsewhere()


def failure(error: BaseException, *, words: bool) -> str:
    """Return what happened and where, for a line of the log.

    Args:
        error: with its causes.
        words: also what the error says, where prompts may be logged.
    """
    if words:
        return "".join(traceback.format_exception(error)).rstrip()
    lines: list[str] = []
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if each in seen:
            continue
        seen.append(each)
        kind = f"{type(each).__module__}.{type(each).__qualname__}".removeprefix("builtins.")
        lines = [*traceback.format_tb(each.__traceback__), f"{kind}: {_words(each)}\n", *lines]
        inner = each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        before = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
        waiting += [e for e in (*inner, before) if e is not None]
    return "".join(lines).rstrip()


def _words(error: BaseException) -> str:
    """Return what an error says, if that comes from the system, a device or the code itself."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, AttributeError | ImportError | NameError):
        return str(error)
    return str(error) if type(error).__name__ == "OutOfMemoryError" else f"({WITHHELD})"


class _Line(logging.Formatter):
    """What both formats share: a failure within a request is told without its words."""

    def formatException(self, ei):  # type: ignore[no-untyped-def]
        if ei[1] is None or not request_id():
            return super().formatException(ei)
        return failure(ei[1], words=False)


class TextLines(_Line):
    """Lines for people, each with the request it is about."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        name = request_id()
        first, *more = super().format(record).split("\n", 1)
        told = f" [request {name}]" if name and name not in first else ""
        return "\n".join([first + told, *more])


class JsonLines(_Line):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": time.replace("+00:00", "Z"), "level": record.levelname, "logger": record.name,
            "message": record.getMessage(),
        }  # fmt: skip
        if name := request_id():
            line["request_id"] = name
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up(form: Format, named_elsewhere: Callable[[], str] | None = None) -> None:
    """Write this process's lines to stderr: everybody's warnings, and what the service tells.

    Args:
        form: text for people, json for programs.
        named_elsewhere: the name of a request that did not come through this process's front.
    """
    global _named_elsewhere
    if named_elsewhere is not None:
        _named_elsewhere = named_elsewhere
    handler = logging.StreamHandler(sys.stderr)
    text = TextLines("m3-serve: %(levelname)s: %(message)s")
    handler.setFormatter(JsonLines() if form == "json" else text)
    logging.basicConfig(handlers=[handler], force=True)
    logging.getLogger("serve").setLevel(logging.INFO)
