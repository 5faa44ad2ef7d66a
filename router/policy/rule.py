"""Quality against cost: which action a request gets, and at which price the whole fleet works.

Knows values, costs and prices; knows nothing of features, boosters or pictures.
Notation: n questions, K scales ascending, A actions (the K scales, and foci whose tokens depend on
the question), v[i, k] the predicted quality of question i at action k, y[i, k] what came out, c[k]
or c[i, k] the relative cost, price = quality that one unit of cost must buy.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Costs = Sequence[float] | np.ndarray  # (A,) the same for every question, or (n, A)

_CHUNK = 4_000_000  # elements of one (prices, n, A) block: bounds memory, not speed


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
        self,
        values: np.ndarray | Sequence[float],
        allowed: Sequence[bool] | None = None,
        costs: Sequence[float] | None = None,
    ) -> int:
        """Return the index of the scale, or of the action, for one request; see `choose`.

        Args:
            values: (K,), or (A,) with as many costs.
            allowed: which of them the constraints leave; None allows all.
            costs: of this request's actions; None takes those of the scales.
        """
        if self.finest_only:
            return len(values) - 1 if allowed is None else int(np.flatnonzero(allowed)[-1])
        return choose(values, self.costs if costs is None else costs, self.price, allowed)


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


def row_costs(tokens: np.ndarray, scales: Sequence[int], costs: Sequence[float]) -> np.ndarray:
    """Return the costs of reading that many tokens, the shape of ``tokens``: (n, A) or (A,).

    They lie on the line through (scale, cost), which bends at the scales, so a scale costs exactly
    what it is said to.

    Args:
        tokens: between the coarsest and the finest scale.
        scales: (K,) ascending.
        costs: (K,) of the scales.

    Raises:
        ValueError: tokens beyond the scales.
    """
    t = np.asarray(tokens, dtype=np.float64)
    x, y = np.asarray(scales, dtype=np.float64), np.asarray(costs, dtype=np.float64)
    if len(x) != len(y):
        raise ValueError(f"{len(y)} costs for {len(x)} scales")
    if t.size and not (x[0] <= t.min() and t.max() <= x[-1]):
        raise ValueError(f"{t.min():g} to {t.max():g} tokens lie beyond the scales {tuple(scales)}")
    below = np.searchsorted(x, t, side="right") - 1
    above = np.minimum(below + 1, len(x) - 1)
    step = np.where(above > below, x[above] - x[below], 1.0)
    found: np.ndarray = (y[above] - y[below]) / step * (t - x[below]) + y[below]
    return found


def costs_of_row(
    tokens: Sequence[int], scales: Sequence[int], costs: Sequence[float]
) -> tuple[float, ...]:
    """Return `row_costs` of one question, to the last bit, without numpy: a few microseconds."""
    found = []
    for count in tokens:
        below = bisect_right(scales, count) - 1
        if below < 0 or count > scales[-1]:
            raise ValueError(f"{count} tokens lie beyond the scales {tuple(scales)}")
        cost, left = costs[below], count - scales[below]
        if left:
            cost += (costs[below + 1] - cost) / (scales[below + 1] - scales[below]) * left
        found.append(cost)
    return tuple(found)


def choose(
    values: np.ndarray | Sequence[float],
    costs: Sequence[float],
    price: float,
    allowed: Sequence[bool] | None = None,
) -> int:
    """Return the index of the allowed action with the greatest value - price * cost.

    Ties go to the cheaper action, and among equally cheap ones to the earlier (of scales, the
    coarser).

    Args:
        values: (A,) predicted quality.
        costs: (A,) relative costs, those of this question.
        price: quality per unit of cost.
        allowed: (A,) which actions the constraints leave; None allows all.

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


def choose_many(values: np.ndarray, costs: Costs, price: float) -> np.ndarray:
    """Return (n,) indices: `choose` for every row of values (n, A) at one price.

    Args:
        values: (n, A) predicted quality.
        costs: (A,), or (n, A) where they depend on the question.
        price: quality per unit of cost.
    """
    _check(values, costs)
    v, c = np.asarray(values, dtype=np.float64), np.asarray(costs, dtype=np.float64)
    picks: np.ndarray = _picks(v, c, np.asarray([price], dtype=np.float64))[0]
    return picks


def candidate_prices(values: np.ndarray, costs: Costs, n_prices: int = 256) -> np.ndarray:
    """Return ascending prices at which choices change: 0, quantiles of the break-even prices, and
    one above them all (everything at the cheapest action).

    A question moves from action j to a cheaper action k where the price passes
    (v_j - v_k) / (c_j - c_k); no other price matters.

    Args:
        values: (n, A).
        costs: (A,), or (n, A) where they depend on the question.
        n_prices: quantiles.
    """
    v = np.asarray(values, dtype=np.float64)
    c = np.asarray(costs, dtype=np.float64)
    rises: list[np.ndarray] = []
    for cheap in range(c.shape[-1]):
        for dear in range(c.shape[-1]):
            step = c[..., dear] - c[..., cheap]
            if c.ndim == 1:
                if step > 0:
                    rises.append((v[:, dear] - v[:, cheap]) / step)
            else:
                rows = step > 0
                rises.append((v[rows, dear] - v[rows, cheap]) / step[rows])
    even = np.concatenate(rises) if rises else np.zeros(0)
    even = even[even > 0]
    if len(even) == 0:
        return np.zeros(1)
    inner = np.quantile(even, np.linspace(0.0, 1.0, n_prices))
    return np.unique(np.concatenate([[0.0], inner, [even.max() * 1.01]]))


def frontier(
    values: np.ndarray,
    outcomes: np.ndarray,
    costs: Costs,
    *,
    scales: Sequence[int] | np.ndarray | None = None,
    prices: np.ndarray | None = None,
) -> Frontier:
    """Return accuracy, cost and visual tokens of the policy at each price.

    Args:
        values: (n, A) predicted quality.
        outcomes: (n, A) what came out, in [0, 1].
        costs: (A,) relative costs, or (n, A) where they depend on the question.
        scales: visual tokens, (A,) or (n, A); None where costs already are tokens.
        prices: ascending; None takes `candidate_prices`.
    """
    v, y, c = _arrays(values, outcomes, costs)
    tokens = c if scales is None else np.asarray(scales, dtype=np.float64)
    grid = candidate_prices(v, costs) if prices is None else np.asarray(prices, dtype=np.float64)
    accuracy, cost, visual = np.empty(len(grid)), np.empty(len(grid)), np.empty(len(grid))
    for part in _parts(len(grid), v.size):
        picks = _picks(v, c, grid[part])
        accuracy[part] = y[np.arange(len(y)), picks].mean(axis=1)
        cost[part] = _picked(c, picks).mean(axis=1)
        visual[part] = _picked(tokens, picks).mean(axis=1)
    return Frontier(price=grid, accuracy=accuracy, cost=cost, visual_tokens=visual)


def calibrate_price(
    values: np.ndarray,
    outcomes: np.ndarray,
    costs: Costs,
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
    None is where the finest scale earns nothing: then nothing could be lost, whatever is chosen.

    Args:
        values: (n, A) predictions on pictures the predictor was not fitted on.
        outcomes: (n, A) what came out on them, in [0, 1]; the finest scale is the last.
        costs: (A,) relative costs, or (n, A) where they depend on the question.
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
    for part in _parts(len(grid), v.size) if finest.any() else []:
        picks = _picks(v, c, grid[part])
        chosen = y[np.arange(n), picks]
        gains = chosen - target * finest
        mean = gains.mean(axis=1)
        # Clustered standard error of a mean over questions: residuals summed by picture first.
        residuals = gains - mean[:, None]
        sums = np.stack([np.bincount(members, row, minlength=n_groups) for row in residuals])
        spread = n_groups / max(n_groups - 1, 1)
        margin = z * np.sqrt(spread * (sums**2).sum(axis=1)) / n
        spent = _picked(c, picks).mean(axis=1)
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
    return CalibratedPrice(0.0, False, accuracy, float(c[..., -1].mean()), accuracy, 0.0)


def _picks(v: np.ndarray, c: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """Return (P, n) indices of the best action for every price and row, ties to the cheaper."""
    # argmax takes the first of equals: make it the cheapest.
    order = np.argsort(c, axis=-1, kind="stable")
    if c.ndim == 1:
        best = np.argmax(v[None, :, order] - prices[:, None, None] * c[order], axis=2)
        return np.asarray(order[best])
    v, c = (np.take_along_axis(each, order, axis=1) for each in (v, c))
    best = np.argmax(v - prices[:, None, None] * c, axis=2)
    return np.asarray(order[np.arange(len(order)), best])


def _picked(of_actions: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """Return (P, n) what picks (P, n) have, of numbers (A,) or (n, A)."""
    if of_actions.ndim == 1:
        return np.asarray(of_actions[picks])
    return np.asarray(of_actions[np.arange(len(of_actions)), picks])


def _parts(n_prices: int, block: int) -> list[slice]:
    step = max(1, _CHUNK // max(block, 1))
    return [slice(start, start + step) for start in range(0, n_prices, step)]


def _check(values: np.ndarray, costs: Costs) -> None:
    shape, priced = np.shape(values), np.shape(costs)
    if len(shape) != 2 or shape[0] == 0 or priced not in (shape, shape[1:]):
        rows = "n" if len(priced) < 2 else priced[0]
        raise ValueError(f"expected ({rows}, {priced[-1]}) values with n > 0, got {shape}")
    if not np.isfinite(values).all():
        raise ValueError("values must be finite")
    if len(priced) == 2 and not np.isfinite(costs).all():
        raise ValueError("costs must be finite")


def _arrays(
    values: np.ndarray, outcomes: np.ndarray, costs: Costs
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
