"""LLaVA conversations as training batches: token ids, labels on the answers only, pixels.

Knows the processor's chat template; does not know the model, scales or the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from m3model import M3Processor
from training.errors import BadRecord
from training.sources.llava import LlavaRecord
from training.sources.tasks import read_picture

IGNORED = -100


@dataclass(frozen=True)
class Asked:
    """The questions about a picture, one a turn, as text and as ids; ``record`` is its place."""

    record: int
    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]


class LlavaDataset(Dataset[dict[str, Any]]):
    """Conversations as token ids with labels on the answers only, the picture's pixels, and what
    is asked about it.

    Args:
        max_length: longer conversations lose their last turns; the first turn must fit.
    """

    def __init__(
        self, records: Sequence[LlavaRecord], processor: M3Processor, max_length: int
    ) -> None:
        self.records = records
        self.processor = processor
        self.max_length = max_length

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from PIL import Image

        record = self.records[index]
        ids, labels = conversation_ids(self.processor, record, self.max_length)
        item: dict[str, Any] = {"input_ids": ids, "labels": labels}
        if record.image is not None:
            rgb = read_picture(record.image, f"record {record.record_id}")
            item["pixel_values"] = self.processor.pixel_values(Image.fromarray(rgb))
            texts = tuple(turn.question for turn in record.turns)
            ids_of = self.processor.question_ids
            item["asked"] = Asked(index, texts, tuple(tuple(ids_of(text)) for text in texts))
        return item


def conversation_ids(
    processor: M3Processor, record: LlavaRecord, max_length: int
) -> tuple[list[int], list[int]]:
    """Return (ids, labels) of a conversation; labels are -100 except on answers and their end.

    Raises:
        BadRecord: not even the first turn fits into ``max_length``.
    """
    messages: list[dict[str, Any]] = []
    ids: list[int] = []
    labels: list[int] = []
    for turn in record.turns:
        text = {"type": "text", "text": turn.question}
        first = not messages and record.image is not None
        messages.append({"role": "user", "content": [{"type": "image"}, text] if first else [text]})
        prompt = processor.prompt_ids(messages)
        answer = processor.answer_ids(messages, turn.answer)
        if prompt[: len(ids)] != ids:
            raise BadRecord(f"record {record.record_id}: the chat template rewrites earlier turns")
        if len(prompt) + len(answer) > max_length:
            if not ids:
                raise BadRecord(
                    f"record {record.record_id}: its first turn has {len(prompt) + len(answer)} "
                    f"tokens, more than --max-length {max_length}"
                )
            break
        labels += [IGNORED] * (len(prompt) - len(ids)) + answer
        ids = prompt + answer
        messages.append({"role": "assistant", "content": turn.answer})
    return ids, labels


def collate(items: Sequence[dict[str, Any]], pad_id: int = 0) -> dict[str, Any]:
    """Return one batch, padded on the right; pixels of the pictures only, in order.

    ``asked`` is a row's `Asked`, or None without a picture.
    """
    longest = max(len(item["input_ids"]) for item in items)

    def padded(key: str, fill: int) -> torch.Tensor:
        return torch.tensor([item[key] + [fill] * (longest - len(item[key])) for item in items])

    ids = padded("input_ids", pad_id)
    mask = torch.tensor(
        [[1] * len(i["input_ids"]) + [0] * (longest - len(i["input_ids"])) for i in items]
    )
    batch = {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": padded("labels", IGNORED),
        "asked": [item.get("asked") for item in items],
    }
    pixels = [item["pixel_values"] for item in items if "pixel_values" in item]
    if pixels:
        batch["pixel_values"] = torch.cat(pixels)
    return batch
