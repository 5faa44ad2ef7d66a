"""What a router or a table does to questions at every setting of its prices, and one chosen point.

Settings are found on calibration pictures and walked on test pictures (`_operating_paths`), for the
router and its rivals alike. Knows predicted values, outcomes and tokens by question; knows nothing
of models, files or targets.
Notation: n questions, A actions, C settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from _operating_paths import Runs
from numpy.typing import NDArray

from m3model.config import llava_shape
from m3model.cost import request_cost
from router.actions import ActionSpace
from router.policy import candidate_prices, choose_many, row_costs
from router.router import Router
from router.second_look import SecondLook
from training.figures.metrics import Array, hull, picked
from training.fitting.second_look import MARGIN, PRICES, STARTS, after_first, ends_of
from training.oracle.data import OracleData

Setting = tuple[float, float | None]  # price of the first look, and of escalating; None: one look
ALWAYS_ANCHOR: Setting = (-1e9, None)  # no value outweighs what a dearer action earns


@dataclass(frozen=True)
class Table:
    """Some actions of n questions: values, outcomes, visual tokens and their costs, (n, A) each."""

    values: Array
    scores: Array
    confidence: Array
    tokens: Array
    costs: Array
    pictures: NDArray[np.int64]  # (n,)

    @classmethod
    def of(cls, data: OracleData, values: Array, costs: Sequence[float]) -> Table:
        """Return the table of oracle data with somebody's values, at these costs of the scales."""
        tokens = data.visual_tokens
        of_actions = row_costs(tokens, data.scales, costs)
        return cls(values, data.scores, data.confidence, tokens, of_actions, data.pictures)

    def only(self, columns: Sequence[int]) -> Table:
        """Return some of the actions, the anchor among them as their last."""
        index = list(columns)
        parts = ("values", "scores", "confidence", "tokens", "costs")
        return replace(self, **{name: getattr(self, name)[:, index] for name in parts})


@dataclass(frozen=True)
class Resource:
    """What a request takes: once for the encode, and for each look by its visual tokens."""

    encode: float
    look: Callable[[Array], Array]

    def spent(self, table: Table, first: NDArray[np.intp], last: NDArray[np.intp]) -> Array:
        """Return (n,) what the questions take: both looks where the last is not the first."""
        once = picked(self.look(table.tokens), last)
        both = once + picked(self.look(table.tokens), first)
        spent: Array = self.encode + np.where(first == last, once, both)
        return spent


TOKENS = Resource(0.0, lambda tokens: tokens)


def operations(size: str) -> Resource:
    """Return the operations of LLaVA-1.5 of a size, 40 tokens of text and 8 of answer a look."""
    shape = llava_shape(size)

    def look(tokens: Array) -> Array:
        counts, place = np.unique(tokens, return_inverse=True)
        asked = [request_cost(shape, int(count)) for count in counts]
        each = np.array([one.prefill_flops + one.decode_flops for one in asked])
        found: Array = each[place].reshape(tokens.shape)
        return found

    return Resource(request_cost(shape, 1).encode_flops, look)


@dataclass(frozen=True)
class Chooser:
    """Who chooses: predicted values, and a second look or none."""

    look: SecondLook | None = None

    def settings(self, calibration: Table) -> list[Setting]:
        """Return the settings worth trying: of one look all prices, of two the prices of its hull
        with every price of escalating."""
        prices = candidate_prices(calibration.values, calibration.costs)
        if self.look is None:
            return [(price, None) for price in prices.tolist()]
        picks = [choose_many(calibration.values, calibration.costs, p) for p in prices.tolist()]
        accuracy = np.array([picked(calibration.scores, p).mean() for p in picks])
        cost = np.array([picked(calibration.costs, p).mean() for p in picks])
        corners = zip(*hull(cost, accuracy), strict=True)
        kept = [int(np.flatnonzero((cost == x) & (accuracy == y))[0]) for x, y in corners]
        few = prices[kept[:: max(1, -(-len(kept) // STARTS))]].tolist()
        return [(start, price) for start in few for price in PRICES.tolist()]

    def picks(self, table: Table, setting: Setting) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return (n,) the actions of the first and of the last answer."""
        start_price, price = setting
        first = choose_many(table.values, table.costs, start_price)
        if self.look is None or price is None:
            return first, first
        known = after_first(self.look, table.values, first, table.confidence)
        return first, ends_of(self.look, known, first, table.costs, price)

    def runs(self, table: Table, settings: Sequence[Setting], resource: Resource) -> Runs:
        """Return what the settings do, and as the last of all always the anchor."""
        picks = [self.picks(table, setting) for setting in (*settings, ALWAYS_ANCHOR)]
        return Runs(
            np.stack([picked(table.scores, last) for _, last in picks]),
            np.stack([resource.spent(table, *both) for both in picks]),
            np.stack([1.0 + (first != last) for first, last in picks]),
        )


def uniform_look(look: SecondLook, space: ActionSpace) -> SecondLook:
    """Return a second look's own gates between the uniform actions alone."""
    own = space.uniform
    gates = tuple(
        tuple(look.gates[start][end - start] for end in own if end >= start) for start in own[:-1]
    )
    names = tuple(space.names[i] for i in own)
    return SecondLook(names, gates, look.start_price, look.price)


def shipped(router: Router) -> tuple[Chooser, Setting]:
    """Return who chooses in a router, and the setting it ships with."""
    look = router.second_look
    if look is None:
        alone = ALWAYS_ANCHOR if router.policy.finest_only else (router.price, None)
        return Chooser(), alone
    return Chooser(look), (look.start_price, look.price)


def cheapest_keeping(runs: Runs, finest: Array, pictures: NDArray[np.int64], share: float) -> int:
    """Return the cheapest setting that keeps a share of the finest accuracy, with the margin that
    a router's own price keeps; the last one, always the anchor, where none does.

    Args:
        runs: on calibration pictures.
        finest: (n,) scores of the anchor.
        pictures: (n,).
    """
    gains = runs.score - share * finest
    mean, count = gains.mean(axis=1), int(pictures.max()) + 1
    left = gains - mean[:, None]
    sums = np.stack([np.bincount(pictures, row, minlength=count) for row in left])
    error = np.sqrt(count / max(count - 1, 1) * (sums**2).sum(axis=1)) / gains.shape[1]
    kept = np.flatnonzero(mean >= MARGIN * error)
    if len(kept) == 0:
        return len(runs.score) - 1
    return int(kept[np.argmin(runs.cost[kept].mean(axis=1))])
