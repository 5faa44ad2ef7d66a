"""From a booster's raw score to a probability that can be believed, as plain JSON numbers.

Knows raw scores and labels of one action; knows nothing of features or boosters.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

Kind = Literal["constant", "none", "platt", "isotonic"]


@dataclass(frozen=True)
class Calibration:
    """A monotone map from raw score (log odds) to probability.

    Attributes:
        kind: "constant" ignores the score; "none" is the logistic function; "platt" is the
            logistic function of slope * score + offset; "isotonic" interpolates steps.
        slope, offset: of platt; for a constant the slope is 0 and the offset unused.
        x, y: scores and probabilities of isotonic, ascending; a constant has one y.
    """

    kind: Kind
    slope: float = 1.0
    offset: float = 0.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """Return probabilities of raw scores, any shape."""
        if self.kind == "constant":
            return np.full(np.shape(raw), self.y[0])
        if self.kind == "isotonic":
            steps: np.ndarray = np.interp(raw, self.x, self.y)
            return steps
        return _logistic(self.slope * np.asarray(raw, dtype=np.float64) + self.offset)

    def one(self, raw: float) -> float:
        """Return the probability of one raw score, to the last bit as a batch gives it."""
        if self.kind == "constant":
            return self.y[0]
        if self.kind == "isotonic":
            return float(np.interp(raw, self.x, self.y))
        z = self.slope * raw + self.offset
        small = float(np.exp(-abs(z)))  # numpy's exp, not math's: `_logistic` for a single number
        return (1.0 if z >= 0 else small) / (1.0 + small)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; floats survive the round trip exactly."""
        return {
            "kind": self.kind,
            "slope": self.slope,
            "offset": self.offset,
            "x": list(self.x),
            "y": list(self.y),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Calibration":
        """Return the calibration of `to_json`.

        Raises:
            ValueError: an unknown kind, or numbers that are no monotone map.
        """
        kind = stored["kind"]
        if kind not in ("constant", "none", "platt", "isotonic"):
            raise ValueError(f"unknown calibration {kind!r}")
        made = cls(
            kind=cast(Kind, kind),
            slope=float(stored["slope"]),
            offset=float(stored["offset"]),
            x=tuple(float(value) for value in stored["x"]),
            y=tuple(float(value) for value in stored["y"]),
        )
        numbers = (made.slope, made.offset, *made.x, *made.y)
        rising = list(made.x) == sorted(made.x) and list(made.y) == sorted(made.y)
        sized = len(made.y) == 1 if kind == "constant" else len(made.x) == len(made.y)
        sized = sized and (kind != "isotonic" or len(made.x) > 0)
        bounded = all(0.0 <= value <= 1.0 for value in made.y)
        if not (all(map(math.isfinite, numbers)) and rising and sized and bounded):
            raise ValueError(f"the numbers of a {kind} calibration are no monotone map")
        return made


def constant(value: float) -> Calibration:
    """Return the calibration of an action whose label never varied."""
    return Calibration("constant", slope=0.0, y=(float(value),))


def fit_calibration(
    kind: Literal["none", "platt", "isotonic"],
    raw: np.ndarray,
    labels: np.ndarray,
    weight: np.ndarray | None = None,
) -> Calibration:
    """Return the calibration that maps raw scores (n,) to labels (n,) in [0, 1].

    With too few rows to say anything, or labels that do not vary, the score is left as it is.
    """
    if kind == "none" or len(raw) < 20 or float(np.ptp(labels)) == 0.0:
        return Calibration("none")
    w = np.ones(len(raw)) if weight is None else np.asarray(weight, dtype=np.float64)
    if kind == "platt":
        return _platt(np.asarray(raw, dtype=np.float64), np.asarray(labels, dtype=np.float64), w)
    from sklearn.isotonic import IsotonicRegression

    steps = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    steps.fit(raw, labels, sample_weight=w)
    return Calibration(
        "isotonic",
        x=tuple(float(value) for value in steps.X_thresholds_),
        y=tuple(float(value) for value in steps.y_thresholds_),
    )


def _platt(raw: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> Calibration:
    """Fit slope and offset by Newton's method on the log loss, pulled slightly towards (1, 0).

    The pull (worth two rows) keeps separable and tiny sets finite. The slope is never negative:
    a scale on which the booster learnt nothing gets its base rate, not the reverse of the truth.
    """
    design = np.stack([raw, np.ones_like(raw)], axis=1)
    start, pull = np.array([1.0, 0.0]), np.array([2.0, 2.0]) * float(weight.mean())
    beta = _newton(design, labels, weight, start, pull)
    if beta[0] < 0.0:
        flat = _newton(design[:, 1:], labels, weight, start[1:], pull[1:])
        beta = np.array([0.0, flat[0]])
    return Calibration("platt", slope=float(beta[0]), offset=float(beta[1]))


def _newton(
    design: np.ndarray, labels: np.ndarray, weight: np.ndarray, start: np.ndarray, pull: np.ndarray
) -> np.ndarray:
    def loss(b: np.ndarray) -> float:
        z = design @ b
        return float(weight @ (np.logaddexp(0.0, z) - labels * z) + 0.5 * pull @ (b - start) ** 2)

    beta = start.copy()
    for _ in range(50):
        p = _logistic(design @ beta)
        gradient = design.T @ (weight * (p - labels)) + pull * (beta - start)
        curvature = (design * (weight * p * (1.0 - p))[:, None]).T @ design + np.diag(pull)
        step = np.linalg.solve(curvature, gradient)
        size, here = 1.0, loss(beta)
        while size > 1e-6 and loss(beta - size * step) > here:
            size *= 0.5
        beta = beta - size * step
        if float(np.abs(size * step).max()) < 1e-10:
            break
    return beta


def _logistic(z: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(z))
    p: np.ndarray = np.where(z >= 0, 1.0, small) / (1.0 + small)
    return p
