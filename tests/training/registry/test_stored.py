"""A registry in an object store: the same words and the same promises as on a disk."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router import Router
from router.errors import RouterFileError
from router.places import StoredPlace, as_place
from router.places.content import hash_folder
from router.registry import Restriction, Trial, history, last_entry, later_entry, strangers
from training.errors import NotInForce, Quarantined, TrainingError
from training.registry import uploads
from training.registry.changes import end_trial, promote, quarantine, rollback, try_out
from training.registry.journal import append, read_state
from training.registry.restrictions import restrict
from training.registry.versions import clear_away, differences, versions


@pytest.fixture
def registry(s3: str) -> StoredPlace:
    """An empty one."""
    found = as_place(s3)
    assert isinstance(found, StoredPlace)
    return found


def test_the_commands_tell_one_story(
    command: Callable[..., Any], routers: list[Path], registry: StoredPlace, tmp_path: Path
) -> None:
    def train(*words: object) -> Any:
        return command("m3-train", *words, "--registry", registry)

    done = train("list")
    assert done.returncode == 2
    assert f"{registry} is not a registry; promote a router first" in done.stderr
    for number in range(2):
        done = train("promote", "--router", routers[number], "--force", "--why", f"try {number}")
        assert done.returncode == 0, done.stderr
    names = [f"{Router.from_pretrained(each).version}-{hash_folder(each)[:8]}" for each in routers]
    assert [(entry.action, entry.before, entry.to) for entry in history(registry)] == [
        ("promote", None, names[0]), ("promote", names[0], names[1]),
    ]  # fmt: skip
    listed = train("list").stdout
    assert "try 0" in listed
    assert "in force" in listed
    assert "0.01" in train("diff", names[0][:6], "current").stdout
    assert "they do not differ" in train("diff", "current", f"{registry}/{names[1]}").stderr
    done = train("rollback", "--why", "answers nonsense")
    assert f"in force: {registry}/{names[0]}" in done.stderr
    done = train("promote", "--router", routers[1])
    assert done.returncode == 2
    with pytest.raises(Quarantined, match="answers nonsense"):
        promote(routers[1], registry)
    assert f"removed: {names[1]}" in train("gc", "--keep", 0).stderr
    assert strangers(registry) == []
    told = json.loads((registry / names[0] / "lineage.json").read_text())
    assert (told["parent"], told["sha256"]) == (None, hash_folder(routers[0]))
    assert not (tmp_path / "s3:").exists()


def test_compare_and_swap_reports_and_quarantine(
    routers: list[Path], registry: StoredPlace, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"router": {"accuracy": 0.75, "visual_tokens": 12.5}}))
    first = promote(routers[0], registry, report=report)
    assert promote(routers[0], registry) == first  # which writes nothing
    assert len(history(registry)) == 1
    with pytest.raises(NotInForce):
        promote(routers[1], registry, expect="start")
    second = promote(routers[1], registry, expect=first.name)
    assert [(each.name, each.accuracy) for each in versions(registry)] == [
        (second.name, None), (first.name, 0.75), ("start", None),
    ]  # fmt: skip
    quarantine(first.name, registry, why="out of date")
    assert rollback(registry) is None  # not to what is in quarantine
    with pytest.raises(TrainingError, match="no router to go back from"):
        rollback(registry)


def test_of_two_writers_one_is_first(routers: list[Path], registry: StoredPlace) -> None:
    state = read_state(registry)
    promote(routers[0], registry)
    assert not append(registry, state, state.next("promote", None, "other", "", ""))
    [entry] = history(registry)
    assert not append(registry, state, replace(entry, who="another"))
    assert append(registry, state, entry)  # its own, whose reply was lost


def test_who_follows_reads_the_next_entry_alone(
    routers: list[Path], registry: StoredPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(routers[0], registry)
    known = later_entry(registry, None)
    assert known == last_entry(registry)
    promote(routers[1], registry)
    promote(routers[2], registry)

    def listed(*_: Any) -> Any:
        raise AssertionError("a listing costs more, the longer the journal is")

    with monkeypatch.context() as patch:
        patch.setattr(StoredPlace, "iterdir", listed)
        newest = later_entry(registry, known)
        assert later_entry(registry, newest) is newest
    assert newest == history(registry)[2]


def test_a_half_uploaded_router_is_finished_and_a_damaged_one_refused(
    routers: list[Path], registry: StoredPlace
) -> None:
    name = f"{Router.from_pretrained(routers[0]).version}-{hash_folder(routers[0])[:8]}"
    some = routers[0] / "config.json"
    (registry / name / some.name).write_bytes(some.read_bytes())  # here a process died
    with pytest.raises(RouterFileError, match="its files are those of"):
        Router.from_pretrained(registry / name)
    place = promote(routers[0], registry)
    assert place == registry / name
    assert hash_folder(place) == hash_folder(routers[0])
    loaded = Router.from_pretrained(f"{registry}/{name}")
    assert loaded.version == Router.from_pretrained(routers[0]).version
    (place / "README.md").write_bytes(b"something else")
    with pytest.raises(RouterFileError, match="its files are those of"):
        Router.from_pretrained(place)
    with pytest.raises(TrainingError, match="is not as it was promoted"):
        promote(routers[0], registry)


def test_a_copy_that_was_changed_here_is_fetched_again(
    routers: list[Path], registry: StoredPlace, tmp_path: Path
) -> None:
    place = promote(routers[0], registry)
    version = Router.from_pretrained(place).version
    [copy] = (tmp_path / "cache/m3-router/routers").iterdir()
    (copy / "config.json").write_text("{}")
    assert Router.from_pretrained(place).version == version
    assert (copy / "config.json").read_bytes() == (routers[0] / "config.json").read_bytes()
    assert [each.name for each in copy.parent.iterdir()] == [copy.name]


def test_clearing_away_never_takes_what_an_entry_names(
    routers: list[Path], registry: StoredPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = (promote(each, registry) for each in routers[:3])
    assert clear_away(registry, 1) == [a.name]  # behind c lies b
    assert not a.is_dir()
    assert not (registry / uploads.GONE).is_dir()
    assert promote(routers[0], registry) == a  # nobody clears it away any more
    # One that marks just before another promotes: the other takes another name.
    promote(routers[3], registry)
    promote(routers[4], registry)

    def marked_meanwhile(place: StoredPlace) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(uploads, "remove_all", lambda files: promote(routers[1], registry))
            return uploads.take_down(place, lambda: ())

    assert marked_meanwhile(b)
    again = last_entry(registry)
    assert again is not None
    version, digest = b.name.split("-")
    assert again.to == f"{version}-2-{digest}"
    assert hash_folder(registry / again.to) == hash_folder(routers[1])
    assert promote(routers[1], registry) == registry / again.to  # in force: nothing to do
    # One that promotes just before another looks: nothing goes.
    with uploads.held(registry / c.name) as is_held:
        assert is_held
        assert not uploads.take_down(registry / c.name, lambda: ())
    assert c.is_dir()
    # A mark of a dead process: the folder is passed over, its name is not used again.
    (registry / uploads.GONE / c.name / "dead").write_bytes(b"")
    assert promote(routers[2], registry).name == c.name.replace("-", "-2-")
    assert [row[0] for row in differences(registry, c.name, "current")] == ["parent"]


def test_going_back_passes_over_what_is_being_cleared_away(
    routers: list[Path], registry: StoredPlace
) -> None:
    a, b, c = (promote(each, registry) for each in routers[:3])
    (registry / uploads.GONE / b.name / "somebody").write_bytes(b"")
    assert rollback(registry) == a
    assert f"{b.name} is being cleared away" in history(registry)[-1].why
    assert c.is_dir()


def test_a_trial_begins_is_kept_and_is_promoted(
    command: Callable[..., Any], routers: list[Path], registry: StoredPlace
) -> None:
    def train(*words: object) -> str:
        done = command("m3-train", *words, "--registry", registry)
        assert done.returncode == 0, done.stderr
        return str(done.stderr)

    live = promote(routers[0], registry)
    assert "canary on 0.2 of the sessions" in train("canary", routers[1], "--share", 0.2)
    tried = read_state(registry).trial
    assert tried is not None
    promote(routers[0], registry)  # in force: the trial goes on
    assert train("gc", "--keep", 0).strip().endswith("removed: nothing")
    assert hash_folder(registry / tried.router) == hash_folder(routers[1])
    train("canary", "--stop")
    assert read_state(registry).trial is None
    assert clear_away(registry, 0) == [tried.router]
    train("shadow", routers[1])
    assert read_state(registry).trial == Trial("shadow", tried.router, 1.0)
    place = promote(registry / tried.router, registry, expect=live.name)  # as a judged one is
    assert place == registry / tried.router
    train("canary", routers[2])
    train("canary", "--stop", "--quarantine")
    with pytest.raises(Quarantined):
        try_out(routers[2], "canary", 0.1, registry)


def test_what_is_being_cleared_away_is_tried_under_another_name(
    routers: list[Path], registry: StoredPlace
) -> None:
    first = try_out(routers[1], "canary", 0.1, registry)
    end_trial("canary", registry)
    (registry / uploads.GONE / first.name / "dead").write_bytes(b"")
    again = try_out(routers[1], "canary", 0.1, registry)
    assert again.name == first.name.replace("-", "-2-")
    assert promote(again, registry) == again
    # Promoting it anew is what ends a restriction, under whichever name it lies.
    restrict(Restriction(None, "it drifted"), registry)
    promote(routers[1], registry)
    assert read_state(registry).restriction is None
    assert read_state(registry).current == again.name


@pytest.mark.parametrize(
    ("bucket", "endpoint", "why"),
    [("no-such-bucket", None, "no such bucket"), ("bucket", "http://127.0.0.1:9", "S3 error")],
)
def test_a_store_that_cannot_be_reached_is_told_in_a_line(
    routers: list[Path], s3: str, bucket: str, endpoint: str | None, why: str
) -> None:
    words = ["promote", "--force", "--router", routers[0], "--registry", f"s3://{bucket}/routers"]
    done = subprocess.run(
        [sys.executable, "-m", "training.cli", *map(str, words)], capture_output=True, text=True,
        env=os.environ | ({} if endpoint is None else {"AWS_ENDPOINT_URL": endpoint}),
    )  # fmt: skip
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert why in line
