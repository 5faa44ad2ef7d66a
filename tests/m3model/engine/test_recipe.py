"""The recipe of a model folder's answers: what changes it, what does not, what two have alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from m3model import M3Processor
from m3model.config import hash_model
from m3model.engine.recipe import cut_after, label_recipe_hash, model_of, shared_recipe, uncut
from m3model.prompt.templates import VICUNA_TEMPLATE


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def rewritten(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def another_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<a>", "<a> "))


def another_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")


def another_word(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"triangle"', '"triangles"'))


@pytest.mark.parametrize(
    "change",
    [
        another_weight,
        another_word,
        another_template,
        lambda folder: rewritten(folder / "preprocessor_config.json", resample=2),
        lambda folder: rewritten(folder / "generation_config.json", eos_token_id=3),
        lambda folder: rewritten(folder / "config.json", vision_feature_layer=-2),
        lambda folder: (folder / "chat_template.jinja").unlink(),
        lambda folder: (folder / "special_tokens_map.json").write_text('{"eos_token": "<a>"}'),
    ],
)
def test_all_that_determines_an_answer_counts(
    folder: Path, tiny_model: Path, change: Callable[[Path], object]
) -> None:
    change(folder)
    assert label_recipe_hash(folder) != label_recipe_hash(tiny_model)


def test_what_determines_no_answer_does_not_count(folder: Path, tiny_model: Path) -> None:
    rewritten(folder / "generation_config.json", transformers_version="9.9")
    rewritten(folder / "tokenizer_config.json", name_or_path="/elsewhere")
    text = (folder / "preprocessor_config.json").read_text()
    (folder / "preprocessor_config.json").write_text(text.replace("\n", "\n  "))
    (folder / "README.md").write_text("about it")
    assert label_recipe_hash(folder) == label_recipe_hash(tiny_model)
    known = label_recipe_hash(folder, weights=hash_model(folder))
    assert known == label_recipe_hash(folder)


def test_a_folder_without_a_template_is_read_with_the_one_written_here(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "chat_template.jinja").unlink()
    assert M3Processor.from_pretrained(folder).tokenizer.chat_template == VICUNA_TEMPLATE
    before = label_recipe_hash(folder)
    monkeypatch.setattr("m3model.engine.recipe.VICUNA_TEMPLATE", "another version's")
    assert label_recipe_hash(folder) != before
    rewritten(folder / "tokenizer_config.json", chat_template="{{ 'its own' }}")
    own = label_recipe_hash(folder)
    monkeypatch.setattr("m3model.engine.recipe.VICUNA_TEMPLATE", VICUNA_TEMPLATE)
    assert label_recipe_hash(folder) == own


def test_parts_of_a_recipe(tiny_model: Path) -> None:
    model = label_recipe_hash(tiny_model)
    assert len(model) == 16
    assert label_recipe_hash(tiny_model, "float32") == f"{model}-float32"
    whole = label_recipe_hash(tiny_model, "float32", 16)
    assert whole == f"{model}-float32-16"
    assert (model_of(whole), uncut(whole), uncut(model)) == (model, f"{model}-float32", model)
    assert cut_after(f"{model}-float32", 16) == whole
    assert cut_after(None, 16) is None
    assert shared_recipe([whole, whole]) == whole
    assert shared_recipe([whole, f"{model}-float32-6"]) == f"{model}-float32"
    assert shared_recipe([whole, f"{model}-bfloat16-16"]) == model
    assert shared_recipe([whole, f"{model}-float32"]) == f"{model}-float32"
    for unlike in ([whole, "0-float32-16"], [whole, None], []):
        assert shared_recipe(unlike) is None
