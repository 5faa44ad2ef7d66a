"""Writes the datasheet of a published table: what it is, what it holds, how to score a router.

Every count and accuracy is computed from the table. Knows the table's columns and the manifest;
does not know how questions were made beyond what their source says.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from training.published.table import COLUMNS, TABLE

LICENCES = {
    "scenes": "Scenes are drawn by this repository's code (Apache-2.0). Their photographs and "
    "handwritten digits are scikit-learn's sample data, whose licences apply to pictures made "
    "with them; no picture is in the table.",
    "llava": "Questions and answers come from a LLaVA-format file; its licence applies to them, "
    "and this sheet does not know it. Find out before you pass the table on.",
    "log": "Questions come from a service's log: they may hold what people wrote in confidence. "
    "Do not pass the table on without the right to do so.",
}
COLLECTED = {
    "scenes": "Generated scenes (`m3-train collect --scenes`): shapes, signs, tags, numbers and "
    "charts of log-uniform size, with questions whose answers are known from the generator. "
    "Synthetic: no result here is a result on photographs. Picture *i* of `question_id` "
    "`NAMESPACE-SEED-i-POSITION` is `SceneSource(i + 1, SEED, NAMESPACE).load(i).rgb` of "
    "`training.sources`, in the version that made the table.",
    "llava": "A LLaVA-format file (`m3-train collect --data`), each turn asked alone.",
    "log": "Audited, uniformly sampled requests of a running service "
    "(`m3-train collect --from-log`).",
}


def datasheet(table: Any, manifest: dict[str, Any], sources: list[str]) -> str:
    """Return the Markdown of the datasheet.

    Args:
        table: from training.published.publish.
        manifest: of the oracle folder.
        sources: kinds of source in the data.
    """
    columns = {name: np.array(table[name].to_pylist(), dtype=object) for name in _READ}
    scales = [int(scale) for scale in manifest["scales"]]
    names = {key: value[:: len(scales)] for key, value in columns.items()}
    repeats = names["repeat_of"] != np.array(None, dtype=object)
    main = ~repeats
    score = columns["exact_match"].astype(float).reshape(-1, len(scales))
    parts = [
        "# A benchmark of visual-token granularity",
        "Every question of the table was answered by one model from the same picture read as "
        f"{', '.join(map(str, scales))} visual tokens. A router that picks a scale for each "
        "question can be scored exactly, without running the model.",
        "## Motivation",
        "How many visual tokens a question needs depends on the picture and on the question. "
        "Benchmarks for routing between models exist; this one is for routing between "
        "granularities of the same weights, with the outcome of every choice.",
        "## Composition",
        f"`{TABLE}`: one row per question and scale, {table.num_rows} rows; "
        f"{int(main.sum())} questions about {len(set(names['picture_id']))} pictures"
        + (f", and {int(repeats.sum())} repeats in other words" if repeats.any() else "")
        + f"; {int((names['reference'] == None).sum())} without a reference answer.",  # noqa: E711
        _rows(["split", "pictures", "questions"], _by_split(names, main)),
        "Accuracy by type and scale (all splits, repeats left out):",
        _rows(["type", "n", *map(str, scales)], _by_kind(names, main, score)),
        _rows(["column", "meaning"], [[f"`{c}`", what] for c, what in COLUMNS.items()]),
        "## Collection",
        "\n\n".join(COLLECTED[source] for source in sources),
        f"Model `{manifest.get('model', 'unknown')}` (hash `{manifest['model_hash']}`), greedy "
        f"decoding, at most {manifest.get('max_new_tokens', 'an unknown number of')} new tokens. "
        "Right means equal after lower-casing and dropping outer punctuation and a leading "
        "article; without a reference, agreement with the finest scale's answer. Nothing is made "
        "monotone: a finer scale may be wrong where a coarser one is right. `flops` and `gpu_ms` "
        "are computed from the model's shape, not measured.",
        "## Splits",
        "By picture: a hash of the pixels decides, so no picture is in two splits and the split "
        "never changes. Fit on `train`, choose thresholds on `calibration`, report on `test` only. "
        "Rows with `repeat_of` are the same question in other words: leave them out of training "
        "and of accuracies; use them to see how much of an outcome is luck.",
        "## How to score a router",
        "Write a Parquet file with the columns `question_id` and `scale`, one row for every test "
        "question, then:",
        "```bash\nm3-train bench --score picks.parquet --table FOLDER\n```",
        "It prints accuracy and mean visual tokens with 95 % intervals (bootstrap by picture), the "
        "paired difference to the finest scale, harm and rescue, and the tokens relative to random "
        "mixing of fixed scales and to a table by question type at equal accuracy. By hand:",
        "```python\n" + _BY_HAND + "```",
        "## Licence",
        "\n\n".join(LICENCES[source] for source in sources),
    ]
    return "\n\n".join(parts) + "\n"


_READ = ("picture_id", "split", "dataset", "kind", "repeat_of", "reference", "exact_match")
_BY_HAND = f"""import pyarrow.parquet as pq

table = pq.read_table("{TABLE}").to_pandas()
test = table[(table.split == "test") & table.repeat_of.isna()]
mine = test.merge(picks, on=["question_id", "scale"])
print(mine.exact_match.mean(), mine.visual_tokens.mean())
"""


def _by_split(names: dict[str, Any], main: Any) -> list[list[object]]:
    rows: list[list[object]] = []
    for split in ("train", "calibration", "test"):
        here = (names["split"] == split) & main
        rows.append([split, len(set(names["picture_id"][here])), int(here.sum())])
    return rows


def _by_kind(names: dict[str, Any], main: Any, score: Any) -> list[list[object]]:
    groups = np.array(
        [f"{d}/{k}" for d, k in zip(names["dataset"], names["kind"], strict=True)], dtype=object
    )
    rows: list[list[object]] = []
    for group in [*sorted(set(groups[main].tolist())), "all"]:
        here = main if group == "all" else (groups == group) & main
        rows.append([group.strip("/"), int(here.sum()), *(f"{a:.3f}" for a in score[here].mean(0))])
    return rows


def _rows(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
