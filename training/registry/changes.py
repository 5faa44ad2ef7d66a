"""Writes the router registry: puts routers in force or on trial, takes them back,
keeps the bad ones out.

A registry holds router folders named ``<router version>-<hash of all bytes>``, which are copied
aside, brought to disk and renamed, and never changed again; and the journal that says which of
them is in force. Beside a router lies where it comes from (training.registry.lineage). In an object
store folders are uploaded as training.registry.uploads tells. Does not know how routers are fitted
or judged.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from uuid import uuid4

from router.errors import RouterFileError
from router.log.layout import sync_folder
from router.places import Place, StoredPlace
from router.places.content import files_of, hash_folder
from router.registry import DEFAULT_REGISTRY, Trial, TrialKind, current_router_path, history
from router.router import Router
from training.errors import NotInForce, Quarantined, TrainingError
from training.registry.journal import State, append, read_state
from training.registry.lineage import Report, read_report, write_lineage
from training.registry.names import START, is_called, named, same_router
from training.registry.uploads import generation_of, held, upload

__all__ = [
    "current_router_path", "end_trial", "hash_folder", "history", "on_trial", "promote",
    "quarantine", "rollback", "rollback_target", "try_out",
]  # fmt: skip
MOST_OF_SESSIONS = 0.5  # a canary is judged beside the router in force, which needs as many


def promote(
    router: Place,
    registry: Place = DEFAULT_REGISTRY,
    *,
    expect: str | None = None,
    who: str = "",
    why: str = "",
    report: Path | None = None,
    force: bool = False,
) -> Place:
    """Copy a router folder into the registry, put it in force and return where it lies.

    What is in force already, unrestricted, stays as it is, and nothing is written. A process that
    dies on the way leaves what was in force before.

    Args:
        router: its folder.
        registry: its folder; it is made where there is none.
        expect: folder name or version that must be in force until then, ``start`` for none of the
            registry's; what was judged against it is then not put over another.
        who: for the journal.
        why: for the journal.
        report: report.json, or the folder with it, of what spoke for this router.
        force: also out of quarantine, which ends; the journal says so.

    Raises:
        NotInForce: something else than expected is in force.
        Quarantined: it was rolled back or named bad before (and not ``force``).
        TrainingError: the folder is not a router, or the copy in the registry is damaged.
        OSError: the registry cannot be reached.
    """
    loaded, digest = _load(router), hash_folder(router)
    spoke, generation = None if report is None else read_report(report, loaded), 1
    while True:
        name = generation_of(loaded.version, digest, generation)
        state = read_state(registry)
        _check_expected("promoted", registry, state, expect)
        if state.is_quarantined(name) and not force:
            raise Quarantined(f"not promoted: {_why_quarantined(state, name)}")
        is_free = state.restriction is None
        if is_free and state.current == name:
            _put(router, registry / name, digest, None, None)
            return registry / name
        if is_free and state.current is not None and _holds(registry / state.current, digest):
            return registry / state.current  # under another name
        with held(registry / name) as is_held:
            if not is_held:
                generation += 1
                continue
            _put(router, registry / name, digest, state.current, spoke)
            report_hash = None if spoke is None else spoke.hash
            entry = state.next("promote", state.current, name, who, why, report_hash, forced=force)
            if append(registry, state, entry):
                # Old folders may be cleared away meanwhile: this one is not old any more.
                _put(router, registry / name, digest, state.current, spoke)
                return registry / name


def rollback(
    registry: Place = DEFAULT_REGISTRY, *, expect: str | None = None, who: str = "", why: str = ""
) -> Place | None:
    """Put back in force what was before, and the router in force in quarantine; return the folder.

    None is the router that services start with, shipped or given by ``--router``, which was live
    before the first promotion. What is in quarantine, cleared away or damaged is passed over. Of
    two that go back from one router at once, one does it and the other is refused.

    Args:
        registry: its folder.
        expect: folder name or version that must be in force until then.
        who: for the journal.
        why: for the journal.

    Raises:
        NotInForce: something else than expected is in force, or another was quicker.
        TrainingError: there is no registry, or nothing of it is in force.
    """
    if not registry.is_dir():
        raise TrainingError(f"{registry} is not a registry; promote a router first")
    going = set[str]()
    while True:
        state = read_state(registry)
        _check_expected("rolled back", registry, state, expect)
        if state.current is None:
            raise TrainingError(
                f"{registry} has no router to go back from: the one that services start with is "
                "in force"
            )
        expect = state.current
        target, passed_over = rollback_target(registry, state, going)
        with held(None if target is None else registry / target) as is_held:
            if target is not None and not (is_held and _is_usable(registry / target)):
                going.add(target)
                continue
            told = "; ".join(filter(None, (why, *passed_over)))
            entry = state.next("rollback", state.current, target, who, told)
            if append(registry, state, entry):
                if target is None or (registry / target).is_dir():
                    return None if target is None else registry / target
                expect = target  # it was cleared away meanwhile


def quarantine(
    version: str, registry: Place = DEFAULT_REGISTRY, *, who: str = "", why: str = ""
) -> None:
    """Keep a router that is not in force from coming (back) into force, except by force.

    Args:
        version: folder name in the registry, or a router's version, promoted or not.
        registry: its folder; it is made where there is none.
        who: for the journal.
        why: for the journal.

    Raises:
        TrainingError: it is in force, or no name of a router.
    """
    while True:
        state = read_state(registry)
        name = named(registry, state.entries, version)
        if same_router(name, state.current):
            raise TrainingError(f"{name} is in force: roll back, which also quarantines it")
        if state.is_quarantined(name):
            return
        trial = state.trial
        if trial is not None and same_router(name, trial.router):
            trial = None
        entry = state.next(
            "quarantine", name, state.current, who, why, trial=trial, restriction=state.restriction
        )
        if append(registry, state, entry):
            return


def try_out(
    router: Place,
    kind: TrialKind,
    share: float,
    registry: Place = DEFAULT_REGISTRY,
    *,
    expect: str | None = None,
    who: str = "",
    why: str = "",
    forced: bool = False,
) -> Place:
    """Copy a router folder into the registry, put it on trial and return where it lies.

    One router is tried at a time; the same one may go on with another share, or as a canary after
    it was a shadow.

    Args:
        router: its folder.
        kind: what it does.
        share: of the sessions that a canary answers, of the requests that a shadow decides.
        registry: its folder; it is made where there is none.
        expect: folder name or version that must be in force.
        who: for the journal.
        why: for the journal.
        forced: for the journal: it was not checked against what is in force.

    Raises:
        NotInForce: something else than expected is in force.
        Quarantined: it was rolled back or named bad before.
        TrainingError: the share is none, the folder is no router, the router is in force, or
            another is on trial.
    """
    most = MOST_OF_SESSIONS if kind == "canary" else 1.0
    if not 0.0 < share <= most:
        raise TrainingError(
            f"--share of a {kind} must be above 0 and at most {most:g}, not {share:g}"
        )
    loaded, digest, generation = _load(router), hash_folder(router), 1
    while True:
        name = generation_of(loaded.version, digest, generation)
        state = read_state(registry)
        _check_expected("tried", registry, state, expect)
        if state.is_quarantined(name):
            raise Quarantined(f"not tried: {_why_quarantined(state, name)}")
        if same_router(name, state.current):
            raise TrainingError(f"{name} is in force already: there is nothing to try")
        going_on = state.trial
        if going_on is not None and not same_router(going_on.router, name):
            raise TrainingError(
                f"{going_on.router} is on trial as a {going_on.kind}; end that first: "
                f"m3-train {going_on.kind} --stop"
            )
        with held(registry / name) as is_held:
            if not is_held:
                generation += 1
                continue
            _put(router, registry / name, digest, state.current, None)
            trial = Trial(kind, name, share)
            entry = state.next(
                "try", name, state.current, who, why, None, forced, trial, state.restriction
            )
            if append(registry, state, entry):
                # Old folders may be cleared away meanwhile: this one is wanted now.
                _put(router, registry / name, digest, state.current, None)
                return registry / name


def on_trial(registry: Place, kind: TrialKind) -> Trial:
    """Return the trial of a kind that goes on.

    Raises:
        TrainingError: there is none.
    """
    trial = read_state(registry).trial if registry.is_dir() else None
    if trial is None or trial.kind != kind:
        other = "" if trial is None else f"; {trial.router} is tried as a {trial.kind}"
        raise TrainingError(f"no {kind} is on trial in {registry}{other}")
    return trial


def end_trial(
    kind: TrialKind,
    registry: Place = DEFAULT_REGISTRY,
    *,
    bad: bool = False,
    expect: str | None = None,
    who: str = "",
    why: str = "",
) -> str:
    """End the trial that goes on, and return the name of the router that was tried.

    Args:
        kind: of the trial.
        registry: its folder.
        bad: the router goes into quarantine.
        expect: folder name or version that must be in force.
        who: for the journal.
        why: for the journal.

    Raises:
        NotInForce: something else than expected is in force.
        TrainingError: no such trial goes on.
    """
    while True:
        tried, state = on_trial(registry, kind).router, read_state(registry)
        _check_expected("ended", registry, state, expect)
        if bad:  # which ends its trial in the same entry
            quarantine(tried, registry, who=who, why=why)
            return tried
        entry = state.next("try", tried, state.current, who, why, restriction=state.restriction)
        if append(registry, state, entry):
            return tried


def rollback_target(
    registry: Place, state: State, going: Collection[str] = ()
) -> tuple[str | None, list[str]]:
    """Return the nearest router behind the one in force that loads, and what was passed over.

    Args:
        registry: its place.
        state: of its journal.
        going: names of routers that are being cleared away.
    """
    passed_over = []
    for name in state.behind():
        if name is None:
            break
        if name in going:
            passed_over.append(f"passed over: {name} is being cleared away")
            continue
        try:
            _load(registry / name)
        except TrainingError as error:
            passed_over.append(f"passed over: {error}")
        else:
            return name, passed_over
    return None, passed_over


def _check_expected(done: str, registry: Place, state: State, expect: str | None) -> None:
    if expect is not None and not is_called(registry, state.current, expect):
        raise NotInForce(
            f"not {done}: {state.current or START} is in force, not {expect} as expected"
        )


def _holds(folder: Place, digest: str) -> bool:
    return folder.is_dir() and hash_folder(folder) == digest


def _why_quarantined(state: State, name: str) -> str:
    entry = next(
        each for each in reversed(state.entries)
        if each.action in ("rollback", "quarantine") and same_router(each.before, name)
    )  # fmt: skip
    done = "rolled back" if entry.action == "rollback" else "put in quarantine"
    told = f" ({entry.why})" if entry.why else ""
    return f"router {name} was {done} on {entry.time_utc[:10]}{told}; --force promotes it"


def _load(folder: Place) -> Router:
    try:
        return Router.from_pretrained(folder)
    except (RouterFileError, OSError) as error:
        raise TrainingError(f"{folder} is not a usable router: {error}") from error


def _is_usable(folder: Place) -> bool:
    """Return whether a router loads, where it may have gone since it was last tried."""
    if isinstance(folder, Path):
        return True  # it is looked at again when the journal names it
    try:
        _load(folder)
    except TrainingError:
        return False
    return True


def _put(
    router: Place, target: Place, digest: str, parent: str | None, report: Report | None
) -> None:
    """See to it that the router lies whole in its folder of the registry."""
    if isinstance(target, StoredPlace):
        upload(router, target, digest, parent, report)
    elif not target.is_dir():
        _copy(router, target, digest, parent, report)
    if hash_folder(target) != digest:
        raise TrainingError(
            f"{target} is not as it was promoted; move it away, then promote {router} again"
        )
    if report is not None:
        report.keep(target)


def _copy(
    router: Place, target: Path, digest: str, parent: str | None, report: Report | None
) -> None:
    registry = target.parent
    registry.mkdir(parents=True, exist_ok=True)
    aside = registry / f".{target.name}.{uuid4().hex}.tmp"
    aside.mkdir()
    try:
        for path in files_of(router):
            (aside / path.name).write_bytes(path.read_bytes())
        loaded = _load(aside)
        if f"{loaded.version}-{hash_folder(aside)[:8]}" != target.name:
            raise TrainingError(f"{router} was changed while it was read; promote it again")
        write_lineage(aside, loaded, digest, parent, report)
        for path in aside.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(aside)
        try:
            aside.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was as far a moment before
                raise
        sync_folder(registry)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
