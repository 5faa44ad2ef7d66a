"""A file takes its place whole, or the one before stays as it was."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from training.files import clear_leftovers, replacing, write_json


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_json(path, {"b": 1, "a": [2]})
    before = path.read_bytes()
    assert before == b'{\n "a": [\n  2\n ],\n "b": 1\n}\n'
    with replacing(path) as temporary:
        temporary.write_text("half")
        assert path.read_bytes() == before
    assert path.read_text() == "half"
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_old_file_stays_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(InterruptedError), replacing(path) as temporary:
        interrupted_after_half(temporary)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def interrupted_after_half(path: Path) -> None:
    path.write_text("half")
    raise InterruptedError


def test_what_a_killed_process_leaves_can_be_cleared(tmp_path: Path) -> None:
    path, other = tmp_path / "facts.json", tmp_path / "facts.json.gz"
    other.touch()
    code = f"""
import os, signal
from pathlib import Path
from training.files import replacing
with replacing(Path({str(path)!r})) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    clear_leftovers(path)
    assert list(tmp_path.iterdir()) == [other]
