"""The demo: its arithmetic, its refusals, and one whole run that leaves nothing behind."""

import json
import os
import subprocess
import sys

import psutil
import pytest

from m3model.tiny import tiny_config, write_tiny_checkpoint
from serve.client import Answer
from serve.demo import PICTURES, Asked, saving

COMMAND = [sys.executable, "-m", "serve.demo"]
NARROW = os.environ | {"COLUMNS": "40", "PYTHONUNBUFFERED": ""}


def answer(text="7", scale=9, text_tokens=10):
    tokens = scale + text_tokens
    return Answer(scale=scale, visual_tokens=scale, reason="predicted", text=text,
                  prompt_tokens=tokens)  # fmt: skip


def test_saving_counts_tokens_and_prefill_against_always_finest():
    config = tiny_config(100)
    saved = saving(config, 576, [answer(scale=9), answer(scale=576), answer(scale=1)])
    assert (saved.visual_tokens, saved.finest_visual_tokens) == (586, 1728)
    text = config.text_config
    width, inner, layers = text.hidden_size, text.intermediate_size, text.num_hidden_layers
    per_token = 2 * layers * (4 * width * width + 3 * width * inner)

    def prefill(n):  # weights, causal attention, one row of logits
        return n * per_token + 4 * width * layers * n * n / 2 + 2 * width * text.vocab_size

    assert saved.prefill_flops == pytest.approx(prefill(19) + prefill(586) + prefill(11))
    assert saved.finest_prefill_flops == pytest.approx(3 * prefill(586))


def test_an_answer_is_right_whatever_its_case_and_full_stop():
    assert Asked("q", "Red", "p.png", answer(" red.")).is_right
    assert not Asked("q", "red", "p.png", answer("reddish")).is_right


@pytest.mark.slow
def test_a_service_that_does_not_start_is_said_with_its_own_words(tmp_path, python):
    done = python("-m", "serve.demo", "--in-process", "--model", tmp_path / "nowhere")
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: the service ended before it was ready")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_whole_run_talks_prints_a_dozen_answers_and_leaves_no_process(tmp_path):
    write_tiny_checkpoint(tmp_path / "tiny")
    command = [*COMMAND, "--in-process", "--model", str(tmp_path / "tiny")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=NARROW
    ) as demo:
        first = demo.stderr.readline()
        assert demo.poll() is None  # said while it works, into a pipe
        stdout, stderr = demo.communicate(timeout=300)
    assert demo.returncode == 0, stderr
    assert first == "starting the service\n"
    said = stderr.splitlines()
    assert [line.split(" questions")[0] for line in said if line.startswith("asking")] == [
        f"asking: {number}/12" for number in range(1, 13)
    ]
    assert said[0] == "loading the model"
    assert said[-1] == "stopping the service"
    # The table is whole, however narrow the terminal is said to be.
    questions = json.loads((PICTURES / "questions.json").read_text("utf-8"))
    for each in questions:
        assert any(each["question"] in row for row in stdout.splitlines())
    assert "…" not in stdout
    assert "12" in next(line for line in stdout.splitlines() if "Right answers" in line)
    # Without a router for this model every picture is read at the finest scale.
    assert "Visual tokens: 6,912 instead of 6,912" in stdout
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"])
            if str(tmp_path) in " ".join(p.info["cmdline"] or ())]  # fmt: skip
    assert left == []
