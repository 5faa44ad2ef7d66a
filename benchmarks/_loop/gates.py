"""Gates on generated outcomes: how often the gate lets a router through whose truth is known.

Each picture has one question. The finest scale is right on `FINEST` of them; whoever differs from
another policy does so on `DIFFER` of the answers, in both directions, and by its gain more often in
one. Fresh pictures are drawn for every gate. Knows the gate's numbers; knows nothing of routers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.promotion.weighing import GATE_PICTURES, Evidence, Floor, Played, Verdict, weigh

Array = NDArray[np.float64]
FINEST, KEPT, DIFFER = 0.93, -0.003, 0.04  # accuracy; what the reference gains; share of answers
SCALES = np.array([1.0, 9.0, 36.0, 144.0, 576.0])
CHOSEN = (0.15, 0.2, 0.25, 0.2, 0.2)  # how often the router in force reads each scale
TARGET = 0.995


@dataclass(frozen=True)
class Gates:
    """The three figures of a report, as shares and in points."""

    worse_passes: float
    equal_cheaper_passes: float
    ratchet_points: float


def simulated(
    gates: int = 200, pictures: int = GATE_PICTURES, candidates: int = 20, seed: int = 0
) -> Gates:
    """Return how often a router 2 points worse passes, how often an equal one that is a tenth
    cheaper does, and how many points ``candidates`` that lose .4 each lose together."""
    rng = np.random.default_rng(seed)
    worse = [gate(rng, pictures, gain=-0.02).passed for _ in range(gates)]
    equal = [gate(rng, pictures, gain=0.0).passed for _ in range(gates)]
    return Gates(
        float(np.mean(worse)), float(np.mean(equal)), ratchet(rng, pictures, candidates, 0.004)
    )


def gate(
    rng: np.random.Generator,
    pictures: int,
    *,
    gain: float,
    cheaper: float = 0.1,
    lost: float = 0.0,
) -> Verdict:
    """Return the verdict on one candidate.

    Args:
        gain: of its accuracy over the router in force.
        cheaper: share of the tokens that it saves.
        lost: by how much the router in force is worse than the reference; 0: it is the reference.
    """
    finest = (rng.random(pictures) < FINEST).astype(float)
    reference = changed(rng, finest, FINEST, KEPT)
    incumbent = reference
    if lost:
        incumbent = changed(rng, reference, FINEST + KEPT, -lost)
    candidate = changed(rng, incumbent, FINEST + KEPT - lost, gain)
    before = rng.choice(SCALES, pictures, p=CHOSEN)
    after = fewer_tokens(rng, before, cheaper)
    return weigh(
        Evidence(
            units=np.arange(pictures),
            candidate=Played("candidate", candidate, after),
            incumbent=Played("incumbent", incumbent, before),
            reference=Played("reference", reference, before) if lost else None,
            finest=finest,
            floor=Floor(TARGET),
            most_tokens=SCALES[-1],
        )
    )


def ratchet(rng: np.random.Generator, pictures: int, candidates: int, lost: float) -> float:
    """Return the points lost in the end, where each of many candidates is a little worse than what
    is live when it comes, and goes live if the gate lets it."""
    together = 0.0
    for _ in range(candidates):
        if gate(rng, pictures, gain=-lost, lost=together).passed:
            together += lost
    return 100.0 * together


def changed(rng: np.random.Generator, right: Array, accuracy: float, gain: float) -> Array:
    """Return answers of which `DIFFER` differ from ``right``, better by ``gain`` in the mean."""
    lost, won = (DIFFER - gain) / 2 / accuracy, (DIFFER + gain) / 2 / (1 - accuracy)
    flips = rng.random(len(right)) < np.where(right > 0, lost, won)
    return np.where(flips, 1.0 - right, right)


def fewer_tokens(rng: np.random.Generator, before: Array, share: float) -> Array:
    """Return the tokens of a router that saves a share: it reads some pictures otherwise, mostly
    more coarsely."""
    step = rng.choice([-1, 0, 1], len(before), p=(0.24, 0.68, 0.08))
    moved = SCALES[np.clip(np.searchsorted(SCALES, before) + step, 0, len(SCALES) - 1)]
    mean = np.average(SCALES, weights=CHOSEN)
    return np.where(rng.random(len(before)) < share * mean / _full_saving(), moved, before)


def _full_saving() -> float:
    """Return the tokens that moving every picture would save."""
    up = SCALES[np.minimum(np.arange(5) + 1, 4)]
    down = SCALES[np.maximum(np.arange(5) - 1, 0)]
    return float(np.average(0.24 * (SCALES - down) + 0.08 * (SCALES - up), weights=CHOSEN))
