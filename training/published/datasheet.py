"""Writes the datasheet of a published table: what it is, what it holds, how to score a router.

Every count and accuracy is computed from the table; the words are the template's. Knows the table's
columns and the manifest; does not know how questions were made beyond what their source says.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.oracle.manifest import space_of
from training.published.table import COLUMNS, TABLE

if TYPE_CHECKING:
    from huggingface_hub import DatasetCardData

    from router.actions import ActionSpace

TEMPLATE = Path(__file__).with_name("dataset_card.md.jinja")
LICENCES = {
    "scenes": "Scenes are drawn by this repository's code (Apache-2.0). Their photographs and "
    "handwritten digits are scikit-learn's sample data, whose licences apply to pictures made "
    "with them; no picture is in the table.",
    "llava": "Questions and answers come from a LLaVA-format file; its licence applies to them, "
    "and this sheet does not know it. Find out before you pass the table on.",
    "log": "Questions come from a service's log: they may hold what people wrote in confidence. "
    "Do not pass the table on without the right to do so.",
    "hf": "Questions and answers come from a dataset in Hugging Face's layout; its licence applies "
    "to them, and this sheet does not know it. Find out before you pass the table on.",
    "lmms-eval": "Questions and answers come from a task of lmms-eval; the licence of the task's "
    "data applies to them, and this sheet does not know it. Find out before you pass the table on.",
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
    "hf": "A folder of a Hugging Face dataset (`m3-train collect --hf-dataset`), each row asked "
    "alone.",
    "lmms-eval": "Runs of a task of lmms-eval, one at each scale (`m3-train import-lmms-eval`), "
    "scored by the task's own metric; likelihoods of the right answers are not known (NaN).",
}


_READ = (
    "picture_id", "split", "dataset", "kind", "repeat_of", "reference", "exact_match",
    "visual_tokens",
)  # fmt: skip


def datasheet(table: Any, manifest: dict[str, Any], sources: list[str]) -> str:
    """Return the dataset card: the template's words, with what the table holds.

    Args:
        table: from training.published.publish.
        manifest: of the oracle folder.
        sources: kinds of source in the data.
    """
    from huggingface_hub import DatasetCard

    columns = {name: np.array(table[name].to_pylist(), dtype=object) for name in _READ}
    space = space_of(manifest)
    names = {key: value[:: len(space)] for key, value in columns.items()}
    repeats = names["repeat_of"] != np.array(None, dtype=object)
    main = ~repeats
    score, tokens = (
        columns[name].astype(float).reshape(-1, len(space))
        for name in ("exact_match", "visual_tokens")
    )
    card = DatasetCard.from_template(
        _card_data(sources),
        template_path=str(TEMPLATE),
        file=TABLE,
        scales=list(space.scales),
        actions=list(space.names),
        foci=_foci(space, tokens[main]),
        n_rows=table.num_rows,
        n_questions=int(main.sum()),
        n_pictures=len(set(names["picture_id"])),
        n_repeats=int(repeats.sum()),
        n_without_reference=int((names["reference"] == None).sum()),  # noqa: E711
        splits=_by_split(names, main),
        kinds=_by_kind(names, main, score),
        columns=COLUMNS,
        collected=[COLLECTED[source] for source in sources],
        licences=[LICENCES[source] for source in sources],
        model=manifest.get("model", "unknown"),
        model_hash=manifest["model_hash"],
        max_new_tokens=manifest.get("max_new_tokens", "an unknown number of"),
    )
    return f"{card}\n"


def _card_data(sources: list[str]) -> DatasetCardData:
    from huggingface_hub import DatasetCardData

    return DatasetCardData(
        pretty_name="A benchmark of visual-token granularity",
        # Other people's questions keep their licence, which this program does not know.
        license="apache-2.0" if sources == ["scenes"] else "unknown",
        task_categories=["visual-question-answering"],
        tags=["m3-router", "routing", "adaptive-visual-tokens"],
    )


AROUND = {"none": "", "row": " and those beside them", "ring": " and their neighbours"}


def _foci(space: ActionSpace, tokens: Any) -> list[list[object]]:
    """Return a row for every focus: its levels, its rule in words and what it takes."""
    rows: list[list[object]] = []
    for action, of_rows in zip(space.actions, tokens.T, strict=True):
        if action.rule is not None:
            rule = (
                f"from {action.rule.share / 10:g} % of the peak{AROUND[action.rule.around]}, "
                f"at most {action.rule.most}"
            )
            rows.append([action.name, action.coarse, action.fine, rule, f"{of_rows.mean():.1f}"])
    return rows


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
