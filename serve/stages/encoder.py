"""Pictures and a question in; the decision and the visual tokens that it reads out.

Knows batching, caching and the router; knows neither HTTP nor Ray nor the language model. A picture
is encoded once: requests that come together share the pass, later ones the cache. Its identity is
its pixels; the same bytes again are recognised before anything is decoded.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter, OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from router.actions import Reading
from serve.drift.restriction import in_words
from serve.drift.watch import DriftWatch
from serve.errors import NotReady, too_much_text
from serve.metrics import Metrics
from serve.settings import ServeSettings
from serve.stages.aside import Aside
from serve.stages.batcher import DrainBatcher
from serve.stages.checkpoint import Checkpoint
from serve.stages.deciding.decider import Decider
from serve.stages.decoding import Decoder, SharedWork
from serve.stages.in_time import in_time
from serve.stages.live_router import LiveRouter
from serve.stages.messages import Encoded, EncodeRequest, EncoderStatus, PoolRequest, focus_name
from serve.stages.prompts import Prompts, context_tokens
from serve.stages.vision import EncodedPicture, PreparedPicture, Vision, is_quick
from serve.telemetry import spans

MOST_DIGESTS = 16_384  # of pictures' bytes: some megabytes
# Done on the event loop: a thread's turn costs as much.
HASHED_AT_ONCE = 200_000  # bytes of a picture's file


class Encoder:
    """One encoder replica.

    Args:
        checkpoint: with its encoder half.
        settings: of the service.
        metrics: where measurements go.

    Raises:
        ServeSetupError: the router named in the settings cannot be used.
    """

    def __init__(self, checkpoint: Checkpoint, settings: ServeSettings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._vision = Vision(checkpoint, settings.pictures)
        self._prompts = Prompts(
            checkpoint.processor, context_tokens(checkpoint.model.config, settings.kv_tokens)
        )
        self._batcher: DrainBatcher[PreparedPicture, EncodedPicture] = DrainBatcher(
            self._vision.encode, settings.encoder_batch, "m3-vision"
        )
        self._vision.tell_progress(self._batcher.beat)
        self._decoder = Decoder(
            self._vision.count_pixels, self._vision.prepare, settings.max_decoding_pixels
        )
        self._decoding: SharedWork[PreparedPicture] = SharedWork()
        # For decisions and pooling, which take milliseconds: decoding has threads of its own.
        self._aside = Aside(2, "m3-decisions")
        self._ids: OrderedDict[bytes, str] = OrderedDict()  # sha256 of bytes, identity of pixels
        self._cache: OrderedDict[str, EncodedPicture] = OrderedDict()
        self._cache_bytes = 0
        self._encoding: dict[str, asyncio.Task[EncodedPicture]] = {}
        self._callers: Counter[str] = Counter()  # of each picture that is being encoded
        self._recipe = None if settings.log_dir is None else checkpoint.label_recipe
        self._drift = DriftWatch(metrics)
        self._router = LiveRouter(
            self._vision.check_router, metrics, settings.registry, settings.registry_poll_s,
            lambda: checkpoint.model_hash, self._drift.begin,
        )  # fmt: skip
        self._decider = Decider(
            self._vision, self._prompts, self._router, self._drift, settings, metrics, self._aside
        )
        self._router.start(settings.router, _default_router(settings))

    async def encode_and_route(self, request: EncodeRequest) -> Encoded:
        """Return the decision and the visual tokens.

        Raises:
            BadRequest: a picture cannot be decoded, the question or the prompt that is to be
                counted cannot fit the model's context, or no scale fits the cap.
            TimedOut: the request's time was over before.
        """
        return await in_time(self._encode_and_route(request), request.time_left_s)

    async def _encode_and_route(self, request: EncodeRequest) -> Encoded:
        if len(request.question) > self._vision.most_characters:
            raise too_much_text(len(request.question), self._vision.most_characters)
        text_tokens = 0
        if request.decide_only:
            text_tokens = len(await self._prompts.ids(request.prompt)) - len(request.pictures)
            self._prompts.check(text_tokens)
        started = time.perf_counter()
        n_pictures = len(request.pictures)
        with spans.span("m3.encode", request.traceparent, pictures=n_pictures) as work:
            pictures = await self._encode_all(request.pictures, work.traceparent)
            with spans.span("m3.route", work.traceparent):
                found = await self._decider.decide(request, pictures)
                decision = found.decision
            if request.decide_only:
                self._prompts.check(text_tokens + decision.visual_tokens)
            tokens: tuple[NDArray[np.float16], ...] = ()
            if pictures and not request.decide_only:
                focus = focus_name(decision.readings)
                with spans.span("m3.pool", work.traceparent, scale=decision.scale, focus=focus):
                    quick = is_quick(pictures)
                    tokens = await self._aside.done(quick, self._pool, pictures, decision.readings)
        encode_ms = _ms_since(started)
        if pictures:  # a question without any would make encoding look quick
            self._metrics.observe("m3_encode_latency_ms", encode_ms)
        ids = tuple(picture.picture_id for picture in pictures)
        return Encoded(
            ids, tokens, decision, encode_ms, text_tokens, found.action_space, found.held_to,
            found.certificate, self._recipe, found.arm, found.shadow,
        )  # fmt: skip

    async def pool(self, request: PoolRequest) -> NDArray[np.float16]:
        """Return the tokens (n, D) of a picture; one that was forgotten is encoded again."""
        reading = request.reading
        focus = focus_name((reading,))
        with spans.span("m3.pool", request.traceparent, scale=reading.scale, focus=focus) as work:
            known = self._cache.get(request.picture_id)
            if known is None:
                self._metrics.count("m3_second_look_encodes")
                known = await self._encode(request.picture, work.traceparent)
            quick = is_quick([known])
            return await self._aside.done(quick, self._vision.tokens, known, reading)

    async def status(self) -> EncoderStatus:
        """Return the state of this replica."""
        return EncoderStatus(
            router_version=self._router.version,
            router_ok=self._router.ok,
            cached_pictures=len(self._cache),
            heartbeat_s=self._batcher.heartbeat_s,
            certificate=self._router.certificate,
            trial=self._router.trial.told,
            restricted=in_words(self._router.restriction),
            drift=self._drift.told,
        )

    async def check_health(self) -> None:
        """Return if the loop runs and the vision worker is alive.

        Raises:
            NotReady: the worker has been silent for too long.
        """
        if self._batcher.heartbeat_s > self._settings.heartbeat_limit_s:
            raise NotReady(f"the vision worker is silent for {self._batcher.heartbeat_s:.0f} s")

    async def choose_router(self, folder: Path | None) -> bool:
        """Return whether the router in ``folder`` was taken over; never raises for a bad one.

        A registry that points to a router overrules it. None: no router is chosen any more.
        """
        return await asyncio.to_thread(self._router.choose, folder)

    def close(self) -> None:
        """Stop the threads."""
        self._router.stop()
        self._batcher.close()
        self._decoder.close()
        self._prompts.close()
        self._aside.close()

    async def _encode_all(
        self, pictures: tuple[bytes, ...], parent: str | None
    ) -> list[EncodedPicture]:
        if len(pictures) == 1:
            return [await self._encode(pictures[0], parent)]
        tasks = [asyncio.create_task(self._encode(data, parent)) for data in pictures]
        try:
            return await asyncio.gather(*tasks)
        finally:  # one bad picture ends the request, so nobody wants the others any more
            for task in tasks:
                task.cancel()

    async def _encode(self, data: bytes, parent: str | None) -> EncodedPicture:
        digest = await self._aside.done(len(data) <= HASHED_AT_ONCE, _sha256, data)
        key = self._ids.get(digest, "")
        if not self._is_at_hand(key):
            with spans.span("m3.decode_picture", parent, bytes=len(data)):
                prepared = await self._decoding.join(digest, partial(self._decoder.decode, data))
            key = prepared.picture_id
            self._note_id(digest, key)
            if not self._is_at_hand(key):
                self._metrics.count("m3_picture_cache", outcome="miss")
                task = asyncio.create_task(self._encode_new(prepared))
                self._encoding[key] = task
                task.add_done_callback(lambda done: self._forget_task(key, done))
                with spans.span("m3.vision", parent, cache="miss"):
                    return await self._shared(key)
        self._note_id(digest, key)
        if (known := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
            self._metrics.count("m3_picture_cache", outcome="hit")
            with spans.span("m3.vision", parent, cache="hit"):
                return known
        self._metrics.count("m3_picture_cache", outcome="shared")
        with spans.span("m3.vision", parent, cache="shared"):
            return await self._shared(key)

    async def _shared(self, key: str) -> EncodedPicture:
        self._callers[key] += 1
        try:
            # One caller's disconnect must not take the pass from the others.
            return await asyncio.shield(self._encoding[key])
        finally:
            self._callers[key] -= 1
            if not self._callers[key]:
                del self._callers[key]

    def _is_wanted(self, key: str) -> bool:
        if self._callers[key]:
            return True
        self._encoding.pop(key, None)  # its turn has come, and all who waited for it have left
        return False

    def _is_at_hand(self, key: str) -> bool:
        return key in self._cache or key in self._encoding

    def _note_id(self, digest: bytes, key: str) -> None:
        self._ids[digest] = key
        self._ids.move_to_end(digest)
        if len(self._ids) > MOST_DIGESTS:
            self._ids.popitem(last=False)

    async def _encode_new(self, prepared: PreparedPicture) -> EncodedPicture:
        wanted = partial(self._is_wanted, prepared.picture_id)
        encoded = await self._batcher.submit(prepared, wanted)
        self._remember(encoded)
        return encoded

    def _forget_task(self, key: str, done: asyncio.Task[EncodedPicture]) -> None:
        if self._encoding.get(key) is done:
            del self._encoding[key]
        if not done.cancelled():
            done.exception()  # marked as seen: its callers got it, if any are left

    def _remember(self, encoded: EncodedPicture) -> None:
        self._cache[encoded.picture_id] = encoded
        self._cache_bytes += encoded.n_bytes
        while self._cache_bytes > self._settings.encoder_cache_bytes and self._cache:
            _, oldest = self._cache.popitem(last=False)
            self._cache_bytes -= oldest.n_bytes

    def _pool(
        self, pictures: list[EncodedPicture], readings: tuple[Reading, ...]
    ) -> tuple[NDArray[np.float16], ...]:
        return tuple(map(self._vision.tokens, pictures, readings))


def _default_router(settings: ServeSettings) -> Path | None:
    from router import default_router_path

    return default_router_path() if settings.is_embedded_model() else None


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000.0
