"""The most probable tokens, the tokens that stand in the text, the tokens that were cached."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from m3model import LocalEngine, M3ForConditionalGeneration, M3Processor, Sampling, TokenEvent
from m3model.pooling import pool_visual_tokens
from m3model.tiny import write_tiny_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> M3ForConditionalGeneration:
    return M3ForConditionalGeneration.from_pretrained(folder)


@pytest.fixture(scope="module")
def processor(folder: Path) -> M3Processor:
    return M3Processor.from_pretrained(folder)


@pytest.fixture
def engine(model: M3ForConditionalGeneration, processor: M3Processor) -> Iterator[LocalEngine]:
    engine = LocalEngine(model, processor)
    yield engine
    engine.close()


def asked(processor: M3Processor, question: str) -> list[int]:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.prompt_ids([{"role": "user", "content": content}])


def grid(seed: int) -> torch.Tensor:
    return torch.randn(576, 64, generator=torch.Generator().manual_seed(seed))


def answers(
    engine: LocalEngine, *asks: tuple[list[int], torch.Tensor, Sampling]
) -> list[list[TokenEvent]]:
    """The events of each request, all in flight together."""

    async def one(
        name: str, ids: list[int], tokens: torch.Tensor, how: Sampling
    ) -> list[TokenEvent]:
        return [event async for event in engine.submit(name, ids, [tokens], how)]

    async def run() -> list[list[TokenEvent]]:
        return await asyncio.gather(*(one(f"r{i}", *ask) for i, ask in enumerate(asks)))

    return asyncio.run(run())


def test_the_most_probable_tokens_are_those_of_the_models_own_distribution(
    engine: LocalEngine, model: M3ForConditionalGeneration, processor: M3Processor
) -> None:
    ids = asked(processor, "what color is the star?")
    picture = grid(0)
    tokens = pool_visual_tokens(picture, 36)
    warm = {"temperature": 1.5, "top_p": 0.9, "seed": 3}
    greedy, drawn, silent, many = answers(
        engine,
        (ids, tokens, Sampling(8, top_logprobs=3)),
        (ids, tokens, Sampling(8, top_logprobs=20, **warm)),
        (ids, tokens, Sampling(8)),
        (ids, tokens, Sampling(2, top_logprobs=10_000)),
    )
    assert all(event.top == () for event in silent)
    assert [event.token_id for event in silent] == [event.token_id for event in greedy]
    for events, wanted in ((greedy, 3), (drawn, 20)):
        said = [event.token_id for event in events]
        whole = torch.tensor([ids + said])
        with torch.inference_mode():
            logits = model(input_ids=whole, image_grids=picture[None], scale=36).logits[0]
        steps = torch.log_softmax(logits[-len(said) - 1 : -1], dim=-1)
        for event, row in zip(events, steps, strict=True):
            best = row.topk(wanted)
            assert [token for token, _ in event.top] == best.indices.tolist()
            assert [p for _, p in event.top] == pytest.approx(best.values.tolist(), abs=1e-4)
            assert event.logprob == pytest.approx(float(row[event.token_id]), abs=1e-4)
    assert all(event.top[0] == (event.token_id, event.logprob) for event in greedy)
    assert any(event.top[0][0] != event.token_id for event in drawn)
    assert sum(torch.tensor([p for _, p in many[0].top]).exp()) == pytest.approx(1.0, abs=1e-4)


def test_only_rows_that_ask_are_sorted(
    engine: LocalEngine, processor: M3Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sorted_rows: list[int] = []
    real = torch.Tensor.topk

    def counting(self: torch.Tensor, *args: object, **more: object) -> object:
        sorted_rows.append(len(self))
        return real(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.Tensor, "topk", counting)
    ids, tokens = asked(processor, "what is it?"), pool_visual_tokens(grid(1), 9)
    answers(engine, *[(ids, tokens, Sampling(6))] * 3)
    assert sorted_rows == []
    _, asking, _ = answers(
        engine, (ids, tokens, Sampling(6)), (ids, tokens, Sampling(6, top_logprobs=2)),
        (ids, tokens, Sampling(6)),
    )  # fmt: skip
    assert sorted_rows == [1] * len(asking)


def test_tokens_of_a_stop_string_and_the_end_are_not_shown(
    engine: LocalEngine, processor: M3Processor
) -> None:
    ids, tokens = asked(processor, "what color is the star?"), pool_visual_tokens(grid(2), 9)
    (full,) = answers(engine, (ids, tokens, Sampling(12)))
    pieces = [event.text_delta for event in full]
    assert [event.n_shown for event in full] == list(range(1, 13))
    whole = "".join(pieces)
    # From the middle of the third token to the middle of the fifth.
    at = len("".join(pieces[:2])) + 1 + pieces[2].startswith(" ")
    stop = whole[at : len("".join(pieces[:4])) + 2]
    (cut,) = answers(engine, (ids, tokens, Sampling(12, stop=(stop,))))
    assert "".join(event.text_delta for event in cut) == whole[:at]
    assert (len(cut), cut[-1].n_shown, cut[-1].finish_reason) == (5, 3, "stop")
    # Text that is held back is not shown yet, its tokens are not either.
    assert [event.n_shown for event in cut] == [1, 2, 3, 3, 3]
    (held,) = answers(engine, (ids, tokens, Sampling(12, stop=(whole[at:] + "!",))))
    assert [event.n_shown for event in held] == [1, 2, *[3] * 9, 12]


def test_the_end_token_is_never_shown(
    model: M3ForConditionalGeneration, processor: M3Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, tokens = asked(processor, "what color is the star?"), grid(0)
    plain = LocalEngine(model, processor)
    (full,) = answers(plain, (ids, tokens, Sampling(12)))
    plain.close()
    end = full[4].token_id
    monkeypatch.setattr(model.generation_config, "eos_token_id", end)
    engine = LocalEngine(model, processor)
    (ended,) = answers(engine, (ids, tokens, Sampling(12)))
    engine.close()
    first = [event.token_id for event in full].index(end)
    assert (ended[-1].finish_reason, ended[-1].n_shown, len(ended)) == ("stop", first, first + 1)


def test_cached_tokens_are_those_before_the_question(
    model: M3ForConditionalGeneration, processor: M3Processor
) -> None:
    engine = LocalEngine(model, processor, kv_tokens=3000)
    first, second = asked(processor, "what is it?"), asked(processor, "is there a red star?")
    before = first.index(model.config.image_token_id)
    tokens = pool_visual_tokens(grid(0), 144)
    other = pool_visual_tokens(grid(1), 144)
    how = Sampling(4)
    try:
        cached = [
            answers(engine, (ids, picture, how))[0][0].cached_tokens
            for ids, picture in (
                (first, tokens), (second, tokens), (first, tokens), (first, other),
                (first, pool_visual_tokens(grid(0), 36)), ([*first[:1], *first], tokens),
            )
        ]  # fmt: skip
        assert cached == [0, before + 144, before + 144, 0, 0, 0]
        # All of an answer's events tell it, and text alone is never kept.
        (again,) = answers(engine, (second, tokens, how))
        assert {event.cached_tokens for event in again} == {before + 144}
    finally:
        engine.close()
