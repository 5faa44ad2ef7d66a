"""Labelling foci: what the model generates from the cells that follow from the question."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from m3model import Focus, focus_visual_tokens, pool_visual_tokens
from router.actions import Action, ActionSpace, CellRule, uniform_space
from router.records import OracleRecord, from_table
from training.errors import MixedData, ParametersDiffer
from training.oracle.collection import collect
from training.oracle.data import read_oracle
from training.oracle.labelling import Labeller, scores_of
from training.oracle.manifest import space_of
from training.oracle.rows import MAX_PACKED_TOKENS, Segment, passes_of, rows_of
from training.sources.scenes import SceneSource
from training.sources.tasks import Ask, FileSource

SCALES = (1, 9, 36, 144, 576)
SPACE = ActionSpace(
    (
        Action("1", 1),
        Action("9", 9, base="1"),
        Action("9+144@500x12", 9, 144, CellRule(500, "none", 12), "9"),
        Action("9+144@500x13", 9, 144, CellRule(500, "none", 13), "9"),
        Action("36", 36, base="9"),
        Action("36+576@250rx48", 36, 576, CellRule(250, "ring", 48), "36"),
        Action("144", 144, base="36"),
        Action("576", 576, base="144"),
    )
)


@pytest.fixture(scope="module")
def collected(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("oracle") / "focus"
    collect(SceneSource(4, 3), tiny_model, out, workers=1, max_new_tokens=4, space=SPACE)
    return out


def records_in(out: Path) -> Iterator[OracleRecord]:
    for path in sorted(out.glob("oracle-*.parquet")):
        yield from from_table(pq.read_table(path), OracleRecord)


def test_every_action_is_what_the_model_generates_alone(tiny_model: Path, collected: Path) -> None:
    labeller = Labeller(tiny_model, device="cpu")
    model, end = labeller.model, set(labeller.end_ids)
    found = {record.question_id: record for record in records_in(collected)}
    read = set()
    task = SceneSource(4, 3).load(1)
    grid = model.encode_images(labeller.processor.pixel_values(Image.fromarray(task.rgb)))[0]
    for ask in task.asks:
        record = found[ask.question_id]
        assert record.actions == SPACE.names
        prompt, answer = labeller.processor.prompt_and_answer(ask.question, ask.reference)
        for at, action in enumerate(SPACE.actions):
            cells = tuple(record.cells[at])
            visual = pool_visual_tokens(grid, action.coarse)
            if cells:
                visual = focus_visual_tokens(grid, Focus(action.coarse, action.fine, cells))
            assert len(visual) == record.visual_tokens[at]
            shown = model.embed_prompt(prompt, [visual])[None]
            said = model.generate(
                inputs_embeds=shown, attention_mask=torch.ones(shown.shape[:2], dtype=torch.long),
                max_new_tokens=max(4, len(answer)), do_sample=False,
            )[0].tolist()  # fmt: skip
            said = [token for token in said if token not in end]
            assert labeller.processor.decode(said) == record.answers[at]
            with torch.no_grad():
                both = model.embed_prompt(prompt + answer, [visual])[None]
                logits = model(inputs_embeds=both).logits[0, -len(answer) - 1 : -1]
            likely = torch.log_softmax(logits.float(), -1)[range(len(answer)), answer].sum()
            assert record.p_reference[at] == pytest.approx(float(likely.exp()), rel=1e-3)
            read.add((action.fine, len(cells)))
    assert len({n for fine, n in read if fine == 576}) > 1  # the cells follow from the question


class Painted:
    """A source of relevance that says what it is told."""

    name, needs_tower = "painted", False
    map = np.zeros(576, np.float32)

    def project(self, grid: np.ndarray, tower: torch.Tensor | None) -> np.ndarray:
        return grid

    def score(self, projected: np.ndarray, question: str, ids: Sequence[int]) -> np.ndarray:
        return self.map


class Counting(Labeller):
    """Counts the answers that are computed."""

    def _answers(self, jobs, wanted):
        self.asked = [*getattr(self, "asked", []), len(wanted)]
        return super()._answers(jobs, wanted)


def test_what_reads_the_same_is_computed_once(tiny_model: Path) -> None:
    """Two actions of one plan are one computation; a focus without cells is its coarse scale."""
    labeller = Counting(tiny_model, device="cpu", max_new_tokens=2, space=SPACE)
    labeller.relevance = Painted()
    task = SceneSource(1, 3).load(0)
    one = [replace(task, asks=task.asks[:1])]

    def label() -> OracleRecord:
        labeller.asked = []
        [record] = labeller.label(one, feature_schema="f", model_hash="m", source="scenes")
        return record

    blank = label()
    assert labeller.asked == [1, 4]  # the anchor, then the other scales
    assert blank.visual_tokens == (1, 9, 9, 9, 36, 36, 144, 576)
    for values in (blank.answers, blank.p_reference, blank.confidence):
        assert values[1] == values[2] == values[3]
        assert values[4] == values[5]
    labeller.relevance.map = np.zeros(576, np.float32)
    labeller.relevance.map[[100, 300]] = 1.0, 0.9
    record = label()
    assert labeller.asked == [1, 6]  # the two small foci read the same two cells
    assert record.visual_tokens == (1, 9, 17, 17, 36, 36 + 4 * 18, 144, 576)
    assert record.answers[2] == record.answers[3]


def test_folders_say_which_actions_they_hold(tiny_model: Path, collected: Path, tmp_path) -> None:
    manifest = json.loads((collected / "manifest.json").read_text())
    assert (manifest["format"], space_of(manifest)) == (2, SPACE)
    assert manifest["action_space"] == SPACE.hash
    source = SceneSource(4, 3)
    other = ActionSpace(SPACE.actions[:3] + SPACE.actions[4:])
    with pytest.raises(ParametersDiffer, match="another action_space, actions"):
        collect(source, tiny_model, collected, workers=1, max_new_tokens=4, space=other)
    # Without a focus it is what it was before there were any: the same keys, the same records.
    plain = tmp_path / "plain"
    collect(source, tiny_model, plain, workers=1, max_new_tokens=4, focus=False)
    manifest = json.loads((plain / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert "actions" not in manifest
    assert {record.actions for record in records_in(plain)} == {None}
    with pytest.raises(MixedData, match="both or neither with --no-focus"):
        read_oracle([plain, collected])
    # Its labels are those of the scales among the actions.
    there, here = read_oracle([plain]), read_oracle([collected])
    assert there.space == uniform_space(SCALES)
    assert here.space == SPACE
    narrow = here.only(uniform_space(SCALES))
    assert narrow.space == there.space
    assert np.array_equal(narrow.scores, there.scores)
    assert np.array_equal(narrow.visual_tokens, there.visual_tokens)
    assert narrow.confidence == pytest.approx(there.confidence, rel=1e-3)
    assert np.array_equal(narrow.features, there.features)


def test_data_of_other_actions(collected: Path) -> None:
    data = read_oracle([collected])
    assert data.only(SPACE) is data
    # A start for the predictor is no part of what is read; another rule is.
    with pytest.raises(MixedData, match="actions over the scales 9/36/576"):
        data.only(uniform_space((9, 36, 576)))
    free = ActionSpace(tuple(replace(a, base="") for a in SPACE.actions))
    assert data.columns(free).tolist() == list(range(8))
    rule = CellRule(251, "ring", 48)
    changed = [replace(a, rule=rule) if a.fine == 576 else a for a in SPACE.actions]
    other = ActionSpace(tuple(changed))
    with pytest.raises(MixedData, match=r"do not hold the actions 36\+576@250rx48 "):
        data.only(other)
    # Twice the tokens up to 144, and then three of each: 84 more of the focus that reads 228.
    taken = data.per_action([2.0, 18.0, 72.0, 288.0, 1584.0])
    tokens = data.visual_tokens
    assert np.array_equal(taken, np.where(tokens <= 144, 2 * tokens, 288 + 3 * (tokens - 144)))
    assert 288 + 3 * 84 in taken[:, 5]


def test_shards_of_other_actions_are_refused(collected: Path, tmp_path: Path) -> None:
    for path in collected.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["actions"][2]["rule"]["most"] = 11
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MixedData, match="their manifest differ in action_space"):
        read_oracle([tmp_path])


def test_feedback_on_a_focus_counts_in_its_own_space_only() -> None:
    space = ActionSpace((Action("1", 1), Action("f", 1, 144, CellRule(500, "none", 4)),
                         Action("36", 36), Action("144", 144)))  # fmt: skip
    answers = ["a", "c", "b", "b"]
    focus = Ask(
        "q", score=0.7, logged_scale=1, logged_action="f", logged_space=space.hash,
        logged_answer="c",
    )  # fmt: skip
    assert scores_of(focus, answers, space) == (0.0, 0.7, 1.0, 1.0)
    elsewhere = replace(focus, logged_space="another")
    assert scores_of(elsewhere, answers, space) == (0.0, 0.0, 1.0, 1.0)
    scale = replace(
        elsewhere, logged_action="1", logged_answer="a"
    )  # a scale is the same everywhere
    assert scores_of(scale, answers, space) == (0.7, 0.0, 1.0, 1.0)
    older = replace(scale, logged_action=None, logged_space=None)
    assert scores_of(older, answers, space) == (0.7, 0.0, 1.0, 1.0)


def test_folders_of_before_go_on_with_the_same_questions() -> None:
    """What a question's identity was, byte for byte; an action that was logged is a part of it."""
    old = FileSource("log", (("a", Path("a.png"), (Ask("What?", logged_scale=9),)),), {})
    assert old.parameters()["content"] == "50796a8b758d517e"
    ask = Ask("What?", logged_scale=9, logged_action="9+144@500x12", logged_space="x")
    new = FileSource("log", (("a", Path("a.png"), (ask,)),), {})
    assert new.parameters() != old.parameters()


def test_rows_share_what_is_cheap_to_share() -> None:
    focus = Focus(36, 576, (1, 2, 3))
    segments = [Segment(0, q, seen, 60) for q in range(7) for seen in (9, 36, focus, 576)]
    rows = rows_of(segments, 128)
    together = [each for row in rows for each in row.segments]
    assert sorted(together, key=segments.index) == segments
    for row in rows:
        assert len({(each.picture, each.coarse) for each in row.segments}) == 1
        assert row.length == row.coarse + 60 * len(row.segments)
    assert {len(row.segments) for row in rows if row.coarse == 576} == {7}
    assert {len(row.segments) for row in rows if row.coarse == 9} == {2, 1}
    # One that is too long for any row has a row, and a pass, of its own.
    long = Segment(1, 0, 1, 2 * MAX_PACKED_TOKENS)
    passes = passes_of(rows_of([*segments, long], 128))
    assert [row.segments for row in passes[0]] == [(long,)]
    for each in passes[1:]:
        assert max(row.length for row in each) * len(each) <= MAX_PACKED_TOKENS
