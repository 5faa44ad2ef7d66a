"""`m3-train bench`: publish oracle data as one table, or score somebody's picks on such a table.

Knows flags; the table is in training.published, the scoring in training.published.score.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from m3model.terminal import interval, say, table
from training.errors import TrainingError


def bench(
    oracle: Annotated[
        list[Path] | None, typer.Option("--oracle", help="Publish this folder of `collect`.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write.")] = None,
    score: Annotated[
        Path | None,
        typer.Option(help="Score these picks: Parquet of question_id and scale or action."),
    ] = None,
    published: Annotated[
        Path | None, typer.Option("--table", help="Folder of the published table.")
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the scores there too.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 2000,
) -> None:
    """Publish oracle data as one table, or score picks on one.

    The table is Parquet and comes with a datasheet.
    """
    if oracle and out is not None and score is None and published is None and json_out is None:
        _publish(oracle, out)
    elif score is not None and published is not None and not oracle and out is None:
        _score(score, published, json_out, resamples)
    else:
        raise TrainingError(
            "give --oracle DIR --out DIR, or --score FILE --table DIR [--json FILE]"
        )


def _publish(oracle: list[Path], out: Path) -> None:
    import pyarrow.parquet as pq

    from training.files import replacing
    from training.oracle.data import oracle_table
    from training.oracle.manifest import space_of
    from training.published.datasheet import datasheet
    from training.published.table import DATASHEET, TABLE, publish

    records, manifest, data_hash = oracle_table(oracle)
    made = publish(records, manifest, data_hash)
    sources = sorted(set(records["source"].to_pylist()))
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / TABLE) as temporary:
        pq.write_table(made, temporary, compression="zstd")
    (out / DATASHEET).write_text(datasheet(made, manifest, sources), encoding="utf-8")
    space = space_of(manifest)
    foci = "" if space.is_uniform else f" and {len(space) - len(space.uniform)} foci"
    say(f"{records.num_rows} questions at {len(space.scales)} scales{foci} in {out / TABLE}")


def _score(score: Path, folder: Path, json_out: Path | None, resamples: int) -> None:
    from training.files import write_json
    from training.published.score import read_picks, score_picks
    from training.published.table import read_published

    known = read_published(folder)
    picks = read_picks(score, known.split("test"))
    found = score_picks(known, picks, resamples=resamples)
    if json_out is not None:
        json_out.parent.mkdir(parents=True, exist_ok=True)
        write_json(json_out, found)
    mine: dict[str, Any] = found["picks"]
    rows = [
        [f"always {name}", f"{p['accuracy']:.3f}", f"{p['visual_tokens']:.1f}", "", ""]
        for name, p in [
            *((p["scale"], p) for p in found["fixed"]),
            *((p["action"], p) for p in found["fixed_focus"]),
        ]
    ]
    rows.append(
        [
            "these picks", f"{mine['accuracy']:.3f}", f"{mine['visual_tokens']:.1f}",
            interval(mine["difference_from_finest"], 100, " pt"), f"{mine['harm']:.3f}",
        ]
    )  # fmt: skip
    table(
        f"{found['n_questions']} test questions about {found['n_pictures']} pictures",
        ["policy", "accuracy", "visual tokens", "minus the finest", "harm"],
        rows,
    )
    table(
        "tokens of these picks over those of the baseline at equal accuracy",
        ["baseline", "its tokens", "ratio"],
        [
            [
                name.replace("_", " "),
                "never" if (tokens := found["visual_tokens_at_this_accuracy"][name]) is None
                else f"{tokens:.1f}",
                interval(ratio, 1, "").replace("+", ""),
            ]
            for name, ratio in found["token_ratio_at_equal_accuracy"].items()
        ],
    )  # fmt: skip
