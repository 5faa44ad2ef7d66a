"""An explanation on its way from the router over the wire to the client, the terminal, the API."""

import json
import re
from pathlib import Path

import numpy as np

from router.explain import explain
from router.features.vector import feature_schema
from router.policy import Policy
from serve import protocol as protocol_explain
from serve.client.explain import RouteComparison, RouteExplanation, parse_explanation
from serve.client.wire import parse_route
from serve.protocol import Routing, wire_explanation

SCHEMA = feature_schema((1, 4, 16), 4, 6)
PARTS = np.random.default_rng(0).standard_normal((3, len(SCHEMA.names) + 1))


def sent(values: tuple[float, ...] = (0.2, 0.7, 0.9), price: float = 1.0) -> dict:
    told = explain(SCHEMA, values, Policy((0.0, 0.25, 1.0), price), None, PARTS)
    return json.loads(wire_explanation(told).model_dump_json())


def test_what_is_sent_arrives_as_it_was() -> None:
    told = explain(SCHEMA, (0.2, 0.7, 0.9), Policy((0.0, 0.25, 1.0), 1.0), None, PARTS)
    got = parse_explanation(sent())
    assert isinstance(got, RouteExplanation)
    for name in ("scale", "values", "costs", "price", "base", "contributions", "sentence"):
        assert getattr(got, name) == getattr(told, name), name
    for name in ("coarser", "finer", "below", "at_or_above"):
        assert vars(getattr(got, name)) == vars(getattr(told, name)), name
    assert isinstance(got.finer, RouteComparison)
    assert parse_explanation(None) is None


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
    page = (Path(protocol_explain.__file__).parent / "console" / "index.html").read_text("utf-8")
    used = set(re.findall(r"\bwhy\.(\w+)", page))
    assert {"sentence", "values", "price", "costs", "contributions", "coarser", "finer"} <= used
    assert used <= set(protocol_explain.RoutingExplanation.model_fields)
    for name in re.findall(r"\$\(\"([\w-]+)\"\)", page):
        assert f'id="{name}"' in page, name


def test_the_api_documents_every_field() -> None:
    schema = Routing.model_json_schema()
    parts = schema["$defs"]
    for name in ("RoutingExplanation", "RoutingComparison", "RoutingSwitch"):
        assert parts[name]["description"]
    fields = parts["RoutingExplanation"]["properties"]
    assert all(field.get("description") for field in fields.values())
