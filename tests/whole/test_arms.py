"""A log of two arms is decided again by the two routers, each its own rows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pyarrow.parquet as pq

from router import Router
from router.log import read_log
from router.records import DecisionRecord, OracleRecord, from_table
from serve.in_process import compose
from serve.settings import ServeSettings
from training.evaluation.served import seen_in, served_again
from training.oracle.collection import collect
from training.registry.changes import try_out
from training.sources.log import log_source


def test_each_arm_is_decided_again_by_its_router(
    tiny_model: Path, make_focus_router: Callable[..., Router],
    ask_body: Callable[..., dict[str, Any]], tmp_path: Path,
) -> None:  # fmt: skip
    routers = [
        make_focus_router(tmp_path / "live", "9+144@500x12"),
        make_focus_router(tmp_path / "tried", "36"),
    ]
    try_out(tmp_path / "tried", "canary", 0.5, tmp_path / "registry")
    service = compose(
        ServeSettings(
            model=tiny_model, router=tmp_path / "live", registry=tmp_path / "registry",
            log_dir=tmp_path / "log", log_images=True,
        )
    )  # fmt: skip
    wishes: list[dict[str, Any]] = [{}, {"max_visual_tokens": 40}, {"focus": False}, {"scale": 9}]
    bodies = [
        ask_body(f"Is it {n}?", seeds=(n % 3,), max_tokens=2,
                 routing={**wishes[n % 4], "group_id": f"d{n // 2}"})
        for n in range(24)
    ]  # fmt: skip

    async def ask() -> None:
        transport = httpx2.ASGITransport(app=service.api)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            for body in bodies:
                assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
        await service.stop()

    asyncio.run(ask())
    records = from_table(read_log(tmp_path / "log").decisions, DecisionRecord)
    collect(log_source(tmp_path / "log"), tiny_model, tmp_path / "oracle", workers=1,
            space=routers[0].space)  # fmt: skip
    rows = [
        row
        for path in sorted((tmp_path / "oracle").glob("oracle-*.parquet"))
        for row in from_table(pq.read_table(path), OracleRecord)
    ]
    groups = {row.question_id: row.group_id for row in rows}
    found = [served_again(each, records, seen_in(rows, each)) for each in routers]
    assert [each.differing for each in found] == [[], []]
    assert sum(each.same for each in found) == len(bodies)
    for each, other in (found, found[::-1]):
        assert each.left_out == {"of another router": other.same}
        assert each.same > 0
    by_arm = {
        arm: {r.router_version for r in records if r.arm == arm} for arm in ("live", "canary")
    }
    assert by_arm == {"live": {routers[0].version}, "canary": {routers[1].version}}
    # What the caller called a group is one of the labels, too.
    assert {groups[r.request_id] for r in records} <= {r.group_id for r in records}
