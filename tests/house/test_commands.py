"""The commands as a newcomer meets them: whole help at 80 columns, one version everywhere."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from m3model.convert.checkpoint import app as convert
from serve.cli import app as serve
from training.cli.program import app as train

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {"m3-serve": serve, "m3-train": train}
PROGRAMS = COMMANDS | {"python -m m3model.convert": convert}


def shown(app, *words):
    """Return what a program prints on a terminal of 80 columns."""
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, words, prog_name=app.info.name)
    assert done.exit_code == 0, done.output
    return done.stdout


def leaves():
    """Yield (program, words, command) for everything that takes options of its own."""
    for name, app in PROGRAMS.items():
        command = get_command(app)
        inner = getattr(command, "commands", {})
        yield name, (), command
        yield from ((name, (word,), each) for word, each in inner.items())


LEAVES = [pytest.param(*leaf, id=" ".join([leaf[0], *leaf[1]])) for leaf in leaves()]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_summary_is_whole_and_on_one_line(name):
    lines = shown(COMMANDS[name], "--help").splitlines()
    assert max(map(len, lines)) <= 80
    for word, command in get_command(COMMANDS[name]).commands.items():
        (line,) = [line for line in lines if line.split()[:1] == [word]]
        summary = line.split(maxsplit=1)[1]
        # A command that says more than its summary begins with it as a sentence of its own.
        first = command.short_help or command.help.split("\n\n")[0]
        assert summary == first.strip(), f"{name} {word}"
        assert summary.endswith("."), f"{name} {word}"
        assert not summary.endswith(("...", "…")), f"{name} {word}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_place_among_the_others(name):
    commands = get_command(COMMANDS[name]).commands
    panels = [command.rich_help_panel for command in commands.values()]
    headings = re.findall(r"^(\S.*):$", shown(COMMANDS[name], "--help"), re.MULTILINE)
    assert headings[0] == "Options"
    assert headings[1:] == list(dict.fromkeys(panels))
    assert all(panels)


@pytest.mark.parametrize(("name", "words", "command"), LEAVES)
def test_every_option_says_what_it_does_and_its_default(name, words, command):
    text = shown(PROGRAMS[name], *words, "--help")
    assert "…" not in text
    flat = " ".join(text.split())
    for parameter in command.params:
        assert parameter.help, f"{name} {words} {parameter.name}"
        default = parameter.default
        if default is None or isinstance(default, bool) or callable(default):
            continue
        # Long defaults are broken at hyphens by the help's line breaks.
        assert f"default: {default}".replace(" ", "") in flat.replace(" ", ""), parameter.name


@pytest.mark.parametrize("name", PROGRAMS)
def test_version_is_that_of_the_installed_distribution(name):
    assert shown(PROGRAMS[name], "--version") == f"{name} {metadata.version('m3-router')}\n"


def test_the_newest_heading_of_the_changelog_is_the_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == project["version"]
