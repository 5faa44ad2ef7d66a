"""Several processes promote at once and are killed: the journal has no gap and no torn router."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from router import Router
from router.places import Place, as_place
from router.places.content import hash_folder
from router.registry import current_router_path, history, last_entry, strangers

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("promoters", "turns", "kills"),
    [(3, 4, 6), pytest.param(8, 25, 50, marks=pytest.mark.slow)],
)
def test_promoters_that_are_killed_lose_nothing(
    routers: list[Path], tmp_path: Path, promoters: int, turns: int, kills: int
) -> None:
    lose_nothing(tmp_path / "registry", routers[1], tmp_path, promoters, turns, kills)


@pytest.mark.slow
def test_nor_in_an_object_store(routers: list[Path], tmp_path: Path, s3: str) -> None:
    lose_nothing(as_place(s3), routers[1], tmp_path, 3, 3, 6)


def lose_nothing(
    registry: Place, router: Path, folder: Path, promoters: int, turns: int, kills: int
) -> None:
    scratch = folder / "scratch"
    scratch.mkdir()
    script = Path(__file__).with_name("promoters.py")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    words = [script, registry, router, scratch, promoters, turns, kills]
    with subprocess.Popen(
        [sys.executable, *map(str, words)], env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        seen = 0
        while running.poll() is None:  # as a service reads, while all this goes on
            time.sleep(0.01)
            entry = last_entry(registry)
            if entry is None:
                continue
            assert entry.seq >= seen
            seen = entry.seq
            folder = current_router_path(registry)
            assert folder is not None
            assert hash_folder(folder)[:8] == folder.name[-8:]
        out, err = running.communicate()
    assert running.returncode == 0, err
    assert int(out) == kills
    entries = history(registry)  # which refuses a gap
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert [entry.before for entry in entries] == [None, *(entry.to for entry in entries[:-1])]
    assert strangers(registry) == []
    done = {(str(number), str(turn)) for number in range(promoters) for turn in range(turns)}
    assert {(entry.who, entry.why) for entry in entries} == done
    assert len(done) <= len(entries) <= len(done) + kills
    assert len({entry.time_utc[:13] for entry in entries}) >= 3  # hours: the clocks differed
    assert current_router_path(registry) == registry / str(entries[-1].to)
    for entry in entries:
        folder = registry / str(entry.to)
        assert hash_folder(folder)[:8] == folder.name[-8:]
        assert (folder / "README.md").read_text() == f"{entry.who} {entry.why}"
    Router.from_pretrained(registry / str(entries[-1].to))
