"""Single tokens that read contexts of any length where they lie, in a handful of calls.

The scores are a sampled product (query x keys, at the places that a sparse table names), the answer
is a weighted sum of rows: neither copies a key or a value, and neither is a call per request. It
knows rows of the pool; nothing of models or requests. On CPUs only, in 32 or 64 bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from m3model.engine.kv_pool import KVPool
from m3model.engine.passes.chunks import Chunk

AHEAD = 16  # steps that a table is made for
READABLE = (torch.float32, torch.float64)


class ContextTable:
    """Which rows of the pool each query head of each single token reads.

    Tokens whose contexts are about equally long share a rectangle, so that softmax is one call for
    all of them. Places beyond a context are masked; they are there for the next tokens.

    Args:
        pool: where keys and values are.
        chunks: of one new token each, by `past`.
        heads: query heads.
        ahead: steps after this one for which there shall be room.
    """

    def __init__(self, pool: KVPool, chunks: Sequence[Chunk], heads: int, ahead: int = 0) -> None:
        kv_heads, self._dim = pool.keys.shape[2:]
        self._shape = (len(chunks), heads)
        store = len(pool.keys[0])  # rows of a head, which lie together
        first_rows = (np.arange(heads) // (heads // kv_heads) * store)[:, None]
        told = np.array([(c.start, c.past, c.fits) for c in chunks])
        rows, unseen, nexts, spans, at = [], [], [], [0], 0
        shapes: list[tuple[int, int]] = []
        for first, end in _alike(chunks):
            start, past, fits = told[first:end].T[:, :, None]
            length = int(np.minimum(past + 1 + ahead, fits).max())
            columns = np.arange(length)
            # Beyond its extent a token reads its first one again: others' rows are not its own.
            own = start + np.where(columns < fits, columns, 0)
            rows.append((own[:, None] + first_rows).ravel())
            hidden = (columns > past)[:, None]
            unseen.append(np.broadcast_to(hidden, (end - first, heads, length)).ravel())
            corners = at + np.arange((end - first) * heads).reshape(-1, heads) * length
            nexts.append((corners + past + 1).ravel())
            shapes.append((corners.size, length))
            at += corners.size * length
            spans.append(at)
        dtype = pool.keys.dtype
        index_type = np.int32 if max(store * kv_heads, at) < 1 << 31 else np.int64
        self._rows = torch.from_numpy(np.concatenate(rows, dtype=index_type))
        lengths = np.repeat([length for _, length in shapes], [count for count, _ in shapes])
        self._bounds = torch.from_numpy(np.append(0, lengths.cumsum()).astype(index_type))
        # The one behind the last: what would be next of a token whose extent is full.
        self._mask = torch.zeros(at + 1, dtype=dtype)
        self._seen = self._mask[:-1]
        self._seen.masked_fill_(torch.from_numpy(np.concatenate(unseen)), -torch.inf)
        self._next = torch.from_numpy(np.concatenate(nexts))
        self._products, self._scores, self._weights = torch.empty(3, at, dtype=dtype)
        self._rectangles = [
            (self._scores[start:end].view(shape), self._weights[start:end].view(shape))
            for start, end, shape in zip(spans[:-1], spans[1:], shapes, strict=True)
        ]
        _quiet_about_sparse_tensors()
        self._places = torch.sparse_csr_tensor(
            self._bounds, self._rows, self._products,
            size=(len(chunks) * heads, store * kv_heads), check_invariants=False,
        )  # fmt: skip

    def read(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """(B, heads, dim) from (B, heads, dim) queries and one layer's keys and values."""
        self._products.zero_()  # beta is multiplied by what was there, and 0 x inf is not a number
        torch.sparse.sampled_addmm(
            self._places, query.reshape(-1, self._dim), _by_head(keys).t(),
            beta=0.0, alpha=scale, out=self._places,
        )  # fmt: skip
        torch.add(self._products, self._seen, out=self._scores)
        for scores, weights in self._rectangles:
            torch.softmax(scores, -1, out=weights)
        out = torch.embedding_bag(
            _by_head(values), self._rows, self._bounds, mode=0,  # the sum
            per_sample_weights=self._weights, include_last_offset=True,
        )[0]  # fmt: skip
        return out.view(*self._shape, self._dim)

    def advance(self) -> None:
        """Lets each token see one place more: the next one's own."""
        self._mask.index_fill_(0, self._next, 0.0)
        self._next.add_(1)


@cache
def _quiet_about_sparse_tensors() -> None:
    """Lets torch say once, to nobody, that they are new."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1), check_invariants=False)


def _by_head(store: torch.Tensor) -> torch.Tensor:
    """(kv heads x rows, dim) of one layer's (rows, kv heads, dim), as it lies."""
    return store.transpose(0, 1).flatten(0, 1)


def _alike(chunks: Sequence[Chunk]) -> list[tuple[int, int]]:
    """Runs in which the longest context is at most 1.25 x the shortest + 16."""
    runs, at = [], 0
    while at < len(chunks):
        end, limit = at, 1.25 * (chunks[at].past + 1) + 16
        while end < len(chunks) and chunks[end].past + 1 <= limit:
            end += 1
        runs.append((at, end))
        at = end
    return runs
