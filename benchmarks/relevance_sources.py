"""Routing with every source of relevance, as if the model had no readout, beside its own readout.

    python benchmarks/relevance_sources.py --oracle runs/oracle
    python benchmarks/relevance_sources.py --quick

The router's answers are not asked again: the scenes of an oracle folder are drawn and encoded once
more, and features are computed with each source, of uniform scales alone. What a source is worth to
a focus is asked, about the test pictures and without a router: the cheapest and the densest one
that ship, their cells found by each source. The "distilled" readout is learnt here, without masks,
from the model's own attention on scenes of its own. CLIP needs the text tower that the vision tower
was trained with: m3-mini has none, so it is left out. Without --oracle scenes are labelled first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _focus.asking import Asked, Reader, cut_of_reading
from _peers.pictures import Encoded, Encoder, encode
from _predictors.kinds import KINDS
from _predictors.splits import SHARES, part_of, resampled
from _result import arguments, write
from numpy.typing import NDArray
from predictors import oracle_data, rows_of

from m3model import RelevanceReadout
from m3model.relevance.choice import ReadoutRelevance, relevance_sources
from m3model.relevance.source import RelevanceSource
from router.actions import ActionSpace, default_space, uniform_space
from router.features.vector import picture_features, question_features
from training.figures.resampling import Resampler
from training.finetune.readout import distil_readout
from training.oracle.data import OracleData
from training.sources.scenes import SceneSource
from training.sources.tasks import Ask

PICTURES = {"train": 1200, "calibration": 500, "test": 800}
QUICK_PICTURES = {"train": 60, "calibration": 30, "test": 30}
DISTIL_PICTURES, QUICK_DISTIL_PICTURES, DISTIL_SEED = 300, 32, 3000
KIND = "heads, soft labels"  # what `m3-train fit` fits


@dataclass
class Cost:
    """Seconds spent, on pictures and on questions, and how many there were."""

    picture_s: float = 0.0
    question_s: float = 0.0
    pictures: int = 0
    questions: int = 0

    def as_row(self) -> dict[str, float]:
        """Return milliseconds a picture and a question."""
        return {
            "ms_a_picture": 1e3 * self.picture_s / max(1, self.pictures),
            "ms_a_question": 1e3 * self.question_s / max(1, self.questions),
        }


def features_of(
    source: RelevanceSource,
    pictures: Sequence[Encoded],
    questions: Mapping[int, str],
    encoder: Encoder,
    scales: Sequence[int],
    cost: Cost,
) -> NDArray[np.float32]:
    """Return (n, F) features of the pictures' questions, in their order; adds to the cost."""
    rows = []
    for picture in pictures:
        grid = picture.grid.float().numpy()
        known = picture_features(grid, scales)
        started = time.perf_counter()
        projected = source.project(grid, None)
        cost.picture_s += time.perf_counter() - started
        cost.pictures += 1
        for row, ids in zip(picture.rows.tolist(), picture.question_ids, strict=True):
            words = encoder.words[list(ids)].mean(dim=0).numpy()
            started = time.perf_counter()
            relevance = source.score(projected, questions[row], ids)
            cost.question_s += time.perf_counter() - started
            cost.questions += 1
            rows.append(question_features(known, relevance, questions[row], words))
    return np.stack(rows)


def scales_alone(data: OracleData) -> OracleData:
    """Return the questions under the uniform scales."""
    own = list(data.space.uniform)
    columns = ("scores", "soft", "confidence", "visual_tokens")
    kept = {name: getattr(data, name)[:, own] for name in columns}
    return replace(data, space=uniform_space(data.scales), repeats=None, **kept)


def foci_of(
    source: RelevanceSource,
    pictures: Sequence[Encoded],
    asks: Mapping[int, Ask],
    reader: Reader,
    space: ActionSpace,
) -> list[dict[str, Any]]:
    """Return accuracy and tokens of the cheapest and the densest focus, cells by this source."""
    foci = [i for i, action in enumerate(space.actions) if not action.is_uniform]
    foci.sort(key=lambda index: space.actions[index].most_tokens)
    grids = [picture.grid for picture in pictures]
    asked: list[Asked] = []
    for number, picture in enumerate(pictures):
        own = [asks[row] for row in picture.rows.tolist()]
        asked += reader.questions(picture.grid, number, own, source)
    plans = [space.plan(one.relevance) for one in asked]
    draws = Resampler(np.array([one.picture for one in asked]))
    found = []
    for index in dict.fromkeys([*foci[:1], *foci[-1:]]):
        cuts = [cut_of_reading(space.reading(index, plan)) for plan in plans]
        answers = reader.answers(grids, asked, cuts)
        found.append(
            {
                "focus": space.names[index],
                "accuracy": draws.interval(answers.right).as_dict(),
                "visual_tokens": float(answers.tokens.mean()),
            }
        )
    return found


def measure(data: OracleData, oracle: Path, model: Path, seeds: int, quick: bool) -> dict[str, Any]:
    """Return the table: a row a source, the figures over seeds."""
    data, encoder = scales_alone(data), Encoder.load(model)
    sources = relevance_sources(encoder.model, model)
    sources.pop("readout", None)
    own = RelevanceReadout.from_pretrained(model)
    if own is not None:
        sources["readout"] = ReadoutRelevance(own)
    count = QUICK_DISTIL_PICTURES if quick else DISTIL_PICTURES
    started = time.perf_counter()
    distilled, agrees = distil_readout(model, SceneSource(count, DISTIL_SEED), device="cpu")
    distil_s = time.perf_counter() - started
    sources["distilled readout"] = ReadoutRelevance(distilled)

    pictures = encode(data, oracle, encoder, dict(QUICK_PICTURES if quick else PICTURES))
    known = _asks(oracle)
    asks = {row: known[str(data.question_ids[row])] for row in range(len(data))}
    asked = {row: ask.question for row, ask in asks.items()}
    reader, space = Reader(model), default_space(data.scales)
    found: dict[str, Any] = {}
    order = ("readout", "distilled readout", "cosine", "attention")
    for name in [*(n for n in order if n in sources), "none"]:
        cost = Cost()
        parts = []
        for split in ("train", "calibration", "test"):
            rows = np.concatenate([picture.rows for picture in pictures[split]])
            here = data.take(rows)
            if name != "none":
                made = features_of(
                    sources[name], pictures[split], asked, encoder, data.scales, cost
                )
                here = replace(here, features=made)
            else:
                kept = data.schema.columns("picture", "statistics", "question")
                here = replace(here, features=np.ascontiguousarray(here.features[:, kept]))
            parts.append(part_of(here))
        train, calibration, test = parts

        def splits(seed: int, t: Any = train, c: Any = calibration, e: Any = test) -> Any:
            return resampled(t, c, e, data.space, seed)

        found[name] = {**cost.as_row(), **rows_of(KINDS[KIND], splits, seeds)}
        if name != "none":
            found[name]["foci"] = foci_of(sources[name], pictures["test"], asks, reader, space)
        show(name, found[name])
    return {
        "benchmark": "relevance_sources",
        "quick": quick,
        "seeds": seeds,
        "kind": KIND,
        "model_hash": data.model_hash,
        "data_hash": data.data_hash,
        "feature_schema": data.feature_schema,
        "torch_threads": torch.get_num_threads(),
        "pictures": {split: len(held) for split, held in pictures.items()},
        "distilled": {"pictures": count, "seconds": distil_s, "agreement": agrees},
        "clip": "not applicable: m3-mini's vision tower has no text tower",
        "sources": found,
    }


def show(name: str, row: dict[str, Any]) -> None:
    """Print one line of the table."""
    cells = [row["figures"][f"tokens_at_{share:g}"] for share in SHARES]
    told = " ".join(
        f"{'never':>13}" if cell is None else f"{cell['mean']:7.1f} ±{cell['spread']:4.1f}"
        for cell in cells
    )
    print(
        f"{name:20}{told}   {row['ms_a_picture']:.3f} ms a picture, "
        f"{row['ms_a_question']:.3f} ms a question",
        flush=True,
    )
    for focus in row.get("foci", ()):
        accuracy = "{mean:.3f} ({low:.3f} to {high:.3f})".format(**focus["accuracy"])
        print(f"  {focus['focus']:22}{accuracy} at {focus['visual_tokens']:.1f} tokens", flush=True)


def _asks(oracle: Path) -> dict[str, Ask]:
    import pyarrow.parquet as pq

    columns = ["question_id", "question", "reference"]
    found: dict[str, Ask] = {}
    for path in sorted(oracle.glob("oracle-*.parquet")):
        for row in pq.read_table(path, columns=columns).to_pylist():
            found[row["question_id"]] = Ask(row["question"], row["reference"])
    return found


def main() -> None:
    """Measure, print, write."""
    from m3model import default_model_path

    parser = arguments(__doc__, quick="one seed, few scenes: that it runs")
    parser.add_argument("--oracle", type=Path, help="folder of oracle data, labelled from scenes")
    parser.add_argument("--model", type=Path, default=default_model_path())
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'source':20}tokens for 99, 98, 95 % of the finest accuracy (test hull)")
    with oracle_data(given.oracle, given.quick) as (data, folder):
        seeds = 1 if given.quick else given.seeds
        report = measure(data, folder, given.model, seeds, given.quick)
    write(report, given.json)


if __name__ == "__main__":
    main()
