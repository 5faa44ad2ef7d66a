"""What a registry holds: its versions, how two of them differ, and which may be cleared away.

Knows folders, lineage and the journal's state; changes nothing but what `clear_away` removes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from router.places import Place, StoredPlace, as_place
from router.registry import JOURNAL, Entry, Trial, history
from router.router import Router
from training.errors import TrainingError
from training.registry.changes import rollback_target
from training.registry.journal import State, read_state
from training.registry.lineage import read_lineage, reported
from training.registry.names import START, folders, named
from training.registry.uploads import take_down

ABANDONED_S = 86_400.0  # a copy that is not finished after a day never will be
CURRENT = "current"


@dataclass(frozen=True)
class Version:
    """A router of a registry.

    Attributes:
        name: of its folder, or ``start``.
        marks: ``in force``, ``restricted``, ``rollback goes here``, ``canary 0.1``, ``shadow 1``
            (and the share), ``quarantined``, ``cleared away``.
        entry: the last of the journal that is about it.
        accuracy, visual_tokens: of its report; None without one.
    """

    name: str
    marks: tuple[str, ...]
    entry: Entry | None
    accuracy: float | None = None
    visual_tokens: float | None = None


def versions(registry: Place) -> list[Version]:
    """Return what was ever in force or put in quarantine, the last first; ``start`` at the end.

    Raises:
        TrainingError: there is no registry.
        RouterFileError: the journal cannot be read.
    """
    state = _state(registry)
    about: dict[str, Entry] = {}
    for entry in state.entries:
        if entry.action != "promote" and entry.before is not None:
            about[entry.before] = entry
        if entry.action in ("promote", "rollback"):
            about[entry.to or START] = entry
    names = sorted(about.keys() - {START}, key=lambda name: about[name].seq, reverse=True)
    names += [name for name in folders(registry, state.entries) if name not in about]
    return [
        Version(
            name, _marks(registry, state, name), about.get(name),
            *_figures(registry / name, state.entries),
        )
        for name in [*names, START]
    ]  # fmt: skip


def differences(registry: Place, one: str, other: str) -> list[tuple[str, str, str]]:
    """Return what differs between two routers: what it is, and its value in each.

    Args:
        registry: its folder.
        one: a router in it (folder name, version, or the beginning of one), ``current``, or a
            router folder anywhere.
        other: the same.

    Raises:
        TrainingError: one of them is not there.
        RouterFileError: one of them, or the journal, cannot be read.
    """
    entries = history(registry)
    first, second = (_facts(_folder(registry, word), entries) for word in (one, other))
    rows = [(key, first.get(key, ""), second.get(key, "")) for key in first | second]
    return [row for row in rows if row[1] != row[2]]


def clear_away(registry: Place, keep: int) -> list[str]:
    """Remove old router folders and what dead processes left; return the routers' names.

    The ``keep`` last promoted stay, and always what is in force or on trial, and what a rollback
    would go to.
    The journal stays whole: what is in quarantine stays there without its folder.

    Raises:
        TrainingError: there is no registry.
        RouterFileError: the journal cannot be read.
    """
    state = _state(registry)
    if isinstance(registry, StoredPlace):
        there = folders(registry, state.entries)
        return [name for name in there if take_down(registry / name, lambda: _kept(registry, keep))]
    for grave in registry.glob(".*.gone"):
        _bury(registry, grave, keep)
    removed = []
    for name in folders(registry, state.entries):
        if name in _kept(registry, keep):
            continue
        grave = registry / f".{name}.{uuid4().hex}.gone"
        try:
            (registry / name).rename(grave)
        except FileNotFoundError:  # another one clears away, too
            continue
        removed += _bury(registry, grave, keep)
    _clear_leftovers(registry, state)
    return removed


def _bury(registry: Path, grave: Path, keep: int) -> list[str]:
    """Return the name of the router that was removed; none if it is wanted again since."""
    name = grave.name[1:].rsplit(".", 2)[0]
    try:
        if name in _kept(registry, keep) and not (registry / name).exists():
            grave.rename(registry / name)
            return []
    except OSError:  # who wanted it has put it there
        pass
    shutil.rmtree(grave, ignore_errors=True)
    return [name]


def _kept(registry: Place, keep: int) -> set[str]:
    state = read_state(registry)
    # The nearest may lie aside just now, or be damaged and be passed over.
    tried = None if state.trial is None else state.trial.router
    needed = [
        state.current, tried, next(state.behind(), None), rollback_target(registry, state)[0]
    ]  # fmt: skip
    return {*filter(None, needed), *folders(registry, state.entries)[:keep]}


def _clear_leftovers(registry: Path, state: State) -> None:
    last = state.entries[-1].seq if state.entries else 0
    for aside in registry.glob(f"{JOURNAL}/.*.tmp"):
        number = aside.name[1:].split(".")[0]
        if number.isdigit() and int(number) <= last:  # it comes too late for its number
            aside.unlink(missing_ok=True)
    for aside in registry.glob(".*.tmp"):
        with suppress(FileNotFoundError):  # it has just been finished
            if time.time() - aside.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(aside, ignore_errors=True)


def _state(registry: Place) -> State:
    if not registry.is_dir():
        raise TrainingError(f"{registry} is not a registry; promote a router first")
    return read_state(registry)


def _marks(registry: Place, state: State, name: str) -> tuple[str, ...]:
    place = None if name == START else name
    marks = {
        "in force": place == state.current,
        "restricted": place == state.current and state.restriction is not None,
        "rollback goes here": state.current is not None
        and place == rollback_target(registry, state)[0],
        _tried(state.trial): state.trial is not None and place == state.trial.router,
        "quarantined": place is not None and state.is_quarantined(name),
        "cleared away": place is not None and not (registry / name).is_dir(),
    }
    return tuple(mark for mark, is_so in marks.items() if is_so)


def _tried(trial: Trial | None) -> str:
    return "" if trial is None else f"{trial.kind} {trial.share:.3g}"


def _figures(folder: Place, entries: Sequence[Entry]) -> tuple[float | None, float | None]:
    """Return accuracy and visual tokens, as the last report that spoke for a router tells them."""
    spoke = [entry.report for entry in entries if entry.to == folder.name and entry.report]
    told = reported(folder, spoke[-1] if spoke else None).get("router")
    found = told if isinstance(told, Mapping) else {}
    accuracy, tokens = (found.get(key) for key in ("accuracy", "visual_tokens"))
    return (
        accuracy if isinstance(accuracy, float | int) else None,
        tokens if isinstance(tokens, float | int) else None,
    )


def _folder(registry: Place, word: str) -> Place:
    if word != CURRENT and as_place(word).is_dir():
        return as_place(word)
    state = _state(registry)
    if word != CURRENT:
        return registry / named(registry, state.entries, word)
    if state.current is None:
        raise TrainingError(f"no router of {registry} is in force; name two of them")
    return registry / state.current


def _facts(folder: Place, entries: Sequence[Entry]) -> dict[str, str]:
    """Return what can be told of a router, flat, as text."""
    router, lineage = Router.from_pretrained(folder), read_lineage(folder)
    promised, (accuracy, tokens) = router.held.certificate, _figures(folder, entries)
    told: dict[str, Any] = {
        "version": router.version,
        "price": router.price,
        "finest only": router.policy.finest_only,
        "cost unit": router.policy.cost_unit,
        "costs": router.policy.costs,
        "actions": router.space.names,
        "second look": router.second_look is not None,
        "certificate": None if promised is None else f"{promised.loss} of at most "
        f"{promised.bounds}, each {1 - promised.delta:.4g} sure",
        "features": router.schema.hash,
        "predictor": router.predictor.get_params(),
        "fit": router.metadata,
        "report": {"accuracy": accuracy, "visual tokens": tokens},
        "parent": lineage.get("parent"),
        "code version": lineage.get("code_version"),
    }  # fmt: skip
    return _flat(told)


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}: ")
        elif isinstance(value, (list, tuple)) and any(isinstance(each, Mapping) for each in value):
            continue  # a table: its figures are in the report
        elif isinstance(value, (list, tuple)):
            flat[f"{prefix}{key}"] = ", ".join(map(_text, value))
        else:
            flat[f"{prefix}{key}"] = _text(value)
    return flat


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.10g}" if isinstance(value, float) else str(value)
