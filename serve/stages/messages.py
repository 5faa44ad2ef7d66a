"""What travels between gateway, encoder and generator, and what each offers the gateway.

Knows values and two small protocols; knows neither Ray nor torch. The classes of this process and
the handles of Ray Serve both satisfy the protocols, so the gateway cannot tell them apart.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from router.actions import Reading
from router.decision import Constraints, RoutingDecision
from serve.arms.assignment import LIVE


@dataclass(frozen=True)
class EncodeRequest:
    """Pictures as they came (PNG, JPEG, ...), the question, and what binds the decision.

    ``decide_only``: the caller wants the decision, so no visual tokens are sent back.
    ``needs_second_look``: a router without one is to be refused. ``pressure``: from 0 to 1, how far
    the price should rise within what is certified. ``time_left_s``: None has no end.
    ``tenant`` and ``group_id``: what the request belongs to, besides the conversation's start.
    ``traceparent``, here and below: the span that the work is part of (`serve.telemetry.spans`).
    """

    pictures: tuple[bytes, ...]
    question: str
    constraints: Constraints
    decide_only: bool = False
    needs_second_look: bool = False
    # The conversation: pictures may read what it leaves of the context.
    prompt: tuple[dict[str, Any], ...] = ()
    tenant: str = ""
    group_id: str | None = None
    traceparent: str | None = None
    pressure: float = 0.0
    time_left_s: float | None = None


@dataclass(frozen=True)
class Encoded:
    """The decision and the tokens of each picture, as its reading says: (n, D) float16.

    ``action_space``: hash of the actions that the router chose between; None without a router.
    ``constraints``: what the decision was held to, the service's own limits included.
    ``certificate``: identity of the one in force, where a router decided. ``label_recipe``: of
    answers without a limit. ``arm``: which of two routers on trial decided. ``shadow``: what one
    that only decides would have done, as in `router.records.DecisionRecord`.
    """

    picture_ids: tuple[str, ...]
    visual_tokens: tuple[NDArray[np.float16], ...]
    decision: RoutingDecision
    encode_ms: float
    text_tokens: int = 0  # of the prompt without visual tokens, where they were counted
    action_space: str | None = None
    constraints: Constraints | None = None
    certificate: str | None = None
    label_recipe: str | None = None
    arm: str = LIVE
    shadow: str | None = None


def focus_name(readings: Sequence[Reading]) -> str | None:
    """Return what the focus is called that a picture is read by, None where none is."""
    return next((reading.action for reading in readings if reading.fine is not None), None)


@dataclass(frozen=True)
class PoolRequest:
    """A picture that was encoded before, as it came too should it be forgotten, and a reading."""

    picture_id: str
    picture: bytes
    reading: Reading
    traceparent: str | None = None


@dataclass(frozen=True)
class GenerateRequest:
    """A conversation with one ``{"type": "image"}`` per picture, and the pictures' tokens.

    ``max_tokens`` None: the service's default, as far as the context allows. ``tokens_per_part``
    None: the whole answer comes as one part. ``n`` answers are given to the one prompt;
    ``top_logprobs`` None: no log-probabilities of tokens. ``time_left_s``: for its first token to
    come.
    """

    request_id: str
    messages: tuple[dict[str, Any], ...]
    visual_tokens: tuple[NDArray[np.float16], ...]
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    tokens_per_part: int | None = None
    n: int = 1
    top_logprobs: int | None = None
    traceparent: str | None = None
    time_left_s: float | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """A token that is text of the answer, or might have been, and its log-probability.

    ``raw``: its bytes; None where it is no text. ``top``: the most probable tokens of its place.
    """

    token: str
    raw: bytes | None
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class AnswerPart:
    """Some text of the answer, the tokens it took, and the sum of their log-probabilities.

    ``finish_reason`` is set on the last part only. ``text_tokens`` counts the prompt without
    visual tokens; ``cached_tokens``, of all of the prompt, what the engine had read before. Both
    are the same in every part. ``index``: which of the answers it is part of. ``since_first_ms`` is
    the time from the answer's first token to this part: what was spent on answering, not on
    waiting.
    """

    text: str
    n_tokens: int
    logprob: float
    text_tokens: int
    finish_reason: str | None = None
    cached_tokens: int = 0
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    since_first_ms: float = 0.0


@dataclass(frozen=True)
class EncoderStatus:
    """What an encoder replica says about itself; ``certificate``: its promise in a sentence;
    ``trial``: what is tried beside the router in force, "" where nothing is; ``restricted``: what
    its router is held to and why, "" if to nothing; ``drift``: what has moved in its traffic, "" if
    nothing is known to have.
    """

    router_version: str
    router_ok: bool
    cached_pictures: int
    heartbeat_s: float
    certificate: str = ""
    trial: str = ""
    restricted: str = ""
    drift: str = ""


@dataclass(frozen=True)
class GeneratorStatus:
    """What a generator replica says about itself; ``heartbeat_s`` is the silence of its worker,
    and a replica whose engine is not ``alive`` answers nothing any more.

    Tokens are those of prompts in flight; pages those of the key-value cache, in all and in use.
    """

    running: int
    waiting: int
    visual_tokens: int
    heartbeat_s: float
    text_tokens: int = 0
    kv_pages: int = 0
    kv_pages_used: int = 0
    alive: bool = True


class EncoderStage(Protocol):
    """Pictures in, decision and visual tokens out."""

    async def encode_and_route(self, request: EncodeRequest) -> Encoded:
        """Return the decision and the tokens."""

    async def pool(self, request: PoolRequest) -> NDArray[np.float16]:
        """Return the tokens (n, D) of a picture for another reading."""

    async def status(self) -> EncoderStatus:
        """Return the state of one replica."""


class GeneratorStage(Protocol):
    """Prompt and visual tokens in, answer out."""

    def generate(self, request: GenerateRequest) -> AsyncIterator[AnswerPart]:
        """Return the parts of the answer; closing the iterator stops the work."""

    async def status(self) -> GeneratorStatus:
        """Return the state of one replica."""
