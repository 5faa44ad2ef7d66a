"""What a folder of oracle data says at first sight: how often each action is right.

Knows oracle shards and metrics; does not know how they came about nor what is fitted on them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from router.records import OracleRecord, conform
from training.scoring import EXACT, METRICS

TRIED = 200  # questions that other metrics are tried on


@dataclass(frozen=True)
class Tally:
    """Mean scores by action, of the questions with a reference and of those without.

    ``right`` and ``agrees`` are None without such questions. ``tried`` has, where no answer earned
    anything against its reference, what other metrics make of the finest answers.
    """

    actions: tuple[str, ...]
    known: int
    right: tuple[float, ...] | None
    unknown: int
    agrees: tuple[float, ...] | None
    example: tuple[str, str] | None = None  # answer and reference of the first such question
    tried: dict[str, float] | None = None

    def hint(self) -> str | None:
        """Return what to do where no answer ever matched its reference; None where some did."""
        if self.tried is None or self.example is None:
            return None
        answer, reference = self.example
        told = (
            f"no answer at any action earned anything against its reference on {self.known} "
            f"questions (the first says {answer!r:.60}, wanted {reference!r:.60}): nothing can be "
            "learnt from these scores (--metric agreement leaves the references out)"
        )
        better = {name: mean for name, mean in self.tried.items() if mean > 0}
        if not better:
            return f"{told}, and no other --metric finds anything in the finest answers"
        means = ", ".join(f"{name} {mean:.2f}" for name, mean in better.items())
        return f"{told}; the finest answers by another --metric: {means}"


def tally_of(folder: Path) -> Tally | None:
    """Return the tally of a folder's shards; None without a question."""
    actions: tuple[str, ...] = ()
    sums: dict[bool, Any] = {True: 0.0, False: 0.0}
    counts = {True: 0, False: 0}
    earned, asked = 0.0, list[dict[str, Any]]()
    for path in sorted(folder.glob("oracle-*.parquet")):
        for row in _rows(path):
            names = row["actions"] or [str(scale) for scale in row["scales"]]
            actions = tuple(names)
            known, scores = row["reference"] is not None, np.asarray(row["scores"])
            counts[known] += 1
            sums[known] = sums[known] + scores
            if known:
                earned = max(earned, float(scores.max()))
                if len(asked) < TRIED:
                    asked.append(row)
    if not actions:
        return None
    means = {
        known: tuple((sums[known] / counts[known]).tolist()) if counts[known] else None
        for known in counts
    }
    found = Tally(actions, counts[True], means[True], counts[False], means[False])
    if not asked or earned > 0:
        return found
    first = asked[0]["answers"][-1], asked[0]["reference"]
    return replace(found, example=first, tried=_tried(asked))


def _rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    names = ["actions", "scales", "reference", "scores", "answers", "question", "metric"]
    rows: list[dict[str, Any]] = (
        conform(pq.read_table(path), OracleRecord).select(names).to_pylist()
    )
    return rows


def _tried(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean score of the finest answers by each metric that can score them all."""
    used = {row["metric"] or EXACT for row in rows}
    found = {}
    for name, metric in METRICS.items():
        scores = [
            metric.score(row["answers"][-1], [row["reference"]], row["question"])
            for row in rows
            if metric.why_not([row["reference"]], row["question"]) is None
        ]
        if name not in used and len(scores) == len(rows):
            found[name] = float(np.mean(scores))
    return found
