"""Looks: near copies share one, it is the same everywhere and for ever, other pictures differ."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.records import look_of, split_of, units_of


def drawn(seed: int, height: int = 96, width: int = 120) -> np.ndarray:
    """Return boxes on a plain ground: many blocks that are equal to the last bit."""
    random = np.random.default_rng(seed)
    rgb = np.full((height, width, 3), random.integers(60, 200, 3), np.uint8)
    for _ in range(6):
        y, x = int(random.integers(0, height - 20)), int(random.integers(0, width - 20))
        rgb[y : y + 24, x : x + 30] = random.integers(0, 256, 3)
    return rgb


def test_two_hundred_edits_by_one_level_are_one_unit() -> None:
    random = np.random.default_rng(1)
    for seed in range(10):
        picture, looks = drawn(seed), set()
        for _ in range(200):
            edited = picture.copy()
            y, x, c = (int(random.integers(n)) for n in picture.shape)
            edited[y, x, c] ^= 1
            looks.add(look_of(edited))
        assert looks == {look_of(picture)}
        assert len({split_of(look) for look in looks}) == 1


def test_noise_of_one_level_mostly_keeps_the_look() -> None:
    random, kept = np.random.default_rng(2), 0
    for seed in range(60):
        picture = drawn(seed)
        noise = random.integers(-1, 2, picture.shape)
        kept += look_of(np.clip(picture + noise, 0, 255).astype(np.uint8)) == look_of(picture)
    assert kept >= 55


@given(st.integers(0, 10_000), st.integers(2, 3))
def test_every_pixel_repeated_is_the_same_look(seed: int, times: int) -> None:
    picture = drawn(seed, 50, 41)  # no multiple of the blocks
    assert look_of(picture.repeat(times, axis=0).repeat(times, axis=1)) == look_of(picture)


def test_other_pictures_have_other_looks() -> None:
    assert len({look_of(drawn(seed)) for seed in range(200)}) >= 190


def test_looks_never_change() -> None:
    ramp = np.tile(np.arange(0, 180, 20, dtype=np.uint8)[None, :, None], (8, 1, 3))
    assert look_of(ramp) == "look:" + "ff" * 8  # every block is brighter than its left neighbour
    assert look_of(ramp[:, ::-1]) == "look:" + "00" * 8
    # Steps of 8, 1 and 1 grey levels: only the first reaches half of their mean square's root.
    steps = np.repeat(np.cumsum([0, 8, 1, 1, 8, 1, 1, 8, 1]), 1).astype(np.uint8)
    assert look_of(np.tile(steps[None, :, None], (8, 1, 3))) == "look:" + "92" * 8
    flat = np.full((30, 30, 3), 77, np.uint8)
    assert look_of(flat) == "look:" + "00" * 8
    speck = flat.copy()
    speck[4, 4] = 79  # far less than a level a block: still flat
    assert look_of(speck) == look_of(flat)
    assert look_of(np.zeros((1, 1, 3), np.uint8)) == "look:" + "00" * 8
    with pytest.raises(ValueError, match="uint8"):
        look_of(np.zeros((4, 4, 3)))


def test_a_known_picture_stays_in_its_unit() -> None:
    pictures, groups = ["a", "b", "a", "c", "b"], [None, "doc", "doc", "doc", None]
    assert units_of(pictures, groups) == ["a", "doc", "a", "doc", "doc"]
    grown = units_of([*pictures, "a", "c"], [*groups, "late", "later"])
    assert grown[:5] == units_of(pictures, groups)
    assert grown[5:] == ["a", "doc"]
    assert units_of(["a", "b"], [None, None]) == ["a", "b"]
