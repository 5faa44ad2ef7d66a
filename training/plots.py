"""Draws accuracy against mean visual tokens: the router, every baseline, fixed scales, oracles.

Knows the report's dictionary and matplotlib; opens no window.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.metrics import hull

# Colours that stay apart for colour-blind readers (Okabe-Ito); the line style tells them apart in
# grey.
STYLES: dict[str, tuple[str, str, str]] = {
    "router": ("router", "#0072B2", "-"),
    "privileged": ("told the scene (ceiling)", "#009E73", ":"),
    "type_table": ("type table", "#D55E00", "--"),
    "question_only": ("question only", "#CC79A7", "-."),
    "image_only": ("picture only", "#8c6d1f", (0, (1, 1))),  # type: ignore[dict-item]
}


def accuracy_curve(report: dict[str, Any], path: Path) -> None:
    """Write the figure as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    figure = Figure(figsize=(8.0, 5.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    fixed = [(point["visual_tokens"], point["accuracy"]) for point in report["fixed"]]
    _line(axes, fixed, "mixture of fixed scales", "#666666", "-", width=1.2)
    axes.plot(*zip(*fixed, strict=True), "s", color="#666666", markersize=6, zorder=3)
    for x, y in fixed:
        axes.annotate(
            f"{x:g}",
            (x, y),
            textcoords="offset points",
            xytext=(5, -11),
            fontsize=8,
            color="#444444",
        )
    lines = {"router": report["curve"]}
    lines |= {name: point["curve"] for name, point in report["baselines"].items()}
    for name in ("privileged", "image_only", "question_only", "type_table", "router"):
        if name in lines:
            label, color, style = STYLES[name]
            points = [(p["visual_tokens"], p["accuracy"]) for p in lines[name]]
            _line(axes, points, label, color, style, width=2.4 if name == "router" else 1.6)
    for name, marker in (("any_correct", "*"), ("strict", "P"), ("luck_corrected", "X")):
        point = report["oracle"][name]
        if point is not None:
            axes.plot(
                point["visual_tokens"], point["accuracy"], marker, color="black", markersize=9,
                linestyle="none", label=f"oracle, {name.replace('_', ' ')}",
            )  # fmt: skip
    router = report["router"]
    axes.plot(
        router["visual_tokens"], router["accuracy"], "o", color="#0072B2", markersize=10,
        markeredgecolor="white", zorder=5, label="router as shipped",
    )  # fmt: skip
    axes.axhline(report["finest_accuracy"], color="#bbbbbb", linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([float(scale) for scale in report["scales"]]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(scale) for scale in report["scales"]])
    axes.set_xlabel("mean visual tokens per picture (log scale)")
    exact = report["scored_by"].startswith("exact match")
    axes.set_ylabel("accuracy" if exact else report["scored_by"])
    axes.set_title(
        f"{report['n_questions']} questions about {report['n_pictures']} test pictures", fontsize=11
    )
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, metadata={"Software": None})


def _line(
    axes: Any,
    points: Sequence[tuple[float, float]],
    label: str,
    color: str,
    style: Any,
    *,
    width: float,
) -> None:
    """Draw the hull of a policy's points: what it reaches with mixing."""
    x, y = hull(*np.array(points, dtype=float).T)
    # On a log axis a mixture of two policies is a curve, so the straight pieces are sampled.
    grid = np.unique(np.concatenate([x, np.geomspace(x[0], x[-1], 200).clip(x[0], x[-1])]))
    axes.plot(
        grid, np.interp(grid, x, y), label=label, color=color, linestyle=style, linewidth=width
    )
