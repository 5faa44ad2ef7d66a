"""How many replicas there should be, by the tokens that wait and run instead of by requests.

Ray counts requests, and one with 576 visual tokens is there like one with a single token. Knows
Ray's autoscaling; `serve.on_ray.outstanding` counts in the replicas.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from serve.on_ray.outstanding import OUTSTANDING, USUAL
from serve.settings import AutoscalingSettings

# Ray averages load over at least this; below, it warns that reports may be missing.
SHORTEST_LOOK_BACK_S = 11.0


def wanted_replicas(
    outstanding: Collection[float],
    usual: Collection[float],
    queued_requests: float,
    tokens_per_request: float,
    target_tokens: float,
) -> int:
    """Return how many replicas would each have ``target_tokens`` to do; one at least.

    Args:
        outstanding: tokens at each replica that reports.
        usual: tokens of a usual request at each replica that reports; 0: it had none yet.
        queued_requests: those that have not reached a replica, whose tokens nobody counts.
        tokens_per_request: what such a request is taken for before there was any.
        target_tokens: for each replica.
    """
    told = [tokens for tokens in usual if tokens > 0]
    per_request = sum(told) / len(told) if told else tokens_per_request
    tokens = sum(outstanding) + max(0.0, queued_requests) * per_request
    # Rounded first: sums of averages are off in the last digits, and a whole replica costs much.
    return max(1, math.ceil(round(tokens / target_tokens, 6)))


class TokenPolicy:
    """`wanted_replicas` as Ray asks for it; Ray adds bounds and delays.

    Args:
        target_tokens, tokens_per_request: see there.
    """

    def __init__(self, target_tokens: float, tokens_per_request: float) -> None:
        self._target, self._per_request = target_tokens, tokens_per_request

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas, and no state."""
        told = context.aggregated_metrics or {}
        number = wanted_replicas(
            told.get(OUTSTANDING, {}).values(), told.get(USUAL, {}).values(),
            context.total_queued_requests or 0.0, self._per_request, self._target,
        )  # fmt: skip
        return number, {}


def autoscaling_config(wanted: AutoscalingSettings, tokens_per_request: int) -> AutoscalingConfig:
    """Return the settings as Ray takes them."""
    return AutoscalingConfig(
        min_replicas=wanted.min_replicas,
        max_replicas=wanted.max_replicas,
        upscale_delay_s=wanted.upscale_delay_s,
        downscale_delay_s=wanted.downscale_delay_s,
        look_back_period_s=max(SHORTEST_LOOK_BACK_S, wanted.upscale_delay_s),
        policy=AutoscalingPolicy(
            policy_function=f"{TokenPolicy.__module__}:{TokenPolicy.__name__}",
            policy_kwargs={
                "target_tokens": wanted.target_tokens,
                "tokens_per_request": tokens_per_request,
            },
        ),
    )
