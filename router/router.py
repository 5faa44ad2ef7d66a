"""`Router`: features in, a scale out. Predictor, policy and schema, saved as one folder.

Knows features, costs and constraints; knows nothing of pictures, prompts or HTTP.
Notation: F features, K scales ascending.
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

from router.actions import ActionSpace, Plan, Reading, uniform_space
from router.certificate.held import HeldCertificate
from router.certificate.promise import CERTIFICATE_FILE, Certificate
from router.decision import (
    Constraints,
    Reason,
    RoutingDecision,
    affordable,
    decided,
    keeps_cap,
    within_bound,
)
from router.errors import FeatureMismatch, RouterFileError, UnknownScale
from router.explain import explain, explain_together
from router.explanation import Explanation
from router.features.schema import FeatureSchema
from router.features.vector import checked_rows
from router.folder import (
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
from router.policy import Policy, best_shares
from router.predictor.chain import ComplexityPredictor
from router.second_look import SecondLook


class Router:
    """Decides how many visual tokens a question about a picture gets. Immutable, thread-safe.

    Args:
        predictor: fitted on features of ``schema``, one column per scale.
        schema: what the features mean.
        policy: costs and price.
        metadata: JSON facts to keep with the router: data hash, model hash, metrics, date.
        card_text: text of README.md; None writes one from what is known.
        second_look: when to look finer after an answer; None never.

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
        if len(schema.names) != predictor.n_features_in_:
            raise FeatureMismatch(
                f"the schema has {len(schema.names)} features, "
                f"the predictor {predictor.n_features_in_}"
            )
        if not len(schema.scales) == predictor.n_scales_ == len(policy.costs):
            raise ValueError(
                f"{len(schema.scales)} scales, {predictor.n_scales_} predicted, "
                f"{len(policy.costs)} costs: these must be equal"
            )
        self.predictor = predictor
        self.schema = schema
        self.policy = policy
        self.metadata = dict(metadata or {})
        self.second_look = second_look
        self.space = uniform_space(schema.scales) if space is None else space
        self._files = render(self._parts)
        self.version = version_of(self._files)
        if card_text is not None:
            self.card_text = card_text
        self.held = HeldCertificate()

    @property
    def _parts(self) -> RouterParts:
        return RouterParts(
            self.predictor, self.schema, self.policy, self.metadata, self.second_look
        )

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
    ) -> RoutingDecision:
        """Return the decision for one request: a scale for its picture, or for each of several.

        Several pictures share the cap: each scale is judged by the predictions for its own
        picture, and the sum of value - price * cost over all pictures is the greatest that the
        cap allows. ``decision.scales`` has them in order, ``decision.scale`` the finest, and
        ``decision.p_suffices`` the mean over pictures.

        Args:
            features: (F,) of one picture or (n_pictures, F); None is enough where the constraints
                pin every scale or there is no picture, and then nothing is predicted.
            constraints: from `resolve_constraints`; None leaves the policy free.
            n_pictures: pictures in the request, where no features tell.
            plan: what the actions of ``space`` would read of the one picture (`ActionSpace.plan`);
                None leaves the uniform scales to choose from.

        Raises:
            BudgetTooSmall: the cap cannot be kept.
            NotCertified: ``constraints.max_harm`` cannot be kept.
            UnknownScale: a pinned scale is not one of the router's.
            FeatureMismatch: features of another width.
            ValueError: a feature is not finite, there is nothing to decide from, or numbers of
                pictures differ.
        """
        started = time.perf_counter()
        limits = constraints or Constraints()
        if limits.reason is Reason.no_image or n_pictures == 0:
            return decided((), Reason.no_image, router_version=self.version)
        rows = None if features is None else checked_rows(self.schema, features)
        pictures = n_pictures or (1 if rows is None else len(rows))
        if rows is not None and len(rows) != pictures:
            raise ValueError(f"features of {len(rows)} pictures for a request with {pictures}")
        pins = self._pins(limits, pictures)
        values = None if rows is None else self._values(rows)
        reason: Reason = limits.reason
        policy, bound, look = self.policy, None, None
        scales = limits.fixed(pictures)
        if scales is None:
            if values is None:
                raise ValueError("features are needed to decide; only pinned scales go without")
            if limits.max_harm is not None:
                policy, bound = self.held.policy(policy, limits.max_harm, pictures)
            elif limits.second_look and pictures == 1 and self.second_look is not None:
                look = self.second_look
                policy = replace(policy, price=look.start_price, finest_only=False)
            scales, reason = self._choose(policy, values, pins, limits.max_visual_tokens)
            if reason is Reason.budget_cap:
                bound = None  # the cap has overruled the choice that was certified
            if limits.price_floor > 0.0 and limits.max_harm is None:
                policy = replace(self.policy, price=max(self.policy.price, limits.price_floor))
                coarser, _ = self._choose(policy, values, pins, limits.max_visual_tokens)
                if look is not None or coarser != scales:
                    scales, reason, look = coarser, Reason.degraded, None
        explanation = None
        if limits.explain and rows is not None and values is not None:
            explanation = self._explain(policy, rows, values, limits, pins, scales)
        mean = None if values is None else _mean(values)
        by_scale: dict[int | str, float] | None = None
        if mean is not None:
            by_scale = dict(zip(self.scales, mean, strict=True))
        decision = RoutingDecision(
            scale=max(scales),
            visual_tokens=sum(scales),
            reason=reason,
            p_suffices=by_scale,
            values=by_scale,
            price=policy.price,
            router_version=self.version,
            latency_ms=(time.perf_counter() - started) * 1e3,
            certified=bound,
            explanation=explanation,
            readings=tuple(map(Reading.uniform, scales)),
        )
        if look is not None and mean is not None and reason is Reason.predicted:
            opened = look.opened(mean, scales[0], policy.costs, limits.max_visual_tokens)
            decision = replace(decision, open_look=opened)
        return within_bound(decision, limits, self.scales)

    def predict_values(self, X: np.ndarray) -> np.ndarray:
        """Return (n, K) what the policy weighs against cost: today P(scale suffices).

        A predictor of something better to weigh would change this and `_values`, nothing else.
        """
        return self.predictor.predict_proba(X)

    def with_policy(self, policy: Policy, metadata: Mapping[str, Any] | None = None) -> "Router":
        """Return the same predictor at another price or with other costs; facts are added.

        A second look goes: its prices were chosen for the target that the old price kept.
        """
        facts = {**self.metadata, **(metadata or {})}
        made = Router(self.predictor, self.schema, policy, metadata=facts)
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
        for stale in (*target.glob("scale_*.txt"), target / SECOND_LOOK_FILE):
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
    def from_pretrained(cls, name_or_path: str | Path, *, revision: str | None = None) -> "Router":
        """Return the router of a folder, or of a Hub repository "owner/name", checked throughout.

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
        except (RouterFileError, OSError, UnicodeDecodeError) as error:
            raise RouterFileError(f"router {folder}: {error}") from error
        router = cls(
            parts.predictor, parts.schema, parts.policy,
            metadata=parts.metadata, card_text=card_text, second_look=parts.second_look,
        )  # fmt: skip
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

    def _choose(
        self,
        policy: Policy,
        values: Sequence[Sequence[float]],
        pins: Sequence[int | None],
        cap: int | None,
    ) -> tuple[tuple[int, ...], Reason]:
        if len(values) == 1:
            (of_one,) = values
            index = free = policy.choose(of_one)
            if cap is not None:
                index = policy.choose(of_one, affordable(self.scales, cap))
            return (self.scales[index],), Reason.predicted if index == free else Reason.budget_cap
        wanted = best_shares(policy, values, self.scales, pins)
        if cap is None or sum(wanted) <= cap:
            return wanted, Reason.predicted
        return best_shares(policy, values, self.scales, pins, cap), Reason.budget_cap

    def _explain(
        self,
        policy: Policy,
        rows: np.ndarray,
        values: Sequence[Sequence[float]],
        limits: Constraints,
        pins: Sequence[int | None],
        scales: Sequence[int],
    ) -> Explanation:
        cap = limits.max_visual_tokens
        told = []
        for number, contributions in enumerate(self.predictor.contributions(rows)):
            # What one picture may read, the others as they are.
            left = None if cap is None else cap - sum(scales) + scales[number]
            chosen = self.scales.index(scales[number]) if pins[number] is None else None
            told.append(
                explain(
                    self.schema, values[number], policy, affordable(self.scales, left),
                    contributions, pins[number], chosen,
                )
            )  # fmt: skip
        return explain_together(told, scales)

    def _values(self, rows: np.ndarray) -> list[list[float]]:
        """Return (n_pictures, K) predicted values."""
        to_p = [calibration.one for calibration in self.predictor.calibrations_]
        raw = self.predictor.unchecked_scores(rows).tolist()
        return [[one(z) for one, z in zip(to_p, scores, strict=True)] for scores in raw]


def _mean(values: Sequence[Sequence[float]]) -> Sequence[float]:
    """Return (K,), the mean over pictures."""
    if len(values) == 1:
        return values[0]
    return [sum(column) / len(values) for column in zip(*values, strict=True)]
