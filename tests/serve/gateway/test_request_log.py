"""What is written down of a request, what is not, and under which name feedback arrives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from router.actions import Reading
from router.decision import Constraints, Reason, RoutingDecision
from router.wishes import constraints_from_json
from serve.errors import BadRequest, NotFound, NotReady
from serve.gateway.call import Call
from serve.gateway.question import parse_request
from serve.gateway.request_log import RequestLog
from serve.gateway.request_trace import Trace
from serve.log.audits import Audits
from serve.protocol import ChatRequest, FeedbackRequest
from serve.settings import ServeSettings
from serve.stages.messages import AnswerPart, Encoded

SCALES = (1, 9, 36, 144, 576)


class ListLog:
    """A decision log in memory."""

    secret = b"of a folder"

    def __init__(self, audit_rate: float = 1.0) -> None:
        self.audits = Audits(None, audit_rate)
        self.records: list[Any] = []
        self.pictures: list[list[bytes]] = []
        self.feedbacks: list[Any] = []

    def append(self, record: Any, pictures: Any = ()) -> int:
        self.records.append(record)
        self.pictures.append(list(pictures) if record.audited else [])
        return 0

    def feedback(self, record: Any) -> None:
        self.feedbacks.append(record)

    def flush(self) -> bool:
        return True


def write(body: dict[str, Any], others: tuple[AnswerPart, ...] = (), **settings: Any) -> ListLog:
    """Returns the log after one answered request about the body's pictures."""
    wanted = ServeSettings(**settings)
    log = ListLog(wanted.audit_rate)
    request = ChatRequest.model_validate(body)
    parsed = parse_request(request, SCALES, wanted)
    n = len(parsed.pictures)
    decision = RoutingDecision(
        9, 9 * n, Reason.predicted, {s: s / 576 for s in SCALES},
        readings=(Reading.uniform(9),) * n,
    )  # fmt: skip
    trace = Trace(Call("r"), "chat", request, parsed=parsed, status="ok")
    trace.encoded = Encoded(
        tuple("ab"[:n]), (), decision, 2.0, action_space="space", constraints=parsed.constraints,
        certificate="proof", label_recipe="0123-float32",
    )  # fmt: skip
    trace.add(AnswerPart("a red", 2, -0.5, 7))
    for part in (*others, AnswerPart(" bar", 1, -0.5, 7, "stop")):
        trace.add(part)

    async def run() -> None:
        request_log = RequestLog(log, wanted, SCALES)  # type: ignore[arg-type]
        request_log.write(trace)
        await request_log.settle()

    asyncio.run(run())
    return log


def test_of_several_answers_the_first_is_told_and_all_are_counted(
    ask_body: Callable[..., dict[str, Any]],
) -> None:
    others = (AnswerPart("blue", 4, -9.0, 7, "length", index=1),)
    (record,) = write(ask_body("what?", n=2), others, log_prompts=True).records
    assert (record.answer, record.prompt_tokens, record.completion_tokens) == ("a red bar", 16, 7)
    assert record.confidence == pytest.approx(0.36788, abs=1e-4)  # exp(-1)


def test_a_record_counts_and_does_not_quote(ask_body: Callable[..., dict[str, Any]]) -> None:
    log = write(ask_body("secret?", seeds=(1, 2)))
    record = log.records[0]
    assert (record.scale, record.visual_tokens, record.reason) == (9, 18, "predicted")
    assert record.scales == (9, 9)
    told = record.actions, record.action_space, record.cells
    assert told == (("9", "9"), "space", ((), ()))
    assert (record.prompt_tokens, record.completion_tokens) == (25, 3)
    assert record.p_suffices == pytest.approx((1 / 576, 9 / 576, 36 / 576, 0.25, 1.0))
    assert record.confidence == pytest.approx(0.36788, abs=1e-4)  # exp(-1)
    assert record.time_utc.tzinfo is not None
    assert (record.question, record.answer) == (None, None)
    assert "secret" not in repr(record)


def test_words_and_pictures_are_kept_when_asked(
    ask_body: Callable[..., dict[str, Any]], picture_bytes: Callable[..., bytes]
) -> None:
    body = ask_body("why?", seeds=(1, 2))
    log = write(body, log_images=True)
    assert (log.records[0].question, log.records[0].answer) == ("why?", "a red bar")
    assert log.pictures == [[picture_bytes(1), picture_bytes(2)]]
    log = write(body, log_images=True, audit_rate=0.0)
    assert (log.records[0].question, log.records[0].audited) == (None, False)
    log = write(body, log_prompts=True, audit_rate=0.0)
    assert log.records[0].question == "why?"


def test_a_record_says_how_an_answer_was_asked_for(ask_body: Callable[..., dict[str, Any]]) -> None:
    asked = {"messages": [
        {"role": "developer", "content": "Be brief."},
        *ask_body("what?", seeds=(1, 2))["messages"],
        {"role": "assistant", "content": "a bar"},
        {"role": "user", "content": [{"type": "text", "text": "red?"}]},
    ]}  # fmt: skip
    routing = {"max_visual_tokens": 99, "second_look": False, "group_id": "doc 7"}
    wishes = {"routing": routing, "stop": "."}
    body = ask_body(**asked, **wishes, max_tokens=7, temperature=0.5)
    (record,) = write(body, log_prompts=True, audit_rate=0.0).records
    assert json.loads(record.messages) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [
            {"type": "image", "picture_id": "a"}, {"type": "image", "picture_id": "b"},
            {"type": "text", "text": "what?"},
        ]},
        {"role": "assistant", "content": "a bar"},
        {"role": "user", "content": [{"type": "text", "text": "red?"}], "stop": ["."]},
    ]  # fmt: skip
    assert constraints_from_json(record.constraints) == Constraints(max_visual_tokens=99)
    assert (record.second_look, record.temperature, record.max_tokens) == (False, 0.5, 7)
    assert (record.certificate, record.label_recipe) == ("proof", "0123-float32-7")
    assert (record.arm, record.group_id, record.shadow) == ("live", "doc 7", None)
    silent = ask_body("what?")
    del silent["max_tokens"]
    (record,) = write(silent, audit_rate=0.0, default_max_tokens=11).records
    assert (record.temperature, record.max_tokens, record.messages) == (0.0, 11, None)
    assert record.label_recipe == "0123-float32-11"


def answered(request_log: RequestLog, call: Call) -> str:
    """Returns the id of the reply to a request that was answered."""
    request = ChatRequest.model_validate({"messages": [{"role": "user", "content": "hi"}]})
    request_log.write(Trace(call, "chat", request, status="ok"))
    reply_id = request_log.reply_id(call)
    assert reply_id is not None
    return reply_id


def test_feedback_arrives_under_every_id_of_an_answer() -> None:
    log = ListLog()
    request_log = RequestLog(log, ServeSettings(), SCALES)  # type: ignore[arg-type]
    reply_id = answered(request_log, Call("abc"))
    for name in ("abc", "chatcmpl-abc", reply_id):
        said = FeedbackRequest(request_id=name, reference="red", score=1.0)
        request_log.feedback(said, Call("f"))
    # The log of another gateway in the same folder has not seen the request.
    elsewhere = RequestLog(log, ServeSettings(), SCALES)  # type: ignore[arg-type]
    elsewhere.feedback(FeedbackRequest(request_id=reply_id, reference="red"), Call("f"))
    with pytest.raises(NotFound, match="Send the 'id' of the reply"):
        elsewhere.feedback(FeedbackRequest(request_id="abc", reference="red"), Call("f"))
    assert [(each.request_id, each.reference) for each in log.feedbacks] == [("abc", "red")] * 4


def test_feedback_needs_an_answer_something_to_say_and_a_log() -> None:
    request_log = RequestLog(ListLog(), ServeSettings(), SCALES)  # type: ignore[arg-type]
    call = Call("f")
    with pytest.raises(BadRequest, match="says nothing"):
        request_log.feedback(FeedbackRequest(request_id="abc"), call)
    with pytest.raises(NotFound) as caught:
        request_log.feedback(FeedbackRequest(request_id="abc", score=1), call)
    assert (caught.value.code, caught.value.param) == ("unknown_answer", "request_id")
    request = ChatRequest.model_validate({"messages": [{"role": "user", "content": "hi"}]})
    request_log.write(Trace(Call("abc"), "chat", request, status="replica_died"))
    with pytest.raises(NotFound):  # there was no answer
        request_log.feedback(FeedbackRequest(request_id="abc", score=1), call)
    nowhere = RequestLog(None, ServeSettings(), SCALES)
    assert nowhere.reply_id(call) is None
    with pytest.raises(NotReady, match="log folder"):
        nowhere.feedback(FeedbackRequest(request_id="a", score=1), call)


def test_feedback_is_taken_from_the_tenant_that_asked() -> None:
    log = ListLog()
    request_log = RequestLog(log, ServeSettings(), SCALES)  # type: ignore[arg-type]
    reply_id = answered(request_log, Call("abc", tenant="alice"))
    for name in ("abc", reply_id):
        said = FeedbackRequest(request_id=name, score=0.0)
        for stranger in ("bob", ""):
            with pytest.raises(NotFound):
                request_log.feedback(said, Call("f", tenant=stranger))
        request_log.feedback(said, Call("f", tenant="alice"))
    answered(request_log, Call("abc", tenant="bob"))  # callers choose the ids of their requests
    request_log.feedback(FeedbackRequest(request_id="abc", score=1.0), Call("f", tenant="bob"))
    told = [(each.request_id, each.tenant, each.score) for each in log.feedbacks]
    assert told == [("abc", "alice", 0.0), ("abc", "alice", 0.0), ("abc", "bob", 1.0)]
    assert [record.tenant for record in log.records] == ["alice", "bob"]


def test_one_id_for_several_requests_is_several_names_and_no_answer() -> None:
    """A gateway or a script may send one constant x-request-id."""
    log = ListLog()
    request_log = RequestLog(log, ServeSettings(), SCALES)  # type: ignore[arg-type]
    request = ChatRequest.model_validate({"messages": [{"role": "user", "content": "hi"}]})
    traces = [Trace(Call("t", tenant="alice"), "chat", request, status="ok") for _ in range(3)]
    for trace in traces:
        request_log.name(trace)
    assert len({trace.reply_id for trace in traces}) == 3
    request_log.write(traces[1])  # of three that are under way, one is answered
    request_log.feedback(FeedbackRequest(request_id="t", score=1.0), Call("f", tenant="alice"))
    request_log.write(traces[0])
    with pytest.raises(BadRequest, match=r"Several answers.* Send the 'id'") as caught:
        request_log.feedback(FeedbackRequest(request_id="t", score=0.0), Call("f", tenant="alice"))
    assert (caught.value.code, caught.value.param) == ("ambiguous_answer", "request_id")
    for trace in traces[:2]:
        said = FeedbackRequest(request_id=trace.reply_id, score=0.5)
        request_log.feedback(said, Call("f", tenant="alice"))
    names = [record.request_id for record in log.records]
    assert names[1] == "t"
    assert names[0].startswith("t.")
    told = [(each.request_id, each.score) for each in log.feedbacks]
    assert told == [(names[0], 1.0), (names[1], 0.5), (names[0], 0.5)]
    other = Trace(Call("t", tenant="bob"), "chat", request, status="ok")  # others' ids are others'
    request_log.name(other)
    request_log.write(other)
    request_log.feedback(FeedbackRequest(request_id="t", score=1.0), Call("f", tenant="bob"))
    assert log.feedbacks[-1].request_id == "t"
