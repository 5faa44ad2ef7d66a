"""Promotion and rollback: what the journal names is a whole, checked router, and no bad one."""

import itertools
import json
import shutil
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import Router
from router.errors import RouterFileError
from router.registry import Entry, Restriction, Trial, entry_path, last_entry
from training.errors import NotInForce, Quarantined, TrainingError
from training.registry import changes as registry_module
from training.registry import journal as journal_module
from training.registry.changes import (
    current_router_path,
    hash_folder,
    history,
    promote,
    quarantine,
    rollback,
)
from training.registry.journal import append, read_state


def told(registry: Path) -> list[tuple[str, str | None, str | None]]:
    return [(entry.action, entry.before, entry.to) for entry in history(registry)]


def version(router: Path) -> str:
    return Router.from_pretrained(router).version


def test_promote_and_roll_back(routers: list[Path], tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    assert current_router_path(registry) is None
    first = promote(routers[0], registry, who="Ann", why="cheaper")
    assert current_router_path(registry) == first
    assert first.name == f"{version(routers[0])}-{hash_folder(routers[0])[:8]}"
    second = promote(routers[1], registry)
    assert version(second) == version(routers[1])
    assert rollback(registry, who="Bob", why="answers nonsense") == first
    assert current_router_path(registry) == first
    assert rollback(registry) is None  # what was live before the first promotion
    assert current_router_path(registry) is None
    with pytest.raises(TrainingError, match="no router to go back from"):
        rollback(registry)
    assert told(registry) == [
        ("promote", None, first.name), ("promote", first.name, second.name),
        ("rollback", second.name, first.name), ("rollback", first.name, None),
    ]  # fmt: skip
    entries = history(registry)
    assert [entry.seq for entry in entries] == [1, 2, 3, 4]
    assert [(entry.who, entry.why) for entry in entries[::2]] == [
        ("Ann", "cheaper"), ("Bob", "answers nonsense"),
    ]  # fmt: skip
    assert json.loads((registry / "journal/00000001.json").read_text()) == {
        "seq": 1, "action": "promote", "from": None, "to": first.name, "who": "Ann",
        "why": "cheaper", "report": None, "time_utc": entries[0].time_utc, "forced": False,
    }  # fmt: skip


def test_there_is_nothing_to_roll_back(routers: list[Path], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not a registry"):
        rollback(tmp_path / "none")
    with pytest.raises(TrainingError, match="no router to go back from"):
        rollback(tmp_path)


def test_what_is_in_force_already_changes_nothing(routers: list[Path], tmp_path: Path) -> None:
    first = promote(routers[0], tmp_path)
    second = promote(routers[1], tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert promote(routers[1], tmp_path) == second
    assert promote(second, tmp_path) == second
    assert sorted(tmp_path.rglob("*")) == before
    shutil.rmtree(second)
    assert promote(routers[1], tmp_path) == second  # but a lost folder is put back
    assert (second / "config.json").is_file()
    assert rollback(tmp_path) == first


def test_two_rollbacks_restore_no_bad_router(routers: list[Path], tmp_path: Path) -> None:
    a, b, c = (promote(router, tmp_path) for router in routers[:3])
    assert rollback(tmp_path) == b
    assert promote(routers[3], tmp_path).is_dir()
    assert rollback(tmp_path) == b
    assert rollback(tmp_path) == a  # neither c nor the third, which were taken back
    for bad in (b, c):
        with pytest.raises(Quarantined, match=r"was rolled back on .*--force promotes it"):
            promote(bad, tmp_path)
    assert current_router_path(tmp_path) == a


def test_quarantine_is_of_a_router_not_of_a_folder(routers: list[Path], tmp_path: Path) -> None:
    registry, again = tmp_path / "registry", tmp_path / "again"
    promote(routers[0], registry)
    promote(routers[1], registry)
    rollback(registry, why="answers nonsense")
    shutil.copytree(routers[1], again)
    (again / "README.md").write_text("the same router under another card")
    before = sorted(registry.rglob("*"))
    with pytest.raises(Quarantined, match="answers nonsense"):
        promote(again, registry)
    assert sorted(registry.rglob("*")) == before
    forced = promote(again, registry, force=True, why="it was the data")
    assert history(registry)[-1].forced
    promote(routers[2], registry)
    assert rollback(registry) == forced  # force has ended its quarantine


def test_named_bad_before_it_was_ever_good(routers: list[Path], tmp_path: Path) -> None:
    a, b = (promote(router, tmp_path) for router in routers[:2])
    quarantine(version(routers[4]), tmp_path, who="canary", why="worse on 900 audits")
    quarantine(a.name[:6], tmp_path)
    quarantine(a.name, tmp_path)  # it is already
    assert len(history(tmp_path)) == 4
    assert current_router_path(tmp_path) == b
    with pytest.raises(Quarantined, match=r"put in quarantine on .*worse on 900 audits"):
        promote(routers[4], tmp_path)
    with pytest.raises(TrainingError, match="is in force: roll back"):
        quarantine(b.name, tmp_path)
    with pytest.raises(TrainingError, match="has no router nothing"):
        quarantine("nothing", tmp_path)
    assert rollback(tmp_path) is None


def test_a_stale_expectation_is_refused(routers: list[Path], tmp_path: Path) -> None:
    first = promote(routers[0], tmp_path, expect="start")
    second = promote(routers[1], tmp_path, expect=first.name)
    before = sorted(tmp_path.rglob("*"))
    for stale in (first.name, version(routers[0]), "start", "nonsense", ""):
        with pytest.raises(NotInForce, match=f"{second.name} is in force, not {stale} as"):
            promote(routers[2], tmp_path, expect=stale)
    assert sorted(tmp_path.rglob("*")) == before
    third = promote(routers[2], tmp_path, expect=version(routers[1]))
    assert current_router_path(tmp_path) == third


def test_of_two_that_expect_the_same_one_is_refused(routers: list[Path], tmp_path: Path) -> None:
    first = promote(routers[0], tmp_path)
    barrier, ended = threading.Barrier(4), []

    def put(router: Path) -> None:
        barrier.wait()
        try:
            ended.append(promote(router, tmp_path, expect=first.name))
        except NotInForce:
            ended.append(None)

    threads = [threading.Thread(target=put, args=(router,)) for router in routers[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [won] = [folder for folder in ended if folder is not None]
    assert (len(ended), current_router_path(tmp_path)) == (4, won)
    assert told(tmp_path)[1:] == [("promote", first.name, won.name)]


def test_of_two_that_go_back_at_once_one_is_refused(routers: list[Path], tmp_path: Path) -> None:
    """Else the second would take back the good router that the first has gone back to."""
    _, second, third = (promote(router, tmp_path) for router in routers[:3])
    barrier, gone, refused = threading.Barrier(2), [], []

    def go_back() -> None:
        barrier.wait()
        try:
            gone.append(rollback(tmp_path, expect=third.name))
        except NotInForce as error:
            refused.append(str(error))

    threads = [threading.Thread(target=go_back) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == [f"not rolled back: {second.name} is in force, not {third.name} as expected"]
    assert gone == [second]
    assert current_router_path(tmp_path) == second


def test_who_comes_second_does_not_go_back_from_another_router(
    routers: list[Path], tmp_path: Path
) -> None:
    first, second, _ = (promote(router, tmp_path) for router in routers[:3])

    def too_late(*arguments: Any) -> bool:
        with pytest.MonkeyPatch.context() as now:
            now.setattr(registry_module, "append", append)
            rollback(tmp_path)
        return append(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry_module, "append", too_late)
        with pytest.raises(NotInForce, match="not rolled back"):
            rollback(tmp_path)
    assert current_router_path(tmp_path) == second
    assert rollback(tmp_path) == first


def test_a_damaged_candidate_changes_nothing(routers: list[Path], tmp_path: Path) -> None:
    registry, broken = tmp_path / "registry", tmp_path / "broken"
    first = promote(routers[0], registry)
    shutil.copytree(routers[1], broken)
    (broken / "scale_0009.txt").write_text("tree\n")
    with pytest.raises(TrainingError, match="not a usable router"):
        promote(broken, registry)
    assert current_router_path(registry) == first
    assert sorted(path.name for path in registry.iterdir()) == sorted([first.name, "journal"])


def test_a_version_that_was_changed_in_place_is_not_put_in_force(
    routers: list[Path], tmp_path: Path
) -> None:
    first = promote(routers[0], tmp_path)
    second = promote(routers[1], tmp_path)
    (first / "README.md").write_text("other words")
    with pytest.raises(TrainingError, match="is not as it was promoted; move it away"):
        promote(routers[0], tmp_path)
    assert current_router_path(tmp_path) == second


def test_a_rollback_passes_over_what_cannot_serve(routers: list[Path], tmp_path: Path) -> None:
    first, damaged, gone, _ = (promote(router, tmp_path) for router in routers[:4])
    (damaged / "config.json").write_text("{")
    shutil.rmtree(gone)
    assert rollback(tmp_path, why="bad") == first
    why = history(tmp_path)[-1].why
    assert why.startswith("bad; passed over: ")
    assert gone.name in why
    assert damaged.name in why


def test_a_version_keeps_where_it_comes_from(routers: list[Path], tmp_path: Path) -> None:
    registry, report = tmp_path / "registry", tmp_path / "report"
    first = promote(routers[0], registry)
    report.mkdir()
    content = {"router_version": version(routers[1]), "router": {"accuracy": 0.9}}
    (report / "report.json").write_text(json.dumps(content))
    second = promote(routers[1], registry, report=report)
    lineage = json.loads((second / "lineage.json").read_text())
    kept = {key: lineage[key] for key in ("parent", "data_hash", "model_hash", "certificate")}
    assert kept == {
        "parent": first.name, "data_hash": f"{1:016x}", "model_hash": "ab", "certificate": None,
    }  # fmt: skip
    assert lineage["code_version"]
    assert (second / lineage["card"]).is_file()
    assert lineage["report"] == history(registry)[-1].report
    assert json.loads((second / f"report-{lineage['report']}.json").read_text()) == content
    assert hash_folder(second) == hash_folder(routers[1])  # nothing of it is the router's
    other = report / "report.json"
    for wrong, says in (
        ('{"router_version": "ffffffffffff"}', "is about router ffffffffffff"),
        ("{", "cannot read the report"),
        ("[]", "holds no JSON object"),
    ):
        other.write_text(wrong)
        with pytest.raises(TrainingError, match=says):
            promote(routers[2], registry, report=other)
    assert current_router_path(registry) == second


DATED = ("20260101T000000Z-00000001", "20260102T000000Z-00000002")


@pytest.mark.parametrize(
    ("current", "previous", "back_to"),
    [(DATED[1], DATED[0], DATED[0]), (DATED[0], DATED[1], None), (DATED[0], None, None)],
)
def test_pointers_of_before_become_a_journal(
    routers: list[Path], tmp_path: Path, current: str, previous: str | None, back_to: str | None
) -> None:
    for name, router in zip(DATED, routers, strict=False):
        shutil.copytree(router, tmp_path / name)
    (tmp_path / "current").write_text(f"{current}\n")
    assert promote(tmp_path / current, tmp_path) == tmp_path / current  # it is in force already
    assert not (tmp_path / "journal").exists()
    if previous is not None:
        (tmp_path / "previous").write_text(f"{previous}\n")
    assert current_router_path(tmp_path) == tmp_path / current
    third = promote(routers[2], tmp_path, expect=version(tmp_path / current))
    assert current_router_path(tmp_path) == third
    assert [entry.seq for entry in history(tmp_path)] == [1, 2]
    assert not (tmp_path / "current").exists()
    assert rollback(tmp_path) == tmp_path / current
    assert rollback(tmp_path) == (None if back_to is None else tmp_path / back_to)


def test_death_within_the_move_from_pointers_loses_nothing(
    routers: list[Path], tmp_path: Path
) -> None:
    """As it lies on disk when a process dies between the entry of the pointers and its own."""
    for name, router in zip(DATED, routers, strict=False):
        shutil.copytree(router, tmp_path / name)
    for pointer, name in zip(("previous", "current"), DATED, strict=True):
        (tmp_path / pointer).write_text(name)
    [pointed] = history(tmp_path)
    assert append(tmp_path, read_state(tmp_path / "nowhere"), replace(pointed, seq=1))
    assert current_router_path(tmp_path) == tmp_path / DATED[1]
    assert rollback(tmp_path) == tmp_path / DATED[0]


def test_clocks_decide_nothing(
    routers: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = itertools.cycle((12, 11, 13, 11))

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2026, 1, 1, next(hours), tzinfo=UTC)

    monkeypatch.setattr(journal_module, "datetime", Wrong)
    a, b, c = (promote(router, tmp_path) for router in routers[:3])
    assert current_router_path(tmp_path) == c
    assert rollback(tmp_path) == b
    assert rollback(tmp_path) == a
    times = [entry.time_utc for entry in history(tmp_path)]
    assert times != sorted(times)


def test_readers_always_see_a_router(routers: list[Path], tmp_path: Path) -> None:
    promote(routers[0], tmp_path)
    stop, seen = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            seen.add(current_router_path(tmp_path))

    reader = threading.Thread(target=read)
    reader.start()
    for index in (1, 2, 0, 1):
        promote(routers[index], tmp_path)
    stop.set()
    reader.join()
    assert None not in seen


@given(st.lists(st.sampled_from(["promote", "force", "quarantine", "rollback"]), max_size=12),
       st.randoms(use_true_random=False))  # fmt: skip
def test_no_rollback_ever_goes_to_a_quarantined_router(actions: list[str], random: Any) -> None:
    """Against a plain model: who is in force, and a set of bad ones."""
    names = [f"{number:012x}-{number:08x}" for number in range(4)]
    entries: list[Entry] = []
    current, bad = None, set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module, "history", lambda _: tuple(entries))
        for action in actions:
            name = random.choice(names)
            state = read_state(Path())
            assert state.current == current
            assert {each for each in names if state.is_quarantined(each)} == bad
            if action in ("promote", "force") and name != current:
                if name in bad and action == "promote":
                    continue
                entry = state.next("promote", current, name, "", "", forced=action == "force")
                current, bad = name, bad - {name}
            elif action == "quarantine" and name != current:
                entry = state.next("quarantine", name, current, "", "")
                bad = bad | {name}
            elif action == "rollback" and current is not None:
                target = next(state.behind())
                assert target not in {*bad, current}
                entry = state.next("rollback", current, target, "", "")
                current, bad = target, bad | {current}
            else:
                continue
            entries.append(entry)


def test_an_entry_tells_what_is_tried_and_what_is_restricted(tmp_path: Path) -> None:
    """Written and read again they are the same, a quarantine ends a trial of that router alone."""
    trial, held = Trial("canary", "b" * 12, 0.25), Restriction(0.5, "harm above its certificate")
    state = read_state(tmp_path)
    entry = state.next("try", trial.router, None, "", "", trial=trial, restriction=held)
    assert append(tmp_path, state, entry)
    assert last_entry(tmp_path) == entry
    state = read_state(tmp_path)
    assert (state.trial, state.restriction, state.quarantined) == (trial, held, ())
    quarantine("c" * 12, tmp_path)
    assert read_state(tmp_path).trial == trial
    quarantine(trial.router, tmp_path)
    state = read_state(tmp_path)
    assert (state.trial, state.restriction) == (None, held)


@pytest.mark.parametrize(
    "told",
    [
        {"trial": {"kind": "guess", "router": "b", "share": 0.5}},
        {"trial": {"kind": "canary", "router": "../b", "share": 0.5}},
        {"trial": {"kind": "canary", "router": "b", "share": 0.0}},
        {"trial": 3},
        {"restriction": {"price": -1.0, "why": ""}},
        {"restriction": {"why": ""}},
    ],
)
def test_a_damaged_trial_is_refused(tmp_path: Path, told: dict[str, object]) -> None:
    """Rather than followed."""
    state = read_state(tmp_path)
    assert append(tmp_path, state, state.next("quarantine", "b" * 12, None, "", ""))
    path = entry_path(tmp_path, 1)
    path.write_text(json.dumps(json.loads(path.read_text()) | told))
    with pytest.raises(RouterFileError, match="trial or restriction"):
        last_entry(tmp_path)
