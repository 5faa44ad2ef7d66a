"""Does a second look pay? Answer coarsely, then let the answer's own confidence escalate once.

An exact simulation on oracle data: every action's answer, score and confidence is known. The single
look is the router's values at one price. A second look pays for both passes and both answers, the
picture being encoded once; it reads more of the picture than the first did. Ladders are of scales.
Gates learn on training pictures, the small ones that a router carries on a third of the calibration
pictures; each policy's settings are those on its hull over the calibration pictures; every figure
is of test pictures, intervals by picture.

    python benchmarks/second_look.py [--oracle DIR] [--router DIR] [--json PATH] [--quick]
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _operating_paths import Draws, Runs, Walk, interval_of
from _result import arguments, write
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from m3model import M3Config, default_model_path, request_cost
from m3model.config import CLIP_L_336_VISION
from router import Router, default_router_path
from router.policy import candidate_prices, choose_many
from router.predictor.calibration import fit_calibration
from router.predictor.chain import ComplexityPredictor
from router.second_look import SecondLook
from training.figures.metrics import picked
from training.fitting.calibration_parts import calibration_parts
from training.fitting.predictor import labels_of
from training.fitting.second_look import after_first, fit_gates
from training.oracle.collection import collect
from training.oracle.data import OracleData, check_fits, read_oracle
from training.sources.scenes import SceneSource

SHARES = (0.95, 0.98, 0.99, 0.995)  # of the finest accuracy
FOLDS = 3
FAST: Any = {"n_estimators": 150, "learning_rate": 0.08, "n_folds": 0, "calibration": "none"}
PRICES = np.concatenate([[0.0], np.geomspace(0.003, 3.0, 24)])  # of escalating
THRESHOLDS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.96, 0.98, 0.99, 0.997)
Array = NDArray[np.float64]


class Cost(NamedTuple):
    """What one look costs at each scale (K,), and the encode once; the finest request is 1."""

    look: NDArray[np.float64]
    encode: float

    def of(self, data: OracleData) -> Array:
        """Return (n, A) what one look costs by each action."""
        return data.per_action(self.look)


def costs() -> dict[str, Cost]:
    """Return the ways of counting, at 40 tokens of text and 8 of answer; 7B is LLaVA-1.5's."""
    mini = M3Config.from_pretrained(default_model_path())
    text = {
        "model_type": "llama", "vocab_size": 32001, "hidden_size": 4096, "num_hidden_layers": 32,
        "intermediate_size": 11008, "num_attention_heads": 32,
    }  # fmt: skip
    seven = M3Config(
        vision_config={**CLIP_L_336_VISION, "model_type": "clip_vision_model"},
        text_config=text, image_token_index=32000, text_vocab_size=32000,
    )  # fmt: skip

    def operations(config: M3Config) -> Cost:
        asked = [request_cost(config, s) for s in config.scales]
        look = np.array([c.prefill_flops + c.decode_flops for c in asked])
        return Cost(look / asked[-1].flops, asked[-1].encode_flops / asked[-1].flops)

    tokens = np.array(mini.scales, float)
    return {
        "visual tokens": Cost(tokens / tokens[-1], 0.0),
        "operations, m3-mini": operations(mini),
        "operations, 7B": operations(seven),
    }


@dataclass(frozen=True)
class Part:
    """One split. ``values`` (n, A) before any answer; ``gates``, ``small`` (s0, n, A) after s0."""

    data: OracleData
    agree: NDArray[np.bool_]  # (n, A, A): two actions answer the same
    values: Array
    gates: Array
    small: Array


def answers_of(folder: Path) -> dict[tuple[str, str], list[str]]:
    """Return the answer by every action by picture and question."""
    import pyarrow.dataset as ds

    files = sorted(map(str, folder.glob("oracle-*.parquet")))
    table = ds.dataset(files).to_table(["picture_id", "question_id", "answers"])
    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    return {(p, q): [" ".join(x.lower().split()) for x in answers] for p, q, answers in rows}


def prepare(folder: Path, router: Router, most: int | None) -> list[Part]:
    """Return the calibration and test questions; gates are fitted on the training questions."""
    whole = read_oracle([folder])
    data, columns = check_fits(router, whole), whole.columns(router.space)
    if most is not None:
        data = data.take(data.pictures < most)
    known = answers_of(folder)
    splits = [data.split("train"), data.split("calibration"), data.split("test")]
    asked = [zip(s.picture_ids, s.question_ids, strict=True) for s in splits]
    texts = [np.array([known[key] for key in keys], object)[:, columns] for keys in asked]
    raw = opinions(splits)
    gates: list[list[Array]] = [[], []]
    for start in range(len(data.space) - 1):
        inputs = [after_answer(*of, start) for of in zip(splits, raw, texts, strict=True)]
        model = ComplexityPredictor(**FAST).fit(inputs[0], splits[0].scores[:, start:])
        said = [model.raw_scores(x) for x in inputs[1:]]
        pairs = zip(said[0].T, splits[1].scores[:, start:].T, strict=True)
        maps = [fit_calibration("platt", score, right) for score, right in pairs]
        for gate, of in zip(gates, said, strict=True):
            values = [to(column) for to, column in zip(maps, of.T, strict=True)]
            gate.append(np.stack([np.full(len(of), -np.inf)] * start + values, axis=1))
    fits = calibration_parts(data)[0]
    look = fit_gates(values_of(router, fits), fits.scores, fits.confidence, data.space.names)
    return [
        Part(s, t[:, :, None] == t[:, None, :], v, np.stack(g), small_gates(look, v, s))
        for s, t, g in zip(splits[1:], texts[1:], gates, strict=True)
        for v in [values_of(router, s)]
    ]


def values_of(router: Router, data: OracleData) -> Array:
    """Return (n, A) what the router predicts."""
    return np.asarray(router.predict_values(data.features), dtype=np.float64)


def small_gates(look: SecondLook, values: Array, data: OracleData) -> Array:
    """Return (A - 1, n, A) what the small gates say after the answer by each first action."""
    firsts = [np.full(len(values), start) for start in range(len(data.space) - 1)]
    return np.stack([after_first(look, values, first, data.confidence) for first in firsts])


def after_answer(data: OracleData, raw: Array, texts: Any, start: int) -> NDArray[np.float32]:
    """Return (n, F + A + 4): features, raw values, the answer's confidence, length and nature."""
    sure = np.clip(data.confidence[:, start], 1e-6, 1 - 1e-6)
    answer = texts[:, start]
    length = np.array([len(a) for a in answer], float)
    more = [sure, np.log(sure) / np.maximum(length, 1.0), length, [a.isdigit() for a in answer]]
    return np.hstack([data.features, raw, np.array(more, float).T]).astype(np.float32)


def opinions(splits: Sequence[OracleData]) -> list[Array]:
    """Return (n, A) log odds before any answer; of training pictures by the other folds' only."""
    train = splits[0]
    labels, raw = labels_of(train), [np.zeros(s.scores.shape) for s in splits]
    fold = np.random.default_rng(0).permutation(train.n_pictures)[train.pictures] % FOLDS
    for rows in (fold != held for held in range(FOLDS)):
        model = ComplexityPredictor(**FAST)
        model.fit(train.features[rows], labels[rows])
        raw[0][~rows] = model.raw_scores(train.features[~rows])
        for mean, split in zip(raw[1:], splits[1:], strict=True):
            mean += model.raw_scores(split.features) / FOLDS
    return raw


def single(part: Part, cost: Cost, prices: Array) -> Runs:
    """One look by the action with the best value - price x cost."""
    look = cost.of(part.data)
    picks = np.stack([choose_many(part.values, look, p) for p in prices])
    score = picked(part.data.scores, picks)
    return Runs(score, cost.encode + picked(look, picks), np.ones(score.shape))


def escalated(part: Part, cost: Cost, start: NDArray[np.intp], price: float) -> list[Runs]:
    """From ``start`` (n,) escalate where worth ``price``; the last or the surer answer counts."""
    look = cost.of(part.data)
    rows, finest, first = np.arange(len(start)), look.shape[1] - 1, picked(look, start)
    gate = part.gates[np.minimum(start, finest - 1), rows]
    gain = np.where(look > first[:, None], gate - price * look, -np.inf)
    gain[rows, start] = gate[rows, start]  # staying costs nothing more
    end = np.where(start == finest, finest, gain.argmax(axis=1))
    more = end != start
    spent = cost.encode + first + np.where(more, picked(look, end), 0.0)
    scores, sure, answers = part.data.scores, part.data.confidence, 1.0 + more
    surer = np.where(sure[rows, end] >= sure[rows, start], end, start)
    return [Runs(scores[rows, told][None], spent[None], answers[None]) for told in (end, surer)]


def second_look(part: Part, cost: Cost, prices: Array) -> Runs:
    """The router's choice at a start price (or one action for all), then the gate."""
    (n, k), look = part.values.shape, cost.of(part.data)
    starts = [choose_many(part.values, look, price) for price in prices]
    starts += [np.full(n, action) for action in range(k - 1)]
    return Runs.joined([r for s in starts for p in PRICES for r in escalated(part, cost, s, p)])


def small_gate(part: Part, cost: Cost, prices: Array) -> Runs:
    """What a router serves: start prices only, the small gates, and the last answer counts."""
    same, look = replace(part, gates=part.small), cost.of(part.data)
    starts = [choose_many(part.values, look, price) for price in prices]
    return Runs.joined([escalated(same, cost, s, p)[0] for s in starts for p in PRICES])


def chain(part: Part, cost: Cost, prices: Array) -> Runs:
    """Up a ladder of scales while the confidence is below a threshold, every look paid."""
    scales = part.data.space.uniform
    ladders = [c for n in range(2, len(scales) + 1) for c in itertools.combinations(scales, n)]
    unsure = [part.data.confidence < threshold for threshold in THRESHOLDS[1:]]
    return Runs.joined([climbed(part, cost, each, u) for each in ladders for u in unsure])


def agreement(part: Part, cost: Cost, prices: Array) -> Runs:
    """Two coarse looks; a third where they disagree or the second is unsure."""
    runs, ladders = [], itertools.combinations(part.data.space.uniform, 3)
    for ladder, threshold in itertools.product(ladders, THRESHOLDS):
        more = part.data.confidence < threshold
        more[:, ladder[0]] = True
        more[:, ladder[1]] |= ~part.agree[:, ladder[0], ladder[1]]
        runs.append(climbed(part, cost, ladder, more))
    return Runs.joined(runs)


def climbed(part: Part, cost: Cost, ladder: tuple[int, ...], more: NDArray[np.bool_]) -> Runs:
    """Take the scales of a ladder in turn, going on from action k where ``more`` (n, A) says so."""
    n, look = len(more), cost.of(part.data)
    going, spent = np.ones(n, bool), np.full(n, cost.encode)
    score, answers = np.zeros(n), np.zeros(n)
    for scale in ladder:
        spent, answers = spent + going * look[:, scale], answers + going
        score = np.where(going, part.data.scores[:, scale], score)
        going = going & more[:, scale]
    return Runs(score[None], spent[None], answers[None])


POLICIES = {
    "second look": second_look, "small gate": small_gate, "agreement": agreement, "chain": chain,
}  # fmt: skip


def signal(test: Part) -> list[dict[str, Any]]:
    """Return how well it is known, before and after an answer, whether it is right (AUC)."""
    rows = []
    for k, action in enumerate(test.data.space.actions[:-1]):
        says = {"before": test.values, "confidence": test.data.confidence}
        says |= {"gate": test.gates[k], "small gate": test.small[k]}
        aucs = {n: roc_auc_score(test.data.scores[:, k], v[:, k]) for n, v in says.items()}
        rows.append(
            {"scale": action.key} | {name: round(float(auc), 4) for name, auc in aucs.items()}
        )
    return rows


def compare(calibration: Part, test: Part, cost: Cost, draws: Draws) -> dict[str, Any]:
    """Return every policy beside the single look, at its cost and at its accuracy."""
    prices = candidate_prices(calibration.values, cost.of(calibration.data))
    ones = single(calibration, cost, prices)
    few = prices[ones.on_hull()]
    few = few[:: max(1, len(few) // 16)]
    one = Walk.along(ones, single(test, cost, prices), draws)
    walks = {
        name: Walk.along(policy(calibration, cost, few), policy(test, cost, few), draws)
        for name, policy in POLICIES.items()
    }
    points, finest = [], draws.means(test.data.scores[:, -1][None])[:, 0]
    for share in SHARES:
        needs = one.at_accuracy(share * finest)
        point: dict[str, Any] = {"share": share, "single look": interval_of(needs)}
        for name, walk in walks.items():
            # The budget is what the single look needs on all pictures, the same in every resample.
            budget = np.full(len(needs), needs[0])
            accuracy, answers = walk.at_cost(budget)
            point[name] = {
                "accuracy_difference": interval_of(accuracy - one.at_cost(budget)[0]),
                "cost_ratio": interval_of(walk.at_accuracy(share * finest) / needs),
                "answers": None if np.isnan(answers[0]) else round(float(answers[0]), 3),
            }
        points.append(point)
    return {"encode": cost.encode, "look": cost.look.tolist(), "points": points}


def show(name: str, result: dict[str, Any]) -> None:
    """Print one way of counting."""

    def words(found: dict[str, float] | None, times: float = 1.0) -> str:
        mean, low, high = (times * x for x in found.values()) if found else (np.nan,) * 3
        return f"{mean:+9.3f} ({low:+.3f} to {high:+.3f})"

    print(f"\n{name}: encode {result['encode']:.3f}, looks {np.round(result['look'], 4).tolist()}")
    for point in result["points"]:
        print(f"{point['share']:.1%} of the finest: single look {words(point['single look'])}")
        for policy in POLICIES:
            row = point[policy]
            print(
                f"  {policy:12}points at equal cost {words(row['accuracy_difference'], 100)}, cost"
                f" at equal accuracy, x {words(row['cost_ratio'])}, answers {row['answers']}"
            )


def main() -> None:
    """Simulate, print, write."""
    parser = arguments(__doc__, quick="200 pictures: shows that it runs")
    parser.add_argument("--oracle", type=Path, help="labels of m3-train collect; else collected")
    parser.add_argument("--router", type=Path, default=default_router_path())
    given = parser.parse_args()
    router = Router.from_pretrained(given.router)
    most = 200 if given.quick else None
    with tempfile.TemporaryDirectory() as scratch:
        if given.oracle is None:
            collect(SceneSource(most or 6000, 1), default_model_path(), Path(scratch))
        calibration, test = prepare(given.oracle or Path(scratch), router, most)
    draws = Draws.of(test.data.pictures, 200 if given.quick else 2000)
    report: dict[str, Any] = {
        "benchmark": "second_look", "router_version": router.version,
        "data_hash": test.data.data_hash, "n_questions": len(test.data),
        "n_pictures": test.data.n_pictures, "auc_of_being_right": signal(test),
        "finest_accuracy": float(test.data.scores[:, -1].mean()), "costs": {},
    }  # fmt: skip
    print(f"{len(test.data)} test questions about {test.data.n_pictures} pictures")
    print(*(f"AUC {row}" for row in report["auc_of_being_right"]), sep="\n")
    for name, cost in costs().items():
        report["costs"][name] = compare(calibration, test, cost, draws)
        show(name, report["costs"][name])
    write(report, given.json)


if __name__ == "__main__":
    main()
