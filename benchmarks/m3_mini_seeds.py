"""Several training seeds of m3-mini side by side, on validation scenes: which one is shipped?

    python benchmarks/m3_mini_seeds.py runs/m3-mini-1 runs/m3-mini-2 runs/m3-mini-3 \\
        --json benchmarks/results/m3_mini_seeds.json

Scenes are synthetic and of namespace "validation": no training and no test sees them. Every folder
answers the same scenes; differences from the first folder are paired, intervals by picture.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from m3model import default_model_path
from training.metrics import clustered_interval
from training.oracle import collect
from training.oracle_data import OracleData, read_oracle
from training.sources import SceneSource

SEED = 0


def answered(model: Path, scenes: int, out: Path, console: Console) -> OracleData:
    """Return the outcomes of one model on the validation scenes."""
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(model.name, total=scenes)
        collect(
            SceneSource(scenes, SEED, namespace="validation"),
            model,
            out,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    return read_oracle([out])


def run(models: list[Path], scenes: int, console: Console) -> dict[str, Any]:
    """Return accuracy by scale of every model, the mean over scales first."""
    with tempfile.TemporaryDirectory() as folder:
        found = [
            answered(model, scenes, Path(folder) / str(number), console)
            for number, model in enumerate(models)
        ]
    _, pictures = np.unique(found[0].picture_ids, return_inverse=True)
    rows = [
        {
            "model": model.name,
            "model_hash": data.model_hash,
            "mean_over_scales": float(data.scores.mean()),
            "accuracy": [
                {"scale": scale, **clustered_interval(data.scores[:, k], pictures).as_dict()}
                for k, scale in enumerate(data.scales)
            ],
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
        "best": max(rows, key=lambda row: row["mean_over_scales"])["model"],
    }


def show(report: dict[str, Any], console: Console) -> None:
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
            f"{row['mean_over_scales']:.3f}",
            *(f"{step:+.3f}" for step in steps),
        )
    console.print(table)
    console.print(f"best on validation (mean over scales): {report['best']}")


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "models", type=Path, nargs="*", help="model folders; the embedded m3-mini if none is given"
    )
    parser.add_argument("--scenes", type=int, default=800)
    parser.add_argument("--quick", action="store_true", help="40 scenes")
    parser.add_argument("--json", type=Path, help="write the report here")
    options = parser.parse_args()
    console = Console()
    models = options.models or [default_model_path()]
    report = run(models, 40 if options.quick else options.scenes, console)
    show(report, console)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
