"""The demo: its arithmetic, its refusals, and one whole run that leaves nothing behind."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import psutil
import pytest
from PIL import Image
from rich.console import Console

from m3model.tiny import tiny_config, write_tiny_checkpoint
from serve.client import Answer, Focus
from serve.client.seen import in_blocks
from serve.demo import PICTURES, Asked, print_readings, read_in_figures, saving

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


FOCUS = Focus(9, 144, (0, 7, 35), 21)


def test_what_was_read_is_told_in_figures():
    focused = replace(answer(scale=9), focus=FOCUS)
    looked = {"from": 1, "confidence": 0.5}
    assert read_in_figures(answer(scale=36)) == "36"
    assert read_in_figures(focused) == "9 + 12"
    assert read_in_figures(replace(focused, second_look=looked)) == "1, then 9 + 12"
    assert read_in_figures(answer(scale=0)) == "0"


def test_fine_tokens_are_drawn_in_their_cells():
    """Level 144: 6 x 6 cells, two letters wide each."""
    plain = in_blocks(PICTURES / "scene-00.png", FOCUS, Console(color_system=None)).plain
    rows = ["██░░░░░░░░░░", "░░██░░░░░░░░", *["░" * 12] * 3, "░░░░░░░░░░██"]
    assert plain.splitlines() == rows


def test_the_colours_are_those_of_the_picture(tmp_path):
    """Upper half red, the lower one blue; the first cell has a token of each, one above another."""
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:1, :, 0] = pixels[1:, :, 2] = 200
    Image.fromarray(pixels).save(tmp_path / "p.png")
    console = Console(color_system="truecolor", force_terminal=True, no_color=False)
    blocks = in_blocks(tmp_path / "p.png", Focus(1, 16, (0,), 5), console)
    assert blocks.plain == "▀▀░░\n░░░░"
    fine, coarse = blocks.get_style_at_offset(console, 0), blocks.get_style_at_offset(console, 2)
    assert fine.color.get_truecolor() == (200, 0, 0)
    assert fine.bgcolor.get_truecolor() == (0, 0, 200)
    assert coarse.color.get_truecolor() == (50, 0, 150)


def test_two_pictures_at_most_are_drawn_beside_one_another(capsys):
    focused = replace(answer(), focus=FOCUS)
    asked = [
        Asked("what [is] it?", "7", "scene-00.png", focused),
        Asked("and this?", "7", "scene-00.png", focused),
        Asked("what is that?", "7", "scene-02.png", answer()),
        Asked("what is this?", "7", "scene-03.png", focused),
        Asked("and those?", "7", "scene-04.png", focused),
    ]
    print_readings(asked, PICTURES)
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].split("  ")[0] == "scene-00: what [is] it?"
    assert "scene-03: what is this?" in shown.splitlines()[0]
    assert shown.count("██") == 6
    assert len(shown.splitlines()) < 16
    print_readings(asked[2:3], PICTURES)
    assert capsys.readouterr().out == ""


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
