"""The read side of a registry: journals, pointers of before, and what is neither."""

import json
from pathlib import Path
from typing import Any

import pytest

from router.errors import RouterFileError
from router.registry import Entry, current_router_path, history, last_entry, strangers


def write(registry: Path, *entries: dict[str, Any] | None) -> None:
    """Write a journal; None leaves a number out."""
    (registry / "journal").mkdir(exist_ok=True)
    for seq, told in enumerate(entries, 1):
        if told is not None:
            entry = {"from": None, "who": "", "why": "", "report": None, "time_utc": "", **told}
            path = registry / f"journal/{seq:08d}.json"
            path.write_text(json.dumps({"seq": seq, **entry}))


def test_the_highest_number_says_what_is_in_force(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    write(tmp_path, {"action": "promote", "to": "a"})
    assert current_router_path(tmp_path) == tmp_path / "a"
    (tmp_path / "current").write_text("b\n")  # of a program of before: nobody believes it
    assert current_router_path(tmp_path) == tmp_path / "a"
    for seq in range(2, 12):  # 10 comes after 9
        told = {"action": "promote", "from": "a", "to": "b" if seq % 2 else "a"}
        write(tmp_path, *[None] * (seq - 1), told)
    assert current_router_path(tmp_path) == tmp_path / "b"
    write(tmp_path, *[None] * 11, {"action": "rollback", "from": "b", "to": None})
    last = last_entry(tmp_path)
    assert last is not None
    assert (last.seq, last.action, last.before, last.to) == (12, "rollback", "b", None)
    assert current_router_path(tmp_path) is None
    assert [entry.seq for entry in history(tmp_path)] == list(range(1, 13))


def test_an_entry_is_read_as_it_was_written(tmp_path: Path) -> None:
    entry = Entry(7, "promote", "a", "b", "Ann", "ends in é\n", "00ff", "2026-11-27T22:00", True)
    path = tmp_path / "00000007.json"
    path.write_bytes(entry.to_bytes())
    assert Entry.read(path) == entry
    told = json.loads(path.read_text())
    assert told["from"] == "a"
    del told["forced"]  # the key came later
    path.write_text(json.dumps({**told, "more": 1}))
    assert Entry.read(path).forced is False


def test_a_gap_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path, {"action": "promote", "to": "a"}, None, {"action": "promote", "to": "a"})
    assert current_router_path(tmp_path) == tmp_path / "a"  # what serves, serves on
    with pytest.raises(RouterFileError, match=r"00000002\.json is missing"):
        history(tmp_path)


def test_other_files_are_no_entries(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path, {"action": "promote", "to": "a"})
    names = ["9.json", "00000000.json", "000000002.json", "00000002.json~", "00000002 (1).json"]
    for name in [*names, ".00000002.ab.tmp"]:
        (tmp_path / "journal" / name).write_text("nothing")
    assert current_router_path(tmp_path) == tmp_path / "a"
    assert len(history(tmp_path)) == 1
    assert strangers(tmp_path) == sorted(names)


def test_a_file_in_the_place_of_the_journal(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("")
    with pytest.raises(RouterFileError, match="not a folder"):
        current_router_path(tmp_path)
    assert current_router_path(tmp_path / "journal") is None  # a file instead of a registry


@pytest.mark.parametrize(
    ("current", "previous", "action"),
    [
        ("20260102T000000Z-00000002", "20260101T000000Z-00000001", "promote"),
        ("20260101T000000Z-00000001", "20260102T000000Z-00000002", "rollback"),
        ("b", "a", "promote"),
        ("a", "b", "promote"),  # not dated: nobody can tell
    ],
)
def test_pointers_of_before_are_an_entry(
    tmp_path: Path, current: str, previous: str, action: str
) -> None:
    for pointer, name in (("current", current), ("previous", previous)):
        (tmp_path / name).mkdir()
        (tmp_path / pointer).write_text(f"{name}\n")
    [entry] = history(tmp_path)
    assert (entry.seq, entry.action, entry.before, entry.to) == (0, action, previous, current)
    assert current_router_path(tmp_path) == tmp_path / current


@pytest.mark.parametrize("previous", [None, "gone", "", "../a", "a"])
def test_a_pointer_to_nothing_behind_is_passed_over(tmp_path: Path, previous: str | None) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "current").write_text("a")
    if previous is not None:
        (tmp_path / "previous").write_text(previous)
    [entry] = history(tmp_path)
    assert (entry.action, entry.before, entry.to) == ("promote", None, "a")
