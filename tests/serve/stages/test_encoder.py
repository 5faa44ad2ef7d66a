"""The encoder: its batcher, the picture cache, tokens and scales of what it reads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router.decision import Constraints, Reason
from serve.errors import BadRequest, ServeSetupError, TimedOut
from serve.settings import ServeSettings
from serve.stages.batcher import DrainBatcher
from serve.stages.checkpoint import Checkpoint, ModelCard
from serve.stages.encoder import Encoder
from serve.stages.messages import Encoded, EncodeRequest
from serve.stages.vision import Vision

from .conftest import ask

Picture = Callable[..., bytes]


def in_context(
    encoder: Encoder,
    *pictures: bytes,
    text: str = "What is it?",
    decide_only: bool = False,
    **constraints: Any,
) -> Encoded:
    content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": text}]
    prompt = ({"role": "user", "content": content},)
    request = EncodeRequest(pictures, text, Constraints(**constraints), decide_only, prompt=prompt)
    return asyncio.run(encoder.encode_and_route(request))


def test_what_nobody_fixed_is_read_as_finely_as_the_context_allows(
    make_encoder: Callable[..., Encoder], picture_bytes: Picture,
    make_router: Callable[[Path, int], str], tmp_path: Path,
) -> None:  # fmt: skip
    make_router(tmp_path, 576)
    pictures = [picture_bytes(seed) for seed in range(3)]
    for router, reason in ((tmp_path, Reason.budget_cap), (None, Reason.fallback)):
        encoder = make_encoder(router=router, kv_tokens=800)  # in all, prompt and answer
        assert in_context(encoder, pictures[0]).decision.scales == (576,)
        for words in (1, 100, 500, 700):
            told = in_context(encoder, *pictures, text="what " * words, decide_only=True)
            prompt = told.text_tokens + told.decision.visual_tokens
            assert (prompt < 800, told.decision.reason) == (True, reason)
            answered = in_context(encoder, *pictures, text="what " * words).decision
            assert answered.scales == told.decision.scales
        assert in_context(encoder, *pictures, max_visual_tokens=50).decision.visual_tokens <= 50
        # The caller's own wish is not changed: whoever reads the prompt refuses it.
        assert in_context(encoder, *pictures, pinned=576).decision.scales == (576,) * 3
        hopeless = in_context(encoder, *pictures, text="what " * 797).decision
        assert hopeless.scales == (576,) * 3
    assert in_context(encoder, *pictures, text="what " * 500).decision.scales == (144, 36, 36)


def test_batches_close_when_the_worker_is_free() -> None:
    batches: list[list[int]] = []
    go = threading.Event()

    def work(items: list[int]) -> list[int]:
        batches.append(items)
        go.wait(5)
        return [10 * item for item in items]

    async def run() -> list[int]:
        batcher = DrainBatcher(work, max_items=3, name="test")
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.05)  # the worker has it, so the others wait together
        rest = [asyncio.create_task(batcher.submit(i)) for i in range(1, 6)]
        await asyncio.sleep(0.05)
        assert batcher.heartbeat_s > 0.05
        rest[1].cancel()
        go.set()
        results = await asyncio.gather(first, *rest, return_exceptions=True)
        assert isinstance(results.pop(2), asyncio.CancelledError)
        assert batcher.heartbeat_s == 0.0
        batcher.close()
        return results

    assert asyncio.run(run()) == [0, 10, 30, 40, 50]
    assert batches == [[0], [1, 3, 4], [5]]  # oldest first, the cancelled one never


def test_a_failing_batch_fails_its_callers_only() -> None:
    def work(items: list[int]) -> list[int]:
        if 1 in items:
            raise RuntimeError("boom")
        return items

    async def run() -> None:
        batcher = DrainBatcher(work, max_items=1, name="test")
        with pytest.raises(RuntimeError, match="boom"):
            await batcher.submit(1)
        assert await batcher.submit(2) == 2
        batcher.close()

    asyncio.run(run())


def test_tokens_are_the_models_own_pooled(
    make_encoder: Callable[..., Encoder], tiny_model: Path, picture_bytes: Picture
) -> None:
    import io

    import torch
    from PIL import Image

    from m3model import M3ForConditionalGeneration, M3Processor

    model = M3ForConditionalGeneration.from_pretrained(tiny_model).eval()
    pixels = M3Processor.from_pretrained(tiny_model).pixel_values(
        Image.open(io.BytesIO(picture_bytes(5)))
    )
    with torch.no_grad():
        grid = model.encode_images(pixels)[0].numpy()
    encoded = ask(make_encoder(), picture_bytes(5), pinned=9, reason=Reason.pinned)
    means = grid.reshape(3, 8, 3, 8, -1).mean(axis=(1, 3)).reshape(9, -1)
    assert encoded.visual_tokens[0].dtype == np.float16
    np.testing.assert_allclose(encoded.visual_tokens[0], means, rtol=1e-3, atol=1e-3)


def test_a_picture_is_encoded_once(
    make_encoder: Callable[..., Encoder], picture_bytes: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = make_encoder()
    passes: list[int] = []
    encode = encoder._vision.encode

    def counted(pictures: Any) -> Any:
        passes.append(len(pictures))
        time.sleep(0.05)
        return encode(pictures)

    monkeypatch.setattr(encoder._batcher, "_work", counted)
    request = EncodeRequest((picture_bytes(1),), "What is it?", Constraints())

    async def run() -> None:
        impatient = asyncio.create_task(encoder.encode_and_route(request))
        await asyncio.sleep(0.03)
        impatient.cancel()  # must not take the pass from the others
        await asyncio.gather(*(encoder.encode_and_route(request) for _ in range(5)))
        await encoder.encode_and_route(request)

    asyncio.run(run())
    assert sum(passes) == 1


def test_pictures_that_nobody_waits_for_any_more_are_not_encoded(
    make_encoder: Callable[..., Encoder], picture_bytes: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = make_encoder(encoder_batch=1)
    passes: list[int] = []
    goes_on = threading.Event()
    encode = encoder._vision.encode

    def counted(pictures: Any) -> Any:
        passes.append(len(pictures))
        goes_on.wait(20)
        return encode(pictures)

    monkeypatch.setattr(encoder._batcher, "_work", counted)
    requests = [
        EncodeRequest((picture_bytes(seed),), "What is it?", Constraints()) for seed in range(3)
    ]

    async def run() -> None:
        first = asyncio.create_task(encoder.encode_and_route(requests[0]))
        while not passes:
            await asyncio.sleep(0.001)
        late, other, again = (
            asyncio.create_task(encoder.encode_and_route(request))
            for request in (requests[1], requests[2], requests[2])
        )
        while len(encoder._batcher) < 2 or max(encoder._callers.values()) < 2:
            await asyncio.sleep(0.001)
        late.cancel()
        other.cancel()
        goes_on.set()
        await asyncio.gather(first, again)

    asyncio.run(run())
    assert len(passes) == 2  # the first, and the third, for which one of two has waited
    assert (encoder._encoding, encoder._callers) == ({}, {})


def test_who_has_no_time_left_is_refused(
    make_encoder: Callable[..., Encoder], picture_bytes: Picture
) -> None:
    for left_s in (0.0, 1e-9):
        request = EncodeRequest((picture_bytes(1),), "?", Constraints(), time_left_s=left_s)
        with pytest.raises(TimedOut):
            asyncio.run(make_encoder().encode_and_route(request))


def test_the_cache_forgets_the_oldest(
    make_encoder: Callable[..., Encoder], picture_bytes: Picture
) -> None:
    encoder = make_encoder()
    ask(encoder, picture_bytes(0))
    one = encoder._cache_bytes
    small = make_encoder(encoder_cache_bytes=int(2.5 * one))
    ids = [ask(small, picture_bytes(seed)).picture_ids[0] for seed in (0, 1, 0, 2)]
    assert list(small._cache) == [ids[0], ids[3]]
    assert small._cache_bytes == 2 * one
    off = make_encoder(encoder_cache_bytes=0)
    ask(off, picture_bytes(0))
    assert not off._cache


def test_several_pictures_have_their_own_scales(
    make_encoder: Callable[..., Encoder], make_router: Any, picture_bytes: Picture, tmp_path: Path
) -> None:
    make_router(tmp_path / "r", 36)
    encoded = ask(make_encoder(router=tmp_path / "r"), picture_bytes(0), picture_bytes(1))
    assert encoded.decision.scale == 36
    assert encoded.decision.visual_tokens == 72
    assert [tokens.shape[0] for tokens in encoded.visual_tokens] == [36, 36]
    assert encoded.decision.p_suffices is not None
    assert encoded.decision.p_suffices[576] > 0.9 > 0.1 > encoded.decision.p_suffices[9]
    capped = ask(
        make_encoder(router=tmp_path / "r"),
        picture_bytes(0),
        picture_bytes(1),
        max_visual_tokens=50,
    )
    # One that suffices is affordable, two are not: the other gets the cheapest of what is as bad.
    assert (capped.decision.scales, capped.decision.reason) == ((36, 1), Reason.budget_cap)
    assert (capped.decision.scale, capped.decision.visual_tokens) == (36, 37)
    assert [tokens.shape[0] for tokens in capped.visual_tokens] == [36, 1]


def test_truncated_pictures_are_the_callers_fault(
    make_encoder: Callable[..., Encoder], picture_bytes: Picture
) -> None:
    with pytest.raises(BadRequest, match="cut off"):
        ask(make_encoder(), picture_bytes(0)[:2000])


def test_a_model_card_needs_scales(tmp_path: Path, tiny_model: Path) -> None:
    assert ModelCard.read(tiny_model).scales == (1, 9, 36, 144, 576)
    for text in ("", "{}", '{"scales": "x"}', '{"scales": []}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ServeSetupError):
            ModelCard.read(tmp_path)


def test_every_layer_of_the_tower_is_a_sign_of_life(
    checkpoint: Checkpoint, picture_bytes: Any
) -> None:
    beats: list[int] = []
    vision = Vision(checkpoint, ServeSettings().pictures)
    vision.tell_progress(lambda: beats.append(1))
    vision.encode([vision.prepare(picture_bytes(0)), vision.prepare(picture_bytes(1))])
    assert len(beats) == checkpoint.model.config.vision_config.num_hidden_layers
