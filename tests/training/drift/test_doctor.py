"""`m3-train doctor` on routers whose state is known, through the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router import Certificate, Router
from router.certificate.promise import Rung
from router.drift.population import POPULATION_FILE, Population, deciles
from router.places import StoredPlace, as_place
from router.registry import Restriction, last_entry
from training.drift.attempts import ATTEMPTS, STORED, tried
from training.oracle.data import read_oracle
from training.promotion.gate import Contender, _played, judge, live
from training.registry.changes import promote
from training.registry.journal import read_state
from training.registry.restrictions import restrict

from .conftest import PICTURES, SCALES, Drawn, draw, make_router, save, write_log, write_oracle


@pytest.fixture
def doctor(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the command on the registry of the test; returns how it ended and what it wrote."""
    monkeypatch.chdir(tmp_path)  # where no service has left its log

    def run(*arguments: object) -> Any:
        out = tmp_path / "found.json"
        out.unlink(missing_ok=True)
        done = command("m3-train", "doctor", "--registry", tmp_path / "registry", *arguments,
                       *([] if "--lift" in arguments else ["--json", out]))  # fmt: skip
        told = json.loads(out.read_text()) if out.exists() else None
        return done, told

    return run


def verdicts(told: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["verdict"] for check in told["checks"]}


def says(told: dict[str, Any], name: str) -> str:
    [found] = [check["says"] for check in told["checks"] if check["name"] == name]
    return str(found)


def with_population(router: Router, folder: Path, shift: float = 0.0) -> None:
    drawn = draw(3000, seed=5, shift=shift)
    names = router.space.names
    told = Population(router.predictor_hash, 3000.0, *deciles(drawn.features), router.price,
                      dict.fromkeys(names, 1 / 3), dict.fromkeys(names, 0.5))  # fmt: skip
    (folder / POPULATION_FILE).write_bytes(told.to_bytes())


def in_force(router: Router, tmp_path: Path, shift: float | None = 0.0) -> Path:
    folder = save(router, tmp_path / "router")
    if shift is not None:
        with_population(router, folder, shift)
    return promote(folder, tmp_path / "registry")


def test_a_healthy_router_is_found_healthy(
    doctor: Any, well: Router, audits: Path, spread: Any, tmp_path: Path
) -> None:
    in_force(well, tmp_path)
    log = write_log(tmp_path / "log", well.version, spread(PICTURES))
    done, told = doctor("--log", log, "--oracle", audits, "--apply")
    assert done.returncode == 0, done.stderr
    assert set(verdicts(told).values()) == {"ok"}, told
    assert told["healthy"] is True
    assert told["advised"] is None
    assert "nothing is restricted" in done.stderr
    assert read_state(tmp_path / "registry").restriction is None
    assert "33.3%" in says(told, "collapse")


def test_a_broken_router_is_named_and_held_to_the_anchor(
    doctor: Any, broken: Router, audits: Path, spread: Any, tmp_path: Path
) -> None:
    """It sees what is needed the wrong way round: no price of it keeps the target."""
    folder = in_force(broken, tmp_path)
    log = write_log(tmp_path / "log", broken.version, spread(PICTURES))
    done, told = doctor("--log", log, "--oracle", audits)
    assert done.returncode == 1
    assert verdicts(told)["accuracy"] == "bad"
    assert f"router {broken.version} loses too many answers" in done.stdout
    assert verdicts(told)["calibration"] == "warning"
    assert read_state(tmp_path / "registry").restriction is None  # nobody asked for it
    assert (told["advised"]["price"], told["in_force"]) == (None, folder.name)

    done, _ = doctor("--oracle", audits, "--apply", "--who", "cron")
    assert done.returncode == 1
    entry = last_entry(tmp_path / "registry")
    assert entry is not None
    assert (entry.action, entry.to, entry.who) == ("restrict", folder.name, "cron")
    assert entry.restriction is not None
    assert entry.restriction.price is None
    assert "loses too many answers" in entry.restriction.why
    done, told = doctor("--oracle", audits, "--apply")
    assert verdicts(told)["restriction"] == "warning"
    assert last_entry(tmp_path / "registry") == entry  # said once

    done, _ = doctor("--lift", "--why", "audits were mislabelled")
    assert (done.returncode, "restricted no more" in done.stderr) == (0, True)
    assert read_state(tmp_path / "registry").restriction is None
    done, _ = doctor("--lift")
    assert (done.returncode, "was not restricted" in done.stderr) == (0, True)


def test_a_price_that_is_too_high_is_lowered(doctor: Any, audits: Path, tmp_path: Path) -> None:
    """At 5 everything is read at 1 token, right in one case of three; the predictor is sound, so
    at the price that is found it keeps the target again and still saves."""
    router = make_router(price=5.0)
    in_force(router, tmp_path)
    done, _ = doctor("--oracle", audits, "--apply")
    assert done.returncode == 1
    restriction = read_state(tmp_path / "registry").restriction
    assert restriction is not None
    assert restriction.price is not None
    assert 0.0 <= restriction.price < 5.0
    data = read_oracle([audits])
    held = live(tmp_path / "registry", None, "feed")
    assert held.held == restriction

    now = _played(held, data)
    assert now.score.mean() >= 0.99 * data.scores[:, -1].mean()
    assert now.tokens.mean() < 0.7 * SCALES[-1]


def test_what_moved_is_named_and_no_fault(
    doctor: Any, well: Router, audits: Path, tmp_path: Path
) -> None:
    """A feature that says nothing of answers lay two standard deviations away at the fit."""
    in_force(well, tmp_path, shift=2.0)
    done, told = doctor("--oracle", audits)
    assert done.returncode == 0
    assert verdicts(told)["features"] == "warning"
    assert says(told, "features").startswith("1 of ")
    assert well.schema.names[2] in says(told, "features")
    (tmp_path / "registry" / told["in_force"] / POPULATION_FILE).unlink()
    _, told = doctor("--oracle", audits)
    assert "what the router was fitted on is not told" in says(told, "features")


def test_a_collapse_is_seen_in_the_log_alone(doctor: Any, well: Router, tmp_path: Path) -> None:
    in_force(well, tmp_path)
    log = write_log(tmp_path / "log", well.version, ["1"] * 300)
    done, told = doctor("--log", log, "--apply")
    assert done.returncode == 1
    assert verdicts(told)["collapse"] == "bad"
    assert "100.0% of the last 300 free decisions take 1; when fitted it was 33.3%" in done.stdout
    restriction = read_state(tmp_path / "registry").restriction
    assert restriction is not None
    assert restriction.price is None


def test_a_collapse_that_loses_nothing_is_how_the_traffic_is(
    doctor: Any, well: Router, tmp_path: Path
) -> None:
    """Every question is one that the middle scale answers."""
    in_force(well, tmp_path)
    easy = draw(3 * PICTURES)
    rows = np.flatnonzero(easy.need <= 1)
    audits = write_oracle(tmp_path / "easy", Drawn(easy.need[rows], easy.features[rows]))
    log = write_log(tmp_path / "log", well.version, ["9"] * 300)
    done, told = doctor("--log", log, "--oracle", audits)
    found = verdicts(told)
    assert (done.returncode, found["collapse"], found["accuracy"]) == (0, "warning", "ok")
    assert found["features"] == "warning"


def test_always_the_finest_is_worth_a_word(doctor: Any, well: Router, tmp_path: Path) -> None:
    in_force(well, tmp_path)
    log = write_log(tmp_path / "log", well.version, ["36"] * 300)
    done, told = doctor("--log", log)
    assert (done.returncode, verdicts(told)["collapse"]) == (0, "warning")


def test_a_handful_of_audits_accuses_nobody(doctor: Any, well: Router, tmp_path: Path) -> None:
    """Sound probabilities on twelve pictures, one a bin, would look sure of their error."""
    in_force(well, tmp_path)
    few = write_oracle(tmp_path / "few", draw(12))
    done, told = doctor("--oracle", few)
    found = verdicts(told)
    assert (done.returncode, found["fresh"]) == (0, "warning")
    assert (found["calibration"], found["accuracy"], found["features"]) == ("ok", "ok", "ok")


def test_labels_of_another_model_restrict(doctor: Any, well: Router, tmp_path: Path) -> None:
    in_force(well, tmp_path)
    other = write_oracle(tmp_path / "other", draw(40), model="beef")
    done, told = doctor("--oracle", other, "--apply")
    assert (done.returncode, verdicts(told)["match"]) == (1, "bad")
    assert read_state(tmp_path / "registry").restriction is not None


def certified(router: Router, bound: float) -> Router:
    """The router holding a made-up certificate of a bound at its own price."""
    return router.with_certificate(
        Certificate(
            loss="harm", bound=bound, delta=0.05, method="betting", population="pictures",
            scored_by="exact match", pictures=500, questions=500, created_utc="2026-11-22T10:00:00",
            router_version=router.version, predictor_hash=router.predictor_hash,
            model_hash="feed", feature_schema=router.schema.hash, data_hash="d",
            prices=(0.0, router.price), ladder=(Rung(bound, router.price, 9.0, 0.01),), slices=(),
        )
    )  # fmt: skip


@pytest.mark.parametrize(("price", "bound", "verdict"), [(5.0, 0.1, "bad"), (0.2, 0.05, "ok")])
def test_a_certificate_is_held_against_fresh_audits(
    doctor: Any, audits: Path, tmp_path: Path, price: float, bound: float, verdict: str
) -> None:
    """At 5 two of three answers are lost, at 0.2 hardly one. What it is held to keeps the bound."""
    in_force(certified(make_router(price=price), bound), tmp_path)
    done, told = doctor("--oracle", audits, "--apply")
    assert (done.returncode, verdicts(told)["certificate"]) == (int(verdict == "bad"), verdict)
    restriction = read_state(tmp_path / "registry").restriction
    assert (restriction is not None) == (verdict == "bad")
    if restriction is not None and restriction.price is not None:
        data = read_oracle([audits])
        now = _played(live(tmp_path / "registry", None, "feed"), data)
        assert (data.scores[:, -1] - now.score).mean() <= bound


def test_a_damaged_router_is_named(doctor: Any, well: Router, audits: Path, tmp_path: Path) -> None:
    folder = in_force(well, tmp_path)
    (folder / "scale_0009.txt").write_text("tree\n")
    done, told = doctor("--oracle", audits)
    assert (done.returncode, verdicts(told)["router"]) == (1, "bad")
    assert str(folder) in says(told, "router")


def test_damaged_files_backlog_and_strangers(
    doctor: Any, well: Router, audits: Path, spread: Any, tmp_path: Path
) -> None:
    in_force(well, tmp_path)
    log = write_log(tmp_path / "log", "another", spread(3 * PICTURES))
    (log / "decisions" / "bad.parquet").write_bytes(b"PAR1 not really")
    done, told = doctor("--log", log, "--oracle", audits)
    assert done.returncode == 1
    found = verdicts(told)
    assert (found["log"], found["backlog"], found["served"]) == ("bad", "warning", "warning")
    assert "bad.parquet" in says(told, "log")
    assert f"{2 * PICTURES} of {3 * PICTURES} audited pictures" in says(told, "backlog")
    assert told["advised"] is None  # nothing says that answers are lost


@pytest.mark.parametrize("what", ["missing", "empty", "nothing", "no labels", "lift too"])
def test_what_cannot_be_examined_is_one_line(
    doctor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log").mkdir()
    arguments = {
        "missing": ["--log", tmp_path / "nowhere"], "empty": ["--log", tmp_path / "log"],
        "nothing": [], "no labels": ["--oracle", tmp_path / "log"],
        "lift too": ["--lift", "--apply"],
    }[what]  # fmt: skip
    done, told = doctor(*arguments)
    assert (done.returncode, told, done.stdout) == (2, None, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")


def test_while_restricted_the_gate_compares_with_what_is_live(
    broken: Router, well: Router, audits: Path, tmp_path: Path
) -> None:
    """Beside a router held to the anchor a good one is cheaper; the held one itself must show
    that it is fit, and a promotion ends what it was held to."""
    registry, data = tmp_path / "registry", read_oracle([audits])
    in_force(broken, tmp_path)
    again = Contender("it", broken, np.zeros(0, np.uint64))
    assert judge(again, live(registry, None, "feed"), None, data).passed  # it is in force already
    restrict(Restriction(None, "it loses answers"), registry)
    held = live(registry, None, "feed")
    assert not judge(again, held, None, data).passed
    verdict = judge(Contender("it", well, np.zeros(0, np.uint64)), held, None, data)
    assert verdict.passed, verdict.sentence
    assert verdict.facts["incumbent"]["visual_tokens"] == 36.0
    promote(save(well, tmp_path / "well"), registry)
    assert live(registry, None, "feed").held is None


def test_every_candidate_on_the_same_audits_is_counted(
    command: Any, doctor: Any, broken: Router, well: Router, audits: Path, tmp_path: Path
) -> None:
    """Two are refused; the third verdict says that it was the third. A torn line is passed over."""
    in_force(well, tmp_path)
    registry, verdict = tmp_path / "registry", tmp_path / "verdict"
    for number, price in enumerate((0.5, 0.6, 0.6), 1):
        candidate = save(make_router(broken=True, price=price), tmp_path / f"c{price}")
        done = command("m3-train", "promote", "--router", candidate, "--oracle", audits,
                       "--registry", registry, "--verdict", verdict, "--who", "Ann")  # fmt: skip
        assert done.returncode == 2
        told = json.loads((verdict / "verdict.json").read_text())
        assert told["attempts"] == min(number, 2)  # the same one again is no other candidate
    assert any(note.startswith("2 candidates were judged") for note in told["notes"])
    lines = [json.loads(x) for x in (registry / ATTEMPTS).read_text().splitlines() if x]
    assert [(line["who"], line["passed"]) for line in lines] == [("Ann", False)] * 3
    with (registry / ATTEMPTS).open("a") as file:
        file.write('{"torn')
    _, found = doctor("--oracle", audits)
    assert says(found, "attempts") == "2 candidates were judged on these audits"
    data_hash = lines[0]["data_hash"]
    assert tried(registry, "certify", "0123456789ab", data_hash, "Ann") == 3
    assert tried(registry, "certify", "0123456789ab", "other audits", "Ann") == 1


def test_registry_and_log_in_an_object_store(
    command: Any, broken: Router, audits: Path, spread: Any, tmp_path: Path, s3: str
) -> None:
    root = as_place(s3)
    assert isinstance(root, StoredPlace)
    promote(save(broken, tmp_path / "broken"), root / "registry")
    written = write_log(tmp_path / "log", broken.version, spread(PICTURES))
    for path in written.rglob("*.parquet"):
        (root / "log" / path.relative_to(written).as_posix()).write_bytes(path.read_bytes())

    def doctor(*words: object) -> Any:
        out = tmp_path / "found.json"
        done = command("m3-train", "doctor", "--registry", f"{s3}/registry", *words)
        return done, json.loads(out.read_text()) if out.exists() else None

    looks = ("--log", f"{s3}/log", "--oracle", audits, "--json", tmp_path / "found.json")
    done, told = doctor(*looks, "--apply")
    assert done.returncode == 1, done.stderr
    assert verdicts(told)["served"] == "ok"
    assert verdicts(told)["accuracy"] == "bad"
    state = read_state(root / "registry")
    assert state.restriction is not None
    assert doctor("--lift")[0].returncode == 0
    assert read_state(root / "registry").restriction is None
    for number, price in enumerate((0.5, 0.6, 0.6), 1):
        candidate = save(make_router(broken=True, price=price), tmp_path / f"c{price}")
        done = command("m3-train", "promote", "--router", candidate, "--oracle", audits,
                       "--registry", f"{s3}/registry", "--verdict", tmp_path)  # fmt: skip
        assert done.returncode == 2
        said = json.loads((tmp_path / "verdict.json").read_text())
        assert said["attempts"] == min(number, 2)
    assert len(list((root / "registry" / STORED).glob("*.json"))) == 3
    _, told = doctor(*looks)
    assert says(told, "attempts") == "2 candidates were judged on these audits"
    assert not (tmp_path / "s3:").exists()
