"""Oracle data small enough to work out by hand: of scales, and with a focus."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from router.actions import Action, ActionSpace, CellRule
from router.features.schema import feature_schema
from router.records import OracleRecord, to_table

SCALES = (1, 9, 36)
SCHEMA = feature_schema(SCALES, 24, 8)
# One question of a kind for each pattern of right answers, the same for every picture.
RIGHT = {"easy": (1, 1, 1), "middle": (0, 1, 1), "lost": (0, 1, 0), "never": (0, 0, 0)}
AGAIN = {"easy": (1, 1, 1), "lost": (0, 0, 1)}  # the same question in other words
SECONDS = [0.001, 0.002, 0.004]


def record(picture: str, kind: str, scores: tuple[int, ...], **more: object) -> OracleRecord:
    facts = {
        "picture_id": picture, "question_id": f"{picture[:6]}-{kind}", "question": f"{kind}?",
        "kind": kind, "dataset": "scenes", "reference": "x", "source": "scenes", "scales": SCALES,
        "answers": tuple("x" if s else "y" for s in scores), "scores": tuple(map(float, scores)),
        "p_reference": (0.1, 0.5, 0.9), "confidence": (0.2, 0.6, 0.8), "visual_tokens": SCALES,
        "features": np.zeros(len(SCHEMA.names), np.float32), "feature_schema": SCHEMA.hash,
        "model_hash": "feed", "size_px": 12.0, "metadata": json.dumps({"clutter": 3}),
    }  # fmt: skip
    return OracleRecord(**{**facts, **more})


def write_oracle(folder: Path, pictures: int = 40, **changes: object) -> Path:
    records = []
    for number in range(pictures):
        picture = f"{number:064x}"
        records += [record(picture, kind, scores, **changes) for kind, scores in RIGHT.items()]
        for kind, scores in AGAIN.items():
            original = f"{picture[:6]}-{kind}"
            records.append(
                record(
                    picture, kind, scores, question=f"{kind} again?",
                    question_id=f"{original}-again1", metadata=json.dumps({"repeat_of": original}),
                )
            )  # fmt: skip
    # Distinct names although every picture id begins with the same zeros.
    records = [
        OracleRecord(**{
            **{f: getattr(r, f) for f in OracleRecord.__slots__},
            "question_id": r.question_id.replace(r.picture_id[:6], r.picture_id[-4:]),
            "metadata": r.metadata.replace(r.picture_id[:6], r.picture_id[-4:]),
        })
        for r in records
    ]  # fmt: skip
    folder.mkdir(parents=True)
    pq.write_table(to_table(records, OracleRecord), folder / "oracle-00000.parquet")
    manifest = {
        "model_hash": "feed", "model": "toy", "feature_schema": SCHEMA.hash, "grid_side": 24,
        "embedding_dim": 8, "relevance": SCHEMA.relevance, "scales": list(SCALES),
        "flops": [1.0, 2.0, 4.0], "max_new_tokens": 16,
        "analytic_seconds": {"NVIDIA H100 SXM": SECONDS},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


FOCUS_SPACE = ActionSpace(
    (
        Action("1", 1),
        Action("1+36@500x5", 1, 36, CellRule(500, "none", 5), "1"),
        Action("9", 9, base="1"),
        Action("36", 36, base="9"),
    )
)
FOCUSED = {  # scores of the actions, and the cells that the focus reads
    "easy": ((1, 1, 1, 1), (4,)), "middle": ((0, 1, 1, 1), (4,)),
    "lost": ((0, 0, 1, 0), ()), "never": ((0, 0, 0, 0), (0, 1, 8)),
}  # fmt: skip


def write_focused(folder: Path, pictures: int = 40) -> Path:
    """Write oracle data with a focus, the manifest as `collect` leaves it."""
    write_oracle(folder, pictures=1)
    records = [
        record(
            f"{number:064x}", kind, scores, question_id=f"{number:04x}-{kind}",
            p_reference=(0.5,) * 4, confidence=(0.5,) * 4,
            visual_tokens=(1, 1 + 4 * len(cells), 9, 36), cells=((), cells, (), ()),
            actions=FOCUS_SPACE.names, action_space=FOCUS_SPACE.hash,
        )
        for number in range(pictures)
        for kind, (scores, cells) in FOCUSED.items()
    ]  # fmt: skip
    pq.write_table(to_table(records, OracleRecord), folder / "oracle-00000.parquet")
    path = folder / "manifest.json"
    told = {"actions": FOCUS_SPACE.to_json(), "action_space": FOCUS_SPACE.hash}
    path.write_text(json.dumps({**json.loads(path.read_text()), **told}))
    return folder


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_oracle(tmp_path_factory.mktemp("bench") / "oracle")
