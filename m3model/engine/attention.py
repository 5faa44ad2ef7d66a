"""Attention over tokens of many requests, packed end to end without padding.

Every request reads its own extent of the `KVPool`. It knows rows and extents; nothing of models,
requests or sampling.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from m3model.engine.kv_pool import KVPool

COPIED_BYTES = 1 << 17  # of one context's keys; measured on CPUs with 4 to 32 heads
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunk:
    """Consecutive new tokens of one request: `new` of them, after `past` that lie in the pool.

    `start` is the pool row of the request's first token.
    """

    start: int
    past: int
    new: int


class Step(ABC):
    """The layout of one pass.

    Args:
        pool: where keys and values are kept.
        chunks: in packed order, which is `order` of them.

    `positions` (T,) are the tokens' places in their requests, `rows` (T,) in the pool.
    """

    def __init__(self, pool: KVPool, chunks: Sequence[Chunk]) -> None:
        device = pool.keys.device
        start, past, new = torch.tensor([(c.start, c.past, c.new) for c in chunks]).T
        before = new.cumsum(0) - new
        positions = torch.repeat_interleave(past - before, new) + torch.arange(int(new.sum()))
        rows = torch.repeat_interleave(start, new) + positions
        self.pool = pool
        self.positions, self.rows = positions.to(device), rows.to(device)

    @staticmethod
    @abstractmethod
    def order(chunk: Chunk) -> tuple[int, ...]:
        """Sorting key of the packed order."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """(T, heads, dim) from packed (T, heads, dim) queries, keys and values of one layer."""
        keys, values = self.pool.keys[layer], self.pool.values[layer]
        keys.index_copy_(0, self.rows, key)
        values.index_copy_(0, self.rows, value)
        return self._read(query, keys, values, scale)

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
    """Works everywhere: chunks one by one where they lie, single tokens in groups of like length.

    Groups are copied together first. On a CPU, copying a long context costs more than a call.
    """

    def __init__(self, pool: KVPool, chunks: Sequence[Chunk]) -> None:
        super().__init__(pool, chunks)
        device = pool.keys.device
        entry = pool.keys[0, 0].numel() * pool.keys.element_size()
        longest = COPIED_BYTES // entry if device.type == "cpu" else len(pool.keys[0])
        copied = sum(chunk.new == 1 and chunk.past < longest for chunk in chunks)
        self._groups = _grouped(chunks[:copied], device)
        self._alone, at = [], copied
        for chunk in chunks[copied:]:
            self._alone.append((at, chunk, _seen(chunk, device)))
            at += chunk.new

    @staticmethod
    def order(chunk: Chunk) -> tuple[int, ...]:
        return (chunk.new > 1, chunk.past)

    def _read(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
    ) -> torch.Tensor:
        shared = query.shape[1] != keys.shape[1]
        out = torch.empty_like(query)
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
            out[at : at + chunk.new] = scaled_dot_product_attention(
                query[at : at + chunk.new].transpose(0, 1).unsqueeze(0),
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
    """

    def __init__(self, pool: KVPool, chunks: Sequence[Chunk]) -> None:
        super().__init__(pool, chunks)
        device = pool.keys.device

        def lengths(numbers: Sequence[int]) -> torch.Tensor:
            return torch.tensor(numbers, dtype=torch.int32, device=device)

        self._first = chunks[0].start
        slots = [chunk.start - self._first for chunk in chunks]
        self._slots = lengths([*slots, len(pool.keys[0]) - self._first])
        news = torch.tensor([0, *(chunk.new for chunk in chunks)])
        self._queries = news.cumsum(0).to(device, torch.int32)
        self._used = lengths([chunk.past + chunk.new for chunk in chunks])
        self._max_new = max(chunk.new for chunk in chunks)
        self._max_used = max(chunk.past + chunk.new for chunk in chunks)

    @staticmethod
    def order(chunk: Chunk) -> tuple[int, ...]:
        return (chunk.start,)

    def _read(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
    ) -> torch.Tensor:
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(
            query,
            keys[self._first :],
            values[self._first :],
            self._queries,
            self._slots,
            self._max_new,
            self._max_used,
            scale=scale,
            window_size=(-1, 0),
            enable_gqa=query.shape[1] != keys.shape[1],
            seqused_k=self._used,
        )


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

    small = KVPool(1, kv_heads, dim, 256, dtype=dtype, device=device)
    small.keys.copy_(noise(*small.keys.shape))
    small.values.copy_(noise(*small.values.shape))
    chunks = [Chunk(16, 30, 1), Chunk(80, 0, 20), Chunk(112, 17, 9), Chunk(160, 50, 1)]
    new = {c: (noise(c.new, heads, dim), noise(c.new, kv_heads, dim)) for c in chunks}

    def attended(kind: type[Step]) -> dict[Chunk, torch.Tensor]:
        packed = sorted(chunks, key=kind.order)
        query, key = (torch.cat([new[c][i] for c in packed]) for i in (0, 1))
        out = kind(small, packed).attend(0, query, key, key, dim**-0.5)
        return dict(zip(packed, out.split([c.new for c in packed]), strict=True))

    ours, theirs = attended(kind), attended(SdpaStep)
    return all(torch.allclose(ours[c], theirs[c], atol=2e-2, rtol=2e-2) for c in chunks)
