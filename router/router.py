"""`Router`: features in, a reading out. Predictor, policy and schema, saved as one folder.

Knows features, costs and constraints; knows nothing of pictures, prompts or HTTP.
Notation: F features, K scales ascending, A actions of the space.
"""

import copy
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from router.actions import ActionSpace, Plan, uniform_space
from router.certificate.held import HeldCertificate, keeps_promise
from router.certificate.promise import CERTIFICATE_FILE, Certificate
from router.decision import (
    NOTHING_LOST,
    Constraints,
    Reason,
    RoutingDecision,
    decided,
    keeps_cap,
    within_bound,
)
from router.errors import RouterFileError, UnknownScale
from router.explain import explain_request
from router.features.schema import FeatureSchema
from router.features.scripts import LATIN, unlike
from router.features.vector import checked_rows
from router.folder import (
    ACTIONS_FILE,
    BOOSTER_FILES,
    CARD_FILE,
    SECOND_LOOK_FILE,
    RouterParts,
    parse,
    plain_card,
    predictor_hash,
    read_files,
    render,
    version_of,
)
from router.hub import local_folder, upload
from router.places import Place
from router.policy import Policy, best_shares
from router.policy.offer import Offer, planned, scales_alone
from router.predictor.chain import ComplexityPredictor
from router.predictor.matrix import Matrix
from router.second_look import SecondLook

_FREE = Constraints()


class Router:
    """Decides what is read of a picture for a question about it. Immutable, thread-safe.

    Args:
        predictor: fitted on features of ``schema``, one column per action.
        schema: what the features mean.
        policy: costs of the scales, and price.
        metadata: JSON facts to keep with the router: data hash, model hash, metrics, date.
        card_text: text of README.md; None writes one from what is known.
        second_look: when to look finer after an answer; None never.
        space: the actions to choose from; None takes the scales of the schema alone.

    Attributes:
        version: 12 hex digits over config, schema, boosters and calibration; card, certificate
            and any report that lies in the folder do not count.
        held: the certificate it keeps bounds by, or why it has none.
    """

    def __init__(
        self,
        predictor: ComplexityPredictor,
        schema: FeatureSchema,
        policy: Policy,
        *,
        metadata: Mapping[str, Any] | None = None,
        card_text: str | None = None,
        second_look: SecondLook | None = None,
        space: ActionSpace | None = None,
    ) -> None:
        space = uniform_space(schema.scales) if space is None else space
        facts = dict(metadata or {})
        self._parts = RouterParts(predictor, schema, policy, facts, second_look, space)
        self.predictor = predictor
        self.schema = schema
        self.policy = policy
        self.metadata = facts
        self.second_look = second_look
        self.space = space
        self._files = render(self._parts)
        self.version = version_of(self._files)
        if card_text is not None:
            self.card_text = card_text
        self.held = HeldCertificate()

    @cached_property
    def card_text(self) -> str:
        """The text of README.md: as given, else written from what is known when it is asked for."""
        return plain_card(self._parts, self.version)

    @property
    def scales(self) -> tuple[int, ...]:
        """The scales decided between, ascending."""
        return self.schema.scales

    @property
    def price(self) -> float:
        """Quality that one unit of cost must buy."""
        return self.policy.price

    @property
    def predictor_hash(self) -> str:
        """What a certificate is bound to: all that decides except the price."""
        return predictor_hash(self._files)

    def route(
        self,
        features: np.ndarray | None,
        constraints: Constraints | None = None,
        *,
        n_pictures: int | None = None,
        plan: Plan | None = None,
        unfamiliar: bool = False,
    ) -> RoutingDecision:
        """Return the decision for one request: what is read of its picture, or of each of several.

        Several pictures are read at one scale each and share the cap: each scale is judged by the
        predictions for its own picture, and the sum of value - price * cost over all pictures is
        the greatest that the cap allows. ``decision.readings`` has them in order,
        ``decision.scale`` the finest, and ``decision.p_suffices`` the mean over pictures.

        Args:
            features: (F,) of one picture or (n_pictures, F); None is enough where the constraints
                pin every scale or there is no picture, and then nothing is predicted.
            constraints: from `resolve_constraints`; None leaves the policy free.
            n_pictures: pictures in the request, where no features tell.
            plan: what the actions of ``space`` would read of the one picture (`ActionSpace.plan`);
                None leaves the uniform scales to choose from.
            unfamiliar: whether the question is unlike all that the router was fitted on (see
                `knows`): then the finest scale allowed is taken, whatever is predicted.

        Raises:
            BudgetTooSmall: the cap cannot be kept.
            NotCertified: ``constraints.max_harm`` cannot be kept.
            UnknownScale: a pinned scale is not one of the router's.
            FeatureMismatch: features of another width.
            ValueError: a feature is not finite, there is nothing to decide from, numbers of
                pictures differ, or a plan beside several pictures or of another space.
        """
        started = time.perf_counter()
        limits = constraints or _FREE
        if limits.reason is Reason.no_image or n_pictures == 0:
            return decided((), Reason.no_image, router_version=self.version)
        rows = None if features is None else checked_rows(self.schema, features)
        pictures = n_pictures or (1 if rows is None else len(rows))
        if rows is not None and len(rows) != pictures:
            raise ValueError(f"features of {len(rows)} pictures for a request with {pictures}")
        pins = self._pins(limits, pictures)
        offer = self._offer(plan, limits, pictures)
        values = None if rows is None else self._values(rows)
        reason: Reason = limits.reason
        policy, bound, look = self.policy, None, None
        cap = limits.max_visual_tokens
        fixed = limits.fixed(pictures)
        if fixed is not None:
            picks = self._places(fixed)
        else:
            if values is None:
                raise ValueError("features are needed to decide; only pinned scales go without")
            if limits.max_harm is not None:
                if not limits.restricted:
                    policy, bound = self.held.policy(policy, limits.max_harm, pictures)
                if unfamiliar or limits.restricted:
                    policy, bound = replace(policy, finest_only=True), NOTHING_LOST
                keeps_promise(policy, offer, limits.max_harm)
            elif unfamiliar:
                policy = replace(policy, finest_only=True)
            elif limits.restricted:
                policy = self._restricted_policy(limits.restricted_price)
            elif limits.second_look and pictures == 1 and self.second_look is not None:
                look, policy = self.second_look, self._first_policy
            picks, reason = self._choose(policy, values, pins, cap, offer)
            if reason is Reason.predicted and (unfamiliar or limits.restricted):
                reason = Reason.unfamiliar if unfamiliar else Reason.restricted
            if reason is Reason.budget_cap:
                bound = None  # the cap has overruled the choice that was certified
            if limits.price_floor > 0.0 and limits.max_harm is None and not limits.restricted:
                policy = replace(self.policy, price=max(self.policy.price, limits.price_floor))
                cheaper, _ = self._choose(policy, values, pins, cap, offer)
                if look is not None or cheaper != picks:
                    picks, reason, look = cheaper, Reason.degraded, None
        explanation = None
        if limits.explain and rows is not None and values is not None:
            distrusted = unfamiliar and reason is not Reason.degraded
            weighed = replace(policy, finest_only=True) if distrusted else policy
            explanation = explain_request(
                self.schema, self.space, weighed, self._left_open(weighed, offer), values,
                self.predictor.contributions(rows), pins, picks, cap,
                unfamiliar=distrusted and not self.policy.finest_only,
            )  # fmt: skip
        mean = None if values is None else _mean(values)
        opened = None
        if look is not None and mean is not None and reason is Reason.predicted:
            opened = look.opened(
                mean, picks[0], offer.tokens, offer.costs, self.space, offer.plan, cap
            )
        readings = tuple([self.space.reading(pick, offer.plan) for pick in picks])
        by_action = None if mean is None else dict(zip(self._keys, mean, strict=True))
        decision = RoutingDecision(
            scale=max([reading.scale for reading in readings]),
            visual_tokens=sum([reading.visual_tokens for reading in readings]),
            reason=reason,
            p_suffices=by_action,
            values=by_action,
            price=policy.price,
            router_version=self.version,
            latency_ms=(time.perf_counter() - started) * 1e3,
            certified=bound,
            explanation=explanation,
            open_look=opened,
            readings=readings,
        )
        return within_bound(decision, limits, self.scales)

    def knows(self, question: str) -> bool:
        """Return whether the question is in a script that the router was fitted on."""
        return not unlike(question, self.metadata.get("scripts") or LATIN)

    def predict_values(self, X: Matrix) -> np.ndarray:
        """Return (n, A) what the policy weighs against cost: today P(action suffices).

        A predictor of something better to weigh would change this and `_values`, nothing else.
        """
        return self.predictor.predict_proba(X)

    def with_policy(self, policy: Policy, metadata: Mapping[str, Any] | None = None) -> "Router":
        """Return the same predictor at another price or with other costs; facts are added.

        A second look goes: its prices were chosen for the target that the old price kept.
        """
        facts = {**self.metadata, **(metadata or {})}
        made = Router(self.predictor, self.schema, policy, metadata=facts, space=self.space)
        made.held = self.held.checked(predictor_hash=made.predictor_hash)
        return made

    def for_model(self, model_hash: str) -> "Router":
        """Return this router for a model: a certificate made for another one is put aside."""
        made = copy.copy(self)
        made.held = self.held.checked(model_hash=model_hash)
        return made

    def with_certificate(self, certificate: Certificate) -> "Router":
        """Return this router holding a certificate, if it was made for it."""
        made = copy.copy(self)
        made.held = HeldCertificate(certificate, "").checked(predictor_hash=self.predictor_hash)
        return made

    def save_pretrained(self, folder: str | Path) -> Path:
        """Return the folder, written. A router already in it is replaced, other files stay."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        boosters = [path for pattern in BOOSTER_FILES for path in target.glob(pattern)]
        for stale in (*boosters, target / ACTIONS_FILE, target / SECOND_LOOK_FILE):
            if stale.name not in self._files:
                stale.unlink(missing_ok=True)
        for name, content in self._files.items():
            (target / name).write_bytes(content)
        (target / CARD_FILE).write_text(self.card_text, encoding="utf-8")
        (target / CERTIFICATE_FILE).unlink(missing_ok=True)
        if self.held.certificate is not None:
            (target / CERTIFICATE_FILE).write_bytes(self.held.certificate.to_bytes())
        return target

    @classmethod
    def from_pretrained(cls, name_or_path: str | Place, *, revision: str | None = None) -> "Router":
        """Return the router of a folder, here or in an object store, or of a Hub repository
        "owner/name", checked throughout.

        Raises:
            RouterFileError: the folder is missing, incomplete or damaged, was made for other
                features than this program computes, or predicts other numbers than when saved.
        """
        folder = local_folder(name_or_path, revision)
        text, proof = folder / CARD_FILE, folder / CERTIFICATE_FILE
        try:
            files = read_files(folder)
            parts = parse(files)
            card_text = text.read_text(encoding="utf-8") if text.is_file() else None
            promised = proof.read_bytes() if proof.is_file() else None
            router = cls(
                parts.predictor, parts.schema, parts.policy,
                metadata=parts.metadata, card_text=card_text, second_look=parts.second_look,
                space=parts.space,
            )  # fmt: skip
        except (ValueError, OSError) as error:
            raise RouterFileError(f"router {folder}: {error}") from error
        # The version is that of the bytes on disk, also where someone edited config.json by hand.
        router._files, router.version = files, version_of(files)
        router.held = HeldCertificate.read(promised, predictor_hash=router.predictor_hash)
        return router

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str | None = None,
        api: Any = None,
    ) -> str:
        """Return the address of the commit that uploaded this router to the Hugging Face Hub.

        Args:
            repo_id: "owner/name"; created where it does not exist.
            private: whether a new repository is private.
            token: of the Hub; None takes the one of the machine's login.
            commit_message: None names the router version.
            api: a ``huggingface_hub.HfApi`` to use instead of a new one.
        """
        message = commit_message or f"router {self.version}"
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(folder, repo_id, message, private, token, api)

    def _pins(self, limits: Constraints, pictures: int) -> tuple[int | None, ...]:
        """Return the pins of each picture, which are scales of this router's and keep the cap."""
        pins = limits.pins_of(pictures)
        for pin in pins:
            if pin is not None and pin not in self.scales:
                raise UnknownScale(pin, self.scales)
        if limits.max_visual_tokens is not None:
            keeps_cap(pins, self.scales, limits.max_visual_tokens)
        return pins

    @cached_property
    def _keys(self) -> tuple[int | str, ...]:
        return tuple(action.key for action in self.space.actions)

    @cached_property
    def _first_policy(self) -> Policy:
        """The policy of a first choice that a second look may follow."""
        look = self.second_look
        price = self.policy.price if look is None else look.start_price
        return replace(self.policy, price=price, finest_only=False)

    @cached_property
    def _uniform_offer(self) -> Offer:
        """Without a plan, and wherever a focus may not be read."""
        return scales_alone(self.space, self.policy.costs)

    def _restricted_policy(self, price: float | None) -> Policy:
        """Return the policy at a price; without one, and where it was so before, the finest."""
        finest = price is None or self.policy.finest_only
        return replace(self.policy, price=price or 0.0, finest_only=finest)

    def _offer(self, plan: Plan | None, limits: Constraints, pictures: int) -> Offer:
        if plan is None:
            return self._uniform_offer
        if pictures != 1:
            raise ValueError(f"a plan is of one picture, this request has {pictures}")
        offer = planned(self.space, self.policy.costs, plan)
        return offer if limits.focus else self._uniform_offer

    def _left_open(self, policy: Policy, offer: Offer) -> Offer:
        """Return what a policy chooses from: one that takes the finest scale, from scales alone."""
        return self._uniform_offer if policy.finest_only else offer

    def _places(self, scales: Sequence[int]) -> tuple[int, ...]:
        """Return the indices of the actions that read whole pictures at these scales."""
        return tuple([self.space.uniform[self.scales.index(scale)] for scale in scales])

    def _choose(
        self,
        policy: Policy,
        values: Sequence[Sequence[float]],
        pins: Sequence[int | None],
        cap: int | None,
        offer: Offer,
    ) -> tuple[tuple[int, ...], Reason]:
        """Return the index of each picture's action, and whether the cap had a say."""
        if len(values) == 1:
            (of_one,) = values
            pick, capped = self._left_open(policy, offer).choose(policy, of_one, cap)
            return (pick,), Reason.budget_cap if capped else Reason.predicted
        if not self.space.is_uniform:
            values = [[row[place] for place in self.space.uniform] for row in values]
        wanted = best_shares(policy, values, self.scales, pins)
        if cap is None or sum(wanted) <= cap:
            return self._places(wanted), Reason.predicted
        return self._places(best_shares(policy, values, self.scales, pins, cap)), Reason.budget_cap

    def _values(self, rows: np.ndarray) -> list[list[float]]:
        """Return (n_pictures, A) predicted values."""
        to_p = [calibration.one for calibration in self.predictor.calibrations_]
        raw = self.predictor.unchecked_scores(rows).tolist()
        return [[one(z) for one, z in zip(to_p, scores, strict=True)] for scores in raw]


def _mean(values: Sequence[Sequence[float]]) -> Sequence[float]:
    """Return (A,), the mean over pictures."""
    if len(values) == 1:
        return values[0]
    return [sum(column) / len(values) for column in zip(*values, strict=True)]
