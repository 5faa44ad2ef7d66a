"""Writes an evaluation as report.json, report.md and curve.png.

Knows the report's dictionary; does not know how its numbers came about.

report.json, version 1 (null where unknown; all figures of test pictures):

- ``n_questions, n_pictures, finest_accuracy``: the test set.
- ``scales, cost_unit, target, scored_by, sources``: what was compared, how right is defined.
- ``router_version, model_hash, router_model_hash, feature_schema, data_hash``: what it holds
  for; the second hash is of the model the router was fitted for.
- ``fixed``: one object a scale: scale, accuracy, visual_tokens, cost, flops.
- ``router``: price, accuracy, visual_tokens, cost, flops, difference_from_finest {mean, low,
  high}, share_of_finest_tokens, harm, rescue, regret, share_of_scale.
- ``curve``: the router at every price: price, accuracy, visual_tokens, cost.
- ``visual_tokens_at_router_accuracy``: tokens that type_table, question_only, image_only,
  fixed_mixture and privileged need for the router's accuracy, on their hulls over the test set
  (which favours them: router_on_its_hull is the router given the same advantage).
- ``visual_tokens_at``: tokens at 99, 98 and 95 % of the finest accuracy, each on its hull.
- ``baselines``: by name: operating point priced on the calibration pictures, the paired
  difference router_minus_this {accuracy, visual_tokens, token_ratio}, curve.
- ``uniform_random``: every scale equally often.
- ``oracle``: any_correct, strict, luck_corrected {accuracy, visual_tokens}; questions that no
  scale gets right are charged the coarsest scale.
- ``gap_recovered``: (router - baseline) / (budgeted oracle - baseline) at the router's tokens.
- ``calibration``: ECE (15 bins of equal mass) and Brier per scale and at the chosen scale.
- ``unsolvable_share, non_monotone_share``: right at no scale; right at one, wrong at a finer.
- ``slices``: the same by dataset/kind. ``gpu_ms``: null, no hardware was timed.

Intervals are 95 % bootstrap intervals that resample pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.oracle import write_json

NAMES = {
    "type_table": "type table (dataset policy)",
    "question_only": "question only",
    "image_only": "picture only",
    "privileged": "told the scene (ceiling)",
    "fixed_mixture": "mixture of fixed scales",
}


def write_report(report: dict[str, Any], out: Path) -> list[Path]:
    """Write the three files into ``out`` and return their paths."""
    from training.plots import accuracy_curve

    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "report.json", out / "report.md", out / "curve.png"]
    write_json(paths[0], report)
    paths[1].write_text(markdown(report), encoding="utf-8")
    accuracy_curve(report, paths[2])
    return paths


def markdown(report: dict[str, Any]) -> str:
    """Return the report for people."""
    router = report["router"]
    difference = router["difference_from_finest"]
    lines = [
        "# Router evaluation",
        "",
        f"{report['n_questions']} questions about {report['n_pictures']} test pictures "
        f"(source: {', '.join(report['sources'])}; right means {report['scored_by']}). "
        "Intervals: 95 %, bootstrap by picture. Baselines are fitted on training pictures and "
        f"priced on calibration pictures for {report['target']:.1%} of the finest accuracy.",
        "",
        f"**The router: {_percent(router['accuracy'])} right at {_tokens(router['visual_tokens'])} "
        f"visual tokens; the finest scale {_percent(report['finest_accuracy'])} at "
        f"{report['scales'][-1]}.** Difference {_points(difference)}, "
        f"{_percent(router['share_of_finest_tokens'])} of the tokens.",
        "",
        "![Accuracy against visual tokens](curve.png)",
        "",
        "| policy | accuracy | visual tokens | cost | accuracy − finest, points |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| always {point['scale']} | {_percent(point['accuracy'])} | {point['scale']} | "
        f"{point['cost']:.3f} | |"
        for point in report["fixed"]
    ]
    operating = {"**router**": router} | {
        NAMES.get(name, name): point for name, point in report["baselines"].items()
    }
    lines += [
        f"| {name} | {_percent(point['accuracy'])} | {_tokens(point['visual_tokens'])} | "
        f"{point['cost']:.3f} | {_points(point['difference_from_finest'])} |"
        for name, point in operating.items()
    ]
    random = report["uniform_random"]
    lines.append(
        f"| a scale at random | {_percent(random['accuracy'])} | "
        f"{_tokens(random['visual_tokens'])} | {random['cost']:.3f} | |"
    )
    lines += [
        "",
        "## Router against each baseline, paired",
        "",
        "| baseline | accuracy difference, points | tokens, ratio | tokens for router's accuracy |",
        "| --- | --- | --- | --- |",
    ]
    needed = report["visual_tokens_at_router_accuracy"]
    for name, point in report["baselines"].items():
        versus = point["router_minus_this"]
        lines.append(
            f"| {NAMES.get(name, name)} | {_points(versus['accuracy'])} | "
            f"{versus['token_ratio']:.2f} | {_tokens(needed.get(name))} |"
        )
    lines.append(f"| {NAMES['fixed_mixture']} | | | {_tokens(needed['fixed_mixture'])} |")
    lines += [
        "",
        "The last column is read off each policy's hull over these very test questions, which "
        "favours the baselines; so read, the router itself needs "
        f"{_tokens(needed['router_on_its_hull'])}.",
    ]
    lines += [
        "",
        "## Oracles and limits",
        "",
        "| oracle | accuracy | visual tokens |",
        "| --- | --- | --- |",
    ]
    for name in ("any_correct", "strict", "luck_corrected"):
        point = report["oracle"][name]
        lines.append(
            f"| {name} | {_percent(point['accuracy'])} | {_tokens(point['visual_tokens'])} |"
            if point
            else f"| {name} | not computable | |"
        )
    lines += [
        "",
        f"Luck-corrected: {report['oracle']['luck_corrected_how']}. Right at no scale: "
        f"{_percent(report['unsolvable_share'])}; right at a scale and wrong at a finer one: "
        f"{_percent(report['non_monotone_share'])}. Harm (finest right, router wrong) "
        f"{_percent(router['harm'])}, rescue {_percent(router['rescue'])}.",
        "",
        "## Calibration",
        "",
        "| scale | ECE | Brier |",
        "| --- | --- | --- |",
    ]
    calibration = report["calibration"]
    lines += [
        f"| {row['scale']} | {row['ece']:.3f} | {row['brier']:.3f} |"
        for row in calibration["per_scale"]
    ]
    lines += [
        f"| chosen | {calibration['chosen']['ece']:.3f} | {calibration['chosen']['brier']:.3f} |",
        "",
        "## By question type",
        "",
        "| type | n | " + " | ".join(str(s) for s in report["scales"]) + " | router | tokens |",
        "| --- | --- | " + " | ".join("---" for _ in report["scales"]) + " | --- | --- |",
    ]
    for row in report["slices"]:
        fixed = " | ".join(_percent(value) for value in row["accuracy_per_scale"])
        lines.append(
            f"| {row['slice'].strip('/') or '(none)'} | {row['n_questions']} | {fixed} | "
            f"{_percent(row['router_accuracy'])} | {_tokens(row['router_visual_tokens'])} |"
        )
    lines += [
        "",
        f"Router {report['router_version']}, model {report['model_hash']}, features "
        f"{report['feature_schema']}, data {report['data_hash']}.",
        "",
    ]
    return "\n".join(lines)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _tokens(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f}"


def _points(interval: dict[str, float]) -> str:
    mean, low, high = (100 * interval[key] for key in ("mean", "low", "high"))
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
