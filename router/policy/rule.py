"""Quality against cost: which scale a request gets, and at which price the whole fleet works.

Knows values, costs and prices; knows nothing of features, boosters or pictures.
Notation: n questions, K scales ascending, v[i, k] the predicted quality of question i at scale k,
y[i, k] what came out, c[k] the relative cost of a scale, price = quality that one unit of cost
must buy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_CHUNK = 4_000_000  # elements of one (prices, n, K) block: bounds memory, not speed


@dataclass(frozen=True)
class Policy:
    """The one dial: ``argmax_k value_k - price * cost_k``.

    Attributes:
        costs: relative cost of each scale, in the unit of ``cost_unit``.
        price: quality paid per unit of cost; 0 takes the best predicted scale whatever it costs,
            a negative one takes a cheaper scale only where it is predicted to be better by so much.
        cost_unit: what costs count, for people ("visual tokens / 576", "GPU-ms on H100").
        finest_only: always take the finest scale that the constraints allow. Set where no price
            met the target on calibration data.
    """

    costs: tuple[float, ...]
    price: float
    cost_unit: str = "visual tokens, finest = 1"
    finest_only: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "costs", tuple(float(cost) for cost in self.costs))
        if not self.costs or not all(np.isfinite(cost) and cost >= 0 for cost in self.costs):
            raise ValueError(f"costs must be finite and not negative, got {self.costs}")
        if not np.isfinite(self.price):
            raise ValueError(f"price must be finite, got {self.price}")

    def choose(
        self, values: np.ndarray | Sequence[float], allowed: Sequence[bool] | None = None
    ) -> int:
        """Return the index of the scale for one request; see `choose`."""
        if self.finest_only:
            return len(self.costs) - 1 if allowed is None else int(np.flatnonzero(allowed)[-1])
        return choose(values, self.costs, self.price, allowed)


@dataclass(frozen=True)
class CalibratedPrice:
    """The price found on calibration pictures and what it did there.

    Attributes:
        price: 0 where infeasible.
        feasible: whether the target was met; if not, the policy is the finest scale always.
        accuracy, cost: means at that price over the calibration questions.
        finest_accuracy: mean at the finest scale.
        margin: by how much accuracy had to exceed the target (z standard errors by picture).
    """

    price: float
    feasible: bool
    accuracy: float
    cost: float
    finest_accuracy: float
    margin: float

    def policy(
        self, costs: Sequence[float], cost_unit: str = "visual tokens, finest = 1"
    ) -> Policy:
        """Return the policy at this price, the always-finest one where no price was feasible."""
        return Policy(tuple(costs), self.price, cost_unit, finest_only=not self.feasible)


@dataclass(frozen=True)
class Frontier:
    """What each price buys: arrays of equal length, prices ascending (so costs descend)."""

    price: np.ndarray
    accuracy: np.ndarray
    cost: np.ndarray
    visual_tokens: np.ndarray


def token_costs(scales: Sequence[int]) -> tuple[float, ...]:
    """Return the visual tokens of each scale relative to the finest (so that costs end in 1)."""
    return tuple(scale / scales[-1] for scale in scales)


def choose(
    values: np.ndarray | Sequence[float],
    costs: Sequence[float],
    price: float,
    allowed: Sequence[bool] | None = None,
) -> int:
    """Return the index of the allowed scale with the greatest value - price * cost.

    Ties go to the cheaper scale, and among equally cheap ones to the coarser.

    Args:
        values: (K,) predicted quality.
        costs: (K,) relative costs.
        price: quality per unit of cost.
        allowed: (K,) which scales the constraints leave; None allows all.

    Raises:
        ValueError: no scale is allowed, or a value is NaN.
    """
    # A plain loop: for a handful of scales it is several times faster than numpy.
    best, best_utility, best_cost = -1, 0.0, 0.0
    for index, (value, cost) in enumerate(zip(values, costs, strict=True)):
        if allowed is not None and not allowed[index]:
            continue
        utility = float(value) - price * cost
        if utility != utility:
            raise ValueError(f"value of scale number {index} is NaN")
        if best < 0 or utility > best_utility or (utility == best_utility and cost < best_cost):
            best, best_utility, best_cost = index, utility, cost
    if best < 0:
        raise ValueError("no scale is allowed")
    return best


def choose_many(values: np.ndarray, costs: Sequence[float], price: float) -> np.ndarray:
    """Return (n,) indices: `choose` for every row of values (n, K) at one price."""
    _check(values, costs)
    v, c = np.asarray(values, dtype=np.float64), np.asarray(costs, dtype=np.float64)
    picks: np.ndarray = _picks(v, c, np.asarray([price], dtype=np.float64))[0]
    return picks


def candidate_prices(values: np.ndarray, costs: Sequence[float], n_prices: int = 256) -> np.ndarray:
    """Return ascending prices at which choices change: 0, quantiles of the break-even prices, and
    one above them all (everything at the cheapest scale).

    A question moves from scale j to a cheaper scale k where the price passes
    (v_j - v_k) / (c_j - c_k); no other price matters.
    """
    v = np.asarray(values, dtype=np.float64)
    c = np.asarray(costs, dtype=np.float64)
    rises: list[np.ndarray] = []
    for cheap in range(len(c)):
        for dear in range(len(c)):
            if c[dear] > c[cheap]:
                rises.append((v[:, dear] - v[:, cheap]) / (c[dear] - c[cheap]))
    even = np.concatenate(rises) if rises else np.zeros(0)
    even = even[even > 0]
    if len(even) == 0:
        return np.zeros(1)
    inner = np.quantile(even, np.linspace(0.0, 1.0, n_prices))
    return np.unique(np.concatenate([[0.0], inner, [even.max() * 1.01]]))


def frontier(
    values: np.ndarray,
    outcomes: np.ndarray,
    costs: Sequence[float],
    *,
    scales: Sequence[int] | None = None,
    prices: np.ndarray | None = None,
) -> Frontier:
    """Return accuracy, cost and visual tokens of the policy at each price.

    Args:
        values: (n, K) predicted quality.
        outcomes: (n, K) what came out, in [0, 1].
        costs: (K,) relative costs.
        scales: (K,) visual tokens of each scale; None where costs already are tokens.
        prices: ascending; None takes `candidate_prices`.
    """
    v, y, c = _arrays(values, outcomes, costs)
    tokens = c if scales is None else np.asarray(scales, dtype=np.float64)
    grid = candidate_prices(v, costs) if prices is None else np.asarray(prices, dtype=np.float64)
    accuracy, cost, visual = np.empty(len(grid)), np.empty(len(grid)), np.empty(len(grid))
    for part in _parts(len(grid), v.size):
        picks = _picks(v, c, grid[part])
        accuracy[part] = y[np.arange(len(y)), picks].mean(axis=1)
        cost[part] = c[picks].mean(axis=1)
        visual[part] = tokens[picks].mean(axis=1)
    return Frontier(price=grid, accuracy=accuracy, cost=cost, visual_tokens=visual)


def calibrate_price(
    values: np.ndarray,
    outcomes: np.ndarray,
    costs: Sequence[float],
    groups: np.ndarray | Sequence[str] | None = None,
    *,
    target: float = 0.99,
    z: float = 0.5,
    prices: np.ndarray | None = None,
) -> CalibratedPrice:
    """Return the cheapest price that keeps ``target`` of the finest scale's accuracy.

    A price is feasible where the mean of y_chosen - target * y_finest is at least z standard
    errors above zero, the error taken over pictures because questions about one picture are not
    independent. This is a plug-in estimate with a margin, not a certificate. Where no price is
    feasible the result has price 0 and ``feasible`` False: its policy is the finest scale always.

    Args:
        values: (n, K) predictions on pictures the predictor was not fitted on.
        outcomes: (n, K) what came out on them, in [0, 1].
        costs: (K,) relative costs.
        groups: (n,) picture of each row; None takes every row as its own picture.
        target: share of the finest accuracy to keep.
        z: standard errors of safety.
        prices: candidates; None takes `candidate_prices`.
    """
    v, y, c = _arrays(values, outcomes, costs)
    n = len(v)
    keys = np.arange(n) if groups is None else np.asarray(groups)
    if len(keys) != n:
        raise ValueError(f"{len(keys)} groups for {n} rows")
    _, members = np.unique(keys, return_inverse=True)
    n_groups = int(members.max()) + 1
    grid = candidate_prices(v, costs) if prices is None else np.asarray(prices, dtype=np.float64)
    finest = y[:, -1]
    best: CalibratedPrice | None = None
    for part in _parts(len(grid), v.size):
        picks = _picks(v, c, grid[part])
        chosen = y[np.arange(n), picks]
        gains = chosen - target * finest
        mean = gains.mean(axis=1)
        # Clustered standard error of a mean over questions: residuals summed by picture first.
        residuals = gains - mean[:, None]
        sums = np.stack([np.bincount(members, row, minlength=n_groups) for row in residuals])
        spread = n_groups / max(n_groups - 1, 1)
        margin = z * np.sqrt(spread * (sums**2).sum(axis=1)) / n
        spent = c[picks].mean(axis=1)
        for index in np.flatnonzero(mean >= margin):
            # On equal cost the lower price stays: it is the safer of two that did the same.
            if best is None or spent[index] < best.cost:
                best = CalibratedPrice(
                    price=float(grid[part][index]),
                    feasible=True,
                    accuracy=float(chosen[index].mean()),
                    cost=float(spent[index]),
                    finest_accuracy=float(finest.mean()),
                    margin=float(margin[index]),
                )
    if best is not None:
        return best
    accuracy = float(finest.mean())
    return CalibratedPrice(0.0, False, accuracy, float(c[-1]), accuracy, 0.0)


def _picks(v: np.ndarray, c: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """Return (P, n) indices of the best scale for every price and row, ties to the cheaper."""
    order = np.argsort(c, kind="stable")  # argmax takes the first of equals: make it the cheapest
    utility = v[None, :, order] - prices[:, None, None] * c[order]
    picks: np.ndarray = order[np.argmax(utility, axis=2)]
    return picks


def _parts(n_prices: int, block: int) -> list[slice]:
    step = max(1, _CHUNK // max(block, 1))
    return [slice(start, start + step) for start in range(0, n_prices, step)]


def _check(values: np.ndarray, costs: Sequence[float]) -> None:
    shape = np.shape(values)
    if len(shape) != 2 or shape[1] != len(costs) or shape[0] == 0:
        raise ValueError(f"expected (n, {len(costs)}) values with n > 0, got {shape}")
    if not np.isfinite(values).all():
        raise ValueError("values must be finite")


def _arrays(
    values: np.ndarray, outcomes: np.ndarray, costs: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    _check(values, costs)
    if np.shape(outcomes) != np.shape(values):
        raise ValueError(f"outcomes {np.shape(outcomes)} and values {np.shape(values)} differ")
    if not np.isfinite(outcomes).all():
        raise ValueError("outcomes must be finite")
    return (
        np.asarray(values, dtype=np.float64),
        np.asarray(outcomes, dtype=np.float64),
        np.asarray(costs, dtype=np.float64),
    )
