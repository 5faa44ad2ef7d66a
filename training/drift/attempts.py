"""How many candidates were judged on the same audits: each is a test of its own.

A registry keeps ``attempts.jsonl``, a line a verdict or certificate, only ever appended to; in an
object store, which cannot append, ``attempts/`` has an object each. Of twenty candidates that are
all worse one may pass by luck; who reads a verdict should know whether it was the first.
Knows these files; does not know how a verdict comes about.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from router.places import Place, StoredPlace, read_all
from training.promotion.weighing import DELTA, Verdict

ATTEMPTS = "attempts.jsonl"
STORED = "attempts"


def counted(verdict: Verdict, registry: Place, who: str) -> Verdict:
    """Return the verdict, saying as which candidate on its audits it was judged; write that down.

    What was refused unseen was no test and does not count. A registry that cannot be written is
    for the promotion to complain of.
    """
    candidate = verdict.facts.get("candidate")
    if not verdict.checks or not isinstance(candidate, dict):
        return verdict
    number = tried(
        registry, "gate", str(candidate["version"]), str(verdict.facts.get("data_hash")), who,
        passed=verdict.passed, pictures=verdict.pictures, why=verdict.sentence,
    )  # fmt: skip
    notes = verdict.notes
    if number > 1:
        chance = 1.0 - (1.0 - DELTA) ** number
        notes = (
            *notes,
            f"{number} candidates were judged on these audits: that one of them passes though all "
            f"are worse has a chance of up to {chance:.0%}; wait for new audits",
        )
    return replace(verdict, facts={**verdict.facts, "attempts": number}, notes=notes)


def tried(
    registry: Place, what: str, candidate: str, data_hash: str, who: str, **more: object
) -> int:
    """Return how many candidates were judged on these audits, this one counted, which is written
    down."""
    before = judged_on(registry, data_hash)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    line = {
        "time_utc": now, "who": who, "what": what, "candidate": candidate, "data_hash": data_hash,
        **more,
    }  # fmt: skip
    with suppress(OSError):
        _append(registry, line)
    return len({*before, candidate})


def judged_on(registry: Place, data_hash: str) -> set[str]:
    """Return the versions of the candidates that were judged on these audits."""
    told = [line for line in read_attempts(registry) if line.get("data_hash") == data_hash]
    return {str(line.get("candidate")) for line in told}


def read_attempts(registry: Place) -> list[dict[str, Any]]:
    """Return all that was judged, the first first; lines that a dying process left torn do not
    count."""
    found = []
    for line in _lines(registry):
        with suppress(ValueError):
            told = json.loads(line)
            if isinstance(told, dict):
                found.append(told)
    return found


def _lines(registry: Place) -> list[str]:
    try:
        if isinstance(registry, StoredPlace):
            there = sorted((registry / STORED).glob("*.json"))
            contents = [content for _, content in read_all(there)]
        else:
            contents = [(registry / ATTEMPTS).read_bytes()]
    except OSError:
        return []
    read = [each.decode(errors="replace") for each in contents if isinstance(each, bytes)]
    return [line for text in read for line in text.splitlines()]


def _append(registry: Place, line: dict[str, Any]) -> None:
    if isinstance(registry, StoredPlace):
        when = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
        path = registry / STORED / f"{when}-{uuid4().hex[:8]}.json"
        path.create(f"{json.dumps(line)}\n".encode())
        return
    registry.mkdir(parents=True, exist_ok=True)
    # One write of one line: several at once stand one behind the other. The newline before it
    # ends what a dying process left torn.
    text = "\n" + json.dumps(line) + "\n"
    handle = os.open(registry / ATTEMPTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, text.encode())
        os.fsync(handle)
    finally:
        os.close(handle)
