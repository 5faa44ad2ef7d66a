"""How well m3-mini answers under every action: held-out scenes, by kind and size, with intervals.

    python benchmarks/m3_mini.py --json benchmarks/results/m3_mini.json     # 2,000 scenes
    python benchmarks/m3_mini.py --quick
    python benchmarks/m3_mini.py --compare DIR DIR DIR     # training seeds, on validation scenes

Scenes are synthetic and of namespace "heldout": their seeds, handwritten digits and photographs
were never seen in training. An answer counts when it equals the reference; intervals are 95 %,
resampled by picture.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from _result import arguments, write
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from m3model import default_model_path
from router.actions import uniform_space
from training.figures.metrics import clustered_interval
from training.oracle.collection import collect
from training.oracle.data import OracleData, read_oracle
from training.sources.scenes import SceneSource

SEED = 0
SIZE_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
MIN_BUCKET = 40


def accuracies(data: OracleData, rows: np.ndarray) -> list[dict[str, float]]:
    """Return accuracy with its interval at every scale, over the questions ``rows`` marks."""
    _, pictures = np.unique(data.pictures[rows], return_inverse=True)
    return [
        {"scale": scale, **clustered_interval(data.scores[rows, k], pictures).as_dict()}
        for k, scale in enumerate(data.scales)
    ]


def foci(data: OracleData) -> list[dict[str, Any]]:
    """Return what always taking one focus does, and its distance from the finest scale."""
    _, pictures = np.unique(data.pictures, return_inverse=True)
    return [
        {
            "action": action.name,
            "visual_tokens": float(data.visual_tokens[:, k].mean()),
            "accuracy": clustered_interval(data.scores[:, k], pictures).as_dict(),
            "minus_finest": clustered_interval(
                data.scores[:, k] - data.scores[:, -1], pictures
            ).as_dict(),
        }
        for k, action in enumerate(data.space.actions)
        if not action.is_uniform
    ]


def by_kind(data: OracleData, references: dict[str, list[str]]) -> dict[str, Any]:
    """Return per question kind: accuracy by scale, the majority answer's share, and by size."""
    report: dict[str, Any] = {}
    for group in sorted(set(data.groups)):
        rows = data.groups == group
        kind = group.rpartition("/")[2]
        edges = np.quantile(data.size_px[rows], SIZE_QUANTILES)
        buckets = []
        for low, high in pairwise(edges):
            inside = rows & (data.size_px >= low) & ((data.size_px < high) | (high == edges[-1]))
            if inside.sum() >= MIN_BUCKET:
                buckets.append(
                    {
                        "from_px": round(float(low), 1),
                        "to_px": round(float(high), 1),
                        "questions": int(inside.sum()),
                        "accuracy": accuracies(data, inside),
                    }
                )
        answers = Counter(references[kind])
        report[kind] = {
            "questions": int(rows.sum()),
            "majority": answers.most_common(1)[0][1] / sum(answers.values()),
            "accuracy": accuracies(data, rows),
            "by_size": buckets,
        }
    return report


def bounds(overall: list[dict[str, float]], kinds: dict[str, Any]) -> dict[str, Any]:
    """Return what the recipe promised and what came out."""
    mean = {row["scale"]: row["mean"] for row in overall}
    margins = {
        name: max(row["mean"] for row in kind["accuracy"]) - kind["majority"]
        for name, kind in kinds.items()
    }
    worst = min(margins, key=lambda name: margins[name])
    reached = {
        "finest_at_least_0.85": mean[576],
        "finest_minus_1_at_least_0.35": mean[576] - mean[1],
        "finest_minus_36_at_least_0.08": mean[576] - mean[36],
        "finest_minus_144_at_least_0.025": mean[576] - mean[144],
        "every_kind_above_majority_by_0.15": margins[worst],
    }
    wanted = (0.85, 0.35, 0.08, 0.025, 0.15)
    return {
        name: {"value": value, "met": bool(value >= bound)}
        for (name, value), bound in zip(reached.items(), wanted, strict=True)
    } | {"worst_kind": worst}


def references_by_kind(folder: Path) -> dict[str, list[str]]:
    """Return the reference answers of every kind."""
    import pyarrow.dataset as ds

    table = ds.dataset(sorted(map(str, folder.glob("oracle-*.parquet")))).to_table(
        ["kind", "reference"]
    )
    found: dict[str, list[str]] = {}
    for kind, reference in zip(
        table["kind"].to_pylist(), table["reference"].to_pylist(), strict=True
    ):
        found.setdefault(kind, []).append(reference)
    return found


def answered(model: Path, namespace: str, scenes: int, out: Path, console: Console) -> OracleData:
    """Return the outcomes of one model on generated scenes."""
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"{model.name} at every scale", total=scenes)
        collect(
            SceneSource(scenes, SEED, namespace=namespace),
            model,
            out,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    return read_oracle([out])


def run(model: Path, scenes: int, folder: Path, console: Console) -> dict[str, Any]:
    """Return the whole report; labelled scenes stay in ``folder``."""
    every = answered(model, "heldout", scenes, folder, console)
    data = every.only(uniform_space(every.scales))
    overall = accuracies(data, np.ones(len(data), bool))
    kinds = by_kind(data, references_by_kind(folder))
    return {
        "what": "exact-match accuracy of m3-mini on held-out SYNTHETIC scenes",
        "command": "python benchmarks/m3_mini.py --json benchmarks/results/m3_mini.json",
        "model_hash": data.model_hash,
        "n_pictures": data.n_pictures,
        "n_questions": len(data),
        "seed": SEED,
        "overall": overall,
        "foci": foci(every),
        "non_monotone": float((np.diff(data.scores, axis=1) < 0).any(axis=1).mean()),
        "any_scale_right": float((data.scores >= 0.5).any(axis=1).mean()),
        "bounds": bounds(overall, kinds),
        "kinds": kinds,
    }


def show(report: dict[str, Any], console: Console) -> None:
    """Print the table a person reads."""
    scales = [row["scale"] for row in report["overall"]]
    table = Table(title=f"m3-mini, {report['n_pictures']} held-out synthetic scenes, exact match")
    for name in ("kind", "questions", "majority", *map(str, scales)):
        table.add_column(name, justify="left" if name == "kind" else "right")
    lines = {
        "all": {"questions": report["n_questions"], "accuracy": report["overall"]},
        **report["kinds"],
    }
    for name, line in lines.items():
        half = [(row["high"] - row["low"]) / 2 for row in line["accuracy"]]
        cells = [
            f"{row['mean']:.3f} ±{h:.3f}" for row, h in zip(line["accuracy"], half, strict=True)
        ]
        majority = f"{line['majority']:.2f}" if "majority" in line else ""
        table.add_row(name, str(line["questions"]), majority, *cells)
    console.print(table)
    show_foci(report["foci"], console)
    for name, bound in report["bounds"].items():
        if isinstance(bound, dict):
            console.print(f"{'met   ' if bound['met'] else 'MISSED'}  {name}: {bound['value']:.3f}")


def show_foci(found: list[dict[str, Any]], console: Console) -> None:
    """Print what each focus does, always taken."""
    table = Table(title="always one focus")
    for name in ("focus", "visual tokens", "right", "points from 576 (95 %)"):
        table.add_column(name, justify="left" if name == "focus" else "right")
    for each in found:
        less = {key: 100 * each["minus_finest"][key] for key in ("mean", "low", "high")}
        table.add_row(
            each["action"],
            f"{each['visual_tokens']:.1f}",
            f"{each['accuracy']['mean']:.3f}",
            f"{less['mean']:+.2f} ({less['low']:+.2f} to {less['high']:+.2f})",
        )
    console.print(table)


def compare(models: list[Path], scenes: int, console: Console) -> dict[str, Any]:
    """Return accuracy by scale of every model, the mean over scales first."""
    with tempfile.TemporaryDirectory() as folder:
        found = [
            answered(model, "validation", scenes, Path(folder) / str(number), console)
            for number, model in enumerate(models)
        ]
    pictures = found[0].pictures
    rows = [
        {
            "model": model.name,
            "model_hash": data.model_hash,
            "mean_over_actions": float(data.scores.mean()),
            "accuracy": [
                {"scale": scale, **clustered_interval(data.scores[:, k], pictures).as_dict()}
                for k, scale in zip(data.space.uniform, data.scales, strict=True)
            ],
            "foci": foci(data),
            "finest_minus_first_model": clustered_interval(
                data.scores[:, -1] - found[0].scores[:, -1], pictures
            ).as_dict(),
        }
        for model, data in zip(models, found, strict=True)
    ]
    return {
        "what": "exact-match accuracy on SYNTHETIC validation scenes, one row a training seed",
        "n_pictures": found[0].n_pictures,
        "n_questions": len(found[0]),
        "models": rows,
        "best": max(rows, key=lambda row: row["mean_over_actions"])["model"],
    }


def show_models(report: dict[str, Any], console: Console) -> None:
    """Print the table a person reads."""
    scales = [row["scale"] for row in report["models"][0]["accuracy"]]
    table = Table(title=f"{report['n_questions']} questions, {report['n_pictures']} scenes")
    for name in ("model", *map(str, scales), "mean", "576 less 144", "576 less 36"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for row in report["models"]:
        mean = {at["scale"]: at["mean"] for at in row["accuracy"]}
        steps = (mean[scales[-1]] - mean[scale] for scale in (scales[-2], scales[-3]))
        table.add_row(
            row["model"],
            *(f"{mean[scale]:.3f}" for scale in scales),
            f"{row['mean_over_actions']:.4f}",
            *(f"{step:+.3f}" for step in steps),
        )
    console.print(table)
    for row in report["models"]:
        console.print(row["model"])
        show_foci(row["foci"], console)
    console.print(f"best on validation (mean over actions): {report['best']}")


def main() -> None:
    """Run the benchmark from the command line."""
    parser = arguments(__doc__, quick="100 scenes; 40 to compare")
    parser.add_argument("--model", type=Path, default=default_model_path(), help="model folder")
    parser.add_argument(
        "--compare", type=Path, nargs="+", metavar="DIR",
        help="models of several training seeds instead, on validation scenes",
    )  # fmt: skip
    parser.add_argument("--scenes", type=int, help="2,000; 800 to compare")
    options = parser.parse_args()
    console = Console()
    if options.compare:
        report = compare(options.compare, options.scenes or (40 if options.quick else 800), console)
        show_models(report, console)
    else:
        scenes = options.scenes or (100 if options.quick else 2000)
        with tempfile.TemporaryDirectory() as folder:
            report = run(options.model, scenes, Path(folder) / "oracle", console)
        show(report, console)
    write(report, options.json)


if __name__ == "__main__":
    main()
