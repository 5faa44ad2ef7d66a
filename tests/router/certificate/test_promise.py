"""A certificate: what it says, when it expires, and how a router keeps its bounds."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from router import (
    Certificate,
    ComplexityPredictor,
    Constraints,
    NotCertified,
    Policy,
    Reason,
    Router,
    RouterFileError,
    feature_schema,
)
from router.certificate.held import HeldCertificate
from router.certificate.promise import CERTIFICATE_FILE, Rung, SliceBound
from router.decision import AppliedBound, resolve_constraints

SCALES = (1, 9, 36)
COSTS = (1 / 36, 0.25, 1.0)
SCHEMA = feature_schema(SCALES, 6, 8)
ROW = np.zeros(len(SCHEMA.names), np.float32)


@pytest.fixture(scope="module")
def router() -> Router:
    """P(suffices) is .5, .7, .9 for everything; made for model "m"."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, len(SCHEMA.names))).astype(np.float32)
    labels = np.tile([0.5, 0.7, 0.9], (60, 1))
    predictor = ComplexityPredictor(calibration="none").fit(features, labels)
    return Router(predictor, SCHEMA, Policy(COSTS, 10.0), metadata={"model_hash": "m"})


def certificate(router: Router, **changes: object) -> Certificate:
    rungs = (
        Rung(0.005, None, 36.0, 0.0),
        Rung(0.01, -0.5, 36.0, 0.0),
        Rung(0.05, 0.5, 9.0, 0.02),
        Rung(0.1, 2.0, 1.0, 0.05),
    )
    made = Certificate(
        loss="harm", bound=0.01, delta=0.05, method="betting", population="pictures",
        scored_by="exact match", pictures=500, questions=900, created_utc="2026-11-22T10:00:00",
        router_version=router.version, predictor_hash=router.predictor_hash, model_hash="m",
        feature_schema=SCHEMA.hash, data_hash="d", prices=(-2.0, -0.5, 0.0, 0.2, 0.5, 2.0, 9.0),
        ladder=rungs, slices=(SliceBound("a/b", 10, 20, 0.01, 0.2, 36),),
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def bounded(router: Router, max_harm: float, cap: int | None = None):
    return router.route(ROW, Constraints(max_harm=max_harm, max_visual_tokens=cap))


def test_json_round_trip_and_damage(router: Router) -> None:
    made = certificate(router)
    assert Certificate.from_bytes(made.to_bytes()) == made
    assert made.rung.price == -0.5
    stored = made.to_json()
    for damage in (
        {"format": 2}, {"bound": 0.3}, {"loss": "luck"}, {"delta": "x"}, {"prices": [1.0, 0.0]},
        {"ladder": [{"bound": 0.01}]}, {"pictures": 1, "surprise": 1}, {"delta": 1.5},
    ):  # fmt: skip
        with pytest.raises(RouterFileError, match=CERTIFICATE_FILE):
            Certificate.from_bytes(json.dumps({**stored, **damage}).encode())
    for content in (b"", b"[]", b"\xff", b"null"):
        with pytest.raises(RouterFileError, match=CERTIFICATE_FILE):
            Certificate.from_bytes(content)


def test_the_cheapest_rung_within_the_bound_is_taken(router: Router) -> None:
    held = router.with_certificate(certificate(router))
    assert held.route(ROW).scale == 1  # its own price is 10: everything at the coarsest
    assert held.route(ROW).certified is None
    # By hand at price .5: .5 - .014, .7 - .125, .9 - .5, so 9 wins; at 2: .444, .2, -1.1.
    for asked, bound, price, scale in (
        (0.05, 0.05, 0.5, 9),
        (0.09, 0.05, 0.5, 9),
        (0.5, 0.1, 2, 1),
    ):
        decision = bounded(held, asked)
        assert (decision.scale, decision.price) == (scale, price)
        assert decision.certified == AppliedBound(bound, 0.05, price)
    assert bounded(held, 0.01).scale == 36
    lossless = bounded(held, 0.007)
    assert (lossless.scale, lossless.certified) == (36, AppliedBound(0.0, 0.0, None))


def test_a_router_safer_than_the_certificate_stays_safer(router: Router) -> None:
    held = router.with_certificate(certificate(router))
    timid = held.with_policy(Policy(COSTS, 0.3))
    assert bounded(timid, 0.1).price == 0.2  # the greatest tested price not above its own
    assert bounded(held.with_policy(Policy(COSTS, -5.0)), 0.1).scale == 36
    finest = bounded(held.with_policy(Policy(COSTS, 0.0, finest_only=True)), 0.1)
    assert (finest.scale, finest.certified) == (36, AppliedBound(0.0, 0.0, None))


def test_wishes_that_cannot_be_kept_are_refused(router: Router) -> None:
    held = router.with_certificate(certificate(router))
    with pytest.raises(NotCertified, match=r"tighter than what is certified \(0.005, 0.01"):
        bounded(held, 0.001)
    with pytest.raises(NotCertified, match="holds no certificate") as caught:
        bounded(router, 0.05)
    assert caught.value.code == "no_certificate"
    with pytest.raises(NotCertified, match="raise max_visual_tokens"):
        bounded(held, 0.05, cap=8)
    assert bounded(held, 0.05, cap=9).certified is not None  # the cap does not overrule the choice
    two = np.stack([ROW, ROW])
    with pytest.raises(NotCertified, match="one picture"):
        held.route(two, Constraints(max_harm=0.05))
    drops = router.with_certificate(certificate(router, loss="drop"))
    with pytest.raises(NotCertified, match="bounds the drop"):
        bounded(drops, 0.05)


def test_pins_and_bounds_together() -> None:
    assert resolve_constraints(scales=SCALES, routing_scale=36, max_harm=0.01).pinned == 36
    assert resolve_constraints(scales=SCALES, detail="original", n_pictures=2, max_harm=0.01)
    none = resolve_constraints(scales=SCALES, n_pictures=0, max_harm=0.01)
    assert none.reason is Reason.no_image
    for wish in ({"routing_scale": 9}, {"model_scale": 1}, {"detail": "low"}, {"n_pictures": 2}):
        with pytest.raises(NotCertified):
            resolve_constraints(scales=SCALES, max_harm=0.01, **wish)  # type: ignore[arg-type]


def test_the_finest_scale_needs_no_certificate(router: Router) -> None:
    limits = resolve_constraints(scales=SCALES, routing_scale=36, max_harm=0.01)
    assert router.route(None, limits).certified == AppliedBound(0.0, 0.0, None)


def test_a_certificate_is_saved_beside_the_router_and_not_in_its_version(
    router: Router, tmp_path: Path
) -> None:
    held = router.with_certificate(certificate(router))
    assert held.version == router.version
    again = Router.from_pretrained(held.save_pretrained(tmp_path / "r"))
    assert again.version == router.version
    assert again.held.certificate == held.held.certificate
    repriced = again.with_policy(Policy(COSTS, 1.0))
    assert repriced.held.certificate is not None  # a price is no part of what was certified
    assert repriced.version != router.version
    assert again.with_policy(Policy((0.1, 0.2, 1.0), 1.0)).held.certificate is None
    assert not (router.save_pretrained(tmp_path / "r") / CERTIFICATE_FILE).exists()


@pytest.mark.parametrize("name", ["predictor_hash", "model_hash"])
def test_it_expires_and_says_why(router: Router, tmp_path: Path, name: str) -> None:
    made = certificate(router, **{name: "other"})
    held = HeldCertificate.read(made.to_bytes(), predictor_hash=router.predictor_hash)
    held = held.checked(model_hash="m")
    assert held.certificate is None
    assert f"expired: it was made for {name.replace('_', ' ')} other" in held.refused
    folder = router.save_pretrained(tmp_path / "r")
    (folder / CERTIFICATE_FILE).write_bytes(made.to_bytes())
    served = Router.from_pretrained(folder).for_model("m")
    with pytest.raises(NotCertified, match=r"expired.*run m3-train certify again"):
        bounded(served, 0.05)
    assert served.route(ROW).scale == 1  # and everything else goes on


def test_another_model_is_another_predictor(router: Router) -> None:
    def hash_with(**facts: str) -> str:
        return Router(router.predictor, SCHEMA, router.policy, metadata=facts).predictor_hash

    assert hash_with(model_hash="m") == router.predictor_hash
    assert hash_with(model_hash="m", created_utc="now") == router.predictor_hash
    assert hash_with(model_hash="n") != router.predictor_hash


def test_a_damaged_certificate_stops_nothing_but_bounds(router: Router, tmp_path: Path) -> None:
    folder = router.save_pretrained(tmp_path / "r")
    (folder / CERTIFICATE_FILE).write_text("{")
    damaged = Router.from_pretrained(folder)
    assert damaged.route(ROW).scale == 1
    with pytest.raises(NotCertified, match="damaged"):
        bounded(damaged, 0.05)
