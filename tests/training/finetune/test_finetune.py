"""M3 fine-tuning: the official loss and gradients, labels on answers, learning, resuming."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from m3model import M3ForConditionalGeneration, M3Processor
from m3model.convert.checkpoint import convert
from training.errors import BadRecord, TrainingError
from training.finetune.conversations import LlavaDataset, collate, conversation_ids
from training.finetune.focus import CutDraw
from training.finetune.train import FinetuneJob, finetune, multi_scale_backward, multi_scale_loss
from training.sources.llava import read_llava

PARITY = Path(__file__).parents[2] / "data" / "parity"


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("llava")
    rng = np.random.default_rng(0)
    records = []
    for i, word in enumerate(["red", "blue", "green", "yellow"]):
        pixels = rng.integers(0, 256, (64, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        turns = [("<image>\nwhat color is it?", word), ("is there a shape?", "yes")]
        lines = [
            {"from": who, "value": text}
            for turn in turns[: 1 + i % 2]
            for who, text in zip(("human", "gpt"), turn, strict=True)
        ]
        records.append({"id": str(i), "image": f"{i}.png", "conversations": lines})
    talk = [{"from": "human", "value": "say two"}, {"from": "gpt", "value": "two"}]
    records.append({"id": "text", "conversations": talk})
    (folder / "data.json").write_text(json.dumps(records))
    return folder / "data.json", folder


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("parity")
    meta = json.loads((PARITY / "meta.json").read_text())
    source = folder / "official"
    source.mkdir()
    shutil.copy(
        PARITY / "llava15_tiny_official_state_dict.safetensors", source / "model.safetensors"
    )
    config = {
        **meta["llava15_config"],
        "model_type": "llava_llama",
        "matryoshka_vis_token_scale": [576, 144, 36, 9, 1],
    }
    (source / "config.json").write_text(json.dumps(config))
    (folder / "vision.json").write_text(json.dumps(meta["vision_config"]))
    convert(source, folder / "ours", folder / "vision.json")
    model = M3ForConditionalGeneration.from_pretrained(folder / "ours").eval()
    stored = load_file(PARITY / "llava15_tiny_train.safetensors")
    pixels = load_file(PARITY / "llava15_tiny_vectors.safetensors")["pixel_values_u8"]
    ids = stored["input_ids"]
    batch = {
        "input_ids": ids.masked_fill(ids == -200, model.config.image_token_id),
        "attention_mask": stored["attention_mask"],
        "labels": stored["labels"],
        "pixel_values": pixels.float() / 127.5 - 1,
    }
    return model, batch, stored


@pytest.mark.parametrize("way", ["joint", "scale by scale"])
def test_loss_and_gradients_are_the_official_ones(parity, way: str) -> None:
    model, batch, stored = parity
    model.zero_grad()
    if way == "joint":
        loss = multi_scale_loss(model, batch)
        loss.backward()
    else:
        loss = multi_scale_backward(model, batch, torch.Tensor.backward)
    assert float(loss.detach()) == pytest.approx(float(stored["loss"]), abs=1e-5)
    inner = model.model
    for name, parameter in {
        "lm_head.weight": model.lm_head.weight,
        "model.mm_projector.0.weight": inner.multi_modal_projector.linear_1.weight,
        "model.mm_projector.2.bias": inner.multi_modal_projector.linear_2.bias,
        "model.embed_tokens.weight": inner.language_model.embed_tokens.weight,
    }.items():
        wanted = stored[f"grad.{name}"]
        torch.testing.assert_close(parameter.grad[: len(wanted)], wanted, atol=2e-5, rtol=1e-4)
    # Where the official code trains no vision tower (it says it does), ours does.
    vision = [p.grad for p in inner.vision_tower.parameters() if p.grad is not None]
    assert any(bool(g.abs().max() > 0) for g in vision)
    model.zero_grad()


@pytest.mark.parametrize("cuts", [None, CutDraw(None, 0).draw])
def test_both_ways_give_the_same_gradients(tiny_model: Path, llava, cuts) -> None:
    model = M3ForConditionalGeneration.from_pretrained(tiny_model).eval()
    processor = M3Processor.from_pretrained(tiny_model)
    dataset = LlavaDataset(read_llava(*llava).records, processor, 512)
    batch = collate([dataset[i] for i in range(5)])
    cuts = None if cuts is None else partial(cuts, step=3)
    grads, losses = [], []
    for joint in (True, False):
        model.zero_grad()
        if joint:
            loss = multi_scale_loss(model, batch, cuts=cuts)
            (loss * 0.5).backward()
        else:
            loss = multi_scale_backward(model, batch, torch.Tensor.backward, weight=0.5, cuts=cuts)
        losses.append(float(loss.detach()))
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert grads[0].keys() == grads[1].keys()
    for name, gradient in grads[0].items():
        torch.testing.assert_close(gradient, grads[1][name], atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("with_cuts", [False, True])
def test_vision_tower_runs_once_a_step(tiny_model: Path, llava, with_cuts: bool) -> None:
    model = M3ForConditionalGeneration.from_pretrained(tiny_model)
    calls = []
    model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    dataset = LlavaDataset(read_llava(*llava).records, M3Processor.from_pretrained(tiny_model), 512)
    cuts = partial(CutDraw.of(tiny_model, 0).draw, step=0) if with_cuts else None
    batch = collate([dataset[0], dataset[4]])
    multi_scale_backward(model, batch, torch.Tensor.backward, cuts=cuts)
    assert len(calls) == 1


def test_labels_lie_on_answers_only(tiny_model: Path, llava) -> None:
    processor = M3Processor.from_pretrained(tiny_model)
    record = read_llava(*llava).records[1]
    ids, labels = conversation_ids(processor, record, 512)
    said = [i for i in labels if i != -100]
    assert processor.tokenizer.decode(said).replace(" ", "") == "blue</s>yes</s>"
    assert ids.count(processor.image_token_id) == 1
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    short, _ = conversation_ids(processor, record, len(ids) - 1)
    assert ids[: len(short)] == short  # the last turn went
    with pytest.raises(BadRecord, match="more than --max-length"):
        conversation_ids(processor, record, 3)


@pytest.mark.slow
def test_training_on_cuts_goes_on_as_if_never_cut_off(tiny_model: Path, llava, tmp_path) -> None:
    data, images = llava
    job = FinetuneJob(
        init=tiny_model, data=data, images=images, out=tmp_path / "whole", max_steps=4,
        batch_size=2, accumulate=2, lr=1e-3, save_steps=2, workers=0, device="cpu", focus=True,
    )  # fmt: skip
    said: list[str] = []
    finetune(job, say=said.append)
    assert said[0] == "cuts follow the relevance of readout"
    kept = Path("checkpoints", "checkpoint-2")
    shutil.copytree(job.out / kept, tmp_path / "broken" / kept)
    finetune(replace(job, out=tmp_path / "broken"), say=said.append)
    assert "going on from checkpoint-2" in said
    uniform = finetune(replace(job, out=tmp_path / "uniform", focus=False))
    whole, resumed, other = (
        load_file(folder / "model.safetensors")
        for folder in (job.out, tmp_path / "broken", uniform)
    )
    assert all(whole[name].equal(resumed[name]) for name in whole)
    assert not all(whole[name].equal(other[name]) for name in whole)
    joint = load_file(
        finetune(replace(job, out=tmp_path / "joint", hold_all_graphs=True)) / "model.safetensors"
    )
    start = load_file(tiny_model / "model.safetensors")
    moves = [
        torch.cat([(ended[name] - start[name]).flatten() for name in start])
        for ended in (whole, joint, other)
    ]
    assert torch.nn.functional.cosine_similarity(moves[0], moves[1], dim=0) > 0.999
    assert torch.nn.functional.cosine_similarity(moves[0], moves[2], dim=0) < 0.99


@pytest.mark.slow
def test_training_learns_saves_and_resumes(tiny_model: Path, llava, tmp_path: Path) -> None:
    data, images = llava
    losses: list[float] = []
    job = FinetuneJob(
        init=tiny_model, data=data, images=images, out=tmp_path / "out", max_steps=12, batch_size=5,
        lr=3e-3, save_steps=6, workers=0, device="cpu",
    )  # fmt: skip
    said: list[str] = []

    def report(step: int, steps: int, loss: float | None) -> None:
        if loss is not None:
            losses.append(loss)

    out = finetune(job, report=report, say=said.append)
    model = M3ForConditionalGeneration.from_pretrained(out)
    M3Processor.from_pretrained(out)
    assert not list(out.glob("*.bin"))  # nothing pickled beside what is served
    assert list(model.config.scales) == [1, 9, 36, 144, 576]
    dataset = LlavaDataset(read_llava(data, images).records, M3Processor.from_pretrained(out), 512)
    batch = collate([dataset[i] for i in range(5)])
    with torch.no_grad():
        before = multi_scale_loss(
            M3ForConditionalGeneration.from_pretrained(tiny_model).eval(), batch
        )
        after = multi_scale_loss(model.eval(), batch)
    assert after < 0.5 * before
    assert losses
    assert float(after) < losses[0] < float(before)  # the mean over scales, averaged over 10 steps
    finetune(job, say=said.append)
    assert said[-2] == "going on from checkpoint-12"
    assert "readout" in said[0]


def test_scales_without_room_for_a_cut_are_refused(tiny_model: Path, llava, tmp_path) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    shutil.copytree(tiny_model, tmp_path / "one")
    (tmp_path / "one" / "config.json").write_text(json.dumps(config | {"scales": [576]}))
    data, images = llava
    job = FinetuneJob(
        init=tmp_path / "one", data=data, images=images, out=tmp_path / "out", focus=True
    )
    with pytest.raises(TrainingError, match="--focus: scales 576 leave no room for a cut"):
        finetune(job)


def test_unreadable_picture_is_named(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    talk = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "it"}]
    (tmp_path / "d.json").write_text(
        json.dumps([{"id": "x7", "image": "a.png", "conversations": talk}])
    )
    records = read_llava(tmp_path / "d.json", tmp_path).records
    with pytest.raises(BadRecord, match="x7"):
        LlavaDataset(records, M3Processor.from_pretrained(tiny_model), 512)[0]
