"""`m3-train canary`: what may be tried, and what becomes of it by the log and by audits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from router.records import DecisionRecord, to_table
from router.registry import last_entry
from training.errors import NotInForce, TrainingError
from training.promotion.seen import SEEN_FILE
from training.promotion.weighing import Bound, Check, Verdict
from training.registry.changes import promote
from training.registry.journal import read_state
from training.trials.accuracy import standing
from training.trials.judging import act_on, judged

from .conftest import write_oracle
from .test_gate import CHEAP, DEAR, MIDDLE, NOTHING_SEEN, router

Command = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[3]
NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_oracle(tmp_path_factory.mktemp("oracle") / "a", pictures=450)


def saved(folder: Path, price: float, **more: Any) -> Path:
    """Return a router's folder, which says that no picture shaped it."""
    router(price, **more).save_pretrained(folder)
    np.save(folder / SEEN_FILE, NOTHING_SEEN)
    return folder


class Tried:
    """A registry with a live router, and a candidate that is tried."""

    def __init__(self, folder: Path, command: Command, price: float) -> None:
        self.folder, self.command = folder, command
        self.registry = folder / "registry"
        self.live = promote(saved(folder / "live", DEAR), self.registry).name
        self.candidate = saved(folder / "candidate", price)
        self.version = router(price).version

    def canary(self, *words: object) -> Any:
        return self.command("m3-train", "canary", "--registry", self.registry, *words)

    @property
    def log(self) -> tuple[str, Path]:
        return "--log-dir", self.folder / "log"

    def told(self) -> tuple[str, str | None, bool]:
        """The last action, what is in force, and whether anything is on trial."""
        entry = last_entry(self.registry)
        assert entry is not None
        return entry.action, entry.to, entry.trial is not None

    def serve(self, **of_canary: Any) -> None:
        """Write a log of 2,000 requests, a tenth of them the canary's."""
        rows = []
        for n in range(2000):
            ours = n % 10 == 9
            row = DecisionRecord(
                request_id=f"r{n}", time_utc=NOON + timedelta(seconds=n), picture_ids=(f"p{n}",),
                model="m3-auto", scale=9, visual_tokens=9, reason="predicted", arm="live",
                router_version="live", total_ms=100.0,
            )  # fmt: skip
            if ours:
                row = replace(row, arm="canary", router_version=self.version, **of_canary)
            rows.append(row)
        (self.folder / "log" / "decisions").mkdir(parents=True, exist_ok=True)
        pq.write_table(
            to_table(rows, DecisionRecord), self.folder / "log" / "decisions" / "a.parquet"
        )


@pytest.fixture
def tried(tmp_path: Path, command: Command) -> Callable[[float], Tried]:
    def begin(price: float) -> Tried:
        made = Tried(tmp_path, command, price)
        done = made.canary(made.candidate)
        assert done.returncode == 0, done.stderr
        return made

    return begin


def test_one_that_is_fit_is_promoted_by_audits(
    tried: Callable[[float], Tried], oracle: Path
) -> None:
    trial = tried(MIDDLE)
    done = trial.canary("--judge", "--oracle", oracle)
    assert done.returncode == 0, done.stderr
    assert "by audits: it answers as well as the router in force" in done.stderr
    assert "fit: --apply would promote it" in done.stderr
    assert trial.told() == ("try", trial.live, True)
    assert trial.canary("--judge", "--apply", "--oracle", oracle).returncode == 0
    action, current, going_on = trial.told()
    assert (action, going_on) == ("promote", False)
    assert str(current).startswith(trial.version)
    entry = last_entry(trial.registry)
    assert entry is not None
    assert entry.why.startswith("the gate passed: ")
    assert "no canary is on trial" in trial.canary("--judge").stderr


def test_one_that_answers_worse_is_ended_by_audits(
    tried: Callable[[float], Tried], oracle: Path
) -> None:
    trial = tried(CHEAP)
    assert "worse: --apply would end" in trial.canary("--judge", "--oracle", oracle).stderr
    assert trial.canary("--judge", "--apply", "--oracle", oracle).returncode == 0
    assert trial.told() == ("quarantine", trial.live, False)
    again = trial.canary(trial.candidate)
    assert again.returncode == 2
    assert "not tried: router" in again.stderr


def test_what_audits_cannot_tell_goes_on(tried: Callable[[float], Tried], tmp_path: Path) -> None:
    trial = tried(CHEAP)
    few = write_oracle(tmp_path / "few", pictures=45)
    done = trial.canary("--judge", "--apply", "--oracle", few)
    assert "the trial goes on" in done.stderr
    assert trial.told() == ("try", trial.live, True)


@pytest.mark.parametrize(
    ("of_canary", "why"),
    [
        ({"reason": "fallback"}, "share of failures 1 beside 0"),
        ({"visual_tokens": 36}, "share of the tokens that could be read 0.5 beside 0.125"),
        ({"status": "replica_died"}, "share of failures 1 beside 0"),
    ],
)
def test_the_watch_ends_what_costs_too_much(
    tried: Callable[[float], Tried], of_canary: dict[str, Any], why: str
) -> None:
    trial = tried(MIDDLE)
    trial.serve(**of_canary)
    done = trial.canary("--watch", "60", *trial.log)  # it ends by itself at the first look
    assert done.returncode == 0, done.stderr
    assert trial.told() == ("quarantine", trial.live, False)
    entry = last_entry(trial.registry)
    assert entry is not None
    assert why in entry.why
    assert read_state(trial.registry).is_quarantined(str(entry.before))
    assert "no canary is on trial" in trial.canary("--watch", "60", *trial.log).stderr


def test_one_that_costs_no_more_is_let_go_on(tried: Callable[[float], Tried]) -> None:
    trial = tried(MIDDLE)
    trial.serve()
    done = trial.canary("--judge", "--apply", *trial.log)
    assert (done.returncode, trial.told()[2]) == (0, True)
    assert "200 requests of the canary beside 1791" in done.stdout + done.stderr
    trial.serve(visual_tokens=36)
    assert trial.canary("--judge", "--apply", "--most-tokens", "4.5", *trial.log).returncode == 0
    assert trial.told() == ("try", trial.live, True)


def test_what_cannot_be_served_is_not_tried(tmp_path: Path, command: Command, oracle: Path) -> None:
    trial = Tried(tmp_path, command, MIDDLE)
    other = saved(tmp_path / "other", MIDDLE, model="beef")
    done = trial.canary(other)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "it is for model_hash beef, the router in force for feed" in done.stderr
    nameless = saved(tmp_path / "nameless", MIDDLE, model=None)
    done = trial.canary(nameless, "--oracle", oracle)
    assert "not tried: the candidate" in done.stderr
    worse = saved(tmp_path / "worse", CHEAP)
    done = trial.canary(worse, "--oracle", oracle)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "it is not shown to answer at most 1 point worse" in done.stderr
    assert trial.told()[0] == "promote"
    assert trial.canary(worse, "--oracle", oracle, "--force").returncode == 0
    entry = last_entry(trial.registry)
    assert entry is not None
    assert (entry.action, entry.forced) == ("try", True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give ROUTER, or one of --stop, --judge, --watch"),
        (["--stop", "--judge"], "give ROUTER, or one of"),
        (["--judge", "--quarantine"], "--quarantine does nothing here; leave it out"),
        (["--stop", "--apply"], "--apply does nothing here"),
        (["--stop", "--share", "0.2"], "--share does nothing here"),
        (["--judge", "--why", "so"], "--why does nothing here"),
        (["--watch", "9", "--oracle", "x"], "--oracle does nothing here"),
        (["nowhere", "--most-tokens", "2"], "--most-tokens does nothing here"),
        (["--stop"], "no canary is on trial"),
        (["nowhere"], "nowhere is not a usable router"),
    ],
)
def test_wrong_words_are_one_line(
    tmp_path: Path, command: Command, words: list[str], says: str
) -> None:
    done = command("m3-train", "canary", "--registry", tmp_path / "r", *words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert says in done.stderr


def test_a_shadow_needs_one_thing_to_do(tmp_path: Path, command: Command) -> None:
    for words, says in (
        ([], "give ROUTER, or one of --stop, --report"),
        (["--report", "--log-dir", tmp_path / "none"], "does not exist; give --log-dir"),
        (["--report", "--log-dir", tmp_path], "tells of no shadow"),
        (["--report", "--quarantine"], "--quarantine does nothing here"),
    ):
        done = command("m3-train", "shadow", "--registry", tmp_path / "r", *words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert says in done.stderr


def test_a_judgement_is_of_what_it_was_given_for(
    tried: Callable[[float], Tried], oracle: Path, tmp_path: Path
) -> None:
    """Whatever came into force, or ended the trial, between judging and acting."""
    trial = tried(MIDDLE)
    with pytest.raises(TrainingError, match="nothing to judge it by"):
        judged(trial.registry, None, most_tokens=1.1)
    found = judged(trial.registry, None, [oracle], most_tokens=1.1)
    assert found.standing == "fit"
    promote(saved(tmp_path / "third", MIDDLE + 0.01), trial.registry)
    with pytest.raises(TrainingError, match="has ended meanwhile"):
        act_on(found, trial.registry, who="me")
    assert trial.canary(trial.candidate).returncode == 0
    with pytest.raises(NotInForce):
        act_on(found, trial.registry, who="me")


def check(name: str, low: float, high: float, needs: float = -0.01) -> Check:
    return Check(name, Bound((low + high) / 2, low, high), needs, low > needs, None)


@pytest.mark.parametrize(
    ("checks", "found"),
    [
        ((check("incumbent", -0.03, -0.011), check("tokens", 1, 2, 0.0)), "worse"),
        ((check("incumbent", -0.03, -0.009), check("tokens", 1, 2, 0.0)), "open"),
        ((check("incumbent", -0.005, 0.0), check("floor", -0.5, -0.2)), "worse"),
        ((check("incumbent", -0.005, 0.0), check("tokens", -9, -8, 0.0)), "open"),
        ((), "open"),
    ],
)
def test_worse_is_what_is_shown_to_be(checks: tuple[Check, ...], found: str) -> None:
    assert standing(Verdict(False, ("no",), checks)) == found
    assert standing(Verdict(True, ("yes",), checks)) == "fit"


@pytest.mark.slow
def test_a_watch_of_its_own_process_ends_what_becomes_bad(
    tried: Callable[[float], Tried],
) -> None:
    trial = tried(MIDDLE)
    trial.serve()
    watch = subprocess.Popen(
        [sys.executable, "-m", "training.cli", "canary", "--watch", "0.2", *map(str, trial.log),
         "--registry", str(trial.registry), "--who", "the watch"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watch.stderr is not None
    told = watch.stderr.readline()  # once it has looked, and found nothing
    assert trial.told() == ("try", trial.live, True), told
    trial.serve(reason="fallback", visual_tokens=36)
    assert watch.wait(120) == 0, watch.stderr.read()
    watch.stderr.close()
    entry = last_entry(trial.registry)
    assert entry is not None
    assert (entry.action, entry.who, entry.trial) == ("quarantine", "the watch", None)
