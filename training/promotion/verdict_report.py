"""Tells what the gate found: in a line, and as `verdict.json`, the same in words, and a plot.

Knows verdicts, files and matplotlib; opens no window.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from training.files import write_json
from training.promotion.weighing import DELTA, Check, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = {
    "incumbent": "accuracy against\nthe router in force",
    "reference": "accuracy against\nthe reference router",
    "floor": "accuracy against the floor\nthat the finest scale sets",
    "tokens": "visual tokens saved\na question",
}
SHOWN, NOT_SHOWN = "#0072B2", "#B84A00"


def write_verdict(verdict: Verdict, folder: Path, *, forced: bool = False) -> list[Path]:
    """Write the verdict's files, and return their paths.

    Args:
        forced: the router was promoted whatever the verdict.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("verdict.json", "verdict.md")]
    write_json(paths[0], {**verdict.as_dict(), "forced": forced})
    paths[1].write_text(_words(verdict, forced), encoding="utf-8")
    plot = folder / "verdict.png"
    plot.unlink(missing_ok=True)  # of a verdict before this one
    if verdict.checks:
        _plot(verdict, plot)
        paths.append(plot)
    return paths


def closed(verdict: Verdict, report: Path | None = None) -> str:
    """Return the message of a closed gate, in one line."""
    where = "" if report is None else f"; report in {report}"
    return f"not promoted: {verdict.sentence} (--force promotes all the same){where}"


def said_of(verdict: Verdict) -> str:
    """Return for the journal why a router went into force."""
    gate = "the gate passed" if verdict.passed else "forced against the gate"
    return f"{gate}: {verdict.sentence}"


def _words(verdict: Verdict, forced: bool) -> str:
    head = "passed" if verdict.passed else "refused, and forced" if forced else "refused"
    lines = [f"# The gate: {head}", "", *(f"- {reason}" for reason in verdict.why)]
    lines += [f"- Note: {note}" for note in verdict.notes]
    lines += [
        "",
        f"Judged on {verdict.questions} questions about {verdict.pictures} fresh pictures; each "
        f"end of an interval holds with probability {1 - DELTA:g}.",
        "",
        "| comparison | gain | from | to | needs more than | shown | pictures missing |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_row(check) for check in verdict.checks),
    ]
    return "\n".join(lines) + "\n"


def _row(check: Check) -> str:
    of, digits = _unit(check)
    numbers = [of * each for each in (check.gain.mean, check.gain.low, check.gain.high)]
    missing = "more would not help" if check.missing is None else f"{check.missing}"
    cells = [_NAMES[check.name].replace("\n", " "), *(f"{n:+.{digits}f}" for n in numbers)]
    shown = "yes" if check.passed else "no"
    return f"| {' | '.join([*cells, f'{of * check.needs:g}', shown, missing])} |"


def _unit(check: Check) -> tuple[float, int]:
    return (1.0, 1) if check.name == "tokens" else (100.0, 2)


def _plot(verdict: Verdict, path: Path) -> None:
    """Draw each gain with its ends, and the line that the lower end must be above."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    accuracy = [check for check in verdict.checks if check.name != "tokens"]
    tokens = [check for check in verdict.checks if check.name == "tokens"]
    figure = Figure(figsize=(7.2, 4.2), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, height_ratios=[len(accuracy), 1])
    _intervals(above, accuracy, "points of accuracy")
    _intervals(below, tokens, "visual tokens")
    above.set_title(
        f"the gate: {'passed' if verdict.passed else 'refused'}, {verdict.questions:,} questions "
        f"about {verdict.pictures:,} fresh pictures",
        fontsize=12, color="#444444", loc="left",
    )  # fmt: skip
    figure.savefig(path, metadata={"Software": None})


def _intervals(axes: Axes, checks: list[Check], unit: str) -> None:
    for height, check in enumerate(reversed(checks)):
        of, _ = _unit(check)
        color = SHOWN if check.passed else NOT_SHOWN
        low, mean, high = (of * e for e in (check.gain.low, check.gain.mean, check.gain.high))
        axes.plot([low, high], [height] * 2, color=color, linewidth=3, solid_capstyle="butt")
        axes.plot(mean, height, "o", color=color, markersize=8)
    axes.axvline(_unit(checks[0])[0] * checks[0].needs, color="#555555", linestyle="--")
    axes.set_yticks(range(len(checks)), [_NAMES[check.name] for check in reversed(checks)])
    axes.set_ylim(-0.6, len(checks) - 0.4)
    axes.set_xlabel(f"{unit}; the whole interval must lie right of the dashed line")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
