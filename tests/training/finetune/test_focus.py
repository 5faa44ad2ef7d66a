"""Cuts of conversations: near what a turn asks about, its answer alone to be learnt from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m3model import Focus, M3ForConditionalGeneration, M3Processor, RelevanceReadout
from m3model.relevance.untrained import AttentionRelevance
from training.finetune.conversations import LlavaDataset, collate
from training.finetune.focus import CutDraw, answer_turns
from training.finetune.train import multi_scale_loss
from training.sources.llava import LlavaRecord, Turn

WORDS = ("red", "blue", "green", "star", "ring", "cross")


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> M3ForConditionalGeneration:
    return M3ForConditionalGeneration.from_pretrained(tiny_model).eval()


@pytest.fixture(scope="module")
def dataset(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> LlavaDataset:
    """Pictures with one to six turns, and a record of text alone."""
    folder = tmp_path_factory.mktemp("pictures")
    records = []
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        turns = tuple(Turn(f"is there a {word}?", word) for word in WORDS[: i + 1])
        records.append(LlavaRecord(str(i), folder / f"{i}.png", turns, "d", "k"))
    records.append(LlavaRecord("text", None, (Turn("say two", "two"),), "d", "k"))
    return LlavaDataset(records, M3Processor.from_pretrained(tiny_model), 512)


def drawn(
    draw: CutDraw, model: M3ForConditionalGeneration, dataset: LlavaDataset, chosen: list[int],
    step: int = 0,
) -> tuple[list[Focus], torch.Tensor, dict]:  # fmt: skip
    batch = collate([dataset[i] for i in chosen])
    with torch.no_grad():
        # One by one: the bits of a picture then do not depend on its neighbours.
        grids = [model.encode_images(picture[None]) for picture in batch["pixel_values"]]
    foci, labels = draw.draw(model, torch.cat(grids), batch, step=step)
    return foci, labels, batch


def test_turns_are_counted_by_their_answers() -> None:
    labels = torch.tensor([[-100, 5, 6, -100, -100, 7, -100], [8, -100, 9, 9, -100, -100, -100]])
    assert answer_turns(labels).tolist() == [[-1, 0, 0, -1, -1, 1, -1], [0, -1, 1, 1, -1, -1, -1]]


def test_some_answers_of_each_picture_stay_and_text_stays_whole(model, dataset) -> None:
    seen = set()
    for step in range(12):
        foci, labels, batch = drawn(CutDraw(None, 0), model, dataset, [5, 6, 0], step)
        assert len(foci) == 2
        kept = answer_turns(batch["labels"]).masked_fill(labels == -100, -1)
        turns = set(kept[0].tolist()) - {-1}
        assert 1 <= len(turns) <= 3
        # A turn's answer stays whole or goes whole, and nothing else becomes a label.
        whole = torch.isin(answer_turns(batch["labels"])[0], torch.tensor(sorted(turns)))
        assert labels[0].equal(batch["labels"][0].masked_fill(~whole, -100))
        assert labels[1:].equal(batch["labels"][1:])
        seen |= turns
    assert seen == set(range(6))


def test_a_cut_follows_from_seed_step_and_record(model, dataset) -> None:
    draw = CutDraw(None, 3)
    together, labels, _ = drawn(draw, model, dataset, [2, 6, 4], step=7)
    for place, record in ((0, 2), (2, 4)):
        alone, own, _ = drawn(draw, model, dataset, [record], step=7)
        assert alone == [together[0 if place == 0 else 1]]
        assert own[0].equal(labels[place, : own.shape[1]])
    for other in (
        drawn(draw, model, dataset, [2, 4], 8),
        drawn(CutDraw(None, 4), model, dataset, [2, 4], 7),
    ):
        assert other[0] != together


def test_cells_lie_where_the_question_looks(model, dataset, tiny_model: Path) -> None:
    """By the readout where there is one, else by the model's attention: the peak is read finely."""
    readout = RelevanceReadout.from_pretrained(tiny_model)
    item = dataset[0]
    (text,), (ids,) = item["asked"].texts, item["asked"].ids
    with torch.no_grad():
        grid = model.encode_images(item["pixel_values"])[0].numpy()
    attention = AttentionRelevance(model)
    maps = {
        CutDraw(None, 0): attention.score(attention.project(grid, None), text, ids),
        CutDraw(readout, 0): readout.map(grid, ids),
    }
    for draw, relevance in maps.items():
        foci = [drawn(draw, model, dataset, [0], step)[0][0] for step in range(30)]
        row, column = divmod(int(relevance.argmax()), 24)
        held = []
        for focus in foci:
            across = int((focus.fine / 4) ** 0.5)
            held.append(row * across // 24 * across + column * across // 24 in focus.cells)
        assert np.mean(held) > 0.6  # by means of cells it may be another cell's peak
        assert len(set(foci)) > 20


def test_half_of_the_loss_is_that_of_the_cuts(model, dataset) -> None:
    batch = collate([dataset[i] for i in (1, 6, 3)])
    foci = [Focus(36, 576, (3, 4)), Focus(9, 144, (0,))]
    labels = batch["labels"].clone()
    labels[2] = -100
    with torch.no_grad():
        uniform = multi_scale_loss(model, batch)
        both = multi_scale_loss(model, batch, cuts=lambda *_: (foci, labels))
        cut = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels,
            pixel_values=batch["pixel_values"], scale=foci,
        ).loss  # fmt: skip
    torch.testing.assert_close(both, (uniform + cut) / 2)
    text = collate([dataset[6]])
    with torch.no_grad():
        alone = multi_scale_loss(model, text, cuts=lambda *_: pytest.fail("no picture to cut"))
        assert alone.equal(multi_scale_loss(model, text))


def test_questions_cut_off_by_the_length_are_not_served(model, dataset) -> None:
    short = LlavaDataset(dataset.records, dataset.processor, 30)
    assert int(answer_turns(collate([short[5]])["labels"]).max()) < 5
    for step in range(8):
        _, labels, _ = drawn(CutDraw(None, 0), model, short, [5], step)
        assert (labels != -100).any()
