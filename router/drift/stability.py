"""How far features have moved from the population a router was fitted on, and choices from it.

Population stability index of a feature, over its B bins with shares q now and p at the fit:

    PSI = sum over bins of (q - p) * ln(q / p)

Half a question is added to every bin on both sides, so that an empty bin is no infinity. Of n and N
independent questions of ONE population, PSI is about (1/n + 1/N) times a chi-square of B - 1
degrees: never 0. What is told is therefore PSI less its mean, (B - 1)(1/n + 1/N), and a feature
counts as moved where that reaches `MOVED`, the usual mark of a shift that matters, and where PSI is
more than chance gives once in `CHANCE` for any of all features. Few questions need a large shift.

Knows counts; knows nothing of where they come from.
Notation: F features, B bins of a feature.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from router.drift.population import BINS, Population

MOVED = 0.2
CHANCE = 0.001
LEAST = 100  # independent questions below which nothing is said
# A router has collapsed where it takes one action for nearly all and at the fit it did not. Of the
# least number of questions chance does so once in 100,000 times.
NEARLY_ALL, SPREAD, LEAST_CHOICES = 0.98, 0.9, 200


@dataclass(frozen=True)
class Stability:
    """What became of each feature.

    Attributes:
        questions: independent ones that it rests on.
        index: (F,) PSI less what chance gives, at least 0.
        moved: (F,) whether the feature has moved.
    """

    questions: float
    index: np.ndarray
    moved: np.ndarray

    def worst(self, most: int) -> list[int]:
        """Return the features that have moved, the farthest first."""
        order = np.argsort(-self.index, kind="stable")
        return [int(place) for place in order if self.moved[place]][:most]


def stability(population: Population, counts: np.ndarray, questions: float) -> Stability:
    """Return how far each feature has moved.

    Args:
        counts: (F, BINS) questions in each bin now.
        questions: how many independent ones they are worth.
    """
    bins = population.n_bins
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-9)
    index = psi(
        smoothed(share, questions, bins), smoothed(population.expected, population.units, bins)
    )
    noise = 1.0 / max(questions, 1e-9) + 1.0 / population.units
    told = np.maximum(index - (bins - 1) * noise, 0.0)
    chance = noise * chi_square_quantile(bins - 1, 1.0 - CHANCE / len(bins))
    moved = (told >= MOVED) & (index > chance)
    return Stability(questions, told, moved & (questions >= LEAST))


def psi(now: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return (F,) the population stability index of shares (F, B), none of which is 0; bins that a
    feature has not hold NaN on both sides."""
    found: np.ndarray = np.nansum((now - before) * np.log(now / before), axis=1)
    return found


def smoothed(shares: np.ndarray, questions: float, bins: np.ndarray) -> np.ndarray:
    """Return (F, BINS) the shares with half a question added to every bin, NaN beyond the bins."""
    added = (shares * questions + 0.5) / (questions + 0.5 * bins[:, None])
    return np.where(np.arange(BINS) < bins[:, None], added, np.nan)


def chi_square_quantile(degrees: np.ndarray, probability: float) -> np.ndarray:
    """Return Wilson and Hilferty's approximation of a chi-square's quantile, within 2 % above 0.5
    from two degrees on (10 % at one)."""
    k = np.maximum(np.asarray(degrees, dtype=np.float64), 1.0)
    z = NormalDist().inv_cdf(probability)
    found: np.ndarray = k * (1.0 - 2.0 / (9.0 * k) + z * np.sqrt(2.0 / (9.0 * k))) ** 3
    return found


def collapsed(
    chosen: Mapping[str, float], at_the_fit: Mapping[str, float], questions: float
) -> str | None:
    """Return the action that nearly all is read by and was not at the fit; None: there is none.

    Args:
        chosen: share (or number) of the free choices by action, now.
        at_the_fit: share by action.
        questions: independent ones behind ``chosen``.
    """
    total = sum(chosen.values())
    if questions < LEAST_CHOICES or not total:
        return None
    name = max(chosen, key=lambda each: chosen[each])
    nearly_all = chosen[name] >= NEARLY_ALL * total
    return name if nearly_all and at_the_fit.get(name, 0.0) < SPREAD else None
