"""`m3-train list`, `diff`, `gc`, `canary` and `shadow`: what a registry holds, and what is tried.

Knows flags and tables; what they show and do is training.registry's and training.trials'.
"""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m3model.terminal import say, table
from router.registry import DEFAULT_REGISTRY, JOURNAL, last_entry, strangers
from training.cli.log import DEFAULT_LOG, LogOption
from training.errors import GateClosed, TrainingError

if TYPE_CHECKING:
    from training.trials.operations import Finding

WhoOption = Annotated[str | None, typer.Option(help="For the journal; else user and host.")]
WhyOption = Annotated[str | None, typer.Option(help="For the journal: the reason, in a sentence.")]
ExpectOption = Annotated[
    str | None,
    typer.Option(help="Only while this is in force: folder name, router version, or start."),
]
RegistryOption = Annotated[Path, typer.Option("--registry", help="Registry of routers.")]
RouterArgument = Annotated[
    Path | None, typer.Argument(help="Router folder to try; left out with the flags below.")
]
StopOption = Annotated[bool, typer.Option("--stop", help="End the trial.")]
QuarantineOption = Annotated[
    bool, typer.Option("--quarantine", help="With --stop: keep the router from coming back.")
]
TokensOption = Annotated[
    float,
    typer.Option(min=0.0, help="Times the live router's visual tokens that a canary may take."),
]


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


def canary(
    router: RouterArgument = None,
    share: Annotated[float, typer.Option(help="Of the sessions, at most half.")] = 0.1,
    registry: RegistryOption = DEFAULT_REGISTRY,
    oracle: Annotated[
        list[Path] | None, typer.Option(help="Audits to judge it by; repeat for several.")
    ] = None,
    incumbent: Annotated[
        Path | None,
        typer.Option(help="The service's --router, live where nothing was promoted."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Router that it may not be worse than; else the shipped.")
    ] = None,
    stop: StopOption = False,
    quarantine: QuarantineOption = False,
    judge: Annotated[
        bool, typer.Option("--judge", help="Say how it stands: log, and audits where given.")
    ] = False,
    apply: Annotated[
        bool,
        typer.Option("--apply", help="With --judge: promote it, or end it and quarantine it."),
    ] = False,
    watch: Annotated[
        float | None,
        typer.Option(min=0.0, help="Judge by the log every so many seconds; ends it if bad."),
    ] = None,
    most_tokens: TokensOption = 1.1,
    log_dir: LogOption = DEFAULT_LOG,
    expect: ExpectOption = None,
    who: WhoOption = None,
    why: WhyOption = None,
    force: Annotated[
        bool, typer.Option(help="Begin whatever model, recipe and audits say.")
    ] = False,
) -> None:
    """Let a router answer a share of the sessions, judge it, end it.

    A canary is loaded by every running encoder; the gate is asked when it is promoted.
    """
    from training.registry.changes import end_trial, on_trial, try_out
    from training.trials.accuracy import standing, why_unservable

    _one_of(router is not None, "ROUTER", stop=stop, judge=judge, watch=watch is not None)
    if (quarantine and not stop) or (apply and not judge):
        raise TrainingError("--quarantine goes with --stop, and --apply with --judge")
    who = who or user()
    if stop:
        tried = end_trial("canary", registry, bad=quarantine, expect=expect, who=who, why=why or "")
        say(f"ended: {tried}{', now in quarantine' if quarantine else ''}")
        return
    if router is not None:
        fault = None if force else why_unservable(router, registry, oracle or (), incumbent)
        if fault is not None:
            raise GateClosed(f"not tried: {fault} (--force tries it all the same)")
        folder = try_out(
            router, "canary", share, registry,
            expect=expect, who=who, why=why or "", forced=force,
        )  # fmt: skip
        tell_strangers(registry)
        say(f"canary on {share:.3g} of the sessions: {folder}; the gate is asked at promotion")
        return
    tried = on_trial(registry, "canary").router
    if watch is not None:
        _watched(registry, tried, log_dir, most_tokens, watch, who)
        return
    from training.promotion.gate import at_the_gate
    from training.promotion.verdict_report import said_of

    found = _operations(registry, tried, log_dir, most_tokens) if log_dir.is_dir() else ()
    verdict = None
    if oracle:
        verdict = at_the_gate(
            registry / tried, registry, oracle, incumbent=incumbent, reference=reference
        )
        for note in verdict.notes:
            say(note)
        say(f"accuracy: {standing(verdict)}; {verdict.sentence}")
    bad = [each.sentence for each in found if each.worse]
    if verdict is not None and standing(verdict) == "worse":
        bad.append(verdict.sentence)
    if not apply:
        say(
            "apply would end and quarantine it"
            if bad
            else _would(verdict is not None and verdict.passed)
        )
    elif bad:
        _end_bad(registry, tried, bad, who)
    elif verdict is not None and verdict.passed:
        from training.registry.changes import promote
        from training.registry.names import START

        entry = last_entry(registry)
        current = START if entry is None or entry.to is None else entry.to
        folder = promote(
            registry / tried, registry, expect=expect or current, who=who,
            why="; ".join(filter(None, (why, said_of(verdict)))),
        )  # fmt: skip
        say(f"{said_of(verdict)}; in force: {folder}")
    else:
        say("neither shown fit nor shown worse: the trial goes on")


def shadow(
    router: RouterArgument = None,
    share: Annotated[float, typer.Option(help="Of the requests.")] = 1.0,
    registry: RegistryOption = DEFAULT_REGISTRY,
    stop: StopOption = False,
    quarantine: QuarantineOption = False,
    report: Annotated[
        bool, typer.Option("--report", help="Say from the log where it would do otherwise.")
    ] = False,
    log_dir: LogOption = DEFAULT_LOG,
    expect: ExpectOption = None,
    who: WhoOption = None,
    why: WhyOption = None,
) -> None:
    """Let a router decide beside the one in force, changing nothing."""
    from training.registry.changes import end_trial, try_out

    _one_of(router is not None, "ROUTER", stop=stop, report=report)
    if quarantine and not stop:
        raise TrainingError("--quarantine goes with --stop")
    if report:
        _tell_shadows(log_dir)
    elif router is not None:
        folder = try_out(
            router, "shadow", share, registry, expect=expect, who=who or user(), why=why or ""
        )
        tell_strangers(registry)
        say(f"shadow on {share:.3g} of the requests: {folder}")
    else:
        tried = end_trial(
            "shadow", registry, bad=quarantine, expect=expect, who=who or user(), why=why or ""
        )
        say(f"ended: {tried}{', now in quarantine' if quarantine else ''}")


def _one_of(given: bool, argument: str, **flags: bool) -> None:
    """Raise unless one thing is to be done."""
    if given + sum(flags.values()) != 1:
        told = ", ".join(f"--{name}" for name in flags)
        raise TrainingError(f"give {argument}, or one of {told}")


def _operations(registry: Path, tried: str, log_dir: Path, most_tokens: float) -> Sequence[Finding]:
    """Return how a canary compares in the log, told as a table."""
    from router.router import Router
    from training.trials.operations import findings, traffic_of

    router = Router.from_pretrained(registry / tried)
    traffic = traffic_of(log_dir, router.version, router.scales[-1])
    found = findings(traffic, most_tokens)
    n_canary = int(traffic.canary.sum())
    table(
        f"{n_canary} requests of the canary beside {len(traffic.canary) - n_canary}",
        ["", "canary", "live", "evidence (1 ends it)"],
        [[f.name, f"{f.canary:.4g}", f"{f.live:.4g}", f"{f.evidence:.3g}"] for f in found],
    )
    if traffic.slow is None:
        say("time is not judged: too few requests came before the trial")
    return found


def _watched(
    registry: Path, tried: str, log_dir: Path, most_tokens: float, every_s: float, who: str
) -> None:
    """Judge by the log until the trial has ended; end it, if it is bad."""
    while True:
        entry = last_entry(registry)
        trial = None if entry is None else entry.trial
        if trial is None or (trial.kind, trial.router) != ("canary", tried):
            say("the trial has ended")
            return
        found = _operations(registry, tried, log_dir, most_tokens)
        if bad := [each.sentence for each in found if each.worse]:
            _end_bad(registry, tried, bad, who)
            return
        time.sleep(every_s)


def _end_bad(registry: Path, tried: str, bad: Sequence[str], who: str) -> None:
    from training.registry.changes import quarantine

    why = f"as a canary: {'; '.join(bad)}"
    quarantine(tried, registry, who=who, why=why)
    say(f"ended and in quarantine: {tried}, {why}")


def _would(fit: bool) -> str:
    return "apply would promote it" if fit else "apply would let the trial go on"


def _tell_shadows(log_dir: Path) -> None:
    from training.trials.shadows import report

    for found in report(log_dir):
        failed = "".join(f", {n} failed ({kind})" for kind, n in found.failed.items())
        if not found.decided:
            say(f"router {found.version}: nothing decided{failed}")
            continue
        rows = [
            [" ".join(served), " ".join(shadow), str(n), f"{saved / n:+.1f}"]
            for served, shadow, n, saved in found.commonest()
        ]
        differ, n = found.decided - found.same, found.decided
        table(
            f"router {found.version}: {differ} of {n} requests read otherwise, "
            f"{found.shadow_tokens / n:.1f} visual tokens for {found.served_tokens / n:.1f}, "
            f"{found.ms / n:.2f} ms each{failed}",
            ["served", "shadow", "requests", "tokens saved each"],
            rows,
        )


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
