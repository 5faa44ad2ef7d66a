"""The rows that are written down: oracle labels, decisions and feedback.

The annotations are the columns (see `tables`): a field that may be None is nullable, a tuple is a
list. Version 2 tells of actions; a row that names none is of scales alone. Version 3 tells under
which wishes and by which recipe, version 4 what a shadow would have done. Knows columns; knows
nothing of Arrow, files, routers or the service.
Notation: K scales, A actions, F features.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal, TypeVar

import numpy as np

# Columns that are narrower than Python's numbers; the second half is Arrow's name of the type.
Int32 = Annotated[int, "int32"]
Float32 = Annotated[float, "float32"]

# Statuses of decisions that are the service's fault, not the caller's.
SERVICE_FAULTS = ("internal_error", "timeout", "not_ready", "replica_died")


@dataclass(frozen=True, kw_only=True, slots=True)
class OracleRecord:
    """One question about one picture, answered by every action.

    Lists are aligned with ``actions``, or where those are None with ``scales``, the uniform ones.
    ``action_space`` is the hash of the space that the actions are of; ``cells`` what each of them
    reads finely. ``scores`` is exact match where a reference answer exists, else agreement with the
    finest scale's answer. ``p_reference`` is the model's likelihood of the reference answer with
    its end token (NaN: not known), ``confidence`` that of its own answer. Nothing is made monotone:
    a finer scale may score worse. ``metric`` names how answers were scored and ``threshold`` from
    which score on an answer counts as right; None is exact match, as before version 3. ``group_id``
    names what the picture belongs to (a document, a video, near copies), which no split may divide:
    None is the picture itself. ``label_recipe`` is the hash of all that determined the answers.
    """

    picture_id: str
    question_id: str
    question: str
    kind: str = ""
    dataset: str
    reference: str | None = None
    source: Literal["scenes", "llava", "log", "lmms-eval", "hf"]
    scales: tuple[Int32, ...]
    answers: tuple[str, ...]
    scores: tuple[Float32, ...]
    p_reference: tuple[Float32, ...]
    confidence: tuple[Float32, ...]
    visual_tokens: tuple[Int32, ...]
    features: tuple[Float32, ...] | np.ndarray
    feature_schema: str
    model_hash: str
    size_px: Float32 | None = None
    metadata: str = "{}"
    actions: tuple[str, ...] | None = None
    action_space: str | None = None
    cells: tuple[tuple[Int32, ...], ...] | None = None
    metric: str | None = None
    threshold: Float32 | None = None
    group_id: str | None = None
    label_recipe: str | None = None

    def __post_init__(self) -> None:
        told = self.scales if self.actions is None else self.actions
        for name in ("answers", "scores", "p_reference", "confidence", "visual_tokens", "cells"):
            entries = getattr(self, name)
            if entries is not None and len(entries) != len(told):
                raise ValueError(f"{name} has {len(entries)} entries for {len(told)} actions")


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionRecord:
    """One request as it was served; text and answer are None unless logging them is switched on.

    ``time_utc`` is an aware datetime. ``p_suffices`` is aligned with the actions of the router, of
    which the checkpoint's scales are all or some, and None where nothing was predicted. ``status``
    is "ok" or an error code. ``max_harm`` is the certified bound the decision was held to, None
    where none was asked for. ``escalated_from`` and ``first_confidence`` are the first answer's
    where a second look followed: then ``scale`` is the second scale, and tokens are the sum of
    both. ``tenant`` is the name of the key that asked, None where none was asked for: callers
    choose ``request_id``, so two tenants may choose the same. ``scales`` are those of each picture,
    of which ``scale`` is the finest; None in logs older than the column, and where nothing was
    decided. ``actions`` and ``cells`` are what was read of each picture (after a second look, by
    that), ``action_space`` the hash of the router's space.

    What replay needs: ``constraints`` is the JSON of the `router.Constraints` that the decision was
    held to, ``second_look`` whether one was allowed, ``temperature`` and ``max_tokens`` what the
    answer was drawn with, ``messages`` the JSON of the whole conversation with pictures by their
    identity (kept where ``question`` is), ``certificate`` the identity of the certificate in force,
    ``arm`` the router that decided where two were tried ("live", "canary"), ``group_id`` as in
    `OracleRecord`, where the caller gave one, ``label_recipe`` the recipe whose answer this is.

    ``shadow`` is JSON, None where no router ran as a shadow: its ``version``, and either the
    ``actions`` that it would have read, their ``visual_tokens``, the same of the first look that
    was served (``served``) and the ``ms`` that it took, or the kind of error that it ``failed``
    with.
    """

    request_id: str
    time_utc: datetime
    picture_ids: tuple[str, ...]
    question: str | None = None
    model: str
    scale: Int32
    visual_tokens: Int32
    reason: str
    p_suffices: tuple[Float32, ...] | None = None
    price: float | None = None
    router_version: str = ""
    answer: str | None = None
    confidence: Float32 | None = None
    prompt_tokens: Int32 = 0
    completion_tokens: Int32 = 0
    route_ms: Float32 = 0.0
    encode_ms: Float32 = 0.0
    total_ms: Float32 = 0.0
    audited: bool = False
    status: str = "ok"
    max_harm: float | None = None
    escalated_from: Int32 | None = None
    first_confidence: Float32 | None = None
    tenant: str | None = None
    scales: tuple[Int32, ...] | None = None
    actions: tuple[str, ...] | None = None
    action_space: str | None = None
    cells: tuple[tuple[Int32, ...], ...] | None = None
    constraints: str | None = None
    second_look: bool | None = None
    temperature: Float32 | None = None
    max_tokens: Int32 | None = None
    messages: str | None = None
    certificate: str | None = None
    arm: str | None = None
    group_id: str | None = None
    label_recipe: str | None = None
    shadow: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedbackRecord:
    """What a caller later said about an answer: the right one, or a score in [0, 1], or both.

    It belongs to the decision with the same ``request_id`` and ``tenant``.
    """

    request_id: str
    time_utc: datetime
    reference: str | None = None
    score: Float32 | None = None
    tenant: str | None = None


Record = TypeVar("Record", OracleRecord, DecisionRecord, FeedbackRecord)
