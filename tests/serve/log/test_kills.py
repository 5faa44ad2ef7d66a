"""Writers that are killed lose nothing that they acknowledged."""

from __future__ import annotations

from pathlib import Path

import pytest
from _loop.log_kills import kill_writers


@pytest.mark.parametrize("kills", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_nothing_acknowledged_is_lost_to_kill_9(tmp_path: Path, kills: int) -> None:
    found = kill_writers(tmp_path / "log", kills, seed=kills)
    assert found.pop("acknowledged") > 3 * kills
    assert found == {"kills": kills, "lost": 0, "unreadable_files": 0, "read_twice": 0}
