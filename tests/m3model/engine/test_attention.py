"""Packed attention against numpy loops over single requests, on both kinds of step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from m3model.engine.kv_pool import KVPool
from m3model.engine.passes import attention as packed_attention
from m3model.engine.passes.attention import SdpaStep, Step, VarlenStep, best_step
from m3model.engine.passes.chunks import Chunk
from m3model.engine.passes.contexts import ContextTable
from m3model.engine.passes.forward import packed_language_model as twin_of
from m3model.tiny import tiny_config

DIM, ROWS = 8, 512


def by_hand(
    query: NDArray[Any], keys: NDArray[Any], values: NDArray[Any], past: int
) -> NDArray[Any]:
    """(new, heads, dim): causal attention of one request, one query and head at a time."""
    out = np.zeros_like(query)
    shared = query.shape[1] // keys.shape[1]
    for i in range(len(query)):
        for head in range(query.shape[1]):
            k, v = (x[: past + i + 1, head // shared] for x in (keys, values))
            weights = np.exp(k @ query[i, head] / DIM**0.5)
            out[i, head] = weights @ v / weights.sum()
    return out


def documented_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_q: torch.Tensor,
    cu_k: torch.Tensor, max_q: int, max_k: int, *, scale: float, window_size: tuple[int, int],
    enable_gqa: bool, seqused_k: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """What torch's documentation says of varlen_attn, in loops: there is no CPU kernel."""
    assert window_size == (-1, 0)
    assert scale == pytest.approx(DIM**-0.5)
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert cu_k[-1] <= len(key)
    parts = []
    for i in range(len(cu_q) - 1):
        q = query[cu_q[i] : cu_q[i + 1]].numpy()
        slot = slice(int(cu_k[i]), int(cu_k[i]) + int(seqused_k[i]))
        assert int(cu_k[i]) + int(seqused_k[i]) <= int(cu_k[i + 1])
        assert len(q) <= max_q
        assert int(seqused_k[i]) <= max_k
        past = int(seqused_k[i]) - len(q)
        parts.append(torch.from_numpy(by_hand(q, key[slot].numpy(), value[slot].numpy(), past)))
    return torch.cat(parts)


@st.composite
def layouts(draw: st.DrawFn) -> list[Chunk]:
    """Chunks that do not overlap, in any order: new prompts, later parts of prompts, answers."""
    chunks, at = [], 0
    for _ in range(draw(st.integers(1, 6))):
        at += draw(st.integers(0, 20))
        past = draw(st.one_of(st.just(0), st.integers(1, 40)))
        new = draw(st.one_of(st.just(1), st.integers(1, 20)))
        chunks.append(Chunk(at, past, new))
        at += past + new
    return draw(st.permutations(chunks))


@pytest.mark.parametrize("kind", [SdpaStep, VarlenStep])
@given(chunks=layouts(), heads=st.sampled_from([(4, 4), (4, 2)]), copied=st.sampled_from([0, 1024]))
@settings(max_examples=60, deadline=None)
def test_every_request_attends_as_if_alone(
    kind: type[Step], chunks: Sequence[Chunk], heads: tuple[int, int], copied: int
) -> None:
    draw = torch.Generator().manual_seed(len(chunks))
    pool = KVPool(1, heads[1], DIM, ROWS, dtype=torch.float32, device=torch.device("cpu"))
    pool.keys.normal_(generator=draw)
    pool.values.normal_(generator=draw)
    packed = sorted(chunks, key=kind.order)
    total = sum(chunk.new for chunk in packed)
    query = torch.randn(total, heads[0], DIM, generator=draw)
    key, value = (torch.randn(total, heads[1], DIM, generator=draw) for _ in range(2))
    before = pool.keys.clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_attention, "COPIED_BYTES", copied * heads[1])
        patch.setattr(packed_attention, "BLOCK", 7)
        patch.setattr("torch.nn.attention.varlen.varlen_attn", documented_varlen)
        out = kind(pool, packed, heads[0]).attend(0, query, key, value, DIM**-0.5)

    at, written = 0, torch.zeros(len(before[0]), dtype=torch.bool)
    for chunk in packed:
        end, rows = at + chunk.new, slice(chunk.start, chunk.start + chunk.past + chunk.new)
        new_rows = slice(chunk.start + chunk.past, rows.stop)
        assert torch.equal(pool.keys[0, new_rows], key[at:end])
        assert torch.equal(pool.values[0, new_rows], value[at:end])
        written[new_rows] = True
        wanted = by_hand(
            query[at:end].numpy(), pool.keys[0, rows].numpy(), pool.values[0, rows].numpy(),
            chunk.past,
        )  # fmt: skip
        np.testing.assert_allclose(out[at:end].numpy(), wanted, atol=2e-5)
        at = end
    assert torch.equal(pool.keys[0][~written], before[0][~written])


def test_the_twin_shares_weights_and_leaves_the_model_alone() -> None:
    from m3model import M3ForConditionalGeneration

    model = M3ForConditionalGeneration(tiny_config(64)).model.language_model
    kept = model.config._attn_implementation
    twin = twin_of(model, lambda: None)
    assert model.config._attn_implementation == kept != twin.config._attn_implementation
    pairs = zip(model.parameters(), twin.parameters(), strict=True)
    assert all(mine is theirs for mine, theirs in pairs)


def test_a_kind_of_step_is_used_only_if_it_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = KVPool(1, 2, DIM, 64, dtype=torch.float32, device=torch.device("cpu"))
    assert best_step(pool, 4) is SdpaStep
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", documented_varlen)
    assert packed_attention._agrees(VarlenStep, pool, 4)

    def off(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return documented_varlen(query, *args, **kwargs) + 0.1

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", off)
    assert not packed_attention._agrees(VarlenStep, pool, 4)


@pytest.mark.gpu
def test_variable_length_attention_agrees_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    device = torch.device("cuda")
    pool = KVPool(1, 4, 64, 64, dtype=torch.bfloat16, device=device)
    assert packed_attention._agrees(VarlenStep, pool, 8)


@torch.no_grad()
def test_a_score_that_overflows_is_forgotten_by_the_next_layer() -> None:
    """A score of -inf has no weight; times zero it is no number."""
    pool = KVPool(2, 1, 4, 64, dtype=torch.float32, device=torch.device("cpu"))
    pool.keys.normal_()
    pool.values.normal_()
    pool.keys[0, 3] = -1e25
    table = ContextTable(pool, [Chunk(0, 9, 1, 16)], 1)
    for layer, query in enumerate((torch.full((1, 1, 4), 1e20), torch.ones(1, 1, 4))):
        assert table.read(query, pool.keys[layer], pool.values[layer], 0.5).isfinite().all()
