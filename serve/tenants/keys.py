"""The keys that let callers in: from the environment, or from a file with names and budgets.

Knows digests, never a key that is not being made; whether a file changes while the service runs is
the business of `serve.tenants.live_keys`. Digests can travel to replicas and be seen there.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from serve.errors import ServeSetupError
from serve.settings import API_KEYS_VARIABLE

ADVICE = "'m3-serve key NAME' makes an entry"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Key(BaseModel):
    """One key: whose it is, and what its owner, the tenant, may have read.

    A tenant may have several keys, so that a new one is known before the old one goes; they share
    one budget.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: Name
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    visual_tokens_per_minute: Annotated[int, Field(ge=1)] | None = None


_ENTRIES = TypeAdapter(list[Key])


def digest(key: str) -> str:
    """Return what is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


# What is made of a variable that was not set.
NOTHING = frozenset(map(digest, ("", "\n", "\r\n")))


def environment_keys() -> tuple[Key, ...] | None:
    """Return the keys that M3_API_KEYS lists, named by their place; None: it is not set.

    Raises:
        ServeSetupError: the variable is set and lists no key, as an empty secret does.
    """
    said = os.environ.get(API_KEYS_VARIABLE)
    if said is None:
        return None
    found = [digest(key.strip()) for key in said.split(",") if key.strip()]
    if not found:
        raise ServeSetupError(
            f"{API_KEYS_VARIABLE} is set but holds no key: give one, or unset it, which lets "
            "everybody in"
        )
    if len(found) == 1:
        return (Key(name="default", sha256=found[0]),)
    return tuple(Key(name=f"key-{n}", sha256=each) for n, each in enumerate(found, 1))


def given_keys(file: Path | None, carried: tuple[Key, ...] | None = None) -> tuple[Key, ...] | None:
    """Return the keys that count when a gateway starts; None: everybody may call.

    Args:
        file: the setting ``api_keys_file``.
        carried: what whoever deployed the service read, for a machine that lacks the file or the
            variable.

    Raises:
        ServeSetupError: the file cannot be used, or the environment names keys as well.
    """
    if file is None:
        return environment_keys() if carried is None else carried
    if API_KEYS_VARIABLE in os.environ:
        raise ServeSetupError(
            f"{API_KEYS_VARIABLE} is set and there is a file of keys, {file}: unset the variable "
            "and put its keys' SHA-256 into the file, or do without the file"
        )
    if carried is not None and not file.exists():
        return carried
    return read_keys(file)


def read_keys(file: Path) -> tuple[Key, ...]:
    """Return the keys that a file lists; an empty list lets nobody in.

    Raises:
        ServeSetupError: it is no such list; the wrong entry is named, and nothing of it is quoted,
            since somebody may have written a key there.
    """
    import yaml

    try:
        said = yaml.load(file.read_text("utf-8"), _loader())
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8"
        raise ServeSetupError(f"the file of keys {file} cannot be read: {why}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", see line {mark.line + 1}"
        raise ServeSetupError(f"the file of keys {file} is not YAML{where}") from None
    except ValueError as error:
        raise ServeSetupError(f"{file}: {error}") from None
    try:
        keys = tuple(_ENTRIES.validate_python(said))
        _check(keys)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, wrong["loc"])) or "the whole"
        raise ServeSetupError(f"{file}: {place}: {wrong['msg']}; {ADVICE}") from None
    except ValueError as error:
        raise ServeSetupError(f"{file}: {error}") from None
    return keys


def new_key(name: str, visual_tokens_per_minute: int | None = None) -> tuple[str, str]:
    """Return a new key, and the entry of it for the file.

    Raises:
        ServeSetupError: the name, or the budget, cannot stand there.
    """
    secret = "m3-" + secrets.token_urlsafe(32)
    said = {"name": name, "sha256": digest(secret)}
    budget = {"visual_tokens_per_minute": visual_tokens_per_minute}
    try:
        key = Key.model_validate(said | budget)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        raise ServeSetupError(f"{wrong['loc'][0]}: {wrong['msg']}") from None
    lines = [f'- name: "{key.name}"', f'  sha256: "{key.sha256}"']
    if key.visual_tokens_per_minute is not None:
        lines.append(f"  visual_tokens_per_minute: {key.visual_tokens_per_minute}")
    return secret, "\n".join(lines)


def _check(keys: Iterable[Key]) -> None:
    """Return if every key is one, none is listed twice, and no tenant has two budgets."""
    places: dict[str, int] = {}
    budgets: dict[str, int | None] = {}
    for place, key in enumerate(keys):
        if key.sha256 in NOTHING:
            raise ValueError(f"{place}.sha256: this is the digest of no key at all; {ADVICE}")
        if places.setdefault(key.sha256, place) != place:
            raise ValueError(f"entries {places[key.sha256]} and {place} are one key; remove one")
        budget = budgets.setdefault(key.name, key.visual_tokens_per_minute)
        if budget != key.visual_tokens_per_minute:
            raise ValueError(
                f"{place}.visual_tokens_per_minute: another key of '{key.name}' says {budget}; "
                "all keys of one name share one budget, so say the same"
            )


def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that stands twice in one entry, where YAML would take the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [child.value for child, _ in node.value]
            if len(set(map(str, names))) < len(names):
                line = node.start_mark.line + 1
                raise ValueError(f"the entry at line {line} says the same thing twice")
            return super().construct_mapping(node, deep)

    return Loader
