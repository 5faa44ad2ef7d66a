"""Labelling and service read the same cells of a picture, to the last bit."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from router.actions import Action, ActionSpace, CellRule
from serve.settings import PictureLimits
from serve.stages.checkpoint import load_checkpoint
from serve.stages.vision import Vision
from training.oracle.labelling import Labeller
from training.sources.scenes import SceneSource

SPACE = ActionSpace(
    (
        Action("1", 1),
        Action("9", 9, base="1"),
        Action("9+144@500x12", 9, 144, CellRule(500, "none", 12), "9"),
        Action("36", 36, base="9"),
        Action("36+576@250rx48", 36, 576, CellRule(250, "ring", 48), "36"),
        Action("144", 144, base="36"),
        Action("576", 576, base="144"),
    )
)


def test_the_service_reads_the_very_cells_that_were_labelled(tiny_model: Path) -> None:
    labeller = Labeller(tiny_model, device="cpu", max_new_tokens=1, space=SPACE)
    vision = Vision(load_checkpoint(tiny_model, device="cpu"), PictureLimits())
    task = SceneSource(4, 3).load(2)
    records = labeller.label([task], feature_schema="f", model_hash="m", source="scenes")
    buffer = io.BytesIO()
    Image.fromarray(task.rgb).save(buffer, "PNG")
    [encoded] = vision.encode([vision.prepare(buffer.getvalue())])
    for record in records:
        [features], [relevance] = vision.features(
            [encoded], record.question, labeller.relevance.name
        )
        plan = SPACE.plan(relevance)
        assert record.picture_id == encoded.picture_id
        assert np.array_equal(np.array(record.features, np.float32), features)
        assert (record.visual_tokens, record.cells) == (plan.tokens, plan.cells)
        for at in range(len(SPACE)):
            tokens = vision.tokens(encoded, SPACE.reading(at, plan))
            assert len(tokens) == record.visual_tokens[at]
    assert any(cells for record in records for cells in record.cells or ())
