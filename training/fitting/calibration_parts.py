"""The two parts of the calibration pictures: who fits probabilities, who prices and certifies.

A certificate needs pictures that nothing in the predictor has seen. Boosters see the training
pictures; the two numbers a scale that map their scores to probabilities see a third of the
calibration pictures, by a hash of their own; the rest is untouched by the predictor. The price may
be chosen on that rest as well, because Learn-then-Test holds for every member of the family up to
the certified one at once, whoever chooses among them. Knows pictures and splits only.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from router.records import calibrates
from training.oracle.columns.names import numbered
from training.oracle.data import OracleData

SEPARATE: Literal["a third of the calibration pictures"] = "a third of the calibration pictures"
SHARED: Literal["all calibration pictures"] = "all calibration pictures"
MIN_PART_PICTURES = 20


def certifying(data: OracleData) -> OracleData:
    """Return the questions of the calibration pictures that no predictor has seen."""
    calibration = data.split("calibration")
    return calibration.take(~_fits(calibration))


def calibration_parts(data: OracleData) -> tuple[OracleData, OracleData, str]:
    """Return the questions that fit probabilities, those that choose the price, and the rule.

    With fewer than `MIN_PART_PICTURES` in a part both are the whole split, and a router fitted so
    cannot be certified; the rule, kept in its metadata, says which it was.
    """
    calibration = data.split("calibration")
    fits = _fits(calibration)
    parts = calibration.take(fits), calibration.take(~fits)
    if min(part.n_pictures for part in parts) < MIN_PART_PICTURES:
        return calibration, calibration, SHARED
    return (*parts, SEPARATE)


def _fits(calibration: OracleData) -> np.ndarray:
    names, inverse = numbered(calibration.units)
    return np.array([calibrates(name) for name in names.tolist()], dtype=bool)[inverse]
