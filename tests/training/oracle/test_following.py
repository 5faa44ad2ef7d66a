"""Labelling what a source gains, in turns: when it waits, what it tells, that rows are right."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from training.errors import NotEnoughData
from training.oracle import following
from training.oracle.collection import collect
from training.oracle.following import IdleService, follow
from training.oracle.workers import Runner
from training.sources.scenes import SceneSource
from training.sources.tasks import Source

from .conftest import records_in


class Enough(Exception):
    """Ends what goes on for ever."""


def fixed(record: Any) -> tuple[Any, ...]:
    """What of a row does not hang on how many questions share a pass."""
    return record.picture_id, record.question_id, record.answers, record.scores, record.features


def test_what_is_there_and_what_comes_is_labelled_a_picture_at_a_time(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "ENOUGH_PICTURES", 2)
    held = [None, 3, 3, 4, 5]  # pictures in the source, by look; one alone waits for another
    steps: list[Any] = []
    turns = 0

    def read() -> Source:
        steps.append("look")
        if not held:
            raise Enough
        n_pictures = held.pop(0)
        if n_pictures is None:
            raise NotEnoughData("nothing yet")
        return SceneSource(n_pictures, 0, "collect")

    def turn() -> None:
        nonlocal turns
        turns += 1

    def label(source: Source, run: Runner) -> None:
        collect(source, tiny_model, tmp_path / str(len(source)), max_new_tokens=2, run=run)

    def tell(labelled: int, waiting: int) -> None:
        if steps[-1:] != [(labelled, waiting)]:
            steps.append((labelled, waiting))

    with pytest.raises(Enough):
        follow(read, label, turn, tell, sleep=lambda seconds: None)
    # Of each run's pictures the first is told of before it is begun; here a run labels all anew.
    three = [(0, 3), (1, 2), (2, 1), (3, 0)]
    five = [(3, 5), (4, 4), (5, 3), (6, 2), (7, 1), (8, 0)]
    assert steps == [
        (0, 0), "look", "look", *three, "look", (3, 0), "look", (3, 1), "look", *five, "look",
    ]  # fmt: skip
    assert turns >= 6 + 3 + 5
    plain = tmp_path / "plain"
    collect(SceneSource(3, 0, "collect"), tiny_model, plain, workers=1, max_new_tokens=2)
    found = sorted(map(fixed, records_in(tmp_path / "3")))
    assert [row[:4] for row in found] == [row[:4] for row in sorted(map(fixed, records_in(plain)))]
    for mine, theirs in zip(found, sorted(map(fixed, records_in(plain))), strict=True):
        assert mine[4] == pytest.approx(theirs[4], abs=1e-4)


def test_a_picture_with_many_questions_is_several_turns(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.oracle import labelling

    source, turns = SceneSource(1, 0, "collect", repeats=2), []
    n_questions = len(source.load(0).asks)
    monkeypatch.setattr(labelling, "MAX_QUESTIONS", 2)
    run = following.InTurns(lambda: turns.append(1), lambda labelled, waiting: None)
    collect(source, tiny_model, tmp_path, max_new_tokens=2, run=run)
    assert len(list(records_in(tmp_path))) == n_questions > 2
    assert len(turns) == 1 + -(-n_questions // 2)  # and one before the model is loaded


@contextmanager
def service(says: list[Any]) -> Iterator[str]:
    """A server that says how many requests it works on, one entry after another."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/health/inflight"
            said = says.pop(0)
            self.send_response(200 if isinstance(said, int) else 503)
            self.end_headers()
            self.wfile.write(json.dumps({"inflight": said}).encode())

        def log_message(self, *told: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_turn_comes_when_nothing_is_worked_on() -> None:
    pauses: list[float] = []
    says = [2, 1, "a gateway does not say", 1, 1, 1, 0, 0]
    with service(says) as url:
        turn = IdleService(url, sleep=pauses.append)
        turn()
        assert says == [0]
        assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
        turn()
        assert len(pauses) == 6


def test_a_service_that_is_not_there_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    with service([]) as url:
        pass
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise Enough

    with pytest.raises(Enough):
        IdleService(url, sleep=sleep)()
    assert [record.message.startswith(f"{url} does not say") for record in caplog.records] == [True]


def test_flags_that_need_one_another(tmp_path: Path, command: Any) -> None:
    idle = ("--idle-of", "http://127.0.0.1:9")
    for flags in (
        ("--scenes", 3, "--follow"),
        ("--from-log", tmp_path, *idle),
        ("--from-log", tmp_path, "--follow", "--workers", 2),
    ):
        done = command("m3-train", "collect", "--out", tmp_path / "out", *flags)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "--idle-of needs --follow, which needs --from-log" in done.stderr
