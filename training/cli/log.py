"""`m3-train log`: a look at the service's decision log, its compaction, and erasing from it.

Knows flags and tables, and how flags name a place; the work is in router.log.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from m3model.terminal import one_command, say, table
from router.places import NoPlace, Place, as_place
from training.errors import TrainingError


def place(told: str | Place) -> Place:
    """Return the place that a flag's value means."""
    try:
        return as_place(told)
    except NoPlace as error:
        raise typer.BadParameter(str(error)) from error


def place_option(*names: str, what: str) -> Any:
    """Return a flag that takes a folder, or the address of one in an object store."""
    return typer.Option(*names, parser=place, metavar="PLACE", help=what)


LogOption = Annotated[Any, place_option("--log-dir", what="Log of the service.")]
DEFAULT_LOG = Path(".m3/log")

log_app = one_command(
    "log", help="Look at the decision log, compact it, erase from it.", no_args_is_help=True
)


@contextmanager
def _told() -> Iterator[None]:
    """Turn what is wrong with a folder into an error of one line."""
    from router.log import LogBusy, NewerLog

    try:
        yield
    except (LogBusy, NewerLog) as error:
        raise TrainingError(str(error)) from error


@log_app.command()
def compact(
    log_dir: LogOption = DEFAULT_LOG,
    keep_days: Annotated[
        int | None,
        typer.Option(min=1, max=36_500, help="Delete older records and their pictures."),
    ] = None,
) -> None:
    """Turn closed segments into Parquet by day and replica, and take out what was erased.

    Running services do the same every few minutes; what they still write is left to them.
    """
    from router.log import compact as turn
    from router.log.erasing import WAIT_S

    if not log_dir.is_dir():
        raise TrainingError(f"the log folder {log_dir} does not exist; give --log-dir")
    with _told():
        done = turn(log_dir, keep_days=keep_days, wait_s=WAIT_S)
    say(
        f"{done.segments} segments compacted ({done.rows} records), {done.growing} still written; "
        f"{done.erased} erased records taken out; {done.expired} records too old, "
        f"{done.pictures} pictures with them"
    )
    if done.torn:
        say(f"{done.torn} segments ended in half a batch, which was never acknowledged")
    for each in done.skipped:
        say(f"left out: {each}")


@log_app.command()
def stats(
    log_dir: LogOption = DEFAULT_LOG,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Count what a log holds, and name what cannot be read."""
    from router.log.stats import stats as count

    with _told():
        found = count(log_dir)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    table(
        str(log_dir),
        ["records", "rows", "not compacted", "audited", "files", "MB", "first", "last"],
        [
            [
                name, str(here["rows"]), str(here["live_rows"]), str(here.get("audited", "")),
                str(here["parquet_files"]), _megabytes(here["bytes"]),
                (here["first"] or "")[:19], (here["last"] or "")[:19],
            ]
            for name, here in ((name, found[name]) for name in ("decisions", "feedback"))
        ],
    )  # fmt: skip
    live, pictures = found["live"], found["pictures"]
    say(
        f"{live['segments']} segments ({_megabytes(live['bytes'])} MB), {pictures['files']} "
        f"pictures ({_megabytes(pictures['bytes'])} MB), {found['erased_pictures']} erased"
    )
    if found["torn"]:
        say(f"{len(found['torn'])} segments end in half a batch, first: {found['torn'][0]}")
    for each in found["skipped"]:
        say(f"left out: {each['file']}: {each['why']}")


@log_app.command()
def tail(
    log_dir: LogOption = DEFAULT_LOG,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many.")] = 20,
) -> None:
    """Show the newest decisions, the newest last."""
    from router.log.stats import newest

    with _told():
        found = newest(log_dir, lines)
    table(
        f"the newest {len(found)} decisions in {log_dir}",
        ["time", "request", "model", "action", "tokens", "reason", "status", "ms", "audited"],
        [
            [
                f"{row['time_utc']:%Y-%m-%d %H:%M:%S}", row["request_id"], row["model"],
                ", ".join(row["actions"] or [str(row["scale"])]), str(row["visual_tokens"]),
                row["reason"], row["status"], f"{row['total_ms']:.0f}",
                "yes" if row["audited"] else "",
            ]
            for row in found
        ],
    )  # fmt: skip


@log_app.command()
def audit(
    rate: Annotated[
        float | None, typer.Argument(help="Share of the requests, 0 to 1; left out: show it.")
    ] = None,
    log_dir: LogOption = DEFAULT_LOG,
    reset: Annotated[
        bool, typer.Option("--reset", help="Back to what each service was started with.")
    ] = False,
) -> None:
    """Change which share of the requests running services audit.

    They follow within seconds. Labels of times with a larger share weigh more.
    """
    from router.log.auditing import read_audit_rate, write_audit_rate

    if not log_dir.is_dir():
        raise TrainingError(f"the log folder {log_dir} does not exist; give --log-dir")
    if reset and rate is not None:
        raise TrainingError("give a share or --reset, not both")
    try:
        if reset or rate is not None:
            write_audit_rate(log_dir, rate)
        told = read_audit_rate(log_dir)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    say("audited: " + ("as each service was started" if told is None else f"{told:g}"))


@log_app.command()
def erase(
    picture_id: Annotated[str, typer.Argument(help="As in picture_ids of the records.")],
    log_dir: LogOption = DEFAULT_LOG,
    oracle: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of `collect` to take it out of as well; repeat for several."),
    ] = None,
) -> None:
    """Erase a picture, every record about it and the feedback on those.

    From the first moment on no reader sees them. The picture is not kept again, either.
    """
    from router.log import erase as take_out

    if not picture_id.isalnum():
        raise TrainingError(f"{picture_id!r} is no picture's id, which is letters and digits")
    if not log_dir.is_dir():
        raise TrainingError(f"the log folder {log_dir} does not exist; give --log-dir")
    with _told():
        done = take_out(log_dir, picture_id, oracle or ())
    say(
        f"erased: {done.pictures} pictures, {done.decisions} decisions, {done.feedback} feedback, "
        f"{done.oracle} labels"
    )
    if not (done.pictures or done.decisions or done.feedback or done.oracle or done.growing):
        say(f"nothing here names {picture_id}; should such a picture come, it is not kept")
    if done.growing:
        say(
            f"{done.growing} records are in files that running services write: no reader sees "
            "them, and the services take them out within seconds"
        )
    if done.left:
        raise TrainingError(
            f"{len(done.left)} files cannot be read and may hold it, first {done.left[0]}; mend or "
            "delete them and erase again"
        )


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f}"
