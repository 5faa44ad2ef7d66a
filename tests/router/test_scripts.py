"""Questions in scripts that a router never met: told from others, and read at the finest scale."""

import numpy as np
import pytest

from router import ComplexityPredictor, Policy, Router, feature_schema
from router.decision import Constraints, Reason
from router.errors import NotCertified
from router.features.scripts import LATIN, scripts_in, taught_by, unlike

SCALES = (1, 4, 16)
SCHEMA = feature_schema(SCALES, 4, 2)


@pytest.mark.parametrize(
    ("question", "strange"),
    [
        ("what is written on the board?", False),
        ("Was steht auf dem Schild?", False),
        ("l'été à Łódź?", False),
        ("\uff17 \uff21\uff22\uff23", False),  # wide letters are the same letters
        ("12 + 3?", False),
        ("牌子上写着什么", True),
        ("看板には何と書いてありますか", True),
        ("что написано?", True),
        ("ป้ายเขียนว่าอะไร", True),
        ("बोर्ड पर क्या लिखा है", True),
        ("Was heißt 牌子?", False),  # mostly known
        ("what: 牌子上写着什么", True),  # mostly not
        ("🦊❓", True), ("\u200b", True), ("\x00", True), ("?!", True),
        ("what " * 300, False),
    ],
)  # fmt: skip
def test_questions_unlike_latin_ones(question: str, strange: bool) -> None:
    assert unlike(question, LATIN) is strange


def test_scripts_are_those_of_the_letters() -> None:
    assert scripts_in("пол 3 이것") == {"CYRILLIC": 3, "HANGUL": 2}
    assert not unlike("что это?", ("CYRILLIC", "LATIN"))


def test_a_script_is_taught_by_one_question_in_a_hundred_and_by_twenty() -> None:
    latin = [f"what is {number}?" for number in range(1980)]
    other = [f"что {number}?" for number in range(20)]
    assert taught_by([*latin, *other]) == ("CYRILLIC", "LATIN")
    assert taught_by([*latin, *latin, *other]) == ("CYRILLIC", "LATIN")  # different ones count
    assert taught_by([*latin, "which?", *other]) == ("LATIN",)  # 20 of 2,001
    assert taught_by([*latin[:60], *other[:19]]) == ("LATIN",)  # a quarter, and too few
    assert taught_by([*latin[:60], *other]) == ("CYRILLIC", "LATIN")
    assert taught_by([]) == ()


def test_a_small_log_teaches_what_half_of_it_is_written_in() -> None:
    latin = [f"what is {number}?" for number in range(12)]
    assert taught_by([*latin, "牌子上写着什么"]) == ("LATIN",)
    assert taught_by(["牌子上写着什么"]) == ("CJK",)
    assert taught_by(["牌子上写着什么", "what?"]) == ("CJK", "LATIN")


@pytest.fixture(scope="module")
def coarse() -> Router:
    """A router that is sure of the coarsest scale, whatever is asked."""
    X = np.random.default_rng(0).standard_normal((60, len(SCHEMA.names))).astype(np.float32)
    predictor = ComplexityPredictor(n_estimators=2).fit(X, np.ones((60, 3)))
    return Router(predictor, SCHEMA, Policy((0.1, 0.3, 1.0), 0.5))


FEATURES = np.zeros(len(SCHEMA.names), np.float32)


def test_an_unfamiliar_question_gets_the_finest_scale_and_says_so(coarse: Router) -> None:
    assert coarse.route(FEATURES).scale == 1
    decision = coarse.route(FEATURES, unfamiliar=True)
    assert (decision.scale, decision.reason) == (16, Reason.unfamiliar)
    assert decision.p_suffices == coarse.route(FEATURES).p_suffices
    assert coarse.route(FEATURES, Constraints(second_look=True), unfamiliar=True).open_look is None


def test_wishes_still_bind(coarse: Router) -> None:
    capped = coarse.route(FEATURES, Constraints(max_visual_tokens=5), unfamiliar=True)
    assert (capped.scale, capped.reason) == (4, Reason.budget_cap)
    pinned = coarse.route(FEATURES, Constraints(pinned=1), unfamiliar=True)
    assert (pinned.scale, pinned.reason) == (1, Reason.pinned)
    several = coarse.route(np.stack([FEATURES] * 2), unfamiliar=True)
    assert several.scales == (16, 16)
    partly = coarse.route(np.stack([FEATURES] * 2), Constraints(pins=(1, None)), unfamiliar=True)
    assert partly.scales == (1, 16)
    pressed = coarse.route(FEATURES, Constraints(price_floor=0.9), unfamiliar=True)
    assert pressed.reason is Reason.degraded  # under overload the service still sheds load
    with pytest.raises(NotCertified):
        coarse.route(FEATURES, Constraints(max_harm=0.01), unfamiliar=True)


def test_routers_say_which_scripts_they_know(coarse: Router) -> None:
    assert coarse.knows("what?")
    assert not coarse.knows("что?")
    told = coarse.with_policy(coarse.policy, {"scripts": ["CYRILLIC"]})
    assert told.knows("что?")
    assert not told.knows("what?")


def test_its_explanation_says_that_the_question_and_not_the_router_asks_for_the_finest(
    coarse: Router,
) -> None:
    def said(constraints: Constraints, unfamiliar: bool = True) -> str:
        why = coarse.route(FEATURES, constraints, unfamiliar=unfamiliar).explanation
        assert why is not None
        return why.sentence

    because = "the question is unlike those it was fitted on"
    assert said(Constraints(explain=True)).startswith(f"The router chose 16: {because}")
    pinned = said(Constraints(explain=True, pinned=1))
    assert pinned.startswith(f"1 was asked for; the router would have chosen 16: {because}")
    assert because not in said(Constraints(explain=True, price_floor=0.9))
    assert because not in said(Constraints(explain=True), unfamiliar=False)
