"""The stages of the story, each told by a JSON file, so that what was done is not done again.

A service runs throughout, with its own log and registry; whatever a user would do is a command of
its own. Knows the order of things and folders; what is asked is `traffic`'s, what must not pass
`poison`'s.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _load.service import free_port, running
from _loop.gates import simulated
from _loop.log_kills import kill_writers
from _loop.poison import offered, offers, refused_by_fit
from _loop.traffic import HELD_OUT, SHIFTED, SHIPPED, Callers, Mix, Ongoing, Seen

from m3model.terminal import bar, say
from router import Router, default_router_path
from router.registry import current_router_path

FOLLOWED_S = 30.0  # after which a promotion that nobody follows is one that failed
ASKED_AGAIN = 40  # pictures that people go on asking about while the router learns
WINDOW = 250  # answers in which a shift is looked for
Told = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much of everything: pictures of each mix, simulated gates, killed writers."""

    shipped: int = 600
    shifted: int = 3600
    held_out: int = 800
    gates: int = 200
    kills: int = 80


QUICK = Sizes(shipped=40, shifted=120, held_out=40, gates=20, kills=60)


@dataclass(frozen=True)
class Story:
    """Where the story is told, and how long it is."""

    work: Path
    sizes: Sizes
    url: str

    @property
    def log(self) -> Path:
        return self.work / "service" / "log"

    @property
    def registry(self) -> Path:
        return self.work / "service" / "registry"

    @property
    def turn(self) -> Path:
        """What `retrain` writes: ``oracle``, ``router``, ``report``."""
        return self.work / "turn"

    @property
    def audits(self) -> Path:
        return self.turn / "oracle"


@contextmanager
def told_in(work: Path, sizes: Sizes) -> Iterator[Story]:
    """Run the service of a story that is told in a folder, anew or from where it stopped.

    Raises:
        SystemExit: another story lies there.
    """
    work.mkdir(parents=True, exist_ok=True)
    file = work / "story.json"
    if file.exists() and json.loads(file.read_text("utf-8")) != asdict(sizes):
        raise SystemExit(f"{work} holds a story of other sizes; use another folder")
    file.write_text(json.dumps(asdict(sizes)), encoding="utf-8")
    with _service(work / "service") as url:
        yield Story(work, sizes, url)


def tell(story: Story) -> dict[str, Told]:
    """Return what every stage found; what is in its file already is not done again."""
    stages: dict[str, Callable[[Story, dict[str, Told]], Told]] = {
        "shipped_mix": lambda s, _: _asked(s.url, SHIPPED, s.sizes.shipped, teach=True),
        "shifted_mix": lambda s, _: _asked(s.url, SHIFTED, s.sizes.shifted, teach=True),
        "noticed": _noticed,
        "before": _before,
        "labelled": _labelled,
        "retrained": _retrained,
        "after": _after,
        "poisoned": _poisoned,
        "gates": lambda s, _: asdict(simulated(s.sizes.gates)),
        "kills": lambda s, _: _kills(s),
    }
    found: dict[str, Told] = {}
    for name, stage in stages.items():
        file = story.work / f"{name}.json"
        if file.exists():
            found[name] = json.loads(file.read_text("utf-8"))
            continue
        say(f"stage {len(found) + 1} of {len(stages)}: {name.replace('_', ' ')}")
        began = time.monotonic()
        told = stage(story, found)
        told["seconds"] = round(time.monotonic() - began, 1)
        partial = file.with_suffix(".part")
        partial.write_text(json.dumps(told), encoding="utf-8")
        partial.rename(file)
        found[name] = told
    return found


def seen_in(told: Told) -> Seen:
    """Return what callers saw in a stage."""
    return Seen(**told["seen"])


def noticed(usual: Seen, now: Seen) -> Told:
    """Return whether answers of now are clearly others than the usual ones, and after how many.

    What anybody can tell who gets feedback: windows of `WINDOW` answers, in accuracy and visual
    tokens, whose 95 % intervals lie apart from those of the usual traffic.
    """
    before = {"accuracy": usual.accuracy(), "visual_tokens": usual.visual_tokens()}
    told: Told = {"usual": {name: each.as_dict() for name, each in before.items()}}
    for name, was in before.items():
        after = None
        for end in range(min(WINDOW, len(now)), len(now) + 1, WINDOW):
            window = now.part(max(0, end - WINDOW), end)
            found = getattr(window, name)()
            if found.high < was.low or found.low > was.high:
                after = end
                break
        told[name] = {**getattr(now, name)().as_dict(), "noticed_after_answers": after}
    return told


def doctors_word(story: Story, *labels: object) -> Told | None:
    """Return what `m3-train doctor` finds, None where it finds out nothing.

    Args:
        labels: flags that name the labels, once there are any.
    """
    out = story.work / "doctor.json"
    out.unlink(missing_ok=True)
    m3_train("doctor", "--log", story.log, "--registry", story.registry, "--json", out, *labels)
    return json.loads(out.read_text("utf-8")) if out.exists() else None


def m3_train(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does, and print how it ended."""
    print(f"$ m3-train {' '.join(map(str, words))}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "training.cli", *map(str, words)], text=True, capture_output=True
    )
    lines = done.stderr.strip().splitlines()
    if lines:
        print(f"  {lines[-1]}", flush=True)
    return done


@contextmanager
def _service(folder: Path) -> Iterator[str]:
    port = free_port()
    flags = ("--in-process", "--log-images", "--audit-rate", "1.0")
    with running(*flags, port=port, folder=folder):
        yield f"http://127.0.0.1:{port}"


def _asked(url: str, mix: Mix, pictures: int, *, teach: bool) -> Told:
    with bar(mix.name, "pictures") as move, Callers(url, mix, teach=teach) as callers:
        seen = callers.ask(range(pictures), lambda done: move(done, pictures))
    return {"seen": seen.as_dict(), "pictures": pictures}


def _noticed(story: Story, found: dict[str, Told]) -> Told:
    usual, now = seen_in(found["shipped_mix"]), seen_in(found["shifted_mix"])
    return noticed(usual, now) | {"doctor": doctors_word(story)}


def _before(story: Story, found: dict[str, Told]) -> Told:
    """Ask the held-out questions of the router that is live, in a log that nobody learns from."""
    with _service(story.work / "held-out") as url:
        return _asked(url, HELD_OUT, story.sizes.held_out, teach=False)


def _labelled(story: Story, found: dict[str, Told]) -> Told:
    """Label the log while people go on asking, and replay what was served."""
    with Ongoing(story.url, SHIFTED, ASKED_AGAIN) as traffic:
        done = m3_train("collect", "--from-log", story.log, "--out", story.audits)
        if done.returncode:
            raise SystemExit(done.stderr)
        rows = story.work / "replayed.json"
        replayed = m3_train(
            "replay", "--oracle", story.audits, "--router", default_router_path(),
            "--policy", "finest", "--log", story.log, "--json", rows,
        )  # fmt: skip
    if replayed.returncode:
        raise SystemExit(replayed.stderr)
    told = json.loads(rows.read_text("utf-8"))
    ours = told["rows"][0]
    return {
        "seen": traffic.seen.as_dict(),
        "said": done.stderr.strip().splitlines()[-1],
        "against_the_anchor": ours["difference_from_finest"],
        "visual_tokens": ours["visual_tokens"],
        "served_again": next(iter(told["served_again"].values())),
        "doctor": doctors_word(story, "--oracle", story.audits),
    }


def _retrained(story: Story, found: dict[str, Told]) -> Told:
    """Turn the log into a router that is live, while people go on asking."""
    with Ongoing(story.url, SHIFTED, ASKED_AGAIN) as traffic:
        done = m3_train(
            "retrain", "--from-log", story.log, "--out", story.turn, "--registry", story.registry
        )
        refused = done.returncode != 0
        if refused and not (story.turn / "report" / "verdict.json").exists():
            raise SystemExit(done.stderr)
        if refused:
            forced = m3_train(
                "promote", "--router", story.turn / "router", "--registry", story.registry,
                "--oracle", story.audits, "--force", "--why", "too few pictures for the gate",
            )  # fmt: skip
            if forced.returncode:
                raise SystemExit(forced.stderr)
        version = _in_force(story)
        followed = traffic.until_answered_by(version, FOLLOWED_S)
    return {
        "seen": traffic.seen.as_dict(),
        "promoted": not refused,
        "version": version,
        "followed_after_s": followed,
        "verdict": json.loads((story.turn / "report" / "verdict.json").read_text("utf-8")),
        "beside": beside(json.loads((story.turn / "report" / "report.json").read_text("utf-8"))),
    }


def beside(report: Told) -> dict[str, dict[str, float]]:
    """Return accuracy and visual tokens of the new router and of what costs less to make, on the
    audits' test pictures: fixed scales, tables by kind, routers that see the question alone."""
    found = {f"always {each['scale']}": each for each in report["fixed"]}
    found |= {**report["baselines"], "router": report["router"]}
    return {
        name: {key: each[key] for key in ("accuracy", "visual_tokens")}
        for name, each in found.items()
    }


def _in_force(story: Story) -> str:
    folder = current_router_path(story.registry)
    if folder is None:
        raise SystemExit(f"nothing is in force in {story.registry}")
    return str(Router.from_pretrained(folder).version)


def _after(story: Story, found: dict[str, Told]) -> Told:
    told = _asked(story.url, HELD_OUT, story.sizes.held_out, teach=False)
    version, others = _in_force(story), set(told["seen"]["router"])
    if others != {version}:
        raise SystemExit(f"{version} is in force, but answers are by {', '.join(sorted(others))}")
    before = seen_in(found["before"])
    return told | {"minus_before": seen_in(told).less(before)}


def _poisoned(story: Story, found: dict[str, Told]) -> Told:
    folder, told = story.work / "poison", {}
    for offer in offers(story.audits, story.turn / "router", story.registry, folder):
        told[offer.name] = offered(offer, m3_train, folder / "verdicts" / offer.name)
    told["all_zero_scores_by_fit"] = refused_by_fit(story.audits, m3_train, folder)
    return {"offered": told}


def _kills(story: Story) -> Told:
    folder = story.work / f"killed-{time.time_ns()}"  # a stage that is begun again begins anew
    return kill_writers(folder, story.sizes.kills)
