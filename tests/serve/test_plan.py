"""`m3-serve plan`: the mix it is for, the figures it prints, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serve.errors import ServeSetupError
from serve.plan import DEFAULT_MIX, lines, make_plan, parsed_mix

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_the_command_prints_the_plan(command: Any) -> None:
    mix = ("--mix", "1:30,9:25,36:20,144:15,576:10")
    done = command("m3-serve", "plan", "--model", "7b", "--hardware", "h200", *mix)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line[:38].strip(): line[38:].split() for line in done.stdout.splitlines()}
    assert rows["requests/s, every picture encoded"] == ["327.4", "83.1"]
    assert rows["requests that share a pass"] == ["256", "256"]
    assert "3.94 x" in done.stdout
    assert "72.5 MiB a request" in done.stdout
    assert "computed and not measured" in done.stdout


def test_the_default_mix_is_what_the_shipped_router_chose(command: Any) -> None:
    report = json.loads((RESULTS / "routing_quality.json").read_text("utf-8"))
    chosen = report["router"]["share_of_scale"]
    tokens = {str(action["action"]): action["visual_tokens"] for action in report["actions"]}

    def read(name: str) -> int | tuple[int, int]:
        coarse = int(name.partition("+")[0])
        return (coarse, 4 * round((tokens[name] - coarse) / 4)) if "+" in name else coarse

    mix = parsed_mix(DEFAULT_MIX)
    shares = {read(name): round(100 * share) for name, share in chosen.items()}
    assert mix == {each: share for each, share in shares.items() if share}
    assert sum(mix.values()) == 100
    done = command("m3-serve", "plan")
    assert (done.returncode, done.stderr) == (0, "")
    said = "14% at 1+8, 13% at 1+24, 2% at 9, 26% at 9+40, 10% at 36, 2% at 36+24, 14% at 36+40, "
    said += "13% at 36+84, 4% at 144, 2% at 576 (the shipped router"
    assert said in done.stdout
    assert "first looks not counted" in done.stdout


def test_a_focus_counts_as_the_tokens_it_reads(command: Any) -> None:
    done = command("m3-serve", "plan", "--mix", "36+108:1,144:2,576:1")
    assert "mix: 25% at 36+108, 50% at 144, 25% at 576\n" in done.stdout
    alike = command("m3-serve", "plan", "--mix", "144:3,576:1")
    assert done.stdout.splitlines()[2:] == alike.stdout.splitlines()[2:]
    assert "  252 visual tokens a request" in done.stdout


def test_a_model_of_other_scales_asks_for_its_mix(tiny_model: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_model / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"scales": [1, 9]}), "utf-8")
    with pytest.raises(ServeSetupError, match="knows 1, 9; say which with --mix"):
        make_plan(str(tmp_path), "h200", DEFAULT_MIX, 40, 16, 256)


def test_a_mistake_is_one_line(command: Any) -> None:
    done = command("m3-serve", "plan", "--mix", "7:1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown scale 7: this model knows 1, 9, 36, 144, 576\n"


@pytest.mark.parametrize(
    ("model", "hardware", "mix", "says"),
    [
        ("7b", "h200", "1:30,9", "'9' is not SCALE:SHARE"),
        ("7b", "h200", "1:30,1:3", "scale 1 twice"),
        ("7b", "h200", "36+96:1,36+96:2", r"scale 36\+96 twice"),
        ("7b", "h200", "36+0:1", r"'36\+0:1' is not SCALE:SHARE"),
        ("7b", "h200", "36+4+4:1", "is not SCALE:SHARE"),
        ("7b", "h200", "35+4:1", "unknown scale 35"),
        ("7b", "h200", "144+432:1", "fewer than 576 tokens in all"),
        ("7b", "h200", "36+97:1", r"36\+97: fine tokens come in cells of 4"),
        ("7b", "tpu", "1:1", "not one of h200"),
        ("/nowhere", "h200", "1:1", "no such folder"),
        ("13b", "l4", "1:1", r"has room for 21\.6 GB"),
        ("mini", "h200", "1:nan", "positive share"),
    ],
)
def test_mistakes_say_what_is_wrong(model: str, hardware: str, mix: str, says: str) -> None:
    with pytest.raises(ServeSetupError, match=says):
        make_plan(model, hardware, mix, 40, 16, 256)


def test_a_measurement_tells_which_share_to_expect(command: Any, tmp_path: Path) -> None:
    """Half of the bound for a mix, a quarter at the finest scale."""
    report = tmp_path / "gpu.json"
    figures = {"mix": {"share_of_bound": 0.5}, "finest": {"share_of_bound": 0.25}}
    parts = {"mix and finest": figures, "device": {"name": "A card", "device": "cuda:0"}}
    report.write_text(json.dumps({"parts": parts}), "utf-8")
    plan = make_plan("7b", "h200", "9:1,144:1", 40, 16, 256)
    *_, computed, said = lines(plan, "9:1,144:1", report)
    assert "not measured" in computed
    assert said == (
        "Measured on A card: 50% of such a bound for a mix, 25% all at the finest scale; of this "
        f"one, {plan.load.features_cached / 2:.1f} and {plan.finest.features_cached / 4:.1f} "
        "requests/s with features cached."
    )
    assert (
        command("m3-serve", "plan", "--measured", report)
        .stdout.splitlines()[-1]
        .startswith("Measured on A card")
    )


@pytest.mark.parametrize(
    "told", ["", "[]", "{}", '{"parts": {}}', '{"bound_share": {"mixed": 2, "all_finest": 1}}']
)
def test_what_is_no_measurement_is_refused(command: Any, tmp_path: Path, told: str) -> None:
    report = tmp_path / "gpu.json"
    report.write_text(told, "utf-8")
    done = command("m3-serve", "plan", "--measured", report)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: --measured {report}")
    assert len(done.stderr.splitlines()) == 1
