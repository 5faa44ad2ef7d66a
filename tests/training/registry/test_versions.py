"""`m3-train promote, rollback, list, diff, gc` on a registry, and what clearing away must keep."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from router import Router
from training.errors import Quarantined, TrainingError
from training.registry.changes import current_router_path, history, promote, rollback
from training.registry.versions import clear_away, differences, versions


@pytest.fixture
def train(command: Any, tmp_path: Path) -> Callable[..., Any]:
    """Runs `m3-train` on the registry of the test."""

    def run(word: str, *arguments: object) -> Any:
        return command("m3-train", word, *arguments, "--registry", tmp_path / "registry")

    return run


def complaint(done: Any) -> str:
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return str(line)


def test_the_commands_tell_one_story(
    train: Callable[..., Any], routers: list[Path], tmp_path: Path
) -> None:
    report, registry = tmp_path / "report.json", tmp_path / "registry"
    report.write_text(json.dumps({"router": {"accuracy": 0.9321, "visual_tokens": 48.25}}))
    done = train("promote", "--router", routers[0], "--expect", "start", "--who", "Ann",
                 "--why", "first of all", "--report", report, "--force")  # fmt: skip
    assert done.returncode == 0, done.stderr
    first = current_router_path(registry)
    assert first is not None
    assert str(first) in done.stderr
    [entry] = history(registry)
    assert entry.why.startswith("first of all; forced against the gate: nothing shows")
    stale = train("promote", "--router", routers[1], "--expect", "start", "--force")
    assert f"{first.name} is in force, not start as expected" in complaint(stale)
    forced = train("promote", "--router", routers[1], "--expect", first.name, "--force")
    assert forced.returncode == 0
    second = current_router_path(registry)
    assert second is not None
    assert train("rollback", "--who", "Bob", "--why", "answers nonsense").returncode == 0
    with pytest.raises(Quarantined, match=r"was rolled back on .*answers nonsense"):
        promote(routers[1], registry)
    (registry / "journal" / "notes.txt").write_text("mine")
    done = train("list")
    rows = {
        cells[1]: cells for line in done.stdout.splitlines()
        if len(cells := [cell.strip() for cell in line.split("│")]) > 2
    }  # fmt: skip
    assert rows[first.name][2:4] == ["in force", "rollback"]
    assert rows[first.name][5:9] == ["Bob", "answers nonsense", "0.932", "48.2"]
    assert rows[second.name][2:4] == ["quarantined", "rollback"]
    assert rows["start"][2] == "rollback goes here"
    assert "left alone: notes.txt" in done.stderr
    assert train("promote", "--router", routers[1], "--force").returncode == 0
    assert history(registry)[-1].forced
    assert history(registry)[-1].who  # the machine's user
    for _ in range(2):
        done = train("rollback")
    assert "the router that services start with" in done.stderr
    assert "no router to go back from" in complaint(train("rollback"))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"seq": 2}'])
def test_a_torn_entry_is_named_by_every_command(
    train: Callable[..., Any], routers: list[Path], tmp_path: Path, content: str
) -> None:
    registry = tmp_path / "registry"
    promote(routers[0], registry)
    torn = registry / "journal" / "00000002.json"
    torn.write_text(content)
    for words in (
        ["promote", "--router", routers[1]], ["rollback"], ["list"], ["gc"],
        ["diff", "current", routers[1]],
    ):  # fmt: skip
        done = train(*words)
        assert str(torn) in complaint(done)
        assert "Traceback" not in done.stderr
    assert torn.read_text() == content


def test_without_a_registry(train: Callable[..., Any], routers: list[Path]) -> None:
    for words in (["list"], ["gc"], ["diff", "current", "other"]):
        assert "is not a registry" in complaint(train(*words))
    assert "neither a path nor" in complaint(train("diff", "ftp://host/router", "other"))
    done = train("diff", routers[0], routers[1])  # two folders need none
    assert done.returncode == 0, done.stderr


def test_what_differs(train: Callable[..., Any], routers: list[Path], tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    first = promote(routers[0], registry)
    promote(routers[1], registry)
    found = {key: values for key, *values in differences(registry, first.name[:5], "current")}
    assert found["price"] == ["0", "0.01"]
    assert found["fit: data_hash"] == [f"{number:016x}" for number in range(2)]
    assert found["parent"] == ["", first.name]
    assert found["version"] == [Router.from_pretrained(each).version for each in routers[:2]]
    assert not {"actions", "features", "fit: model_hash"} & set(found)
    beside = {row[0] for row in differences(registry, "current", str(routers[1]))}
    assert beside == {"parent", "code version"}  # the router itself is the same
    done = train("diff", first.name, "current")
    assert "0.01" in done.stdout
    assert "they do not differ" in train("diff", "current", "current").stderr
    with pytest.raises(TrainingError, match="has no router nowhere"):
        differences(registry, "nowhere", "current")


def test_clearing_away_keeps_what_may_be_needed(
    train: Callable[..., Any], routers: list[Path], tmp_path: Path
) -> None:
    registry = tmp_path / "registry"
    a, b, c, d = (promote(router, registry) for router in routers[:4])
    rollback(registry, why="answers nonsense")
    rollback(registry)
    assert current_router_path(registry) == b  # behind it a; c and d are in quarantine
    (registry / "mine").mkdir()
    assert set(clear_away(registry, 0)) == {c.name, d.name}
    assert a.is_dir()
    assert b.is_dir()
    assert (registry / "mine").is_dir()
    with pytest.raises(Quarantined, match="answers nonsense"):
        promote(routers[3], registry)
    marks = {version.name: version.marks for version in versions(registry)}
    assert marks[d.name] == ("quarantined", "cleared away")
    assert marks[a.name] == ("rollback goes here",)
    e = promote(routers[4], registry)
    assert clear_away(registry, 3) == []
    done = train("gc", "--keep", 1)
    assert f"removed: {a.name}" in done.stderr
    assert rollback(registry) == b
    assert rollback(registry) is None  # a is gone, so it goes further
    assert e.is_dir()


def test_clearing_away_what_dead_processes_left(routers: list[Path], tmp_path: Path) -> None:
    a = promote(routers[0], tmp_path)
    b = promote(routers[1], tmp_path)
    orphan = tmp_path / f"{'0' * 12}-{'0' * 8}"
    shutil.copytree(routers[2], orphan)  # its promoter died before the journal
    leftovers = [tmp_path / f".{b.name}.ab.tmp", tmp_path / "journal/.00000002.ab.tmp"]
    leftovers[0].mkdir()
    leftovers[1].touch()
    fresh = [tmp_path / f".{b.name}.cd.tmp", tmp_path / "journal/.00000003.cd.tmp"]
    fresh[0].mkdir()
    fresh[1].touch()
    os.utime(leftovers[0], (0, 0))
    a.rename(tmp_path / f".{a.name}.ab.gone")  # a clearing that died, when a was not needed
    assert clear_away(tmp_path, 10) == []
    assert a.is_dir()
    assert [path.exists() for path in (*leftovers, *fresh)] == [False, False, True, True]
    assert clear_away(tmp_path, 0) == [orphan.name]
    assert rollback(tmp_path) == a


def test_a_router_cleared_away_while_it_is_promoted_is_put_back(
    routers: list[Path], tmp_path: Path
) -> None:
    """Either side looks again after its own step, so that one of the two puts it right."""
    from training.registry import changes as registry_module

    for router in routers[:3]:
        promote(router, tmp_path)
    again = registry_module.append

    def clear_then_append(*arguments: Any) -> bool:
        assert len(clear_away(tmp_path, 0)) == 1
        return again(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry_module, "append", clear_then_append)
        first = promote(routers[0], tmp_path)
    assert current_router_path(tmp_path) == first
    Router.from_pretrained(first)
