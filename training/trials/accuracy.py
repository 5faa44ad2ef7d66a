"""Whether a router may be tried, and what the gate's verdict on a canary means for its trial.

Both arms are replayed on the same audits, whoever answered them: the arms' own traffic is not
compared. Knows verdicts; knows nothing of logs or of the registry.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from m3model.engine.recipe import model_of
from router.places import Place
from router.registry import DEFAULT_REGISTRY
from training.oracle.data import read_oracle
from training.promotion.gate import Contender, at_the_gate, live
from training.promotion.weighing import Verdict

Standing = Literal["fit", "worse", "open"]


def standing(verdict: Verdict) -> Standing:
    """Return whether it may be promoted, or can be by no number of further audits, or neither.

    Worse is what is shown to lose more accuracy than the gate allows, with the certainty of the
    gate; one that only is not shown to be good enough goes on.
    """
    if verdict.passed:
        return "fit"
    accuracies = [check for check in verdict.checks if check.name != "tokens"]
    return "worse" if any(check.gain.high < check.needs for check in accuracies) else "open"


def why_unservable(
    candidate: Place,
    registry: Place = DEFAULT_REGISTRY,
    oracle: Sequence[Path] = (),
    incumbent: Path | None = None,
) -> str | None:
    """Return why a router cannot answer beside the one in force; None if nothing speaks against it.

    Args:
        candidate: its folder.
        oracle: audits; what they show to be worse is not tried.
        incumbent: the service's `--router`, which is in force where nothing was promoted.

    Raises:
        TrainingError: the folder is no router, or the audits cannot be read.
    """
    ours = Contender.read("the candidate", candidate)
    assert ours.router is not None
    facts = ours.router.metadata
    theirs = live(registry, incumbent, str(facts.get("model_hash"))).router
    for fact in ("model_hash", "label_recipe"):
        made_for, serves = facts.get(fact), None if theirs is None else theirs.metadata.get(fact)
        if made_for and serves and _model_of(fact, made_for) != _model_of(fact, serves):
            return f"it is for {fact} {made_for}, the router in force for {serves}"
    if not oracle:
        return None
    if (why := ours.why_not_on(read_oracle(oracle))) is not None:
        return why
    verdict = at_the_gate(candidate, registry, oracle, incumbent=incumbent)
    return verdict.sentence if standing(verdict) == "worse" else None


def _model_of(fact: str, value: str) -> str:
    """Return what must be equal: of a recipe what does not depend on the limit of an answer."""
    return model_of(value) if fact == "label_recipe" else value
