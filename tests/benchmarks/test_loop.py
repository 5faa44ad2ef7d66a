"""The story of the loop: what callers saw is told rightly, what must not pass is what it is said.

The story itself runs on a real service for long; here are its figures and its poison.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from _loop import poison, story
from _loop.traffic import HELD_OUT, SHIFTED, SHIPPED, Callers, Ongoing, Seen, picture_of
from loop import report_of, without_paths

from router.features.schema import feature_schema
from router.records import OracleRecord, to_table
from router.registry import current_router_path
from training.errors import ScoresSayNothing
from training.fitting.fit import fit
from training.oracle.collection import MANIFEST
from training.oracle.data import read_oracle
from training.promotion.gate import at_the_gate

SCALES = (1, 9, 36)
SCHEMA = feature_schema(SCALES, 6, 4)


def seen(right: float, tokens: int, count: int = 600, seed: int = 0) -> Seen:
    rng = np.random.default_rng(seed)
    return Seen(
        picture=[number // 3 for number in range(count)],
        position=[number % 3 for number in range(count)],
        right=(rng.random(count) < right).tolist(),
        tokens=[tokens] * count,
        router=["r"] * count,
        at=list(map(float, range(count))),
    )


def test_the_mixes_are_what_they_are_said_to_be() -> None:
    for mix in (SHIFTED, HELD_OUT):
        png, questions = picture_of(mix, 3)
        assert png == picture_of.__wrapped__(mix, 3)[0]
        assert mix.words.format(questions[0].text).startswith("Please answer in one word: ")
    assert picture_of(SHIFTED, 3)[0] != picture_of(HELD_OUT, 3)[0]
    assert (SHIPPED.words, SHIPPED.size_px) == ("{}", 192)  # as the shipped router knows them


def test_a_shift_is_noticed_and_none_is_not() -> None:
    usual = seen(0.95, 60)
    told = story.noticed(usual, seen(0.7, 180, seed=1))
    assert told["accuracy"]["noticed_after_answers"] == story.WINDOW
    assert told["visual_tokens"]["noticed_after_answers"] == story.WINDOW
    assert told["visual_tokens"]["mean"] == 180
    told = story.noticed(usual, seen(0.95, 60, seed=2))
    assert told["visual_tokens"]["noticed_after_answers"] is None
    assert told["accuracy"]["noticed_after_answers"] is None


def test_differences_are_of_the_same_questions() -> None:
    """Answers come in any order, and some questions may have got none."""
    before, after = seen(0.5, 100), seen(0.5, 40)
    order = np.random.default_rng(0).permutation(len(after))[:500]
    names = ("picture", "position", "right", "tokens", "router", "at")
    mixed = Seen(*([getattr(after, name)[i] for i in order] for name in names))
    less = mixed.less(before)
    assert less["accuracy"] == {"mean": 0.0, "low": 0.0, "high": 0.0}  # right where it was
    assert less["visual_tokens"]["mean"] == -60


def told_by(**changes: Any) -> dict[str, Any]:
    one = {"seen": seen(0.9, 50, 30).as_dict(), "seconds": 1.0}
    gates = {"worse_passes": 0.0, "equal_cheaper_passes": 0.9, "ratchet_points": 0.8}
    kills = {"kills": 60, "acknowledged": 5, "lost": 0, "unreadable_files": 0, "read_twice": 0}
    bad = {"refused": True, "why": "/here/work/verdict"}
    told = dict.fromkeys(("shipped_mix", "shifted_mix", "before", "labelled"), one)
    return told | {
        "retrained": one | {"promoted": True},
        "after": one | {"minus_before": {}},
        "noticed": {"seconds": 1.0},
        "poisoned": {"offered": {"a": bad, "b": bad}, "seconds": 1.0},
        "gates": gates | {"seconds": 1.0},
        "kills": kills | {"seconds": 1.0},
        **changes,
    }


def test_the_report_keeps_its_contract() -> None:
    report = report_of(told_by(), story.QUICK)
    assert report["failed_requests"] == 0
    assert (report["promoted"], report["poisoned_refused"]) == (True, True)
    for name in ("before", "after"):
        assert report[name].keys() == {"accuracy", "visual_tokens"}
    assert report["log"] == {"kills": 60, "acknowledged": 5, "lost": 0, "unreadable_files": 0}
    assert report["gate"].keys() == {"worse_passes", "equal_cheaper_passes", "ratchet_points"}
    text = json.dumps(without_paths(report, Path("/here/work")))
    assert "WORK/verdict" in text
    assert "/here" not in text
    failing = seen(0.9, 50, 30).as_dict() | {"failed": 2}
    through = {"refused": False, "why": ""}
    report = report_of(
        told_by(
            before={"seen": failing, "seconds": 1.0},
            poisoned={"offered": {"a": through}, "seconds": 1.0},
        ),
        story.QUICK,
    )
    assert (report["failed_requests"], report["poisoned_refused"]) == (2, False)


def test_callers_count_what_fails(running: Any) -> None:
    """Against a real service: asked, taught, and then one that is not there."""
    with Callers(running.url, SHIPPED, teach=True) as callers:
        found = callers.ask(range(2), lambda done: None)
    questions = sum(len(picture_of(SHIPPED, number)[1]) for number in range(2))
    assert (len(found), found.failed) == (questions, 0)
    assert set(found.router) == {running.router_version}
    assert set(found.tokens) == {36}
    with Ongoing(running.url, SHIPPED, 2) as traffic:
        assert traffic.until_answered_by(running.router_version, 30) is not None
        assert traffic.until_answered_by("another", 0.1) is None
    with Callers("http://127.0.0.1:9", SHIPPED, teach=True) as nobody:
        nobody.question(0, 0)
    assert (len(nobody.seen), nobody.seen.failed) == (0, 1)
    assert nobody.seen.first_failures[0].startswith("APIConnectionError")


@pytest.fixture(scope="module")
def audits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One question about each of 1,800 pictures; one feature tells the scale that it needs."""
    rng, records = np.random.default_rng(3), []
    for number in range(1800):
        need = int(rng.integers(3))
        right = tuple(float(k >= need) for k in range(3))
        features = rng.normal(size=len(SCHEMA.names)).astype(np.float32)
        features[0] = need + 0.1 * rng.normal()
        records.append(
            OracleRecord(
                picture_id=f"{number:064d}", question_id=f"{number}", dataset="log",
                question="what?", reference="x", source="log", scales=SCALES, answers=("x",) * 3,
                scores=right, p_reference=right, confidence=right, visual_tokens=SCALES,
                features=features, feature_schema=SCHEMA.hash, model_hash="feed",
            )
        )  # fmt: skip
    folder = tmp_path_factory.mktemp("audits") / "oracle"
    folder.mkdir()
    pq.write_table(to_table(records, OracleRecord), folder / "oracle-00000.parquet")
    manifest = {
        "model_hash": "feed", "feature_schema": SCHEMA.hash, "scales": list(SCALES),
        "grid_side": 6, "embedding_dim": 4, "relevance": SCHEMA.relevance,
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def offers(audits: Path, tmp_path_factory: pytest.TempPathFactory) -> list[poison.Offer]:
    folder = tmp_path_factory.mktemp("poison")
    honest = fit(read_oracle([audits])).router.save_pretrained(folder / "honest")
    return list(poison.offers(audits, honest, folder / "registry", folder))


def test_the_honest_router_passes_where_its_poisoned_likes_do_not(
    offers: list[poison.Offer], audits: Path
) -> None:
    honest = offers[0].router.parent / "honest"
    assert at_the_gate(honest, offers[0].registry, [audits]).passed
    assert len({offer.name for offer in offers}) == 5
    why = {}
    for offer in offers:
        verdict = at_the_gate(offer.router, offer.registry, [offer.audits])
        assert not verdict.passed, offer.name
        why[offer.name] = verdict.sentence
    assert "worse than the floor" in why["shuffled_labels_later"]
    assert "worse than the floor" in why["swapped_columns"]
    assert why["all_zero_scores"].startswith("the finest scale is right on 0.0%")
    assert "is for model 0000000000000000" in why["another_models_router"]
    with pytest.raises(ScoresSayNothing):
        fit(read_oracle([offers[2].audits]))


def test_an_offer_is_refused_only_if_nothing_went_live(
    offers: list[poison.Offer], tmp_path: Path, command: Callable[..., Any]
) -> None:
    def train(*words: object) -> CompletedProcess[str]:
        done: CompletedProcess[str] = command("m3-train", *words)
        return done

    def forced(*words: object) -> CompletedProcess[str]:
        return train(*words, "--force")

    stranger = offers[-1]
    told = poison.offered(stranger, train, tmp_path / "verdict")
    assert told["refused"]
    assert told["why"].startswith("error: not promoted: not comparable")
    assert current_router_path(stranger.registry) is None
    assert not poison.offered(stranger, forced, tmp_path / "forced")["refused"]
    assert poison.refused_by_fit(offers[0].audits, train, tmp_path)["refused"]


def test_stages_that_are_told_are_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import contextmanager

    @contextmanager
    def nobody(folder: Path) -> Iterator[str]:
        yield "http://127.0.0.1:9"

    monkeypatch.setattr(story, "_service", nobody)
    told = told_by()
    with story.told_in(tmp_path, story.QUICK) as one:
        for name, found in told.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(found))
        assert story.tell(one) == json.loads(json.dumps(told))
    with (
        pytest.raises(SystemExit, match="a story of other sizes"),
        story.told_in(tmp_path, story.Sizes()),
    ):
        pass
