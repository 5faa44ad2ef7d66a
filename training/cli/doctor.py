"""`m3-train doctor`: is the router in force still fit for its traffic, and what to do if not.

Knows flags and the table; what is examined is training.drift's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m3model.terminal import say, table
from router.registry import DEFAULT_REGISTRY
from training.cli.log import DEFAULT_LOG, place_option
from training.cli.versions import (
    RegistryOption,
    WhoOption,
    WhyOption,
    user,
)
from training.errors import TrainingError

if TYPE_CHECKING:
    from training.drift.doctor import Examination

BAD = 1  # exit status


def doctor(
    log: Annotated[
        Any,
        place_option("--log", what="Log of the service; .m3/log if left out and there is one."),
    ] = None,
    oracle: Annotated[
        list[Path] | None,
        typer.Option("--oracle", help="Labels of its audits, by collect; repeat for several."),
    ] = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    router: Annotated[
        Path | None,
        typer.Option(help="The service's --router, live where nothing was promoted."),
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write what was found there too.")
    ] = None,
    apply: Annotated[
        bool,
        typer.Option(
            "--apply",
            help="Where answers are lost, hold the router to a safer price, or to the finest scale "
            "where no price is shown to be safe; running services follow.",
        ),
    ] = False,
    lift: Annotated[
        bool, typer.Option("--lift", help="End such a restriction, and look at nothing else.")
    ] = False,
    who: WhoOption = None,
    why: WhyOption = None,
) -> None:
    """Examine the router in force: log, drift, accuracy.

    The exit status is 1 where something is bad, 0 where nothing is.
    """
    from training.drift.doctor import examine
    from training.files import write_json
    from training.registry.restrictions import restrict

    if lift:
        if apply or log or oracle or router or json_out:
            raise TrainingError("--lift goes with --registry, --who and --why alone")
        ended = restrict(None, registry, who=who or user(), why=why or "lifted")
        say("the router is restricted no more" if ended else "the router was not restricted")
        return
    if log is None and DEFAULT_LOG.is_dir():
        log = DEFAULT_LOG
    found = examine(log, oracle or (), registry, router)
    _show(found)
    if json_out is not None:
        json_out.parent.mkdir(parents=True, exist_ok=True)
        write_json(json_out, found.as_dict())
    if found.advised is not None and apply:
        restrict(
            found.advised, registry, expect=found.in_force, who=who or user(), why=why or ""
        )  # fmt: skip
    _say(found, applied=apply)
    if not found.healthy:
        raise typer.Exit(BAD)


def _show(found: Examination) -> None:
    table(
        f"{found.name or 'the router in force'} {found.version}".strip(),
        ["check", "", "what was found", "what to do"],
        [[each.name, each.verdict, each.says, each.do] for each in found.checks],
    )


def _say(found: Examination, *, applied: bool) -> None:
    if found.advised is None:
        if applied:
            say("nothing is restricted: no answers are shown to be lost")
        return
    price = found.advised.price
    to = "the finest scale: no price is shown to be safe" if price is None else f"price {price:.5g}"
    held = "is held to" if applied else "should be held to (doctor --apply)"
    say(f"the router in force {held} {to}")
