"""Metrics: what a node of Ray exports is relayed with every value, under this service's names."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from serve.metrics import LocalMetrics, relayed_text

OTEL = 'otel_scope_name="ray._private.telemetry",otel_scope_schema_url="",otel_scope_version=""'
NODE = 'Component="core_worker",NodeAddress="192.0.2.1",SessionName="s",Version="2.60.0"'


def export(replica: str, running: str) -> str:
    """What Ray 2.60 says at a node's export port, shortened."""
    labels = f'{NODE},WorkerId="{replica * 8}",application="m3",deployment="gateway"'
    return f"""\
# HELP ray_m3_route_latency_ms Features and decision.
# TYPE ray_m3_route_latency_ms histogram
ray_m3_route_latency_ms_bucket{{{labels},le="1.0",{OTEL},replica="{replica}"}} 0.0
ray_m3_route_latency_ms_bucket{{{labels},le="2.0",{OTEL},replica="{replica}"}} 1.0
ray_m3_route_latency_ms_bucket{{{labels},le="+Inf",{OTEL},replica="{replica}"}} 2.0
ray_m3_route_latency_ms_count{{{labels},{OTEL},replica="{replica}"}} 2.0
ray_m3_route_latency_ms_sum{{{labels},{OTEL},replica="{replica}"}} 11.5
# HELP ray_node_mem_used Memory usage on a ray node
# TYPE ray_node_mem_used gauge
ray_node_mem_used{{Version="2.60.0",note="ray_m3_is_not_here"}} 2.18e+09
# HELP ray_m3_requests_total Requests by endpoint and outcome.
# TYPE ray_m3_requests_total counter
ray_m3_requests_total{{{labels},endpoint="r",{OTEL},replica="{replica}",status="a\\"b\\\\c,d"}} 1.0
ray_m3_requests_total{{{labels},endpoint="chat",{OTEL},replica="{replica}",status="ok"}} 3.0
# HELP ray_m3_engine_running Requests that an engine answers together.
# TYPE ray_m3_engine_running gauge
ray_m3_engine_running{{{labels},{OTEL},replica="{replica}"}} {running}
"""


RELAYED = """\
# HELP m3_route_latency_ms Features and decision.
# TYPE m3_route_latency_ms histogram
m3_route_latency_ms_bucket{APP,le="1.0",replica="r1"} 0.0
m3_route_latency_ms_bucket{APP,le="2.0",replica="r1"} 1.0
m3_route_latency_ms_bucket{APP,le="+Inf",replica="r1"} 2.0
m3_route_latency_ms_count{APP,replica="r1"} 2.0
m3_route_latency_ms_sum{APP,replica="r1"} 11.5
m3_route_latency_ms_bucket{APP,le="1.0",replica="r2"} 0.0
m3_route_latency_ms_bucket{APP,le="2.0",replica="r2"} 1.0
m3_route_latency_ms_bucket{APP,le="+Inf",replica="r2"} 2.0
m3_route_latency_ms_count{APP,replica="r2"} 2.0
m3_route_latency_ms_sum{APP,replica="r2"} 11.5
# HELP m3_requests_total Requests by endpoint and outcome.
# TYPE m3_requests_total counter
m3_requests_total{APP,endpoint="r",replica="r1",status="a\\"b\\\\c,d"} 1.0
m3_requests_total{APP,endpoint="chat",replica="r1",status="ok"} 3.0
m3_requests_total{APP,endpoint="r",replica="r2",status="a\\"b\\\\c,d"} 1.0
m3_requests_total{APP,endpoint="chat",replica="r2",status="ok"} 3.0
# HELP m3_engine_running Requests that an engine answers together.
# TYPE m3_engine_running gauge
m3_engine_running{APP,replica="r1"} 2.0
m3_engine_running{APP,replica="r2"} NaN
""".replace("APP", 'application="m3",deployment="gateway"')


@pytest.fixture
def nodes() -> Iterator[Callable[[str], str]]:
    """Serves a text at a port of its own and returns the address."""
    servers = []

    def serve(text: str) -> str:
        class Export(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Export)
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/metrics"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_exports_of_all_nodes_become_one(nodes: Callable[[str], str]) -> None:
    urls = [nodes(export("r1", "2.0")), nodes(export("r2", "NaN"))]
    assert asyncio.run(relayed_text(urls)) == RELAYED


def test_a_node_that_cannot_be_read_is_left_out(nodes: Callable[[str], str]) -> None:
    broken = nodes('ray_m3_requests_total{endpoint="chat} 1.0\n')
    good = nodes(export("r1", "2.0"))
    text = asyncio.run(relayed_text(["http://127.0.0.1:1/metrics", broken, good]))
    lines = text.splitlines()
    assert 'endpoint="chat",replica="r1",status="ok"} 3.0' in text
    assert lines[-2] == "# http://127.0.0.1:1/metrics cannot be read: ConnectError"
    assert lines[-1] == f"# {broken} cannot be read: ValueError"


def test_one_process_says_the_same_names() -> None:
    metrics = LocalMetrics()
    metrics.count("m3_requests", endpoint="chat", status="ok")
    metrics.gauge("m3_engine_running", 2)
    metrics.observe("m3_route_latency_ms", 1.5)
    text = asyncio.run(metrics.text())
    assert 'm3_requests_total{endpoint="chat",status="ok"} 1.0' in text
    assert "m3_engine_running 2.0" in text
    assert 'm3_route_latency_ms_bucket{le="2.0"} 1.0' in text
    assert 'm3_route_latency_ms_bucket{le="1.0"} 0.0' in text
