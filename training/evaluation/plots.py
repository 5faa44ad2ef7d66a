"""Draws accuracy against tokens, cost or time: the router, every baseline, fixed scales, oracles.

Knows the report's dictionary and matplotlib; opens no window.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Colours that stay apart for colour-blind readers (Okabe-Ito); the line style tells them apart in
# grey.
STYLES: dict[str, tuple[str, str, str]] = {
    "router": ("router", "#0072B2", "-"),
    "privileged": ("told the scene (ceiling)", "#009E73", ":"),
    "privileged_metadata": ("told the scene but its masks", "#7fb89f", ":"),
    "type_table": ("type table", "#D55E00", "--"),
    "question_only": ("question only", "#CC79A7", "-."),
    "image_only": ("picture only", "#8c6d1f", (0, (1, 1))),  # type: ignore[dict-item]
    "fixed_mixture": ("mixture of fixed scales", "#666666", "-"),
}
ORDER = ("fixed_mixture", "privileged_metadata", "privileged", "image_only", "question_only",
         "type_table", "router")  # fmt: skip
WIDTHS = {"router": 2.4, "fixed_mixture": 1.2}


def accuracy_curve(report: dict[str, Any], path: Path, *, resource: str = "visual_tokens") -> None:
    """Write accuracy against a resource ("visual_tokens" or "cost"), with 95 % bands, as PNG.

    Every line is the hull of what the policy reaches with mixing, over these test questions.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    figure = Figure(figsize=(8.0, 5.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name in ORDER:
        if name in report["bands"][resource]:
            band = report["bands"][resource][name]
            label, color, style = STYLES[name]
            if name in ("router", "type_table", "fixed_mixture"):
                axes.fill_between(
                    band["at"], band["low"], band["high"], color=color, alpha=0.15, linewidth=0
                )
            width = WIDTHS.get(name, 1.6)
            axes.plot(
                band["at"], band["accuracy"], label=label, color=color, linestyle=style,
                linewidth=width,
            )  # fmt: skip
    for point in report["fixed"]:
        place = (point[resource], point["accuracy"])
        axes.plot(*place, "s", color="#666666", markersize=6, zorder=3)
        axes.annotate(
            f"{point['scale']}", place, textcoords="offset points", xytext=(5, -11), fontsize=8,
            color="#444444",
        )  # fmt: skip
    for name, marker in (("any_correct", "*"), ("strict", "P"), ("luck_corrected", "X")):
        point = report["oracle"][name]
        if point is not None and resource == "visual_tokens":
            axes.plot(
                point["visual_tokens"], point["accuracy"], marker, color="black", markersize=9,
                linestyle="none", label=f"oracle, {name.replace('_', ' ')}",
            )  # fmt: skip
    router = report["router"]
    axes.plot(
        router[resource], router["accuracy"], "o", color="#0072B2", markersize=10,
        markeredgecolor="white", zorder=5, label="router as shipped",
    )  # fmt: skip
    axes.axhline(report["finest_accuracy"], color="#bbbbbb", linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([float(p[resource]) for p in report["fixed"]]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{p[resource]:.4g}" for p in report["fixed"]])
    what = "visual tokens per picture" if resource == "visual_tokens" else report["cost_unit"]
    axes.set_xlabel(f"mean {what} (log scale)")
    exact = report["scored_by"].startswith("exact match")
    axes.set_ylabel("accuracy" if exact else report["scored_by"])
    axes.set_title(
        f"{report['n_questions']} questions about {report['n_pictures']} test pictures", fontsize=11
    )
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, metadata={"Software": None})
