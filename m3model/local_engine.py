"""`LocalEngine`: the `Engine` that answers requests one after another in one worker thread.

The event loop is never blocked: the worker hands over each token with `call_soon_threadsafe`.
Sampling and stopping are transformers' own.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from m3model.detokenise import TextStream
from m3model.drawing import LogprobRecorder, logits_processors
from m3model.engine import EngineStats, Sampling, TokenEvent
from m3model.engine_request import EngineRequest, checked_request
from m3model.errors import (
    BadRequest,
    EngineBusy,
    EngineClosed,
    EngineError,
    RequestCancelled,
    RequestFailed,
)
from m3model.model import M3ForConditionalGeneration
from m3model.processing import M3Processor


class LocalEngine:
    """One model, one worker thread, oldest request first.

    Args:
        model: put into eval mode; shared use with other readers is fine, nothing about a request
            is kept on it.
        processor: for turning tokens into text.
        max_waiting: requests that may wait before `EngineBusy`.
        max_length: longest prompt plus answer; default: the language model's
            `max_position_embeddings`.
    """

    def __init__(
        self,
        model: M3ForConditionalGeneration,
        processor: M3Processor,
        *,
        max_waiting: int = 1024,
        max_length: int | None = None,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.max_waiting = max_waiting
        self.max_length = max_length or int(model.config.text_config.max_position_embeddings)
        self._end_ids = _end_ids(model)
        self._wake = threading.Condition()
        self._waiting: deque[EngineRequest] = deque()
        self._running: EngineRequest | None = None
        self._closing = False
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="m3-engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        request_id: str,
        prompt_ids: list[int],
        visual_tokens: list[torch.Tensor] | None = None,
        sampling: Sampling | None = None,
    ) -> AsyncIterator[TokenEvent]:
        """The answer's tokens; see `Engine.submit`. To be called where an event loop runs.

        Args:
            prompt_ids: one image token per picture (`M3Processor.prompt_ids`).
            visual_tokens: per picture (n_i, D), pooled already, any n_i and float dtype.
        """
        job = checked_request(
            self.model.config,
            self.max_length,
            request_id,
            list(prompt_ids),
            list(visual_tokens or ()),
            sampling or Sampling(),
        )
        with self._wake:
            if self._closing or not self._thread.is_alive():
                raise EngineClosed("the engine is closed")
            if len(self._waiting) >= self.max_waiting:
                raise EngineBusy(len(self._waiting))
            if any(other.request_id == request_id for other in self._in_flight()):
                raise BadRequest(f"request id {request_id!r} is in flight already")
            self._waiting.append(job)
            self._wake.notify()
        return self._stream(job)

    def cancel(self, request_id: str) -> bool:
        """Whether the request was in flight.

        It ends within one token and its reader gets `RequestCancelled`.
        """
        with self._wake:
            job = next((job for job in self._in_flight() if job.request_id == request_id), None)
        return job is not None and self._cancel(job)

    def stats(self) -> EngineStats:
        """The engine's state now."""
        with self._wake:
            jobs = self._in_flight()
            return EngineStats(
                running=int(self._running is not None),
                waiting=len(self._waiting),
                visual_tokens=sum(job.visual_count for job in jobs),
                text_tokens=sum(len(job.prompt_ids) - len(job.visual_tokens) for job in jobs),
                heartbeat_s=time.monotonic() - self._beat,
                alive=self._thread.is_alive() and not self._closing,
            )

    def close(self, timeout_s: float = 30.0) -> None:
        """Ends the worker; requests in flight get `EngineClosed`. Safe to call twice."""
        with self._wake:
            self._closing = True
            if self._running is not None:
                self._running.cancelled.set()
            self._wake.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _in_flight(self) -> list[EngineRequest]:
        return [*self._waiting, *([self._running] if self._running else [])]

    def _cancel(self, job: EngineRequest) -> bool:
        job.cancelled.set()
        with self._wake:
            if job in self._waiting:
                self._waiting.remove(job)
                job.deliver(RequestCancelled(f"request {job.request_id} was cancelled"))
                return True
            return job is self._running

    async def _stream(self, job: EngineRequest) -> AsyncIterator[TokenEvent]:
        try:
            while True:
                item = await job.events.get()
                if isinstance(item, EngineError):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            # A reader who leaves early needs no more tokens; after the end this does nothing.
            self._cancel(job)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._answer(job)
                end: EngineError | None = (
                    RequestCancelled(f"request {job.request_id} was cancelled")
                    if job.cancelled.is_set()
                    else None
                )
            except Exception as error:
                end = RequestFailed(f"request {job.request_id} failed: {error}")
                end.__cause__ = error
            with self._wake:
                self._running = None
                closing = self._closing
            if end is not None:
                job.deliver(EngineClosed("the engine was closed") if closing else end)
        with self._wake:
            left, self._waiting = list(self._waiting), deque()
        for job in left:
            job.deliver(EngineClosed("the engine was closed"))

    def _next(self) -> EngineRequest | None:
        with self._wake:
            while not self._waiting and not self._closing:
                self._beat = time.monotonic()
                self._wake.wait(timeout=0.5)
            if self._closing:
                return None
            self._running = self._waiting.popleft()
            self._beat = time.monotonic()
            return self._running

    @torch.no_grad()
    def _answer(self, job: EngineRequest) -> None:
        embeds = self.model.embed_prompt(job.prompt_ids, job.visual_tokens).unsqueeze(0)
        recorder = LogprobRecorder()
        step = _Step(self, job, recorder)
        self.model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device),
            generation_config=GenerationConfig(
                max_new_tokens=job.max_new_tokens,
                # Drawing is the last logits processor's work: it has the request's own generator.
                do_sample=False,
                eos_token_id=list(self._end_ids) or None,
                pad_token_id=self.model.generation_config.pad_token_id or 0,
            ),
            logits_processor=LogitsProcessorList(
                [recorder, *logits_processors(job.sampling, embeds.device)]
            ),
            stopping_criteria=StoppingCriteriaList([step]),
        )


class _Step(StoppingCriteria):
    """Called after every token: hands it over and says whether the answer is complete."""

    def __init__(self, engine: LocalEngine, job: EngineRequest, recorder: LogprobRecorder) -> None:
        self.engine, self.job, self.recorder = engine, job, recorder
        self.text = TextStream(engine.processor.tokenizer, job.sampling.stop)
        self.count = 0
        self.over = False

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        self.engine._beat = time.monotonic()
        if not self.over:
            self.over = self.job.cancelled.is_set() or self._hand_over(int(input_ids[0, -1]))
        return torch.full(
            (input_ids.shape[0],), self.over, dtype=torch.bool, device=input_ids.device
        )

    def _hand_over(self, token_id: int) -> bool:
        self.count += 1
        delta, stopped = self.text.push(token_id)
        reason = None
        if stopped or token_id in self.engine._end_ids:
            reason = "stop"
        elif self.count >= self.job.max_new_tokens:
            reason = "length"
        if reason is not None and not stopped:
            delta += self.text.flush()
        self.job.deliver(
            TokenEvent(token_id, float(self.recorder.logprobs[0, token_id]), delta, reason)
        )
        return reason is not None


def _end_ids(model: M3ForConditionalGeneration) -> frozenset[int]:
    ends: int | Sequence[int] | None = model.generation_config.eos_token_id
    if ends is None:
        ends = model.config.text_config.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)
