"""`m3-train list`, `diff`, `gc`, `quarantine`, `canary`, `shadow`: what a registry holds and tries.

Knows flags and tables; what they show and do is training.registry's and training.trials'.
"""

from __future__ import annotations

import getpass
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m3model.terminal import say, table
from router.errors import RouterFileError
from router.places import Place
from router.registry import DEFAULT_REGISTRY, JOURNAL, TrialKind, strangers
from training.cli.log import DEFAULT_LOG, place_option
from training.errors import GateClosed, TrainingError

if TYPE_CHECKING:
    from training.trials.judging import Judgement


WhoOption = Annotated[str | None, typer.Option(help="For the journal; else user and host.")]
WhyOption = Annotated[str | None, typer.Option(help="For the journal: the reason, in a sentence.")]
ExpectOption = Annotated[
    str | None,
    typer.Option(help="Only while this is in force: folder name, router version, or start."),
]
# typer takes no unions: the parameters are of type Place.
RegistryOption = Annotated[Any, place_option("--registry", what="Registry of routers.")]
RouterArgument = Annotated[
    Path | None, typer.Argument(help="Router folder to try; left out with the flags below.")
]
StopOption = Annotated[bool, typer.Option("--stop", help="End the trial.")]
QuarantineOption = Annotated[
    bool, typer.Option("--quarantine", help="With --stop: keep the router from coming back.")
]
TrialLogOption = Annotated[
    Any, place_option("--log-dir", what=f"Log of the service; {DEFAULT_LOG} if left out.")
]
WHAT_APPLY_DOES = {
    "fit": "would promote it",
    "worse": "would end and quarantine it",
    "open": "would let it go on",
}


def list_versions(registry: RegistryOption = DEFAULT_REGISTRY) -> None:
    """Show the registry's routers: which is in force, and why."""
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
    """Show in what two routers differ: settings, data, figures."""
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
    """Remove old routers, but none in force or for a rollback.

    What is in quarantine stays there.
    """
    from training.registry.versions import clear_away

    removed = clear_away(registry, keep)
    say(f"removed: {', '.join(removed) or 'nothing'}")


def canary(
    router: RouterArgument = None,
    share: Annotated[
        float | None, typer.Option(help="Of the sessions, at most half; 0.1 if left out.")
    ] = None,
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
        bool, typer.Option("--judge", help="Say how it stands: by the log, and audits if given.")
    ] = False,
    apply: Annotated[
        bool,
        typer.Option("--apply", help="With --judge: promote it, or end it and quarantine it."),
    ] = False,
    watch: Annotated[
        float | None,
        typer.Option(min=0.0, help="Judge by the log every so many seconds; end it if it is bad."),
    ] = None,
    most_tokens: Annotated[
        float | None,
        typer.Option(min=0.0, help="Times the live router's tokens that it may take; else 1.1."),
    ] = None,
    log_dir: TrialLogOption = None,
    expect: ExpectOption = None,
    who: WhoOption = None,
    why: WhyOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Try it whatever model, recipe and audits say.")
    ] = False,
) -> None:
    """Let a router answer a share of the sessions, and judge it.

    Every running encoder loads it; the whole gate is asked when it is promoted.
    """
    begins, judges, watches = router is not None, judge, watch is not None
    _one_of(begins, stop=stop, judge=judge, watch=watches)
    _refuse_idle(
        share=(share, begins), force=(force, begins), quarantine=(quarantine, stop),
        apply=(apply, judges), reference=(reference, judges), oracle=(oracle, begins or judges),
        incumbent=(incumbent, begins or judges), log_dir=(log_dir, judges or watches),
        most_tokens=(most_tokens, judges or watches), expect=(expect, begins or stop),
        why=(why, not watches and not (judges and not apply)), who=(who, not judges or apply),
    )  # fmt: skip
    who, times = who or user(), 1.1 if most_tokens is None else most_tokens
    if router is not None:
        from training.trials.accuracy import why_unservable

        fault = None if force else why_unservable(router, registry, oracle or (), incumbent)
        if fault is not None:
            raise GateClosed(f"not tried: {fault} (--force tries it all the same)")
        _begin("canary", router, 0.1 if share is None else share, registry, expect, who, why, force)
        say("the gate is asked when it is promoted")
    elif stop:
        _end("canary", registry, quarantine, expect, who, why)
    elif watch is not None:
        _watched(registry, log_dir or DEFAULT_LOG, times, watch, who)
    else:
        from training.trials.judging import act_on, judged

        log = log_dir or (DEFAULT_LOG if DEFAULT_LOG.is_dir() else None)
        found = judged(
            registry, log, oracle or (),
            most_tokens=times, incumbent=incumbent, reference=reference,
        )  # fmt: skip
        _tell(found)
        say(
            act_on(found, registry, who=who, why=why or "")
            if apply
            else f"{found.standing}: --apply {WHAT_APPLY_DOES[found.standing]}"
        )


def shadow(
    router: RouterArgument = None,
    share: Annotated[
        float | None, typer.Option(help="Of the requests; 1, all, if left out.")
    ] = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    stop: StopOption = False,
    quarantine: QuarantineOption = False,
    report: Annotated[
        bool, typer.Option("--report", help="Say from the log where it would do otherwise.")
    ] = False,
    log_dir: TrialLogOption = None,
    expect: ExpectOption = None,
    who: WhoOption = None,
    why: WhyOption = None,
) -> None:
    """Let a router decide beside the one in force, for the log."""
    begins = router is not None
    _one_of(begins, stop=stop, report=report)
    _refuse_idle(
        share=(share, begins), quarantine=(quarantine, stop), log_dir=(log_dir, report),
        expect=(expect, not report), who=(who, not report), why=(why, not report),
    )  # fmt: skip
    if router is not None:
        whole = 1.0 if share is None else share
        _begin("shadow", router, whole, registry, expect, who or user(), why)
    elif stop:
        _end("shadow", registry, quarantine, expect, who or user(), why)
    else:
        _tell_shadows(log_dir or DEFAULT_LOG)


def _one_of(begins: bool, **flags: bool) -> None:
    """Raise unless one thing is to be done."""
    if begins + sum(flags.values()) != 1:
        told = ", ".join(f"--{name}" for name in flags)
        raise TrainingError(f"give ROUTER, or one of {told}")


def _refuse_idle(**options: tuple[object, bool]) -> None:
    """Raise for an option that was given where it would do nothing."""
    for name, (given, is_used) in options.items():
        if given not in (None, False) and not is_used:
            raise TrainingError(f"--{name.replace('_', '-')} does nothing here; leave it out")


def _begin(
    kind: TrialKind, router: Path, share: float, registry: Place, expect: str | None, who: str,
    why: str | None, force: bool = False,
) -> None:  # fmt: skip
    from training.registry.changes import try_out

    folder = try_out(
        router, kind, share, registry, expect=expect, who=who, why=why or "", forced=force
    )
    tell_strangers(registry)
    say(f"{kind} on {share:.3g} of the {'sessions' if kind == 'canary' else 'requests'}: {folder}")


def _end(
    kind: TrialKind, registry: Place, bad: bool, expect: str | None, who: str, why: str | None
) -> None:
    from training.registry.changes import end_trial

    tried = end_trial(kind, registry, bad=bad, expect=expect, who=who, why=why or "")
    say(f"ended: {tried}{', now in quarantine' if bad else ''}")


def _watched(registry: Place, log: Place, most_tokens: float, every_s: float, who: str) -> None:
    """Judge by the log until the trial has ended; end it, if it is bad."""
    from training.registry.changes import on_trial
    from training.trials.judging import act_on, goes_on, judged

    tried = on_trial(registry, "canary").router
    while True:
        try:
            if not goes_on(registry, tried):
                break
            found = judged(registry, log, most_tokens=most_tokens)
            _tell(found)
            if found.standing == "worse":
                say(act_on(found, registry, who=who))
                return
        except (OSError, RouterFileError) as error:  # a disk's bad minute must not end the watch
            say(f"looked in vain: {error}")
        time.sleep(every_s)
    say("the trial has ended")


def _tell(found: Judgement) -> None:
    if found.findings:
        canary, live = found.requests
        table(
            f"{canary} requests of the canary beside {live} of the live router",
            ["", "canary", "live", "evidence (1 ends it)"],
            [
                [f.name, f"{f.canary:.4g}", f"{f.live:.4g}", f"{f.evidence:.3g}"]
                for f in found.findings
            ],
        )
        if not found.knows_time:
            say("time is not judged: too few requests came before the trial")
    if found.verdict is not None:
        for line in (*found.verdict.notes, f"by audits: {found.verdict.sentence}"):
            say(line)


def _tell_shadows(log_dir: Place) -> None:
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


def quarantine(
    version: Annotated[
        str, typer.Argument(help="Router that shall not come (back) into force, promoted or not.")
    ],
    registry: RegistryOption = DEFAULT_REGISTRY,
    who: WhoOption = None,
    why: WhyOption = None,
) -> None:
    """Keep a router from coming (back) into force.

    A trial of it ends. Only promote --force takes it out of quarantine again.
    """
    from training.registry.changes import quarantine as keep_out

    keep_out(version, registry, who=who or user(), why=why or "")
    tell_strangers(registry)
    say(f"in quarantine: {version}")


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
