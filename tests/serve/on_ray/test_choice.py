"""Which replica takes a request: hand-worked tables, and what holds whatever the replicas are."""

from __future__ import annotations

import asyncio
import hashlib
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from serve.on_ray.choice import ReplicaState, anywhere, least_loaded, nearest, picture_key

NAMES = st.lists(st.text("abcdef0123456789", min_size=4, max_size=8), unique=True, max_size=8)
PICTURES = [hashlib.sha256(bytes([n % 256, n // 256])).hexdigest() for n in range(400)]


@st.composite
def replicas(draw: st.DrawFn) -> list[ReplicaState]:
    few = st.integers(0, 3)
    return [ReplicaState(name, draw(st.booleans()), draw(few), draw(few)) for name in draw(NAMES)]


def idle(*names: str) -> list[ReplicaState]:
    return [ReplicaState(name) for name in names]


def test_fewest_tokens_then_the_shortest_queue() -> None:
    states = [
        ReplicaState("a", outstanding=640, queued=1),
        ReplicaState("b", outstanding=73, queued=9),
        ReplicaState("c", outstanding=73, queued=2),
        ReplicaState("dead", well=False),
    ]
    assert least_loaded(states, Random(0)) == [2, 1, 0]
    assert least_loaded(states[3:], Random(0)) == [0]  # better than nobody


def test_equals_share() -> None:
    random = Random(0)
    firsts = [least_loaded(idle("a", "b", "c"), random)[0] for _ in range(300)]
    assert all(60 < firsts.count(index) < 140 for index in range(3))
    firsts = [
        anywhere([*idle("a", "b"), ReplicaState("c", well=False)], random)[0] for _ in "x" * 99
    ]
    assert set(firsts) == {0, 1}


@given(replicas(), st.integers(), st.sampled_from(PICTURES), st.integers(0, 3))
def test_everybody_able_is_named_once(
    states: list[ReplicaState], seed: int, picture: str, slack: int
) -> None:
    able = [i for i, state in enumerate(states) if state.well] or list(range(len(states)))
    loaded = least_loaded(states, Random(seed))
    for order in (loaded, nearest(states, picture, slack), anywhere(states, Random(seed))):
        assert sorted(order) == able
    work = [(states[i].outstanding, states[i].queued) for i in loaded]
    assert work == sorted(work)


@given(NAMES.filter(lambda names: len(names) > 1), st.sampled_from(PICTURES), st.randoms())
def test_order_depends_on_names_only_and_survives_a_death(
    names: list[str], picture: str, random: Random
) -> None:
    order = [names[i] for i in nearest(idle(*names), picture, 0)]
    shuffled = random.sample(names, len(names))
    assert [shuffled[i] for i in nearest(idle(*shuffled), picture, 0)] == order
    gone = random.choice(names)
    left = [name for name in names if name != gone]
    assert [left[i] for i in nearest(idle(*left), picture, 0)] == [n for n in order if n != gone]


def test_pictures_spread_evenly_and_a_newcomer_takes_only_its_share() -> None:
    def homes(*names: str) -> list[str]:
        return [names[nearest(idle(*names), picture, 0)[0]] for picture in PICTURES]

    three, four = homes("a1", "b2", "c3"), homes("a1", "b2", "c3", "d4")
    assert all(100 < three.count(name) < 167 for name in ("a1", "b2", "c3"))
    moved = [(old, new) for old, new in zip(three, four, strict=True) if old != new]
    assert {new for _, new in moved} == {"d4"}
    assert 70 < len(moved) < 130


def test_a_busy_home_is_passed_over_for_the_second_only() -> None:
    names = ("a", "b", "c")
    first, second, third = nearest(idle(*names), PICTURES[0], 8)

    def order(*outstanding: int) -> list[int]:
        work = dict(zip((first, second, third), outstanding, strict=True))
        states = [ReplicaState(name, outstanding=work[i]) for i, name in enumerate(names)]
        return nearest(states, PICTURES[0], 8)

    assert order(8, 0, 0) == [first, second, third]
    assert order(9, 0, 0) == [second, first, third]
    assert order(9, 1, 0) == [first, second, third]
    assert order(99, 99, 0) == [first, second, third]  # a third copy helps nobody


def test_the_key_is_the_sha256_of_the_bytes() -> None:
    for data in (b"", b"x" * 70_000):
        assert asyncio.run(picture_key(data)) == hashlib.sha256(data).hexdigest()
