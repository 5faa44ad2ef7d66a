"""Learn-then-Test: the cheapest price of a fixed family whose risk is bounded with confidence.

Knows values, outcomes, prices and losses by picture; knows nothing of routers, files or requests.
The risk is a mean over pictures of the picture's mean loss: a picture drawn at random, then one of
its questions. Pictures are taken as drawn independently from one population; questions about one
picture may depend on each other in any way. A mean over questions (pictures with many questions
weigh more) is another number and is not bounded here.

Two losses: harm, 1 where the finest scale is right and the chosen one wrong, and drop, the finest
scale's score minus the chosen one's, in [-1, 1]. Rescued answers offset a drop, never a harm.

Notation: n questions, A actions, the finest scale last, P pictures, G members of the family,
member 0 always the finest.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from router.policy import choose_many
from router.policy.rule import Costs

Array = NDArray[np.float64]
Loss = Literal["harm", "drop"]
Method = Literal["betting", "clopper_pearson"]

VALUE_SPAN = 2.0  # predicted qualities of two scales differ by less: probabilities, gains
BET_SHARE = 0.99  # of the largest bet that cannot lose everything on one picture


def price_family(costs: Sequence[float], n_prices: int = 120) -> Array:
    """Return (G - 1,) ascending prices, from one that always takes the finest to the cheapest.

    A function of the costs alone, so no outcome can have shaped it. Negative prices are its safe
    end: the finest scale is left only where another is predicted to be better by that much.

    Raises:
        ValueError: the finest scale is not the dearest, so no price leads from safe to cheap.
    """
    dear = np.unique(np.asarray(costs, dtype=np.float64))
    if len(costs) < 2 or costs[-1] != dear[-1] or np.sum(np.asarray(costs) == dear[-1]) > 1:
        raise ValueError(f"the finest scale must cost more than every other, got {tuple(costs)}")
    low = 1.01 * VALUE_SPAN / (dear[-1] - dear[-2])
    high = 1.01 * VALUE_SPAN / np.diff(dear).min()
    timid = -np.geomspace(low, 1e-3, max(n_prices // 3, 2))
    bold = np.geomspace(1e-3, high, max(n_prices - len(timid) - 1, 2))
    return np.concatenate([timid, [0.0], bold])


def question_losses(outcomes: Array, picks: NDArray[np.intp], loss: Loss) -> Array:
    """Return (n,): what each question loses against the finest scale at its pick.

    Args:
        outcomes: (n, A) scores in [0, 1]; a score of at least one half is right.
        picks: (n,) indices of the chosen actions.
    """
    chosen, finest = outcomes[np.arange(len(outcomes)), picks], outcomes[:, -1]
    if loss == "harm":
        return ((finest >= 0.5) & (chosen < 0.5)).astype(np.float64)
    return finest - chosen


def picture_losses(
    values: Array,
    outcomes: Array,
    costs: Costs,
    pictures: NDArray[np.int64],
    prices: Array,
    loss: Loss,
) -> Array:
    """Return (G, P) mean loss of each picture for each member: always the finest, then the prices.

    Args:
        values: (n, A) predictions by something fitted on other pictures.
        outcomes: (n, A) scores in [0, 1].
        costs: (A,), or (n, A) where they depend on the question.
        pictures: (n,) integers 0..P-1, each taken at least once; see `betting_order`.
        prices: (G - 1,) ascending.
    """
    finest = np.full(len(values), values.shape[1] - 1, dtype=np.intp)
    members = [finest] + [choose_many(values, costs, float(price)) for price in prices]
    return np.stack(
        [mean_by_picture(question_losses(outcomes, m, loss), pictures) for m in members]
    )


def mean_by_picture(losses: Array, pictures: NDArray[np.int64]) -> Array:
    """Return (P,): the mean of each picture's losses."""
    means: Array = np.bincount(pictures, losses) / np.bincount(pictures)
    return means


def betting_order(units: Iterable[str]) -> NDArray[np.int64]:
    """Return (n,): the number of each question's unit, in the order of a hash of their names.

    Bets see one unit after the other. In the order of the names, where those tell (sessions by
    their date, looks from flat to busy), easy ones may come first and win what the others could not
    take back.
    """
    names, inverse = np.unique(np.asarray(units, dtype=np.str_), return_inverse=True)
    digests = [hashlib.sha256(b"m3-router bets 1:" + n.encode()).digest() for n in names.tolist()]
    places = np.empty(len(names), dtype=np.int64)
    places[sorted(range(len(names)), key=digests.__getitem__)] = np.arange(len(names))
    return places[inverse]


def certified_member(losses: Array, level: float, delta: float, method: Method = "betting") -> int:
    """Return the cheapest member certified to lose at most ``level``; 0 is always the finest.

    Fixed-sequence testing: members are tried from the safest on, each at the full ``delta``, until
    one is not shown to keep the level. With probability 1 - delta over the pictures drawn, every
    member up to the returned one keeps it, so any of them may be used.

    Args:
        losses: (G, P) by picture, safest member first.
        level: what the risk must not exceed, in (0, 1).
        delta: allowed probability of a broken promise, in (0, 1).

    Raises:
        ValueError: the first member loses something against the finest scale, so it is not it.
    """
    if losses[0].any():
        raise ValueError("the safest member of the family must be always the finest scale")
    for member in range(1, len(losses)):
        if not keeps(losses[member], level, delta, method):
            return member - 1
    return len(losses) - 1


def keeps(losses: Array, level: float, delta: float, method: Method = "betting") -> bool:
    """Return whether losses (P,) show a mean of at most ``level``, wrong with chance <= delta."""
    if method == "betting":
        return bool(log_capital(losses, level, delta) >= -math.log(delta))
    return clopper_pearson(int(losses.sum()), len(losses), delta) <= level


def upper_bound(losses: Array, delta: float, method: Method = "betting") -> float:
    """Return the least level that `keeps` accepts: above the mean with probability 1 - delta."""
    if method == "clopper_pearson":
        return clopper_pearson(int(losses.sum()), len(losses), delta)
    return _least(lambda level: bool(log_capital(losses, level, delta) >= -math.log(delta)))


def log_capital(losses: Array, level: float, delta: float) -> Array:
    """Return (...): the greatest log wealth of bets that the mean loss is below ``level``.

    Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", one-sided:
    wealth is multiplied by 1 + bet * (level - loss), and each bet depends on earlier pictures only.
    Under a mean of ``level`` or more, wealth does not grow in expectation, so by Ville's inequality
    it ever reaches 1 / delta with probability at most delta, for any number of pictures. Losses
    need an upper end of 1 and no lower end, which is why signed drops need no rescaling.

    Args:
        losses: (..., P), at most 1, in an order that does not depend on them.
    """
    n = losses.shape[-1]
    seen = np.arange(1, n + 1) + 1.0
    mean = (0.5 + np.cumsum(losses, axis=-1)) / seen
    variance = (0.25 + np.cumsum((losses - mean) ** 2, axis=-1)) / seen
    before = np.concatenate([np.full((*losses.shape[:-1], 1), 0.25), variance[..., :-1]], axis=-1)
    bets = np.sqrt(2 * math.log(1 / delta) / (n * before))
    bets = np.minimum(bets, BET_SHARE / (1 - level))
    wealth: Array = np.log1p(bets * (level - losses)).cumsum(axis=-1).max(axis=-1)
    return wealth


def clopper_pearson(k: int, n: int, delta: float) -> float:
    """Return the exact upper bound of a probability after k of n independent events.

    Valid by picture only where each picture gives one question: questions about one picture are
    not independent, and counting them as if they were makes the bound too low.
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"{k} of {n} is no count")
    if k == n:
        return 1.0
    terms = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k + 1)]
    counts, logs = np.arange(k + 1), np.array(terms)

    def unlikely(p: float) -> bool:
        if p <= 0.0:
            return False
        tail = np.exp(logs + counts * math.log(p) + (n - counts) * math.log1p(-p)).sum()
        return bool(tail <= delta)

    return _least(unlikely)


def _least(holds: Callable[[float], bool]) -> float:
    """Return the least level in (0, 1] from which on ``holds``, from above, to 1e-9."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
