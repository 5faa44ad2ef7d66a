"""The commands of README and tutorial, run as typed, in order, in a folder of their own.

Every bash and python block runs against one service of m3-mini. A line that is not run here is in
EXCUSED with its reason; a block of another kind must be known not to be a command.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serve.client import APIError, M3Client
from serve.demo import read_in_figures

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/tutorial.md")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHOWN = {"text"}  # output, nothing to run
SERVICE = "m3-serve up --log-images"
# The beginning of a line -> why it is not run as it stands.
EXCUSED = {
    "make demo": "installs; .ci/run runs it, and test_demo.py the demo without Ray",
    "make serve": "installs, then the line below",
    SERVICE: "runs for the whole test, in one process: see the fixture",
    "python examples/retrain_from_log.py": "test_examples.py runs it",
}

pytestmark = pytest.mark.slow


class Place:
    """A folder that looks like a clone, and a service that was started in it."""

    def __init__(self, folder, url):
        self.folder, self.url = folder, url

    def run(self, kind, text):
        """Return what a block prints, its addresses pointed at our service."""
        text = text.replace("http://127.0.0.1:8000", self.url)
        text = text.replace("M3Client()", f'M3Client("{self.url}")')
        program = [sys.executable, "-"] if kind == "python" else ["bash", "-euo", "pipefail"]
        done = subprocess.run(
            program, input=text, cwd=self.folder, env=environment(self.url),
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def environment(url):
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT), "M3_URL": url, "NO_PROXY": "127.0.0.1",
    }  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clone")
    for name in ("docs", "examples", "m3model", "router", "serve", "training"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    words = SERVICE.split()[1:]
    command = [sys.executable, "-m", "serve.cli", *words, "--in-process", "--port", str(port)]
    with (folder / "service.txt").open("wb") as sink:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(url), stdout=sink, stderr=sink
        )
    try:
        with M3Client(url, max_retries=0) as client:
            while not ready(client):
                assert process.poll() is None, (folder / "service.txt").read_text()
                time.sleep(0.2)
        yield Place(folder, url)
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()


def ready(client):
    try:
        return client.health()["status"] == "ok"
    except APIError:
        return False


def excuse(line):
    return next((start for start in EXCUSED if line.startswith(start)), None)


def what_runs(kind, text):
    """Return the lines of a block that are to be run."""
    lines = text.splitlines(keepends=True)
    return text if kind == "python" else "".join(line for line in lines if excuse(line) is None)


def test_the_demos_rows_in_the_readme_are_what_the_service_answers(place):
    row = re.compile(r"^ (scene-\d+)  (.+?)  +(\w+) +(\w+) +(.+?)  +(\d+) +\d+$", re.MULTILINE)
    shown = row.findall((ROOT / "README.md").read_text("utf-8"))
    assert len(shown) >= 3
    with M3Client(place.url) as client:
        for picture, question, text, expected, read, tokens in shown:
            answer = client.ask(ROOT / f"serve/pictures/{picture}.png", question, max_tokens=16)
            assert (answer.text, read_in_figures(answer), str(answer.visual_tokens)) == (
                text, read, tokens,
            )  # fmt: skip
            assert text == expected


def test_the_demos_sums_in_the_readme_are_those_of_its_questions(place):
    asked = json.loads((ROOT / "serve/pictures/questions.json").read_text("utf-8"))
    with M3Client(place.url) as client:
        answers = [
            client.ask(ROOT / "serve/pictures" / each["picture"], each["question"], max_tokens=16)
            for each in asked
        ]
    right = sum(a.text == each["answer"] for a, each in zip(answers, asked, strict=True))
    tokens, finest = sum(a.visual_tokens for a in answers), 576 * len(asked)
    text = (ROOT / "README.md").read_text("utf-8")
    assert f"Right answers: {right} of {len(asked)}\n" in text
    saved = f"{1 - tokens / finest:.0%} saved\n"
    assert f"Visual tokens: {tokens:,} instead of {finest:,} (always 576 tokens): {saved}" in text


@pytest.mark.parametrize("page", PAGES)
def test_the_page_works_as_typed(page, place):
    blocks = BLOCK.findall((ROOT / page).read_text("utf-8"))
    kinds = {kind for kind, _ in blocks}
    assert kinds <= {"bash", "python"} | SHOWN
    n_run = 0
    for kind, text in blocks:
        if kind not in SHOWN and (wanted := what_runs(kind, text)).strip():
            said = place.run(kind, wanted)
            n_run += 1
            if "biggest shape" in wanted:  # serve/pictures/questions.json says so
                assert "blue" in said, said
    assert n_run >= 4


def test_every_excuse_is_needed():
    lines = [
        line
        for page in PAGES
        for kind, text in BLOCK.findall((ROOT / page).read_text("utf-8"))
        if kind == "bash"
        for line in text.splitlines()
    ]
    assert {excuse(line) for line in lines} - {None} == set(EXCUSED)
