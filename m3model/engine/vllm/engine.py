"""`VllmEngine`: the `Engine` of a vLLM process. Text, stop strings and bounds are ours.

One thread writes what is asked, one reads what is said. Requests that share a pass, and the cache,
are vLLM's affair; a picture is named to it by its visual tokens, so that the same picture at
another scale, or with other cells, is another.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import queue
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m3model.config import M3Config
from m3model.engine.detokenise import TextStream
from m3model.engine.interface import EngineStats, Sampling, TokenEvent
from m3model.engine.kv_pool import pool_tokens
from m3model.engine.request import EngineRequest, checked_request, deliver_all
from m3model.engine.vllm.folder import end_ids_of
from m3model.engine.vllm.m3_vllm.wire import bytes_of
from m3model.engine.vllm.process import VllmProcess
from m3model.errors import (
    BadRequest,
    EngineBusy,
    EngineClosed,
    EngineError,
    EngineUnavailable,
    RequestFailed,
)
from m3model.processing import M3Processor

HOTTEST = 2.0  # that vLLM takes
SPARE_TOKENS = 256  # of a cache that is asked for in tokens: vLLM keeps a block for itself


@dataclass(eq=False)
class _Answer:
    """A request that vLLM has, and its text; `over` once its reader was told the last."""

    job: EngineRequest
    text: TextStream
    n_tokens: int = 0
    over: bool = False


class VllmEngine:
    """A vLLM process, many requests at once.

    Args:
        folder: of an M3 checkpoint.
        processor: of the same, for turning tokens into text.
        python: of an environment that has vLLM.
        device: where answers are to be computed, "cpu" or "cuda"; vLLM's must be the same.
        dtype: what they are computed in.
        max_running: requests that share a pass.
        max_waiting: requests that may wait for their first token before `EngineBusy`.
        kv_tokens: tokens that the key-value cache holds; default: what vLLM finds room for.
        options: more of vLLM's `AsyncEngineArgs`.

    Raises:
        EngineUnavailable: vLLM does not start; the message says why.
    """

    def __init__(
        self,
        folder: Path,
        processor: M3Processor,
        *,
        python: Path,
        device: str,
        dtype: str,
        max_running: int = 256,
        max_waiting: int = 1024,
        kv_tokens: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.processor, self.max_waiting = processor, max_waiting
        self._config = M3Config.from_pretrained(folder)
        self._end_ids = end_ids_of(folder, self._config)
        self._dtype: torch.dtype = getattr(torch, dtype)
        arguments = _arguments(self._config, dtype, max_running, kv_tokens)
        if taken := sorted({*arguments, "model"} & {*(options or ())}):
            raise EngineUnavailable(f"options of vLLM that are set already: {', '.join(taken)}")
        self._process = VllmProcess(python, folder, device, {**(options or {}), **arguments})
        ready = self._process.ready
        self.max_length = min(int(arguments["max_model_len"]), int(ready["max_length"]))
        self._version, self._device = str(ready["version"]), device
        self._lock = threading.Lock()  # guards the three below
        self._answers: dict[int, _Answer] = {}
        self._numbers = itertools.count()
        self._end: EngineClosed | None = None
        self._beat = time.monotonic()
        self._outbox: queue.SimpleQueue[tuple[dict[str, Any], list[torch.Tensor]] | None]
        self._outbox = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._write, name="m3-vllm-write", daemon=True),
            threading.Thread(target=self._read, name="m3-vllm-read", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self,
        request_id: str,
        prompt_ids: list[int],
        visual_tokens: torch.Tensor | Sequence[torch.Tensor] | None = None,
        sampling: Sampling | None = None,
    ) -> AsyncIterator[TokenEvent]:
        """The answer's tokens; see `Engine.submit`. To be called where an event loop runs."""
        sampling = sampling or Sampling()
        if sampling.temperature > HOTTEST:
            raise BadRequest(f"vLLM draws at temperatures up to {HOTTEST}")
        job = checked_request(
            self._config, self.max_length, request_id, list(prompt_ids), visual_tokens, sampling
        )
        said = {"prompt_ids": job.prompt_ids, "sampling": self._params(job)}
        answer = _Answer(job, TextStream(self.processor.tokenizer, sampling.stop))
        with self._lock:
            if self._end is not None:
                raise EngineClosed(str(self._end))
            waiting = sum(not each.n_tokens for each in self._answers.values())
            if waiting >= self.max_waiting:
                raise EngineBusy(waiting)
            if self._find(request_id) is not None:
                raise BadRequest(f"request id {request_id!r} is in flight already")
            number = next(self._numbers)
            self._answers[number] = answer
        self._outbox.put(({"ask": number, **said}, job.visual_tokens))
        return self._stream(number, answer)

    def cancel(self, request_id: str) -> bool:
        """Whether the request was in flight; its reader gets `RequestCancelled`."""
        with self._lock:
            number = self._find(request_id)
        return number is not None and self._cancel(number)

    def stats(self) -> EngineStats:
        """The engine's state now; a request waits until its first token is there."""
        with self._lock:
            answers = list(self._answers.values())
            alive = self._end is None
        waiting = sum(not each.n_tokens for each in answers)
        visual = sum(each.job.visual_count for each in answers)
        return EngineStats(
            running=len(answers) - waiting,
            waiting=waiting,
            visual_tokens=visual,
            text_tokens=sum(each.job.prompt_tokens for each in answers) - visual,
            heartbeat_s=time.monotonic() - self._beat,
            alive=alive,
            attention=f"vLLM {self._version}",
            device=self._device,
            dtype=str(self._dtype).removeprefix("torch."),
        )

    def close(self) -> None:
        """Ends the process; requests in flight get `EngineClosed`. Safe to call twice."""
        self._finish(EngineClosed("the engine was closed"))
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _find(self, request_id: str) -> int | None:
        return next(
            (
                number
                for number, answer in self._answers.items()
                if answer.job.request_id == request_id and not answer.over
            ),
            None,
        )

    def _params(self, job: EngineRequest) -> dict[str, Any]:
        """What vLLM must know to draw; where an answer ends, it is told so that it stops itself."""
        sampling, words = job.sampling, int(self._config.text_config.vocab_size)
        return {
            "max_tokens": job.max_new_tokens, "temperature": sampling.temperature,
            "top_p": sampling.top_p, "seed": sampling.seed,
            "logprobs": min(sampling.top_logprobs, words), "stop_token_ids": sorted(self._end_ids),
        }  # fmt: skip

    async def _stream(self, number: int, answer: _Answer) -> AsyncIterator[TokenEvent]:
        try:
            while True:
                item = await answer.job.events.get()
                if isinstance(item, EngineError):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            self._cancel(number)  # after the end this does nothing

    def _cancel(self, number: int) -> bool:
        with self._lock:
            answer = self._answers.get(number)
            if answer is None or answer.over:
                return False
            answer.over = True
        answer.job.deliver(answer.job.cancellation())
        self._outbox.put(({"cancel": number}, []))
        return True

    def _write(self) -> None:
        """Sends what is asked; naming and casting pictures here keeps event loops free."""
        while (item := self._outbox.get()) is not None:
            said, pictures = item
            try:
                cast = [tokens.detach().to("cpu", self._dtype).contiguous() for tokens in pictures]
                if "ask" in said:
                    said = {**said, "names": [picture_name(tokens) for tokens in cast]}
                self._process.send(said, cast)
            except OSError:
                return  # whoever reads knows, and tells why
            except Exception as error:
                self._ended(int(said["ask"]), str(error))

    def _read(self) -> None:
        why = ""
        try:
            while True:
                said = self._process.receive()
                self._beat = time.monotonic()
                if "tokens" in said:
                    self._hear(int(said["of"]), said)
                elif "end" in said:
                    self._ended(int(said["end"]), said.get("failed"))
                why = said.get("died", why)
        except (EOFError, OSError):
            pass
        except Exception as error:
            why = f"its messages cannot be read: {error}"
        self._finish(EngineClosed(f"the vLLM process died{why and ': '}{why}"))
        self._outbox.put(None)
        self._process.end(0.0 if why else 10.0)

    def _finish(self, end: EngineClosed) -> None:
        """Takes no more requests; tells those in flight."""
        with self._lock:
            self._end = self._end or end
            left = [answer for answer in self._answers.values() if not answer.over]
            self._answers.clear()
        deliver_all((answer.job, end) for answer in left)
        self._process.hang_up()

    def _hear(self, number: int, said: Mapping[str, Any]) -> None:
        """Hands out the tokens of an answer, as far as they are part of it."""
        events: list[tuple[EngineRequest, TokenEvent | EngineError]] = []
        leaves = False
        with self._lock:
            answer = self._answers.get(number)
            if answer is None:
                return
            for token_id, logprob, top in said["tokens"]:
                if answer.over:
                    break
                event: TokenEvent | EngineError
                try:
                    event = self._event(answer, token_id, logprob, top, int(said["cached"]))
                except Exception as error:
                    event = _failed(answer, error)
                    answer.over = leaves = True
                else:
                    answer.over = event.finish_reason is not None
                    # Of an end by its text vLLM knows nothing.
                    leaves = event.finish_reason == "stop" and token_id not in self._end_ids
                events.append((answer.job, event))
        if leaves:
            self._outbox.put(({"cancel": number}, []))
        deliver_all(events)

    def _event(
        self, answer: _Answer, token_id: int, logprob: float, top: list[Any], cached: int
    ) -> TokenEvent:
        if not math.isfinite(logprob):
            raise ArithmeticError("the model's output is not a number")
        job = answer.job
        answer.n_tokens += 1
        is_last = answer.n_tokens >= job.max_new_tokens
        delta, reason, shown = answer.text.say(
            token_id, ends=token_id in self._end_ids, is_last=is_last
        )
        told = tuple((int(each), float(of)) for each, of in top[: job.sampling.top_logprobs])
        return TokenEvent(token_id, logprob, delta, reason, told, shown, cached)

    def _ended(self, number: int, failed: str | None) -> None:
        with self._lock:
            answer = self._answers.pop(number, None)
            if answer is None or answer.over:
                return
            answer.over = True
        answer.job.deliver(_failed(answer, failed or "vLLM ended the answer before its end"))


def _failed(answer: _Answer, why: object) -> RequestFailed:
    return RequestFailed(f"request {answer.job.request_id} failed: {why}")


def picture_name(tokens: torch.Tensor) -> str:
    """What names a picture to vLLM, whose caches compare nothing else: how many tokens, and which.

    Args:
        tokens: (n, D) as they are sent.
    """
    digest = hashlib.blake2b(bytes_of(tokens), digest_size=16).hexdigest()
    return f"{len(tokens)}-{digest}"


def _arguments(
    config: M3Config, dtype: str, max_running: int, kv_tokens: int | None
) -> dict[str, Any]:
    """How vLLM is run: without its vision tower, for visual tokens alone."""
    text = config.text_config
    longest = int(text.max_position_embeddings)
    arguments: dict[str, Any] = {
        "dtype": dtype, "max_num_seqs": max_running, "max_logprobs": -1,
        "logprobs_mode": "raw_logprobs", "enable_mm_embeds": True,
        "limit_mm_per_prompt": {"image": 0}, "generation_config": "vllm",
        "max_model_len": longest if kv_tokens is None else min(longest, pool_tokens(kv_tokens)),
    }  # fmt: skip
    if kv_tokens is not None:
        heads = int(text.num_key_value_heads or text.num_attention_heads)
        width = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
        size = torch.empty((), dtype=getattr(torch, dtype)).element_size()
        a_token = 2 * int(text.num_hidden_layers) * heads * width * size
        arguments["kv_cache_memory_bytes"] = (pool_tokens(kv_tokens) + SPARE_TOKENS) * a_token
    return arguments
