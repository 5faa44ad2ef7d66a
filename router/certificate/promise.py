"""What is promised of a router, over which pictures, and at which price: `certificate.json`.

Knows promises and their JSON; knows nothing of how they were proved (router.certificate.proof) or
of requests. A certificate is about a predictor, so it is no part of the router's version; it is
used only with the very predictor, features, costs and model it was made for.

What it can and cannot say. The promise is a mean over the population of the calibration pictures:
a picture drawn at random, then one of its questions. It says nothing of one answer, of pictures of
another kind, or of requests with several pictures. Every bound of the ladder was tested by itself:
each holds with probability 1 - delta, not all of them together. The same is true of slices. A
slice (a kind of question) is known of labelled questions only, not of a request, so a service
cannot enforce its floor: it is advice for callers who know what they ask.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from router.certificate.proof import Loss, Method
from router.errors import NotCertified, RouterFileError

CERTIFICATE_FILE = "certificate.json"
FORMAT = 1


@dataclass(frozen=True)
class Rung:
    """One bound and the cheapest price that keeps it.

    Attributes:
        bound: mean loss that is not exceeded.
        price: None: no price was shown to keep the bound, so it is kept by the finest scale alone.
        visual_tokens: mean over the questions at that price.
        loss: mean over pictures that was seen there.
    """

    bound: float
    price: float | None
    visual_tokens: float
    loss: float


@dataclass(frozen=True)
class SliceBound:
    """What one kind of question ("dataset/kind") loses at the certified price.

    Attributes:
        loss, upper: the mean over pictures that was seen, and its bound, for this slice alone.
        floor: the coarsest scale such that the router's choice, raised to at least it, is shown
            to keep the certificate's bound on this slice; the finest always does.
        finest_right: share of its questions that the finest scale answers rightly, which no harm
            can exceed; None in certificates of before.
    """

    name: str
    pictures: int
    questions: int
    loss: float
    upper: float
    floor: int
    finest_right: float | None = None


@dataclass(frozen=True)
class Certificate:
    """A promise about one predictor.

    Attributes:
        loss: what is bounded: "harm" or "drop".
        bound: what was asked for; its rung is in the ladder.
        delta: probability that the promise of one rung is wrong.
        method: "betting" by picture, or "clopper_pearson" where each picture has one question.
        population: in words, what the mean is taken over.
        scored_by: in words, what right means.
        pictures, questions: how many it rests on.
        created_utc: ISO time.
        router_version: version of the router when it was certified (its price may change later).
        predictor_hash: of all that decides except the price.
        model_hash, feature_schema, data_hash: what the outcomes were collected with.
        prices: ascending, the family that was tested up to the dearest rung's price and beyond.
        ladder: bounds ascending.
        slices: by name.
        finest_right: share of the questions that the finest scale answers rightly: a harm says
            little where it is small. None in certificates of before.
    """

    loss: Loss
    bound: float
    delta: float
    method: Method
    population: str
    scored_by: str
    pictures: int
    questions: int
    created_utc: str
    router_version: str
    predictor_hash: str
    model_hash: str
    feature_schema: str
    data_hash: str
    prices: tuple[float, ...]
    ladder: tuple[Rung, ...]
    slices: tuple[SliceBound, ...]
    finest_right: float | None = None

    @property
    def rung(self) -> Rung:
        """The rung that was asked for."""
        return next(rung for rung in self.ladder if rung.bound == self.bound)

    @cached_property
    def identity(self) -> str:
        """Its name in logs: 12 hex digits of its content."""
        return hashlib.sha256(self.to_bytes()).hexdigest()[:12]

    @property
    def bounds(self) -> str:
        """The bounds of the ladder in words, for messages."""
        return ", ".join(f"{rung.bound:g}" for rung in self.ladder)

    def rung_for(self, max_loss: float) -> Rung:
        """Return the cheapest rung that keeps ``max_loss``: the greatest bound not above it.

        Raises:
            NotCertified: every bound of the ladder is looser.
        """
        fitting = [rung for rung in self.ladder if rung.bound <= max_loss]
        if not fitting:
            raise NotCertified(
                f"max_harm={max_loss:g} is tighter than what is certified ({self.bounds}); ask for "
                "one of these, or pin the finest scale, which loses nothing",
                "not_certified",
            )
        return fitting[-1]

    def price_below(self, rung: Rung, price: float) -> float | None:
        """Return the price to decide at: the rung's, or a tested one not above ``price``.

        Every member of the family up to the rung's price was shown to keep the bound, so a router
        that works at a lower price stays at (about) its own. None is always the finest scale.
        """
        if rung.price is None:
            return None
        tested = np.asarray(self.prices)
        below = tested[tested <= min(rung.price, price)]
        return float(below[-1]) if len(below) else None

    def why_not_for(self, **facts: str | None) -> str | None:
        """Return why it does not hold for something else than it was made for, None if it does.

        Args:
            **facts: any of ``predictor_hash, model_hash, feature_schema``.
        """
        for name, here in facts.items():
            made_for = getattr(self, name)
            if here != made_for:
                words = name.replace("_", " ")
                return (
                    f"the certificate of {self.created_utc[:10]} has expired: it was made for "
                    f"{words} {made_for}, here it is {here}; run m3-train certify again"
                )
        return None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"format": FORMAT, **asdict(self)}

    def to_bytes(self) -> bytes:
        """Return the content of `certificate.json`."""
        return (json.dumps(self.to_json(), indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Certificate":
        """Return the certificate in a file.

        Raises:
            RouterFileError: it is damaged or of another format.
        """
        try:
            stored = json.loads(content)
            if not isinstance(stored, dict) or stored.pop("format", None) != FORMAT:
                raise RouterFileError(f"{CERTIFICATE_FILE} is not of format {FORMAT}")
            return cls._parsed(stored)
        except RouterFileError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RouterFileError(f"{CERTIFICATE_FILE} is damaged: {error!r}") from error

    @classmethod
    def _parsed(cls, stored: Mapping[str, Any]) -> "Certificate":
        ladder = tuple(Rung(**rung) for rung in stored["ladder"])
        slices = tuple(SliceBound(**each) for each in stored["slices"])
        lists = {"ladder": ladder, "slices": slices, "prices": tuple(map(float, stored["prices"]))}
        found = cls(**{**stored, **lists})
        numbers = (found.bound, found.delta, *(rung.bound for rung in ladder))
        texts = [f.name for f in fields(cls) if f.type is str]
        sound = (
            found.loss in ("harm", "drop")
            and found.method in ("betting", "clopper_pearson")
            and all(isinstance(getattr(found, name), str) for name in texts)
            and all(isinstance(x, float) and 0 < x < 1 for x in numbers)
            and all(r.price is None or r.price in found.prices for r in ladder)
            and list(found.prices) == sorted(found.prices)
            and list(ladder) == sorted(ladder, key=lambda rung: rung.bound)
            and found.bound in [rung.bound for rung in ladder]
        )
        if not sound:
            raise ValueError("its parts do not fit together")
        return found
