"""Decoding apart from decisions: what is recognised undecoded, admitted, and given back."""

from __future__ import annotations

import asyncio
import io
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from router.actions import Reading
from router.decision import Constraints, Reason
from router.records import picture_id
from serve.errors import BadRequest
from serve.metrics import LocalMetrics
from serve.settings import ServeSettings
from serve.stages import encoder as encoder_module
from serve.stages.checkpoint import Checkpoint, load_checkpoint
from serve.stages.decoding import SMALL_PIXELS, Decoder, PixelBudget, SharedWork
from serve.stages.encoder import Encoder
from serve.stages.messages import Encoded, EncodeRequest, PoolRequest


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path) -> Checkpoint:
    return load_checkpoint(tiny_model, half="encoder", device="cpu")


class Watched:
    """An encoder whose decodings are counted, and may be held up."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.decoded = encoder, list[bytes]()
        self.held, self.go = set[bytes](), threading.Event()
        self.go.set()
        decode = encoder._decoder._decode

        def watched(data: bytes) -> Any:
            self.decoded.append(data)
            if data in self.held:
                assert self.go.wait(30)
            return decode(data)

        encoder._decoder._decode = watched

    async def ask(self, *pictures: bytes) -> Encoded:
        wish = Constraints(pinned=9, reason=Reason.pinned)
        return await self.encoder.encode_and_route(EncodeRequest(pictures, "What is it?", wish))


@pytest.fixture
def watch(checkpoint: Checkpoint, tiny_model: Path) -> Iterator[Callable[..., Watched]]:
    made: list[Watched] = []

    def make(**more: Any) -> Watched:
        settings = ServeSettings(model=tiny_model, registry=None, **more)
        made.append(Watched(Encoder(checkpoint, settings, LocalMetrics())))
        return made[-1]

    yield make
    for watched in made:
        watched.go.set()
        watched.encoder.close()


def one_colour(side: int, shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 90, 200)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


LARGE = 1600  # a side, so that a picture is no small one
assert LARGE**2 > SMALL_PIXELS


def test_a_repeated_picture_is_not_decoded(
    watch: Callable[..., Watched], picture_bytes: Any
) -> None:
    watched, data = watch(), picture_bytes(3)
    with Image.open(io.BytesIO(data)) as picture:
        pixels = np.asarray(picture.convert("RGB"))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", compress_level=0)
    other_file = buffer.getvalue()

    async def run() -> None:
        first = await watched.ask(data, data)
        again = await watched.ask(data)
        assert watched.decoded == [data]
        assert (await watched.ask(other_file)).picture_ids == again.picture_ids
        assert watched.decoded == [data, other_file]
        await watched.ask(other_file, data)
        assert len(watched.decoded) == 2
        assert {*first.picture_ids, *again.picture_ids} == {picture_id(pixels)}
        assert len(watched.encoder._cache) == 1
        looked = await watched.encoder.pool(
            PoolRequest(picture_id(pixels), data, Reading.uniform(36))
        )
        assert looked.shape[0] == 36
        assert len(watched.decoded) == 2

    asyncio.run(run())


def test_a_forgotten_picture_is_decoded_again(
    watch: Callable[..., Watched], picture_bytes: Any
) -> None:
    watched, data = watch(encoder_cache_bytes=0), picture_bytes(3)

    async def run() -> None:
        (key,) = (await watched.ask(data)).picture_ids
        tokens = await watched.encoder.pool(PoolRequest(key, data, Reading.uniform(9)))
        np.testing.assert_array_equal(tokens, (await watched.ask(data)).visual_tokens[0])
        assert watched.decoded == [data] * 3

    asyncio.run(run())


def test_digests_are_kept_in_number(
    watch: Callable[..., Watched], picture_bytes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_module, "MOST_DIGESTS", 2)
    watched = watch()

    async def run() -> None:
        for seed in (0, 1, 0, 2):
            await watched.ask(picture_bytes(seed))
        assert len(watched.encoder._ids) == 2
        await watched.ask(picture_bytes(0))
        assert len(watched.decoded) == 3  # the oldest digest was that of 1
        await watched.ask(picture_bytes(1))
        assert len(watched.decoded) == 4

    asyncio.run(run())


def test_decisions_and_small_pictures_do_not_wait_for_large_ones(
    watch: Callable[..., Watched], picture_bytes: Any
) -> None:
    watched = watch()
    large = [one_colour(LARGE, shade) for shade in range(6)]

    async def run() -> None:
        await watched.ask(picture_bytes(0))
        watched.held.update(large)
        watched.go.clear()
        waiting = asyncio.gather(*(watched.ask(data) for data in large))
        while not any(data in watched.decoded for data in large):
            await asyncio.sleep(0.01)
        await watched.ask(picture_bytes(0))  # known
        await watched.ask(picture_bytes(1))  # new
        assert not waiting.done()
        watched.go.set()
        assert len({encoded.picture_ids for encoded in await waiting}) == 6

    asyncio.run(asyncio.wait_for(run(), 60))


def test_who_leaves_gives_pixels_back(watch: Callable[..., Watched]) -> None:
    watched = watch(max_decoding_pixels=LARGE**2)
    first, second, third = (one_colour(LARGE, shade) for shade in range(3))
    budget = watched.encoder._decoder.budget

    async def run() -> None:
        watched.held.add(first)
        watched.go.clear()
        decoding = asyncio.create_task(watched.ask(first))
        while first not in watched.decoded:
            await asyncio.sleep(0.01)
        leaving = [asyncio.create_task(watched.ask(second)) for _ in range(2)]
        staying = asyncio.create_task(watched.ask(third))
        while len(budget._waiting) < 2:
            await asyncio.sleep(0.01)
        for task in (decoding, *leaving):
            task.cancel()
        await asyncio.wait([decoding, *leaving])
        assert budget.in_flight == LARGE**2  # its thread works on, whoever left
        assert len(budget._waiting) == 1
        watched.go.set()
        await staying
        assert budget.in_flight == 0
        assert watched.decoded == [first, third]  # nobody waited for the second

    asyncio.run(asyncio.wait_for(run(), 60))


def test_one_bad_picture_ends_the_work_on_the_others(watch: Callable[..., Watched]) -> None:
    watched = watch(max_decoding_pixels=1)
    bad, held, waiting = one_colour(40)[:-30], one_colour(LARGE, 1), one_colour(LARGE, 2)

    async def run() -> None:
        watched.held.update([held])
        watched.go.clear()
        holding = asyncio.create_task(watched.ask(held))
        while held not in watched.decoded:
            await asyncio.sleep(0.01)
        with pytest.raises(BadRequest, match="cut off"):
            await watched.ask(waiting, bad)
        watched.go.set()
        await holding
        assert waiting not in watched.decoded

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("seed", range(8))
def test_the_budget_admits_all_and_never_too_much(seed: int) -> None:
    """Outside truth: what the workers themselves hold at any moment."""
    draw, most = random.Random(seed), 100
    budget, held, done = PixelBudget(most), list[int](), list[int]()

    async def work(index: int, pixels: int) -> None:
        await budget.take(pixels)
        held.append(pixels)
        try:
            assert sum(held) <= most or len(held) == 1
            for _ in range(draw.randrange(4)):
                await asyncio.sleep(0)
            done.append(index)
        finally:
            held.remove(pixels)
            budget.give_back(pixels)

    async def run() -> None:
        tasks, left = [], set()
        for index in range(300):
            size = draw.choice([1, 5, 30, 60, 99, 100, 101, 1000])
            tasks.append(asyncio.create_task(work(index, size)))
            if draw.random() < 0.4:
                await asyncio.sleep(0)
            if draw.random() < 0.3:
                victim = draw.randrange(len(tasks))
                if tasks[victim].cancel():
                    left.add(victim)
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        failed = [t.exception() for t in tasks if not t.cancelled() and t.exception()]
        assert failed == []
        assert set(done) >= set(range(300)) - left
        assert budget.in_flight == 0
        await budget.take(1000)

    asyncio.run(run())


def test_arrival_decides_so_the_large_are_not_starved() -> None:
    async def run() -> list[str]:
        budget, order = PixelBudget(10), list[str]()

        async def work(name: str, pixels: int) -> None:
            await budget.take(pixels)
            order.append(name)
            await asyncio.sleep(0)
            budget.give_back(pixels)

        await budget.take(8)
        tasks = [asyncio.create_task(work(*job)) for job in (("large", 10), ("small", 1))]
        await asyncio.sleep(0)
        assert order == []
        budget.give_back(8)
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(run()) == ["large", "small"]


@pytest.mark.parametrize("seed", range(4))
def test_threads_hold_no_more_than_the_budget(seed: int) -> None:
    """Mixed sizes, failures and callers who leave at any time; counted by the threads."""
    draw, most, lock = random.Random(seed), 10 * SMALL_PIXELS, threading.Lock()
    held, worst = list[int](), list[int]()

    def decode(data: bytes) -> int:
        pixels = int(data)
        if pixels > SMALL_PIXELS:
            with lock:
                held.append(pixels)
                worst.append(sum(held) if len(held) > 1 else 0)
            threading.Event().wait(0.001)
            with lock:
                held.remove(pixels)
        if pixels % 7 == 0:
            raise BadRequest("damaged")
        return pixels

    async def run() -> None:
        decoder = Decoder(int, decode, most)
        shared: SharedWork[int] = SharedWork()
        tasks = []
        for _ in range(150):
            pixels = draw.choice(
                [3, 7, SMALL_PIXELS, *(SMALL_PIXELS * k + 1 for k in range(1, 13))]
            )
            data = str(pixels).encode()
            tasks.append(asyncio.create_task(shared.join(data, lambda d=data: decoder.decode(d))))
            if draw.random() < 0.5:
                await asyncio.sleep(0)
            if draw.random() < 0.4:
                tasks[draw.randrange(len(tasks))].cancel()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        assert {type(r) for r in results} <= {int, BadRequest, asyncio.CancelledError}
        assert await asyncio.wait_for(decoder.decode(str(2 * most).encode()), 60) == 2 * most
        while decoder.budget.in_flight:
            await asyncio.sleep(0.001)
        assert not shared._shared
        decoder.close()

    asyncio.run(run())
    assert max(worst) <= most
