"""The shipped router on held-out scenes, beside every baseline, with intervals.

Labels fresh scenes that neither the model nor the router ever saw, then judges the router on the
test pictures among them, and tells what was asked of it as met or missed. Baselines are fitted on
the training pictures among them; a second, cheaper operating point is priced on the calibration
pictures, which the certificate is made on too. Time is measured by serve_load.py. The handwritten
digits and halves of photographs drawn into them were not in the model's training; the router's own
training scenes draw from the same held-out pool.

    python benchmarks/routing_quality.py [--json PATH] [--quick]
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from _focus.targets import Judge, show_targets, targets
from _result import arguments, write

SEED = 7
SHOWN = (
    "router", "uniform_router", "type_table", "type_table_same_actions", "question_only",
    "fixed_mixture",
)  # fmt: skip


def measure(
    scenes: int, model: Path, router: Path, oracle: Path | None, workers: int | None
) -> dict[str, Any]:
    """Return the evaluation report with its long curves thinned, and what it took."""
    from rich.progress import Progress

    from router import Router
    from training.evaluation.evaluate import evaluate
    from training.oracle.collection import collect
    from training.oracle.data import read_oracle
    from training.sources.scenes import SceneSource

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, Progress() as progress:
        folder = oracle or Path(scratch) / "oracle"
        task = progress.add_task("labelling", total=scenes)
        source = SceneSource(scenes, SEED, namespace="heldout", repeats=2)
        shipped = Router.from_pretrained(router)
        result = collect(
            source, model, folder, workers=workers, space=shipped.space,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )  # fmt: skip
        seconds = time.perf_counter() - started
        data = read_oracle([folder])
        report = evaluate(shipped, data)
        asked = targets(Judge(shipped, data))
    report["curve"] = thinned(report["curve"])
    for baseline in report["baselines"].values():
        baseline["curve"] = thinned(baseline["curve"])
    report["bands"] = {"visual_tokens": rounded(report["bands"]["visual_tokens"])}
    for part in report["slices"]:
        del part["curve"], part["at_equal_accuracy"]
    return {
        "benchmark": "routing_quality",
        "scenes": scenes,
        "seed": SEED,
        "labelling_seconds": seconds if result.labelled_now == scenes else None,
        "targets": [target.as_dict() for target in asked],
        **report,
    }


def thinned(curve: list[dict[str, float]], keep: int = 25) -> list[dict[str, float]]:
    """Return about ``keep`` points of a curve, ends included."""
    step = max(1, len(curve) // keep)
    return curve[:-1:step] + curve[-1:]


def rounded(bands: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, list[float]]]:
    """Return the bands that the plot shows, to five digits."""
    return {
        name: {key: [float(f"{value:.5g}") for value in values] for key, values in band.items()}
        for name, band in bands.items()
        if name in SHOWN
    }


def show_report(report: dict[str, Any]) -> None:
    """Print the table of policies, and what was asked for."""
    print(f"{report['n_questions']} test questions about {report['n_pictures']} held-out pictures")
    print(
        f"{'policy':24}{'accuracy':>9}{'tokens':>8}{'share':>7}  difference from the finest, points"
    )
    finest = report["scales"][-1]
    for point in report["fixed"]:
        share = point["scale"] / finest
        print(f"always {point['scale']:<17}{point['accuracy']:9.3f}{point['scale']:8}{share:7.1%}")
    for name, point in {"router": report["router"], **report["baselines"]}.items():
        low, mean, high = (
            100 * point["difference_from_finest"][k] for k in ("low", "mean", "high")
        )
        print(
            f"{name:24}{point['accuracy']:9.3f}{point['visual_tokens']:8.1f}"
            f"{point['visual_tokens'] / finest:7.1%}  {mean:+.2f} ({low:+.2f} to {high:+.2f})"
        )
    print("tokens for the router's accuracy, each on its own test hull:")
    for name, tokens in report["visual_tokens_at_router_accuracy"].items():
        print(f"  {name:24}{'never' if tokens is None else f'{tokens:.1f}'}")
    show_targets(report["targets"])


def main() -> None:
    """Measure, print, write."""
    from m3model import default_model_path
    from router import default_router_path

    parser = arguments(__doc__, quick="200 scenes: shows that it runs")
    parser.add_argument("--scenes", type=int, help="held-out scenes to label")
    parser.add_argument("--model", type=Path, default=default_model_path())
    parser.add_argument("--router", type=Path, default=default_router_path())
    parser.add_argument("--oracle", type=Path, help="keep (or reuse) the labels in this folder")
    parser.add_argument("--workers", type=int)
    given = parser.parse_args()
    scenes = given.scenes or (200 if given.quick else 5000)
    report = measure(scenes, given.model, given.router, given.oracle, given.workers)
    show_report(report)
    write(report, given.json)


if __name__ == "__main__":
    main()
