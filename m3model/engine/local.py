"""`LocalEngine`: the `Engine` of this package. Requests of any granularity share every pass.

A worker thread takes requests in order of arrival once the key-value cache has room for them, and
runs pass after pass: a next token for each answer, a share of each prompt. Requests join and leave
between passes. The event loop is never blocked.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence

import torch

from m3model.engine.detokenise import TextStream
from m3model.engine.interface import EngineStats, Sampling, TokenEvent
from m3model.engine.kv_pool import MOST_COMPARED, Extent, Prefix
from m3model.engine.passes.forward import PackedModel, Said, end_ids
from m3model.engine.passes.sampling import draw_of
from m3model.engine.request import (
    EngineRequest,
    Row,
    checked_request,
    deliver_all,
    forget_frames,
    next_chunks,
)
from m3model.errors import (
    BadRequest,
    EngineBusy,
    EngineClosed,
    EngineError,
    RequestFailed,
)
from m3model.model import M3ForConditionalGeneration
from m3model.processing import M3Processor

PROMPT_TOKENS_A_STEP = 512  # on a CPU, where more only makes answers wait
GPU_PROMPT_TOKENS_A_STEP = 2048
LEAST_PROMPT_TOKENS = 32  # a step that does not fit the memory is tried again down to this
STEPS_UNTIL_MORE = 64  # that went well, and prompts get twice the share again
FAILED_STEPS = 3  # in a row, and the engine gives up: a broken device fails them all
LOG = logging.getLogger(__name__)


class LocalEngine:
    """One model, one worker thread, many requests at once.

    Args:
        model: put into eval mode; shared use with other readers is fine, nothing about a request
            is kept on it.
        processor: for turning tokens into text.
        max_running: requests that share a pass.
        max_waiting: requests that may wait before `EngineBusy`.
        max_length: longest prompt plus answer; default: the language model's
            `max_position_embeddings`. Never more than the cache holds.
        kv_tokens: tokens that the key-value cache holds, all requests together; default: what
            memory allows (`pool_for`).
        prompt_tokens: prompt tokens that a pass reads at most; default: 512, 2,048 on a GPU.
        ahead: whether a pass is begun before the one before it was read, so that a device works
            while its answers are looked at; default: on a GPU. An answer that ends costs one token
            that nobody reads.

    Raises:
        ValueError: a language model that shared passes would get wrong.
    """

    def __init__(
        self,
        model: M3ForConditionalGeneration,
        processor: M3Processor,
        *,
        max_running: int = 256,
        max_waiting: int = 1024,
        max_length: int | None = None,
        kv_tokens: int | None = None,
        prompt_tokens: int | None = None,
        ahead: bool | None = None,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.max_running = max_running
        self.max_waiting = max_waiting
        longest = max_length or int(model.config.text_config.max_position_embeddings)
        self._beat = time.monotonic()
        self._packed = PackedModel(
            model, kv_tokens=kv_tokens, longest=longest, most=max_running,
            beat=self._give_sign_of_life,
        )  # fmt: skip
        self._pool = self._packed.pool
        self.max_length = min(longest, self._pool.tokens)
        self._end_ids = end_ids(model)
        on_gpu = self._pool.keys.is_cuda
        self._ahead = on_gpu if ahead is None else ahead
        self.prompt_tokens = prompt_tokens or (
            GPU_PROMPT_TOKENS_A_STEP if on_gpu else PROMPT_TOKENS_A_STEP
        )
        self._share = self.prompt_tokens  # of prompts in a pass, now
        self._went_well = self._failures = 0  # passes in a row
        self._wake = threading.Condition()  # guards the two below and the pool's bookkeeping
        self._waiting: deque[EngineRequest] = deque()
        self._rows: list[Row] = []
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="m3-engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        request_id: str,
        prompt_ids: list[int],
        visual_tokens: torch.Tensor | Sequence[torch.Tensor] | None = None,
        sampling: Sampling | None = None,
    ) -> AsyncIterator[TokenEvent]:
        """The answer's tokens; see `Engine.submit`. To be called where an event loop runs.

        Args:
            prompt_ids: one image token per picture (`M3Processor.prompt_ids`).
            visual_tokens: per picture (n_i, D), or one (n, D); pooled already, any n, any float; to
                be left as they are until the first token comes.
        """
        job = checked_request(
            self.model.config, self.max_length, request_id, list(prompt_ids), visual_tokens,
            sampling or Sampling(),
        )  # fmt: skip
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

        Its room is free within one step and its reader gets `RequestCancelled`.
        """
        with self._wake:
            job = next((job for job in self._in_flight() if job.request_id == request_id), None)
        return job is not None and self._cancel(job)

    def stats(self) -> EngineStats:
        """The engine's state now."""
        with self._wake:
            jobs = self._in_flight()
            visual = sum(job.visual_count for job in jobs)
            return EngineStats(
                running=len(self._rows),
                waiting=len(self._waiting),
                visual_tokens=visual,
                text_tokens=sum(job.prompt_tokens for job in jobs) - visual,
                heartbeat_s=time.monotonic() - self._beat,
                alive=self._thread.is_alive() and not self._closing,
                kv_pages=self._pool.pages,
                kv_pages_used=self._pool.pages_used,
                kv_pages_kept=self._pool.pages_kept,
                attention=self._packed.step.name,
                device=str(self._pool.keys.device),
                dtype=str(self._pool.keys.dtype).removeprefix("torch."),
                products=self._packed.product.name,
            )

    def close(self, timeout_s: float = 30.0) -> None:
        """Gives worker and cache up; what is in flight gets `EngineClosed`. Safe to call twice."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _give_sign_of_life(self) -> None:
        self._beat = time.monotonic()

    def _in_flight(self) -> list[EngineRequest]:
        return [*self._waiting, *(row.job for row in self._rows)]

    def _cancel(self, job: EngineRequest) -> bool:
        job.cancelled.set()
        with self._wake:
            if job in self._waiting:
                self._waiting.remove(job)
                job.deliver(job.cancellation())
                return True
            return any(row.job is job for row in self._rows)

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
        if self._pool.keys.is_cuda:  # before anybody's pictures
            torch.cuda.synchronize()  # what was made until now was made elsewhere
            with torch.cuda.stream(torch.cuda.Stream(priority=-1)):
                self._run()
        else:
            self._run()

    def _run(self) -> None:
        end = EngineClosed("the engine was closed")
        begun: Said | None = None  # a pass that was not read yet
        try:
            while (chunks := self._next_step(begun is None)) is not None:
                if begun is not None and not (chunks and self._packed.goes_on(chunks)):
                    self._hear(begun)
                    begun = None
                    continue
                before, begun = begun, self._begin_pass(chunks)
                if before is not None:
                    self._hear(before)
                if begun is not None and not self._ahead:
                    self._hear(begun)
                    begun = None
        except Exception as error:
            LOG.exception("the engine died")
            end = EngineClosed(f"the engine died: {error}")
        with self._wake:
            self._closing = True
            left = self._in_flight()
            self._waiting, self._rows = deque(), []
        deliver_all((job, end) for job in left)
        self._packed.close()

    def _next_step(self, idle: bool) -> list[tuple[Row, int]] | None:
        """What the next pass reads, waiting for work while `idle`; None when closing."""
        with self._wake:
            while True:
                self._give_sign_of_life()
                if self._closing:
                    return None
                gone = [row for row in self._rows if row.job.cancelled.is_set()]
                self._leave(gone)
                deliver_all((row.job, row.job.cancellation()) for row in gone)
                admitted = self._admit()
                if self._rows or not idle:
                    break
                self._wake.wait(timeout=0.5)
        for row in admitted:
            self._begin(row)
        return next_chunks(self._rows, self._share)

    def _admit(self) -> list[Row]:
        """Lets the oldest requests in while the next pass and the cache have room for them.

        Strictly in order: what does not fit is never overtaken, so nothing starves. A request
        gets the room for its longest answer at once, so nothing has to be thrown out later.
        """
        admitted: list[Row] = []
        unread = sum(row.left for row in self._rows)
        while self._waiting and unread < self._share:
            if len(self._rows) >= self.max_running:
                break
            job = self._waiting[0]
            extent = self._pool.reserve(job.prompt_tokens + job.max_new_tokens, job.prefix)
            if extent is None:
                break
            text = TextStream(self.processor.tokenizer, job.sampling.stop)
            admitted.append(Row(self._waiting.popleft(), extent, text))
            self._rows.append(admitted[-1])
            unread += admitted[-1].left
        return admitted

    def _begin(self, row: Row) -> None:
        """Gives a row the keys and values that lie ready, and embeddings of the rest."""
        job, prefix = row.job, row.job.prefix
        try:
            row.draw = draw_of(job.sampling, self._pool.keys.device)
            with self._wake:
                ready = None if prefix is None else self._ready(prefix)
            if ready is not None:
                self._pool.copy(ready[0], row.extent, ready[1])
                row.read = row.cached = ready[1]
            row.embeds = self._packed.embed(job.prompt_ids, job.visual_tokens, row.cached)
        except Exception as error:
            self._pool.check()
            self._fail([row], error)

    def _ready(self, wanted: Prefix) -> tuple[Extent, int] | None:
        """Where the most of a prefix lies already, kept or with a running row; how many tokens."""
        best = self._pool.kept(wanted)
        most, compared = 0 if best is None else best[1], 0
        for other in self._rows:
            if most >= wanted.tokens or compared == MOST_COMPARED:
                break
            theirs = other.job.prefix  # whose numbers are known to be some once it has said any
            if theirs is not None and other.ids and wanted.is_near(theirs):
                compared += 1
                shared = wanted.shared(theirs)
                if shared > most:
                    best, most = (other.extent, shared), shared
        return best

    def _begin_pass(self, chunks: Sequence[tuple[Row, int]]) -> Said | None:
        """Starts a pass; None where it failed, or did not fit the memory."""
        try:
            return self._packed.launch(chunks) if chunks else None
        except torch.OutOfMemoryError as error:
            self._too_much(chunks, error)
        except Exception as error:
            self._failed([row for row, _ in chunks], error)
        return None

    def _too_much(self, chunks: Sequence[tuple[Row, int]], error: Exception) -> None:
        """Makes the next pass smaller; where it cannot be, the request that came last must go."""
        forget_frames(error)
        self._packed.forget()
        if self._pool.keys.is_cuda:
            torch.cuda.empty_cache()
        if self._share > LEAST_PROMPT_TOKENS and any(new > 1 for _, new in chunks):
            self._share, self._went_well = max(self._share // 2, LEAST_PROMPT_TOKENS), 0
            LOG.warning("out of memory: prompts get %d tokens of a pass now", self._share)
        else:
            LOG.warning("out of memory with %d requests: the last one fails", len(chunks))
            self._fail([max((row for row, _ in chunks), key=lambda row: row.admitted)], error)

    def _failed(self, rows: Sequence[Row], error: Exception) -> None:
        """Lets the rows of a failed pass go.

        Raises:
            RuntimeError: the device is lost, or nothing but failures for a while.
        """
        self._packed.forget()
        self._pool.check()
        LOG.warning("a step of %d requests failed: %s", len(rows), error)
        self._fail(rows, error)
        self._failures += 1
        if self._failures >= FAILED_STEPS:
            raise RuntimeError(f"{self._failures} steps in a row failed")

    def _hear(self, said: Said) -> None:
        """Hands out the tokens of a pass."""
        try:
            heard = said.read()
        except Exception as error:  # a device tells late what went wrong
            self._failed([row for row in said.rows if not row.over], error)
            return
        self._failures = 0
        self._went_well += 1
        if self._went_well >= STEPS_UNTIL_MORE and self._share < self.prompt_tokens:
            self._share, self._went_well = min(2 * self._share, self.prompt_tokens), 0
        events: list[tuple[EngineRequest, TokenEvent | EngineError]] = []
        done: list[Row] = []
        for row, token_id, logprob in heard:
            if row.over:  # it ended with the pass before
                continue
            try:
                if not math.isfinite(logprob):
                    raise ArithmeticError("the model's output is not a number")
                event = row.say(token_id, logprob, self._end_ids)
            except Exception as error:
                self._fail([row], error)
                continue
            events.append((row.job, event))
            if event.finish_reason is not None:
                done.append(row)
        if done:
            with self._wake:
                self._leave(done)
        deliver_all(events)

    def _leave(self, gone: Iterable[Row]) -> None:
        """Takes rows out; a prefix that was read whole stays for the next question."""
        for row in gone:
            self._rows.remove(row)
            row.over = True
            prefix = row.job.prefix
            if not row.ids:  # nobody has heard yet whether its numbers are any
                self._pool.clear(row.extent, row.cached, row.read)
            if row.ids and prefix is not None and row.read >= prefix.tokens:
                self._pool.keep(row.extent, prefix)
            else:
                self._pool.release(row.extent)

    def _fail(self, rows: Sequence[Row], cause: Exception) -> None:
        forget_frames(cause)
        with self._wake:
            for row in rows:
                self._rows.remove(row)
                row.over = True
                self._pool.clear(row.extent)
                self._pool.release(row.extent)
        for row in rows:
            error = RequestFailed(f"request {row.job.request_id} failed: {cause}")
            error.__cause__ = cause
            row.job.deliver(error)
