"""`m3-train replay`: what routers and policies would have done to the same questions.

Knows flags and tables; the replay itself is in training.promotion.replay.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from m3model.terminal import bar, interval, say, table
from training.cli.log import place_option
from training.errors import TrainingError

if TYPE_CHECKING:
    from training.evaluation.served import ServedAgain


def replay(
    oracle: Annotated[
        list[Path], typer.Option("--oracle", help="Folder of `collect`; repeat for several.")
    ],
    router: Annotated[
        list[Path] | None,
        typer.Option("--router", help="Router folder; repeat to compare. The first is the base."),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            help="finest, fixed:SCALE, or price:NUMBER (the first router at that price); repeat.",
        ),
    ] = None,
    log: Annotated[
        Any,
        place_option(
            "--log",
            what="Log of the service that the questions are from: also says how many of its "
            "decisions each router takes again.",
        ),
    ] = None,
    split: Annotated[
        Literal["test", "all"],
        typer.Option(help="all: training pictures too, which flatters who was fitted on them."),
    ] = "test",
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the rows there too.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 2000,
) -> None:
    """Show what other policies would do to the same questions."""
    from router.router import Router
    from training.files import write_json
    from training.oracle.data import read_oracle
    from training.promotion.replay import logged_again, parse_policy
    from training.promotion.replay import replay as compare

    specs = [parse_policy(text) for text in policy or ()]
    routers = [(str(path), Router.from_pretrained(path)) for path in router or ()]
    if log is not None and not routers:
        raise TrainingError("--log needs --router DIR, whose decisions it holds")
    data = read_oracle(oracle)
    asked = data if split == "all" else data.split("test")
    with bar("replaying", "steps") as move:
        rows = compare(routers, asked, policies=specs, resamples=resamples, progress=move)
    again: dict[str, ServedAgain] = {}
    if log is not None:
        again, skipped = logged_again(routers, log, oracle)
        for line in skipped:
            say(f"left out: {line}")
    if json_out is not None:
        json_out.parent.mkdir(parents=True, exist_ok=True)
        facts: dict[str, Any] = {
            "split": split, "n_questions": len(asked), "n_pictures": asked.n_pictures,
            "data_hash": data.data_hash,
        }  # fmt: skip
        if again:
            facts["served_again"] = {name: each.as_dict() for name, each in again.items()}
        write_json(json_out, {**facts, "rows": rows})
    table(
        f"{len(asked)} questions about {asked.n_pictures} pictures ({split}), each against the "
        "first, 95 % intervals by picture",
        ["policy", "accuracy", "tokens", "harm", "accuracy difference", "token difference"],
        [
            [
                f"{row['name']} ({row['version']})" if row["version"] else row["name"],
                f"{row['accuracy']:.3f}", f"{row['visual_tokens']:.1f}", f"{row['harm']:.3f}",
                interval(row["minus_first"]["accuracy"], 100, " pt"),
                interval(row["minus_first"]["visual_tokens"], 1, ""),
            ]
            for row in rows
        ],
    )  # fmt: skip
    for name, found in again.items():
        say(f"{name}: {found.sentence}")
