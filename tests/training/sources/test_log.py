"""Reading the service's log as a source: what the service took, training takes."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from router.records import DecisionRecord, FeedbackRecord, picture_id, to_table
from training.errors import BadRecord
from training.sources import FileSource, llava_source, log_source


def test_a_logged_picture_was_checked_by_the_service(tmp_path: Path) -> None:
    """Its operator may have raised the limits; a file from elsewhere has those of the defaults."""
    strip = np.full((2, 10_001, 3), 7, np.uint8)
    name = picture_id(strip)
    for folder in ("decisions", "images"):
        (tmp_path / folder).mkdir()
    Image.fromarray(strip).save(tmp_path / "images" / f"{name}.png")
    decision = DecisionRecord(
        request_id="r1", time_utc=datetime(2026, 11, 27, tzinfo=UTC), picture_ids=(name,),
        question="What?", model="m3-auto", scale=9, visual_tokens=9, reason="predicted",
        audited=True,
    )  # fmt: skip
    pq.write_table(to_table([decision], DecisionRecord), tmp_path / "decisions" / "a.parquet")
    assert np.array_equal(log_source(tmp_path).load(0).rgb, strip)

    [ask] = log_source(tmp_path).load(0).asks
    assert (ask.logged_scale, ask.logged_action, ask.logged_space) == (9, None, None)
    focused = replace(
        decision, visual_tokens=17, actions=("9+144@500x12",), action_space="5bace", cells=((3, 7),)
    )
    pq.write_table(to_table([focused], DecisionRecord), tmp_path / "decisions" / "a.parquet")
    [ask] = log_source(tmp_path).load(0).asks
    assert (ask.logged_scale, ask.logged_action, ask.logged_space) == (9, "9+144@500x12", "5bace")
    # Logs from before there were foci are read as before.
    older = pq.read_table(tmp_path / "decisions" / "a.parquet")
    older = older.drop_columns(["actions", "action_space", "cells"])
    pq.write_table(older, tmp_path / "decisions" / "a.parquet")
    [ask] = log_source(tmp_path).load(0).asks
    assert (ask.logged_scale, ask.logged_action) == (9, None)

    data = tmp_path / "data.json"
    turns = '[{"from": "human", "value": "What?"}, {"from": "gpt", "value": "grey"}]'
    data.write_text(f'[{{"id": "7", "image": "{name}.png", "conversations": {turns}}}]')
    with pytest.raises(BadRecord, match=r"record 7: .*10,000 on a side are accepted"):
        llava_source(data, tmp_path / "images").load(0)


PIXELS = np.full((8, 8, 3), 9, np.uint8)
NOW = datetime(2026, 11, 27, tzinfo=UTC)


def decided(request_id: str, minute: int = 0, **changes: Any) -> DecisionRecord:
    facts = {
        "request_id": request_id, "time_utc": NOW + timedelta(minutes=minute),
        "picture_ids": (picture_id(PIXELS),), "question": "What?", "answer": "a star",
        "model": "m3-auto", "scale": 9, "visual_tokens": 9, "reason": "predicted", "audited": True,
        **changes,
    }  # fmt: skip
    return DecisionRecord(**facts)


def asked(*turns: tuple[str, Any], name: str | None = None, **last: Any) -> str:
    """The conversation as the service writes it down; None stands for the picture."""
    image = {"type": "image", "picture_id": name or picture_id(PIXELS)}
    messages: list[dict[str, Any]] = [
        {"role": role, "content": [image] if text is None else text} for role, text in turns
    ]
    messages[-1] |= last
    return json.dumps(messages)


def log_of(
    folder: Path, decisions: list[DecisionRecord], said: list[FeedbackRecord] | None = None
) -> FileSource:
    for name in ("decisions", "images", "feedback"):
        (folder / name).mkdir()
    Image.fromarray(PIXELS).save(folder / "images" / f"{picture_id(PIXELS)}.png")
    pq.write_table(to_table(decisions, DecisionRecord), folder / "decisions" / "a.parquet")
    if said:
        pq.write_table(to_table(said, FeedbackRecord), folder / "feedback" / "a.parquet")
    return log_source(folder)


def test_requests_of_one_id_are_requests_each(tmp_path: Path) -> None:
    """A script that sends one x-request-id asks many things; to which of them feedback belongs is
    not known, so it belongs to none."""
    four = [decided("trace-1", n, question=f"What {n}?") for n in range(4)]
    retried = four[1]  # the same record, written again
    said = [
        FeedbackRecord(request_id="trace-1", time_utc=NOW, reference="red"),
        FeedbackRecord(request_id="r", time_utc=NOW, reference="blue"),
    ]
    source = log_of(tmp_path, [*four, retried, decided("r", question="Which?")], said)
    asks = source.load(0).asks
    assert [ask.question for ask in asks] == ["What 0?", "What 1?", "What 2?", "What 3?", "Which?"]
    assert [ask.reference for ask in asks] == [None, None, None, None, "blue"]
    assert len({ask.question_id for ask in asks}) == 5
    assert source.notes() == ["1 pieces of feedback on an id that several answers carry"]


def test_feedback_on_the_one_answer_of_an_id_counts(tmp_path: Path) -> None:
    """A request that failed was sent again with its id: there is one answer to judge."""
    decisions = [decided("r", status="overloaded"), decided("r", 1)]
    said = [FeedbackRecord(request_id="r", time_utc=NOW, score=0.0)]
    [ask] = log_of(tmp_path, decisions, said).load(0).asks
    assert (ask.score, ask.logged_answer, ask.question_id) == (0.0, "a star", "r")


def test_a_conversation_is_asked_as_it_was(tmp_path: Path) -> None:
    system, user = ("system", "Say yes."), ("user", None)
    last = ("user", "What?")
    decisions = [
        decided("plain", messages=asked(user, last), max_tokens=6, group_id="doc"),
        decided("again", messages=asked(user, last), max_tokens=6),
        decided("longer", messages=asked(user, last), max_tokens=7),
        decided("ends", messages=asked(user, last, stop=["."]), max_tokens=6),
        decided("told", messages=asked(system, user, last), max_tokens=6),
    ]
    source = log_of(tmp_path, decisions)
    asks = {ask.question_id: ask for ask in source.load(0).asks}
    assert sorted(asks) == ["ends", "longer", "plain", "told"]
    assert source.notes() == ["1 records that repeat a question"]
    told, ends = asks["told"], asks["ends"]
    assert told.messages is not None
    assert [message["role"] for message in told.messages] == ["system", "user", "user"]
    assert (ends.stop, ends.max_tokens, ends.group_id) == ((".",), 6, "doc")
    assert (told.stop, told.group_id) == (None, "doc")  # the picture's, by its first question
    assert ends.messages == asks["plain"].messages
    assert len({ask.metadata["asked"] for ask in asks.values()}) == 4
    assert {ask.question for ask in asks.values()} == {"What?"}


def test_damaged_conversations_are_counted_and_older_ones_are_the_question_alone(
    tmp_path: Path,
) -> None:
    broken = [
        "{", "[]", "3", '[{"role": "user"}]', '["user"]', asked(("user", None), name="another"),
        asked(("user", "no picture")), asked(("user", None), ("user", None)),
        asked(("judge", "Say."), ("user", None)), asked(("system", None)),
        asked(("user", None), ("user", [{"type": "text", "text": 3}])),
        asked(("user", None), stop=[3]), '[{"role": "user", "content": [{"text": "untyped"}]}]',
    ]  # fmt: skip
    decisions = [decided(f"b{n}", n, messages=text) for n, text in enumerate(broken)]
    source = log_of(tmp_path, [*decisions, decided("older", 60)])
    [ask] = source.load(0).asks
    assert (ask.question_id, ask.messages, ask.max_tokens) == ("older", None, None)
    assert "asked" not in ask.metadata
    assert source.notes() == [f"{len(broken)} records whose conversation is damaged"]
