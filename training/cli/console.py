"""What the command line shows: lines, tables and a progress bar, all on standard error but tables.

Knows rich and the terminal; does not know what is shown.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer


def say(line: str) -> None:
    """Print one line for the person who waits (once, where several processes train together)."""
    if _first_process():
        typer.echo(line, err=True)


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def interval(values: dict[str, float], factor: float, unit: str) -> str:
    """Return a mean with its interval as text."""
    mean, low, high = (factor * values[key] for key in ("mean", "low", "high"))
    return f"{mean:+.2f}{unit} ({low:+.2f} to {high:+.2f})"


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table on standard output."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(*columns, title=title, title_justify="left")
    for row in rows:
        shown.add_row(*row)
    console = Console()
    # A file or a pipe has no width: 80 columns would break the cells.
    (console if console.is_terminal else Console(width=140)).print(shown)


@contextmanager
def bar(what: str, unit: str) -> Iterator[Callable[..., None]]:
    """Yield a function (done, total, note) that moves a bar with rate and time left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    started: dict[str, float] = {}
    with Progress(
        TextColumn("{task.description}"), BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(elapsed_when_finished=True), TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        disable=not _first_process(),
    ) as progress:  # fmt: skip
        task = progress.add_task(what, total=1, rate="", note="")

        def move(done: int, total: int, note: str = "") -> None:
            first = started.setdefault("done", done)
            elapsed = progress.tasks[0].elapsed or 0.0
            rate = f"{(done - first) / elapsed:.1f}/s" if done > first and elapsed else ""
            progress.update(task, completed=done, total=max(total, 1), rate=rate, note=note)

        yield move
