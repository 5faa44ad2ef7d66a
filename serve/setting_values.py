"""Kinds of values that settings have, beyond numbers and words: folders, hosts, origins.

Knows how they are written; knows nothing of what they are for.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)

from router.places import Place, StoredPlace, as_place

DETAILS = ("low", "high", "original")


def _as_path(value: Any) -> Any:
    if value == "":  # which Path takes for the folder that one happens to be in
        raise ValueError("empty; give a folder, . for this one, or null for none")
    return Path(value).expanduser() if isinstance(value, str) else value


def _as_place(value: Any) -> Place:
    if not isinstance(value, str | Path | StoredPlace):
        raise ValueError("Input is not a valid path")
    place = as_place(_as_path(value) if value == "" else value)
    return place.expanduser() if isinstance(value, str) else place


# YAML has no paths: strings are taken for them, everywhere else types are strict.
FolderPath = Annotated[Path, BeforeValidator(_as_path)]
# One of these, or in an object store.
FolderPlace = Annotated[
    Place,
    PlainValidator(_as_place),
    PlainSerializer(str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "path"}),
]


def _as_host(name: str) -> str:
    """Return a name as the Host header of a request holds it, without its port."""
    if not re.fullmatch(r"\*|\[[0-9a-fA-F:.]+\](:\d+)?|[0-9a-fA-F:]*:[0-9a-fA-F:.]*:[0-9a-fA-F:.]*|"
                        r"[\w.-]+(:\d+)?", name):  # fmt: skip
        raise ValueError(f"{name!r} is not a host's name, such as chat.example or [::1]")
    if name.count(":") > 1 and not name.startswith("["):
        return f"[{name.lower()}]"
    return re.sub(r":\d+$", "", name).lower().rstrip(".")


def _as_picture_host(name: str) -> str:
    """Return a host's name as addresses hold it; one that ends in a number is an address itself."""
    if not re.fullmatch(r"(\*\.)?([a-z0-9-]+\.)+[a-z][a-z0-9-]*", name.lower()):
        raise ValueError(f"{name!r} is not a host's name, such as img.example or *.img.example")
    return name.lower()


def _as_detail(detail: str) -> str:
    if detail not in DETAILS:
        raise ValueError(f"{detail!r} is no image detail with a scale: {', '.join(DETAILS)} are")
    return detail


def _as_origin(origin: str) -> str:
    """Return an origin as browsers write it."""
    if not re.fullmatch(r"\*|https?://[^/\s]+/?", origin):
        raise ValueError(f"{origin!r} is not an origin, such as https://chat.example")
    return origin.lower().rstrip("/")


HostName = Annotated[str, AfterValidator(_as_host)]
PictureHostName = Annotated[str, AfterValidator(_as_picture_host)]
ImageDetail = Annotated[str, AfterValidator(_as_detail)]
Origin = Annotated[str, AfterValidator(_as_origin)]
