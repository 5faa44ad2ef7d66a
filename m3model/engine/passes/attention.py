"""Attention over tokens of many requests, packed end to end without padding.

Every request reads its own extent of the `KVPool`. It knows rows and extents; nothing of models,
requests or sampling.
"""

from __future__ import annotations

import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from m3model.engine.kv_pool import KVPool
from m3model.engine.passes.chunks import Chunk
from m3model.engine.passes.contexts import AHEAD, READABLE, ContextTable

BLOCK = 64  # tokens of a prompt that are read together: they need not see those behind them
COPIED_BYTES = 1 << 17  # of one context's keys; measured on CPUs with 4 to 32 heads
LOG = logging.getLogger(__name__)


class Step(ABC):
    """The layout of one pass.

    Args:
        pool: where keys and values are kept.
        chunks: in packed order, which is `order` of them.
        heads: query heads.

    `positions` (T,) are the tokens' places in their requests, `rows` (T,) in the pool. A layout of
    single tokens serves the next tokens of the same requests too, after `advance`, as long as
    there are steps `left`.
    """

    name = ""

    def __init__(self, pool: KVPool, chunks: Sequence[Chunk], heads: int) -> None:
        positions = np.concatenate([np.arange(c.past, c.past + c.new) for c in chunks])
        starts = np.repeat([c.start for c in chunks], [c.new for c in chunks])
        self.pool = pool
        self.positions = on_device(positions, pool.keys.device)
        self.rows = on_device(starts + positions, pool.keys.device)
        self.left = 0

    def advance(self) -> None:
        """Makes it the layout of the next tokens."""
        self.positions.add_(1)
        self.rows.add_(1)
        self.left -= 1

    @staticmethod
    @abstractmethod
    def order(chunk: Chunk) -> tuple[int, ...]:
        """Sorting key of the packed order."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """(T, heads, dim) from packed (T, heads, dim) queries, keys and values of one layer."""
        keys, values = self.pool.keys[layer], self.pool.values[layer]
        self._write(keys, key)
        self._write(values, value)
        return self._read(query, keys, values, scale)

    def _write(self, store: torch.Tensor, new: torch.Tensor) -> None:
        """Puts (T, kv heads, dim) where their tokens' keys or values belong."""
        store.index_copy_(0, self.rows, new)

    @abstractmethod
    def _read(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
    ) -> torch.Tensor: ...


@dataclass(frozen=True)
class _Group:
    """Single tokens whose contexts are about equally long, read together.

    `rows` (B, L) are pool rows, `seen` (B, 1, 1, L) what of them counts, packed rows from `at` on.
    """

    at: int
    rows: torch.Tensor
    seen: torch.Tensor

    def take(self, store: torch.Tensor) -> torch.Tensor:
        """(B, heads, L, dim) of (pool rows, heads, dim)."""
        flat = store.index_select(0, self.rows.flatten())
        return flat.view(*self.rows.shape, *store.shape[1:]).transpose(1, 2)


class SdpaStep(Step):
    """Works everywhere: chunks one by one where they lie, single tokens together.

    A `ContextTable` reads those where it can; else they are copied together, in groups of like
    length. On a CPU, copying a long context costs more than a call.
    """

    name = "scaled_dot_product_attention"

    def __init__(self, pool: KVPool, chunks: Sequence[Chunk], heads: int) -> None:
        super().__init__(pool, chunks, heads)
        device = pool.keys.device
        singles = sum(chunk.new == 1 for chunk in chunks)
        self._table, self._groups, self._unseen = None, list[_Group](), None
        if reads_tables(pool):
            self._unseen = _unseen(pool.keys.dtype, BLOCK)
            if singles:
                self.left = AHEAD if singles == len(chunks) else 0
                self._table = ContextTable(pool, chunks[:singles], heads, self.left)
        else:
            entry = pool.keys[0, 0].numel() * pool.keys.element_size()
            longest = COPIED_BYTES // entry if device.type == "cpu" else len(pool.keys[0])
            singles = sum(chunk.new == 1 and chunk.past < longest for chunk in chunks)
            self._groups = _grouped(chunks[:singles], device)
        self._singles, self._alone, at = singles, [], singles
        for chunk in chunks[singles:]:
            seen = _seen(chunk, device) if self._unseen is None else None
            self._alone.append((at, chunk, seen))
            at += chunk.new

    @staticmethod
    def order(chunk: Chunk) -> tuple[int, ...]:
        return (chunk.new > 1, chunk.past)

    def advance(self) -> None:
        super().advance()
        if self._table is not None:
            self._table.advance()

    def _write(self, store: torch.Tensor, new: torch.Tensor) -> None:
        if self._unseen is None:
            super()._write(store, new)
            return
        if self._singles:
            store.index_copy_(0, self.rows[: self._singles], new[: self._singles])
        for at, chunk, _ in self._alone:  # four times as quick as row by row
            first = chunk.start + chunk.past
            store[first : first + chunk.new] = new[at : at + chunk.new]

    def _read(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
    ) -> torch.Tensor:
        shared = query.shape[1] != keys.shape[1]
        if self._table is not None and not self._alone:
            return self._table.read(query, keys, values, scale)
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        if self._table is not None:
            out[: self._singles] = self._table.read(query[: self._singles], keys, values, scale)
        for group in self._groups:
            end = group.at + len(group.rows)
            out[group.at : end] = scaled_dot_product_attention(
                query[group.at : end].unsqueeze(2),
                group.take(keys),
                group.take(values),
                attn_mask=group.seen,
                scale=scale,
                enable_gqa=shared,
            ).squeeze(2)
        for at, chunk, seen in self._alone:
            read = slice(chunk.start, chunk.start + chunk.past + chunk.new)
            asked = query[at : at + chunk.new].transpose(0, 1)
            if self._unseen is not None:
                found = out[at : at + chunk.new].transpose(0, 1)
                _by_blocks(asked, keys[read], values[read], scale, self._unseen, found)
                continue
            out[at : at + chunk.new] = scaled_dot_product_attention(
                asked.unsqueeze(0),
                keys[read].transpose(0, 1).unsqueeze(0),
                values[read].transpose(0, 1).unsqueeze(0),
                attn_mask=seen,
                is_causal=chunk.past == 0,
                scale=scale,
                enable_gqa=shared,
            )[0].transpose(0, 1)
        return out


class VarlenStep(Step):
    """torch's variable-length flash attention: one kernel for everything, read where it lies.

    Extents in the order of their rows are the slots that the kernel's `seqused_k` speaks of, so no
    block table and no copy is needed. CUDA only, 16 bits only.

    Args:
        pool, chunks, heads: as `Step` takes them.
        longest: the longest context that there may be; None: the longest there is.
    """

    name = "varlen_attn"

    def __init__(
        self, pool: KVPool, chunks: Sequence[Chunk], heads: int, longest: int | None = None
    ) -> None:
        super().__init__(pool, chunks, heads)
        device = pool.keys.device

        def lengths(numbers: Sequence[int]) -> torch.Tensor:
            return on_device(numbers, device, torch.int32)

        # Slots begin at the pool's first row: whatever lies before the first request is one too,
        # and asks nothing.
        self._slots = lengths([0, *(chunk.start for chunk in chunks), len(pool.keys[0])])
        self._queries = lengths([0, 0, *itertools.accumulate(chunk.new for chunk in chunks)])
        self._used = lengths([0, *(chunk.past + chunk.new for chunk in chunks)])
        self._max_new = max(chunk.new for chunk in chunks)
        self._max_used = max(chunk.past + chunk.new for chunk in chunks)
        if self._max_new == 1:
            self.left = min(chunk.fits - chunk.past - 1 for chunk in chunks)
            self._max_used = longest or max(chunk.fits for chunk in chunks)

    @staticmethod
    def order(chunk: Chunk) -> tuple[int, ...]:
        return (chunk.start,)

    def advance(self) -> None:
        super().advance()
        self._used[1:].add_(1)

    def take(self, other: VarlenStep, tokens: int) -> None:
        """Takes over the first single tokens of another layout of single tokens."""
        self.positions[:tokens].copy_(other.positions[:tokens])
        self.rows[:tokens].copy_(other.rows[:tokens])
        for mine, theirs in ((self._slots, other._slots), (self._used, other._used)):
            mine[1 : tokens + 1].copy_(theirs[1 : tokens + 1])

    def advance_some(self, which: torch.Tensor) -> None:
        """Advances the single tokens for which (T,) `which` is 1, not 0."""
        self.positions.add_(which)
        self.rows.add_(which)
        self._used[1:].add_(which)

    def _read(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
    ) -> torch.Tensor:
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(
            query,
            keys,
            values,
            self._queries,
            self._slots,
            self._max_new,
            self._max_used,
            scale=scale,
            window_size=(-1, 0),
            enable_gqa=query.shape[1] != keys.shape[1],
            seqused_k=self._used,
        )


def on_device(
    numbers: Sequence[float] | np.ndarray, device: torch.device, dtype: torch.dtype = torch.long
) -> torch.Tensor:
    """The numbers on a device; a GPU copies them while this thread goes on."""
    told = torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda")
    return told.to(device, non_blocking=True)


def reads_tables(pool: KVPool) -> bool:
    """Whether `ContextTable` can read this pool."""
    return pool.keys.device.type == "cpu" and pool.keys.dtype in READABLE


def best_step(pool: KVPool, heads: int) -> type[Step]:
    """The fastest kind of step that gives right answers here; tried once, and logged.

    Args:
        heads: query heads.
    """
    if pool.keys.device.type == "cuda":
        try:
            if _agrees(VarlenStep, pool, heads):
                LOG.info("attention: variable-length flash attention")
                return VarlenStep
            LOG.warning("attention: variable-length attention gives other numbers here; not used")
        except Exception as error:
            LOG.info("attention: no variable-length attention here (%s)", error)
    LOG.info("attention: scaled_dot_product_attention, grouped by length")
    return SdpaStep


def _grouped(singles: Sequence[Chunk], device: torch.device) -> list[_Group]:
    """Groups in which the longest context is at most half as long again as the shortest, + 16."""
    groups, at = [], 0
    while at < len(singles):
        end, limit = at, 1.5 * (singles[at].past + 1) + 16
        while end < len(singles) and singles[end].past + 1 <= limit:
            end += 1
        lengths = torch.tensor([[c.past + 1] for c in singles[at:end]])
        starts = torch.tensor([[c.start] for c in singles[at:end]])
        columns = torch.arange(singles[end - 1].past + 1)
        seen = columns < lengths
        # Beyond its own context a row reads its first token again, masked.
        rows = starts + torch.where(seen, columns, 0)
        groups.append(_Group(at, rows.to(device), seen[:, None, None, :].to(device)))
        at = end
    return groups


@cache
def _unseen(dtype: torch.dtype, block: int) -> torch.Tensor:
    return torch.full((block, block), -torch.inf, dtype=dtype).triu_(1)


def _by_blocks(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    unseen: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Causal attention of the last tokens of a context (heads, T, dim) to it, into (heads, T, dim).

    A third quicker on CPUs than the kernels for it, which multiply what nobody sees.

    Args:
        keys, values: (past + T, kv heads, dim).
        unseen: (BLOCK, BLOCK), what is added to the scores of a block's own tokens.
    """
    heads, tokens, dim = query.shape
    kv_heads, past = keys.shape[1], len(keys) - tokens
    query, keys, values = query * scale, keys.permute(1, 2, 0), values.transpose(0, 1)
    for at in range(0, tokens, BLOCK):
        new = min(BLOCK, tokens - at)
        end = past + at + new
        asked = query[:, at : at + new].reshape(kv_heads, -1, dim)
        scores = torch.bmm(asked, keys[..., :end]).view(heads, new, end)
        scores[..., -new:].add_(unseen[:new, :new])
        weights = torch.softmax(scores, -1).view(kv_heads, -1, end)
        out[:, at : at + new] = torch.bmm(weights, values[:, :end]).view(heads, new, dim)


def _seen(chunk: Chunk, device: torch.device) -> torch.Tensor | None:
    """Which of past + new each new token sees; None where causal attention or all says it."""
    if chunk.past == 0 or chunk.new == 1:
        return None
    full = torch.ones(chunk.new, chunk.past + chunk.new, dtype=torch.bool, device=device)
    return full.tril(chunk.past)


def _agrees(kind: type[Step], pool: KVPool, heads: int) -> bool:
    """Whether `kind` attends as `SdpaStep` does, on chunks of every sort in a small pool."""
    _, _, kv_heads, dim = pool.keys.shape
    dtype, device = pool.keys.dtype, pool.keys.device
    draw = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).to(device, dtype)

    small = KVPool(1, kv_heads, dim, 1024, dtype=dtype, device=device)
    small.keys.copy_(noise(*small.keys.shape))
    small.values.copy_(noise(*small.values.shape))
    chunks = [
        Chunk(16, 30, 1), Chunk(80, 0, 20), Chunk(112, 17, 9), Chunk(160, 50, 1),
        Chunk(224, 300, 1), Chunk(544, 290, 40),
    ]  # fmt: skip
    new = {c: (noise(c.new, heads, dim), noise(c.new, kv_heads, dim)) for c in chunks}

    def attended(kind: type[Step]) -> dict[Chunk, torch.Tensor]:
        packed = sorted(chunks, key=kind.order)
        query, key = (torch.cat([new[c][i] for c in packed]) for i in (0, 1))
        out = kind(small, packed, heads).attend(0, query, key, key, dim**-0.5)
        return dict(zip(packed, out.split([c.new for c in packed]), strict=True))

    ours, theirs = attended(kind), attended(SdpaStep)
    return all(torch.allclose(ours[c], theirs[c], atol=2e-2, rtol=2e-2) for c in chunks)
