"""What the documents promise: README code compiles, commands exist, links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MODULES = {"m3-serve": "serve.cli", "m3-train": "training.cli"}


def blocks(page, *kinds):
    return [text for kind, text in BLOCK.findall(page.read_text("utf-8")) if kind in kinds]


def commands(page):
    """Yield (program, subcommand, long options) of every m3 command shown in a page."""
    for block in blocks(page, "bash", "console", "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\||;", line.split(" #")[0]):
                words = part.split()
                if words[:1] and words[0] in MODULES and len(words) > 1:
                    yield words[0], words[1], sorted(w for w in words if w.startswith("--"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_compile(page):
    for number, block in enumerate(blocks(page, "python")):
        compile(block, f"{page.name} block {number}", "exec")


def test_readme_shows_the_two_commands_and_the_clients():
    text = (ROOT / "README.md").read_text("utf-8")
    for said in (
        "make demo",
        "make serve",
        "from openai import OpenAI",
        "from serve.client import",
    ):
        assert said in text


def test_make_has_every_target_the_documents_name():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {
        name
        for page in PAGES
        for name in re.findall(r"(?:^|`)make ([a-z]+)", page.read_text("utf-8"), re.MULTILINE)
    }
    assert named <= targets
    assert {"bench", "check", "clean", "demo", "serve", "test"} <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.fixture(scope="module")
def help_of(command):
    """Return a function from (program, subcommand...) to its help text, run once each."""
    known = {}

    def run(program, *subcommand):
        key = (program, *subcommand)
        if key not in known:
            known[key] = command(program, *subcommand, "--help")
        return known[key]

    return run


@pytest.mark.parametrize("program", MODULES)
def test_console_commands_have_help(program, help_of):
    overview = help_of(program)
    assert overview.returncode == 0, overview.stderr
    subcommands = set(re.findall(r"^[\s│]*([a-z][a-z-]+)\s{2,}\S", overview.stdout, re.MULTILINE))
    assert subcommands
    for subcommand in subcommands:
        assert help_of(program, subcommand).returncode == 0, subcommand


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_documents_exist_with_their_options(page, help_of):
    for program, subcommand, options in commands(page):
        shown = help_of(program, subcommand)
        assert shown.returncode == 0, f"{program} {subcommand}"
        for option in options:
            assert option.split("=")[0] in shown.stdout, f"{program} {subcommand} {option}"


def test_decisions_are_numbered_and_short():
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{n + 1:04d}" for n in range(len(pages))]
    for page in pages:
        assert len(page.read_text("utf-8").splitlines()) <= 60, page.name


def test_the_console_is_one_page_that_needs_nothing_from_elsewhere():
    page = (ROOT / "serve" / "console" / "index.html").read_text("utf-8")
    assert not re.search(r"https?://|@import|<link[^>]+stylesheet|<script[^>]+src", page)
    used = set(re.findall(r'\$\("([\w-]+)"\)', page))
    assert used
    assert used <= set(re.findall(r'\bid="([\w-]+)"', page))
