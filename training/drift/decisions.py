"""What a decision log tells of the router in force: readable, audited, answered by whom, collapsed.

Knows the log's reader and routers; knows nothing of labels.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m3model.engine.recipe import model_of
from router.decision import Reason
from router.drift.population import Population, effective_units
from router.drift.stability import LEAST_CHOICES, NEARLY_ALL, collapsed
from router.log import NewerLog, Notes, tables
from router.places import Place
from router.records import DecisionRecord, schema_of
from router.router import Router
from training.drift.checks import Check, Verdict
from training.errors import TrainingError

NEWEST = 5_000  # decisions that tell what is chosen now
_COLUMNS = (
    "time_utc", "request_id", "picture_ids", "question", "audited", "status", "reason", "actions",
    "router_version", "label_recipe", "escalated_from",
)  # fmt: skip
BACKLOG = 0.5  # share of the audited pictures without labels that is worth a word


@dataclass
class LogFacts:
    """What a log holds.

    Attributes:
        decisions: all records.
        audited: identities of pictures whose audited question can be asked again.
        newest: the last decisions, the newest last.
        notes: what could not be read.
    """

    decisions: int = 0
    audited: set[str] = field(default_factory=set)
    newest: list[dict[str, Any]] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)


def read_facts(log: Place) -> LogFacts:
    """Return what a log holds.

    Raises:
        TrainingError: it is not there, holds no decision, or was written by a newer program.
    """
    if not log.is_dir():
        raise TrainingError(f"the log folder {log} does not exist; give --log")
    found, schema = LogFacts(), schema_of(DecisionRecord)
    best = pa.schema([schema.field(name) for name in _COLUMNS]).empty_table()
    try:
        for table in tables(log, DecisionRecord, found.notes, _COLUMNS):
            found.decisions += table.num_rows
            found.audited |= _askable(table)
            both = pa.concat_tables([best, table])
            best = both.take(pc.sort_indices(both, [("time_utc", "ascending")])[-NEWEST:])
    except NewerLog as error:
        raise TrainingError(str(error)) from error
    if not found.decisions and not found.notes.damaged:
        raise TrainingError(f"{log} holds no decision; give the log folder of a service")
    found.newest = best.drop_columns(["question"]).to_pylist()
    return found


def _askable(table: pa.Table) -> set[str]:
    asked = pc.and_(pc.equal(table["status"], "ok"), table["audited"])
    one = pc.equal(pc.list_value_length(table["picture_ids"]), 1)
    rows = table.filter(pc.and_(pc.and_(asked, one), pc.is_valid(table["question"])))
    return {picture for (picture,) in rows["picture_ids"].to_pylist()}


def check_log(facts: LogFacts) -> Check:
    """Return whether every file of the log can be read."""
    damaged = facts.notes.damaged
    if damaged:
        named = ", ".join(str(each) for each in damaged[:3])
        return Check(
            "log", "bad", f"{len(damaged)} files of the log are damaged: {named}", len(damaged),
            "bring them back from a copy; until then their audits are missing, not at random",
        )  # fmt: skip
    return Check("log", "ok", f"{facts.decisions} decisions can be read", facts.decisions)


def check_backlog(facts: LogFacts, labelled: set[str] | None) -> Check:
    """Return whether what was audited is labelled; None: no labels were given."""
    n, do = len(facts.audited), "m3-train collect --from-log, then give its folder as --oracle"
    if not n:
        return Check(
            "backlog", "warning", "no audited question can be asked again: nothing can be judged",
            0, "serve with --log-images and --audit-rate",
        )  # fmt: skip
    missing = n if labelled is None else len(facts.audited - labelled)
    told = f"{missing} of {n} audited pictures are not labelled"
    if missing > BACKLOG * n:
        return Check("backlog", "warning", told, missing, do)
    return Check("backlog", "ok", told, missing)


def check_served(facts: LogFacts, router: Router | None, name: str) -> Check:
    """Return whether the newest decisions are of the router that should be in force, and of the
    model that it is for."""
    answered = [row for row in facts.newest[-100:] if row["status"] == "ok" and row["actions"]]
    versions = Counter(row["router_version"] or "none" for row in answered)
    version = "none" if router is None else router.version
    wanted = None if router is None else router.metadata.get("label_recipe")
    recipes = {row["label_recipe"] for row in answered} - {None}
    others = {recipe for recipe in recipes if wanted and model_of(recipe) != model_of(wanted)}
    if others:
        return Check(
            "match", "bad",
            f"{name} was fitted on answers of recipe {wanted}, the log holds those of "
            f"{', '.join(sorted(others))}",
            do="fit a router on answers of the model that is served",
        )  # fmt: skip
    if versions and version not in versions:
        return Check(
            "served", "warning",
            f"the last {len(answered)} answers are of router {versions.most_common(1)[0][0]}, not "
            f"of {name} ({version})",
            do="look at m3_router_stale and --router: does the service follow this registry?",
        )  # fmt: skip
    return Check("served", "ok", f"the last answers are of {name} ({version})")


def _first_action(row: dict[str, Any]) -> str:
    """Return what was freely chosen, whatever a second look read after it."""
    first, final = row["escalated_from"], row["actions"][0]
    return str(final if first is None else first)


def check_collapse(facts: LogFacts, router: Router | None, told: Population | None) -> Check:
    """Return whether the router still chooses among its actions."""
    if router is None or router.policy.finest_only:
        return Check(
            "collapse", "warning", "everything is read at the finest scale: nothing is saved", 1.0,
            "retrain: a router for this traffic may save tokens",
        )  # fmt: skip
    mine = [
        row for row in facts.newest
        if row["router_version"] == router.version and row["reason"] == Reason.predicted.value
        and row["actions"] and len(row["picture_ids"]) == 1
    ]  # fmt: skip
    chosen = Counter(map(_first_action, mine))
    pictures = Counter(row["picture_ids"][0] for row in mine)
    worth = effective_units(np.array(list(pictures.values())))
    if worth < LEAST_CHOICES:
        return Check(
            "collapse", "ok",
            f"{len(mine)} free decisions in the log are too few to tell (it takes {LEAST_CHOICES} "
            "about different pictures)",
        )  # fmt: skip
    (most, count), anchor = chosen.most_common(1)[0], router.space.names[-1]
    share, at_fit = count / len(mine), {} if told is None else told.choices
    says = f"{share:.1%} of the last {len(mine)} free decisions take {most}"
    if told is not None:
        says += f"; when fitted it was {at_fit[most]:.1%}"
    one = collapsed(chosen, at_fit, worth)
    if one == anchor or (share >= NEARLY_ALL and most == anchor):
        return Check("collapse", "warning", says, share, "retrain: next to nothing is saved")
    if one is not None:
        verdict: Verdict = "bad"
        if told is None:
            verdict, says = "warning", f"{says} (what it chose when fitted is not told)"
        return Check(
            "collapse", verdict, f"router {router.version} has collapsed: {says}", share,
            "look at the features that moved; retrain",
        )  # fmt: skip
    return Check("collapse", "ok", says, share)
