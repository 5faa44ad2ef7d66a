"""Writes the decision log into an object store, compacts it all the while, and tells what is there.

A script that test_stored.py runs, several at once, and kills: each line on standard output names
the records of one flush that was acknowledged.
"""

from __future__ import annotations

import random
import sys
from datetime import UTC, datetime

from router.records import DecisionRecord, FeedbackRecord
from serve.log import upkeep
from serve.log.decisions import DecisionLog

address, life = sys.argv[1:]
upkeep.EVERY_S = upkeep.BUSY_S = upkeep.LOOK_AT_STORE_S = 0.01
dice = random.Random(int(life))
log = DecisionLog(address, log_prompts=True, flush_s=0.01)
number = 0
while True:
    names = []
    for _ in range(dice.randint(1, 12)):
        number += 1
        name = f"{life}-{number}"
        now = datetime.now(UTC)
        log.append(
            DecisionRecord(
                request_id=name, time_utc=now, picture_ids=(), model="m3-auto", scale=36,
                visual_tokens=36, reason="predicted", question="?" * dice.randint(0, 500),
            )
        )  # fmt: skip
        names.append(f"d{name}")
        if number % 3 == 0:
            log.feedback(FeedbackRecord(request_id=name, time_utc=now, score=0.5))
            names.append(f"f{name}")
    if log.flush(60.0):
        sys.stdout.write(" ".join(names) + "\n")
        sys.stdout.flush()
