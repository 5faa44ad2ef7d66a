"""Features against literal loops, and against pictures whose answer is plain to see."""

import math
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.features.cells import cells_of, edge, extent, pieces, residual_energy
from router.features.schema import FEATURES_VERSION, GROUPS, feature_schema
from router.features.vector import (
    PictureFeatures,
    fixed_signs,
    folded,
    picture_features,
    question_features,
    reduced,
)
from router.features.words import normalised_words, word_features

SCALES, SIDE, DIM = (1, 4, 16, 64), 8, 12


def noise(seed: int = 0, side: int = SIDE, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((side * side, dim)).astype(np.float32)


def named(features: np.ndarray, scales: tuple[int, ...] = SCALES, side: int = SIDE) -> dict:
    schema = feature_schema(scales, side, DIM)
    assert features.shape == (len(schema.names),)
    return dict(zip(schema.names, features.tolist(), strict=True))


def asked(
    picture: PictureFeatures, relevance: np.ndarray, question: str = "which colour?"
) -> np.ndarray:
    return question_features(picture, relevance, question, np.ones(DIM, dtype=np.float32))


def cell_means(field: np.ndarray, side: int, k: int) -> list[float]:
    b = side // k
    means = []
    for row in range(k):
        for column in range(k):
            total = 0.0
            for i in range(b):
                for j in range(b):
                    total += float(field[(row * b + i) * side + column * b + j])
            means.append(total / b**2)
    return means


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_pooling_is_the_loop(seed: int) -> None:
    field = np.random.default_rng(seed).random(SIDE * SIDE).astype(np.float32)
    cells = cells_of(SCALES, SIDE)
    expected = [m for k in (1, 2, 4, 8) for m in cell_means(field, SIDE, k)]
    np.testing.assert_allclose(cells.pool(field[None])[0], expected, atol=1e-6)


def test_purity_and_fill_are_the_loop() -> None:
    grid, r = noise(), np.random.default_rng(1).random(SIDE * SIDE).astype(np.float32)
    picture = picture_features(grid, SCALES)
    got = named(asked(picture, r))
    for scale in SCALES:
        k = math.isqrt(scale)
        b = SIDE // k
        relevant = cell_means(r, SIDE, k)
        front = cell_means(picture.foreground, SIDE, k)
        purity = fill = 0.0
        for p in range(SIDE * SIDE):
            cell = (p // SIDE // b) * k + (p % SIDE) // b
            purity += r[p] * relevant[cell]
            fill += r[p] * min(1.0, relevant[cell] / front[cell])
        assert got[f"purity_{scale}"] == pytest.approx(purity / r.sum(), rel=1e-4)
        assert got[f"fill_{scale}"] == pytest.approx(fill / r.sum(), rel=1e-4)
        assert got[f"cell_max_{scale}"] == pytest.approx(max(relevant), rel=1e-5)
        top = int(r.argmax())
        cell = (top // SIDE // b) * k + (top % SIDE) // b
        assert got[f"cell_at_peak_{scale}"] == pytest.approx(relevant[cell], rel=1e-5)


def test_lost_detail_is_the_loop() -> None:
    grid, r = noise(2), np.random.default_rng(3).random(SIDE * SIDE).astype(np.float32)
    got = named(asked(picture_features(grid, SCALES), r))
    variance = float(((grid - grid.mean(0)) ** 2).sum() / len(grid))
    for k in (1, 2, 4):
        b = SIDE // k
        lost = np.zeros(SIDE * SIDE)
        for row in range(k):
            for column in range(k):
                members = [
                    (row * b + i) * SIDE + column * b + j for i in range(b) for j in range(b)
                ]
                centre = grid[members].mean(0)
                for p in members:
                    lost[p] = ((grid[p] - centre) ** 2).sum() / variance
        np.testing.assert_allclose(residual_energy(grid, SIDE, k) / variance, lost, rtol=1e-4)
        assert got[f"detail_mean_{k * k}"] == pytest.approx(lost.mean(), rel=1e-4)
        assert got[f"lost_{k * k}"] == pytest.approx((r @ lost) / r.sum(), rel=1e-4)
        marked = sorted(lost[p] for p in range(SIDE * SIDE) if r[p] >= 0.5 * r.max())
        for name, share in (("p50", 0.5), ("p90", 0.9), ("max", 1.0)):
            wanted = marked[int(share * (len(marked) - 1))]
            assert got[f"lost_{name}_{k * k}"] == pytest.approx(wanted, rel=1e-4)
    assert got["detail_mean_1"] == pytest.approx(1.0, rel=1e-4)  # the unit, by definition


def test_a_small_thing_is_impure_in_coarse_cells_and_a_large_one_is_not() -> None:
    picture = picture_features(noise(), SCALES)
    small, large = np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE))
    small[3, 5], large[0:4, 4:8] = 1.0, 1.0
    one, quarter = named(asked(picture, small.ravel())), named(asked(picture, large.ravel()))
    # A patch fills 1/64 of the picture, 1/16 of a 2x2 cell, 1/4 of a 4x4 cell, all of its own.
    purity = [one[f"purity_{s}"] for s in SCALES]
    assert purity == pytest.approx([1 / 64, 1 / 16, 1 / 4, 1.0], rel=1e-3)
    purity = [quarter[f"purity_{s}"] for s in SCALES]
    assert purity == pytest.approx([1 / 4, 1.0, 1.0, 1.0], rel=1e-3)
    assert (one["area"], quarter["area"]) == (1 / 64, 1 / 4)
    assert (one["extent_y"], quarter["extent_x"]) == (1 / 8, 4 / 8)
    assert one["effective_patches"] == pytest.approx(1 / 64)
    assert one["pieces"] == quarter["pieces"] == 1.0


def test_the_peak_map_forgives_a_readout_that_leaks_everywhere() -> None:
    picture = picture_features(noise(), SCALES)
    r = np.full((SIDE, SIDE), 0.05)
    r[3, 5] = 1.0
    r[0, 0] = 0.45  # below half of the peak: leaks as well
    got = named(asked(picture, r.ravel()))
    assert got["purity_peak_16"] == pytest.approx(1 / 4, rel=1e-4)
    assert got["area_peak"] == 1 / 64
    assert got["purity_16"] < 0.2
    r[7, 7] = 0.55  # above half: relevant
    assert named(asked(picture, r.ravel()))["area_peak"] == 2 / 64


def test_shapes_of_masks_by_hand() -> None:
    mask = np.zeros((6, 6), dtype=bool)
    assert (extent(mask, 0), edge(mask.astype(float)), pieces(mask)) == (0.0, 0.0, 0.0)
    mask[1:3, 1:3] = True
    mask[4, 5] = True
    assert pieces(mask) == 2.0
    assert (extent(mask, 0), extent(mask, 1)) == (4 / 6, 5 / 6)
    # The square has 8 sides, the patch at the right border 3 inside ones; 5 patches in all.
    assert edge(mask.astype(float)) == pytest.approx(11 / 5)
    ring = np.ones((3, 3), dtype=bool)
    ring[1, 1] = False
    assert pieces(ring) == 0.0  # one part, one hole


def test_foreground_is_what_differs_from_most_of_the_picture() -> None:
    grid = np.zeros((SIDE, SIDE, DIM), dtype=np.float32)
    grid[2:4, 2:4] = 5.0
    picture = picture_features(grid.reshape(-1, DIM), SCALES)
    inside = picture.foreground.reshape(SIDE, SIDE)[2:4, 2:4]
    assert inside.min() > 0.9
    assert picture.foreground.sum() == pytest.approx(inside.sum())


def test_degenerate_pictures_and_maps_give_finite_features() -> None:
    for grid in (np.zeros((64, DIM)), np.full((64, DIM), 1e4), noise(5) * 1e-12):
        picture = picture_features(grid, SCALES)
        for relevance in (np.zeros(64), np.ones(64), np.full(64, 1e-30)):
            assert np.isfinite(asked(picture, relevance, "")).all()


def test_broken_input_shows_as_nan_or_error_never_as_a_number() -> None:
    grid = noise()
    grid[3, 2] = np.nan
    assert np.isnan(asked(picture_features(grid, SCALES), np.ones(64))).any()
    picture = picture_features(noise(), SCALES)
    assert np.isnan(asked(picture, np.full(64, np.nan))).any()
    with pytest.raises(ValueError, match="relevance"):
        asked(picture, np.ones(63))
    with pytest.raises(ValueError, match="embedding"):
        question_features(picture, np.ones(64), "what?", np.ones((1, DIM)))
    with pytest.raises(ValueError, match=r"\(G\*G, D\)"):
        picture_features(np.zeros((63, DIM)), SCALES)
    with pytest.raises(ValueError, match="scale 9 is not a square whose side divides the 8x8"):
        picture_features(noise(), (1, 9))
    with pytest.raises(ValueError, match="scale 5 is not a square"):
        feature_schema((1, 5), SIDE, DIM)
    with pytest.raises(ValueError, match="ascend"):
        feature_schema((4, 1), SIDE, DIM)


def test_the_schema_names_every_column_once_and_hashes_what_matters() -> None:
    schema = feature_schema((1, 9, 36, 144, 576), 24, 192)
    assert len(set(schema.names)) == len(schema.names) == len(schema.groups)
    assert schema.version == FEATURES_VERSION
    assert schema.hash == feature_schema([1, 9, 36, 144, 576], 24, 192).hash
    others = [
        feature_schema((1, 9, 36, 144), 24, 192),
        feature_schema((1, 9, 36, 144, 576), 48, 192),
        feature_schema((1, 9, 36, 144, 576), 24, 193),
        feature_schema((1, 9, 36, 144, 576), 24, 192, "cosine"),
    ]
    assert len({schema.hash, *(other.hash for other in others)}) == 5
    everything = np.concatenate([schema.columns(group) for group in GROUPS])
    assert sorted(everything.tolist()) == list(range(len(schema.names)))
    with pytest.raises(ValueError, match="unknown groups"):
        schema.columns("pictures")


def test_scales_that_stop_short_of_the_grid() -> None:
    scales = (1, 16)
    got = named(asked(picture_features(noise(), scales), np.ones(64)), scales)
    assert "lost_16" in got
    assert "purity_64" not in got


def test_words_are_folded_and_hashed_the_same_for_ever() -> None:
    assert normalised_words("What's the COLOUR, №3 — ﬁsh_tank?") == [
        *("what", "s", "the", "colour", "no3", "fish", "tank"),
    ]
    group = word_features("Red red 7")
    assert group[:4].tolist() == [3.0, 7.0, 3.0, 1.0]
    assert group[4 + zlib.crc32(b"red") % 128] == 2.0
    assert group[4:].sum() == 3.0
    assert not word_features("").any()


def test_projections_keep_distances_and_never_change() -> None:
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((50, 1000)).astype(np.float32)
    narrow = folded(wide, 256)
    assert narrow.shape == (50, 256)
    before = ((wide[:, None] - wide[None]) ** 2).sum(-1)[np.triu_indices(50, 1)]
    after = ((narrow[:, None] - narrow[None]) ** 2).sum(-1)[np.triu_indices(50, 1)]
    assert (after / before).mean() == pytest.approx(1.0, abs=0.05)
    assert (after / before).std() < 0.2
    np.testing.assert_array_equal(folded(wide[:, :256], 256), wide[:, :256])
    assert np.linalg.norm(reduced(wide[0], 64)) == pytest.approx(np.linalg.norm(wide[0]), rel=0.4)
    assert reduced(wide[0, :64], 64) is not None
    assert reduced(wide[0, :64], 64).tolist() == wide[0, :64].tolist()
    # The first bits of shake_256("m3-router signs 2x4"), worked out apart from the code.
    assert fixed_signs(2, 4).tolist() == [[-1.0, -1.0, 1.0, 1.0], [1.0, -1.0, -1.0, -1.0]]
    assert abs(fixed_signs(1000, 64).mean()) < 0.02


def test_a_question_costs_well_under_a_millisecond() -> None:
    picture = picture_features(noise(0, 24, 192), (1, 9, 36, 144, 576))
    r = np.random.default_rng(0).random(576).astype(np.float32)
    embedding = np.ones(192, dtype=np.float32)
    laps = []
    for _ in range(50):
        started = time.perf_counter()
        question_features(picture, r, "What colour is the small star?", embedding)
        laps.append(time.perf_counter() - started)
    assert np.median(laps) < 3e-3  # 0.12 ms on a free core; ten times that is still no accident
