"""Our own loop over a Llama's layers: its numbers, to the last bit, and one copy of its weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import linear
from transformers import LlamaConfig, LlamaModel

from m3model import M3ForConditionalGeneration
from m3model.engine.kv_pool import KVPool
from m3model.engine.passes.attention import SdpaStep
from m3model.engine.passes.chunks import Chunk
from m3model.engine.passes.forward import check_readable, packed_language_model
from m3model.engine.passes.layers import LlamaLayers, fits
from m3model.engine.passes.products import PACKED, TORCH, Product
from m3model.tiny import tiny_config

CHUNKS = [Chunk(0, 30, 1), Chunk(64, 41, 1), Chunk(144, 0, 20), Chunk(192, 17, 9)]


def llama(**options: Any) -> LlamaModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=96, intermediate_size=160, num_hidden_layers=3,
        num_attention_heads=6, num_key_value_heads=3, **options,
    )  # fmt: skip
    model = LlamaModel(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    return model


def filled_pool(dtype: torch.dtype = torch.float32) -> KVPool:
    pool = KVPool(3, 3, 16, 256, dtype=dtype, device=torch.device("cpu"))
    draw = torch.Generator().manual_seed(1)
    pool.keys.normal_(generator=draw)
    pool.values.normal_(generator=draw)
    return pool


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rms_norm_eps": 1e-3},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
        {"rope_parameters": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64, "rope_theta": 10000.0}},
    ],
)  # fmt: skip
@torch.no_grad()
def test_every_number_is_the_models_own(options: dict[str, Any]) -> None:
    """On a CPU in 32 bits, prompts and answers in one pass."""
    model = llama(**options)
    twin = packed_language_model(copy.deepcopy(model), lambda: None)
    embeds = torch.randn(31, 96)
    theirs, ours = (SdpaStep(filled_pool(), CHUNKS, 6) for _ in range(2))
    wanted = twin(  # type: ignore[operator]
        inputs_embeds=embeds[None], position_ids=theirs.positions[None], use_cache=False,
        step=theirs,
    ).last_hidden_state[0]  # fmt: skip
    beats: list[int] = []
    got = LlamaLayers(model, 128, lambda: beats.append(1))(embeds.clone(), ours)
    assert torch.equal(got, wanted)
    assert torch.equal(ours.pool.keys, theirs.pool.keys)
    assert torch.equal(ours.pool.values, theirs.pool.values)
    assert len(beats) == 3


@torch.no_grad()
def test_in_16_bits_it_rounds_where_the_model_does() -> None:
    """On a CPU, the attention being the same, its numbers are the model's there too."""
    model = llama().to(torch.bfloat16)
    twin = packed_language_model(copy.deepcopy(model), lambda: None)
    embeds = torch.randn(31, 96).to(torch.bfloat16)
    pools = [filled_pool(torch.bfloat16) for _ in range(2)]
    theirs, ours = (SdpaStep(pool, CHUNKS, 6) for pool in pools)
    wanted = twin(  # type: ignore[operator]
        inputs_embeds=embeds[None], position_ids=theirs.positions[None], use_cache=False,
        step=theirs,
    ).last_hidden_state[0]  # fmt: skip
    got = LlamaLayers(model, 128, lambda: None)(embeds.clone(), ours)
    assert torch.equal(got, wanted)


@torch.no_grad()
def test_the_layers_multiply_by_what_they_are_given() -> None:
    calls = []

    def counted(found: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        calls.append(len(found))
        return linear(found, weight)

    step = SdpaStep(filled_pool(), [Chunk(0, 0, 20)], 6)
    LlamaLayers(llama(), 64, lambda: None, Product("counted", counted))(torch.randn(20, 96), step)
    assert calls == [20] * 4 * 3


@torch.no_grad()
def test_weights_are_held_once_and_stay_the_models(tmp_path: Path) -> None:
    model = llama()
    before = copy.deepcopy(model.state_dict())
    layers = LlamaLayers(model, 64, lambda: None)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    model.layers[1].self_attn.k_proj.weight.fill_(7.0)
    assert (layers._layers[1].qkv[96:144] == 7.0).all()
    again = LlamaLayers(model, 64, lambda: None)  # a second engine
    stores = [one.qkv.untyped_storage().data_ptr() for one in (*layers._layers, *again._layers)]
    assert stores[:3] == stores[3:]
    model.save_pretrained(tmp_path)
    loaded = LlamaModel.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_what_the_loop_does_not_compute_is_left_to_the_model() -> None:
    assert fits(llama())
    assert not fits(llama(attention_bias=True))
    assert not fits(llama(mlp_bias=True))
    assert not fits(llama(hidden_act="gelu"))
    changed = llama()
    changed.layers[0].mlp.up_proj = torch.nn.Sequential(changed.layers[0].mlp.up_proj)
    assert not fits(changed)
    assert fits(M3ForConditionalGeneration(tiny_config(64)).model.language_model)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"sliding_window": 128}, "sliding-window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "depend on the longest request"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "depend on the longest request"),
        ({"rope_parameters": {"full": {"rope_type": "dynamic"}}}, "depend on the longest request"),
        ({"attn_logit_softcapping": 50.0}, "capped attention scores"),
    ],
)
def test_models_that_packed_passes_would_get_wrong_are_refused(
    told: dict[str, Any], why: str
) -> None:
    config = LlamaConfig()
    check_readable(config)
    for name, value in told.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=why):
        check_readable(config)


@torch.no_grad()
def test_attention_that_wants_more_than_a_step_gives_is_refused() -> None:
    """Sinks and capped scores come as arguments of attention, not of the configuration."""
    twin = packed_language_model(llama(), lambda: None)
    step = SdpaStep(filled_pool(), CHUNKS, 6)
    for wish in ("s_aux", "softcap"):
        with pytest.raises(ValueError, match=wish):
            twin(  # type: ignore[operator]
                inputs_embeds=torch.randn(1, 31, 96), position_ids=step.positions[None],
                use_cache=False, step=step, **{wish: torch.ones(6)},
            )  # fmt: skip


@torch.no_grad()
def test_packed_weights_are_another_copy_with_the_same_numbers() -> None:
    model = llama()
    before = copy.deepcopy(model.state_dict())
    embeds = torch.randn(31, 96)
    plain, packed = (
        LlamaLayers(model, 128, lambda: None, product)(
            embeds.clone(), SdpaStep(filled_pool(), CHUNKS, 6)
        )
        for product in (TORCH, PACKED)
    )
    torch.testing.assert_close(packed, plain, atol=2e-5, rtol=1e-5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
