"""What a router was fitted on, in short: a small file beside it, to hold later traffic against.

Of every feature the deciles of the training questions, of every action how often it is chosen and
how likely it is to suffice. The file counts for no version; a router without it works as ever.
Knows features and actions; knows nothing of where questions come from.
Notation: F features, B bins of a feature, at most `BINS`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from router.places import Place
from router.router import Router

POPULATION_FILE = "population.json"
FORMAT = 1
BINS = 10
ROUNDING = np.float32(2**-8)  # of a feature's largest value: the grain of bf16
_DECILES = np.arange(1, BINS) / BINS


@dataclass(frozen=True)
class Population:
    """Where the features of a router's training questions lie, and what it chooses.

    Attributes:
        predictor_hash: of the router that was fitted: its price may change, its values do not.
        units: how many independent pictures the shares rest on.
        edges: for each feature the ascending upper edges of its bins but the last, which has none.
        shares: for each feature the share of the questions in each bin.
        price: at which the choices were made.
        choices: name of each action -> share of the calibration questions it was chosen for.
        chances: name of each action -> mean probability that it suffices.
    """

    predictor_hash: str
    units: float
    edges: tuple[tuple[float, ...], ...]
    shares: tuple[tuple[float, ...], ...]
    price: float
    choices: Mapping[str, float]
    chances: Mapping[str, float]

    def __post_init__(self) -> None:
        told = (self.units, self.price, *self.choices.values(), *self.chances.values())
        sound = (
            self.units >= 1
            and len(self.edges) == len(self.shares)
            and all(len(e) < BINS and len(s) == len(e) + 1
                    for e, s in zip(self.edges, self.shares, strict=True))
            and all(list(e) == sorted(set(e)) for e in self.edges)
            and all(abs(sum(s) - 1.0) < 0.01 and min(s) >= 0.0 for s in self.shares)
            and all(np.isfinite(number) for number in told)
        )  # fmt: skip
        if not sound:
            raise ValueError("its bins do not fit together")

    @cached_property
    def n_bins(self) -> np.ndarray:
        """Return (F,) how many bins each feature has."""
        return np.array([len(each) for each in self.shares])

    @cached_property
    def expected(self) -> np.ndarray:
        """Return (F, BINS) the share in each bin, 0 where a feature has no such bin."""
        return _padded(self.shares, BINS, 0.0)

    @cached_property
    def _limits(self) -> np.ndarray:
        return _padded(self.edges, BINS - 1, np.inf).astype(np.float32)  # as features are

    def bins(self, rows: np.ndarray) -> np.ndarray:
        """Return (n, F) uint8: the bin of each feature of rows (n, F)."""
        values = np.asarray(rows, dtype=np.float32)
        found: np.ndarray = (values[..., None] > self._limits).sum(axis=-1)
        return found.astype(np.uint8)

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """Return (F, BINS): how many of the rows (n, F) lie in each bin."""
        counts = np.zeros((len(self.edges), BINS))
        for start in range(0, len(rows), 4096):  # bounds memory
            bins = self.bins(rows[start : start + 4096])
            for place in range(BINS):
                counts[:, place] += (bins == place).sum(axis=0)
        return counts

    def to_bytes(self) -> bytes:
        """Return the content of `population.json`."""
        told = {
            "format": FORMAT, "predictor_hash": self.predictor_hash, "units": self.units,
            "edges": self.edges, "shares": self.shares, "price": self.price,
            "choices": dict(self.choices), "chances": dict(self.chances),
        }  # fmt: skip
        return (json.dumps(told, allow_nan=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Population":
        """Return the population in a file.

        Raises:
            ValueError: it is damaged or of another format.
        """
        told: Any = json.loads(content)
        try:
            if told["format"] != FORMAT:
                raise ValueError(f"{POPULATION_FILE} is not of format {FORMAT}")
            return cls(
                str(told["predictor_hash"]), float(told["units"]),
                tuple(tuple(map(float, each)) for each in told["edges"]),
                tuple(tuple(map(float, each)) for each in told["shares"]),
                float(told["price"]), _numbers(told["choices"]), _numbers(told["chances"]),
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{POPULATION_FILE} is damaged: {error!r}") from error


def read_population(folder: Place, router: Router) -> Population | None:
    """Return the population beside a router; None: there is none that is of this router."""
    try:
        found = Population.from_bytes((folder / POPULATION_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    fits = (
        found.predictor_hash == router.predictor_hash
        and len(found.edges) == len(router.schema.names)
        and set(found.choices) == set(found.chances) == set(router.space.names)
    )
    return found if fits else None


def deciles(
    rows: np.ndarray,
) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]:
    """Return edges and shares of bins that hold about a tenth of the rows (n, F) each.

    Equal values share a bin, so a feature of few values has few bins, and so do values that
    rounding may exchange: another processor or dtype is no drift. A feature that never varied by
    more than that has three: below, at, and above its value.
    """
    edges, shares = [], []
    for column in np.asarray(rows, dtype=np.float32).T:
        least, most = column.min(), column.max()
        grain = ROUNDING * max(abs(least), abs(most))
        if most - least <= grain:
            found = np.array([np.nextafter(least - grain, np.float32(-np.inf)), most + grain])
        else:
            found = _apart(np.unique(np.quantile(column, _DECILES, method="inverted_cdf")), grain)
            found = found[found < most - grain]
        places = np.searchsorted(found, column, side="left")
        share = np.bincount(places, minlength=len(found) + 1) / len(column)
        edges.append(tuple(float(str(edge)) for edge in found))  # float32 to the last digit
        shares.append(tuple(round(float(each), 5) for each in share))
    return tuple(edges), tuple(shares)


def _apart(ascending: np.ndarray, grain: np.float32) -> np.ndarray:
    """Return the values that lie further than ``grain`` above the last of them."""
    kept = [ascending[0]]
    for value in ascending[1:]:
        if value - kept[-1] > grain:
            kept.append(value)
    return np.array(kept)


def effective_units(counts: np.ndarray) -> float:
    """Return what so many questions of each picture are worth in independent ones: n^2 / sum c^2.

    Questions about one picture share its features: a hundred about one picture are one draw.
    """
    c = np.asarray(counts, dtype=np.float64)
    return float(c.sum() ** 2 / (c**2).sum()) if c.any() else 0.0


def _padded(rows: Sequence[Sequence[float]], width: int, with_: float) -> np.ndarray:
    table = np.full((len(rows), width), with_, dtype=np.float64)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table


def _numbers(told: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(number) for name, number in told.items()}
