"""Callers of the story: generated scenes in two mixes, and what was answered.

The shifted mix asks in other words than any that the shipped router learnt from, about pictures
that are drawn larger and read at the same size, so that all text in them is smaller. Knows scenes
and the service's client; knows nothing of logs, routers or learning.
"""

from __future__ import annotations

import io
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from serve.client import APIError, M3Client
from training.figures.resampling import Interval, clustered_interval
from training.scenes import Question, generate_scene
from training.scoring import exact_match

CALLERS = 4
MAX_TOKENS = 16
PAUSE_S = 0.2  # between requests that go on while the router learns: it needs the cores too


@dataclass(frozen=True)
class Mix:
    """What is asked: pictures of a namespace from a first one on, their size, and the words."""

    name: str
    namespace: str
    first: int
    size_px: int = 192
    words: str = "{}"


# Seeds that no shipped router was fitted on: `collect --seed` takes a million each, from 0 on.
SHIPPED = Mix("shipped mix", "collect", 60_000_000)
WORDS = "Please answer in one word: {}"
SHIFTED = Mix("shifted mix", "collect", 61_000_000, 256, WORDS)
HELD_OUT = Mix("held out", "heldout", 61_000_000, 256, WORDS)


@lru_cache(maxsize=256)  # several questions about one picture follow each other
def picture_of(mix: Mix, number: int) -> tuple[bytes, tuple[Question, ...]]:
    """Return the PNG of a picture, and the questions about it."""
    scene = generate_scene(mix.first + number, namespace=mix.namespace, size_px=mix.size_px)
    file = io.BytesIO()
    Image.fromarray(scene.image).save(file, "PNG", compress_level=1)
    return file.getvalue(), scene.questions


@dataclass
class Seen:
    """What callers saw, a row an answer, in the order of the answers; and what failed.

    Attributes:
        picture, position: of the question.
        right: whether the answer equals the reference.
        tokens: visual tokens, both looks counted.
        router: version that decided.
        at: seconds since the epoch.
    """

    picture: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    router: list[str] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    failed: int = 0
    first_failures: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.at)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    def note(self, failure: Exception) -> None:
        """Count a request that was not answered."""
        self.failed += 1
        if len(self.first_failures) < 5:
            self.first_failures.append(f"{type(failure).__name__}: {failure}")

    def accuracy(self) -> Interval:
        """Return the share of right answers, with its 95 % interval by picture."""
        return clustered_interval(np.array(self.right, float), self._pictures())

    def visual_tokens(self) -> Interval:
        """Return the mean visual tokens, with their 95 % interval by picture."""
        return clustered_interval(np.array(self.tokens, float), self._pictures())

    def part(self, start: int, end: int) -> Seen:
        """Return the answers from one to another."""
        names = ("picture", "position", "right", "tokens", "router", "at")
        return Seen(*(getattr(self, name)[start:end] for name in names))

    def less(self, other: Seen) -> dict[str, dict[str, float]]:
        """Return the paired differences from another time that the same questions were asked."""
        rows = [{key: n for n, key in enumerate(each._asked())} for each in (self, other)]
        both = sorted(rows[0].keys() & rows[1].keys())
        ours, theirs = (np.array([row[key] for key in both]) for row in rows)
        pictures = np.array([picture for picture, _ in both])
        return {
            name: clustered_interval(
                np.array(mine, float)[ours] - np.array(before, float)[theirs], pictures
            ).as_dict()
            for name, mine, before in (
                ("accuracy", self.right, other.right),
                ("visual_tokens", self.tokens, other.tokens),
            )
        }

    def _asked(self) -> Iterable[tuple[int, int]]:
        return zip(self.picture, self.position, strict=True)

    def _pictures(self) -> np.ndarray:
        return np.array(self.picture, dtype=np.int64)


class Callers:
    """Callers of one service who ask about a mix; `seen` grows as they do.

    Args:
        teach: tell the service the right answers afterwards.
    """

    def __init__(self, url: str, mix: Mix, *, teach: bool) -> None:
        self.mix, self.seen, self._teach = mix, Seen(), teach
        self._client = M3Client(url, timeout=120, max_retries=0)  # what fails is seen to fail
        self._lock = threading.Lock()

    def __enter__(self) -> Callers:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, pictures: Sequence[int], progress: Callable[[int], None]) -> Seen:
        """Ask every question about the pictures, several callers at a time; return what was seen.

        Args:
            progress: called with the number of pictures that are done.
        """
        done = itertools.count(1)

        def one(number: int) -> None:
            for position in range(len(picture_of(self.mix, number)[1])):
                self.question(number, position)
            progress(next(done))

        with ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(one, pictures))
        return self.seen

    def question(self, number: int, position: int) -> None:
        """Ask one question about a picture."""
        png, questions = picture_of(self.mix, number)
        asked = questions[position]
        try:
            answer = self._client.ask(png, self.mix.words.format(asked.text), max_tokens=MAX_TOKENS)
            if self._teach:
                self._client.feedback(answer, reference=asked.answer)
        except APIError as failure:
            with self._lock:
                self.seen.note(failure)
            return
        with self._lock:
            self.seen.picture.append(number)
            self.seen.position.append(position)
            self.seen.right.append(exact_match(answer.text, asked.answer))
            self.seen.tokens.append(answer.visual_tokens)
            self.seen.router.append(answer.router_version or "")
            self.seen.at.append(time.time())


class Ongoing:
    """Requests that go on while the context lasts, each known to the service: people ask again.

    Nobody tells it the right answers: what there is to learn stays what it was.
    """

    def __init__(self, url: str, mix: Mix, pictures: int) -> None:
        self._callers, self._pictures = Callers(url, mix, teach=False), pictures
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask_on)

    @property
    def seen(self) -> Seen:
        """What was seen so far."""
        return self._callers.seen

    def __enter__(self) -> Ongoing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def until_answered_by(self, version: str, seconds: float) -> float | None:
        """Return after how many seconds a router decides, None if it does not in so many."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            if self.seen.router and self.seen.router[-1] == version:
                return time.monotonic() - began
            time.sleep(0.05)
        return None

    def _ask_on(self) -> None:
        with self._callers:
            for turn in itertools.count():
                self._callers.question(turn % self._pictures, 0)
                if self._stop.wait(PAUSE_S):
                    return
