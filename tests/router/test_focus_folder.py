"""A router of scales and foci in a folder: parts that fit, all that is kept, what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest

from router.actions import Action, ActionSpace, CellRule
from router.decision import Constraints
from router.errors import RouterFileError
from router.policy import Policy
from router.predictor.chain import ComplexityPredictor
from router.router import Router

from .conftest import COSTS, LOOK, SCALES, SCHEMA, SPACE, certificate, plan_of


def test_parts_that_do_not_fit_the_space_are_refused(made: Router) -> None:
    with pytest.raises(ValueError, match="must be equal"):
        Router(made.predictor, SCHEMA, made.policy)
    with pytest.raises(ValueError, match="must be equal"):
        Router(made.predictor, SCHEMA, Policy((0.1,) * 7, 0.3), space=SPACE)
    actions = (Action("4", 4), replace(SPACE.actions[1], base=""), *SPACE.actions[2:])
    with pytest.raises(ValueError, match="the space has the scales"):
        Router(made.predictor, SCHEMA, made.policy, space=ActionSpace(actions))


def test_a_certificate_is_bound_to_the_space(made: Router) -> None:
    focus = replace(SPACE.actions[2], rule=CellRule(501, "none", 12))
    other = ActionSpace((*SPACE.actions[:2], focus, *SPACE.actions[3:]))
    changed = Router(made.predictor, SCHEMA, made.policy, space=other)
    assert changed.predictor_hash != made.predictor_hash
    assert changed.with_certificate(certificate(made)).held.certificate is None
    assert made.with_policy(Policy(COSTS, 0.1)).predictor_hash == made.predictor_hash


def test_a_folder_of_format_2_comes_back_the_same(
    looking: Router, rows: np.ndarray, tmp_path: Path
) -> None:
    held = looking.with_certificate(certificate(looking))
    folder = held.save_pretrained(tmp_path / "router")
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        *("README.md", "actions.json", "calibration.json", "certificate.json", "config.json"),
        *("focus_02.txt", "focus_04.txt"),
        *(f"scale_{scale:04d}.txt" for scale in SCALES),
        *("schema.json", "second_look.json"),
    ]
    assert json.loads((folder / "config.json").read_text())["format"] == 2
    assert "| 36+576@250rx48 | 36 | 576 | 48 |" in (folder / "README.md").read_text()
    back = Router.from_pretrained(folder)
    assert (back.version, back.predictor_hash) == (looking.version, looking.predictor_hash)
    assert (back.space, back.second_look, back.held) == (SPACE, LOOK, held.held)
    assert back.predictor.bases == SPACE.bases
    for number, row in enumerate(rows[:30]):
        wish = Constraints(second_look=True)
        one, other = (r.route(row, wish, plan=plan_of(number)) for r in (looking, back))
        assert (one.readings, one.p_suffices) == (other.readings, other.p_suffices)
    again = back.save_pretrained(tmp_path / "again")
    assert all((again / name).read_bytes() == (folder / name).read_bytes() for name in names)


def test_a_router_of_scales_is_written_as_ever_over_one_of_foci(
    made: Router, rows: np.ndarray, tmp_path: Path
) -> None:
    folder = made.save_pretrained(tmp_path / "router")
    labels = np.random.default_rng(0).random((len(rows), 5)) < 0.5
    plain = Router(ComplexityPredictor(n_estimators=2).fit(rows, labels), SCHEMA, made.policy)
    plain.save_pretrained(folder)
    assert not list(folder.glob("focus_*"))
    assert not (folder / "actions.json").exists()
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == 1
    assert "bases" not in json.loads((folder / "calibration.json").read_text())["params"]
    assert Router.from_pretrained(folder).version == plain.version


def changed(name: str, change: Any) -> Any:
    def damage(folder: Path) -> None:
        stored = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(change(stored)))

    return damage


def with_bases(*bases: int) -> Any:
    return lambda stored: {**stored, "params": {**stored["params"], "bases": bases}}


DAMAGES = {
    "missing actions.json": lambda f: (f / "actions.json").unlink(),
    "missing focus_04.txt": lambda f: (f / "focus_04.txt").unlink(),
    "focus_02.txt is not the file": lambda f: (f / "focus_02.txt").write_text("tree\n"),
    "boosters of other scales: focus_03.txt": lambda f: (f / "focus_03.txt").write_text("tree\n"),
    "actions.json is damaged": lambda f: (f / "actions.json").write_text("[{"),
    "actions.json is damaged: KeyError": changed("actions.json", lambda s: [{"name": "1"}]),
    "actions.json is damaged: TypeError": changed("actions.json", lambda s: 3),
    "actions.json is damaged: ValueError": changed("actions.json", lambda s: s[::-1]),
    "must be squares": changed("actions.json", lambda s: [*s[:2], {**s[2], "coarse": 0}, *s[3:]]),
    "boosters of other scales: focus_02.txt, focus_04.txt, scale_0001.txt": changed(
        "actions.json", lambda s: [{**s[1], "base": ""}, *s[2:]]
    ),
    "of format 3; this program reads format 1 and 2": changed(
        "config.json", lambda s: {**s, "format": 3}
    ),
    "actions.json in a folder of format 1": changed("config.json", lambda s: {**s, "format": 1}),
    "calibration.json is damaged: actions start": changed(
        "calibration.json", with_bases(1, 0, 1, 1, 3, 3, 5)
    ),
    "calibration.json is damaged: 2 bases": changed("calibration.json", with_bases(-1, 0)),
    "the probe row now gives": changed("calibration.json", with_bases(-1, 0, 1, 1, 3, 3, 3)),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_a_damaged_folder_is_refused_in_words(made: Router, tmp_path: Path, said: str) -> None:
    folder = made.save_pretrained(tmp_path / "router")
    DAMAGES[said](folder)
    with pytest.raises(RouterFileError, match=said):
        Router.from_pretrained(folder)


def test_the_hub_gives_a_router_of_foci_whole(
    made: Router, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = made.save_pretrained(tmp_path / "kept")

    def snapshot_download(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        """Return a folder of the files that the Hub's own filter lets through."""
        names = [path.name for path in kept.iterdir()]
        (tmp_path / "got").mkdir()
        for name in huggingface_hub.utils.filter_repo_objects(names, allow_patterns=allow_patterns):
            shutil.copy(kept / name, tmp_path / "got")
        return str(tmp_path / "got")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    back = Router.from_pretrained("me/router")
    assert (back.version, back.space) == (made.version, SPACE)
