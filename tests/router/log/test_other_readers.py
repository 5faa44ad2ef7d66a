"""The lines of docs/operations.md by which others read a log, run as they stand there."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

from router.log import compact

from .conftest import decision

PAGE = Path(__file__).parents[3] / "docs" / "operations.md"
READ = re.search(r"from router\.log import read_log\n.*", PAGE.read_text("utf-8"))
LINES = re.findall(r"^import (duckdb|pandas|polars); (.*)$", PAGE.read_text("utf-8"), re.MULTILINE)


@pytest.fixture
def log(tmp_path, segment, monkeypatch):
    """Four decisions, half of them compacted, where the page says that a log is."""
    folder = tmp_path / ".m3" / "log"
    segment(folder, [decision(0, scale=9), decision(1)])
    compact(folder)
    segment(folder, [decision(2), decision(3)])
    monkeypatch.chdir(tmp_path)
    return folder


def needed(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: it is no dependency")
    return importlib.import_module(name)


@pytest.mark.parametrize(("name", "line"), LINES, ids=[name for name, _ in LINES])
def test_the_lines_of_the_page_read_everything(log, name, line):
    needed(name)
    names = {}
    exec(f"{READ[0]}\nimport {name}; {line}", names)
    found = names["by_scale"]
    rows = {"duckdb": lambda: found.fetchall(), "pandas": lambda: list(found.items()),
            "polars": lambda: found.rows()}[name]()  # fmt: skip
    assert [tuple(map(int, row)) for row in rows] == [(9, 1), (36, 3)]


@pytest.mark.parametrize("name", ["duckdb", "pandas", "polars"])
def test_what_is_compacted_is_plain_parquet(log, name):
    reader, files = needed(name), str(log / "decisions" / "**" / "*.parquet")
    if name == "duckdb":
        found = reader.sql(f"SELECT count(*) FROM read_parquet('{files}', union_by_name=true)")
        assert found.fetchall() == [(2,)]
    else:
        assert len(reader.read_parquet(log / "decisions" if name == "pandas" else files)) == 2


def test_the_page_has_a_line_for_each():
    assert [name for name, _ in LINES] == ["duckdb", "pandas", "polars"]
