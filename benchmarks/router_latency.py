"""What one routing decision costs, beside LightGBM's own ways to predict the same numbers.

    python benchmarks/router_latency.py --json benchmarks/results/router_latency.json
    python benchmarks/router_latency.py --quick

A router is fitted on synthetic features of the real schema (24x24 grid, five scales), over the
actions that ship; the cost of a decision depends on the number of features and trees, not on what
they mean. Every way runs in turns
within one process on one thread, so that a busy machine slows them alike: read the ratios. Feature
extraction is timed on random patches of a small and of a 7B model's width, and beside the encode it
rides on: m3-mini's vision tower and projector. So is the plan, which finds the cells of every focus
in a map of one relevant spot.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from typing import Any

import lightgbm
import numpy as np
from _result import arguments, write
from rich.console import Console
from rich.table import Table

from router.actions import ActionSpace, default_space
from router.decision import Constraints
from router.features.schema import FeatureSchema, feature_schema
from router.features.vector import picture_features, question_features
from router.policy import Policy, token_costs
from router.predictor.chain import ComplexityPredictor
from router.router import Router

SCALES, GRID_SIDE, EMBEDDING_DIM = (1, 9, 36, 144, 576), 24, 192
WIDE = 4096
BATCH = 64
TURN = 10
SEED = 0
SPOT = 0.15  # width of the relevant spot, of the picture's side


def synthetic(schema: FeatureSchema, n: int, actions: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features (n, F) and labels (n, A) with enough structure to grow usual boosters."""
    rng = np.random.default_rng(SEED)
    X = rng.standard_normal((n, len(schema.names))).astype(np.float32)
    need = X[:, :12] @ rng.normal(0.0, 0.5, 12) + np.where(X[:, 20] > 0, X[:, 21], X[:, 22])
    p = 1.0 / (1.0 + np.exp(need[:, None] - np.linspace(-1.0, 2.0, actions)))
    return X, rng.random(p.shape) < p


def spots(n: int) -> np.ndarray:
    """Return n relevance maps (n, N), each with one relevant spot somewhere."""
    places = np.random.default_rng(SEED).uniform(0.2, 0.8, (n, 2, 1))
    across = (np.arange(GRID_SIDE) + 0.5) / GRID_SIDE
    rows, columns = np.moveaxis(np.exp(-(((across - places) / SPOT) ** 2)), 1, 0)
    maps: np.ndarray = (rows[:, :, None] * columns[:, None, :]).reshape(n, -1).astype(np.float32)
    return maps


def fitted(rows: int, trees: int) -> tuple[Router, np.ndarray, np.ndarray]:
    """Return a router over the actions that ship, features and labels."""
    space = default_space(SCALES)
    schema = feature_schema(SCALES, GRID_SIDE, EMBEDDING_DIM)
    X, Y = synthetic(schema, rows, len(space))
    predictor = ComplexityPredictor(n_estimators=trees, bases=space.bases).fit(X, Y)
    policy = Policy(token_costs(SCALES), price=0.1)
    return Router(predictor, schema, policy, space=space), X, Y


def plan_way(space: ActionSpace) -> tuple[Callable[[int], Any], int]:
    """Return the call that plans one question."""
    maps = spots(TURN)
    return lambda i: space.plan(maps[i % TURN]), 1


def fit_wrappers(X: np.ndarray, Y: np.ndarray, router: Router) -> list[lightgbm.LGBMClassifier]:
    """Return scikit-learn classifiers with as many trees and leaves as the router's boosters."""
    return [
        lightgbm.LGBMClassifier(
            n_estimators=booster.num_trees(),
            num_leaves=router.predictor.num_leaves,
            min_child_samples=router.predictor.min_child_samples,
            colsample_bytree=router.predictor.feature_fraction,
            max_bin=router.predictor.max_bin,
            learning_rate=router.predictor.learning_rate,
            reg_lambda=router.predictor.reg_lambda,
            random_state=SEED,
            n_jobs=1,
            verbosity=-1,
        ).fit(X, labels)
        for booster, labels in zip(router.predictor.boosters_, Y.T, strict=True)
    ]


def encode_once() -> Callable[[int], Any]:
    """Return a call that encodes one picture of noise with the shipped model, on one thread."""
    import torch

    from m3model import M3ForConditionalGeneration, default_model_path

    torch.set_num_threads(1)
    model = M3ForConditionalGeneration.from_pretrained(default_model_path()).eval()
    side = model.config.vision_config.image_size
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(SEED))

    def encode(_: int) -> Any:
        with torch.inference_mode():
            return model.encode_images(pixels)

    return encode


def in_turns(
    ways: dict[str, tuple[Callable[[int], Any], int]], rounds: int
) -> dict[str, dict[str, float]]:
    """Return microseconds per request of each way, the ways taking turns in every round.

    A turn is ``TURN`` calls in a row. Its first finds the processor's caches full of the other
    ways' work, as it does in a service after an encode: it is reported apart, as ``cold``.

    Args:
        ways: name -> (call with a running number, requests that one call serves).
        rounds: turns of each way.
    """
    cold: dict[str, list[float]] = {name: [] for name in ways}
    warm: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, (call, requests) in ways.items():
            laps = []
            for repeat in range(TURN):
                started = time.perf_counter()
                call(number * TURN + repeat)
                laps.append((time.perf_counter() - started) * 1e6 / requests)
            if number:  # the very first turns load libraries and fill tables
                cold[name].append(laps[0])
                warm[name] += laps[1:]
    return {
        name: {
            **{f"p{q}_us": round(float(np.percentile(warm[name], q)), 1) for q in (50, 95, 99)},
            "cold_p50_us": round(float(np.median(cold[name])), 1),
        }
        for name in ways
    }


def run(quick: bool) -> dict[str, Any]:
    """Return the report: the router's size, microseconds of each way, ratios to `Router.route`."""
    router, X, Y = fitted(2_000 if quick else 12_000, 60 if quick else 150)
    wrappers = fit_wrappers(X, Y, router)
    schema, space, boosters = router.schema, router.space, router.predictor.boosters_
    plans = [space.plan(relevance) for relevance in spots(TURN)]
    batches = [X[start : start + BATCH] for start in range(0, len(X) - BATCH, BATCH)]
    rng, explained = np.random.default_rng(SEED), Constraints(explain=True)

    def row(i: int) -> np.ndarray:
        return X[i % len(X)]

    def feature_ways(dim: int) -> dict[str, tuple[Callable[[int], Any], int]]:
        grid = rng.standard_normal((GRID_SIDE**2, dim)).astype(np.float32)
        relevance = rng.random(GRID_SIDE**2).astype(np.float32)
        embedding = rng.standard_normal(dim).astype(np.float32)
        picture, text = picture_features(grid, SCALES), "What colour is the small star?"
        return {
            f"picture_features, {dim} wide": (lambda _: picture_features(grid, SCALES), 1),
            f"question_features, {dim} wide": (
                lambda _: question_features(picture, relevance, text, embedding),
                1,
            ),
        }

    decisions = in_turns(
        {
            "Router.route": (lambda i: router.route(row(i), plan=plans[i % TURN]), 1),
            "Router.route, scales alone": (lambda i: router.route(row(i)), 1),
            "Router.route, explained": (
                lambda i: router.route(row(i), explained, plan=plans[i % TURN]),
                1,
            ),
            f"Booster.predict x {len(space)}": (
                lambda i: [b.predict(row(i)[None], num_threads=1) for b in boosters],
                1,
            ),
            f"LGBMClassifier x {len(space)}": (
                lambda i: [w.predict_proba(row(i)[None]) for w in wrappers],
                1,
            ),
            f"predict_values, {BATCH} rows": (
                lambda i: router.predict_values(batches[i % len(batches)]),
                BATCH,
            ),
            f"Booster.predict x {len(space)}, {BATCH} rows": (
                lambda i: [b.predict(batches[i % len(batches)], num_threads=1) for b in boosters],
                BATCH,
            ),
        },
        rounds=20 if quick else 300,
    )
    encode = {"plan": plan_way(space), "encode, m3-mini": (encode_once(), 1)}
    features = in_turns(
        feature_ways(EMBEDDING_DIM) | feature_ways(WIDE) | encode, rounds=3 if quick else 40
    )
    encode_us = features["encode, m3-mini"]["p50_us"]
    base = decisions["Router.route"]["p50_us"]
    asked = {
        "route_p50_us": (base, 50.0),
        "plan_share_of_encode": (round(features["plan"]["p50_us"] / encode_us, 4), 0.1),
    }
    return {
        "command": "python benchmarks/router_latency.py" + (" --quick" if quick else ""),
        "data": "synthetic features, synthetic patches",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared; one thread used",
        "lightgbm": lightgbm.__version__,
        "n_features": len(schema.names),
        "n_scales": len(SCALES),
        "actions": list(space.names),
        "trees_per_action": [booster.num_trees() for booster in boosters],
        "asked": {
            name: {"value": value, "at_most": most, "met": value <= most}
            for name, (value, most) in asked.items()
        },
        "decisions": decisions,
        "ratio_to_route": {
            name: round(times["p50_us"] / base, 2) for name, times in decisions.items()
        },
        "features": features,
        "share_of_encode": {
            part: round(features[way]["p50_us"] / encode_us, 4)
            for part, way in {
                "picture": f"picture_features, {EMBEDDING_DIM} wide",
                "question": f"question_features, {EMBEDDING_DIM} wide",
                "plan": "plan",
            }.items()
        },
    }


def show(report: dict[str, Any], console: Console) -> None:
    """Print the report as a table."""
    trees = report["trees_per_action"]
    table = Table(title=f"{report['n_features']} features, {trees} trees, microseconds a request")
    table.add_column("way")
    for heading in ("p50", "p95", "p99", "cold p50", "x route"):
        table.add_column(heading, justify="right")
    for name, times in (report["decisions"] | report["features"]).items():
        ratio = report["ratio_to_route"].get(name)
        cells = [f"{times[key]:.1f}" for key in ("p50_us", "p95_us", "p99_us", "cold_p50_us")]
        table.add_row(name, *cells, "" if ratio is None else f"{ratio:.2f}")
    console.print(table)
    shares = ", ".join(f"{part} {share:.1%}" for part, share in report["share_of_encode"].items())
    console.print(f"shares of the encode they ride on: {shares}")
    for name, row in report["asked"].items():
        met = "met   " if row["met"] else "MISSED"
        console.print(f"{met} {name}: {row['value']:g}, asked at most {row['at_most']:g}")


def main() -> None:
    parser = arguments(__doc__, quick="a smaller router, fewer rounds")
    options = parser.parse_args()
    report = run(options.quick)
    show(report, Console())
    write(report, options.json)


if __name__ == "__main__":
    main()
