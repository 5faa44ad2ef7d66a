"""Routing as promised, and a folder that comes back the same or not at all."""

import itertools
import json
import shutil
import threading
import time
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import router as package
from router.decision import Constraints, Reason, resolve_constraints
from router.errors import BudgetTooSmall, FeatureMismatch, RouterFileError, UnknownScale
from router.features.schema import feature_schema
from router.policy import Policy, choose, token_costs
from router.predictor.chain import ComplexityPredictor
from router.registry import current_router_path
from router.router import Router

SCALES = (1, 4, 16, 64)
SCHEMA = feature_schema(SCALES, 8, 6)
N_FEATURES = len(SCHEMA.names)


def data(n: int = 800) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, N_FEATURES)).astype(np.float32)
    p = 1.0 / (1.0 + np.exp(2.0 * X[:, :1] - np.array([-1.5, 0.0, 1.5, 3.0])))
    return X, rng.random(p.shape) < p


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return data()[0]


@pytest.fixture(scope="module")
def made() -> Router:
    X, Y = data()
    predictor = ComplexityPredictor(n_estimators=20, learning_rate=0.2, num_leaves=7).fit(X, Y)
    return Router(predictor, SCHEMA, Policy(token_costs(SCALES), 0.2), metadata={"data": "noise"})


@pytest.fixture
def folder(made: Router, tmp_path: Path) -> Path:
    return made.save_pretrained(tmp_path / "router")


def test_route_is_the_policy_on_the_predictions(made: Router, rows: np.ndarray) -> None:
    values = made.predict_values(rows[:100])
    seen = set()
    for row, value in zip(rows[:100], values, strict=True):
        decision = made.route(row)
        assert decision.scale == SCALES[choose(value, made.policy.costs, 0.2)]
        assert decision.visual_tokens == decision.scale
        assert decision.reason is Reason.predicted
        assert decision.p_suffices == pytest.approx(dict(zip(SCALES, value, strict=True)))
        assert (decision.price, decision.router_version) == (0.2, made.version)
        assert decision.explanation is None
        seen.add(decision.scale)
    assert len(seen) >= 3  # the data call for more than one answer


def test_a_pin_wins_and_still_tells_the_predictions(made: Router, rows: np.ndarray) -> None:
    decision = made.route(rows[0], Constraints(pinned=16, reason=Reason.detail))
    assert (decision.scale, decision.reason) == (16, Reason.detail)
    assert decision.p_suffices is not None
    blind = made.route(None, Constraints(pinned=16), n_pictures=3)
    assert (blind.scale, blind.visual_tokens, blind.reason) == (16, 48, Reason.pinned)
    assert blind.scales == (16, 16, 16)
    assert blind.p_suffices is None
    with pytest.raises(UnknownScale):
        made.route(rows[0], Constraints(pinned=9))
    with pytest.raises(BudgetTooSmall, match="at least 64"):
        made.route(rows[0], Constraints(pinned=64, max_visual_tokens=63))
    with pytest.raises(ValueError, match="features are needed"):
        made.route(None)


def test_a_cap_is_kept_and_said(made: Router, rows: np.ndarray) -> None:
    for row in rows[:60]:
        free = made.route(row)
        for cap in (1, 3, 4, 16, 63, 64, 1000):
            capped = made.route(row, Constraints(max_visual_tokens=cap))
            assert capped.visual_tokens <= cap
            if free.scale <= cap:
                assert (capped.scale, capped.reason) == (free.scale, Reason.predicted)
            else:
                assert capped.reason is Reason.budget_cap
    with pytest.raises(BudgetTooSmall):
        made.route(rows[0], Constraints(max_visual_tokens=0))


def test_each_picture_of_a_request_has_its_scale(made: Router, rows: np.ndarray) -> None:
    seen = set()
    for start in range(0, 60, 3):
        three = rows[start : start + 3]
        decision = made.route(three)
        assert decision.scales == tuple(made.route(row).scale for row in three)
        assert (decision.scale, decision.reason) == (max(decision.scales), Reason.predicted)
        assert decision.visual_tokens == sum(decision.scales)
        mean = made.predict_values(three).mean(axis=0)
        assert decision.p_suffices == pytest.approx(dict(zip(SCALES, mean, strict=True)))
        seen.add(len(set(decision.scales)))
    assert seen >= {2, 3}
    assert made.route(rows[0]).scales == (made.route(rows[0]).scale,)


def test_pictures_of_a_request_share_the_cap_by_value(made: Router, rows: np.ndarray) -> None:
    costs, capped = np.array(made.policy.costs), 0
    for start in range(0, 60, 3):
        three = rows[start : start + 3]
        utilities = made.predict_values(three) - 0.2 * costs
        for cap in (3, 14, 22, 60, 130):
            decision = made.route(three, Constraints(max_visual_tokens=cap))
            best = max(
                sum(utilities[i, k] for i, k in enumerate(picks))
                for picks in itertools.product(range(4), repeat=3)
                if sum(SCALES[k] for k in picks) <= cap
            )
            picks = [SCALES.index(scale) for scale in decision.scales]
            assert utilities[range(3), picks].sum() == pytest.approx(best, abs=1e-6)
            assert decision.visual_tokens == sum(decision.scales) <= cap
            free = sum(made.route(three).scales) <= cap
            assert decision.reason is (Reason.predicted if free else Reason.budget_cap)
            capped += not free
    assert capped > 20
    with pytest.raises(BudgetTooSmall, match="3 pictures at the coarsest scale 1 needs 3"):
        made.route(three, Constraints(max_visual_tokens=2))


def test_pinned_pictures_take_their_tokens_first(made: Router, rows: np.ndarray) -> None:
    three = rows[:3]
    free = made.route(three).scales
    one = made.route(three, Constraints(pins=(None, 64, None)))
    assert (one.scales, one.reason) == ((free[0], 64, free[2]), Reason.predicted)
    capped = made.route(three, Constraints(pins=(None, 64, None), max_visual_tokens=66))
    assert capped.scales == (1, 64, 1)
    all_three = Constraints(pins=(4, 64, 1))
    for features in (three, None):
        decision = made.route(features, all_three, n_pictures=3)
        assert (decision.scales, decision.reason) == ((4, 64, 1), Reason.detail)
        assert (decision.scale, decision.visual_tokens) == (64, 69)
    with pytest.raises(BudgetTooSmall, match="at least 66"):
        made.route(three, Constraints(pins=(None, 64, None), max_visual_tokens=65))
    with pytest.raises(UnknownScale):
        made.route(three, Constraints(pins=(None, 9, None)))
    with pytest.raises(ValueError, match="features are needed"):
        made.route(None, Constraints(pins=(None, 64, None)), n_pictures=3)
    with pytest.raises(ValueError, match="features of 3 pictures for a request with 2"):
        made.route(three, n_pictures=2)


def test_no_picture_no_tokens(made: Router) -> None:
    constraints = resolve_constraints(scales=SCALES, n_pictures=0)
    decision = made.route(None, constraints)
    assert (decision.scale, decision.visual_tokens) == (0, 0)
    assert decision.reason is Reason.no_image


def test_latency_is_the_time_it_took(made: Router, rows: np.ndarray) -> None:
    made.route(rows[0])
    started = time.perf_counter()
    decision = made.route(rows[0])
    outside = (time.perf_counter() - started) * 1e3
    assert 0.0 < decision.latency_ms <= outside


def test_broken_features_raise_and_are_named(made: Router, rows: np.ndarray) -> None:
    bad = rows[0].copy()
    bad[SCHEMA.names.index("purity_16")] = np.nan
    with pytest.raises(ValueError, match="purity_16 is not finite"):
        made.route(bad)
    for wrong in (rows[0][:-1], rows[:0], rows[None, :2]):
        with pytest.raises(FeatureMismatch, match=f"{N_FEATURES}"):
            made.route(wrong)


def test_threads_get_the_same_answers_as_one(made: Router, rows: np.ndarray) -> None:
    expected = [made.route(row).p_suffices for row in rows[:100]]
    got: dict[int, list[Any]] = {}

    def work(name: int) -> None:
        got[name] = [made.route(row).p_suffices for row in rows[:100]]

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(got[name] == expected for name in range(4))


def test_another_price_is_another_version_of_the_same_predictor(
    made: Router, rows: np.ndarray
) -> None:
    free = made.with_policy(Policy(made.policy.costs, 0.0), {"why": "test"})
    assert free.version != made.version
    assert free.metadata == {"data": "noise", "why": "test"}
    assert free.route(rows[0]).p_suffices == made.route(rows[0]).p_suffices
    tokens = [sum(r.route(row).visual_tokens for row in rows[:50]) for r in (free, made)]
    assert tokens[0] > tokens[1]


def test_parts_that_do_not_fit_are_refused(made: Router) -> None:
    with pytest.raises(FeatureMismatch):
        Router(made.predictor, feature_schema(SCALES, 8, 5), made.policy)
    with pytest.raises(ValueError, match="must be equal"):
        Router(made.predictor, SCHEMA, Policy((0.1, 1.0), 0.2))


def test_a_folder_comes_back_the_same(
    made: Router, folder: Path, rows: np.ndarray, tmp_path: Path
) -> None:
    back = Router.from_pretrained(folder)
    assert back.version == made.version
    assert (back.scales, back.price, back.policy) == (made.scales, made.price, made.policy)
    assert (back.metadata, back.schema, back.card_text) == (
        made.metadata,
        made.schema,
        made.card_text,
    )
    np.testing.assert_array_equal(back.predict_values(rows), made.predict_values(rows))
    again = back.save_pretrained(tmp_path / "again")
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        *("README.md", "calibration.json", "config.json"),
        *("scale_0001.txt", "scale_0004.txt", "scale_0016.txt", "scale_0064.txt", "schema.json"),
    ]
    for name in names:
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_only_what_decides_counts_for_the_version(made: Router, folder: Path) -> None:
    (folder / "README.md").write_text("another card")
    (folder / "report.json").write_text("{}")
    back = Router.from_pretrained(folder)
    assert (back.version, back.card_text) == (made.version, "another card")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"price": 0.3}))
    edited = Router.from_pretrained(folder)
    assert edited.price == 0.3
    assert edited.version != made.version


def test_saving_over_a_router_of_other_scales_leaves_no_stale_booster(
    made: Router, folder: Path
) -> None:
    (folder / "scale_0576.txt").write_text("left over")
    made.save_pretrained(folder)
    assert not (folder / "scale_0576.txt").exists()
    assert Router.from_pretrained(folder).version == made.version


def damage(name: str, old: str, new: str) -> Any:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return change


DAMAGES = {
    "missing calibration.json": lambda f: (f / "calibration.json").unlink(),
    "missing scale_0016.txt": lambda f: (f / "scale_0016.txt").unlink(),
    "scale_0004.txt is not the file": damage("scale_0004.txt", "leaf_value=", "leaf_value=1"),
    "scale_0001.txt is not the file": lambda f: (f / "scale_0001.txt").write_text("tree\n"),
    "boosters of other scales: scale_0576.txt": lambda f: shutil.copy(
        f / "scale_0064.txt", f / "scale_0576.txt"
    ),
    "config.json is damaged": lambda f: (f / "config.json").write_text('{"format": 1,'),
    "holds no JSON object": lambda f: (f / "schema.json").write_text("[]"),
    "of format 3; this program reads format 1 and 2": damage(
        "config.json", '"format": 1', '"format": 3'
    ),
    "missing actions.json": damage("config.json", '"format": 1', '"format": 2'),
    "actions.json in a folder of format 1": lambda f: (f / "actions.json").write_text("[]"),
    "price must be finite": damage("config.json", '"price": 0.2', '"price": NaN'),
    "fitted on other features": damage("schema.json", '"purity_16"', '"purity_17"'),
    "but the schema has": damage("config.json", '"scales": [\n  1,', '"scales": [\n  2,'),
    "the probe row now gives": damage("calibration.json", '"slope": ', '"slope": 1'),
    "no monotone map": damage("calibration.json", '"slope": ', '"slope": NaN, "was": '),
    "calibration.json is damaged": damage("calibration.json", '"probe_row"', '"row"'),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_a_damaged_folder_is_refused_in_words(folder: Path, said: str) -> None:
    DAMAGES[said](folder)
    with pytest.raises(RouterFileError, match=said) as caught:
        Router.from_pretrained(folder)
    assert str(folder) in str(caught.value)


def test_features_of_another_version_are_refused(folder: Path) -> None:
    for name in ("schema.json", "config.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(
            text.replace('"version": 1', '"version": 0').replace(SCHEMA.hash, "0" * 12)
        )
    with pytest.raises(RouterFileError, match="fit it again"):
        Router.from_pretrained(folder)


def test_a_missing_folder_is_a_sentence_not_a_download(tmp_path: Path) -> None:
    for wrong in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "./nowhere", Path("a/b")):
        with pytest.raises(RouterFileError, match="no such folder"):
            Router.from_pretrained(wrong)


def test_push_to_hub_uploads_the_saved_folder(made: Router) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class Hub:
        def create_repo(self, repo_id: str, **options: Any) -> None:
            calls.append((repo_id, options))

        def upload_folder(self, *, folder_path: str, **options: Any) -> str:
            calls.append((Router.from_pretrained(folder_path).version, options))
            return "https://hub/commit/1"

    address = made.push_to_hub("me/router", private=True, api=Hub())
    assert address == "https://hub/commit/1"
    (repo, options), (version, upload) = calls
    assert (repo, options["private"], options["exist_ok"]) == ("me/router", True, True)
    assert version == made.version
    assert (upload["repo_id"], upload["commit_message"]) == ("me/router", f"router {made.version}")
    # What an earlier router of other actions left there goes; what others put there stays.
    there = {
        "scale_0576.txt", "focus_02.txt", "actions.json", "second_look.json", "certificate.json",
        "report.json", "README.md", "config.json",
    }  # fmt: skip
    stale = {name for name in there if any(map(partial(fnmatch, name), upload["delete_patterns"]))}
    assert there - stale == {"report.json", "README.md", "config.json"}


def test_the_registry_names_the_router_in_force(tmp_path: Path) -> None:
    assert current_router_path(tmp_path / "nowhere") is None
    assert current_router_path(tmp_path) is None
    (tmp_path / "20261122-abcd").mkdir()
    (tmp_path / "current").write_text("20261122-abcd\n")
    assert current_router_path(tmp_path) == tmp_path / "20261122-abcd"
    for wrong in ("gone", "", "..", "../elsewhere", "/etc"):
        (tmp_path / "current").write_text(wrong)
        with pytest.raises(RouterFileError, match="current"):
            current_router_path(tmp_path)


def test_the_package_imports_light_and_exports_what_it_says(python: Any) -> None:
    script = (
        "import sys, router\n"
        "heavy = {'torch', 'ray', 'transformers'}\n"
        "light = heavy | {'lightgbm', 'sklearn', 'pyarrow'}\n"
        "assert not light & set(sys.modules), light & set(sys.modules)\n"
        "from router import Router, ComplexityPredictor\n"
        "for name in router.__all__: getattr(router, name)\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    assert package.__all__ == sorted(package.__all__)
    assert set(package.__all__) == {*package._HOMES, "default_router_path"}
    assert package.default_router_path().name == "m3-mini"
    with pytest.raises(AttributeError, match="no attribute 'Ruter'"):
        _ = package.Ruter


def test_the_shipped_router_loads_where_there_is_one() -> None:
    path = package.default_router_path()
    if not path.is_dir():
        pytest.skip("no router has been fitted for m3-mini yet")
    shipped = Router.from_pretrained(path)
    assert shipped.scales == (1, 9, 36, 144, 576)
    decision = shipped.route(shipped.predictor.probe_row_)
    assert decision.scale in shipped.scales
