"""The router that an encoder asks: failures, the registry that is followed, routers that fit."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3model import default_model_path
from m3model.config import hash_model
from m3model.engine.recipe import label_recipe_hash, model_of
from router import Router, default_router_path
from router.actions import ActionSpace, uniform_space
from router.decision import Constraints, Reason
from router.places import StoredPlace, as_place
from router.registry import last_entry
from serve.errors import ServeSetupError
from serve.stages.encoder import Encoder
from serve.stages.messages import EncodeRequest

from .conftest import ask

Picture = Callable[..., bytes]


def test_a_dead_router_costs_tokens_not_answers(
    make_encoder: Callable[..., Encoder], make_router: Any, picture_bytes: Picture, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    make_router(tmp_path / "r", 1)
    encoder = make_encoder(router=tmp_path / "r")

    class Dead:
        version, space = "dead", uniform_space((1, 9, 36, 144, 576))

        def route(self, *arguments: Any) -> None:
            raise FloatingPointError("no number")

    encoder._router.current = Dead()  # type: ignore[assignment]
    for _ in range(3):
        decision = ask(encoder, picture_bytes(0)).decision
        assert (decision.scale, decision.reason) == (576, Reason.fallback)
    assert ask(encoder, picture_bytes(0), max_visual_tokens=200).decision.scale == 144
    pinned = ask(encoder, picture_bytes(0), pinned=9, reason=Reason.pinned).decision
    assert (pinned.scale, pinned.reason) == (9, Reason.pinned)
    text = asyncio.run(encoder._metrics.text())
    assert "m3_routing_failures_total 4.0" in text
    assert sum("routing failed" in record.message for record in caplog.records) == 1


def test_without_a_router_the_finest_scale_is_used(
    make_encoder: Callable[..., Encoder], picture_bytes: Picture
) -> None:
    decision = ask(make_encoder(), picture_bytes(0)).decision
    assert (decision.scale, decision.reason, decision.router_version) == (576, Reason.fallback, "")
    assert ask(make_encoder()).decision.reason is Reason.no_image


def test_the_registry_is_followed_and_bad_routers_change_nothing(
    make_encoder: Callable[..., Encoder], make_router: Any, promote: Any, tmp_path: Path
) -> None:
    registry = tmp_path / "registry"
    first = make_router(registry / "a", 9)
    second = make_router(registry / "b", 144)
    make_router(registry / "damaged", 1)
    (registry / "damaged" / "scale_0009.txt").write_text("tree\n")
    promote(registry, registry / "a")
    encoder = make_encoder(registry=registry)

    assert encoder._router.version == first
    promote(registry, registry / "damaged")
    wait_for(lambda: not encoder._router.ok)
    assert encoder._router.version == first
    assert "m3_router_stale 1.0" in asyncio.run(encoder._metrics.text())
    promote(registry, registry / "b")
    wait_for(lambda: encoder._router.version == second)
    assert encoder._router.ok
    with pytest.MonkeyPatch.context() as disk:

        def fails(*_: object, **__: object) -> str:
            raise OSError(5, "Input/output error")

        disk.setattr(Path, "read_text", fails)
        wait_for(lambda: not encoder._router.ok)
        assert encoder._router.version == second
    promote(registry, registry / "a")  # a rollback; the registry is followed on
    wait_for(lambda: encoder._router.version == first)


@pytest.mark.parametrize("starts_with", ["--router", "the registry's", "nothing"])
def test_when_all_is_rolled_back_the_router_of_the_start_is_served(
    make_encoder: Callable[..., Encoder], make_router: Any, promote: Any, tmp_path: Path,
    starts_with: str,
) -> None:  # fmt: skip
    registry, given = tmp_path / "registry", tmp_path / "given"
    first, promoted = make_router(given, 9), make_router(registry / "a", 144)
    if starts_with == "the registry's":  # a replica that came later knows no other at first
        promote(registry, registry / "a")
    router = None if starts_with == "nothing" else given
    encoder = make_encoder(registry=registry, router=router)
    live = encoder._router
    if starts_with != "the registry's":
        promote(registry, registry / "a")
        wait_for(lambda: live.version == promoted)
    for _ in range(2):
        promote(registry, None)
        wait_for(lambda: live.version == ("" if router is None else first) and live.ok)
        promote(registry, registry / "a")
        wait_for(lambda: live.version == promoted and live.ok)


def test_what_was_chosen_is_served_again_when_all_is_rolled_back(
    make_encoder: Callable[..., Encoder], make_router: Any, promote: Any, tmp_path: Path
) -> None:
    registry = tmp_path / "registry"
    make_router(tmp_path / "given", 9)
    chosen, promoted = make_router(tmp_path / "chosen", 36), make_router(registry / "a", 144)
    encoder = make_encoder(registry=registry, router=tmp_path / "given")
    live = encoder._router
    assert asyncio.run(encoder.choose_router(tmp_path / "chosen"))
    promote(registry, registry / "a")
    wait_for(lambda: live.version == promoted and not live.ok)
    promote(registry, None)
    wait_for(lambda: live.version == chosen and live.ok)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "cannot read"),
        ('{"seq": 2, "act', "cannot read"),
        ("[" * 100_000, "cannot read"),
        ("[]", "holds no JSON object"),
        ('{"seq": 2}', "has no action"),
        ({"seq": 3}, "number 3"),
        ({"to": "../../etc"}, "to is '../../etc'"),
        ({"to": "gone"}, "names 'gone'"),
        ({"action": "canary"}, "an action 'canary'"),
        ({"to": 5}, "to is 5"),
    ],
)
def test_a_torn_or_foreign_entry_is_named_in_a_line_and_changes_nothing(
    make_encoder: Callable[..., Encoder], make_router: Any, promote: Any, tmp_path: Path,
    caplog: pytest.LogCaptureFixture, content: str | dict[str, Any], says: str,
) -> None:  # fmt: skip
    first, second = make_router(tmp_path / "a", 9), make_router(tmp_path / "b", 36)
    promote(tmp_path, tmp_path / "a")
    encoder = make_encoder(registry=tmp_path)
    live, damaged = encoder._router, tmp_path / "journal/00000002.json"
    written = json.loads((tmp_path / "journal/00000001.json").read_text())
    if not isinstance(content, str):
        content = json.dumps({**written, "seq": 2, **content})
    (tmp_path / "journal/notes.txt").write_text("of no concern")
    damaged.write_text(content)
    wait_for(lambda: not live.ok)
    assert live.version == first
    [line] = {record.getMessage() for record in caplog.records if record.name.startswith("serve")}
    assert (says in line, str(damaged) in line, "\n" in line) == (True, True, False)
    damaged.unlink()
    promote(tmp_path, tmp_path / "b")
    wait_for(lambda: live.version == second and live.ok)


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen within 20 s")


def test_a_registry_that_names_nothing_complains_of_nothing_once_it_can_be_read(
    make_encoder: Callable[..., Encoder], tmp_path: Path
) -> None:
    encoder = make_encoder(registry=tmp_path)
    (tmp_path / "current").mkdir()  # as unreadable as a disk that fails
    deadline = time.monotonic() + 4
    while encoder._router.ok and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not encoder._router.ok
    (tmp_path / "current").rmdir()
    while not encoder._router.ok and time.monotonic() < deadline:
        time.sleep(0.02)
    assert encoder._router.ok
    assert "m3_router_stale 0.0" in asyncio.run(encoder._metrics.text())


def fitted_for(folder: Path, **facts: str) -> Path:
    """The router in a folder, as if it had been fitted on such answers."""
    router = Router.from_pretrained(folder)
    router.with_policy(router.policy, facts).save_pretrained(folder)
    return folder


def test_a_router_of_another_model_is_never_served(
    make_encoder: Callable[..., Encoder], make_router: Any, promote: Any, tiny_model: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    weights, recipe = hash_model(tiny_model), label_recipe_hash(tiny_model, "bfloat16", 16)
    registry = tmp_path / "registry"
    for name in ("other-weights", "other-template", "both", "weights-alone", "neither"):
        make_router(registry / name, 9)
    bad = [
        (fitted_for(registry / "other-weights", model_hash="0" * 16),
         rf"fitted for model 0{{16}}, the service's is {weights}: fit one on its answers"),
        (fitted_for(registry / "other-template", model_hash=weights,
                    label_recipe=f"{'0' * 16}-float32-16"),
         rf"answers of recipe 0{{16}}, the service's is {recipe[:16]}: its tokenizer, template"),
    ]  # fmt: skip
    good = [
        # Labelled on a GPU with answers of 16 tokens: the same model.
        fitted_for(registry / "both", model_hash=weights, label_recipe=recipe),
        fitted_for(registry / "weights-alone", model_hash=weights),  # of before recipes
        registry / "neither",  # of before all that
    ]
    for folder, sentence in bad:  # at the start
        with pytest.raises(ServeSetupError, match=sentence):
            make_encoder(router=folder)
    for folder in good:
        assert make_encoder(router=folder)._router.ok
    promote(registry, registry / "neither")
    encoder = make_encoder(registry=registry)
    version = encoder._router.version
    for folder, _ in bad:  # while running
        assert not encoder._router.swap_to(folder)
        assert (encoder._router.version, encoder._router.ok) == (version, False)
    assert encoder._router.swap_to(registry / "both")
    assert encoder._router.ok


def test_the_shipped_router_is_the_shipped_models() -> None:
    facts = Router.from_pretrained(default_router_path()).metadata
    assert facts["model_hash"] == hash_model(default_model_path())
    recipe = facts.get("label_recipe")  # routers of before have none
    assert recipe is None or model_of(recipe) == label_recipe_hash(default_model_path())


def test_what_was_decided_is_told_with_what_it_was_held_to(
    make_encoder: Callable[..., Encoder], make_router: Any, picture_bytes: Picture,
    tiny_model: Path, tmp_path: Path,
) -> None:  # fmt: skip
    make_router(tmp_path / "r", 36)
    encoder = make_encoder(router=tmp_path / "r", log_dir=tmp_path / "log")
    encoded = ask(encoder, picture_bytes(0), max_visual_tokens=40, focus=False)
    assert encoded.constraints == Constraints(max_visual_tokens=40, focus=False)
    assert encoded.label_recipe == label_recipe_hash(tiny_model, "float32")
    assert encoded.certificate is None
    # What the context leaves room for is a limit too: the conversation is long.
    words = {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "red " * 2020}],
    }
    long = EncodeRequest((picture_bytes(0),), "What?", Constraints(), prompt=(words,))
    encoded = asyncio.run(encoder.encode_and_route(long))
    room = encoded.constraints and encoded.constraints.max_visual_tokens
    assert room is not None
    assert encoded.decision.scale <= room < 36
    assert make_encoder(log_dir=None)._recipe is None


def test_a_registrys_router_is_not_exchanged_by_another_source(
    make_encoder: Callable[..., Encoder], make_router: Any, promote: Any, tmp_path: Path
) -> None:
    registry = tmp_path / "registry"
    version = {name: make_router(registry / name, n) for name, n in (("a", 9), ("b", 144))}
    chosen = make_router(tmp_path / "chosen", 36)
    encoder = make_encoder(registry=registry)

    def choose(folder: Path | None) -> bool:
        return asyncio.run(encoder.choose_router(folder))

    def gauge() -> str:
        text = asyncio.run(encoder._metrics.text())
        return next(x for x in text.splitlines() if x.startswith("m3_router_stale ")).split()[1]

    assert choose(tmp_path / "chosen")  # the registry points to nothing: one source
    assert (encoder._router.version, encoder._router.ok) == (chosen, True)
    promote(registry, registry / "a")  # it counts as soon as it is there, and not in silence
    for _ in range(200):
        if encoder._router.version == version["a"]:
            break
        time.sleep(0.02)
    assert (encoder._router.version, encoder._router.ok, gauge()) == (version["a"], False, "1.0")
    assert not choose(tmp_path / "chosen")
    promote(registry, registry / "b")
    for _ in range(200):
        if encoder._router.version == version["b"]:
            break
        time.sleep(0.02)
    # A new router of the registry mends nothing: user_config still says something else.
    assert (encoder._router.version, encoder._router.ok, gauge()) == (version["b"], False, "1.0")
    assert choose(None)
    assert (encoder._router.version, encoder._router.ok, gauge()) == (version["b"], True, "0.0")
    shutil.rmtree(registry / "journal")
    assert choose(tmp_path / "chosen")
    time.sleep(0.1)
    assert encoder._router.version == chosen


def test_an_explicit_router_must_fit(
    make_encoder: Callable[..., Encoder], make_router: Any, promote: Any, tmp_path: Path
) -> None:
    from router import ComplexityPredictor, Policy, Router, feature_schema

    schema = feature_schema((1, 4), 2, 64)
    X = np.random.default_rng(0).standard_normal((20, len(schema.names))).astype(np.float32)
    predictor = ComplexityPredictor().fit(X, np.ones((20, 2)))
    Router(predictor, schema, Policy(costs=(0.1, 1.0), price=0.1)).save_pretrained(tmp_path / "r")
    with pytest.raises(ServeSetupError, match="scales"):
        make_encoder(router=tmp_path / "r")
    with pytest.raises(ServeSetupError, match="cannot be used"):
        make_encoder(router=tmp_path / "nothing")


def test_a_focus_must_be_of_the_models_levels(
    make_encoder: Callable[..., Encoder], make_focus_router: Any, tmp_path: Path
) -> None:
    fits = make_focus_router(tmp_path / "fits", "576")
    assert make_encoder(router=tmp_path / "fits")._router.version == fits.version
    for level, found in (("coarse", "4 and 144"), ("fine", "9 and 16")):
        other = replace(fits.space.actions[2], **{level: 4 if level == "coarse" else 16})
        space = ActionSpace((*fits.space.actions[:2], other, *fits.space.actions[3:]))
        Router(fits.predictor, fits.schema, fits.policy, space=space).save_pretrained(
            tmp_path / level
        )
        with pytest.raises(ServeSetupError, match=f"reads levels {found}, the model has"):
            make_encoder(router=tmp_path / level)


def test_a_registry_in_an_object_store_is_followed(
    make_encoder: Callable[..., Encoder], make_router: Any, picture_bytes: Picture, tmp_path: Path,
    s3: str, monkeypatch: pytest.MonkeyPatch, command: Any,
) -> None:  # fmt: skip
    versions = [make_router(tmp_path / name, scale) for name, scale in [("a", 9), ("b", 144)]]

    def train(*words: object) -> None:
        done = command("m3-train", *words, "--registry", s3)
        assert done.returncode == 0, done.stderr

    def becomes(ok: bool, version: str) -> bool:
        give_up, router = time.monotonic() + 60, encoder._router
        while (router.ok, router.version) != (ok, version) and time.monotonic() < give_up:
            time.sleep(0.01)
        return (router.ok, router.version) == (ok, version)

    train("promote", "--force", "--router", tmp_path / "a")
    encoder = make_encoder(registry=as_place(s3))
    assert encoder._router.version == versions[0]
    train("promote", "--force", "--router", tmp_path / "b")
    assert becomes(True, versions[1])
    assert ask(encoder, picture_bytes(0)).decision.scale == 144
    # One whose bytes are not what its folder's name says is not loaded; the router stays.
    entry = last_entry(s3)
    assert entry is not None
    other = as_place(s3) / f"{'0' * 12}-{'0' * 8}"
    assert isinstance(other, StoredPlace)
    for path in sorted((tmp_path / "b").iterdir()):
        (other / path.name).write_bytes(path.read_bytes())
    wrong = replace(entry, seq=entry.seq + 1, before=entry.to, to=other.name)
    journal = other.parent / "journal"
    assert (journal / f"{wrong.seq:08d}.json").create(wrong.to_bytes())
    assert becomes(False, versions[1])
    train("rollback")
    assert becomes(True, versions[1])
    # The store is away for a while.
    with monkeypatch.context() as patch:
        patch.setattr(StoredPlace, "read_bytes", _away)
        assert becomes(False, versions[1])
    assert becomes(True, versions[1])


def _away(place: StoredPlace) -> bytes:
    raise OSError(5, "no answer", str(place))
