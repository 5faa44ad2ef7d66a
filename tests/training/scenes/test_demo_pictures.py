"""The shipped demo pictures are what the committed command makes."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from training.scenes.demo_pictures import demo_questions, write

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
