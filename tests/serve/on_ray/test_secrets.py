"""What Ray writes into its folders: nothing of what callers ask, send or prove themselves with."""

from __future__ import annotations

import base64
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]
CHAT = "/v1/chat/completions"
PROMPT, KEY = "which zebra hides the wombat", "sk-tapir-4711"


def test_nothing_of_a_request_is_in_rays_folders(
    ray_service: Any, ask_body: Callable[..., Any], picture_bytes: Any, picture_url: Any
) -> None:
    from ray import serve
    from ray._private.worker import _global_node

    from serve.errors import ServiceError
    from serve.stages.messages import GenerateRequest, PoolRequest

    body = ask_body(PROMPT, seeds=(66,))
    cut = ask_body(PROMPT)
    cut["messages"][0]["content"][0]["image_url"]["url"] = picture_url(66)[: 22 + 4000]
    key = {"authorization": f"Bearer {KEY}"}
    with httpx2.Client(base_url=ray_service.url, headers=key, timeout=60) as http:
        for status, said in (
            (200, body), (200, body | {"stream": True}), (400, cut), (400, [PROMPT]),
            (400, ask_body(f"{PROMPT} " * 500)), (400, body | {"logit_bias": {PROMPT: 1}}),
        ):  # fmt: skip
            reply = http.post(CHAT, json=said)
            assert reply.status_code == status, reply.text
        long = body | {"stream": True, "max_tokens": 1000, "model": "m3-576"}
        with http.stream("POST", CHAT, json=long):
            pass  # the caller leaves
        # Faults of the service's own: what the stages raise quotes what they were asked.
        generator = serve.get_deployment_handle("generator", "m3").options(stream=True)
        broken = GenerateRequest("r", ({"role": PROMPT, "content": PROMPT},), ())
        with pytest.raises(ServiceError, match="The service failed on this request") as told:
            list(generator.generate.remote(broken))
        encoder = serve.get_deployment_handle("encoder", "m3")
        wrong: Any = PROMPT
        asked = PoolRequest("x", picture_bytes(66), wrong)
        with pytest.raises(ServiceError, match="The service failed on this request"):
            encoder.pool.remote(asked).result(timeout_s=30)
    assert PROMPT not in str(told.value)

    session = Path(_global_node.get_session_dir_path())
    deadline = time.monotonic() + 20
    while "ValueError: (its words" not in (text := written(session)):
        assert time.monotonic() < deadline, "the failure is not in Ray's logs"
        time.sleep(0.5)
    data = picture_url(66).partition(",")[2]
    raw = base64.b64decode(data)[40:72].decode("latin-1")
    secrets = (PROMPT, KEY, data[100:200], raw, repr(raw))
    assert [secret for secret in secrets if secret in text] == []


def written(folder: Path) -> str:
    """Everything in the files below a folder: logs, and objects that were spilled to disk."""
    files = [path for path in folder.rglob("*") if stat.S_ISREG(path.lstat().st_mode)]
    return "\n".join(path.read_bytes().decode("latin-1") for path in files)
