"""Draws accuracy against tokens or cost: the router, what it has to beat, and the fixed scales.

Few lines, each named where it runs; tables hold the rest. Knows the report's dictionary and
matplotlib; opens no window.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROUTER = "#0072B2"
# Colours that stay apart for colour-blind readers (Okabe-Ito, darkened for text); the line style
# tells them apart in grey. Name, colour, style; where on the line it is pointed at, and where the
# name stands, both as shares of the axes.
Drawn = dict[str, tuple[str, str, str, float, tuple[float, float]]]
RIVALS: Drawn = {
    "fixed_mixture": ("fixed scales, mixed", "#555555", "-", 0.62, (0.66, 0.56)),
    "type_table": ("a table of question types", "#B84A00", "--", 0.34, (0.40, 0.36)),
    "question_only": ("a router that sees only the question", "#9C4482", "-.", 0.22, (0.30, 0.20)),
}
# Where there are foci: what they add to our own router, and to a table.
BESIDE_FOCI: Drawn = {
    "uniform_router": ("our router, scales alone", "#555555", "--", 0.66, (0.60, 0.36)),
    "type_table_same_actions": ("a table, same actions", "#B84A00", "-.", 0.50, (0.58, 0.10)),
}
SOURCES = {"scenes": "synthetic scenes"}
WORTH_AN_ARROW = 1.3
SMALL, LARGE = 12, 13.5


def accuracy_curve(report: dict[str, Any], path: Path, *, resource: str = "visual_tokens") -> None:
    """Write accuracy against a resource ("visual_tokens" or "cost"), with 95 % bands, as PNG.

    Every line is the hull of what the policy reaches with mixing, over these test questions. With
    foci a few tokens matter, so the axis is logarithmic.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(7.2, 5.0), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bands, fixed = report["bands"][resource], report["fixed"]
    axes.set_ylim(*_heights(fixed))
    foci = "uniform_router" in bands
    if foci:
        _logarithmic(axes, fixed, resource)
    else:
        axes.set_xlim(0.0, 1.02 * float(fixed[-1][resource]))
    for name, (told, color, style, share, place) in (BESIDE_FOCI if foci else RIVALS).items():
        if name in bands:
            _line(axes, bands[name], color=color, linestyle=style, linewidth=1.8)
            _name(axes, bands[name], told, color, share, place)
    if "router" in bands:
        _line(axes, bands["router"], color=ROUTER, linewidth=3.2, zorder=4)
    _fixed_scales(axes, fixed, resource)
    _router_point(axes, report, resource)
    exact = report["scored_by"].startswith("exact match")
    what = "visual tokens a question" if resource == "visual_tokens" else report["cost_unit"]
    axes.set_xlabel(f"mean {what}", fontsize=LARGE)
    axes.set_ylabel("right answers" if exact else report["scored_by"], fontsize=LARGE)
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set_title(
        f"{report['n_questions']:,} questions about {report['n_pictures']:,} test pictures "
        f"({', '.join(SOURCES.get(name, name) for name in report['sources'])}), 95 % bands",
        fontsize=SMALL, color="#444444", loc="left",
    )  # fmt: skip
    axes.tick_params(labelsize=SMALL)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})


def _logarithmic(axes: Axes, fixed: list[dict[str, Any]], resource: str) -> None:
    """Let the axis begin at the coarsest scale that is drawn, with a tick at each."""
    low = axes.get_ylim()[0]
    drawn = [float(point[resource]) for point in fixed if point["accuracy"] >= low]
    axes.set_xscale("log")
    axes.set_xlim(min(drawn) / 8.0, 1.15 * max(drawn))
    first, last = axes.get_xlim()
    ticks = [float(point[resource]) for point in fixed if first <= point[resource] <= last]
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()


def _heights(fixed: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the accuracies shown: those of the three finest scales, with room for names."""
    shown = [point["accuracy"] for point in fixed[-3:]]
    room = max(max(shown) - min(shown), 0.02)
    return min(shown) - 0.45 * room, max(shown) + 0.5 * room


def _line(axes: Axes, band: dict[str, Any], **style: Any) -> None:
    axes.fill_between(
        band["at"], band["low"], band["high"], color=style["color"], alpha=0.12, linewidth=0
    )
    axes.plot(band["at"], band["accuracy"], **style)


def _name(
    axes: Axes, band: dict[str, Any], told: str, color: str, share: float,
    place: tuple[float, float],
) -> None:  # fmt: skip
    at, _ = axes.transData.inverted().transform(axes.transAxes.transform((share, 0.0)))
    axes.annotate(
        told, (at, float(np.interp(at, band["at"], band["accuracy"]))), place,
        textcoords="axes fraction", color=color, fontsize=LARGE, va="center",
        arrowprops={"arrowstyle": "-", "color": color, "linewidth": 1.0, "shrinkB": 0,
                    "relpos": (0.1, 1.0)},
    )  # fmt: skip


def _fixed_scales(axes: Axes, fixed: list[dict[str, Any]], resource: str) -> None:
    for point in fixed:
        if point["accuracy"] < axes.get_ylim()[0]:
            continue
        place, last = (point[resource], point["accuracy"]), point is fixed[-1]
        axes.plot(*place, "s", color="#555555", markersize=7, zorder=5, clip_on=False)
        axes.annotate(
            f"always {point['scale']}", place, textcoords="offset points", fontsize=SMALL,
            xytext=(4, -18) if last else (8, -12), color="#555555", ha="right" if last else "left",
        )  # fmt: skip


def _router_point(axes: Axes, report: dict[str, Any], resource: str) -> None:
    """Draw where the router works, and how far from there mixing fixed scales would have to go."""
    router, band = report["router"], report["bands"][resource].get("fixed_mixture")
    spent, accuracy = router[resource], router["accuracy"]
    needed = 0.0
    if band is not None and band["accuracy"][0] < accuracy <= band["accuracy"][-1]:
        needed = float(np.interp(accuracy, band["accuracy"], band["at"]))
    if needed > WORTH_AN_ARROW * spent:
        axes.annotate(
            "", (needed, accuracy), (spent, accuracy), zorder=5,
            arrowprops={"arrowstyle": "->", "color": ROUTER, "linewidth": 1.4, "linestyle": ":"},
        )  # fmt: skip
        axes.annotate(
            f"fixed scales: {needed / spent:.1f} x as much", (needed, accuracy), (0.99, 0.86),
            textcoords="axes fraction", ha="right", color=ROUTER, fontsize=LARGE,
            arrowprops={"arrowstyle": "-", "color": ROUTER, "linewidth": 1.0, "relpos": (0.6, 0)},
        )  # fmt: skip
    axes.plot(spent, accuracy, "o", color=ROUTER, markersize=12, markeredgecolor="white", zorder=6)
    unit = " tokens" if resource == "visual_tokens" else ""
    axes.annotate(
        f"router: {100 * accuracy:.1f} % at {spent:.3g}{unit}", (spent, accuracy), (0.02, 0.94),
        textcoords="axes fraction", fontsize=LARGE + 1, fontweight="bold", color=ROUTER,
        arrowprops={"arrowstyle": "-", "color": ROUTER, "linewidth": 1.0, "relpos": (0.5, 0)},
    )  # fmt: skip
