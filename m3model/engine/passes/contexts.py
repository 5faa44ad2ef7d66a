"""Single tokens that read contexts of any length where they lie, in a handful of calls.

The scores are a sampled product (query x keys, at the places that a sparse table names), the answer
is a weighted sum of rows: neither copies a key or a value, and neither is a call per request. It
knows rows of the pool; nothing of models or requests. On CPUs only, in 32 or 64 bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch.nn.functional import embedding_bag

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
        shared = torch.arange(heads) // (heads // kv_heads)
        rows, seen, nexts, lengths = [], [], [], []
        self._rectangles: list[tuple[int, int, int]] = []  # (from, to, how long a context is)
        at = 0
        for first, end in _alike(chunks):
            group = chunks[first:end]
            length = max(min(c.past + 1 + ahead, c.fits) for c in group)
            told = torch.tensor([(c.start, c.past, c.fits) for c in group])
            start, past, fits = told.unsqueeze(-1).unbind(1)
            columns = torch.arange(length)
            # Beyond its extent a token reads its first one again: others' rows are not its own.
            own = start + torch.where(columns < fits, columns, 0)
            rows.append((own.unsqueeze(1) + shared.unsqueeze(1) * store).flatten())
            seen.append((columns <= past).unsqueeze(1).expand(-1, heads, -1).flatten())
            corner = at + torch.arange(len(group) * heads).view(len(group), heads) * length
            nexts.append((corner + past + 1).flatten())
            lengths.append(torch.full((len(group) * heads,), length))
            self._rectangles.append((at, at + len(group) * heads * length, length))
            at = self._rectangles[-1][1]
        index_type = torch.int32 if max(store * kv_heads, at) < 1 << 31 else torch.long
        index = torch.cat(rows).to(index_type)
        bounds = torch.cat([torch.zeros(1, dtype=torch.long), torch.cat(lengths).cumsum(0)])
        bounds = bounds.to(index_type)
        dtype = pool.keys.dtype
        # The one behind the last: what would be next of a token whose extent is full.
        self._mask = torch.zeros(at + 1, dtype=dtype)
        self._mask[:-1].masked_fill_(~torch.cat(seen), -torch.inf)
        self._next = torch.cat(nexts)
        self._weights = torch.empty(at, dtype=dtype)
        self._rows, self._bags = index, bounds[:-1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that sparse tensors are new in torch
            self._places = torch.sparse_csr_tensor(
                bounds, index, torch.zeros(at, dtype=dtype),
                size=(len(chunks) * heads, store * kv_heads), check_invariants=False,
            )  # fmt: skip

    def read(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """(B, heads, dim) from (B, heads, dim) queries and one layer's keys and values."""
        scores = torch.sparse.sampled_addmm(
            self._places, query.reshape(-1, self._dim), _by_head(keys).t(),
            beta=0.0, alpha=scale,
        ).values()  # fmt: skip
        scores.add_(self._mask[:-1])
        for at, end, length in self._rectangles:
            torch.softmax(
                scores[at:end].view(-1, length), -1, out=self._weights[at:end].view(-1, length)
            )
        out = embedding_bag(
            self._rows, _by_head(values), self._bags, mode="sum",
            per_sample_weights=self._weights,
        )  # fmt: skip
        return out.view(*self._shape, self._dim)

    def advance(self) -> None:
        """Lets each token see one place more: the next one's own."""
        self._mask.index_fill_(0, self._next, 0.0)
        self._next.add_(1)


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
