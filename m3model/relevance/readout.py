"""The relevance readout: how strongly each patch of a picture answers to the words of a question.

A few arrays trained beside the model and kept in `relevance.safetensors` in its folder. Plain
numpy: it runs where torch does not. It knows token ids and projected patches, not text, pictures
or routers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

FILE_NAME = "relevance.safetensors"
LAYER_NORM_EPS = 1e-5
Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class RelevanceReadout:
    """sigmoid(LayerNorm(grid) @ patch_proj @ sum_t token_table[t] + sum_t token_bias[t] + bias).

    Shapes: D width of a projected patch, R rank of the readout, V size of the vocabulary.
    """

    norm_weight: Array  # (D,)
    norm_bias: Array  # (D,)
    patch_proj: Array  # (D, R)
    token_table: Array  # (V, R)
    token_bias: Array  # (V,)
    bias: Array  # (1,)

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(
                self, field.name, np.asarray(getattr(self, field.name), dtype=np.float32)
            )
        width, rank = self.patch_proj.shape if self.patch_proj.ndim == 2 else (-1, -1)
        wanted = {
            "norm_weight": (width,),
            "norm_bias": (width,),
            "patch_proj": (width, rank),
            "token_table": (len(self.token_table), rank),
            "token_bias": (len(self.token_table),),
            "bias": (1,),
        }
        wrong = {
            n: getattr(self, n).shape
            for n, shape in wanted.items()
            if getattr(self, n).shape != shape
        }
        if wrong:
            raise ValueError(
                f"relevance readout has arrays of the wrong shape: {wrong}, wanted {wanted}"
            )

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str]) -> RelevanceReadout | None:
        """The readout beside a model, or None when the folder has none.

        Raises:
            ValueError: the file misses an array, has one too many, or one of the wrong shape.
        """
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            return None
        arrays = load_file(path)
        names = {field.name for field in fields(cls)}
        if set(arrays) != names:
            raise ValueError(f"{path} holds {sorted(arrays)}, wanted {sorted(names)}")
        return cls(**arrays)

    def save(self, folder: str | PathLike[str]) -> Path:
        """The file written into `folder` (made when missing)."""
        path = Path(folder) / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({f.name: np.ascontiguousarray(getattr(self, f.name)) for f in fields(self)}, path)
        return path

    def project(self, grid: NDArray[np.floating]) -> Array:
        """What a picture contributes, (G*G, R): worth keeping when several questions follow."""
        patches = np.asarray(grid, dtype=np.float32)
        if patches.ndim != 2 or patches.shape[1] != len(self.norm_weight):
            raise ValueError(
                f"grid must have shape (patches, {len(self.norm_weight)}), got {patches.shape}"
            )
        centred = patches - patches.mean(axis=1, keepdims=True)
        scale = np.sqrt((centred * centred).mean(axis=1, keepdims=True) + LAYER_NORM_EPS)
        return (centred / scale * self.norm_weight + self.norm_bias) @ self.patch_proj

    def score(self, projected: Array, question_ids: Sequence[int]) -> Array:
        """Relevance of each patch, (G*G,) in [0, 1], from `project`'s answer.

        Raises:
            ValueError: a token id outside the vocabulary.
        """
        ids = np.asarray(question_ids, dtype=np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= len(self.token_table)):
            raise ValueError(
                f"question ids must lie in 0..{len(self.token_table) - 1}, got {ids.tolist()}"
            )
        logits = (
            projected @ self.token_table[ids].sum(axis=0)
            + self.token_bias[ids].sum()
            + self.bias[0]
        )
        # Written with tanh, the sigmoid cannot overflow.
        return (0.5 * (1.0 + np.tanh(0.5 * logits))).astype(np.float32)

    def map(self, grid: NDArray[np.floating], question_ids: Sequence[int]) -> Array:
        """Relevance of each patch, (G*G,) float32 in [0, 1].

        Args:
            grid: (G*G, D) projected features of one picture.
            question_ids: tokens of the bare question (`M3Processor.question_ids`).
        """
        return self.score(self.project(grid), question_ids)
