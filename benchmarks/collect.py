"""How fast every action of a question is labelled, beside a separate run for each action.

    python benchmarks/collect.py [--quick] [--json PATH]

`m3-train collect` encodes a picture once and answers all its questions under all actions in packed
sequences. A harness runs each scale (and each focus) by itself: every run encodes every picture
again. Two such runs are measured: one that packs the questions of a picture as collect does, and
one that asks one question a call, as harnesses do. Same weights, pictures, questions, actions and
limits, one thread, in turns of a few pictures, so that what else the machine does hits all alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from _result import arguments, write
from PIL import Image

from m3model import Focus, default_model_path, focus_visual_tokens, pool_visual_tokens
from m3model.pooling import as_sent
from m3model.relevance.source import encode_with_tower
from router.actions import default_space
from training.oracle.labelling import Labeller
from training.oracle.packed import PackedQuestion, answer_packed
from training.oracle.rows import Segment, passes_of, rows_of
from training.sources.scenes import SceneSource
from training.sources.tasks import PictureTask

SCALES = (1, 9, 36, 144, 576)
TURN = 4  # pictures that one way labels before it is another's turn
MAX_NEW_TOKENS = 16
COLLECT, PACKED, ALONE = "collect", "a run an action, packed", "a run an action, a question a call"

Answers = list[list[str]]  # by action: of each question


@dataclass
class Spent:
    """What a way took."""

    wall_s: float = 0.0
    cpu_s: float = 0.0


def collected(labeller: Labeller, tasks: Sequence[PictureTask]) -> Answers:
    """Return the answers as collect labels them."""
    records = labeller.label(tasks, feature_schema="", model_hash="", source="scenes")
    return [list(answers) for answers in zip(*(r.answers for r in records), strict=True)]


def packed(labeller: Labeller, tasks: Sequence[PictureTask]) -> Answers:
    """Return the answers of one run an action, which packs the questions of each picture."""
    actions = range(len(labeller.space))
    return [[answer for task in tasks for answer in _packed(labeller, task, at)] for at in actions]


def _packed(labeller: Labeller, task: PictureTask, action: int) -> Iterator[str]:
    grid, seen = _encoded(labeller, task, action)
    segments, questions = [], []
    for number, (ask, each) in enumerate(zip(task.asks, seen, strict=True)):
        prompt, answer = labeller.processor.prompt_and_answer(ask.question, ask.reference)
        own = each.visual_tokens - each.coarse if isinstance(each, Focus) else 0
        segments.append(Segment(0, number, each, own + len(prompt) + len(answer or ())))
        tokens = _tokens(grid, each)[each.coarse :] if isinstance(each, Focus) else None
        questions.append(PackedQuestion(prompt, answer, own=tokens))
    found: dict[int, str] = {}
    for rows in passes_of(rows_of(segments, labeller.model.config.hidden_size)):
        answered = answer_packed(
            labeller.model,
            [_tokens(grid, row.coarse) for row in rows],
            [[questions[each.question] for each in row.segments] for row in rows],
            end_ids=labeller.end_ids,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        for row, answers in zip(rows, answered, strict=True):
            for each, said in zip(row.segments, answers, strict=True):
                found[each.question] = labeller.processor.decode(list(said.answer_ids))
    yield from (found[number] for number in range(len(task.asks)))


def alone(labeller: Labeller, tasks: Sequence[PictureTask]) -> Answers:
    """Return the answers of one run an action, which asks one question a call."""
    found: Answers = []
    for action in range(len(labeller.space)):
        found.append([])
        for task in tasks:
            for ask in task.asks:
                grid, [seen] = _encoded(labeller, replace(task, asks=(ask,)), action)
                prompt, _ = labeller.processor.prompt_and_answer(ask.question, None)
                told = as_sent(grid.float()).to(grid.dtype)
                ids = labeller.model.generate(
                    input_ids=torch.tensor([prompt]), image_grids=[told], scale=seen,
                    max_new_tokens=MAX_NEW_TOKENS, do_sample=False,
                )[0]  # fmt: skip
                found[-1].append(labeller.processor.decode(ids))
    return found


def _encoded(
    labeller: Labeller, task: PictureTask, action: int
) -> tuple[torch.Tensor, list[int | Focus]]:
    """Return the grid of a picture, encoded anew, and what each question reads of it."""
    pixels = labeller.processor.pixel_values(Image.fromarray(task.rgb)).to(labeller.device)
    tower = None
    with torch.inference_mode():
        if labeller.relevance.needs_tower:
            grids, towers = encode_with_tower(labeller.model, pixels)
            grid, tower = grids[0], towers[0]
        else:
            grid = labeller.model.encode_images(pixels)[0]
    told = labeller.space.actions[action]
    if told.is_uniform:  # a scale reads the same whatever is asked
        return grid, [told.coarse] * len(task.asks)
    seen: list[int | Focus] = []
    projected = labeller.relevance.project(grid.float().cpu().numpy(), tower)
    for ask in task.asks:
        ids = labeller.processor.question_ids(ask.question)
        plan = labeller.space.plan(labeller.relevance.score(projected, ask.question, ids))
        reading = labeller.space.reading(action, plan)
        focused = reading.fine is not None and bool(reading.cells)
        seen.append(
            Focus(reading.scale, int(reading.fine or 0), reading.cells)
            if focused
            else reading.scale
        )
    return grid, seen


def _tokens(grid: torch.Tensor, seen: int | Focus) -> torch.Tensor:
    told = grid.float()
    tokens = (
        focus_visual_tokens(told, seen)
        if isinstance(seen, Focus)
        else pool_visual_tokens(told, seen)
    )
    return as_sent(tokens).to(grid.dtype)


WAYS: dict[str, Callable[[Labeller, Sequence[PictureTask]], Answers]] = {
    COLLECT: collected, PACKED: packed, ALONE: alone,
}  # fmt: skip


def measured(labeller: Labeller, tasks: Sequence[PictureTask]) -> dict[str, Any]:
    """Return how fast each way labels the pictures, and how many of its answers are collect's."""
    spent = {name: Spent() for name in WAYS}
    same, answers = dict.fromkeys(WAYS, 0), 0
    for start in range(0, len(tasks), TURN):
        said = {}
        for name, way in WAYS.items():
            wall, cpu = time.perf_counter(), time.process_time()
            said[name] = [*chain(*way(labeller, tasks[start : start + TURN]))]
            spent[name].wall_s += time.perf_counter() - wall
            spent[name].cpu_s += time.process_time() - cpu
        answers += len(said[COLLECT])
        for name in WAYS:
            pairs = zip(said[name], said[COLLECT], strict=True)
            same[name] += sum(one == other for one, other in pairs)
    instances = answers // len(labeller.space)
    return {
        "pictures": len(tasks),
        "instances": instances,
        "actions": len(labeller.space),
        "ways": {
            name: {
                "instances_per_second": instances / took.wall_s,
                "cpu_s": took.cpu_s,
                "collect_is_faster": took.wall_s / spent[COLLECT].wall_s,
                "collect_is_faster_in_cpu_time": took.cpu_s / spent[COLLECT].cpu_s,
                "same_answers": same[name] / answers,
            }
            for name, took in spent.items()
        },
    }


def main() -> None:
    """Measure pictures with all their questions, and with one each, as traffic has them."""
    options = arguments(__doc__, quick="few pictures").parse_args()
    torch.set_num_threads(1)
    labeller = Labeller(
        default_model_path(), device="cpu", max_new_tokens=MAX_NEW_TOKENS,
        space=default_space(SCALES),
    )  # fmt: skip
    count = 4 if options.quick else 32
    source = SceneSource(count, 11)
    tasks = [source.load(number) for number in range(count)]
    collected(labeller, tasks[:1])  # what the first pass sets up is nobody's
    kinds = {
        "all questions of a picture": tasks,
        "one question a picture": [replace(task, asks=task.asks[:1]) for task in tasks],
    }
    found = {name: measured(labeller, given) for name, given in kinds.items()}
    for kind, result in found.items():
        print(f"{kind}: {result['instances']} questions, {result['actions']} actions each")
        for name, row in result["ways"].items():
            print(
                f"  {name:36}{row['instances_per_second']:7.2f} questions/s, collect is "
                f"{row['collect_is_faster']:5.2f}x ({row['collect_is_faster_in_cpu_time']:.2f}x in "
                f"CPU time), {row['same_answers']:.2%} of the answers are the same"
            )
    report = {"benchmark": "collect", "quick": options.quick, "threads": 1, "kinds": found}
    write(report, options.json)


if __name__ == "__main__":
    main()
