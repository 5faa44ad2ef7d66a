"""Who stands before the gate, on which pictures, and what is found.

The incumbent is what is live: the registry's current router, else the one that the service was
given (`--router`), else the shipped one where it is made for the model, else always the finest
scale, which is what a service without a router does. What cannot be compared is refused, never let
through. Knows routers, folders and oracle data; what figures are worth is training.promotion
.weighing's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3model.engine.recipe import model_of
from router import default_router_path
from router.certificate.proof import betting_order
from router.errors import RouterFileError
from router.places import Place
from router.registry import Restriction, last_entry, router_folder
from router.router import Router
from training.errors import MixedData, TrainingError
from training.fitting.references import left_out
from training.fitting.telling import untelling_kinds, why_untelling
from training.oracle.data import OracleData, check_fits, read_oracle, scored_by
from training.promotion.replay import played
from training.promotion.seen import read_seen, unseen_by
from training.promotion.weighing import (
    Evidence,
    Floor,
    Played,
    Verdict,
    refused,
    too_few,
    weigh,
)

TARGET = 0.995  # of a router that does not tell its own
SAME = Verdict(True, ("it is the router in force already",))


@dataclass(frozen=True)
class Contender:
    """A router before the gate, or always the finest scale.

    Attributes:
        name: for messages.
        router: None takes always the finest scale.
        seen: marks of the pictures that shaped it; None leaves it to the rule of the splits.
        assumed: nobody named it: it is what a service takes by itself.
        held: what it is restricted to: it does no more than that, and its certificate is none.
    """

    name: str
    router: Router | None = None
    seen: NDArray[np.uint64] | None = None
    assumed: bool = False
    held: Restriction | None = None

    @classmethod
    def read(cls, name: str, folder: Place) -> Contender:
        """Return the router in a folder.

        Raises:
            TrainingError: it is not a router.
        """
        try:
            return cls(f"{name} {folder}", Router.from_pretrained(folder), read_seen(folder))
        except (ValueError, OSError) as error:
            raise TrainingError(f"{folder} is not a usable router: {error}") from error

    @property
    def version(self) -> str:
        """Return the router's version, "" for always the finest scale."""
        return "" if self.router is None else self.router.version

    def why_not_on(self, data: OracleData) -> str | None:
        """Return why these data cannot tell what it does, None if they can."""
        if self.router is None:
            return None
        made_for = self.router.metadata.get("model_hash")
        if made_for != data.model_hash:
            return f"{self.name} is for model {made_for}, the audits are of {data.model_hash}"
        recipe = self.router.metadata.get("label_recipe")
        if recipe and data.label_recipe and model_of(recipe) != model_of(data.label_recipe):
            return (
                f"{self.name} is for answers of recipe {recipe}, the audits are of "
                f"{data.label_recipe}: tokenizer, template, preprocessing or settings differ"
            )
        try:
            check_fits(self.router, data)
        except MixedData as error:
            return f"{self.name}: {error}"
        return None

    def unseen(self, data: OracleData) -> NDArray[np.bool_]:
        """Return (n,): whether the picture of each question is fresh to it."""
        if self.router is None:
            return np.ones(len(data), dtype=bool)
        return unseen_by(data, self.seen)


def live(registry: Place, given: Path | None, model_hash: str) -> Contender:
    """Return what is in force.

    Args:
        given: the service's `--router`, which counts where nothing was ever promoted.
        model_hash: of the model that serves.
    """
    entry = last_entry(registry)
    named = router_folder(registry, entry) or given
    if named is not None:
        found = Contender.read("the router in force", named)
    else:
        shipped = _shipped(model_hash) or Contender("always the finest scale")
        found = replace(shipped, assumed=True)
    return replace(found, held=None if entry is None else entry.restriction)


def pinned(given: Path | None, data: OracleData) -> Contender | None:
    """Return the reference that no promotion moves: the given router, else the shipped one where
    these data can tell what it does."""
    if given is not None:
        return Contender.read("the reference router", given)
    shipped = _shipped(data.model_hash)
    return None if shipped is None or shipped.why_not_on(data) else shipped


def _shipped(model_hash: str) -> Contender | None:
    folder = default_router_path()
    if not folder.is_dir():
        return None
    found = Contender.read("the shipped router", folder)
    made_for = found.router and found.router.metadata.get("model_hash")
    return found if made_for == model_hash else None


def at_the_gate(
    candidate: Place,
    registry: Place,
    oracle: Sequence[Path],
    *,
    incumbent: Path | None = None,
    reference: Path | None = None,
) -> Verdict:
    """Return the verdict on the router in a folder, by the audits in oracle folders.

    Args:
        incumbent, reference: as ``given`` of `live` and `pinned`.

    Raises:
        TrainingError: the candidate is not a router, or the folders hold no data.
    """
    ours = Contender.read("the candidate", candidate)
    audits = read_oracle(oracle) if oracle else None
    made_for = "" if ours.router is None else str(ours.router.metadata.get("model_hash"))
    try:
        current = live(registry, incumbent, made_for if audits is None else audits.model_hash)
    except (TrainingError, RouterFileError) as error:
        return refused(f"what is live cannot be read: {error}")
    if audits is None and (ours.version != current.version or current.held):
        return refused(
            f"nothing shows that it may replace {current.name}: give audits to judge it by "
            "(m3-train collect --from-log, then --oracle)"
        )
    if audits is None:
        return SAME
    audits = of_the_traffic(audits)
    return judge(ours, current, pinned(reference, audits), audits)


def of_the_traffic(data: OracleData) -> OracleData:
    """Return what comes from a log, where anything does: the rest would drown it."""
    if "log" not in data.sources or len(data.sources) == 1:
        return data
    return replace(data.take(np.char.startswith(data.groups, "log/")), sources=("log",))


def judge(
    candidate: Contender,
    incumbent: Contender,
    reference: Contender | None,
    audits: OracleData,
) -> Verdict:
    """Return whether the candidate may take the incumbent's place.

    Args:
        reference: a further router that it must not be worse than, the same at every gate.
        audits: questions drawn from the traffic; those about pictures that shaped one of the
            routers are left out, and kinds of question whose scores say nothing.
    """
    if candidate.version and candidate.version == incumbent.version and not incumbent.held:
        return SAME
    present = [candidate, incumbent, *([] if reference is None else [reference])]
    for each in present:
        why = each.why_not_on(audits)
        if why is not None:
            return refused(f"not comparable: {why}")
    stranger = _who_else_answered(audits, incumbent)
    if stranger is not None:
        return refused(stranger)
    unseen = audits.take(np.all([each.unseen(audits) for each in present], axis=0))
    fresh = _of_one_kind(unseen)
    empty = untelling_kinds(fresh)
    notes = _notes(candidate, incumbent, audits, empty)
    apart = left_out(unseen, fresh)
    notes = notes if apart is None else (*notes, apart)
    refusal = _why_unusable(fresh)
    if refusal is None and empty:
        fresh = fresh.take(~np.isin(fresh.groups, list(empty)))
        refusal = _why_unusable(fresh)
    if refusal is not None:
        return replace(refusal, notes=notes)
    if reference is not None and reference.version == incumbent.version:
        reference = None  # the same comparison
    evidence = _evidence(candidate, incumbent, reference, fresh)
    facts = _facts(candidate, incumbent, reference, evidence, fresh)
    return replace(weigh(evidence), facts=facts, notes=notes)


def _of_one_kind(fresh: OracleData) -> OracleData:
    """Return the questions with a reference where those can show something, else those without."""
    if fresh.one_kind is not None:
        return fresh
    told = fresh.take(fresh.has_reference)
    enough = too_few(told.n_pictures, len(told)) is None
    return told if enough else fresh.take(~fresh.has_reference)


def _why_unusable(fresh: OracleData) -> Verdict | None:
    """Return the verdict where these questions can tell nothing about any router."""
    pictures, questions = fresh.n_pictures, len(fresh)
    few = too_few(pictures, questions)
    if few is not None:
        return few
    why = why_untelling(fresh.scores, scored_by(fresh))
    return None if why is None else refused(why, pictures=pictures, questions=questions)


def _who_else_answered(audits: OracleData, incumbent: Contender) -> str | None:
    """Return why the incumbent cannot be what is live: the log names only other routers.

    What was promoted a moment ago has answered nothing yet, so this is asked of the others.
    """
    if not incumbent.assumed:
        return None
    answered = {facts.get("router_version", "") for facts in audits.metadata} - {""}
    if not answered or incumbent.version in answered:
        return None
    return (
        f"what is live is not known: the registry is empty and the log was answered by router "
        f"{', '.join(sorted(answered))}, not by {incumbent.name}; name the service's router"
    )


def _evidence(
    candidate: Contender, incumbent: Contender, reference: Contender | None, fresh: OracleData
) -> Evidence:
    most = float(fresh.scales[-1])
    looks = any(each.router and each.router.second_look for each in (candidate, incumbent))
    return Evidence(
        units=betting_order(fresh.units),
        candidate=_played(candidate, fresh),
        incumbent=_played(incumbent, fresh),
        reference=None if reference is None else _played(reference, fresh),
        finest=fresh.scores[:, -1],
        floor=_floor(candidate.router),
        most_tokens=2.0 * most if looks else most,
        stronger=_stronger(candidate.router, None if incumbent.held else incumbent.router),
    )


def _played(contender: Contender, fresh: OracleData) -> Played:
    router, held = contender.router, contender.held
    if router is None or (held is not None and held.price is None):
        return Played("", fresh.scores[:, -1], fresh.visual_tokens[:, -1])
    if held is not None and held.price is not None:
        router = router.with_policy(replace(router.policy, price=held.price))
    outcome = played(router, fresh, contender.name)
    return Played(contender.version, outcome.score, outcome.spent(fresh.visual_tokens))


def _floor(router: Router | None) -> Floor:
    """Return what the finest scale sets: the share of its accuracy that the price was to keep, or
    where a certificate set the price, what that lets be lost."""
    if router is None:
        return Floor(1.0)
    found = router.held.certificate
    if found is not None and "price_set_by" in router.metadata:
        return Floor(1.0, found.bound)
    return Floor(float(router.metadata.get("target", TARGET)))


def tightest_harm(router: Router | None) -> float | None:
    """Return the least harm that a router is certified for while it saves something."""
    found = None if router is None else router.held.certificate
    if found is None or found.loss != "harm":
        return None
    return min((rung.bound for rung in found.ladder if rung.price is not None), default=None)


def _stronger(candidate: Router | None, incumbent: Router | None) -> str | None:
    if incumbent is None:
        return None  # always the finest scale loses nothing
    ours, theirs = tightest_harm(candidate), tightest_harm(incumbent)
    if ours is None or (theirs is not None and ours >= theirs):
        return None
    before = "nothing" if theirs is None else f"{theirs:g}"
    return f"it is certified to harm at most {ours:g}, the router in force {before}"


def _notes(
    candidate: Contender, incumbent: Contender, audits: OracleData, empty: dict[str, float]
) -> tuple[str, ...]:
    notes = [
        f"left out: questions of kind {kind}, of which the finest scale answers {share:.1%}"
        for kind, share in empty.items()
    ]
    if set(audits.sources) != {"log"}:
        notes.append(
            f"judged on {', '.join(audits.sources)}: only a uniform sample of the traffic tells "
            "what will happen to it"
        )
    held = [None if each.router is None else each.router.held for each in (candidate, incumbent)]
    if held[0] and not held[0].certificate and held[1] and held[1].certificate:
        notes.append(
            "the router in force holds a certificate and this one none: requests with "
            f"routing.max_harm would be refused ({held[0].refused})"
        )
    return tuple(notes)


def _facts(
    candidate: Contender,
    incumbent: Contender,
    reference: Contender | None,
    evidence: Evidence,
    fresh: OracleData,
) -> dict[str, object]:
    sides = {
        "candidate": (candidate, evidence.candidate),
        "incumbent": (incumbent, evidence.incumbent),
        "reference": (reference, evidence.reference),
    }
    told: dict[str, object] = {
        side: None
        if who is None or what is None
        else {
            "name": who.name,
            "version": who.version,
            "accuracy": float(what.score.mean()),
            "visual_tokens": float(what.tokens.mean()),
            "certified_harm": tightest_harm(who.router),
        }
        for side, (who, what) in sides.items()
    }
    return told | {
        "finest_accuracy": float(fresh.scores[:, -1].mean()),
        "scored_by": scored_by(fresh),
        "sources": list(fresh.sources),
        "data_hash": fresh.data_hash,
    }
