"""`m3-train list`, `diff`, `gc` and `quarantine`: what a registry holds, how two routers differ,
clearing away, keeping one out.

Knows flags and tables; what they show is training.registry.versions'.
"""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from m3model.terminal import say, table
from router.registry import DEFAULT_REGISTRY, JOURNAL, strangers

WhoOption = Annotated[str | None, typer.Option(help="For the journal; else user and host.")]
WhyOption = Annotated[str | None, typer.Option(help="For the journal: the reason, in a sentence.")]
ExpectOption = Annotated[
    str | None,
    typer.Option(help="Only while this is in force: folder name, router version, or start."),
]
RegistryOption = Annotated[Path, typer.Option("--registry", help="Registry of routers.")]


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


def quarantine(
    version: Annotated[
        str, typer.Argument(help="Router that shall not come (back) into force, promoted or not.")
    ],
    registry: RegistryOption = DEFAULT_REGISTRY,
    who: WhoOption = None,
    why: WhyOption = None,
) -> None:
    """Keep a router that is not in force from coming (back) into force.

    A trial of it ends. Only promote --force takes it out of quarantine again.
    """
    from training.registry.changes import quarantine as keep_out

    keep_out(version, registry, who=who or user(), why=why or "")
    tell_strangers(registry)
    say(f"in quarantine: {version}")


def tell_strangers(registry: Path) -> None:
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
