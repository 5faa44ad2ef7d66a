"""Published routers, re-implemented small, beside ours on the same questions and splits.

    python benchmarks/peers.py --oracle runs/oracle --json benchmarks/results/peers.json
    python benchmarks/peers.py --oracle runs/oracle --quick

NVIDIA v2 (MLP over embeddings, a threshold a scale), nearest neighbours, RouteLLM (win probability
from the text), AVG-LLaVA (a Transformer layer over all visual tokens). The scenes of the oracle are
drawn and encoded again, since peers want embeddings or patches, and only a part of them
(--pictures, --avg-pictures of the training pictures); ours learn exactly the same part. They choose
among scales, so ours does here too: foci in the oracle are left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from _peers.avg import fit_avg, log_probabilities
from _peers.families import (
    Family,
    by_price,
    by_threshold,
    judge_family,
    precise_thresholds,
    two_scales,
)
from _peers.models import MultiLayer, Neighbours, wins
from _peers.pictures import Encoded, Encoder, embeddings, encode, rows_in
from _predictors.chained import ALL_KINDS
from _predictors.kinds import SETTINGS
from _predictors.splits import Splits, part_of, summary
from _result import arguments, write
from predictors import oracle_data

from router.actions import uniform_space
from training.figures.metrics import Array, picked
from training.oracle.data import OracleData

OURS = ("heads, soft labels, chained",)
PRESETS = {"conservative": 0.99, "balanced": 0.97, "aggressive": 0.93}  # of the finest accuracy
SWEEP = np.linspace(0.80, 1.0, 41)
TIMED = 50
Row = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """Everything a seed's peers are given: pictures by split and their embeddings."""

    splits: Splits
    pictures: dict[str, list[Encoded]]
    vectors: dict[str, np.ndarray]
    encoder: Encoder
    data: OracleData

    def judged(self, family: Family, **facts: float | None) -> dict[str, float | None]:
        """Return the figures of a family of choices."""
        both = (self.splits.calibration.scores, self.splits.test.scores)
        seen = self.splits.calibration.pictures
        return judge_family(family, both, seen, self.splits.scales) | facts


def work_of(data: OracleData, parts: dict[str, list[Encoded]], encoder: Encoder, seed: int) -> Work:
    """Return a seed's work: nine tenths of the training pictures to learn, the rest to watch."""
    order = np.random.default_rng(seed).permutation(len(parts["train"]))
    n_watched = max(1, len(order) // 10)
    pictures = {
        "train": [parts["train"][i] for i in order[n_watched:]],
        "watched": [parts["train"][i] for i in order[:n_watched]],
        "calibration": parts["calibration"],
        "test": parts["test"],
    }
    whole = part_of(data)
    made = [whole.take(rows_in(some)) for some in pictures.values()]
    vectors = {name: embeddings(some, encoder) for name, some in pictures.items()}
    return Work(Splits(*made, data.space), pictures, vectors, encoder, data)


def ours(kind: str) -> Callable[[Work, int], dict[str, dict[str, float | None]]]:
    """Return the peer that is one of our kinds."""

    def run(work: Work, seed: int) -> dict[str, dict[str, float | None]]:
        values = ALL_KINDS[kind](work.splits, seed, SETTINGS)
        family = by_price(values.calibration, values.test, work.splits.costs)
        facts = {"parameters": float(values.parameters), "ms_a_decision": values.ms_a_decision}
        return {f"ours, {kind}": work.judged(family, **facts, fit_seconds=values.fit_seconds)}

    return run


def nvidia(work: Work, seed: int) -> dict[str, dict[str, float | None]]:
    """Return the MLP with thresholds (swept and three presets) and under our rule."""
    started = time.perf_counter()
    split = work.splits
    learnt = (work.vectors["train"], split.train.scores)
    net = MultiLayer(learnt, (work.vectors["watched"], split.watched.scores), seed)
    facts = _facts(net, net.parameters, work.vectors["test"], started)
    p, of_test = net(work.vectors["calibration"]), net(work.vectors["test"])
    seen = split.calibration.scores
    finest = float(seen[:, -1].mean())
    dials = [precise_thresholds(p, seen, share * finest) for share in SWEEP]
    found = {
        "NVIDIA v2, thresholds": work.judged(by_threshold(p, of_test, dials), **facts),
        "NVIDIA v2's MLP, our rule": work.judged(by_price(p, of_test, split.costs), **facts),
    }
    for name, share in PRESETS.items():
        dial = [precise_thresholds(p, seen, share * finest)]
        picks = by_threshold(p, of_test, dial).test[0]
        found[f"NVIDIA v2, {name}"] = _point(picks, split) | facts
    return found


def neighbours(work: Work, seed: int) -> dict[str, dict[str, float | None]]:
    """Return nearest neighbours on the same embeddings, under our rule."""
    started = time.perf_counter()
    split = work.splits
    # The question's embedding is the last part of a vector, as wide as a word.
    begins = work.vectors["train"].shape[1] - work.encoder.words.shape[1]
    near = Neighbours(work.vectors["train"], split.train.scores, begins)
    facts = _facts(near, near.parameters, work.vectors["test"], started)
    tables = near(work.vectors["calibration"]), near(work.vectors["test"])
    return {"nearest neighbours": work.judged(by_price(*tables, split.costs), **facts)}


def text_only(work: Work, seed: int) -> dict[str, dict[str, float | None]]:
    """Return RouteLLM's win probability for two pairs of scales, and its form for all scales."""
    split, width = work.splits, work.encoder.words.shape[1]
    texts = {name: table[:, -width:] for name, table in work.vectors.items()}
    found = {}
    last = len(split.scales) - 1
    for cheap in (0, last // 2):
        started = time.perf_counter()
        targets = [wins(part.scores, cheap, last) for part in (split.train, split.watched)]
        net = MultiLayer(
            (texts["train"], targets[0]), (texts["watched"], targets[1]), seed, hidden=()
        )
        facts = _facts(net, net.parameters, texts["test"], started)
        both = net(texts["calibration"])[:, 0], net(texts["test"])[:, 0]
        name = f"RouteLLM, {split.scales[cheap]} or {split.scales[last]}"
        found[name] = work.judged(two_scales(*both, cheap, last), **facts)
    started = time.perf_counter()
    learnt = (texts["train"], split.train.scores)
    net = MultiLayer(learnt, (texts["watched"], split.watched.scores), seed, hidden=())
    facts = _facts(net, net.parameters, texts["test"], started)
    tables = net(texts["calibration"]), net(texts["test"])
    found["text only, all scales"] = work.judged(by_price(*tables, split.costs), **facts)
    return found


def avg_llava(work: Work, seed: int) -> dict[str, dict[str, float | None]]:
    """Return the Transformer layer: its own argmax, and its logits under our rule."""
    started = time.perf_counter()
    split, words = work.splits, work.encoder.words
    router = fit_avg(work.pictures["train"], work.data.soft, words, split.scales, seed)
    seconds = time.perf_counter() - started
    tables = [log_probabilities(router, work.pictures[s], words) for s in ("calibration", "test")]
    facts = {
        "parameters": float(sum(weight.numel() for weight in router.parameters())),
        "ms_a_decision": _milliseconds(
            lambda i: log_probabilities(
                router,
                [replace(picture := work.pictures["test"][i % len(work.pictures["test"])],
                         question_ids=picture.question_ids[:1])],
                words,
            ),
            10,
        ),
        "fit_seconds": seconds,
    }  # fmt: skip
    return {
        "AVG-LLaVA, argmax": _point(tables[1].argmax(axis=1), split) | facts,
        "AVG-LLaVA, logits - price": work.judged(by_price(*tables, split.costs), **facts),
    }


def _facts(
    model: Callable[[np.ndarray], Array], parameters: int, X: np.ndarray, started: float
) -> dict[str, float]:
    return {
        "parameters": float(parameters),
        "fit_seconds": time.perf_counter() - started,
        "ms_a_decision": _milliseconds(lambda i: model(X[i % len(X)][None]), TIMED),
    }


def _milliseconds(one: Callable[[int], Any], times: int) -> float:
    taken = []
    for index in range(times):
        begun = time.perf_counter()
        one(index)
        taken.append(time.perf_counter() - begun)
    return 1e3 * float(np.median(taken))


def _point(picks: np.ndarray, split: Splits) -> dict[str, float | None]:
    """Return an operating point that has no dial."""
    accuracy = float(picked(split.test.scores, picks).mean())
    return {
        "accuracy": accuracy,
        "share_of_finest_accuracy": accuracy / float(split.test.scores[:, -1].mean()),
        "visual_tokens": float(np.array(split.scales, float)[picks].mean()),
    }


def run_all(
    peers: list[Callable[[Work, int], dict[str, dict[str, float | None]]]],
    data: OracleData,
    parts: dict[str, list[Encoded]],
    encoder: Encoder,
    seeds: int,
) -> dict[str, Row]:
    """Return every peer's figures, mean and spread over seeds."""
    made: dict[str, list[dict[str, float | None]]] = {}
    for seed in range(seeds):
        work = work_of(data, parts, encoder, seed)
        for peer in peers:
            for name, figures in peer(work, seed).items():
                made.setdefault(name, []).append(figures)
                print(f"seed {seed}  {name:36}{_line(figures)}", flush=True)
    return {name: summary(figures) for name, figures in made.items()}


def _line(figures: dict[str, float | None]) -> str:
    def cell(key: str, form: str) -> str:
        value = figures.get(key)
        return "-" if value is None else format(value, form)

    return (
        f"{cell('accuracy', '.4f')} at {cell('visual_tokens', '6.1f')} tokens | hull 99 % "
        f"{cell('tokens_at_0.99', '.1f')} 98 % {cell('tokens_at_0.98', '.1f')} | "
        f"{cell('parameters', '.0f')} numbers, {cell('ms_a_decision', '.3f')} ms, "
        f"fit {cell('fit_seconds', '.1f')} s"
    )


def main() -> None:
    """Measure, print, write."""
    from m3model import default_model_path

    parser = arguments(__doc__, quick="a few pictures: that it runs")
    parser.add_argument("--oracle", type=Path, help="folder of oracle data, labelled from scenes")
    parser.add_argument("--model", type=Path, default=default_model_path())
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=3000, help="training pictures")
    parser.add_argument("--avg-pictures", type=int, default=1500, help="training pictures")
    given = parser.parse_args()
    counts: dict[str, int | None] = {"train": given.pictures, "calibration": 1000, "test": 1500}
    seeds, few = given.seeds, given.avg_pictures
    if given.quick:
        counts, seeds, few = {"train": 60, "calibration": 30, "test": 30}, 1, 30
    with oracle_data(given.oracle, given.quick) as (data, folder):
        data = data.only(uniform_space(data.scales))
        encoder = Encoder.load(given.model)
        parts = encode(data, folder, encoder, counts)
    peers = [*(ours(kind) for kind in OURS), nvidia, neighbours, text_only]
    report: Row = {
        "benchmark": "peers",
        "seeds": seeds,
        "quick": given.quick,
        "model_hash": data.model_hash,
        "data_hash": data.data_hash,
        "pictures": {name: len(part) for name, part in parts.items()},
        "avg_pictures": few,
        "peers": run_all(peers, data, parts, encoder, seeds),
    }
    small = {**parts, "train": parts["train"][:few]}
    print(f"on {len(small['train'])} training pictures")
    with_avg = run_all([*(ours(kind) for kind in OURS), avg_llava], data, small, encoder, seeds)
    report["on_fewer_pictures"] = with_avg
    write(report, given.json)


if __name__ == "__main__":
    main()
