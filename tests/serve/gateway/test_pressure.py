"""The pressure of load: by a table, by properties, on a simulated queue with its own clock."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.gateway.pressure import HOLD_S, MEMORY_S, Pressure

RATE = 25.0  # answers a second that the simulated service can give
waits = st.floats(0.001, 100.0)
counts = st.integers(1, 500)


@dataclass
class Clock:
    """Seconds that pass when told."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def seen(wait_s: float, together: int, max_wait_s: float = 10.0) -> tuple[Pressure, Clock]:
    clock = Clock()
    pressure = Pressure(max_wait_s, 128, clock)
    pressure.begun(wait_s, together)
    return pressure, clock


@pytest.mark.parametrize(
    ("wait_s", "together", "inflight", "expected_s", "pressure"),
    [
        (0.1, 1, 1, 0.1, 0.0),  # alone
        (0.1, 1, 30, 0.3, 0.0),  # a burst on a service that was idle: nobody has waited yet
        (1.0, 10, 30, 3.0, 0.0),
        (4.0, 40, 40, 4.0, 0.0),
        (6.5, 65, 65, 6.5, 0.5),  # halfway from 5 s to 8 s
        (8.0, 20, 20, 8.0, 1.0),
        (8.0, 20, 10, 4.0, 0.0),  # half of them have left
        (0.1, 100, 64, 0.064, 0.0),  # half of the requests allowed
        (0.1, 100, 103, 0.103, 1.0),  # all but a fifth of them
    ],
)
def test_the_expected_wait_and_the_pressure(
    wait_s: float, together: int, inflight: int, expected_s: float, pressure: float
) -> None:
    of, _ = seen(wait_s, together)
    assert of.expected_s(inflight) == pytest.approx(expected_s)
    assert of.value(inflight) == pytest.approx(pressure)


def test_nothing_is_expected_before_the_first_answer_nor_long_after_the_last() -> None:
    assert Pressure(10.0, 128, Clock()).expected_s(100) == 0.0
    of, clock = seen(2.0, 1, max_wait_s=1.0)
    assert of.expected_s(9) > 1.0
    clock.now += MEMORY_S + 0.01
    assert of.expected_s(9) == 0.0
    of, clock = seen(2.0, 4, max_wait_s=1.0)
    for _ in range(20):  # nothing is answered, but there are some who wait
        clock.now += MEMORY_S / 2
        of.value(4)
    assert of.expected_s(4) == pytest.approx(2.0)
    clock.now += MEMORY_S + 0.01
    assert of.expected_s(4) == 0.0
    of.begun(0.1, 1)  # what was forgotten does not weigh
    assert of.expected_s(1) == pytest.approx(0.1)


@given(waits, counts, st.tuples(counts, counts))
def test_more_requests_are_never_less_pressure(
    wait_s: float, together: int, inflight: tuple[int, int]
) -> None:
    few, many = sorted(inflight)
    values = [seen(wait_s, together)[0].value(n) for n in (few, many)]
    assert 0.0 <= values[0] <= values[1] <= 1.0


@given(waits, counts, counts, st.lists(st.floats(0.0, 4.0), max_size=30))
def test_it_is_gone_ten_seconds_after_the_load_and_only_falls_on_the_way(
    wait_s: float, together: int, inflight: int, steps: list[float]
) -> None:
    of, clock = seen(wait_s, together, max_wait_s=100.0)
    values, begun = [of.value(inflight)], clock.now
    for step in steps:
        clock.now += step
        values.append(of.value(0))
    assert values == sorted(values, reverse=True)
    clock.now = max(clock.now, begun + 10.0)
    assert of.value(0) == 0.0


def test_nobody_is_refused_before_the_dearest_price_had_time_to_show() -> None:
    of, clock = seen(20.0, 10)
    assert of.value(30) == 1.0
    clock.now += HOLD_S - 0.01
    assert not of.refuses(30)
    clock.now += 0.02
    assert of.refuses(30)
    assert not of.refuses(3)  # 6 s to wait
    clock.now += 0.5
    of.value(1)  # a lull that pressure outlasts
    assert of.refuses(30)
    clock.now += 2.0
    of.value(1)
    assert not of.refuses(30)


@dataclass
class Queue:
    """One server, first come first served, that answers up to a third faster under pressure."""

    pressure: Pressure
    clock: Clock
    free_at: float = 0.0
    working: list[tuple[float, float, int]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    levels: list[float] = field(default_factory=list)
    refused_at: list[float] = field(default_factory=list)
    full_at: float | None = None

    def until(self, then: float) -> None:
        while self.working and self.working[0][0] <= then:
            end, arrived, together = heapq.heappop(self.working)
            self.clock.now = end
            self.pressure.begun(end - arrived, together)
            self.waits.append(end - arrived)
        self.clock.now = then

    def arrive(self) -> None:
        together, now = len(self.working) + 1, self.clock.now
        if self.pressure.refuses(together):
            self.refused_at.append(now)
            return
        level = self.pressure.value(together)
        self.levels.append(level)
        if level == 1.0 and self.full_at is None:
            self.full_at = now
        self.free_at = max(self.free_at, now) + (1.0 - level / 3.0) / RATE
        heapq.heappush(self.working, (self.free_at, now, together))

    def load(self, rate: float, seconds: float, chance: random.Random) -> None:
        end = self.clock.now + seconds
        while (then := self.clock.now + chance.expovariate(rate)) < end:
            self.until(then)
            self.arrive()
        self.until(end)


@pytest.mark.parametrize("max_wait_s", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("seed", range(3))
def test_three_times_too_much_is_waited_for_no_longer_than_set(
    max_wait_s: float, seed: int
) -> None:
    clock, chance = Clock(), random.Random(seed)
    queue = Queue(Pressure(max_wait_s, 10_000, clock), clock)
    queue.load(RATE / 10, 10.0, chance)
    assert not queue.refused_at
    queue.waits.clear()
    queue.load(3 * RATE, 60.0, chance)
    assert queue.full_at is not None
    assert queue.refused_at[0] - queue.full_at >= min(HOLD_S, max_wait_s)
    late = sorted(queue.waits)[int(0.95 * len(queue.waits))]
    assert late < 1.3 * max_wait_s
    assert len(queue.waits) > 0.9 * 60 * RATE  # refusing does not leave the server idle
    assert min(queue.levels[-500:]) > 0.8  # the price does not flutter while the load lasts
    queue.levels.clear()
    n_refused = len(queue.refused_at)
    for _ in range(40):  # one after another
        queue.until(clock.now + 0.4)
        queue.arrive()
    assert len(queue.refused_at) == n_refused
    assert queue.levels[0] > 0.0
    assert queue.levels[25:] == [0.0] * 15


@pytest.mark.parametrize("clients", [8, 30])
def test_bursts_and_closed_loops_are_let_in_by_default(clients: int) -> None:
    clock = Clock()
    queue = Queue(Pressure(10.0, 128, clock), clock)
    for _ in range(200):  # each asks again as soon as it was answered
        while len(queue.working) < clients:
            queue.arrive()
        queue.until(queue.working[0][0])
    assert not queue.refused_at
    assert max(queue.levels) == 0.0
