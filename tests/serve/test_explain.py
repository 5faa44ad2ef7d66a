"""An explanation on its way from the router over the wire to the client, the terminal, the API."""

import io
import json
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from m3model import M3ForConditionalGeneration, M3Processor
from m3model.relevance.readout import RelevanceReadout
from router.explain import explain
from router.explanation import Explanation, RelevanceMap
from router.features.schema import feature_schema
from router.policy import Policy
from serve import protocol
from serve.client import M3Client, RouteExplanation
from serve.client.explain import parse_explanation
from serve.client.wire import parse_route
from serve.protocol import Routing

SCHEMA = feature_schema((1, 4, 16), 4, 6)
PARTS = np.random.default_rng(0).standard_normal((3, len(SCHEMA.names) + 1))


def sent(values: tuple[float, ...] = (0.2, 0.7, 0.9), price: float = 1.0) -> dict:
    told = explain(SCHEMA, values, Policy((0.0, 0.25, 1.0), price), None, PARTS)
    return json.loads(on_the_wire(told).model_dump_json())["explain"]


def on_the_wire(told: Explanation) -> Routing:
    return Routing(
        scale=4, scales=[4], visual_tokens=4, reason="predicted", p_suffices=None,
        router_version=None, latency_ms=0.0, explain=told,
    )  # fmt: skip


def test_what_is_sent_arrives_as_it_was() -> None:
    told = explain(SCHEMA, (0.2, 0.7, 0.9), Policy((0.0, 0.25, 1.0), 1.0), None, PARTS)
    told = replace(told, relevance=(RelevanceMap(2, (0, 1, 128, 255)),))
    body = json.loads(on_the_wire(told).model_dump_json())["explain"]
    assert body["relevance"] == [{"side": 2, "values": [0, 1, 128, 255]}]
    assert set(body["values"]) == {"1", "4", "16"}
    assert parse_explanation(body) == told
    assert RouteExplanation is Explanation
    assert parse_explanation(None) is None
    both = replace(told, pictures=(told, told))
    body = json.loads(on_the_wire(both).model_dump_json())["explain"]
    assert parse_explanation(body) == both
    del body["relevance"], body["pictures"]  # from a service that does not tell them yet
    assert parse_explanation(body) == replace(told, relevance=())


def test_the_wire_keeps_its_keys() -> None:
    assert list(sent()) == [
        "scale", "values", "costs", "price", "base", "contributions", "coarser", "finer", "below",
        "at_or_above", "sentence", "relevance", "pictures",
    ]  # fmt: skip
    assert list(sent()["finer"]) == ["scale", "base", "contributions"]
    assert list(sent()["below"]) == ["price", "scale"]


def test_a_route_reply_may_go_without() -> None:
    routing = {"scale": 4, "visual_tokens": 4, "reason": "predicted", "explain": sent((0.9,) * 3)}
    route = parse_route({"routing": routing})
    assert route.explain is not None
    assert (route.explain.coarser, route.explain.below) == (None, None)
    assert parse_route({"routing": routing | {"explain": None}}).explain is None


def test_lines_for_a_terminal() -> None:
    told = parse_explanation(sent())
    assert told is not None
    lines = told.lines()
    assert lines[0].split()[:3] == ["scale", "value", "cost"]
    assert lines[2].split() == ["*", "4", "0.700", "0.250", "0.450"]
    assert lines[4].endswith("  against 1   against 16")
    groups = [line for line in lines if line.strip().startswith("relevant-region detail")]
    assert groups[0].split()[2] == f"{told.contributions[4]['relevant-region detail']:+.2f}"
    assert lines[-1] == told.sentence
    assert max(map(len, lines[:-1])) <= 100


def test_the_console_draws_only_fields_that_are_sent() -> None:
    page = (Path(protocol.__file__).parent / "console" / "index.html").read_text("utf-8")
    used = set(re.findall(r"\bwhy\.(\w+)", page))
    assert {"sentence", "values", "price", "costs", "contributions", "coarser", "finer"} <= used
    assert used <= {field.name for field in fields(Explanation)}
    for name in re.findall(r"\$\(\"([\w-]+)\"\)", page):
        assert f'id="{name}"' in page, name


def test_the_api_documents_every_field() -> None:
    schema = Routing.model_json_schema()
    parts = schema["$defs"]
    for name in ("Explanation", "Comparison", "Switch", "RelevanceMap", "SecondLooked"):
        assert parts[name]["description"]
        told = parts[name]["properties"].values()
        assert all(field.get("description") for field in told), name
    assert parts["Explanation"]["properties"]["values"]["additionalProperties"]["type"] == "number"


def by_hand(model_folder: Path, picture: bytes, question: str) -> np.ndarray:
    """The readout beside the model on the model's own grid, in steps of 1/255."""
    model = M3ForConditionalGeneration.from_pretrained(model_folder).eval()
    processor = M3Processor.from_pretrained(model_folder)
    readout = RelevanceReadout.from_pretrained(model_folder)
    assert readout is not None
    pixels = processor.pixel_values(Image.open(io.BytesIO(picture)))
    with torch.inference_mode():
        grid = model.encode_images(pixels)[0].float().numpy()
    return 255.0 * readout.map(grid, processor.question_ids(question))


def test_the_patches_that_the_words_point_to_are_the_readouts(
    running: Any, tiny_model: Path, picture_bytes: Callable[..., bytes]
) -> None:
    pictures = [picture_bytes(1), picture_bytes(2, (30, 50))]
    with M3Client(running.url) as client:
        for question in ("What is it?", "how tall is the red bar?"):
            told = client.ask(pictures, question, explain=True, max_tokens=2).explain
            assert told is not None
            for picture, relevance in zip(pictures, told.relevance, strict=True):
                assert (relevance.side, len(relevance.values)) == (24, 576)
                wanted = by_hand(tiny_model, picture, question)
                np.testing.assert_allclose(relevance.values, wanted, atol=0.6)
                assert len(set(relevance.values)) > 2
        decided = client.route(pictures[0], question, explain=True).explain
        pinned = client.ask(pictures[0], question, explain=True, scale=9, max_tokens=2).explain
        assert decided is not None
        assert pinned is not None
        assert decided.relevance == pinned.relevance == told.relevance[:1]
        assert client.ask(None, question, explain=True, max_tokens=2).explain is None
