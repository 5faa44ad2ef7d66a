"""Several processes promote into one registry, are killed at any moment and begin again.

A script that test_promoters.py runs as a process of its own: children are forked from one that has
loaded everything and started no thread. Clocks differ by an hour from child to child. Each child
writes down a promotion once it was told that it is done.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from router.places import Place, as_place
from training.registry import journal
from training.registry.changes import promote

ENOUGH = "enough"  # is there as soon as the last one was killed


def acknowledged(scratch: Path, number: int) -> list[str]:
    """Return the turns that a promoter was told of that they are done."""
    path = scratch / f"done-{number}"
    return path.read_text().split() if path.exists() else []


def work(registry: Place, router: Path, scratch: Path, number: int, turns: int) -> None:
    """Promote routers that nobody else has, from the first that is not known to be done."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=number % 3 - 1)

    journal.datetime = Clock
    for turn in range(len(acknowledged(scratch, number)), turns):
        while turn == turns - 1 and not (scratch / ENOUGH).exists():
            time.sleep(0.002)  # whoever is to be killed must not have ended
        own = scratch / f"router-{number}"
        shutil.rmtree(own, ignore_errors=True)
        shutil.copytree(router, own)
        (own / "README.md").write_text(f"{number} {turn}")
        promote(own, registry, who=str(number), why=str(turn))
        with (scratch / f"done-{number}").open("a") as file:
            file.write(f"{turn}\n")


def main(
    registry: Place, router: Path, scratch: Path, promoters: int, turns: int, kills: int
) -> None:
    """Let them promote, and kill so many."""
    chance = random.Random(kills)
    alive: dict[int, int] = {}

    def start(number: int) -> None:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(registry, router, scratch, number, turns)
                code = 0
            finally:
                os._exit(code)
        alive[number] = child

    for number in range(promoters):
        start(number)
    killed = 0
    while alive:
        done = sum(len(acknowledged(scratch, number)) for number in range(promoters))
        if killed < kills and done >= killed * (promoters * turns - promoters) // kills:
            time.sleep(chance.random() * 0.03)
            number = chance.choice(list(alive))
            os.kill(alive[number], signal.SIGKILL)
            _, status = os.waitpid(alive[number], 0)
            if os.WIFSIGNALED(status):
                killed += 1
                if killed == kills:
                    (scratch / ENOUGH).touch()
                start(number)
                continue
            assert status == 0
            del alive[number]
        for number, child in list(alive.items()):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                assert status == 0, f"promoter {number} failed"
                del alive[number]
        time.sleep(0.001)
    sys.stdout.write(str(killed))


if __name__ == "__main__":
    main(as_place(sys.argv[1]), *map(Path, sys.argv[2:4]), *map(int, sys.argv[4:]))
