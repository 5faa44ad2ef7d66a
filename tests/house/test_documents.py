"""What the documents promise: code compiles, commands exist, links lead somewhere, figures are
those of the results, and what is written from the code is what the code says now.

That the commands of README and tutorial work is shown by test_walkthrough.py, which runs them.
"""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MODULES = {"m3-serve": "serve.cli", "m3-train": "training.cli"}
GROUPS = {"config", "log"}  # whose commands have a name of two words


def blocks(page, *kinds):
    return [text for kind, text in BLOCK.findall(page.read_text("utf-8")) if kind in kinds]


def commands(page):
    """Yield (program, words of the subcommand, long options) of every m3 command in a page."""
    for block in blocks(page, "bash", "console", "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\||;", line.split(" #")[0]):
                words = part.split()
                if words[:1] and words[0] in MODULES and len(words) > 1:
                    subcommand = words[1:3] if words[1] in GROUPS else words[1:2]
                    yield words[0], subcommand, sorted(w for w in words if w.startswith("--"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_compile(page):
    for number, block in enumerate(blocks(page, "python")):
        compile(block, f"{page.name} block {number}", "exec")


def test_readme_is_short_and_shows_the_two_commands_and_the_clients():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 130
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


def headings(page):
    """Return the anchors that GitHub gives a page's headings."""
    prose = BLOCK.sub("", page.read_text("utf-8"))
    words = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", word.lower()).replace(" ", "-") for word in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    text = page.read_text("utf-8")
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    wrong = []
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and anchor not in headings(target)):
            wrong.append(link)
    assert wrong == []


def test_the_index_leads_to_every_page():
    text = (ROOT / "docs" / "index.md").read_text("utf-8")
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert sorted(page for page in pages - {"index.md"} if f"({page})" not in text) == []


def test_readme_explains_a_term_where_it_first_says_it():
    text = re.sub(r"`[^`]*`", "", BLOCK.sub("", (ROOT / "README.md").read_text("utf-8")))
    for term in ("price", "harm", "oracle", "anchor", "certificate", "readout"):
        first = re.search(rf"(\*\*)?\b{term}\b", text, re.IGNORECASE)
        assert first, term
        assert first.group(1), f"{term} is used before it is explained"


def test_readmes_rows_are_the_committed_result():
    found = json.loads((ROOT / "benchmarks/results/routing_quality.json").read_text("utf-8"))
    points = {f"always {point['scale']}": point for point in found["fixed"]}
    points["best scale for each kind of question"] = found["baselines"]["type_table"]
    points["our router without focus"] = found["baselines"]["uniform_router"]
    points["router"] = found["router"]
    text = (ROOT / "README.md").read_text("utf-8").replace("**", "")
    rows = {
        cells[1]: cells
        for line in text.splitlines()
        if (cells := [cell.strip() for cell in line.split("|")])[1:2] and cells[1] in points
    }
    assert list(rows) == ["always 36", "always 144", *list(points)[-4:]]
    for name, cells in rows.items():
        point = points[name]
        mean, low, high = (
            100 * point["difference_from_finest"][k] for k in ("mean", "low", "high")
        )
        against = "" if name == "always 576" else f"{mean:.2f} ({low:.2f} to {high:.2f})"
        assert cells[2:6] == [
            f"{100 * point['accuracy']:.1f} %", against, f"{point['visual_tokens']:.0f}",
            f"{100 * point['visual_tokens'] / 576:.1f} %",
        ]  # fmt: skip
    assert f"{found['n_questions']:,} questions about {found['n_pictures']:,}" in text
    ratios = found["token_ratio_at_equal_accuracy"]
    assert f"{1 / ratios['fixed_mixture']['mean']:.1f} x the tokens" in text
    assert f"knows the kind of question {1 / ratios['type_table']['mean']:.1f} x" in text
    told = " ".join(text.split())
    assert f"our router without focus {1 / ratios['uniform_router']['mean']:.1f} x" in told


def script(name):
    """Return a script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_code_says():
    maker = script("make_reference")
    assert maker.PAGE.read_text("utf-8") == maker.page(), "out of date: run make docs"


def test_the_curve_is_that_of_the_committed_result(tmp_path):
    maker = script("make_figures")
    maker.draw_curve(tmp_path / "curve.png")
    drawn, shown = (
        np.asarray(Image.open(path).convert("RGB"), float)
        for path in (tmp_path / "curve.png", maker.IMAGES / "curve.png")
    )
    assert drawn.shape == shown.shape
    assert np.abs(drawn - shown).mean() < 2, "out of date: run make docs"  # fonts may differ a bit


def test_the_reference_names_every_environment_variable():
    text = (ROOT / "docs" / "reference.md").read_text("utf-8")
    reads = re.compile(r"""environ(?:\.get)?[([]\s*["'](\w+)|envvar="(\w+)\"""")
    named = {
        name
        for package in ("m3model", "router", "serve", "training")
        for path in (ROOT / package).rglob("*.py")
        for names in reads.findall(path.read_text("utf-8"))
        for name in names
        if name
    }
    assert named >= {"M3_URL", "RANK"}
    assert sorted(name for name in {*named, "M3_API_KEYS"} if f"`{name}`" not in text) == []


def test_the_architectures_tree_is_the_folders():
    (tree,) = blocks(ROOT / "docs" / "architecture.md", "tree")
    shown, parent = [], ""
    for line in tree.splitlines():
        indent, name = re.match(r"( *)(\S+)/ ", line).groups()
        parent = parent if indent else name
        shown.append(f"{parent}/{name}" if indent else name)
    made = {"__pycache__", "build", "dist", "runs"}
    top = [p for p in ROOT.iterdir() if p.is_dir() and p.name[0] != "." and p.name not in made]
    there = [p.name for p in top]
    for package in ("m3model", "router", "serve", "training"):
        rooms = (p for p in (ROOT / package).iterdir() if p.is_dir() and p.name not in made)
        there += [f"{package}/{room.name}" for room in rooms]
    assert sorted(shown) == sorted(there)


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
        shown = help_of(program, *subcommand)
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
