"""The second look of one request: hold the first answer back, ask with more where that pays.

Knows traces, parts of answers and what decides; knows nothing of retries, queues or HTTP.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from router.actions import Reading
from router.second_look import OpenLook
from serve.errors import ServiceError
from serve.gateway.request_trace import Trace
from serve.metrics import Metrics
from serve.stages.messages import AnswerPart, GenerateRequest, focus_name
from serve.telemetry import spans

LOG = logging.getLogger(__name__)
Ask = Callable[[GenerateRequest], AsyncGenerator[AnswerPart]]
Pool = Callable[[Reading, str | None], Awaitable[NDArray[np.float16]]]


async def looked_again(
    request: GenerateRequest,
    look: OpenLook,
    trace: Trace,
    ask: Ask,
    pool: Pool,
    metrics: Metrics,
) -> AsyncGenerator[AnswerPart]:
    """Yield the parts of the answer that counts, the first of them once it is known which.

    A second look that fails before it says anything costs nothing but time: the first answer is
    here and is given.

    Args:
        request: with the tokens of the first reading.
        look: decides.
        trace: of the request; told when the second answer begins.
        ask: gives an answer's parts.
        pool: gives the picture's tokens of another reading, as part of a span.
        metrics: counts what came of it.

    Raises:
        ServiceError: the first answer failed, or the second one after it had begun.
    """
    first: list[AnswerPart] = []
    async with aclosing(ask(replace(request, tokens_per_part=None))) as parts:
        async for part in parts:
            first.append(part)
    confidence = math.exp(sum(part.logprob for part in first))
    finer = look.escalate(confidence)
    if finer is not None:
        begun = False
        try:
            focus = focus_name((finer,))
            with spans.span(
                "m3.second_look", trace.span.traceparent, scale=finer.scale, focus=focus
            ) as work:
                tokens = await pool(finer, work.traceparent)
                again = replace(request, visual_tokens=(tokens,), traceparent=work.traceparent)
                async with aclosing(ask(again)) as parts:
                    async for part in parts:
                        if not begun:
                            begun = True
                            trace.look_again(first, confidence, finer)
                            metrics.count("m3_second_looks", outcome="escalated")
                            metrics.count("m3_visual_tokens", finer.visual_tokens)
                            trace.charge(finer.visual_tokens)
                        yield part
            return
        except ServiceError as error:
            if begun:
                raise
            LOG.warning("request %s: no second look, %s", trace.call.request_id, error)
    metrics.count("m3_second_looks", outcome="kept" if finer is None else "failed")
    for part in first:
        yield part
