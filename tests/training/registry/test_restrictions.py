"""Restricting what is in force, and `m3-train quarantine`, as the journal tells them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from router.registry import Restriction, Trial, history, last_entry
from training.errors import NotInForce
from training.registry.changes import promote, rollback
from training.registry.journal import append, read_state
from training.registry.restrictions import restrict
from training.registry.versions import versions

ANCHOR = Restriction(None, "it loses answers")


def test_a_restriction_stands_until_it_is_lifted(routers: list[Path], tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    folder = promote(routers[0], registry)
    assert restrict(ANCHOR, registry, who="Ann")
    entry = last_entry(registry)
    assert entry is not None
    assert (entry.action, entry.before, entry.to) == ("restrict", folder.name, folder.name)
    assert (entry.restriction, entry.who, entry.why) == (ANCHOR, "Ann", "it loses answers")
    assert versions(registry)[0].marks == ("in force", "restricted")
    assert not restrict(ANCHOR, registry)  # nothing changes, nothing is written
    assert len(history(registry)) == 2
    assert restrict(None, registry, why="well again")
    assert read_state(registry).restriction is None
    assert not restrict(None, registry)


@pytest.mark.parametrize("change", ["promote", "rollback"])
def test_another_router_is_free(routers: list[Path], tmp_path: Path, change: str) -> None:
    registry = tmp_path / "registry"
    promote(routers[0], registry)
    restrict(ANCHOR, registry)
    if change == "promote":
        promote(routers[1], registry)
    else:
        rollback(registry)
    assert read_state(registry).restriction is None


def test_what_services_start_with_can_be_restricted(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    assert restrict(Restriction(0.02, "moved"), registry, expect="start")
    entry = last_entry(registry)
    assert entry is not None
    assert (entry.to, entry.restriction) == (None, Restriction(0.02, "moved"))


def test_a_restriction_is_of_what_was_judged(routers: list[Path], tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    first = promote(routers[0], registry)
    promote(routers[1], registry)
    with pytest.raises(NotInForce, match="not restricted"):
        restrict(ANCHOR, registry, expect=first.name)
    assert read_state(registry).restriction is None


def test_a_trial_goes_on(routers: list[Path], tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    promote(routers[0], registry)
    trial, state = Trial("shadow", "other-router", 0.5), read_state(registry)
    assert append(
        registry, state, state.next("try", "other-router", state.current, "", "", trial=trial)
    )
    restrict(ANCHOR, registry)
    assert (read_state(registry).trial, read_state(registry).restriction) == (trial, ANCHOR)


def test_the_command_puts_in_quarantine(
    command: Callable[..., Any], routers: list[Path], tmp_path: Path
) -> None:
    registry = tmp_path / "registry"
    first = promote(routers[0], registry)
    second = promote(routers[1], registry)

    def train(word: str, *arguments: object) -> Any:
        return command("m3-train", word, *arguments, "--registry", registry)

    done = train("quarantine", first.name, "--who", "Ann", "--why", "wrong on receipts")
    assert done.returncode == 0, done.stderr
    entry = last_entry(registry)
    assert entry is not None
    assert (entry.action, entry.before, entry.to) == ("quarantine", first.name, second.name)
    assert (entry.who, entry.why) == ("Ann", "wrong on receipts")
    refused = train("promote", "--router", routers[0])
    assert (refused.returncode, "error: " in refused.stderr) == (2, True)
    in_force = train("quarantine", second.name)
    assert in_force.returncode == 2
    assert "is in force: roll back" in in_force.stderr
    unknown = train("quarantine", "nothing-of-the-sort")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
