"""One image token in, `scale` visual tokens out: how rows of ids grow, exactly and row by row.

Pure tensor bookkeeping. It does not know the model, the pooling or where the visual tokens come
from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

IGNORE_INDEX = -100


@dataclass(frozen=True)
class ExpandedRows:
    """Rows after expansion, all (B, L).

    `input_ids` repeats the image token at every visual token (`image_mask`); padding holds id 0
    and has `attention_mask` 0, `labels` -100 and `position_ids` 0. `visual_tokens` (B,) counts a
    row's visual tokens.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    image_mask: torch.Tensor
    labels: torch.Tensor | None
    visual_tokens: torch.Tensor


def is_left_padded(attention_mask: torch.Tensor) -> bool:
    """Whether some row of the mask (B, L) starts with padding."""
    return bool((attention_mask[:, 0] == 0).any())


def positions_of(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position ids (B, L) that count real tokens only.

    Padding gets 0 in front and the last position behind.
    """
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def text_positions(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """Position ids of rows padded on the left; None where counting from the left end is right."""
    if attention_mask is None or attention_mask.ndim != 2 or not is_left_padded(attention_mask):
        return None
    return positions_of(attention_mask)


def holds_token(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, token_id: int
) -> bool:
    """Whether the token stands anywhere outside the padding."""
    found = input_ids == token_id
    if attention_mask is not None and attention_mask.shape == input_ids.shape:
        found = found & (attention_mask != 0)
    return bool(found.any())


def expand_rows(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    lengths: Sequence[int],
    image_token_id: int,
    *,
    labels: torch.Tensor | None = None,
    pad_left: bool | None = None,
) -> ExpandedRows:
    """The rows with each picture's single image token replaced by that picture's number of tokens.

    Args:
        input_ids: (B, L) ids with one image token per picture.
        attention_mask: (B, L), 1 for real tokens; None means all real. Image tokens under padding
            do not count.
        lengths: visual tokens of each picture, pictures in row-major order of their image tokens.
        image_token_id: the placeholder's id.
        labels: (B, L) or None; image positions become -100.
        pad_left: side of the padding; None keeps the side of `attention_mask` (right when it has
            none).

    Raises:
        ValueError: pictures and image tokens differ in number (with the numbers per row), shapes
            differ, or a row holds no token at all.
    """
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids must have shape (rows, length), got {tuple(input_ids.shape)}")
    mask = (
        torch.ones_like(input_ids)
        if attention_mask is None
        else attention_mask.to(input_ids.device).long()
    )
    for name, tensor in (("attention_mask", mask), ("labels", labels)):
        if tensor is not None and tensor.shape != input_ids.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, input_ids {tuple(input_ids.shape)}"
            )
    real = mask != 0
    if not bool(real.any(dim=1).all()):
        raise ValueError("a row without any real token cannot be answered")
    is_image = (input_ids == image_token_id) & real
    per_row = is_image.sum(dim=1).tolist()
    if sum(per_row) != len(lengths):
        raise ValueError(
            f"{len(lengths)} pictures for {sum(per_row)} image tokens (rows hold {per_row}; image "
            f"token id {image_token_id}): input_ids carries exactly one image token per picture"
        )
    pad_left = is_left_padded(mask) if pad_left is None else pad_left
    counts = real.long()
    counts[is_image] = torch.as_tensor(list(lengths), dtype=torch.long, device=counts.device)
    repeats = counts.flatten()
    row_lengths = counts.sum(dim=1)
    rows = torch.arange(len(row_lengths), device=counts.device).repeat_interleave(row_lengths)
    starts = row_lengths.cumsum(0) - row_lengths
    columns = torch.arange(int(row_lengths.sum()), device=counts.device) - starts[rows]
    longest = int(row_lengths.max())
    if pad_left:
        columns = columns + (longest - row_lengths)[rows]

    def scatter(values: torch.Tensor, fill: int) -> torch.Tensor:
        out = torch.full(
            (len(row_lengths), longest), fill, dtype=values.dtype, device=counts.device
        )
        out[rows, columns] = values.flatten().repeat_interleave(repeats)
        return out

    new_mask = scatter(torch.ones_like(input_ids), 0)
    image_mask = scatter(is_image.long(), 0).bool()
    new_labels = None
    if labels is not None:
        new_labels = scatter(labels.to(counts.device), IGNORE_INDEX).masked_fill(
            image_mask, IGNORE_INDEX
        )
    return ExpandedRows(
        input_ids=scatter(input_ids, 0),
        attention_mask=new_mask,
        position_ids=positions_of(new_mask),
        image_mask=image_mask,
        labels=new_labels,
        visual_tokens=image_mask.sum(dim=1),
    )
