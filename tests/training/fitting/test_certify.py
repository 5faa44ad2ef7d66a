"""`m3-train certify`: on which pictures, what is written, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from router import Certificate, Policy, Router, SecondLook
from router.certificate.promise import CERTIFICATE_FILE
from router.certificate.proof import mean_by_picture, question_losses
from router.features.schema import feature_schema
from router.records import OracleRecord, calibrates, split_of, to_table
from router.second_look import Gate
from training.cli.certify import _sentences
from training.errors import MixedData, NotEnoughData, ScoresSayNothing, TrainingError
from training.fitting.calibration_parts import SEPARATE, SHARED, calibration_parts, certifying
from training.fitting.certified import certified_router
from training.fitting.certify import certify
from training.fitting.fit import fit
from training.oracle.data import read_oracle

SCALES = (1, 9, 36)
SCHEMA = feature_schema(SCALES, 6, 4)


def write_oracle(folder: Path, pictures: int) -> Path:
    """Write two questions a picture; one feature tells the scale each needs."""
    rng = np.random.default_rng(3)
    records = []
    for picture in range(pictures):
        for question in range(2):
            need = int(rng.integers(3))
            scores = tuple(float(k >= need) for k in range(3))
            features = rng.normal(size=len(SCHEMA.names)).astype(np.float32)
            features[0] = need + 0.1 * rng.normal()
            records.append(
                OracleRecord(
                    picture_id=f"{picture:064d}", question_id=f"{picture}-{question}",
                    question=f"what {question}?", kind="ab"[question], dataset="made",
                    reference="x",
                    source="scenes", scales=SCALES, answers=("x",) * 3, scores=scores,
                    p_reference=scores, confidence=scores, visual_tokens=SCALES,
                    features=features, feature_schema=SCHEMA.hash, model_hash="feed",
                )
            )  # fmt: skip
    folder.mkdir(parents=True)
    pq.write_table(to_table(records, OracleRecord), folder / "oracle-00000.parquet")
    content = {
        "model_hash": "feed", "feature_schema": SCHEMA.hash, "scales": list(SCALES),
        "grid_side": 6, "embedding_dim": 4, "relevance": SCHEMA.relevance,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_oracle(tmp_path_factory.mktemp("oracle") / "a", 900)


@pytest.fixture(scope="module")
def data(oracle: Path):
    return read_oracle([oracle])


@pytest.fixture(scope="module")
def router(data) -> Router:
    return fit(data).router


def test_certifying_pictures_are_seen_by_nothing_in_the_predictor(data, monkeypatch) -> None:
    import training.fitting.fit as fitting

    seen: set[str] = set()

    def spy(features, train, calibration, labels, progress, grow=None):
        seen.update(train.picture_ids.tolist(), calibration.picture_ids.tolist())
        raise InterruptedError

    monkeypatch.setattr(fitting, "fit_predictor", spy)
    with pytest.raises(InterruptedError):
        fitting.fit(data)
    names = set(certifying(data).picture_ids.tolist())
    assert names
    assert not names & seen
    assert all(split_of(name) == "calibration" and not calibrates(name) for name in names)


def test_a_third_of_the_calibration_pictures_fits_probabilities(data) -> None:
    fits, prices, rule = calibration_parts(data)
    assert rule == SEPARATE
    assert fits.n_pictures + prices.n_pictures == data.split("calibration").n_pictures
    assert abs(fits.n_pictures / data.split("calibration").n_pictures - 1 / 3) < 0.1
    few = data.take(data.pictures < 100)
    fits, prices, rule = calibration_parts(few)
    assert rule == SHARED
    assert len(fits) == len(prices) == len(few.split("calibration"))


def test_the_certificate_says_what_it_rests_on(router, data) -> None:
    seen: list[tuple[int, int, str]] = []
    found = certify(
        router, data, loss="harm", bound=0.1, progress=lambda *call: seen.append(call)
    )  # fmt: skip
    assert [done for done, *_ in seen] == list(range(seen[0][1] + 1))
    assert {"harm of at most 0.1", "made/b by itself"} <= {now for *_, now in seen}
    on = certifying(data)
    assert (found.pictures, found.questions) == (on.n_pictures, len(on))
    assert found.finest_right == 1.0
    assert [each.finest_right for each in found.slices] == [1.0, 1.0]
    assert (found.model_hash, found.feature_schema) == ("feed", SCHEMA.hash)
    assert found.predictor_hash == router.predictor_hash
    assert found.method == "betting"
    assert "mean over pictures" in found.population
    assert [rung.bound for rung in found.ladder] == sorted(rung.bound for rung in found.ladder)
    assert found.rung.price is not None
    assert found.rung.visual_tokens < 25  # a third each would need 15.3
    bounds = [rung.visual_tokens for rung in found.ladder]
    assert bounds == sorted(bounds, reverse=True)
    # The policy that is certified is the one that is served: the same loss, row by row.
    served = certified_router(router, found)
    picks = np.array([SCALES.index(served.route(row).scale) for row in on.features])
    lost = mean_by_picture(question_losses(on.scores, picks, "harm"), on.pictures)
    assert lost.mean() == pytest.approx(found.rung.loss)
    assert [each.name for each in found.slices] == ["made/a", "made/b"]
    for each in found.slices:
        assert each.loss <= each.upper
        assert (each.upper <= 0.1) == (each.floor == 1)


def test_names_that_tell_which_pictures_are_easy_win_no_bets(router, data) -> None:
    """Sessions named by their date, looks from flat to busy: the order of names is no chance."""
    on = certifying(data)
    at_9 = np.full(len(on), SCALES.index(9))
    lost = mean_by_picture(question_losses(on.scores, at_9, "harm"), on.pictures)
    names = np.unique(on.units)
    told = {}
    for name, loss in zip(names.tolist(), lost, strict=True):
        tried = (f"{'hard' if loss else 'easy'}-{name[-6:]}-{number}" for number in range(1000))
        told[name] = next(n for n in tried if split_of(n) == "calibration" and not calibrates(n))
    units = np.array([told.get(name, name) for name in data.units.tolist()])
    found = certify(router, replace(data, units=units), loss="harm", bound=0.1)
    fair = certify(router, data, loss="harm", bound=0.1)
    assert found.pictures == fair.pictures
    assert all(rung.loss < rung.bound for rung in found.ladder if rung.price is not None)
    assert found.rung.loss == pytest.approx(fair.rung.loss, abs=0.02)
    assert all(each.loss <= each.upper for each in found.slices)


def test_a_price_by_certificate_drops_the_second_look_and_says_so(router, data) -> None:
    gate = Gate(0.0, 0.0, 1.0, 0.0)
    rows = tuple((gate,) * (len(SCALES) - start) for start in range(len(SCALES) - 1))
    look = SecondLook(tuple(map(str, SCALES)), rows, 0.1, 0.1)
    looking = Router(
        router.predictor, router.schema, router.policy, metadata=router.metadata, second_look=look
    )
    found = certify(looking, data, loss="harm", bound=0.1)
    for keep, says in ((False, "is dropped"), (True, "get no second look")):
        made = certified_router(looking, found, keep_price=keep)
        assert (made.second_look == look, made.second_look is None) == (keep, not keep)
        assert made.held.certificate == found
        assert any(says in line for line in _sentences(found, looking, keep))


def test_one_question_a_picture_is_certified_by_clopper_pearson(router, data) -> None:
    first = np.unique(data.pictures, return_index=True)[1]
    alone = data.take(first)
    assert certify(router, alone, loss="harm", bound=0.1).method == "clopper_pearson"
    assert certify(router, alone, loss="drop", bound=0.1).method == "betting"


def test_what_cannot_be_certified_is_refused(router, data) -> None:
    for bound in (0.0, 1.0, float("nan")):
        with pytest.raises(TrainingError, match="--max-drop must be between"):
            certify(router, data, loss="drop", bound=bound)
    with pytest.raises(MixedData, match="fitted for model feed"):
        certify(router, replace(data, model_hash="beef"), loss="harm", bound=0.1)
    told = router.with_policy(router.policy, {"label_recipe": "ab-float32-16"})
    with pytest.raises(MixedData, match=r"recipe ab-float32-16.* cd-float32: another tok"):
        certify(told, replace(data, label_recipe="cd-float32"), loss="harm", bound=0.1)
    with pytest.raises(NotEnoughData, match="pictures can certify"):
        certify(router, data.take(data.pictures < 30), loss="harm", bound=0.1)
    seen = router.with_policy(router.policy, {"calibrated_on": SHARED})
    with pytest.raises(TrainingError, match="fit it again"):
        certify(seen, data, loss="harm", bound=0.1)


def test_the_command_writes_certificate_price_and_card(
    router, oracle: Path, tmp_path: Path, command
) -> None:
    folder = router.save_pretrained(tmp_path / "router")
    words = ("--oracle", oracle, "--router", folder)
    done = command("m3-train", "certify", *words, "--max-harm", 0.1)
    assert done.returncode == 0, done.stderr
    assert "0.1 (asked)" in done.stdout
    assert "made/a" in done.stdout
    after = Router.from_pretrained(folder)
    found = after.held.certificate
    assert found == Certificate.from_bytes((folder / CERTIFICATE_FILE).read_bytes())
    assert after.policy.price == found.rung.price
    assert "## Certificate\n\nHarm of at most 0.1, 0.95 sure" in (folder / "README.md").read_text()
    words += ("--max-drop", 0.1, "--keep-price", "--out", tmp_path / "b")
    done = command("m3-train", "certify", *words)
    assert done.returncode == 0, done.stderr
    other = Router.from_pretrained(tmp_path / "b")
    assert other.policy.price == after.policy.price
    assert other.held.certificate.loss == "drop"
    assert (tmp_path / "b" / "README.md").read_text().count("## Certificate") == 1
    assert Router.from_pretrained(folder).held.certificate == found


def test_infeasible_falls_back_to_always_the_finest_and_says_so(
    router, oracle: Path, tmp_path: Path, command
) -> None:
    folder = router.save_pretrained(tmp_path / "router")
    done = command(
        "m3-train", "certify", "--oracle", oracle, "--router", folder, "--max-harm", 0.0005
    )
    assert done.returncode == 0
    assert "only always the finest scale 36 does, so the router now always takes it" in done.stderr
    assert "always the finest" in done.stdout
    after = Router.from_pretrained(folder)
    assert after.policy == Policy(router.policy.costs, 0.0, router.policy.cost_unit, True)
    assert after.route(np.zeros(len(SCHEMA.names), np.float32)).scale == 36


def test_the_installed_router_is_certified_into_another_folder(
    router, oracle: Path, tmp_path: Path, command, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = router.save_pretrained(tmp_path / "package")
    before = sorted(path.name for path in shipped.iterdir())
    monkeypatch.setattr("router.default_router_path", lambda: shipped)
    monkeypatch.chdir(tmp_path)
    done = command("m3-train", "certify", "--oracle", oracle, "--max-harm", 0.1)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in shipped.iterdir()) == before
    assert (tmp_path / "runs/router-certified" / CERTIFICATE_FILE).is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "exactly one of --max-harm and --max-drop"),
        (["--max-harm", "0.1", "--max-drop", "0.1"], "exactly one of"),
        (["--max-harm", "2"], "--max-harm must be between 0 and 1"),
        (["--max-harm", "0.1", "--delta", "0"], "--delta must be between 0 and 1"),
        (["--max-harm", "0.1", "--router", "nowhere"], "not a router folder"),
        (["--max-harm", "0.1", "--oracle", "nowhere"], "no oracle data"),
    ],
)
def test_bad_input_is_one_line(
    router, oracle: Path, tmp_path: Path, command, words: list[str], says: str
) -> None:
    folder = router.save_pretrained(tmp_path / "router")
    done = command("m3-train", "certify", "--oracle", oracle, "--router", folder, *words)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert says in done.stderr.splitlines()[-1]
    assert not (folder / CERTIFICATE_FILE).exists()


@pytest.mark.parametrize(
    ("scores", "says"), [(0.0, "right on 0.0% of"), (1.0, "every action scores the same on each")]
)
def test_scores_that_say_nothing_certify_nothing(router, data, scores: float, says: str) -> None:
    """Zero losses out of zero right answers are no promise."""
    empty = replace(data, scores=np.full_like(data.scores, scores))
    with pytest.raises(ScoresSayNothing, match=says):
        certify(router, empty, loss="harm", bound=0.01)


def test_a_kind_that_is_never_right_is_named_beside_its_harm(router, data) -> None:
    wrong = np.where((data.groups == "made/b")[:, None], 0.0, data.scores)
    found = certify(router, replace(data, scores=wrong), loss="harm", bound=0.1)
    assert found.finest_right == pytest.approx(0.5)
    assert [each.finest_right for each in found.slices] == [1.0, 0.0]
    assert any("hardly ever answers made/b" in line for line in _sentences(found, router, True))
    assert Certificate.from_bytes(found.to_bytes()) == found
    older = json.loads(found.to_bytes())
    del older["finest_right"], older["slices"][0]["finest_right"]
    assert Certificate.from_bytes(json.dumps(older).encode()).finest_right is None
