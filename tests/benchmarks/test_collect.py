"""The benchmark of labelling: its ways answer the same questions alike, and it counts them."""

from dataclasses import replace
from pathlib import Path

import pytest
from collect import COLLECT, SCALES, WAYS, measured

from router.actions import default_space
from training.oracle.labelling import Labeller
from training.sources.scenes import SceneSource


def test_all_ways_answer_alike(tiny_model: Path) -> None:
    labeller = Labeller(tiny_model, device="cpu", max_new_tokens=16, space=default_space(SCALES))
    task = SceneSource(1, 3).load(0)
    found = measured(labeller, [replace(task, asks=task.asks[:2])])
    assert (found["pictures"], found["instances"]) == (1, 2)
    assert found["actions"] == len(default_space(SCALES))
    assert found["ways"].keys() == WAYS.keys()
    assert {row["same_answers"] for row in found["ways"].values()} == {1.0}
    assert found["ways"][COLLECT]["collect_is_faster"] == pytest.approx(1.0)
