"""The demo: its arithmetic, its refusals, and one whole run that leaves nothing behind."""

import psutil
import pytest

from m3model.tiny import tiny_config, write_tiny_checkpoint
from serve.client import Answer
from serve.demo import Asked, saving


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


def test_a_service_that_does_not_start_is_said_with_its_own_words(tmp_path, python):
    done = python("-m", "serve.demo", "--in-process", "--model", tmp_path / "nowhere")
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_whole_run_prints_a_dozen_answers_and_leaves_no_process(tmp_path, python):
    write_tiny_checkpoint(tmp_path / "tiny")
    done = python("-m", "serve.demo", "--in-process", "--model", tmp_path / "tiny")
    assert done.returncode == 0, done.stderr
    assert "12" in next(line for line in done.stdout.splitlines() if "Right answers" in line)
    # Without a router for this model every picture is read at the finest scale.
    assert "Visual tokens: 6,912 instead of 6,912" in done.stdout
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"])
            if str(tmp_path) in " ".join(p.info["cmdline"] or ())]  # fmt: skip
    assert left == []
