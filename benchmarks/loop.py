"""The learning loop, whole: traffic shifts, and the log of it makes the router that fits it.

    python benchmarks/loop.py --work runs/loop --json benchmarks/results/loop.json --plot loop.png
    python benchmarks/loop.py --quick

A real service (`m3-serve up --in-process`: the shipped model and router, every request audited)
answers generated scenes; then the mix shifts: questions are put in other words and texts are
smaller. The log is labelled, a router learns from it, passes the gate and goes live by `m3-train`
commands while people go on asking. Before and after are held-out questions of the shifted mix, as
the service answered them. Then what must not pass is offered: poisoned candidates, 200
simulated gates for each kind of candidate, and writers of the log are killed. A story that was
interrupted goes on in the same --work.

`failed_requests` counts requests and feedback without an answer, of all stages; `promoted` says
whether the gate let the router through; `poisoned_refused` whether it refused every one of the
poisoned; `worse_passes` and `equal_cheaper_passes` are shares of the simulated gates.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from _loop.story import QUICK, Sizes, Told, seen_in, tell, told_in
from _loop.traffic import Seen
from _result import arguments, write
from rich.console import Console
from rich.table import Table

TALKS = ("shipped_mix", "shifted_mix", "before", "labelled", "retrained", "after")
ROOT = Path(__file__).resolve().parents[1]
SMOOTH = 300  # answers in a point of the plot, fewer where there are few


def report_of(found: dict[str, Told], sizes: Sizes) -> dict[str, Any]:
    """Return the report: the contract's keys first, what they rest on behind."""
    seen = {name: seen_in(found[name]) for name in TALKS}
    retrained, gates, kills = found["retrained"], found["gates"], found["kills"]
    offered = found["poisoned"]["offered"]
    return {
        "failed_requests": sum(each.failed for each in seen.values()),
        "promoted": retrained["promoted"],
        "poisoned_refused": all(each["refused"] for each in offered.values()),
        **{name: _means(seen[name]) for name in ("before", "after")},
        "log": {
            name: kills[name] for name in ("kills", "acknowledged", "lost", "unreadable_files")
        },
        "gate": {
            name: gates[name] for name in ("worse_passes", "equal_cheaper_passes", "ratchet_points")
        },
        "requests": sum(len(each) + each.failed for each in seen.values()),
        "first_failures": [line for each in seen.values() for line in each.first_failures],
        "intervals": {name: _intervals(seen[name]) for name in TALKS if len(seen[name])},
        "after_minus_before": found["after"]["minus_before"],
        "noticed": found["noticed"],
        "labelled": {key: value for key, value in found["labelled"].items() if key != "seen"},
        "retrained": {key: value for key, value in retrained.items() if key != "seen"},
        "poisoned": offered,
        "read_twice": kills["read_twice"],
        "sizes": asdict(sizes),
        "seconds": {name: told["seconds"] for name, told in found.items()},
    }


def without_paths(report: dict[str, Any], work: Path) -> dict[str, Any]:
    """Return the report without this machine's folders, which commands name."""
    text = json.dumps(report)
    for folder, name in ((work.resolve(), "WORK"), (work, "WORK"), (ROOT, ".")):
        text = text.replace(str(folder), name)
    return dict(json.loads(text))


def _means(seen: Seen) -> dict[str, float]:
    return {name: float(interval["mean"]) for name, interval in _intervals(seen).items()}


def _intervals(seen: Seen) -> dict[str, dict[str, float]]:
    return {
        "accuracy": seen.accuracy().as_dict(),
        "visual_tokens": seen.visual_tokens().as_dict(),
    }


def show(report: dict[str, Any], console: Console) -> None:
    """Print the table that a person reads."""
    table = Table(title="as the service answered")
    for name in ("", "right", "visual tokens"):
        table.add_column(name, justify="right" if name else "left")
    for name, each in report["intervals"].items():
        right, tokens = each["accuracy"], each["visual_tokens"]
        table.add_row(
            name.replace("_", " "),
            f"{right['mean']:.3f} ({right['low']:.3f} to {right['high']:.3f})",
            f"{tokens['mean']:.1f} ({tokens['low']:.1f} to {tokens['high']:.1f})",
        )
    console.print(table)
    less, verdict = report["after_minus_before"], report["retrained"]["verdict"]
    accuracy, tokens = less["accuracy"], less["visual_tokens"]
    console.print(
        f"after less before, the same questions: {100 * accuracy['mean']:+.2f} points "
        f"({100 * accuracy['low']:+.2f} to {100 * accuracy['high']:+.2f}), "
        f"{tokens['mean']:+.1f} visual tokens ({tokens['low']:+.1f} to {tokens['high']:+.1f})"
    )
    passed = "passed" if report["promoted"] else "refused, then forced"
    console.print(f"the gate, {verdict['pictures']} fresh pictures: {passed}; {verdict['why']}")
    if not report["promoted"]:
        console.print(
            f"fewer pictures than a gate needs (at least {verdict['least_pictures']} fresh ones): "
            "the story goes on by force"
        )
    for name, each in report["poisoned"].items():
        console.print(f"{name}: {'refused' if each['refused'] else 'WENT LIVE'}; {each['why']}")
    console.print(f"simulated gates: {report['gate']}; killed writers: {report['log']}")
    console.print(
        f"{report['failed_requests']} of {report['requests']} requests failed; "
        f"{sum(report['seconds'].values()) / 60:.1f} minutes"
    )


def draw(found: dict[str, Told], path: Path) -> None:
    """Write how accuracy and tokens went over the answers of the story, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parts = {name: seen_in(found[name]) for name in ("shipped_mix", "shifted_mix", "after")}
    names = {"shipped_mix": "usual mix", "shifted_mix": "shifted mix", "after": "after the swap"}
    colors = {"shipped_mix": "#555555", "shifted_mix": "#B84A00", "after": "#0072B2"}
    figure = Figure(figsize=(7.2, 5.0), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    start = 0
    for name, seen in parts.items():
        width = max(1, min(SMOOTH, len(seen) // 3))
        ends = start + width / 2 + np.arange(len(seen) - width + 1)
        for axes, values in ((above, seen.right), (below, seen.tokens)):
            smooth = np.convolve(np.array(values, float), np.full(width, 1 / width), "valid")
            axes.plot(ends, smooth, color=colors[name], linewidth=1.8)
            axes.axvline(start, color="#bbbbbb", linewidth=0.8)
        middle = start + len(seen) / 2
        above.text(middle, 1.02, names[name], color=colors[name], ha="center", va="bottom",
                   transform=above.get_xaxis_transform())  # fmt: skip
        start += len(seen)
    above.set_ylabel("right (moving mean)")
    below.set_ylabel("visual tokens (moving mean)")
    below.set_ylim(bottom=0)
    below.set_xlabel("answers")
    for axes in (above, below):
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    """Tell the story from the command line."""
    parser = arguments(__doc__, "160 pictures: too few for the gate, which is shown to refuse")
    parser.add_argument("--work", type=Path, help="folder that the story goes on in")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the story's time there")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and the service ends as well
    console, sizes = Console(), QUICK if given.quick else Sizes()
    if given.quick:
        console.print(
            f"{sizes.shipped + sizes.shifted} pictures: fewer than a gate needs, so it will refuse"
        )
    temporary = nullcontext(given.work) if given.work else tempfile.TemporaryDirectory()
    with temporary as work, told_in(Path(work), sizes) as story:
        found = tell(story)
    report = without_paths(report_of(found, sizes), Path(work))
    show(report, console)
    if given.plot is not None:
        draw(found, given.plot)
        print(f"drawn in {given.plot}")
    write(report, given.json)


if __name__ == "__main__":
    main()
