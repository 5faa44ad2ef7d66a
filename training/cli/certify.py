"""`m3-train certify`: a promise about a router, proved on calibration pictures, written beside it.

Knows flags and the table; the proof is training.fitting.certify's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m3model.terminal import bar, say, table
from router.registry import DEFAULT_REGISTRY
from training.cli.collect import router_folder
from training.cli.log import place_option
from training.cli.versions import user

if TYPE_CHECKING:
    from router.certificate.promise import Certificate
    from router.certificate.proof import Loss
    from router.router import Router

SHIPPED_OUT = Path("runs/router-certified")


def certify(
    oracle: Annotated[
        list[Path], typer.Option("--oracle", help="Folder of `collect`; repeat for several.")
    ],
    router: Annotated[
        Path | None, typer.Option(help="Router folder; the shipped one if left out.")
    ] = None,
    max_harm: Annotated[
        float | None,
        typer.Option(help="Bound on the share of questions the finest scale answers and we lose."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Bound on the loss of accuracy; rescued answers offset lost ones."),
    ] = None,
    delta: Annotated[
        float, typer.Option(help="Allowed probability that the promise is wrong.")
    ] = 0.05,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder to write; else the router's own, or runs/router-certified.",
        ),
    ] = None,
    keep_price: Annotated[
        bool,
        typer.Option(
            "--keep-price",
            help="Leave the router's price; only requests with routing.max_harm are bound.",
        ),
    ] = False,
    registry: Annotated[
        Any, place_option("--registry", what="Registry that counts attempts, where there is one.")
    ] = DEFAULT_REGISTRY,
) -> None:
    """Prove how many right answers a router loses at most.

    On calibration pictures; the router's price is set to it, unless --keep-price.
    """
    from router.router import Router
    from training.drift.attempts import tried
    from training.drift.population import carry_population
    from training.errors import TrainingError
    from training.fitting.certified import certified_router
    from training.fitting.certify import certify as prove
    from training.oracle.data import read_oracle
    from training.promotion.seen import write_seen

    if max_harm is not None and max_drop is None:
        loss: Loss = "harm"
        bound = max_harm
    elif max_drop is not None and max_harm is None:
        loss, bound = "drop", max_drop
    else:
        raise TrainingError("give exactly one of --max-harm and --max-drop")
    folder = router_folder(router)
    before = Router.from_pretrained(folder)
    data = read_oracle(oracle)
    with bar("certifying", "steps") as move:
        found = prove(before, data, loss=loss, bound=bound, delta=delta, progress=move)
    # The installed package is not the place for a promise about somebody's own traffic.
    target = out or (SHIPPED_OUT if router is None else folder)
    made = certified_router(before, found, keep_price=keep_price)
    try:
        made.save_pretrained(target)
    except OSError as error:
        raise TrainingError(f"cannot write {target}: {error}; give --out DIR") from error
    write_seen(target, data, folder)
    if registry.is_dir() and (n := tried(registry, "certify", before.version, data.data_hash,
                                         user(), bound=bound)) > 1:  # fmt: skip
        say(f"{n} routers were certified or judged on these data: each may be wrong by {delta:g}")
    carry_population(folder, target, made, data)
    _show(found, before)
    for line in _sentences(found, before, keep_price):
        say(line)
    say(f"router {made.version} with its certificate in {target}")


def _show(found: Certificate, router: Router) -> None:
    from training.fitting.certified import price_in_words

    table(
        f"{found.loss} certified at {1 - found.delta:.4g}, {found.pictures} pictures, "
        f"{found.questions} questions, the finest scale right on {found.finest_right or 0:.1%} "
        "(each bound by itself)",
        [f"{found.loss} at most", "price", "visual tokens", f"{found.loss} seen"],
        [
            [
                f"{rung.bound:g}{' (asked)' if rung.bound == found.bound else ''}",
                price_in_words(rung.price), f"{rung.visual_tokens:.1f}", f"{rung.loss:.4f}",
            ]
            for rung in found.ladder
        ],
    )  # fmt: skip
    table(
        f"by kind of question at the price for {found.bound:g} (each by itself; not enforced)",
        ["kind", "pictures", "finest right", f"{found.loss} seen", "at most",
         "least scale that keeps the bound"],
        [
            [
                each.name, str(each.pictures), f"{each.finest_right or 0:.1%}",
                f"{each.loss:.4f}", f"{each.upper:.4f}",
                "none needed" if each.floor == router.scales[0] else str(each.floor),
            ]
            for each in found.slices
        ],
    )  # fmt: skip


def _sentences(found: Certificate, router: Router, keep_price: bool) -> list[str]:
    from training.fitting.telling import LEAST_RIGHT

    above = [each.name for each in found.slices if each.upper > found.bound]
    lines = []
    if found.rung.price is None:
        kept = "the price is left as it was" if keep_price else "the router now always takes it"
        lines.append(
            f"no price keeps a {found.loss} of {found.bound:g} at {1 - found.delta:.4g} on "
            f"{found.pictures} pictures: only always the finest scale {router.scales[-1]} does, so "
            f"{kept}; more pictures or a looser bound would help"
        )
    elif keep_price and (router.policy.price > found.rung.price):
        lines.append(
            f"the router's own price {router.policy.price:.5g} is above the certified "
            f"{found.rung.price:.5g}: only requests with routing.max_harm are bound"
        )
    if router.second_look is not None:
        lines.append(
            "requests with routing.max_harm get no second look; the others still do"
            if keep_price
            else "the router's second look is dropped: it was priced for another target"
        )
    empty = [each.name for each in found.slices if (each.finest_right or 0) < LEAST_RIGHT]
    if empty:
        lines.append(
            f"the finest scale hardly ever answers {', '.join(empty)}: that nothing is lost there "
            "says nothing, look at how they are scored"
        )
    if above:
        lines.append(f"not shown for these kinds by themselves: {', '.join(above)}")
    return lines
