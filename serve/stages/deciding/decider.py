"""One request's decision: which of the routers on trial makes it, what it is held to, and what
callers get where no router can.

Knows routers, constraints and encoded pictures; knows nothing of how pictures are encoded or
cached, nor of what is done with the decision.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from router.decision import (
    Constraints,
    Reason,
    RoutingDecision,
    decided,
    finest_fallback,
    within_bound,
)
from router.errors import RoutingError
from router.explain import relevance_map
from router.router import Router
from serve.arms.assignment import CANARY, LIVE, session_of
from serve.arms.shadowing import differs, has_failed, would_have
from serve.drift.restriction import under_restriction
from serve.drift.watch import DriftWatch
from serve.errors import BadRequest, no_second_look, refusal
from serve.metrics import Metrics
from serve.settings import ServeSettings
from serve.stages.aside import Aside
from serve.stages.deciding.degrading import under_pressure
from serve.stages.live_router import LiveRouter
from serve.stages.messages import EncodeRequest
from serve.stages.prompts import MOST_CHARACTERS_AT_ONCE, Prompts
from serve.stages.vision import EncodedPicture, Vision, is_quick, plan_of
from serve.telemetry import logs

LOG = logging.getLogger(__name__)
Made = tuple[RoutingDecision, Constraints]  # and what it was held to


@dataclass(frozen=True)
class Decided:
    """A decision, what it was held to, the ``router`` and the ``arm`` that made it.

    ``shadow``: what one that only decides would have done, for the log.
    """

    decision: RoutingDecision
    held_to: Constraints
    router: Router | None
    arm: str
    shadow: str | None

    @property
    def action_space(self) -> str | None:
        """Hash of the actions that the router chose between; None without a router."""
        return None if self.router is None else self.router.space.hash

    @property
    def certificate(self) -> str | None:
        """Identity of the one in force, where a router decided and nothing restricts it."""
        if self.router is None or self.decision.price is None or self.held_to.restricted:
            return None
        proof = self.router.held.certificate
        return None if proof is None else proof.identity


class Decider:
    """What decides for one encoder replica.

    Args:
        vision: makes the features.
        prompts: counts what a conversation leaves of the model's context.
        live: the routers in force.
        drift: is told what the live router decides.
        settings: of the service.
        metrics: where measurements go.
        aside: where decisions are made that are not quick.
    """

    def __init__(
        self,
        vision: Vision,
        prompts: Prompts,
        live: LiveRouter,
        drift: DriftWatch,
        settings: ServeSettings,
        metrics: Metrics,
        aside: Aside,
    ) -> None:
        self._vision, self._prompts, self._live, self._drift = vision, prompts, live, drift
        self._settings, self._metrics, self._aside = settings, metrics, aside
        self._routing_failed = ""

    async def decide(self, request: EncodeRequest, pictures: Sequence[EncodedPicture]) -> Decided:
        """Return the decision: of one router for the whole request, swaps cannot split it.

        Raises:
            BadRequest: the caller's wishes cannot be met.
        """
        arm, router, (decision, held_to) = await self._by_arm(request, pictures)
        shadow = await self._shadow(request, pictures, decision)
        return Decided(decision, held_to, router, arm, shadow)

    async def _by_arm(
        self, request: EncodeRequest, pictures: Sequence[EncodedPicture]
    ) -> tuple[str, Router | None, Made]:
        """Return which of two routers decided, the router and its decision.

        A wish that a canary cannot keep is the live router's to keep or to refuse.
        """
        trial, ids = self._live.trial, [picture.picture_id for picture in pictures]
        # Before the router: what replaces a restricted one comes with its end.
        live = under_restriction(request, self._live.restriction)
        arm, router = LIVE, self._live.current
        canary = trial.canary_for(
            lambda: session_of(request.tenant, request.group_id, request.prompt, ids)
        )
        made: Made | None = None
        if canary is not None:
            with suppress(BadRequest):
                made = await self._made(request, pictures, canary)
                arm, router = CANARY, canary
        if made is None:
            made = await self._made(live, pictures, router)
        if self._asks_router(request):
            trial.saw(arm, failed=made[0].reason is Reason.fallback)
        return arm, router, made

    async def _shadow(
        self, request: EncodeRequest, pictures: Sequence[EncodedPicture], served: RoutingDecision
    ) -> str | None:
        """Return what a shadow would have done, for the log; None where none is asked."""
        router = self._live.trial.shadow() if self._asks_router(request) else None
        if router is None:
            return None
        started, plainly = time.perf_counter(), replace(request.constraints, explain=False)
        request = replace(request, constraints=plainly)
        try:
            quick = self._is_quick(request, pictures)
            decision, _ = await self._aside.done(quick, self._ask, request, pictures, router)
            told = would_have(decision, served, _ms_since(started))
        except Exception as error:  # nothing of a shadow's may reach the caller
            self._metrics.count("m3_shadow_decisions", outcome="failed")
            return has_failed(router.version, error)
        outcome = "differs" if differs(decision, served) else "same"
        self._metrics.count("m3_shadow_decisions", outcome=outcome)
        return told

    def _asks_router(self, request: EncodeRequest) -> bool:
        """Return whether the request leaves anything to decide."""
        n_pictures = len(request.pictures)
        return n_pictures > 0 and request.constraints.fixed(n_pictures) is None

    async def _made(
        self, request: EncodeRequest, pictures: Sequence[EncodedPicture], router: Router | None
    ) -> Made:
        quick = self._is_quick(request, pictures)
        made = await self._aside.done(quick, self._decide, request, pictures, router)
        return await self._within_context(request, pictures, router, made)

    async def _within_context(
        self,
        request: EncodeRequest,
        pictures: Sequence[EncodedPicture],
        router: Router | None,
        made: Made,
    ) -> Made:
        """Return the decision, or one whose tokens the conversation leaves room for.

        What the caller fixed, or promised by a bound, stays: it is refused where it does not fit,
        and so is what does not fit at the coarsest scales.
        """
        bound, (decision, _) = request.constraints, made
        if self._prompts.surely_fit(request.prompt, decision.visual_tokens):
            return made
        if bound.max_harm is not None or bound.fixed(len(pictures)) is not None:
            return made
        text_tokens = len(await self._prompts.ids(request.prompt)) - len(pictures)
        room = self._prompts.most_tokens - text_tokens
        if decision.visual_tokens <= room:
            return made
        narrower = replace(request, constraints=replace(bound, max_visual_tokens=room))
        try:
            quick = self._is_quick(narrower, pictures)
            return await self._aside.done(quick, self._decide, narrower, pictures, router)
        except BadRequest:
            return made

    def _is_quick(self, request: EncodeRequest, pictures: Sequence[EncodedPicture]) -> bool:
        little_text = len(request.question) <= MOST_CHARACTERS_AT_ONCE
        told_why = request.constraints.explain
        return little_text and not told_why and self._vision.reads_quickly and is_quick(pictures)

    def _decide(
        self, request: EncodeRequest, pictures: Sequence[EncodedPicture], router: Router | None
    ) -> Made:
        try:
            decision, held_to = self._decide_freely(request, pictures, router)
            return within_bound(decision, held_to, self._vision.scales), held_to
        except RoutingError as error:  # the caller's wish cannot be met: no failure of the router
            raise refusal(error) from error

    def _decide_freely(
        self, request: EncodeRequest, pictures: Sequence[EncodedPicture], router: Router | None
    ) -> Made:
        version, scales = "" if router is None else router.version, self._vision.scales
        constraints, n_pictures = request.constraints, len(pictures)
        if request.needs_second_look and (router is None or router.second_look is None):
            raise no_second_look("the router in force has none")
        if request.needs_second_look and constraints.restricted:
            raise no_second_look("the router in force is restricted until it is certified anew")
        if not pictures:
            return decided((), Reason.no_image, router_version=version), constraints
        fixed = constraints.fixed(n_pictures)
        if fixed is not None and (router is None or not constraints.explain):
            return decided(fixed, constraints.reason, router_version=version), constraints
        started = time.perf_counter()
        if router is None:  # said at the start; nothing failed
            return finest_fallback(scales, constraints, n_pictures=n_pictures), constraints
        try:
            decision, constraints = self._ask(request, pictures, router)
        except RoutingError:
            raise
        except Exception as error:  # a dead router costs tokens, never answers
            self._note_failure(error)
            decision = finest_fallback(
                scales, constraints,
                n_pictures=n_pictures, router_version=version, latency_ms=_ms_since(started),
            )  # fmt: skip
        self._metrics.observe("m3_route_latency_ms", decision.latency_ms)
        return decision, constraints

    def _ask(
        self, request: EncodeRequest, pictures: Sequence[EncodedPicture], router: Router
    ) -> Made:
        """Return what a router decides; whatever goes wrong is raised."""
        started, constraints = time.perf_counter(), request.constraints
        features, maps = self._vision.features(pictures, request.question, router.schema.relevance)
        if len(pictures) == 1 and not request.needs_second_look:  # as certificates are
            constraints = under_pressure(
                constraints, router, request.pressure, self._settings.overload.max_harm
            )
        plan = plan_of(router, maps) if constraints.focus else None
        known = router.knows(request.question) and self._vision.reads(request.question)
        decision = router.route(features, constraints, plan=plan, unfamiliar=not known)
        if router is self._live.current:
            ids = [picture.picture_id for picture in pictures]
            self._drift.note(router, features, ids, decision)
        if (why := decision.explanation) is not None:
            why = replace(why, relevance=tuple(map(relevance_map, maps)))
        # Callers pay for the features too.
        return replace(decision, latency_ms=_ms_since(started), explanation=why), constraints

    def _note_failure(self, error: Exception) -> None:
        self._metrics.count("m3_routing_failures")
        kind = f"{type(error).__name__}: {error}"
        if kind != self._routing_failed:  # once with its traceback, then only counted
            self._routing_failed = kind
            told = logs.failure(error, words=self._settings.log_prompts)
            LOG.error("routing failed, the finest scale is used\n%s", told)


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000.0
