"""The service's log as a source: its audited questions, with what was said about the answers.

A question is asked again as it was served: the whole conversation, under the limits of its request.
Knows the folder layout (``decisions/``, ``feedback/``) and the Arrow schemas of router.records;
does not know pictures, models or the oracle.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from m3model.pictures import CHECKED_BEFORE
from router.places import Place
from training.errors import BadRecord, NotEnoughData, TrainingError
from training.sources.tasks import Ask, FileSource

LOG = logging.getLogger(__name__)
LEFT_OUT = (
    "records not audited",
    "records of failed requests",
    "records without a stored question",
    "records with several pictures",
    "records whose picture was not stored",
    "records whose conversation is damaged",
    "records without a picture",
    "records that repeat a question",
    "pieces of feedback on an id that several answers carry",
)
_DECISION_COLUMNS = [
    "request_id", "time_utc", "picture_ids", "question", "answer", "model", "scale",
    "router_version", "audited", "status",
]  # fmt: skip
# Columns that older logs lack: None there.
_NEWER = ("tenant", "actions", "action_space", "messages", "max_tokens", "group_id")

Name = tuple[str, str | None]  # of a request: its id and tenant, which others may choose too


def rows(folder: Place, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the records of ``<log>/decisions`` or ``<log>/feedback`` as dictionaries, compacted or
    not, erased ones left out.

    The newer columns are in every row. Files that cannot be read are named on standard error.

    Raises:
        BadRecord: a file was written by a newer version of this program.
    """
    from router.log import NewerLog, Notes, tables
    from router.log.layout import KINDS
    from router.records import schema_of

    kind, notes = KINDS[folder.name], Notes()
    known = [name for name in _NEWER if name in schema_of(kind).names]
    wanted = dict.fromkeys([*columns, *known])
    try:
        for table in tables(folder.parent, kind, notes, wanted):
            yield from (dict.fromkeys(_NEWER) | row for row in table.to_pylist())
    except NewerLog as error:
        raise BadRecord(str(error)) from error
    for number, left_out in enumerate(notes.skipped):
        LOG.warning("left out, %d of %d: %s", number + 1, len(notes.skipped), left_out)


def audited_decisions(
    folder: Place, left_out: dict[str, int], answers: Counter[Name]
) -> Iterator[dict[str, Any]]:
    """Yield each audited decision on one picture that can be asked again; count the others.

    A record that was written twice (a retried write) is yielded once. Callers choose the ids of
    their requests, so several requests may have one: each is yielded.

    Args:
        answers: told how many answers were given under each name, audited or not.
    """
    seen: set[tuple[str, str | None, Any]] = set()
    for row in rows(folder / "decisions", _DECISION_COLUMNS):
        name = row["request_id"], row["tenant"]
        if (*name, row["time_utc"]) in seen:
            continue
        seen.add((*name, row["time_utc"]))
        answers[name] += row["status"] == "ok"
        if not row["audited"]:
            left_out["records not audited"] += 1
        elif row["status"] != "ok":
            left_out["records of failed requests"] += 1
        elif not row["picture_ids"]:
            left_out["records without a picture"] += 1
        elif len(row["picture_ids"]) > 1:
            left_out["records with several pictures"] += 1
        elif not row["question"]:
            left_out["records without a stored question"] += 1
        else:
            yield row


def latest_feedback(folder: Place) -> dict[Name, dict[str, Any]]:
    """Return the newest feedback on each request: ``{(request_id, tenant): row}``.

    Callers choose the ids of their requests, so one tenant's feedback counts on its own alone.
    """
    newest: dict[Name, dict[str, Any]] = {}
    for row in rows(folder / "feedback", ["request_id", "time_utc", "reference", "score"]):
        key = row["request_id"], row["tenant"]
        before = newest.get(key)
        if before is None or row["time_utc"] >= before["time_utc"]:
            newest[key] = row
    return newest


@dataclass(frozen=True)
class Conversation:
    """What a request asked, as the processor takes it, and what ends an answer to it."""

    messages: tuple[dict[str, Any], ...]
    stop: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, picture: str) -> Conversation:
        """Return the conversation of a log's ``messages``.

        Raises:
            ValueError: it is damaged, or is not about that one picture.
        """
        try:
            messages = tuple(dict(message) for message in json.loads(text))
            stop = tuple(messages[-1].pop("stop", ()))
            shown = [name for message in messages for name in _pictures(message)]
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"no conversation: {error!r}") from error
        if shown != [picture] or not all(isinstance(each, str) for each in stop):
            raise ValueError(f"a conversation about the pictures {shown}, not {picture}")
        return cls(messages, stop)


def _pictures(message: dict[str, Any]) -> list[str]:
    """Return the pictures of a turn that the processor takes; else ValueError or KeyError."""
    content, shown = message["content"], []
    if message["role"] not in ("system", "user", "assistant"):
        raise ValueError(f"no turn of the role {message['role']!r}")
    for part in [] if isinstance(content, str) else content:
        if part["type"] == "image" and message["role"] == "user":
            shown.append(part["picture_id"])
        elif part["type"] != "text" or not isinstance(part["text"], str):
            raise ValueError(f"no part of a turn: {part!r}")
    return shown


def log_source(folder: Place) -> FileSource:
    """Return the audited questions of a service's log folder, with the latest feedback on each.

    Reads ``decisions/*.parquet``, ``feedback/*.parquet`` and ``images/<picture_id>.png``. Only
    audited (uniformly sampled) requests count: the router's own choices must never train it.
    """

    if not folder.is_dir():
        raise TrainingError(f"the log folder {folder} does not exist")
    counts = dict.fromkeys(LEFT_OUT, 0)
    answers: Counter[Name] = Counter()
    found = list(audited_decisions(folder, counts, answers))
    feedback = latest_feedback(folder)
    for name in [name for name in feedback if answers[name] > 1]:
        # To which of them it belongs is not known: on the wrong picture it would teach nonsense.
        del feedback[name]
        counts["pieces of feedback on an id that several answers carry"] += 1
    asks: dict[tuple[str, str, str | None], tuple[Any, Ask]] = {}
    kept = {path.stem for path in (folder / "images").glob("*.png")}
    for row in found:
        name, (picture,) = (row["request_id"], row["tenant"]), row["picture_ids"]
        if not picture.isalnum() or picture not in kept:
            counts["records whose picture was not stored"] += 1
            continue
        given = feedback.get(name, {})
        try:
            ask = _ask(row, given, several=answers[name] > 1)
        except ValueError:
            counts["records whose conversation is damaged"] += 1
            continue
        # The same request about the same picture is asked once, with the newest feedback on it.
        key, when = (picture, ask.question, ask.metadata.get("asked")), given.get("time_utc")
        if key in asks:
            counts["records that repeat a question"] += 1
            before = asks[key][0]
            if when is None or (before is not None and before >= when):
                continue
        asks[key] = when, ask
    grouped: dict[str, list[Ask]] = {}
    for (picture, *_), (_, ask) in asks.items():
        grouped.setdefault(picture, []).append(ask)
    left_out = tuple(f"{count} {what}" for what, count in counts.items() if count)
    if not grouped:
        raise NotEnoughData(
            f"{folder} holds no audited question with a stored picture"
            + (f" ({', '.join(left_out)})" if left_out else "")
            + "; serve with --log-images and --audit-rate"
        )
    pictures = tuple(
        (name, folder / "images" / f"{name}.png", tuple(asks))
        for name, asks in sorted(grouped.items())
    )
    # The service checked them when they came, under limits of its own.
    return FileSource(
        "log", pictures, {}, left_out, picture_ids=True, limits=CHECKED_BEFORE, log=folder
    )


def _ask(row: dict[str, Any], given: dict[str, Any], *, several: bool) -> Ask:
    """Return a logged request as a question, with the feedback on it.

    Raises:
        ValueError: its conversation is damaged.
    """
    request_id, told = row["request_id"], row["messages"]
    facts = {"model": row["model"], "router_version": row["router_version"]}
    messages = stop = None
    if told is not None:
        conversation = Conversation.parse(told, row["picture_ids"][0])
        messages, stop = conversation.messages, conversation.stop or None
        # What makes it another request than one with the same question.
        asked = hashlib.sha256(f"{told}\0{row['max_tokens']}".encode())
        facts["asked"] = asked.hexdigest()[:16]
    return Ask(
        question=row["question"],
        reference=given.get("reference"),
        question_id=f"{request_id}@{row['time_utc'].isoformat()}" if several else request_id,
        dataset="log",
        score=given.get("score"),
        logged_scale=row["scale"],
        logged_action=row["actions"][0] if row["actions"] else None,
        logged_space=row["action_space"],
        logged_answer=row["answer"],
        messages=messages,
        max_tokens=row["max_tokens"],
        stop=stop,
        group_id=row["group_id"],
        metadata=facts,
    )
