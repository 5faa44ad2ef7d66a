"""`m3-train list`, `diff` and `gc`: what a registry holds, how two routers differ, clearing away.

Knows flags and tables; what they show is training.registry.versions'.
"""

from __future__ import annotations

import getpass
import os
import socket
from typing import Annotated, Any

import typer

from m3model.terminal import say, table
from router.places import NoPlace, Place, as_place
from router.registry import DEFAULT_REGISTRY, JOURNAL, strangers


def place(told: str | Place) -> Place:
    """Return the place that a flag's value means."""
    try:
        return as_place(told)
    except NoPlace as error:
        raise typer.BadParameter(str(error)) from error


def place_option(*names: str, what: str) -> Any:
    """Return a flag that takes a folder, or the address of one in an object store."""
    return typer.Option(*names, parser=place, metavar="PLACE", help=what)


WhoOption = Annotated[str | None, typer.Option(help="For the journal; else user and host.")]
WhyOption = Annotated[str | None, typer.Option(help="For the journal: the reason, in a sentence.")]
ExpectOption = Annotated[
    str | None,
    typer.Option(help="Only while this is in force: folder name, router version, or start."),
]
# typer takes no unions: the parameters are of type Place.
RegistryOption = Annotated[Any, place_option("--registry", what="Registry of routers.")]


def list_versions(registry: RegistryOption = DEFAULT_REGISTRY) -> None:
    """Show the registry's routers: which is in force, since when and why."""
    from training.registry.versions import versions

    rows = []
    for version in versions(registry):
        entry = version.entry
        rows.append(
            [
                version.name, ", ".join(version.marks),
                *(["", "", "", ""] if entry is None else [
                    f"{entry.action}{' by force' if entry.forced else ''}",
                    entry.time_utc[:16].replace("T", " "), entry.who, entry.why,
                ]),
                "" if version.accuracy is None else f"{version.accuracy:.3f}",
                "" if version.visual_tokens is None else f"{version.visual_tokens:.1f}",
            ]
        )  # fmt: skip
    columns = ["version", "", "last", "UTC", "who", "why", "accuracy", "tokens"]
    table(f"routers in {registry}, the last first", columns, rows)
    tell_strangers(registry)


def diff(
    one: Annotated[str, typer.Argument(help="Router in the registry, current, or a folder.")],
    other: Annotated[str, typer.Argument(help="The same.")],
    registry: RegistryOption = DEFAULT_REGISTRY,
) -> None:
    """Show in what two routers differ: settings, data, price, figures."""
    from training.registry.versions import differences

    rows = differences(registry, one, other)
    if rows:
        table("what differs", ["", one, other], rows)
    else:
        say("they do not differ")


def gc(
    registry: RegistryOption = DEFAULT_REGISTRY,
    keep: Annotated[int, typer.Option(min=0, help="Routers to keep, the last promoted.")] = 10,
) -> None:
    """Remove old routers, never what is in force or a rollback needs.

    What is in quarantine stays there.
    """
    from training.registry.versions import clear_away

    removed = clear_away(registry, keep)
    say(f"removed: {', '.join(removed) or 'nothing'}")


def tell_strangers(registry: Place) -> None:
    """Name what lies in the journal's folder and is none of its entries."""
    if names := strangers(registry):
        say(f"no entries of the journal, left alone: {', '.join(names)} in {registry / JOURNAL}")


def user() -> str:
    """Return who is doing this, as far as the machine knows."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"
