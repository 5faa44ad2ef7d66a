"""The simulated gates: what is generated is what is said, and the gate keeps its word on it."""

import numpy as np
from _loop import gates


def test_what_is_generated_has_the_differences_asked_for() -> None:
    rng = np.random.default_rng(0)
    right = (rng.random(400_000) < 0.9).astype(float)
    other = np.asarray(gates.changed(rng, right, 0.9, -0.02))
    assert abs((other != right).mean() - gates.DIFFER) < 0.001
    assert abs((other - right).mean() + 0.02) < 0.001
    before = rng.choice(gates.SCALES, 400_000, p=gates.CHOSEN)
    after = gates.fewer_tokens(rng, before, 0.1)
    assert abs(after.mean() / before.mean() - 0.9) < 0.005


def test_the_gate_on_generated_outcomes() -> None:
    """A scaled-down form of the benchmark: the truth of every candidate is known."""
    rng = np.random.default_rng(0)
    assert not any(gates.gate(rng, 2000, gain=-0.02).passed for _ in range(30))
    passed = [gates.gate(rng, gates.GATE_PICTURES, gain=0.0).passed for _ in range(20)]
    assert np.mean(passed) >= 0.8
    # Each loses .4: two may pass one after the other, the floor and the reference stop the third.
    assert 0.0 < gates.ratchet(rng, gates.GATE_PICTURES, 20, 0.004) <= 1.0
