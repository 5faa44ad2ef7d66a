"""Serving computes the numbers that collecting computed, from every source of relevance."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m3model.relevance.choice import relevance_name
from m3model.tiny import write_tiny_clip
from router import ComplexityPredictor, Policy, Router, feature_schema
from router.errors import FeatureMismatch
from serve.errors import ServeSetupError
from serve.settings import PictureLimits
from serve.stages.checkpoint import load_checkpoint
from serve.stages.vision import Vision
from training.oracle.labelling import Labeller
from training.sources.scenes import SceneSource

SCALES = (1, 9, 36, 144, 576)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["what", "colour", "is", "the", "star", "how", "many", "word"]
    return write_tiny_clip(tmp_path_factory.mktemp("clip"), words)


def router_on(relevance: str, dims: int = 64) -> Router:
    schema = feature_schema(SCALES, 24, dims, relevance)
    X = np.random.default_rng(0).standard_normal((40, len(schema.names))).astype(np.float32)
    predictor = ComplexityPredictor().fit(X, np.ones((40, 5), dtype=bool))
    return Router(predictor, schema, Policy(costs=(0.1, 0.2, 0.3, 0.4, 1.0), price=0.1))


@pytest.mark.parametrize("kind", ["readout", "cosine", "attention", "clip"])
def test_serving_and_collecting_agree(kind: str, tiny_model: Path, clip_folder: Path) -> None:
    text_encoder = clip_folder if kind == "clip" else None
    name = relevance_name(tiny_model, kind, text_encoder)
    task = SceneSource(1, 11).load(0)
    labeller = Labeller(
        tiny_model, device="cpu", max_new_tokens=1, relevance=name, text_encoder=text_encoder
    )
    records = labeller.label([task], feature_schema="", model_hash="", source="scenes")
    checkpoint = load_checkpoint(
        tiny_model, half="encoder", device="cpu", text_encoder=text_encoder
    )
    vision = Vision(checkpoint, PictureLimits())
    stored = io.BytesIO()
    Image.fromarray(task.rgb).save(stored, "PNG")
    prepared = vision.prepare(stored.getvalue())
    early = None if kind == "clip" else vision.encode([prepared])
    vision.check_router(router_on(name))
    late = vision.encode([prepared])
    assert set(late[0].projected) == {name}
    for record in records:
        wanted = np.array(record.features)
        for encoded in (late, early or late):  # before the router came, and after
            (found,), _ = vision.features(encoded, record.question, name)
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_a_router_on_relevance_that_cannot_be_had_is_refused(
    tiny_model: Path, clip_folder: Path, tmp_path: Path
) -> None:
    from m3model import M3ForConditionalGeneration, M3Processor

    without = tmp_path / "no-readout"
    M3ForConditionalGeneration.from_pretrained(tiny_model).save_pretrained(without)
    M3Processor.from_pretrained(tiny_model).save_pretrained(without)
    vision = Vision(load_checkpoint(without, half="encoder", device="cpu"), PictureLimits())
    with pytest.raises(FeatureMismatch, match="'readout', this model gives attention, cosine"):
        vision.check_router(router_on("readout"))
    with pytest.raises(FeatureMismatch, match="--text-encoder"):
        vision.check_router(router_on("clip-01234567"))
    vision.check_router(router_on("cosine"))
    with pytest.raises(ServeSetupError, match="no CLIP text encoder"):
        load_checkpoint(without, half="encoder", device="cpu", text_encoder=tmp_path)


def test_the_router_folder_names_its_relevance(tmp_path: Path) -> None:
    router_on("attention").save_pretrained(tmp_path)
    assert Router.from_pretrained(tmp_path).schema.relevance == "attention"
