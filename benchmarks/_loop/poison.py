"""Candidates that must not go live, built and offered to `m3-train promote` like any other.

Each is what an error of the trade makes of honest data: labels of other questions, a scoring that
says no to everything, columns that changed places, a router of another model. A router that knows
nothing of questions may still be a good one where it is dear: one action for all may well beat what
a shift of the traffic has made wasteful. So they are priced to read half of what the honest one
does, which is where a wrong choice hurts. Knows fitting and commands; knows nothing of the story.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from router import Policy, Router
from router.policy import choose_many, row_costs
from router.registry import current_router_path
from training.figures.metrics import picked
from training.fitting.fit import fit
from training.oracle.data import OracleData, read_oracle
from training.promotion.replay import played

MOST_PICTURES = 1000  # that a poisoned router is fitted on: more do not make it better
CHEAPEST = 1e6  # a price at which nothing but the cheapest action is taken

Train = Callable[..., CompletedProcess[str]]


@dataclass(frozen=True)
class Offer:
    """A candidate, the registry that it is offered to and the audits that shall speak for it."""

    name: str
    router: Path
    registry: Path
    audits: Path


def offers(audits: Path, honest: Path, registry: Path, folder: Path) -> Iterator[Offer]:
    """Yield the candidates, each built when it is asked for.

    Args:
        audits: oracle data of the traffic.
        honest: the candidate that those data made.
        registry: of the story, where something was promoted.
        folder: to write to.
    """
    data, live = read_oracle([audits]), Router.from_pretrained(honest)
    some = data.take(data.pictures < MOST_PICTURES)
    order = np.random.default_rng(0).permutation(len(some))
    half = float(played(live, some, "honest").spent(some.visual_tokens).mean()) / 2
    shuffled = _fitted(_changed(some, order), half, folder / "shuffled")
    yield Offer("shuffled_labels_at_cold_start", shuffled, folder / "empty", audits)
    yield Offer("shuffled_labels_later", shuffled, registry, audits)
    zero = _zero(audits, folder / "zero-audits")
    cheap = Router(
        live.predictor, live.schema, Policy(live.policy.costs, CHEAPEST), space=live.space,
        metadata=live.metadata,
    ).save_pretrained(folder / "cheapest")  # fmt: skip
    yield Offer("all_zero_scores", cheap, registry, zero)
    swapped = _fitted(_changed(some, np.s_[:, ::-1]), half, folder / "swapped")
    yield Offer("swapped_columns", swapped, registry, audits)
    stranger = Router(
        live.predictor, live.schema, live.policy, space=live.space,
        metadata={**live.metadata, "model_hash": "0" * 16},
    ).save_pretrained(folder / "stranger")  # fmt: skip
    yield Offer("another_models_router", stranger, registry, audits)


def offered(offer: Offer, train: Train, verdict: Path) -> dict[str, Any]:
    """Return whether an offer was refused, and in which words."""
    before = current_router_path(offer.registry)
    done = train(
        "promote", "--router", offer.router, "--registry", offer.registry,
        "--oracle", offer.audits, "--verdict", verdict,
    )  # fmt: skip
    stayed = current_router_path(offer.registry) == before
    lines = done.stderr.strip().splitlines()
    return {"refused": done.returncode == 2 and stayed, "why": lines[-1] if lines else ""}


def refused_by_fit(audits: Path, train: Train, folder: Path) -> dict[str, Any]:
    """Return whether `m3-train fit` refuses scores that are all zero, and in which words."""
    zero = _zero(audits, folder / "zero-audits")
    done = train("fit", "--oracle", zero, "--out", folder / "never")
    return {"refused": done.returncode == 2, "why": done.stderr.strip().splitlines()[-1]}


def _fitted(data: OracleData, tokens: float, out: Path) -> Path:
    """Return the folder of the router that these data make, at a price at which it reads so many
    visual tokens a question at most."""
    made = fit(data).router
    costs = row_costs(data.visual_tokens, made.scales, made.policy.costs)
    values = np.asarray(made.predict_values(data.features), float)
    for price in np.geomspace(1e-3, CHEAPEST, 60):
        if picked(data.visual_tokens, choose_many(values, costs, float(price))).mean() <= tokens:
            break
    policy = Policy(made.policy.costs, float(price))
    cheap = Router(made.predictor, made.schema, policy, space=made.space, metadata=made.metadata)
    return cheap.save_pretrained(out)


def _changed(data: OracleData, index: Any) -> OracleData:
    """Return the data with what was answered taken from elsewhere."""
    names = ("scores", "soft", "confidence")
    return replace(data, **{name: getattr(data, name)[index].copy() for name in names})


def _zero(audits: Path, out: Path) -> Path:
    """Return a copy of oracle data in which no answer counts as right."""
    if not out.is_dir():
        shutil.copytree(audits, out, ignore=shutil.ignore_patterns(".lock"))
        for path in sorted(out.glob("oracle-*.parquet")):
            table = pq.read_table(path)
            place, column = table.schema.get_field_index("scores"), table["scores"]
            nothing = [[0.0] * len(row) for row in column.to_pylist()]
            zero = pa.array(nothing, column.type)
            pq.write_table(table.set_column(place, table.schema.field(place), zero), path)
    return out
