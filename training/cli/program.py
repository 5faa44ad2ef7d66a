"""`m3-train`: the offline tools on the command line.

Knows flags, progress bars and which errors are a user's to mend; each command imports what it runs
when it runs, so that `--help` is quick. Commands are registered in the order of their use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from m3model.errors import CheckpointMismatch, RelevanceUnavailable
from m3model.terminal import bar, commands, run, say, table
from router.errors import FeatureMismatch, RouterFileError
from router.places import NoPlace
from router.registry import DEFAULT_REGISTRY
from training.cli.bench import bench
from training.cli.certify import certify
from training.cli.collect import (
    ModelOption,
    SkipBadOption,
    WorkersOption,
    collect,
    import_lmms_eval,
    model_folder,
    router_folder,
)
from training.cli.doctor import doctor
from training.cli.log import log_app, place_option
from training.cli.model import model as train_model
from training.cli.readout import readout
from training.cli.replay import replay
from training.cli.versions import (
    ExpectOption,
    RegistryOption,
    WhoOption,
    WhyOption,
    canary,
    diff,
    gc,
    list_versions,
    quarantine,
    shadow,
    tell_strangers,
    user,
)
from training.errors import GateClosed, TrainingError

if TYPE_CHECKING:
    from training.fitting.predictor import Grow

MODEL, ROUTER, IN_FORCE, OTHERS = "A model", "Its router", "The router in force", "For others"

app = commands(
    "m3-train", "Train M3 models, collect oracle data, fit, judge and promote their routers."
)

OracleOption = Annotated[
    list[Path], typer.Option("--oracle", help="Folder of `collect`; repeat for several.")
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder to write.")]
RouterOption = Annotated[Path, typer.Option("--router", help="Router folder.")]
CostOption = Annotated[Literal["tokens", "flops"], typer.Option(help="What a scale costs.")]
SecondLookOption = Annotated[
    bool, typer.Option("--second-look", help="Also fit when to look finer after an answer.")
]
IncumbentOption = Annotated[
    Path | None,
    typer.Option(help="The service's --router, live where nothing was promoted; else the shipped."),
]
ReferenceOption = Annotated[
    Path | None,
    typer.Option(help="Router that candidates may never be worse than; else the shipped one."),
]
TargetOption = Annotated[
    float, typer.Option("--target", help="Share of the finest scale's accuracy to keep.")
]


app.command("model", rich_help_panel=MODEL)(train_model)
app.command("readout", rich_help_panel=MODEL)(readout)
app.command("collect", rich_help_panel=ROUTER)(collect)
app.command("import-lmms-eval", rich_help_panel=ROUTER)(import_lmms_eval)


@app.command(rich_help_panel=ROUTER)
def fit(
    oracle: OracleOption,
    out: OutOption,
    target: TargetOption = 0.995,
    cost: CostOption = "tokens",
    labels: Annotated[
        Literal["auto", "soft", "hard"], typer.Option(help="What the predictor learns.")
    ] = "auto",
    second_look: SecondLookOption = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Fit on a Ray cluster: auto (of RAY_ADDRESS, or here), host:port, or local.",
        ),
    ] = None,
) -> None:
    """Fit a router on oracle data: boosters, calibration, price."""
    from training.drift.population import write_population
    from training.fitting.fit import fit as fit_router
    from training.oracle.data import read_oracle
    from training.promotion.seen import write_seen

    data = read_oracle(oracle)
    with _growing(ray) as grow, bar("fitting", "steps") as move:
        result = fit_router(
            data, target=target, cost=cost, labels=labels, second_look=second_look,
            progress=move, grow=grow,
        )  # fmt: skip
    result.router.save_pretrained(out)
    write_seen(out, data)
    write_population(out, result.router, data)
    here = result.metrics["on_calibration"]
    table(
        "calibration pictures (the price was chosen on them: optimistic)",
        ["policy", "accuracy", "visual tokens", "calibration error"],
        [
            [
                f"always {r['scale']}",
                f"{r['accuracy']:.3f}",
                f"{r['visual_tokens']:.4g}",
                f"{r['ece']:.3f}",
            ]
            for r in here["per_scale"]
        ]
        + [["router", f"{here['accuracy']:.3f}", f"{here['visual_tokens']:.1f}", ""]],
    )
    if (look := result.router.second_look) is not None:
        facts = look.facts
        say(
            f"second look: accuracy {facts['accuracy']:.3f} at {facts['cost']:.4f} of the finest's "
            f"cost, both looks counted (single look {facts['single_look_cost']:.4f}); "
            f"{facts['looked_again']:.1%} of the questions are asked twice"
        )
    for line in result.advice:
        say(line)
    say(f"router {result.router.version} in {out}")


@contextmanager
def _growing(ray: str | None) -> Iterator[Grow | None]:
    """Yield what fits boosters; None: this process."""
    if ray is None:
        yield None
        return
    from training.fitting import on_ray

    with on_ray.cluster(ray):
        yield on_ray.grow


@app.command(rich_help_panel=ROUTER)
def evaluate(
    oracle: OracleOption,
    out: OutOption,
    router: Annotated[
        Path | None, typer.Option(help="Router folder; the shipped one if left out.")
    ] = None,
    target: TargetOption = 0.995,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 2000,
) -> None:
    """Judge a router on test pictures beside every baseline.

    Writes report.json, report.md and plots.
    """
    from router.router import Router
    from training.evaluation.evaluate import evaluate as judge
    from training.evaluation.report import NAMES, side_by_side, write_report
    from training.oracle.data import read_oracle

    folder = router_folder(router)
    before, data = Router.from_pretrained(folder), read_oracle(oracle)
    with bar("evaluating", "steps") as move:
        report = judge(before, data, target=target, resamples=resamples, say=say, progress=move)
    write_report(report, out)
    rows = [
        [f"always {p['action']}", f"{p['accuracy']:.3f}", f"{p['visual_tokens']:.4g}"]
        for p in report["actions"]
    ]
    points = {"router": report["router"], **report["baselines"]}
    rows += [
        [NAMES.get(name, name), f"{p['accuracy']:.3f}", f"{p['visual_tokens']:.1f}"]
        for name, p in points.items()
    ]
    table(f"{report['n_questions']} test questions", ["policy", "accuracy", "visual tokens"], rows)
    columns, beside = side_by_side(report)
    if beside:
        table("scales and foci beside scales alone", columns, beside)
    say(f"report in {out}")


app.command("replay", rich_help_panel=ROUTER)(replay)
app.command("certify", rich_help_panel=ROUTER)(certify)


@app.command(rich_help_panel=IN_FORCE)
def promote(
    router: RouterOption,
    registry: RegistryOption = DEFAULT_REGISTRY,
    oracle: Annotated[
        list[Path] | None,
        typer.Option(help="Gate: fresh audits that must show it fit to replace what is live."),
    ] = None,
    incumbent: IncumbentOption = None,
    reference: ReferenceOption = None,
    verdict: Annotated[
        Path | None, typer.Option(help="Folder to write the gate's verdict to.")
    ] = None,
    expect: ExpectOption = None,
    report: Annotated[
        Path | None, typer.Option(help="Report that speaks for it, to keep: what evaluate wrote.")
    ] = None,
    who: WhoOption = None,
    why: WhyOption = None,
    force: Annotated[
        bool, typer.Option(help="Whatever the gate or a quarantine says; the journal keeps it.")
    ] = False,
) -> None:
    """Put a router in force, past the gate; services take over."""
    from training.drift.attempts import counted
    from training.promotion.gate import at_the_gate
    from training.promotion.verdict_report import closed, said_of, write_verdict
    from training.registry.changes import current_router_path
    from training.registry.changes import promote as put_in_force
    from training.registry.names import START

    current = None if force else current_router_path(registry)
    found = at_the_gate(router, registry, oracle or (), incumbent=incumbent, reference=reference)
    found = counted(found, registry, who or user())
    for note in found.notes:
        say(note)
    if verdict is not None:
        write_verdict(found, verdict, forced=force and not found.passed)
    if not found.passed and not force:
        raise GateClosed(closed(found, verdict))
    if expect is None and not force:  # the gate's word holds against what it was given for
        expect = START if current is None else current.name
    why = "; ".join(filter(None, (why, said_of(found))))
    folder = put_in_force(
        router, registry, expect=expect, who=who or user(), why=why, report=report, force=force
    )
    tell_strangers(registry)
    say(f"{said_of(found)}; in force: {folder}")


@app.command(rich_help_panel=IN_FORCE)
def rollback(
    registry: RegistryOption = DEFAULT_REGISTRY,
    expect: ExpectOption = None,
    who: WhoOption = None,
    why: WhyOption = None,
) -> None:
    """Put back the router before; quarantine the one in force."""
    from training.registry.changes import rollback as go_back

    folder = go_back(registry, expect=expect, who=who or user(), why=why or "")
    tell_strangers(registry)
    say(f"in force: {folder or 'the router that services start with, shipped or --router'}")


app.command("canary", rich_help_panel=IN_FORCE)(canary)
app.command("shadow", rich_help_panel=IN_FORCE)(shadow)
app.command("quarantine", rich_help_panel=IN_FORCE)(quarantine)
app.command("list", rich_help_panel=IN_FORCE)(list_versions)
app.command("diff", rich_help_panel=IN_FORCE)(diff)
app.command("gc", rich_help_panel=IN_FORCE)(gc)


@app.command(rich_help_panel=IN_FORCE)
def retrain(
    from_log: Annotated[Any, place_option("--from-log", what="Log of the service.")],
    out: OutOption,
    model: ModelOption = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    oracle: Annotated[list[Path] | None, typer.Option(help="More oracle data to fit on.")] = None,
    router: Annotated[
        Path | None,
        typer.Option(help="The service's --router, live where nothing was promoted."),
    ] = None,
    reference: ReferenceOption = None,
    target: Annotated[
        float | None,
        typer.Option(help="Share of the finest scale's accuracy to keep; else as the live router."),
    ] = None,
    cost: Annotated[
        Literal["tokens", "flops"] | None,
        typer.Option(help="What a scale costs; else as the live router."),
    ] = None,
    max_harm: Annotated[
        float | None,
        typer.Option(help="Bound on lost answers to certify; else as the live router."),
    ] = None,
    workers: WorkersOption = None,
    second_look: Annotated[
        bool | None,
        typer.Option(
            "--second-look/--no-second-look",
            help="Whether to look finer after an answer; else as the live router.",
        ),
    ] = None,
    who: WhoOption = None,
    force: Annotated[bool, typer.Option(help="Promote whatever the gate says.")] = False,
    skip_bad: SkipBadOption = False,
) -> None:
    """Collect from a log, fit, evaluate and promote in one go.

    Into the same --out it labels only what the log has gained. Target, cost, second look and
    certificate are the live router's unless told otherwise.
    """
    from training.promotion.retrain import RetrainJob
    from training.promotion.retrain import retrain as learn
    from training.promotion.verdict_report import said_of

    job = RetrainJob(
        from_log, model_folder(model), out, registry, tuple(oracle or ()),
        target, cost, second_look, max_harm, router, reference, workers, force, who or user(),
        skip_bad,
    )  # fmt: skip
    with bar("retraining", "steps") as move:
        result = learn(job, progress=move, say=say)
    say(said_of(result.verdict))
    here = result.report["router"]
    say(
        f"router {result.version} in force: {result.promoted}; test accuracy "
        f"{here['accuracy']:.3f} at {here['visual_tokens']:.1f} visual tokens"
    )


app.command("doctor", rich_help_panel=IN_FORCE)(doctor)
app.add_typer(log_app, rich_help_panel=IN_FORCE)
app.command("bench", rich_help_panel=OTHERS)(bench)


def main() -> None:
    """Run the command line; what a user can mend is one line and exit code 2."""
    run(
        app, TrainingError, RouterFileError, FeatureMismatch, CheckpointMismatch,
        RelevanceUnavailable, NoPlace, OSError,
    )  # fmt: skip
