"""Focus in the benchmarks: rules worked by hand, cuts against `generate`, checks and settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from _focus import rules
from _focus.asking import (
    Answers,
    Asked,
    Reader,
    cut_of_focus,
    cut_of_reading,
    tokens_of,
    visual_tokens,
)
from _focus.settings import TOKENS, Chooser, Table, cheapest_keeping, operations, uniform_look
from _focus.targets import Check, Target
from _operating_paths import Runs
from cell_rules import Line
from focus_selectors import top_cells, top_patches
from PIL import Image

from m3model import Focus, focus_visual_tokens, request_cost
from m3model.config import llava_shape
from router.actions import Action, ActionSpace, CellRule, Reading
from router.second_look import Gate, SecondLook
from training.sources.tasks import Ask

SPACE = ActionSpace(
    (Action("9", 9), Action("9+144", 9, 144, CellRule(500, "none", 4), "9"), Action("576", 576))
)


def test_every_rule_finds_the_cells_that_a_hand_finds() -> None:
    values = np.zeros(16, np.int64)
    values[[5, 6, 15]] = 50, 30, 20
    assert rules.of_peak(values, 0.6, "none") == (5, 6)
    assert rules.of_mass(values, 0.5, "none") == (5,)  # exactly half of all
    assert rules.of_mass(values, 0.51, "none") == (5, 6)
    assert rules.of_mass(values, 1.0, "none") == (5, 6, 15)
    assert rules.of_budget(values, 2, "none") == (5, 6)
    assert rules.of_budget(values, 1, "ring") == (0, 1, 2, 4, 5, 6, 8, 9, 10)
    assert rules.of_mass(np.zeros(16, np.int64), 0.5, "ring") == ()


def test_a_cell_is_worth_its_mean_its_greatest_or_the_detail_that_is_lost() -> None:
    relevance, grid = np.zeros(576, np.float32), torch.zeros(576, 3)
    relevance[[0, 1, 2]] = 1.0, 0.2, 0.8  # two patches of cell 0, one of cell 1
    assert rules.mean_relevance(relevance, grid, 144)[:2].tolist() == [306, 204]
    assert rules.greatest_relevance(relevance, grid, 144)[:2].tolist() == [255, 204]
    assert not rules.lost_detail(relevance, grid, 144).any()  # nothing is lost of a flat picture
    grid[2] = 1.0  # now cell 1 holds two kinds of patches
    assert np.flatnonzero(rules.lost_detail(relevance, grid, 144)).tolist() == [1]


@pytest.mark.parametrize("setting", rules.settings(), ids=lambda s: f"{s.family} {s.dial}")
def test_every_setting_reads_less_than_the_finest_scale(setting: rules.Setting) -> None:
    rng = np.random.default_rng(0)
    for relevance in (np.zeros(576), np.ones(576), rng.random(576)):
        cut = setting.cut(relevance.astype(np.float32), torch.randn(576, 4))
        assert 9 <= tokens_of(cut) < 576
        assert len(visual_tokens(torch.randn(576, 4), cut)) == tokens_of(cut)


def test_patches_and_cells_by_relevance() -> None:
    relevance = np.zeros(576, np.float32)
    relevance[[30, 8, 575]] = 0.9, 0.5, 0.5
    assert top_patches(relevance, 2) == (8, 30)
    assert top_cells(relevance, 576, 1) == (3,)  # patch 30 lies in the second row, column 6
    assert top_cells(relevance, 576, 2) == (3, 4)


def test_cuts_are_answered_as_generate_answers(tiny_model: Path) -> None:
    """The packed passes say what the model says when it is asked alone."""
    reader = Reader(tiny_model)
    rng = np.random.default_rng(1)
    grids = []
    for _ in range(2):
        picture = Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8))
        with torch.inference_mode():
            grids.append(reader.model.encode_images(reader.processor.pixel_values(picture))[0])
    cuts = [
        ((9, None),),
        cut_of_focus(Focus(9, 144, (0, 7))),
        ((1, None), (144, (3, 5)), (576, (0, 1, 100))),
        ((9, None),),
    ]
    asks = []
    for number, cut in enumerate(cuts):
        question = f"What is at {number}?"
        ids, _ = reader.processor.prompt_and_answer(question, None)
        with torch.inference_mode():
            prompt = reader.model.embed_prompt(ids, [visual_tokens(grids[number % 2], cut)])
            said = reader.model.generate(
                inputs_embeds=prompt[None], max_new_tokens=16, do_sample=False
            )
        asks.append(Ask(question, reader.processor.decode(said[0])))
    source = reader.sources["attention"]

    def asked(asks: list[Ask]) -> list[Asked]:
        made = [
            reader.questions(grids[number % 2], number % 2, [ask], source)[0]
            for number, ask in enumerate(asks)
        ]
        # The tokens of a text need not be those that were generated: score the text alone.
        return [replace(one, packed=replace(one.packed, reference_ids=None)) for one in made]

    found = reader.answers(grids, asked(asks), cuts)
    assert found.right.tolist() == [1.0] * 4
    assert found.tokens.tolist() == [9, 17, 6, 9]
    wrong = [Ask(ask.question, "surely not this") for ask in asks]
    assert not reader.answers(grids, asked(wrong), cuts).right.any()


def test_a_cut_is_what_the_service_reads() -> None:
    grid = torch.randn(576, 5)
    focus = Focus(9, 144, (2, 30))
    read = visual_tokens(grid, cut_of_reading(Reading("9+144", 9, 144, (2, 30))))
    assert torch.equal(read, focus_visual_tokens(grid, focus))
    assert cut_of_reading(Reading("9+144", 9, 144, ())) == ((9, None),)


def test_between_two_settings_questions_are_mixed() -> None:
    few = Answers(np.array([0.0, 1.0]), np.array([10.0, 10.0]))
    many = Answers(np.array([1.0, 1.0]), np.array([20.0, 40.0]))
    line = Line("one", (0.5, 0.2), (few, many))
    assert line.right_at(15.0) == pytest.approx([0.25, 1.0])
    assert line.right_at(9.0) is None


def table(values: list[list[float]], scores: list[list[float]]) -> Table:
    """Return questions about a picture each; the focus of SPACE takes 9 + 4 x their number."""
    tokens = np.array([[9, 13 + 4 * row, 576] for row in range(len(values))], float)
    confidence = np.full(tokens.shape, 0.5)
    pictures = np.arange(len(values))
    return Table(np.array(values), np.array(scores), confidence, tokens, tokens / 576, pictures)


def test_a_request_pays_for_both_looks_and_one_encode() -> None:
    asked = table([[0.1, 0.5, 0.9]] * 2, [[0, 1, 1]] * 2)
    first, last = np.array([0, 1]), np.array([2, 1])
    assert TOKENS.spent(asked, first, last).tolist() == [585.0, 17.0]
    shape = llava_shape("7b")
    coarse, fine, own = (request_cost(shape, n) for n in (9, 576, 17))
    spent = operations("7b").spent(asked, first, last)
    assert spent == pytest.approx(
        [coarse.flops + fine.prefill_flops + fine.decode_flops, own.flops]
    )


def test_settings_run_from_the_cheapest_action_to_always_the_anchor() -> None:
    asked = table([[0.4, 0.6, 0.7], [0.4, 0.6, 0.9]], [[0, 1, 1], [0, 0, 1]])
    chooser = Chooser()
    runs = chooser.runs(asked, chooser.settings(asked), TOKENS)
    assert runs.cost[-1].tolist() == [576.0, 576.0]
    assert runs.cost.mean(axis=1).min() == 9.0
    assert (runs.answers == 1.0).all()


def test_uniform_gates_are_those_of_the_second_look() -> None:
    gates = tuple(
        tuple(Gate(start, end, 0.0, 0.0) for end in range(start, 3)) for start in range(2)
    )
    found = uniform_look(SecondLook(SPACE.names, gates, 0.2, 0.1), SPACE)
    assert [[(gate.finer, gate.first) for gate in row] for row in found.gates] == [[(0, 0), (0, 2)]]
    assert (found.start_price, found.price) == (0.2, 0.1)


def test_the_second_point_is_the_cheapest_that_keeps_the_share() -> None:
    finest, pictures = np.ones(100), np.arange(100)
    score = np.ones((3, 100))
    score[0, :10], score[1, :1] = 0.0, 0.0
    runs = Runs(score, np.array([[1.0], [2.0], [3.0]]) * np.ones(100), np.ones((3, 100)))
    assert cheapest_keeping(runs, finest, pictures, 0.97) == 1
    assert cheapest_keeping(runs, finest, pictures, 0.80) == 0
    assert cheapest_keeping(runs, finest, pictures, 1.00) == 2


def test_a_target_is_met_where_all_of_it_is() -> None:
    good = Check("points", -0.5, "at least", -0.5)
    dear = Check("share", 0.13, "at most", 0.12)
    assert Target("both", (good, dear)).as_dict()["met"] is False
    assert Target("one", (good,)).as_dict()["met"] is True
    assert not Check("share", None, "at most", 0.12).met
