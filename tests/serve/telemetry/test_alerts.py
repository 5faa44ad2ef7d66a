"""Alert rules and dashboard against what a running service really exports."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from serve.metrics import METRICS
from serve.web.api import create_api

ROOT = Path(__file__).resolve().parents[3]
RULES = yaml.safe_load((ROOT / "deploy/alerts/m3-router.yaml").read_text("utf-8"))
DASHBOARD = json.loads((ROOT / "deploy/grafana/m3-router.json").read_text("utf-8"))
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [rule["expr"] for rule in ALERTS]
EXPRESSIONS += [target["expr"] for panel in PANELS for target in panel["targets"]]
# All of PromQL that they use; whatever else is a name is a metric.
WORDS = {"absent", "and", "by", "histogram_quantile", "increase", "max", "min", "or", "rate", "sum",
         "vector"}  # fmt: skip


def metrics_of(expression: str) -> set[str]:
    """Returns the names of metrics in an expression: what is no label, range, text or word."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\bby\s*\([^)]*\)", " ", bare)
    return set(re.findall(r"[a-zA-Z_:][\w:]*", bare)) - WORDS


def labels_of(expression: str) -> set[tuple[str, str]]:
    """Returns each metric with each label that is asked of it, by a matcher or by ``by``."""
    found = set()
    for name, inner in re.findall(r"(m3_\w+)\{([^}]*)\}", expression):
        found |= {(name, label) for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inner)}
    for labels, name in re.findall(r"by \(([^)]*)\) \(\w+\((m3_\w+)", expression):
        found |= {(name, label.strip()) for label in labels.split(",")}
    return found


@pytest.fixture(scope="module")
def scraped(
    running: Any, ask_body: Callable[..., dict[str, Any]], make_focus_router: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, set[str]]:  # fmt: skip
    """The names of all samples, each with its labels, after a few requests."""
    with httpx2.Client(base_url=running.url, timeout=60) as http:
        for body in (ask_body(), ask_body(stream=True), ask_body(model="nothing")):
            http.post("/v1/chat/completions", json=body)
        asyncio.run(asked_by_a_tenant(running.service.gateway, ask_body()))
        focusing = make_focus_router(tmp_path_factory.mktemp("focusing"), "9+144@500x12")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(running.service.encoder._router, "current", focusing)
            http.post("/v1/chat/completions", json=ask_body())
        text = http.get("/metrics").text
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


async def asked_by_a_tenant(gateway: Any, body: dict[str, Any]) -> None:
    """Asks the same service where it wants keys."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M3_API_KEYS", "secret")
        transport = httpx2.ASGITransport(app=create_api(gateway))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        key = {"authorization": "Bearer secret"}
        reply = await http.post("/v1/chat/completions", json=body, headers=key)
        assert reply.status_code == 200, reply.text


def test_names_are_found_in_expressions() -> None:
    said = 'sum by (le) (rate(m3_a_bucket{x="m3_b"}[5m])) / max(m3_c) > 0.05'
    assert metrics_of(said) == {"m3_a_bucket", "m3_c"}
    assert labels_of(said) == {("m3_a_bucket", "x"), ("m3_a_bucket", "le")}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_and_label_is_in_a_live_scrape(
    scraped: dict[str, set[str]], expression: str
) -> None:
    names = metrics_of(expression)
    assert names
    assert names <= scraped.keys()
    assert [each for each in labels_of(expression) if each[1] not in scraped[each[0]]] == []


def test_every_status_that_alerts_is_one_of_the_services_words() -> None:
    from serve import errors

    words = {
        kind.default_code for kind in vars(errors).values() if hasattr(kind, "default_code")
    }  # fmt: skip
    for expression in EXPRESSIONS:
        for said in re.findall(r'status=~?"([^"]*)"', expression):
            assert set(said.split("|")) <= words


def test_every_metric_is_shown_somewhere() -> None:
    shown = set().union(*map(metrics_of, EXPRESSIONS))
    bare = {re.sub(r"_(total|bucket)$", "", name) for name in shown}
    # What each tenant used is for bills rather than for alarms.
    assert {name for name in METRICS if not name.startswith("m3_tenant_")} - bare == set()


def test_every_alert_says_what_to_do() -> None:
    page = (ROOT / "docs/alarms.md").read_text("utf-8")
    names = [rule["alert"] for rule in ALERTS]
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == names
    for rule in ALERTS:
        assert rule["annotations"]["runbook"] == f"docs/alarms.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]


def test_the_dashboard_can_be_imported_anywhere() -> None:
    (variable,) = DASHBOARD["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy)
                 for dx in range(place["w"]) for dy in range(place["h"])}  # fmt: skip
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["description"]


def test_nodes_of_ray_are_scraped_under_the_same_names() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text("utf-8"))
    assert [ROOT / "deploy" / path for path in config["rule_files"]] == [
        ROOT / "deploy/alerts/m3-router.yaml"
    ]
    (rename,) = [
        each for each in config["scrape_configs"][0]["metric_relabel_configs"]
        if each.get("target_label") == "__name__"
    ]  # fmt: skip
    match = re.fullmatch(rename["regex"], "ray_m3_requests_total")
    assert match is not None
    assert match.expand(rename["replacement"].replace("$", "\\")) == "m3_requests_total"
