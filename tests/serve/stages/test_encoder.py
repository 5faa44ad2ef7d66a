"""The batcher, the picture cache, routing failures and the exchange of routers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router import Router
from router.actions import ActionSpace, uniform_space
from router.decision import Constraints, Reason
from serve.errors import BadRequest, ServeSetupError, TimedOut
from serve.metrics import LocalMetrics
from serve.settings import ServeSettings
from serve.stages.batcher import DrainBatcher
from serve.stages.checkpoint import Checkpoint, ModelCard, load_checkpoint
from serve.stages.encoder import Encoder
from serve.stages.messages import Encoded, EncodeRequest
from serve.stages.vision import Vision

Picture = Callable[..., bytes]


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path) -> Checkpoint:
    return load_checkpoint(tiny_model, half="encoder", device="cpu")


@pytest.fixture
def make_encoder(checkpoint: Checkpoint, tiny_model: Path) -> Iterator[Callable[..., Encoder]]:
    made: list[Encoder] = []

    def make(**more: Any) -> Encoder:
        settings = ServeSettings(
            model=tiny_model, **{"registry": None, "registry_poll_s": 0.02, **more}
        )
        made.append(Encoder(checkpoint, settings, LocalMetrics()))
        return made[-1]

    yield make
    for encoder in made:
        encoder.close()


def ask(encoder: Encoder, *pictures: bytes, **constraints: Any) -> Encoded:
    request = EncodeRequest(pictures, "What is it?", Constraints(**constraints))
    return asyncio.run(encoder.encode_and_route(request))


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


def test_a_dead_router_costs_tokens_not_answers(
    make_encoder: Callable[..., Encoder], make_router: Any, picture_bytes: Picture, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    make_router(tmp_path / "r", 1)
    encoder = make_encoder(router=tmp_path / "r")

    class Dead:
        version, space = "dead", uniform_space((1, 9, 36, 144, 576))

        def route(self, *arguments: Any) -> None:
            raise FloatingPointError("no number")

    encoder._router.current = Dead()  # type: ignore[assignment]
    for _ in range(3):
        decision = ask(encoder, picture_bytes(0)).decision
        assert (decision.scale, decision.reason) == (576, Reason.fallback)
    assert ask(encoder, picture_bytes(0), max_visual_tokens=200).decision.scale == 144
    pinned = ask(encoder, picture_bytes(0), pinned=9, reason=Reason.pinned).decision
    assert (pinned.scale, pinned.reason) == (9, Reason.pinned)
    text = asyncio.run(encoder._metrics.text())
    assert "m3_routing_failures_total 4.0" in text
    assert sum("routing failed" in record.message for record in caplog.records) == 1


def test_without_a_router_the_finest_scale_is_used(
    make_encoder: Callable[..., Encoder], picture_bytes: Picture
) -> None:
    decision = ask(make_encoder(), picture_bytes(0)).decision
    assert (decision.scale, decision.reason, decision.router_version) == (576, Reason.fallback, "")
    assert ask(make_encoder()).decision.reason is Reason.no_image


def test_truncated_pictures_are_the_callers_fault(
    make_encoder: Callable[..., Encoder], picture_bytes: Picture
) -> None:
    with pytest.raises(BadRequest, match="cut off"):
        ask(make_encoder(), picture_bytes(0)[:2000])


def test_the_registry_is_followed_and_bad_routers_change_nothing(
    make_encoder: Callable[..., Encoder], make_router: Any, promote: Any, tmp_path: Path
) -> None:
    registry = tmp_path / "registry"
    first = make_router(registry / "a", 9)
    second = make_router(registry / "b", 144)
    make_router(registry / "damaged", 1)
    (registry / "damaged" / "scale_0009.txt").write_text("tree\n")
    promote(registry, registry / "a")
    encoder = make_encoder(registry=registry)

    def wait_for(condition: Callable[[], bool]) -> None:
        for _ in range(200):
            if condition():
                return
            time.sleep(0.02)
        raise AssertionError("it did not happen within 4 s")

    assert encoder._router.version == first
    promote(registry, registry / "damaged")
    wait_for(lambda: not encoder._router.ok)
    assert encoder._router.version == first
    assert "m3_router_stale 1.0" in asyncio.run(encoder._metrics.text())
    (registry / "current").write_text("../../etc")
    time.sleep(0.1)
    assert encoder._router.version == first
    promote(registry, registry / "b")
    wait_for(lambda: encoder._router.version == second)
    assert encoder._router.ok
    with pytest.MonkeyPatch.context() as disk:

        def fails(*_: object, **__: object) -> str:
            raise OSError(5, "Input/output error")

        disk.setattr(Path, "read_text", fails)
        wait_for(lambda: not encoder._router.ok)
        assert encoder._router.version == second
    promote(registry, registry / "a")  # a rollback; the registry is followed on
    wait_for(lambda: encoder._router.version == first)


def test_a_registry_that_names_nothing_complains_of_nothing_once_it_can_be_read(
    make_encoder: Callable[..., Encoder], tmp_path: Path
) -> None:
    encoder = make_encoder(registry=tmp_path)
    (tmp_path / "current").mkdir()  # as unreadable as a disk that fails
    deadline = time.monotonic() + 4
    while encoder._router.ok and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not encoder._router.ok
    (tmp_path / "current").rmdir()
    while not encoder._router.ok and time.monotonic() < deadline:
        time.sleep(0.02)
    assert encoder._router.ok
    assert "m3_router_stale 0.0" in asyncio.run(encoder._metrics.text())


def test_a_registrys_router_is_not_exchanged_by_another_source(
    make_encoder: Callable[..., Encoder], make_router: Any, promote: Any, tmp_path: Path
) -> None:
    registry = tmp_path / "registry"
    version = {name: make_router(registry / name, n) for name, n in (("a", 9), ("b", 144))}
    chosen = make_router(tmp_path / "chosen", 36)
    encoder = make_encoder(registry=registry)

    def choose(folder: Path | None) -> bool:
        return asyncio.run(encoder.choose_router(folder))

    def gauge() -> str:
        text = asyncio.run(encoder._metrics.text())
        return next(x for x in text.splitlines() if x.startswith("m3_router_stale ")).split()[1]

    assert choose(tmp_path / "chosen")  # the registry points to nothing: one source
    assert (encoder._router.version, encoder._router.ok) == (chosen, True)
    promote(registry, registry / "a")  # it counts as soon as it is there, and not in silence
    for _ in range(200):
        if encoder._router.version == version["a"]:
            break
        time.sleep(0.02)
    assert (encoder._router.version, encoder._router.ok, gauge()) == (version["a"], False, "1.0")
    assert not choose(tmp_path / "chosen")
    promote(registry, registry / "b")
    for _ in range(200):
        if encoder._router.version == version["b"]:
            break
        time.sleep(0.02)
    # A new router of the registry mends nothing: user_config still says something else.
    assert (encoder._router.version, encoder._router.ok, gauge()) == (version["b"], False, "1.0")
    assert choose(None)
    assert (encoder._router.version, encoder._router.ok, gauge()) == (version["b"], True, "0.0")
    (registry / "current").unlink()
    assert choose(tmp_path / "chosen")
    time.sleep(0.1)
    assert encoder._router.version == chosen


def test_an_explicit_router_must_fit(
    make_encoder: Callable[..., Encoder], make_router: Any, promote: Any, tmp_path: Path
) -> None:
    from router import ComplexityPredictor, Policy, Router, feature_schema

    schema = feature_schema((1, 4), 2, 64)
    X = np.random.default_rng(0).standard_normal((20, len(schema.names))).astype(np.float32)
    predictor = ComplexityPredictor().fit(X, np.ones((20, 2)))
    Router(predictor, schema, Policy(costs=(0.1, 1.0), price=0.1)).save_pretrained(tmp_path / "r")
    with pytest.raises(ServeSetupError, match="scales"):
        make_encoder(router=tmp_path / "r")
    with pytest.raises(ServeSetupError, match="cannot be used"):
        make_encoder(router=tmp_path / "nothing")


def test_a_focus_must_be_of_the_models_levels(
    make_encoder: Callable[..., Encoder], make_focus_router: Any, tmp_path: Path
) -> None:
    fits = make_focus_router(tmp_path / "fits", "576")
    assert make_encoder(router=tmp_path / "fits")._router.version == fits.version
    for level, found in (("coarse", "4 and 144"), ("fine", "9 and 16")):
        other = replace(fits.space.actions[2], **{level: 4 if level == "coarse" else 16})
        space = ActionSpace((*fits.space.actions[:2], other, *fits.space.actions[3:]))
        Router(fits.predictor, fits.schema, fits.policy, space=space).save_pretrained(
            tmp_path / level
        )
        with pytest.raises(ServeSetupError, match=f"reads levels {found}, the model has"):
            make_encoder(router=tmp_path / level)


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
