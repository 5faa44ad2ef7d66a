"""Repeats in other words and true-mask statistics: what collect keeps beside a scene's question."""

import numpy as np
import pytest

from training.errors import TrainingError
from training.sources.scenes import SceneSource
from training.sources.target_cells import METADATA_KEY, SCALES, names, target_cells


def test_scene_questions_are_asked_again_in_other_words() -> None:
    source = SceneSource(30, 2, repeats=2)
    asked = [ask for index in range(30) for ask in source.load(index).asks]
    originals = {a.question_id: a for a in asked if "repeat_of" not in a.metadata}
    repeats = [a for a in asked if "repeat_of" in a.metadata]
    assert len(repeats) == len(originals)
    for again in repeats:
        first = originals[again.metadata["repeat_of"]]
        assert again.question != first.question
        assert (again.reference, again.kind, again.size_px) == (
            first.reference, first.kind, first.size_px,
        )  # fmt: skip
    texts = [(a.question_id.split("-")[2], a.question) for a in asked]
    assert len(set(texts)) == len(texts)


def test_repeats_do_not_change_the_questions_nor_their_parameters() -> None:
    plain, twice = SceneSource(5, 2), SceneSource(5, 2, repeats=2)
    asks = plain.load(1).asks
    assert twice.load(1).asks[: len(asks)] == asks
    assert "repeats" not in plain.parameters()
    assert twice.parameters()["repeats"] == 2
    with pytest.raises(TrainingError, match="--repeats must be 1 or 2"):
        SceneSource(5, 2, repeats=9)


def mask(*patches: tuple[int, int], side: int = 4) -> np.ndarray:
    found = np.zeros((side, side), bool)
    for row, column in patches:
        found[row, column] = True
    return found


def test_target_cells_by_hand() -> None:
    # 4x4 patches, grids of 1, 2x2 and 4x4. The target fills half of the first 2x2 cell and a
    # quarter of the last; beside it in the first cell lies one foreign patch.
    target = mask((0, 0), (0, 1), (3, 3))
    foreground = mask((1, 0))
    scales = (1, 4, 16)
    found = dict(zip(names(scales), target_cells(target, foreground, scales), strict=True))
    assert found["purity_1"] == pytest.approx(3 / 16, abs=1e-4)
    assert found["purity_4"] == pytest.approx((0.5**2 + 0.25**2) / 0.75, abs=1e-4)
    assert found["purity_16"] == 1.0
    assert found["fill_1"] == pytest.approx(3 / 4, abs=1e-4)
    assert found["fill_4"] == pytest.approx((0.5 * 2 / 3 + 0.25 * 1) / 0.75, abs=1e-4)
    assert found["peak_4"] == 0.5
    assert found["foreground_share"] == 0.25
    assert (found["extent_rows"], found["extent_columns"]) == (1.0, 1.0)
    assert found["pieces"] == 2.0
    # Rows 1/8, 1/8, 7/8: standard deviation of a third at the far end.
    assert found["spread_rows"] == pytest.approx(0.75 * (2 / 9) ** 0.5, abs=1e-4)


def test_empty_and_odd_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        target_cells(mask(), mask(), (1, 4))
    with pytest.raises(ValueError, match="two"):
        target_cells(np.ones((4, 4), bool), np.ones((3, 3), bool), (1,))


def test_scenes_hold_the_statistics_of_their_masks() -> None:
    from training.scenes.scene import generate_scene

    ask = SceneSource(3, 0).load(2).asks[0]
    scene = generate_scene(2)
    assert ask.metadata[METADATA_KEY] == target_cells(scene.questions[0].target, scene.instance > 0)
    assert len(ask.metadata[METADATA_KEY]) == len(names(SCALES))
