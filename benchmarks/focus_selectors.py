"""Fine patches alone, as published selectors keep them, beside coarse tokens with fine cells.

    python benchmarks/focus_selectors.py --json benchmarks/results/focus_selectors.json
    python benchmarks/focus_selectors.py --before DIR     # the weights before they learnt cuts, too
    python benchmarks/focus_selectors.py --quick

The selector is the common core of text-guided methods that keep patches of ONE level, such as
Semantic-Clipping and SparseVLM (Zhang et al., 2024, arXiv 2410.04417): the k finest tokens most
relevant to the question, with or without one token of the whole picture. It is written anew and
small: relevance is this model's own readout, the same for every way, tokens are chosen once before
the language model, nothing is recycled. Training on cuts always had coarse tokens, at least one;
patches without any are new to both weights. At each k stands a focus that reads no more tokens:
coarse ones everywhere, fine ones in the most relevant cells. Scenes are SYNTHETIC and held out, an
answer counts when it equals the reference, intervals are 95 % by picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _focus.asking import Answers, Cut, Scenes, cut_of_focus, cut_of_reading
from _result import arguments, write
from numpy.typing import NDArray

from m3model import default_model_path
from m3model.config import hash_model
from m3model.focus import CELL_TOKENS, Focus
from router.actions import ActionSpace, default_space, quantised
from router.actions.cells import cell_sums
from training.figures.resampling import Resampler

SEED = 23
KEPT = (36, 72, 144, 216)  # tokens of the finest level
COARSE = {36: 9, 72: 36, 144: 36, 216: 36}  # coarse level of the focus at as many tokens
Row = dict[str, Any]


def top_patches(relevance: NDArray[np.floating], count: int) -> tuple[int, ...]:
    """Return the positions of the most relevant patches, row-major; ties go to the first."""
    order = np.argsort(-quantised(relevance), kind="stable")
    return tuple(sorted(order[:count].tolist()))


def top_cells(relevance: NDArray[np.floating], fine: int, count: int) -> tuple[int, ...]:
    """Return the most relevant cells of a level, ascending; ties go to the first."""
    sums = cell_sums(quantised(relevance), fine // CELL_TOKENS)
    return tuple(sorted(np.argsort(-sums, kind="stable")[:count].tolist()))


def ways(scenes: Scenes, space: ActionSpace) -> dict[str, list[Cut]]:
    """Return by name what each way reads for every question."""
    maps = [one.relevance for one in scenes.asked]
    plans = [space.plan(each) for each in maps]
    finest = space.anchor.coarse
    found: dict[str, list[Cut]] = {}
    for index, action in enumerate(space.actions):
        kind = "always" if action.is_uniform else "focus"
        found[f"{kind} {action.name}"] = [
            cut_of_reading(space.reading(index, plan)) for plan in plans
        ]
    for count in KEPT:
        found[f"top {count}"] = [((finest, top_patches(m, count)),) for m in maps]
        found[f"top {count - 1} + 1"] = [
            ((1, None), (finest, top_patches(m, count - 1))) for m in maps
        ]
        coarse = COARSE[count]
        cells = (count - coarse) // CELL_TOKENS
        found[f"focus at {count}"] = [
            cut_of_focus(Focus(coarse, finest, top_cells(m, finest, cells))) for m in maps
        ]
    return found


def table(scenes: Scenes, space: ActionSpace) -> tuple[list[Row], dict[str, Answers]]:
    """Return a row a way, and every answer."""
    draws = Resampler(scenes.pictures)
    rows, answers = [], {}
    for name, cuts in ways(scenes, space).items():
        found = answers[name] = scenes.answers(cuts)
        rows.append(
            {
                "way": name,
                "visual_tokens": float(found.tokens.mean()),
                "accuracy": draws.interval(found.right).as_dict(),
            }
        )
        show(rows[-1])
    return rows, answers


def differences(answers: dict[str, Answers], pictures: NDArray[np.int64]) -> list[Row]:
    """Return, for each number of tokens, the focus's accuracy minus each selector's, paired."""
    draws = Resampler(pictures)
    return [
        {
            "tokens": count,
            "against": rival,
            "accuracy": draws.interval(
                answers[f"focus at {count}"].right - answers[rival].right
            ).as_dict(),
        }
        for count in KEPT
        for rival in (f"top {count}", f"top {count - 1} + 1")
    ]


def measure(models: dict[str, Path], count: int) -> Row:
    """Return the tables of the models, one after the other: the same scenes, each model's eyes."""
    found: Row = {}
    for name, folder in models.items():
        scenes = Scenes.of(folder, count, SEED, "heldout")
        space = default_space(scenes.reader.model.config.scales)
        print(f"\n{name}: {folder.name}, {len(scenes.asked)} questions")
        rows, answers = table(scenes, space)
        compared = differences(answers, scenes.pictures)
        show_differences(compared)
        found[name] = {
            "model_hash": hash_model(folder),
            "actions": space.to_json(),
            "questions": len(scenes.asked),
            "ways": rows,
            "focus_minus_selector": compared,
        }
    return found


def show(row: Row) -> None:
    """Print one line of the table."""
    at = row["accuracy"]
    print(
        f"{row['way']:28}{row['visual_tokens']:8.1f} tokens  {at['mean']:.3f} "
        f"({at['low']:.3f} to {at['high']:.3f})",
        flush=True,
    )


def show_differences(rows: Sequence[Row]) -> None:
    """Print what coarse tokens with fine cells are worth beside fine tokens alone."""
    print("a focus minus a selector at no fewer tokens, points:")
    for row in rows:
        low, mean, high = (100 * row["accuracy"][k] for k in ("low", "mean", "high"))
        told = f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
        print(f"  {row['tokens']:4} tokens, {row['against']:14}{told}")


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__, quick="12 scenes: that it runs")
    parser.add_argument("--model", type=Path, default=default_model_path())
    parser.add_argument("--before", type=Path, help="the weights before they learnt to read cuts")
    parser.add_argument("--scenes", type=int, help="held-out scenes; 1,000")
    given = parser.parse_args()
    torch.set_num_threads(1)
    models = {"trained on cuts": given.model}
    if given.before is not None:
        models["before"] = given.before
    scenes = given.scenes or (12 if given.quick else 1000)
    report = {
        "benchmark": "focus_selectors",
        "what": "exact match on held-out SYNTHETIC scenes",
        "scenes": scenes,
        "seed": SEED,
        "models": measure(models, scenes),
    }
    write(report, given.json)


if __name__ == "__main__":
    main()
