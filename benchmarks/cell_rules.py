"""Which rule finds the cells to read finely: accuracy at equal tokens, on validation scenes.

    python benchmarks/cell_rules.py --json benchmarks/results/cell_rules.json
    python benchmarks/cell_rules.py --model DIR --quick

36 coarse tokens of the whole picture, then the finest tokens of the cells that a rule finds in the
relevance map: those of a share of the peak (the kind that ships), the fewest that hold a share of
all relevance, the best so many; a cell worth the mean or the greatest of its patches, or relevance
times the detail that the coarser level loses; with and without a ring of neighbours; and 9 coarse
tokens with cells of two levels. Every rule has a dial; between two settings questions are mixed at
random, so that all are told at the same mean tokens. Scenes are SYNTHETIC, of namespace
"validation": the held-out ones judge what was chosen here. Intervals are 95 %, by picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _focus.asking import Answers, Scenes
from _focus.rules import COARSE, FINE, TWO_LEVELS_COARSE, Setting, settings
from _result import arguments, write
from numpy.typing import NDArray

from m3model import default_model_path
from m3model.config import hash_model
from training.figures.resampling import Resampler

SEED = 29
TOLD_AT = (60, 80, 100, 140, 180)  # mean visual tokens
Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """The settings of one rule, by mean tokens ascending."""

    family: str
    dials: tuple[float, ...]
    answers: tuple[Answers, ...]

    @classmethod
    def of(cls, family: str, made: Sequence[tuple[Setting, Answers]]) -> Line:
        """Return the line of a family's settings."""
        own = [(setting.dial, found) for setting, found in made if setting.family == family]
        own.sort(key=lambda pair: float(pair[1].tokens.mean()))
        return cls(family, tuple(d for d, _ in own), tuple(found for _, found in own))

    def right_at(self, tokens: float) -> NDArray[np.float64] | None:
        """Return (Q,) how often each question is right at so many mean tokens, mixing the two
        settings around them; None outside the line."""
        means = [float(found.tokens.mean()) for found in self.answers]
        for i in range(len(means) - 1):
            if means[i] <= tokens <= means[i + 1]:
                share = (tokens - means[i]) / max(means[i + 1] - means[i], 1e-9)
                low, high = self.answers[i].right, self.answers[i + 1].right
                mixed: NDArray[np.float64] = (1 - share) * low + share * high
                return mixed
        return None


def measure(scenes: Scenes, wanted: Sequence[Setting]) -> Row:
    """Return every setting's point, and every rule at equal tokens beside the shipped kind."""
    draws = Resampler(scenes.pictures)
    made, points = [], []
    for setting in wanted:
        cuts = [setting.cut(one.relevance, scenes.grids[one.picture]) for one in scenes.asked]
        found = scenes.answers(cuts)
        made.append((setting, found))
        points.append(
            {
                "rule": setting.family,
                "dial": setting.dial,
                "visual_tokens": float(found.tokens.mean()),
                "accuracy": draws.interval(found.right).as_dict(),
            }
        )
        show(points[-1])
    families = list(dict.fromkeys(setting.family for setting in wanted))
    lines = [Line.of(family, made) for family in families]
    return {"points": points, "at_equal_tokens": at_equal_tokens(lines, draws)}


def at_equal_tokens(lines: Sequence[Line], draws: Resampler) -> list[Row]:
    """Return, by tokens and rule, the accuracy and its difference from the shipped kind's: the
    first line's, or one with neighbours where the first never reads so much."""
    found = []
    for tokens in TOLD_AT:
        known = [right for line in lines[:3] if (right := line.right_at(tokens)) is not None]
        for line in lines:
            right = line.right_at(tokens)
            if right is None:
                continue
            minus = draws.interval(right - known[0]).as_dict() if known else None
            found.append(
                {
                    "visual_tokens": tokens,
                    "rule": line.family,
                    "accuracy": draws.interval(right).as_dict(),
                    "minus_shipped_kind": minus,
                }
            )
    return found


def uniform(scenes: Scenes, scales: Sequence[int]) -> list[Row]:
    """Return every scale of the whole picture, to stand beside the rules."""
    draws = Resampler(scenes.pictures)
    rows = []
    for scale in scales:
        right = scenes.answers([((scale, None),)] * len(scenes.asked)).right
        rows.append({"scale": scale, "accuracy": draws.interval(right).as_dict()})
        print(f"{'always ' + str(scale):32}{scale:15.1f}{_told(rows[-1]['accuracy'])}", flush=True)
    return rows


def show(point: Row) -> None:
    """Print one setting."""
    print(
        f"{point['rule']:38}{point['dial']:9g}{point['visual_tokens']:8.1f}"
        f"{_told(point['accuracy'])}",
        flush=True,
    )


def show_equal(rows: Sequence[Row]) -> None:
    """Print the rules at equal tokens."""
    print("\nat equal mean tokens; points beside the shipped kind")
    for row in rows:
        minus = row["minus_shipped_kind"]
        told = "" if minus is None else f"  {_told(minus, 100, '+.2f')}"
        print(f"{row['visual_tokens']:5}  {row['rule']:38}{_told(row['accuracy'])}{told}")


def _told(interval: dict[str, float], times: float = 1.0, form: str = ".3f") -> str:
    mean, low, high = (format(times * interval[key], form) for key in ("mean", "low", "high"))
    return f"  {mean} ({low} to {high})"


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__, quick="12 scenes: that it runs")
    parser.add_argument("--model", type=Path, default=default_model_path())
    parser.add_argument("--scenes", type=int, help="validation scenes; 500")
    given = parser.parse_args()
    torch.set_num_threads(1)
    count = given.scenes or (12 if given.quick else 500)
    scenes = Scenes.of(given.model, count, SEED, "validation")
    print(f"{len(scenes.asked)} questions about {count} scenes")
    print(f"{'rule':38}{'dial':>9}{'tokens':>8}  accuracy")
    report: Row = {
        "benchmark": "cell_rules",
        "what": "exact match on SYNTHETIC validation scenes",
        "model_hash": hash_model(given.model),
        "scenes": count,
        "seed": SEED,
        "questions": len(scenes.asked),
        "levels": {"coarse": COARSE, "fine": FINE, "two_levels_coarse": TWO_LEVELS_COARSE},
        "uniform": uniform(scenes, scenes.reader.model.config.scales),
        **measure(scenes, settings()),
    }
    show_equal(report["at_equal_tokens"])
    write(report, given.json)


if __name__ == "__main__":
    main()
