"""How the commands of this house look and fail: m3-serve, m3-train and `python -m m3model.convert`.

Knows typer, rich and the terminal: standard output is for results, standard error for the person
who waits. Does not know what is shown, nor which errors a command expects.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from rich.text import Text

DISTRIBUTION = "m3-router"
BAD_INPUT, INTERRUPTED = 2, 130
# A pipe or a file has no width: nothing is folded there, and a bar becomes a line now and then.
PIPE_WIDTH, LINE_EVERY_S = 1000, 10.0
_NUMBER = re.compile(r"[+-]?[\d.,]+( ?%)?")

Move = Callable[..., None]  # (done, total, note="")


def version() -> str:
    """Return the version of the installed distribution."""
    from importlib import metadata

    return metadata.version(DISTRIBUTION)


def _show_version(context: typer.Context, asked: bool) -> None:
    if asked:
        typer.echo(f"{context.find_root().info_name} {version()}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option(
        "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
    ),
]


class _Panels(TyperGroup):
    """Lists its commands in the order given, under their panels, each summary whole."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        width = max(map(len, self.commands))
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None) or "Commands"
            summary = command.get_short_help_str(PIPE_WIDTH)
            panels.setdefault(panel, []).append((name.ljust(width), summary))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)


def one_command(name: str, **more: Any) -> typer.Typer:
    """Return an empty command line of the house's look, for one command; `run` runs it.

    Plain help: rich's panels cut long options and their defaults at 80 columns.
    """
    return typer.Typer(
        name=name, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
        **more,
    )  # fmt: skip


def commands(name: str, summary: str) -> typer.Typer:
    """Return the same for several commands, with `--version`; without arguments it shows help."""
    app = one_command(name, help=summary, cls=_Panels, no_args_is_help=True)

    @app.callback()
    def options(version: VersionOption = False) -> None:
        pass

    return app


def run(app: typer.Typer, *expected: type[Exception]) -> NoReturn:
    """Run the command line and end the process.

    A usage error or one of the `expected` exceptions is one line on standard error and status 2;
    any other exception is a bug and keeps its traceback.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # their bars break ours
    words = sys.argv[1:] or (["--help"] if app.info.no_args_is_help else [])
    try:
        # What `typer.Exit` was given; a command's own None is success.
        status = app(words, prog_name=app.info.name, standalone_mode=False)
    except typer.TyperException as error:
        _complain(error.format_message())
        status = BAD_INPUT
    except expected as error:
        _complain(_told(error))
        status = BAD_INPUT
    except typer.Abort:
        status = INTERRUPTED
    sys.exit(status or 0)


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def fail(message: str) -> NoReturn:
    """End the command with one line on standard error and status 2.

    Raises:
        typer.Exit: always; `run` turns it into the status.
    """
    _complain(message)
    raise typer.Exit(BAD_INPUT)


def _complain(message: str) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)


def say(line: str) -> None:
    """Print one line for the person who waits (once, where several processes train together)."""
    if _first_process():
        print(line, file=sys.stderr, flush=True)  # not typer.echo, which writes into a live bar


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def interval(values: dict[str, float], factor: float, unit: str) -> str:
    """Return a mean with its interval as text."""
    mean, low, high = (factor * values[key] for key in ("mean", "low", "high"))
    return f"{mean:+.2f}{unit} ({low:+.2f} to {high:+.2f})"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """Print a title and a table on standard output, columns of numbers to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # As Text, since a string would be read as markup.
    cells = [[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    shown = Table()
    for number, name in enumerate(columns):
        said = [cell for row in cells if (cell := row[number].plain)]
        numeric = bool(said) and all(map(_NUMBER.fullmatch, said))
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        shown.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    console.print(Text(title, style="italic"))  # a table's own title is no wider than the table
    console.print(shown)


def described(facts: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Yield the facts as aligned lines, what is within one indented below it."""
    width = max((len(name) for name, value in facts.items() if not _is_nested(value)), default=0)
    for name, value in facts.items():
        if _is_nested(value):
            yield f"{indent}{name}"
            yield from described(value, f"{indent}  ")
        else:
            yield f"{indent}{name:{width}}  {_in_words(value)}"


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _in_words(value: Any) -> str:
    if value is None or value in ({}, []):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_in_words, value))
    return str(value)


@contextmanager
def stage(what: str) -> Iterator[Callable[[str], None]]:
    """Say what is being done for as long as it takes: beside a spinner, in a pipe as one line.

    Yields a function that says what is being done by now.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(Text(what)) as status:
            yield lambda told: status.update(Text(told))
    else:
        say(what)
        yield say


@contextmanager
def bar(what: str, unit: str, line_every_s: float = LINE_EVERY_S) -> Iterator[Move]:
    """Yield a function (done, total, note) that moves a bar with rate and time left.

    In a pipe it prints a line instead: at the beginning, every `line_every_s` and at the end.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal or not _first_process():
        yield _Lines(what, unit, line_every_s).move
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    speed = _Speed()
    with Progress(
        TextColumn("{task.description}"), BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
    ) as progress:  # fmt: skip
        task = progress.add_task(what, total=1, rate="", note="")

        def move(done: float, total: float, note: str = "") -> None:
            rate = speed.after(done)
            shown = "" if rate is None else f"{rate:.1f}/s"
            progress.update(task, completed=done, total=max(total, 1), rate=shown, note=note)

        yield move


class _Speed:
    """How fast something goes on, from where it stood when it was first heard of.

    What stands lower than before is something else.
    """

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        self._last = 0.0

    def after(self, done: float) -> float | None:
        """Return units a second so far, or None while nothing can be said."""
        now = time.monotonic()
        if self._first is None or done < self._last:
            self._first = (done, now)
        self._last = done
        before, began = self._first
        return (done - before) / (now - began) if done > before and now > began else None


class _Lines:
    """A bar for those who read a file: what, how far, how fast, how long still."""

    def __init__(self, what: str, unit: str, every_s: float) -> None:
        self._what, self._unit, self._every_s = what, unit, every_s
        self._speed, self._due_at = _Speed(), 0.0
        self._said: tuple[float, str] | None = None

    def move(self, done: float, total: float, note: str = "") -> None:
        """Print a line, if one is due."""
        rate, now = self._speed.after(done), time.monotonic()
        if (now < self._due_at and done < total) or (done, note) == self._said:
            return
        self._due_at, self._said = now + self._every_s, (done, note)
        parts = [f"{self._what}: {done:.0f}/{total:.0f} {self._unit}"]
        if rate is not None:
            parts.append(f"{rate:.1f}/s")
            left_s = (total - done) / rate
            if left_s >= 1:
                left = f"{left_s:.0f} s" if left_s < 120 else f"{left_s / 60:.0f} min"
                parts.append(f"{left} left")
        say(", ".join([*parts, *filter(None, [note])]))
