"""Bootstrap by picture, price lines and equal-accuracy figures against hand-worked tables."""

import numpy as np
import pytest

from router.actions import Action, ActionSpace, CellRule
from training.evaluation.baselines import cheapest_within, datasets_of, picks_of
from training.figures import comparison as cmp
from training.figures import equal_accuracy as eq
from training.figures.curves import fixed_line, line_of, oracle_line
from training.figures.headroom import headroom_recovered
from training.figures.resampling import Resampler, clustered_interval, percentiles

TOKENS = np.array([1.0, 9.0, 36.0])
# Four questions about two pictures, three scales: needs 1; needs 9; needs 36; nothing helps.
SCORES = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]], float)


def questions(scores: np.ndarray = SCORES, **more: object) -> cmp.Questions:
    pictures = np.arange(len(scores)) // 2
    return cmp.Questions(scores, pictures, TOKENS, TOKENS / 36, None, **more)


def test_totals_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 7, 40)
    columns = rng.normal(size=(40, 3))
    draws = Resampler(pictures, 50, seed=3)
    found = draws.totals(columns)
    present = np.unique(pictures)
    drawn = np.random.default_rng(3).integers(0, len(present), size=(50, len(present)))
    for number, chosen in enumerate(drawn):
        rows = np.concatenate([np.flatnonzero(pictures == present[c]) for c in chosen])
        assert found[number] == pytest.approx(columns[rows].sum(axis=0))
        assert draws.n_questions[number] == len(rows)


@pytest.mark.parametrize(("kept", "blocks_drawn"), [(10**9, 14), (0, 42)])
def test_many_pictures_are_drawn_in_blocks(
    monkeypatch: pytest.MonkeyPatch, kept: int, blocks_drawn: int
) -> None:
    """They are drawn once for all that is compared, unless they are too many to be kept."""
    from training.figures import resampling

    values = np.random.default_rng(0).normal(size=600)
    pictures = np.arange(600) // 3
    at_once = clustered_interval(values, pictures, 400)
    monkeypatch.setattr(resampling, "_AT_ONCE", 200 * 30)
    monkeypatch.setattr(resampling, "_KEPT", kept)
    in_blocks = clustered_interval(values, pictures, 400)
    assert in_blocks.as_dict() == pytest.approx(at_once.as_dict())
    drawn, draw = [], resampling._draw
    monkeypatch.setattr(resampling, "_draw", lambda *args: drawn.append(args) or draw(*args))
    draws = Resampler(pictures, 400)
    assert (draws.totals(values[:, None]) == draws.totals(values[:, None])).all()
    assert draws.n_questions.min() > 0
    assert len(drawn) == blocks_drawn  # of 30 resamples each


def test_an_interval_that_never_arrives_has_no_end() -> None:
    assert percentiles(np.array([1.0] * 50 + [np.inf] * 50)) == (1.0, None)
    assert percentiles(np.arange(41.0)) == (1.0, 39.0)


def test_fixed_line_is_the_mixture_of_fixed_scales() -> None:
    line = fixed_line(questions())
    assert line.accuracy.tolist() == [0.25, 0.5, 0.75]
    assert line.mean("visual_tokens").tolist() == [1.0, 9.0, 36.0]
    # Half a point up from 0.5 to 0.75 on the way from 9 to 36 tokens.
    assert line.at("visual_tokens", 0.625) == pytest.approx(22.5)
    assert line.at("visual_tokens", 0.1) == 1.0
    assert line.at("visual_tokens", 0.8) is None
    assert line.at_or_best("visual_tokens", 0.8) == 36.0
    assert line.at("cost", 0.75) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="gpu_ms"):
        line.at("gpu_ms", 0.5)


def test_oracle_line_pays_for_what_helps() -> None:
    line = oracle_line(questions())
    # 1 + 9 + 36 tokens for the three that can be right, 1 for the hopeless one.
    assert line.at("visual_tokens", 0.75) == pytest.approx(47 / 4)
    assert line.points()[-1] == {
        "price": pytest.approx(line.points()[-1]["price"]),
        "accuracy": 0.25, "visual_tokens": 1.0, "cost": pytest.approx(1 / 36),
    }  # fmt: skip


def test_scales_alone_are_judged_among_all_actions() -> None:
    focus = Action("1+144@500x2", 1, 144, CellRule(500, "none", 2), "9")
    space = ActionSpace(
        (Action("1", 1), focus, Action("9", 9, base="1"), Action("36", 36, base="9"))
    )
    tokens = np.array([[1.0, 5, 9, 36], [1, 9, 9, 36], [1, 5, 9, 36], [1, 1, 9, 36]])
    scores = np.insert(SCORES, 1, [1, 1, 1, 0], axis=1)  # the focus is right where anything is
    on = cmp.Questions(scores, np.arange(4) // 2, tokens, tokens / 36, None, space=space)
    few = on.over_scales
    assert few.scores.tolist() == SCORES.tolist()
    assert few.tokens.tolist() == [TOKENS.tolist()] * 4
    alone = line_of("x", few.scores, few)
    line = alone.among_all(on)
    assert set(line.picks.ravel().tolist()) <= {0, 2, 3}
    for resource in ("visual_tokens", "cost"):
        assert line.mean(resource) == pytest.approx(alone.mean(resource))
    assert line.accuracy == pytest.approx(alone.accuracy)
    assert fixed_line(on).mean("visual_tokens").tolist() == [1.0, 9.0, 36.0]
    assert oracle_line(on).at("visual_tokens", 0.75) == pytest.approx((1 + 9 + 5 + 1) / 4)
    assert line.at("visual_tokens", 0.75) == pytest.approx(47 / 4)
    looked = cmp.Outcome("two", 0.1, np.array([2, 1, 0, 0]), np.ones(4), np.array([0, 1, 0, 0]))
    there = looked.among_all(on)
    assert there.spent(on.tokens).tolist() == looked.spent(few.tokens).tolist() == [37, 9, 1, 1]
    assert cmp.details(there, on)["share_of_scale"] == {
        "1": 0.5, "1+144@500x2": 0.0, "9": 0.25, "36": 0.25,
    }  # fmt: skip
    part = np.array([False, True, True, False])
    assert on.only(part).tokens.tolist() == tokens[1:3].tolist()
    assert line.only(part, on.only(part)).mean("visual_tokens").shape == line.accuracy.shape


def test_levels_follow_the_resamples() -> None:
    on = questions(resamples=200)
    wanted, resampled = eq.levels(on)["99_percent_of_finest"]
    assert wanted == pytest.approx(0.99 * 0.75)
    # Picture 0 is all right at the finest scale, picture 1 half: means 0.5, 0.75 or 1.
    assert set(np.round(resampled / 0.99, 6)) == {0.5, 0.75, 1.0}


def test_token_ratio_and_headroom_by_hand() -> None:
    scores = np.tile(SCORES, (50, 1))
    on = questions(scores, resamples=200, gpu_ms=np.array([1.0, 2.0, 3.0]))
    picks = np.tile([0, 1, 2, 2], 50)  # right three times of four, at 1, 9, 36 and 36 tokens
    ours = cmp.Outcome("ours", 0.0, picks, scores[np.arange(200), picks])
    ratios = eq.token_ratios({"mix": fixed_line(on), "oracle": oracle_line(on)}, ours, on)
    assert ratios["mix"]["mean"] == pytest.approx((82 / 4) / 36)
    assert ratios["oracle"]["mean"] == pytest.approx(82 / 47)
    assert ratios["mix"]["reached"] == 1.0
    assert ratios["mix"]["low"] <= ratios["mix"]["mean"] <= ratios["mix"]["high"]
    recovered = headroom_recovered(fixed_line(on), oracle_line(on), ours, on)
    assert recovered is not None
    assert recovered["mean"] == pytest.approx((36 - 82 / 4) / (36 - 47 / 4))
    assert headroom_recovered(fixed_line(on), fixed_line(on), ours, on) is None
    found = eq.at_equal_accuracy({"mix": fixed_line(on)}, on, ours)
    at = found["router_accuracy"]["policies"]["mix"]
    assert at["visual_tokens"]["mean"] == pytest.approx(36.0)
    assert at["gpu_ms"]["mean"] == pytest.approx(3.0)
    assert set(found) == {
        "99_percent_of_finest", "98_percent_of_finest", "95_percent_of_finest",
        "finest_minus_half_point", "router_accuracy",
    }  # fmt: skip


def test_a_baseline_that_never_gets_there_is_charged_its_best() -> None:
    scores = np.tile([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], (20, 1))
    on = cmp.Questions(scores, np.arange(40) // 2, TOKENS, TOKENS / 36, None, resamples=100)
    picks = np.tile([1, 2], 20)
    ours = cmp.Outcome("ours", None, picks, scores[np.arange(40), picks])
    ratio = eq.token_ratios({"mix": fixed_line(on)}, ours, on)["mix"]
    assert ratio["reached"] == 0.0
    assert ratio["mean"] == pytest.approx(22.5 / 9)  # its best half right costs 9 tokens
    assert fixed_line(on).at("visual_tokens", 1.0) is None


def test_band_holds_the_hull() -> None:
    rng = np.random.default_rng(0)
    chance = np.array([0.3, 0.6, 0.9])
    scores = (rng.random((600, 3)) < chance).astype(float)
    band = line_of("x", rng.random((600, 3)), questions(scores, resamples=200)).band("cost")
    low, middle, high = (np.array(band[key]) for key in ("low", "accuracy", "high"))
    assert len(band["at"]) == len(low)
    assert (low <= high).all()
    assert ((low - 0.02 <= middle) & (middle <= high + 0.02)).all()
    assert (np.diff(middle) >= -1e-12).all()


def test_static_policy_takes_the_cheapest_scale_that_loses_little() -> None:
    groups = np.array(["a/x", "a/x", "a/y", "b/x"])
    scores = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 0, 1]], float)
    assert datasets_of(groups).tolist() == ["a", "a", "a", "b"]
    by_dataset = cheapest_within(datasets_of(groups), scores)
    assert {key: by_dataset[key] for key in "ab"} == {"a": 2, "b": 0}
    by_kind = cheapest_within(groups, scores)
    assert picks_of(by_kind, np.array(["a/x", "a/y", "b/x", "c/z"])).tolist() == [1, 2, 0, 2]
    assert cheapest_within(groups, scores, tolerance=0.5)["a/x"] == 0
