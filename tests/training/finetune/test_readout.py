"""A readout learnt from attention: the maps against the model's own, and a rule it must find."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m3model import M3ForConditionalGeneration, M3Processor, RelevanceReadout
from training.errors import TrainingError
from training.finetune.attention_maps import answer_attention
from training.finetune.readout import Example, agreement, as_target, distil_readout, fit_readout
from training.sources.scenes import SceneSource


def test_maps_are_the_models_own_attention(tiny_model: Path) -> None:
    model: Any = M3ForConditionalGeneration.from_pretrained(
        tiny_model, attn_implementation="eager"
    ).eval()
    processor = M3Processor.from_pretrained(tiny_model)
    grid = torch.randn(576, 64, generator=torch.Generator().manual_seed(0))
    prompts = [
        processor.prompt_and_answer(text, None)[0]
        for text in ("what colour is the star", "how many")
    ]
    found = answer_attention(model, grid, prompts)
    for prompt, row in zip(prompts, found, strict=True):
        at = prompt.index(model.config.image_token_id)
        with torch.no_grad():
            out = model.model.language_model(
                inputs_embeds=model.embed_prompt(prompt, [grid])[None], output_attentions=True
            )
        layers = torch.stack([a[0, :, -1, at : at + 576] for a in out.attentions])
        torch.testing.assert_close(row, layers.mean(dim=(0, 1)), atol=1e-6, rtol=1e-3)
    quick = M3ForConditionalGeneration.from_pretrained(tiny_model, attn_implementation="sdpa")
    with pytest.raises(ValueError, match="eager"):
        answer_attention(quick, grid, prompts)


def test_targets_saturate_at_half_of_the_peak() -> None:
    found = as_target(np.array([[0.0, 0.1, 0.2, 0.4], [0.0, 0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(found, [[0.0, 0.5, 1.0, 1.0], [0.0] * 4])


def test_a_readout_learns_which_patches_a_word_means() -> None:
    """Word w means the patches of kind w; kinds are directions in the patches."""
    rng = np.random.default_rng(0)
    kinds = rng.standard_normal((4, 24)) * 4

    def example() -> Example:
        kind = rng.integers(0, 4, 64)
        grid = kinds[kind] + rng.standard_normal((64, 24))
        maps = np.stack([kind == word for word in range(4)])
        ids = tuple((9, word) for word in range(4))  # 9 is in every question and means nothing
        return Example(grid.astype(np.float16), ids, maps.astype(np.float16))

    learnt, unseen = [example() for _ in range(64)], [example() for _ in range(8)]
    readout = fit_readout(learnt, 10)
    assert readout.token_table.shape == (10, 24)
    assert agreement(readout, unseen) > 0.9
    again = fit_readout(learnt, 10)
    np.testing.assert_array_equal(readout.token_table, again.token_table)


def test_a_checkpoint_without_a_readout_gets_one(tiny_model: Path, tmp_path: Path) -> None:
    readout, agrees = distil_readout(tiny_model, SceneSource(16, 5), device="cpu")
    assert -1.0 <= agrees <= 1.0
    path = readout.save(tmp_path)
    found = RelevanceReadout.from_pretrained(path.parent)
    assert found is not None
    vocabulary = json.loads((tiny_model / "config.json").read_text())["text_config"]["vocab_size"]
    assert found.token_table.shape == (vocabulary, 64)
    with pytest.raises(TrainingError, match="at least 16 pictures"):
        distil_readout(tiny_model, SceneSource(15, 5), device="cpu")


def test_the_command_keeps_a_readout_unless_told(tiny_model: Path, command: Any) -> None:
    done = command("m3-train", "readout", "--model", tiny_model, "--scenes", 20)
    assert done.returncode == 2
    assert "--replace" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
