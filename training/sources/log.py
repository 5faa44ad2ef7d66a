"""The service's log as a source: its audited questions, with what was said about the answers.

Knows the folder layout (``decisions/``, ``feedback/``) and the Arrow schemas of router.records;
does not know pictures, models or the oracle.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m3model.pictures import CHECKED_BEFORE
from training.errors import BadRecord, TrainingError
from training.sources.tasks import Ask, FileSource

LOG = logging.getLogger(__name__)
LEFT_OUT = (
    "not audited",
    "of failed requests",
    "without a stored question",
    "with several pictures",
    "whose picture was not stored",
    "without a picture",
    "that repeat a question",
)
_DECISION_COLUMNS = [
    "request_id", "picture_ids", "question", "model", "scale", "router_version", "audited",
    "status",
]  # fmt: skip
_NEWER = ("tenant", "actions", "action_space")  # columns that older logs lack: None there


def rows(folder: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
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


def audited_decisions(folder: Path, left_out: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Yield each audited decision on one picture that can be asked again; count the others.

    A request that was logged twice (a retried write) is yielded once.
    """
    seen: set[str] = set()
    for row in rows(folder / "decisions", _DECISION_COLUMNS):
        if row["request_id"] in seen:
            continue
        seen.add(row["request_id"])
        if not row["audited"]:
            left_out["not audited"] += 1
        elif row["status"] != "ok":
            left_out["of failed requests"] += 1
        elif not row["picture_ids"]:
            left_out["without a picture"] += 1
        elif len(row["picture_ids"]) > 1:
            left_out["with several pictures"] += 1
        elif not row["question"]:
            left_out["without a stored question"] += 1
        else:
            yield row


def latest_feedback(folder: Path) -> dict[tuple[str, str | None], dict[str, Any]]:
    """Return the newest feedback on each request: ``{(request_id, tenant): row}``.

    Callers choose the ids of their requests, so one tenant's feedback counts on its own alone.
    """
    newest: dict[tuple[str, str | None], dict[str, Any]] = {}
    for row in rows(folder / "feedback", ["request_id", "time_utc", "reference", "score"]):
        key = row["request_id"], row["tenant"]
        before = newest.get(key)
        if before is None or row["time_utc"] >= before["time_utc"]:
            newest[key] = row
    return newest


def log_source(folder: Path) -> FileSource:
    """Return the audited questions of a service's log folder, with the latest feedback on each.

    Reads ``decisions/*.parquet``, ``feedback/*.parquet`` and ``images/<picture_id>.png``. Only
    audited (uniformly sampled) requests count: the router's own choices must never train it.
    """

    if not folder.is_dir():
        raise TrainingError(f"the log folder {folder} does not exist")
    feedback = latest_feedback(folder)
    counts = dict.fromkeys(LEFT_OUT, 0)
    asks: dict[tuple[str, str], tuple[Any, Ask]] = {}
    for row in audited_decisions(folder, counts):
        picture = row["picture_ids"][0]
        path = folder / "images" / f"{picture}.png"
        if not picture.isalnum() or not path.is_file():
            counts["whose picture was not stored"] += 1
            continue
        given = feedback.get((row["request_id"], row["tenant"]), {})
        ask = Ask(
            question=row["question"],
            reference=given.get("reference"),
            question_id=row["request_id"],
            dataset="log",
            score=given.get("score"),
            logged_scale=row["scale"],
            logged_action=row["actions"][0] if row["actions"] else None,
            logged_space=row["action_space"],
            metadata={"model": row["model"], "router_version": row["router_version"]},
        )
        # The same question about the same picture is asked once, with the newest feedback on it.
        key, when = (picture, row["question"]), given.get("time_utc")
        if key in asks:
            counts["that repeat a question"] += 1
            before = asks[key][0]
            if when is None or (before is not None and before >= when):
                continue
        asks[key] = when, ask
    grouped: dict[str, list[Ask]] = {}
    for (picture, _), (_, ask) in asks.items():
        grouped.setdefault(picture, []).append(ask)
    left_out = tuple(f"{count} records {what}" for what, count in counts.items() if count)
    if not grouped:
        raise TrainingError(
            f"{folder} holds no audited question with a stored picture"
            + (f" ({', '.join(left_out)})" if left_out else "")
            + "; serve with --log-images and --audit-rate"
        )
    pictures = tuple(
        (name, folder / "images" / f"{name}.png", tuple(asks))
        for name, asks in sorted(grouped.items())
    )
    # The service checked them when they came, under limits of its own.
    return FileSource("log", pictures, {}, left_out, picture_ids=True, limits=CHECKED_BEFORE)
