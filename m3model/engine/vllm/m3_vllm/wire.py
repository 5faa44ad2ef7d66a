"""Messages between an engine and its vLLM process: JSON, then the bytes of tensors, never code.

A message is (length of the JSON, bytes of the tensors), the JSON, the tensors one after another.
Both sides use this file, in different environments.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import torch

HEAD = struct.Struct("!IQ")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PICTURES = "pictures"


def packed(said: dict[str, Any], pictures: Sequence[torch.Tensor] = ()) -> list[bytes | memoryview]:
    """The parts of one message, to be sent in this order; pictures (n, D) of one dtype."""
    body = [tokens.detach().cpu().contiguous() for tokens in pictures]
    if body:
        dtype = str(body[0].dtype).removeprefix("torch.")
        said = {**said, _PICTURES: {"dtype": dtype, "shapes": [list(t.shape) for t in body]}}
    text = json.dumps(said).encode()
    parts = [bytes_of(tokens) for tokens in body]
    return [HEAD.pack(len(text), sum(map(len, parts))), text, *parts]


def bytes_of(tokens: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, not copied."""
    return memoryview(tokens.reshape(-1).view(torch.uint8).numpy())


def unpacked(text: bytes, body: bytearray) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """What was said, and the pictures beside it; they share the memory of `body`.

    Raises:
        ValueError: the bytes are not such a message.
    """
    said = json.loads(text)
    told = said.pop(_PICTURES, {"dtype": "float32", "shapes": []})
    dtype, shapes = DTYPES[told["dtype"]], told["shapes"]
    size, wanted = torch.empty((), dtype=dtype).element_size(), sum(n * d for n, d in shapes)
    if wanted * size != len(body):
        raise ValueError(
            f"{len(body)} bytes of pictures, their shapes {shapes} have another number"
        )
    if not shapes:
        return said, []
    flat = torch.frombuffer(body, dtype=dtype)
    return said, [
        part.view(n, d)
        for part, (n, d) in zip(flat.split([n * d for n, d in shapes]), shapes, strict=True)
    ]
