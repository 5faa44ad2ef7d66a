"""Scores somebody's choice of actions on a published table: exact, with intervals by group.

Needs nothing but the table and the picks. Knows published tables and picks; does not know routers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from router.policy import row_costs, token_costs
from training.errors import NotEnoughData, TrainingError
from training.evaluation.baselines import TABLE, TABLE_OF_ALL, look_up, type_table
from training.figures import comparison as cmp
from training.figures.curves import Line, fixed_line, line_of
from training.figures.equal_accuracy import token_ratios
from training.figures.headroom import gaps
from training.figures.metrics import Picks, picked
from training.published.table import Published


def read_picks(path: Path, test: Published) -> Picks:
    """Return (n,) the index of the action chosen for each test question.

    Args:
        path: Parquet with the columns ``question_id`` and ``action``, or ``scale`` where only
            scales are chosen. Questions of other splits may be there too; they are not scored.

    Raises:
        TrainingError: unreadable, a test question without a pick or with two, an unknown action.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise TrainingError(f"cannot read the picks {path}: {str(error).splitlines()[0]}") from None
    column = "action" if "action" in table.column_names else "scale"
    missing = sorted({"question_id", column} - set(table.column_names))
    if missing:
        raise TrainingError(f"{path} lacks the columns {', '.join(missing)}")
    wanted = set(test.question_ids.tolist())
    chosen: dict[str, str] = {}
    for name, pick in zip(
        table["question_id"].to_pylist(), map(str, table[column].to_pylist()), strict=True
    ):
        if name in wanted and chosen.setdefault(name, pick) != pick:
            raise TrainingError(f"{path} holds two different picks for question {name}")
    absent = [name for name in test.question_ids.tolist() if name not in chosen]
    if absent:
        raise TrainingError(
            f"{path} lacks {len(absent)} of {len(test)} test questions, first: {absent[0]}"
        )
    index = {action: number for number, action in enumerate(test.space.names)}
    odd = next((pick for pick in chosen.values() if pick not in index), None)
    if odd is not None:
        raise TrainingError(
            f"{path} picks the {column} {odd}; the table has {', '.join(test.space.names)}"
        )
    return np.array([index[chosen[name]] for name in test.question_ids.tolist()], dtype=np.intp)


def score_picks(table: Published, picks: Picks, *, resamples: int = 2000) -> dict[str, Any]:
    """Return what the picks do on the test questions, beside fixed actions and type tables.

    Args:
        table: all splits; the type tables are fitted on its training questions.
        picks: (n,) indices of actions for the n test questions, in their order.
        resamples: bootstrap resamples of the intervals.

    Raises:
        NotEnoughData: no test question.
    """
    train, test = table.split("train"), table.split("test")
    if len(test) == 0:
        raise NotEnoughData("the table has no test question")
    costs = row_costs(test.visual_tokens, test.space.scales, token_costs(test.space.scales))
    on = cmp.Questions(
        test.scores, test.pictures, test.visual_tokens, costs, test.flops, test.gpu_ms, resamples,
        space=test.space,
    )  # fmt: skip
    ours = cmp.Outcome("picks", None, picks, picked(on.scores, picks))
    lines: dict[str, Line] = {"fixed_mixture": fixed_line(on)}
    if len(train):
        typed = look_up(type_table(train), test)
        over_scales = line_of(TABLE, typed[:, list(test.space.uniform)], on.over_scales)
        lines[TABLE] = over_scales.among_all(on)
        if not test.space.is_uniform:
            lines[TABLE_OF_ALL] = line_of(TABLE_OF_ALL, typed, on)
    accuracy = float(ours.score.mean())
    return {
        "n_questions": len(test),
        "n_pictures": len(np.unique(test.units)),
        "finest_accuracy": float(on.scores[:, -1].mean()),
        "fixed": [
            {"scale": action.coarse, **cmp.fixed(k, on).summary(on)}
            for k, action in enumerate(test.space.actions)
            if action.is_uniform
        ],
        "fixed_focus": [
            {"action": action.name, **cmp.fixed(k, on).summary(on)}
            for k, action in enumerate(test.space.actions)
            if not action.is_uniform
        ],
        "picks": {
            **ours.summary(on),
            "accuracy_interval": on.resampler.interval(ours.score).as_dict(),
            "visual_tokens_interval": on.resampler.interval(ours.spent(on.tokens)).as_dict(),
            "difference_from_finest": cmp.difference_from_finest(ours, on).as_dict(),
            **cmp.details(ours, on),
        },
        "visual_tokens_at_this_accuracy": {
            name: line.at("visual_tokens", accuracy) for name, line in lines.items()
        },
        "token_ratio_at_equal_accuracy": token_ratios(lines, ours, on),
        "gap_recovered": {
            name: gap for name, gap in gaps(ours, on, lines).items() if name in lines
        },
    }
