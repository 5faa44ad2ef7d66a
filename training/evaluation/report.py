"""Writes an evaluation as report.json, report.md, curve.png and cost_curve.png.

Knows the report's dictionary; does not know how its numbers came about.

Every key of report.json is described in docs/report.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from training.files import write_json

NAMES = {
    "type_table": "type table (dataset policy by kind)",
    "dataset_policy": "dataset policy",
    "question_only": "question only",
    "image_only": "picture only",
    "privileged": "told the scene (ceiling)",
    "privileged_metadata": "told the scene but its masks",
    "fixed_mixture": "mixture of fixed scales",
    "uniform_router": "our router, scales alone",
    "type_table_same_actions": "type table, foci too",
}
BESIDE = (("router", "uniform_router"), ("type_table_same_actions", "type_table"))


def write_report(report: dict[str, Any], out: Path) -> list[Path]:
    """Write the four files into ``out`` and return their paths."""
    from training.evaluation.plots import accuracy_curve

    out.mkdir(parents=True, exist_ok=True)
    names = ("report.json", "report.md", "curve.png", "cost_curve.png")
    paths = [out / name for name in names]
    write_json(paths[0], report)
    paths[1].write_text(markdown(report), encoding="utf-8")
    accuracy_curve(report, paths[2])
    accuracy_curve(report, paths[3], resource="cost")
    return paths


def markdown(report: dict[str, Any]) -> str:
    """Return the report for people."""
    router = report["router"]
    parts = [
        "# Router evaluation",
        f"{report['n_questions']} questions about {report['n_pictures']} test pictures "
        f"(source: {', '.join(report['sources'])}; right means {report['scored_by']}). "
        "Intervals: 95 %, bootstrap by picture. Baselines are fitted on training pictures and "
        f"priced on calibration pictures for {report['target']:.1%} of the finest accuracy.",
        f"**The router: {_percent(router['accuracy'])} right at {_tokens(router['visual_tokens'])} "
        f"visual tokens; the finest scale {_percent(report['finest_accuracy'])} at "
        f"{report['scales'][-1]}.** Difference {_points(router['difference_from_finest'])}, "
        f"{_percent(router['share_of_finest_tokens'])} of the tokens.",
        *_second_look(report.get("second_look")),
        "![Accuracy against visual tokens](curve.png)",
        _operating_points(report),
        *_foci(report),
        "## Router against each baseline",
        _paired(report),
        "## Tokens, cost and GPU time at equal accuracy",
        _equal_accuracy(report),
        "## Oracles and limits",
        _oracles(report),
        "## Calibration",
        _calibration(report),
        "## By question type",
        _slices(report),
        f"Router {report['router_version']}, model {report['model_hash']}, features "
        f"{report['feature_schema']}, data {report['data_hash']}.",
    ]
    return "\n\n".join(parts) + "\n"


def _second_look(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    against, single = found["minus_single_look"], found["single_look"]
    return [
        f"Both looks are counted: {_percent(found['looked_again'])} of the questions are answered "
        f"twice. With one look: {_percent(single['accuracy'])} right at "
        f"{_tokens(single['visual_tokens'])} visual tokens; the second look's difference from that "
        f"{_points(against['accuracy'])}, {_span(against['visual_tokens'], 1)} tokens."
    ]


def side_by_side(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows that set scales with foci beside scales alone; none without foci.

    The accuracy and the tokens of a policy are those of its operating point; those for shares of
    the finest accuracy are read off its hull over the test questions.
    """
    levels = report["visual_tokens_at"]
    shares = [f"tokens at {100 * float(name.partition('_')[0]):g} %" for name in levels]
    columns = ["policy", "actions", "right", "tokens", *shares, "tokens for the router's accuracy"]
    points = {"router": report["router"], **report["baselines"]}
    needed = report["visual_tokens_at_router_accuracy"]
    needed = {**needed, "router": needed["router_on_its_hull"]}
    rows = []
    for names in BESIDE if "uniform_router" in points else ():
        for name, actions in zip(names, ("scales and foci", "scales alone"), strict=True):
            point = points[name]
            rows.append(
                [
                    "router" if "router" in name else "type table", actions,
                    _percent(point["accuracy"]), _tokens(point["visual_tokens"]),
                    *(_tokens(level[name]) for level in levels.values()), _tokens(needed[name]),
                ]
            )  # fmt: skip
    return columns, rows


def _foci(report: dict[str, Any]) -> list[str]:
    scales_alone = report.get("oracle_over_scales")
    if scales_alone is None:
        return []
    columns, beside = side_by_side(report)
    chosen = report["router"]["share_of_scale"]
    always = [
        [
            point["action"], _percent(point["accuracy"]), _tokens(point["visual_tokens"]),
            _points(point["difference_from_finest"]), _percent(chosen[str(point["action"])]),
        ]
        for point in report["actions"]
    ]  # fmt: skip
    best = [found["any_correct"] for found in (report["oracle"], scales_alone)]
    heads = ["always", "accuracy", "visual tokens", "accuracy − finest, points", "router's choice"]
    return [
        "## Scales and foci beside scales alone",
        *([_table(columns, beside)] if beside else []),
        f"Right by some action: {_percent(best[0]['accuracy'])}, the cheapest such ones at "
        f"{_tokens(best[0]['visual_tokens'])} tokens; by some scale: "
        f"{_percent(best[1]['accuracy'])} at {_tokens(best[1]['visual_tokens'])}.",
        _table(heads, always),
    ]


def _operating_points(report: dict[str, Any]) -> str:
    rows = [
        [f"always {p['scale']}", _percent(p["accuracy"]), p["scale"], f"{p['cost']:.3f}", ""]
        for p in report["fixed"]
    ]
    named = {"**router**": report["router"]}
    named |= {NAMES.get(name, name): point for name, point in report["baselines"].items()}
    static = report["static_policies"]
    named |= {f"cheapest within 1 point per {name}": point for name, point in static.items()}
    rows += [
        [
            name, _percent(point["accuracy"]), _tokens(point["visual_tokens"]),
            f"{point['cost']:.3f}", _points(point["difference_from_finest"]),
        ]
        for name, point in named.items()
    ]  # fmt: skip
    at_random = report["uniform_random"]
    rows.append(
        [
            "a scale at random", _percent(at_random["accuracy"]),
            _tokens(at_random["visual_tokens"]), f"{at_random['cost']:.3f}", "",
        ]
    )  # fmt: skip
    return _table(
        ["policy", "accuracy", "visual tokens", "cost", "accuracy − finest, points"], rows
    )


def _paired(report: dict[str, Any]) -> str:
    needed, gaps = report["visual_tokens_at_router_accuracy"], report["gap_recovered"]
    rows = []
    for name, ratio in report["token_ratio_at_equal_accuracy"].items():
        point = report["baselines"].get(name)
        versus = "" if point is None else _points(point["router_minus_this"]["accuracy"])
        gap = gaps.get(name)
        rows.append(
            [
                NAMES.get(name, name), versus, _tokens(needed.get(name)), _ratio(ratio),
                "" if gap is None else f"{gap:.2f}",
            ]
        )  # fmt: skip
    columns = [
        "baseline", "accuracy difference as priced, points", "tokens for router's accuracy",
        "router's tokens over these", "gap to the oracle recovered",
    ]  # fmt: skip
    recovered = report["headroom_recovered"]
    text = (
        "The last three columns read each baseline off its hull over these very test questions, "
        "which favours the baselines; so read, the router itself needs "
        f"{_tokens(needed['router_on_its_hull'])}."
    )
    if recovered is not None:
        text += (
            " Of the tokens between type table and ceiling (which knows "
            f"{report['privileged_knows']}) the router recovers {_ratio(recovered)}."
        )
    return f"{_table(columns, rows)}\n\n{text}"


def _equal_accuracy(report: dict[str, Any]) -> str:
    levels = report["at_equal_accuracy"]
    rows = []
    for name in next(iter(levels.values()))["policies"]:
        for resource, digits in (("visual_tokens", 1), ("cost", 3), ("gpu_ms", 4)):
            if resource == "gpu_ms" and report["gpu_ms"] is None:
                continue
            cells = [level["policies"][name][resource] for level in levels.values()]
            title = NAMES.get(name, name)
            rows.append([title, resource.replace("_", " "), *(_span(c, digits) for c in cells)])
    heads = [
        f"{level.replace('_', ' ')} ({_percent(found['accuracy'])})"
        for level, found in levels.items()
    ]
    times = report["gpu_ms"]
    note = f"Cost: {report['cost_unit']}."
    if times is not None:
        note += f" GPU milliseconds a request on {times['hardware']}: {times['how']}."
    return f"{_table(['policy', 'of', *heads], rows)}\n\n{note}"


def _oracles(report: dict[str, Any]) -> str:
    router = report["router"]
    rows = []
    for name in ("any_correct", "strict", "luck_corrected"):
        point = report["oracle"][name]
        told = point is not None
        rows.append(
            [
                name.replace("_", " "),
                _percent(point["accuracy"]) if told else "not computable",
                _tokens(point["visual_tokens"]) if told else "",
            ]
        )
    regret, priced = router["regret"], router["priced_regret"]
    lost = (
        ""
        if priced is None
        else f", {priced['total']:.4f} of utility in all (under {priced['under']:.4f}, over "
        f"{priced['over']:.4f}, unsolvable {priced['unsolvable']:.4f})"
    )
    return (
        f"{_table(['oracle', 'accuracy', 'visual tokens'], rows)}\n\n"
        f"Luck-corrected: {report['oracle']['luck_corrected_how']}. Right by no action: "
        f"{_percent(report['unsolvable_share'])}; right by one and wrong by a dearer one: "
        f"{_percent(report['non_monotone_share'])}. Harm (finest right, router wrong) "
        f"{_percent(router['harm'])} where the finest is right on "
        f"{_percent(router['finest_right'])}, rescue {_percent(router['rescue'])}. Regret: wrong "
        f"though some action was right {_percent(regret['under'])}, right where a cheaper one was "
        f"{_percent(regret['over'])} ({regret['over_tokens']:.1f} tokens a question)" + lost + "."
    )


def _calibration(report: dict[str, Any]) -> str:
    found = report["calibration"]
    rows = [*found["per_scale"], {"scale": "chosen", **found["chosen"]}]
    cells = [[row["scale"], f"{row['ece']:.3f}", f"{row['brier']:.3f}"] for row in rows]
    return (
        f"{_table(['action', 'ECE', 'Brier'], cells)}\n\nOperating point: predicted and true "
        f"accuracy differ by {100 * found['operating_point_error']:.2f} points."
    )


def _slices(report: dict[str, Any]) -> str:
    rows = [
        [
            row["slice"].strip("/") or "(none)", row["n_questions"],
            *(_percent(value) for value in row["accuracy_per_scale"]),
            _percent(row["router_accuracy"]), _tokens(row["router_visual_tokens"]),
            _percent(row["harm"]), _percent(row["unsolvable_share"]),
            _percent(row["non_monotone_share"]), f"{row['calibration']['chosen']['ece']:.3f}",
        ]
        for row in report["slices"]
    ]  # fmt: skip
    scales = [str(scale) for scale in report["scales"]]
    after = ["router", "tokens", "harm", "unsolvable", "non-monotone", "ECE chosen"]
    return _table(["type", "n", *scales, *after], rows)


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _tokens(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f}"


def _points(interval: dict[str, float]) -> str:
    mean, low, high = (100 * interval[key] for key in ("mean", "low", "high"))
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def _ratio(interval: dict[str, float | None]) -> str:
    return _span(interval, 2)


def _span(interval: dict[str, float | None] | None, digits: int) -> str:
    if interval is None:
        return "never"
    mean, low, high = (
        "∞" if interval[key] is None else f"{interval[key]:.{digits}f}"
        for key in ("mean", "low", "high")
    )
    return f"{mean} ({low} to {high})"
