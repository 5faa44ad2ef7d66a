"""Kills writers of the decision log and counts what was acknowledged and is not readable.

Real processes, SIGKILL after a random share of their work: while they make the log, write,
acknowledge or compact (they compact as often as they can). Knows the decision log and its reader.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MOST_FLUSHES = 12  # that a writer lives for
MOST_RECORDS = 20  # in one


def kill_writers(folder: Path, kills: int, seed: int = 0) -> dict[str, Any]:
    """Return how many records were acknowledged by as many killed writers, how many of those are
    lost or read twice, and how many files cannot be read; before and after a last compaction.

    Args:
        folder: of the log; made if missing, filled.
        kills: writers, one after the other.
        seed: of when they die.
    """
    from router.log import compact

    dice = random.Random(seed)
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["serve.log.decisions"])
    acknowledged: set[str] = set()
    for life in range(kills):
        acknowledged |= _one_life(context, folder, life, dice)
    before = _missing(folder, acknowledged)
    compact(folder)
    after = _missing(folder, acknowledged)
    return {
        "kills": kills,
        "acknowledged": len(acknowledged),
        **{key: max(before[key], after[key]) for key in before},
    }


def _one_life(context: Any, folder: Path, life: int, dice: random.Random) -> set[str]:
    """Start a writer, kill it and return what it said is written."""
    hear, tell = context.Pipe(duplex=False)
    writer = context.Process(target=_write, args=(folder, life, dice.random(), tell))
    writer.start()
    tell.close()
    said: set[str] = set()
    with suppress(EOFError):
        for _ in range(dice.randrange(MOST_FLUSHES + 1)):
            said.update(hear.recv_bytes().decode().split())
    time.sleep(dice.uniform(0, 0.02))
    os.kill(writer.pid, signal.SIGKILL)
    with suppress(EOFError):
        while True:
            said.update(hear.recv_bytes().decode().split())
    writer.join()
    if writer.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"writer {life} ended by itself: {writer.exitcode}")
    hear.close()
    writer.close()
    return said


def _write(folder: Path, life: int, seed: float, tell: Connection) -> None:
    from router.records import DecisionRecord, FeedbackRecord
    from serve.log import decisions, segments, upkeep

    upkeep.EVERY_S = upkeep.BUSY_S = upkeep.LOOK_S = 0.01
    segments.SEGMENT_ROWS = 50
    dice = random.Random(seed)
    log = decisions.DecisionLog(folder, log_prompts=True, flush_s=0.01)
    number = 0
    while True:
        names = []
        for _ in range(dice.randint(1, MOST_RECORDS)):
            number += 1
            name = f"{life}-{number}"
            now = datetime.now(UTC) + timedelta(days=number % 2)
            log.append(
                DecisionRecord(
                    request_id=name, time_utc=now, picture_ids=(), model="m3-auto", scale=36,
                    visual_tokens=36, reason="predicted", question="?" * dice.randint(0, 2000),
                )
            )  # fmt: skip
            names.append(f"d{name}")
            if number % 3 == 0:
                log.feedback(FeedbackRecord(request_id=name, time_utc=now, score=0.5))
                names.append(f"f{name}")
        if log.flush():
            tell.send_bytes(" ".join(names).encode())


def _missing(folder: Path, acknowledged: set[str]) -> dict[str, int]:
    from router.log import read_log

    log = read_log(folder)
    found = Counter(
        f"{letter}{name}"
        for letter, table in (("d", log.decisions), ("f", log.feedback))
        for name in table["request_id"].to_pylist()
    )
    return {
        "lost": len(acknowledged - found.keys()),
        "unreadable_files": len(log.notes.skipped),
        "read_twice": sum(count > 1 for count in found.values()),
    }
