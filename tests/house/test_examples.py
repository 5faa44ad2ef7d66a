"""The three scripts of examples/, each run as a reader would run it, against a real service."""

import csv
import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from router.registry import current_router_path
from serve.client import M3Client

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
N_PICTURES = 44


def run(script, *arguments, cwd=ROOT, url=""):
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "M3_URL": url}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=300)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_begins_with_what_the_script_is_for(script):
    done = run(script.name, "--help")
    assert done.returncode == 0, done.stderr
    first = script.read_text("utf-8").splitlines()[0].strip('"')
    assert " ".join(first.split()) in " ".join(done.stdout.split())


def test_ask_shows_the_answer_every_scale_and_the_cost(running):
    done = run("ask.py", url=running.url)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("what colour is the biggest shape?")
    assert [int(line.split()[0]) for line in lines[1:6]] == [1, 9, 36, 144, 576]
    assert [line.split()[0] for line in lines if "chosen" in line][:1] == ["36"]
    assert "read 36 visual tokens instead of 576 (predicted)" in done.stdout


def test_ask_says_in_one_line_that_no_service_is_there():
    done = run("ask.py", "--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_folder_is_answered_picture_by_picture(running, picture_bytes, tmp_path):
    for seed in range(5):
        (tmp_path / f"{seed}.png").write_bytes(picture_bytes(seed))
    (tmp_path / "notes.txt").write_text("no picture")
    done = run("batch_folder.py", tmp_path, "what is it?", url=running.url)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert sorted(row["picture"] for row in rows) == [f"{seed}.png" for seed in range(5)]
    with M3Client(running.url) as client:
        for row in rows:
            answer = client.ask(tmp_path / row["picture"], "what is it?")
            assert (row["answer"], row["scale"]) == (answer.text, str(answer.scale))
    assert "5 of 5" in done.stderr
    assert "180 visual tokens instead of 2880: 94% saved" in done.stderr


def test_a_broken_picture_is_a_row_and_the_others_go_on(running, picture_bytes, tmp_path):
    (tmp_path / "good.png").write_bytes(picture_bytes(0))
    (tmp_path / "bad.png").write_bytes(b"\x89PNG but no more")
    out = tmp_path / "answers.csv"
    done = run("batch_folder.py", tmp_path, "what is it?", "--out", out, url=running.url)
    assert done.returncode == 1
    rows = {row["picture"]: row for row in csv.DictReader(io.StringIO(out.read_text()))}
    assert rows["bad.png"]["error"]
    assert rows["bad.png"]["answer"] == ""
    assert rows["good.png"]["scale"] == "36"
    assert done.stderr.splitlines()[-1].startswith("error: 1 picture")


@pytest.fixture
def logged(tiny_model, make_router, picture_bytes, tmp_path):
    """The log of a service that kept pictures, and the router that it had."""
    import uvicorn

    from serve.in_process import compose
    from serve.settings import ServeSettings
    from serve.web.listening import bind

    make_router(tmp_path / "before", 36)
    settings = ServeSettings(
        model=tiny_model, router=tmp_path / "before", registry=tmp_path / "registry",
        log_dir=tmp_path / "log", log_images=True,
    )  # fmt: skip
    service = compose(settings)
    listening = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(service.api, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    with M3Client(f"http://127.0.0.1:{listening.getsockname()[1]}") as client:
        for seed in range(N_PICTURES):
            for question in ("what is it?", "which colour is it?"):
                client.ask(picture_bytes(seed), question, max_tokens=4)
    server.should_exit = True
    thread.join(20)
    service.encoder.close()
    service.generator.close()
    service.gateway.log.close()
    listening.close()
    return tmp_path


@pytest.mark.slow
def test_a_log_becomes_a_router_in_force(logged, tiny_model):
    words = [
        "retrain_from_log.py", "--log", "log", "--out", "out", "--registry", "registry",
        "--model", tiny_model, "--before", "before", "--promote",
    ]  # fmt: skip
    done = run(*words, cwd=logged)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "not promoted: " in done.stderr
    assert current_router_path(logged / "registry") is None
    done = run(*words, "--force", cwd=logged)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("$ m3-train")]
    assert steps == ["collect", "fit", "evaluate", "evaluate", "promote"]
    lines = done.stdout.splitlines()
    assert lines[-1].endswith("--incumbent before --force")
    last = lines[-3:-1]
    for name, line in zip(("before", "after"), last, strict=True):
        found = json.loads((logged / "out" / name / "report.json").read_text())["router"]
        assert line.startswith(name)
        assert f"{found['accuracy']:.1%} right at {found['visual_tokens']:.1f} visual" in line
    current = current_router_path(logged / "registry")
    assert current is not None
    assert (current / "config.json").is_file()


def test_without_a_log_it_says_what_to_do(tmp_path):
    done = run("retrain_from_log.py", "--log", "nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere does not exist" in done.stderr
