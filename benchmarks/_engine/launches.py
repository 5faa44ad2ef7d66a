"""What a step of single tokens asks of a device: launches a layer, and copies from or to the host.

Counted, not timed: on tensors without content in the shape of a 7B, with the attention that GPUs
have, and on a running engine.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import torch
from _engine.baselines import serve_engine
from _engine.workload import Ask
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaModel

from m3model import LocalEngine, M3ForConditionalGeneration, M3Processor
from m3model.config import llava_shape
from m3model.engine.kv_pool import KVPool
from m3model.engine.passes.attention import VarlenStep
from m3model.engine.passes.chunks import Chunk
from m3model.engine.passes.layers import LlamaLayers

# What waits for a device, or brings something from the host.
HOST = ("_local_scalar_dense", "nonzero", "lift_fresh", "_to_copy", "scalar_tensor", "_pin_memory")
VIEWS = frozenset(
    ("view", "narrow", "unsqueeze", "squeeze", "__getitem__", "__get__", "chunk", "t", "split",
     "transpose", "__len__", "diagonal", "reshape", "size", "dim", "unbind", "is_contiguous",
     "stride")
)  # fmt: skip


class Operations(TorchDispatchMode):
    """The names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))

    @property
    def of_the_host(self) -> list[str]:
        """Those that the host takes part in."""
        return [name for name in self.names if any(part in name for part in HOST)]


class Launches(TorchFunctionMode):
    """The calls that a GPU makes one launch of each: all but views and questions about tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name not in VIEWS:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


def launches_a_layer(shape: str = "7b", rows: int = 64) -> tuple[float, int]:
    """(launches a layer, launches of the step besides) of a decode step on a GPU."""
    device = torch.device("cpu")
    with FakeTensorMode(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tensors without content lie nowhere
        model = _without_content(shape)
        count, config = len(model.layers), model.config
        layers = LlamaLayers(model, 4096, lambda: None)
        layers._exact = False  # as on a GPU
        heads, dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        kv_heads = config.num_key_value_heads
        pool = KVPool(count, kv_heads, dim, 320 * rows, dtype=torch.bfloat16, device=device)
        step = VarlenStep(pool, [Chunk(320 * i, 100 + i, 1, 320) for i in range(rows)], heads)
        with Launches() as seen:
            layers(torch.empty(rows, config.hidden_size, dtype=torch.bfloat16), step)
            step.advance()
    in_layers = sum(n - n % count for n in seen.names.values() if n >= count)
    return in_layers / count, sum(seen.names.values()) - in_layers


def host_copies_a_step(
    model: M3ForConditionalGeneration, processor: M3Processor, asks: list[Ask]
) -> int:
    """The most of any step that goes on with the rows of the one before."""
    most = 0
    engine = LocalEngine(model, processor)
    real = engine._packed.launch

    def launch(chunks: Any) -> Any:
        nonlocal most
        again = engine._packed.goes_on(chunks)
        with Operations() as operations:
            said = real(chunks)
        if again:
            most = max(most, len(operations.of_the_host))
        return said

    engine._packed.launch = launch  # type: ignore[method-assign]
    serve_engine(engine, asks)
    engine.close()
    return most


def _without_content(shape: str) -> LlamaModel:
    """A language model of this shape. To be called in a FakeTensorMode."""
    with torch.device("meta"):
        model = LlamaModel(llava_shape(shape).text_config)  # type: ignore[arg-type]
    for module in model.modules():
        for name, tensor in list(module.named_parameters(recurse=False)):
            held = torch.empty(tensor.shape, dtype=torch.bfloat16)
            setattr(module, name, torch.nn.Parameter(held, requires_grad=False))
        for name, tensor in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, torch.empty(tensor.shape, dtype=tensor.dtype))
    return model
