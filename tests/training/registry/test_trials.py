"""Trials in the journal: begun, changed, ended by every change that ends them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from router.registry import Restriction, Trial, last_entry
from training.errors import NotInForce, Quarantined, TrainingError
from training.registry.changes import (
    end_trial,
    history,
    on_trial,
    promote,
    quarantine,
    rollback,
    try_out,
)
from training.registry.journal import append, read_state
from training.registry.versions import clear_away, versions


def told(registry: Path) -> tuple[str, str | None, Trial | None]:
    entry = last_entry(registry)
    assert entry is not None
    return entry.action, entry.to, entry.trial


def test_a_trial_begins_changes_and_ends(tmp_path: Path, routers: list[Path]) -> None:
    registry = tmp_path / "registry"
    live = promote(routers[0], registry).name
    tried = try_out(routers[1], "shadow", 1.0, registry, who="me", why="look").name
    assert told(registry) == ("try", live, Trial("shadow", tried, 1.0))
    assert try_out(routers[1], "canary", 0.1, registry).name == tried
    assert told(registry) == ("try", live, Trial("canary", tried, 0.1))
    assert on_trial(registry, "canary").router == tried
    with pytest.raises(
        TrainingError, match=f"no shadow is on trial .*{tried} is tried as a canary"
    ):
        end_trial("shadow", registry)
    assert end_trial("canary", registry, why="enough") == tried
    assert told(registry) == ("try", live, None)
    with pytest.raises(TrainingError, match="no canary is on trial"):
        end_trial("canary", registry)
    assert not read_state(registry).is_quarantined(tried)
    assert [each.action for each in history(registry)] == ["promote", "try", "try", "try"]


def test_one_router_is_tried_at_a_time(tmp_path: Path, routers: list[Path]) -> None:
    registry = tmp_path / "registry"
    tried = try_out(routers[1], "canary", 0.2, registry).name  # nothing was ever promoted
    assert told(registry) == ("try", None, Trial("canary", tried, 0.2))
    with pytest.raises(TrainingError, match=f"{tried} is on trial as a canary; end that first"):
        try_out(routers[2], "canary", 0.1, registry)
    with pytest.raises(NotInForce, match="not tried: start is in force, not x"):
        try_out(routers[1], "canary", 0.1, registry, expect="x")


@pytest.mark.parametrize(("kind", "share"), [
    ("canary", 0.0), ("canary", -1.0), ("canary", 0.6), ("canary", float("nan")), ("shadow", 1.1),
])  # fmt: skip
def test_a_share_that_is_none_is_refused(
    tmp_path: Path, routers: list[Path], kind: Any, share: float
) -> None:
    with pytest.raises(TrainingError, match=f"--share of a {kind} must be above 0"):
        try_out(routers[1], kind, share, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_promotion_and_rollback_end_a_trial(tmp_path: Path, routers: list[Path]) -> None:
    registry = tmp_path / "registry"
    promote(routers[0], registry)
    tried = try_out(routers[1], "canary", 0.2, registry)
    assert promote(routers[1], registry) == tried
    assert told(registry) == ("promote", tried.name, None)
    with pytest.raises(TrainingError, match="is in force already"):
        try_out(routers[1], "shadow", 1.0, registry)
    try_out(routers[2], "canary", 0.2, registry)
    rollback(registry)
    assert told(registry)[2] is None
    with pytest.raises(Quarantined, match=r"not tried: router .* was rolled back"):
        try_out(routers[1], "canary", 0.2, registry)


def test_quarantine_ends_the_trial_of_that_router_alone(
    tmp_path: Path, routers: list[Path]
) -> None:
    registry = tmp_path / "registry"
    live = promote(routers[0], registry).name
    tried = try_out(routers[1], "canary", 0.2, registry).name
    other = promote_aside(routers[2], registry)
    quarantine(other, registry)
    assert told(registry) == ("quarantine", live, Trial("canary", tried, 0.2))
    assert end_trial("canary", registry, bad=True, why="slow") == tried
    assert told(registry) == ("quarantine", live, None)
    assert [each.action for each in history(registry)][-1:] == ["quarantine"]  # in one entry
    with pytest.raises(Quarantined, match=r"\(slow\)"):
        try_out(routers[1], "canary", 0.2, registry)


def promote_aside(router: Path, registry: Path) -> str:
    """Return the name of a router that a service never served, as quarantine takes it."""
    from router import Router

    return Router.from_pretrained(router).version


def test_what_the_live_router_is_held_to_goes_on(tmp_path: Path, routers: list[Path]) -> None:
    registry = tmp_path / "registry"
    live = promote(routers[0], registry).name
    state, held = read_state(registry), Restriction(0.01, "drift")
    assert append(registry, state, state.next("restrict", live, live, "", "", restriction=held))
    try_out(routers[1], "canary", 0.2, registry)
    assert read_state(registry).restriction == held
    end_trial("canary", registry)
    assert (read_state(registry).restriction, read_state(registry).trial) == (held, None)


def test_a_tried_router_is_listed_and_never_cleared_away(
    tmp_path: Path, routers: list[Path]
) -> None:
    registry = tmp_path / "registry"
    tried = try_out(routers[0], "canary", 0.25, registry).name
    assert ("canary 0.25",) in [each.marks for each in versions(registry) if each.name == tried]
    assert clear_away(registry, keep=0) == []
    end_trial("canary", registry)
    assert clear_away(registry, keep=0) == [tried]
