"""A stand-in for vLLM: the documented names that our side uses, over Hugging Face's stock LLaVA.

It follows what vLLM does where that matters: the model class is found through the plugin's entry
point; pictures that arrive in one step go through `embed_multimodal` together, and one of stock
LLaVA refuses different lengths; a picture is what its uuid says, whatever comes with it. Each step
appends a line of JSON to the file M3_STAND_IN_LOG, if there is one. Imported as `vllm`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from enum import Enum
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

__version__ = "stand-in"


class RequestOutputKind(Enum):
    CUMULATIVE, DELTA, FINAL_ONLY = range(3)


@dataclass
class SamplingParams:
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int | None = None
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    detokenize: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE

    def __post_init__(self) -> None:
        if (self.logprobs or 0) < 0:
            raise ValueError("logprobs must be non-negative")


@dataclass
class AsyncEngineArgs:
    model: str
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_logprobs: int = 20
    logprobs_mode: str = "raw_logprobs"
    enable_mm_embeds: bool = False
    limit_mm_per_prompt: dict[str, int] = field(default_factory=dict)
    generation_config: str = "auto"
    kv_cache_memory_bytes: int | None = None


class ModelRegistry:
    known: dict[str, str] = {}  # noqa: RUF012

    @classmethod
    def register_model(cls, model_arch: str, model_cls: str) -> None:
        cls.known[model_arch] = model_cls


@dataclass
class WeightsMapper:
    orig_to_new_prefix: dict[str, str]


class LlavaForConditionalGeneration:
    """Stock LLaVA, as far as pictures and logits go."""

    def __init__(self, stock: Any) -> None:
        self.stock, self.config = stock, stock.config

    def embed_multimodal(self, **kwargs: Any) -> Any:
        data = kwargs["image_embeds"]
        if not isinstance(data, torch.Tensor):
            shapes = [tokens.shape for tokens in data]
            raise ValueError(f"data contains inconsistent shapes: {shapes}")
        return data

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.stock.lm_head(hidden_states)


@dataclass
class Row:
    name: str
    prompt: dict[str, Any]
    params: SamplingParams
    draw: torch.Generator
    said: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    ids: list[int] = field(default_factory=list)
    cache: Any = None
    cached: int = 0


class AsyncLLM:
    @classmethod
    def from_engine_args(cls, args: AsyncEngineArgs) -> AsyncLLM:
        return cls(args)

    def __init__(self, args: AsyncEngineArgs) -> None:
        from transformers import LlavaForConditionalGeneration as Stock

        assert args.enable_mm_embeds
        assert args.limit_mm_per_prompt == {"image": 0}
        for each in entry_points(group="vllm.general_plugins"):
            each.load()()
        said = json.loads((Path(args.model) / "config.json").read_text())
        module, name = ModelRegistry.known[said["architectures"][0]].split(":")
        assert said["model_type"] == "llava"
        stock, told = Stock.from_pretrained(
            args.model, dtype=getattr(torch, args.dtype), output_loading_info=True
        )
        assert not told["missing_keys"]
        assert not told["unexpected_keys"]
        self._model = getattr(import_module(module), name)(stock.eval())
        self._args, self._rows = args, dict[str, Row]()
        self._pictures: dict[str, torch.Tensor] = {}
        self._prefixes: set[str] = set()
        self._wake, self._task = asyncio.Event(), asyncio.create_task(self._run())
        self.model_config = SimpleNamespace(max_model_len=args.max_model_len)

    @property
    def errored(self) -> bool:
        return self._task.done()

    def shutdown(self) -> None:
        self._task.cancel()

    async def generate(
        self, prompt: dict[str, Any], sampling_params: SamplingParams, request_id: str
    ) -> AsyncGenerator[Any, None]:
        data = prompt.get("multi_modal_data", {"image": []})["image"]
        assert isinstance(data, list)  # a bare tensor would be taken for pixels
        n_tokens = len(prompt["prompt_token_ids"]) + sum(len(tokens) - 1 for tokens in data)
        if n_tokens + sampling_params.max_tokens > self._args.max_model_len:
            raise ValueError("longer than max_model_len")
        draw = torch.Generator()
        draw.manual_seed(sampling_params.seed) if sampling_params.seed is not None else draw.seed()
        row = self._rows[request_id] = Row(request_id, prompt, sampling_params, draw)
        self._wake.set()
        try:
            while True:
                output = await row.said.get()
                yield output
                if output.finished:
                    return
        except (asyncio.CancelledError, GeneratorExit):
            await self.abort(request_id)
            raise

    async def abort(self, request_id: str) -> None:
        self._rows.pop(request_id, None)
        log({"abort": request_id})

    @torch.inference_mode()
    async def _run(self) -> None:
        while True:
            rows = list(self._rows.values())[: self._args.max_num_seqs]
            if not rows:
                self._wake.clear()
                await self._wake.wait()
                await asyncio.sleep(0.05)  # who asks at once is answered together
                continue
            self._embed([row for row in rows if row.cache is None])
            for row in rows:
                self._step(row)
            log({"step": {row.name: len(row.ids) for row in rows}})
            await asyncio.sleep(0)

    def _embed(self, rows: list[Row]) -> None:
        """Encodes the new pictures of a step, all in one batch."""
        new: dict[str, torch.Tensor] = {}
        for row in rows:
            data = row.prompt.get("multi_modal_data", {"image": []})["image"]
            names = row.prompt.get("multi_modal_uuids", {"image": []})["image"]
            fresh = [(name, tokens) for name, tokens in zip(names, data, strict=True)
                     if name not in self._pictures]  # fmt: skip
            new.update(fresh)
            log({"request": row.name, "names": names, "n": [len(tokens) for tokens in data]})
        if new:
            sizes = {len(tokens) for tokens in new.values()}
            batch = list(new.values()) if len(sizes) > 1 else torch.stack(list(new.values()))
            made = self._model.embed_multimodal(image_embeds=batch)
            self._pictures.update(zip(new, made, strict=True))
            log({"encoded": [len(tokens) for tokens in made]})

    def _step(self, row: Row) -> None:
        table = self._model.stock.get_input_embeddings()
        if row.cache is None:
            names = list(row.prompt.get("multi_modal_uuids", {"image": []})["image"])
            parts, begins = [], json.dumps([row.prompt["prompt_token_ids"], names])
            for token_id in row.prompt["prompt_token_ids"]:
                is_picture = token_id == self._model.config.image_token_index and names
                parts.append(self._pictures[names.pop(0)] if is_picture
                             else table(torch.tensor([token_id])))  # fmt: skip
            embeds = torch.cat(parts)
            row.cached = len(embeds) - 1 if begins in self._prefixes else 0
            self._prefixes.add(begins)
        else:
            embeds = table(torch.tensor([row.ids[-1]]))
        out = self._model.stock.model.language_model(
            inputs_embeds=embeds[None], past_key_values=row.cache, use_cache=True
        )
        row.cache = out.past_key_values
        logits = self._model.compute_logits(out.last_hidden_state[0, -1:])[0].float()
        told, params = logits.log_softmax(-1), row.params
        token_id = int(logits.argmax())
        if params.temperature:
            probable, order = (logits / params.temperature).softmax(-1).sort(descending=True)
            probable[probable.cumsum(-1) - probable >= params.top_p] = 0.0
            token_id = int(order[torch.multinomial(probable, 1, generator=row.draw)])
        row.ids.append(token_id)
        ends = token_id in params.stop_token_ids
        finished = ends or len(row.ids) >= params.max_tokens
        if finished:
            del self._rows[row.name]
        best = told.topk(params.logprobs or 1).indices.tolist() if params.logprobs else []
        ranks = {each: rank for rank, each in enumerate(best, 1)}
        ranks.setdefault(token_id, int((told >= told[token_id]).sum()))
        logprobs = {i: SimpleNamespace(logprob=float(told[i]), rank=r) for i, r in ranks.items()}
        said = SimpleNamespace(token_ids=[token_id], logprobs=[logprobs])
        row.said.put_nowait(
            SimpleNamespace(outputs=[said], finished=finished, num_cached_tokens=row.cached)
        )


def log(said: dict[str, Any]) -> None:
    if path := os.environ.get("M3_STAND_IN_LOG"):
        with Path(path).open("a") as file:
            file.write(json.dumps(said) + "\n")


def _module(name: str, **content: Any) -> None:
    module = sys.modules[name] = ModuleType(name)
    vars(module).update(content)


_module("vllm.sampling_params", RequestOutputKind=RequestOutputKind, SamplingParams=SamplingParams)
_module("vllm.platforms", current_platform=SimpleNamespace(device_type="cpu"))
_module("vllm.v1")
_module("vllm.v1.engine")
_module("vllm.v1.engine.async_llm", AsyncLLM=AsyncLLM)
_module("vllm.model_executor")
_module("vllm.model_executor.models")
_module(
    "vllm.model_executor.models.llava",
    LlavaForConditionalGeneration=LlavaForConditionalGeneration,
)
_module("vllm.model_executor.models.utils", WeightsMapper=WeightsMapper)
