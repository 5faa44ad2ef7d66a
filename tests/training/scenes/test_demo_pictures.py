"""The shipped demo pictures are what the committed command makes."""

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

from training.scenes.demo_pictures import PLAIN, demo_questions, plainly, write
from training.scenes.scene import COLORS, KINDS, SHAPES, generate_scene
from training.scenes.templates import FILLERS, SIZE_WORDS, SYNONYMS, TEMPLATES

SYNONYM_OF = {synonym: name for name, synonym in SYNONYMS.items()}
SHIPPED = Path(__file__).resolve().parents[3] / "serve" / "pictures"


def test_the_shipped_files_are_the_commands(tmp_path):
    assert write(tmp_path) == 12
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in SHIPPED.iterdir())
    for name in names:
        if name.endswith(".json"):
            assert (tmp_path / name).read_text("utf-8") == (SHIPPED / name).read_text("utf-8")
        else:
            ours, theirs = (np.asarray(Image.open(f / name)) for f in (tmp_path, SHIPPED))
            assert np.array_equal(ours, theirs)


def test_questions_are_a_dozen_of_many_kinds_two_a_picture():
    questions = demo_questions()
    assert len(questions) == 12
    assert len({each["kind"] for each in questions}) >= 6
    assert len({each["picture"] for each in questions}) == 6
    kinds = [each["kind"] for each in questions]
    assert all(first != second for first, second in zip(kinds[::2], kinds[1::2], strict=True))
    assert json.dumps(questions)


def test_a_plain_wording_is_one_that_the_model_was_taught():
    """Each is a template of its kind with words put in, so no sample question is out of its way."""
    for kind, plain in PLAIN.items():
        assert any(wording(template).fullmatch(plain) for template in TEMPLATES[kind]), kind
    assert set(PLAIN) == set(KINDS)


def wording(template):
    """A template as a pattern that leaves {ref}, {tag} and {big} open and takes any filler."""
    words = FILLERS | {"big": sum(SIZE_WORDS.values(), ())}

    def taken(part):
        if not part.startswith("{"):
            return re.escape(part)
        return f"({'|'.join(map(re.escape, (*words.get(part[1:-1], ()), part)))})"

    return re.compile("".join(map(taken, re.split(r"(\{\w+\})", template))))


def test_the_plain_question_asks_about_the_same_thing():
    scene = generate_scene(5, namespace="demo")
    asked = {q.text: plainly(q, scene) for q in scene.questions}
    assert all(question.endswith("?") for question in asked.values())
    for text, question in asked.items():
        named = {*COLORS, *SHAPES, *(o.tag for o in scene.objects if o.tag)}
        said = {SYNONYM_OF.get(word, word) for word in re.findall(r"\w+", text)} & named
        assert said == set(re.findall(r"\w+", question)) & named, text
