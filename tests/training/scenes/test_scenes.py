"""Scenes: the same everywhere, without doubtful questions, balanced, and of many sizes.

The pictures' own list of objects is the outside truth: every answer is derived from it again here.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest

from training.scenes.panels import COLOR_RGB
from training.scenes.scene import (
    CHARS,
    COLORS,
    KINDS,
    NAMESPACES,
    PATCH_CLASSES,
    PATCH_COLORS,
    SHAPES,
    Question,
    Scene,
    digit_pool,
    generate_scene,
    question_words,
)

SYNONYMS = {"disc": "circle", "box": "square", "plus": "cross"}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [generate_scene(seed, namespace="collect") for seed in range(300)]


@pytest.fixture(scope="module")
def by_kind(scenes: list[Scene]) -> dict[str, list[Question]]:
    found: dict[str, list[Question]] = defaultdict(list)
    for scene in scenes:
        for question in scene.questions:
            found[question.kind].append(question)
    return found


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@pytest.mark.parametrize("size_px", [96, 192])
def test_a_seed_always_gives_the_same_scene(size_px: int) -> None:
    for seed in range(5):
        one = generate_scene(seed, namespace="demo", size_px=size_px)
        two = generate_scene(seed, namespace="demo", size_px=size_px)
        assert np.array_equal(one.image, two.image)
        assert [(q.text, q.answer) for q in one.questions] == [
            (q.text, q.answer) for q in two.questions
        ]
        assert one.objects == two.objects


def test_every_namespace_and_seed_gives_another_picture() -> None:
    pictures = {
        generate_scene(seed, namespace=name).image.tobytes()
        for name in NAMESPACES
        for seed in (0, 1)
    }
    assert len(pictures) == 2 * len(NAMESPACES)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown namespace"):
        generate_scene(0, namespace="train")
    with pytest.raises(ValueError, match="multiple of 8"):
        generate_scene(0, size_px=100)


@pytest.mark.parametrize("size_px", [96, 192])
def test_shapes_types_and_codes(size_px: int) -> None:
    grid = size_px // 8
    for seed in range(40):
        scene = generate_scene(seed, namespace="validation", size_px=size_px)
        assert scene.image.shape == (size_px, size_px, 3)
        assert scene.image.dtype == np.uint8
        for codes, names in (
            (scene.patch_class, PATCH_CLASSES),
            (scene.patch_color, PATCH_COLORS),
            (scene.patch_char, CHARS),
        ):
            assert codes.shape == (grid, grid)
            assert codes.dtype == np.uint8
            assert codes.max() < len(names)
        assert scene.instance.dtype == np.int16
        assert scene.instance.max() <= len(scene.boxes)
        assert scene.boxes.dtype == np.float32
        assert np.array_equal(scene.patch_class == 0, scene.instance == 0)
        assert (scene.boxes[:, :2] >= 0).all()
        assert (scene.boxes[:, 2:] <= size_px).all()
        assert (scene.boxes[:, 2:] > scene.boxes[:, :2]).all()
        assert 1 <= len(scene.questions) <= 9
        assert all(q.target.shape == (grid, grid) for q in scene.questions)
        assert all(q.target.any() for q in scene.questions)


def test_patch_codes_agree_with_the_objects(scenes: list[Scene]) -> None:
    for scene in scenes[:100]:
        for item in scene.objects:
            where = np.isin(scene.instance, [mark + 1 for mark in item.instances])
            classes = {PATCH_CLASSES[c] for c in scene.patch_class[where]}
            colors = {PATCH_COLORS[c] for c in scene.patch_color[where]}
            letters = {CHARS[c] for c in scene.patch_char[where]}
            name = {"sign": "letter", "number": "digit", "bar": "bar"}.get(item.kind, item.name)
            assert classes <= {name}
            assert colors <= {item.color or "none"}
            assert letters <= (set(item.name) if item.kind in ("sign", "number") else {""})


def test_colours_are_where_the_labels_say(scenes: list[Scene]) -> None:
    for scene in scenes[:60]:
        for item in scene.objects:
            if item.kind == "shape" and item.name in ("square", "circle"):
                x, y = (round((item.box[i] + item.box[i + 2]) / 2) for i in (0, 1))
                means = scene.image[y - 1 : y + 1, x - 1 : x + 1].astype(float).mean((0, 1))
                away = {n: float(np.abs(means - rgb).sum()) for n, rgb in COLOR_RGB.items()}
                assert min(away, key=lambda n: away[n]) == item.color


def test_every_answer_follows_from_the_objects_without_doubt(scenes: list[Scene]) -> None:
    for scene in scenes:
        texts = [q.text for q in scene.questions]
        assert len({(q.kind, q.text.rstrip("?.")) for q in scene.questions}) >= len(texts) - 2
        for question in scene.questions:
            for text in (question.text, question.again):
                assert derived(scene, question, text) == {question.answer}, text


def test_the_second_wording_is_another_one(scenes: list[Scene]) -> None:
    questions = [q for scene in scenes for q in scene.questions]
    same = sum(q.text.rstrip("?.") == q.again.rstrip("?.") for q in questions)
    assert same == 0


def derived(scene: Scene, question: Question, text: str) -> set[str]:
    """Returns every answer that the scene's objects allow to the question in this wording."""
    shapes = [o for o in scene.objects if o.kind == "shape"]
    bars = [o for o in scene.objects if o.kind == "bar"]
    words = [SYNONYMS.get(w, w) for w in re.findall(r"[a-z]+", text)]
    colors, names = set(words) & set(COLORS), set(words) & set(SHAPES)
    meant = [o for o in shapes if (not colors or o.color in colors)]
    meant = [o for o in meant if (not names or o.name in names)]
    match question.kind:
        case "color_of":
            assert names
            assert len(meant) == 1
            return {o.color for o in meant}
        case "shape_of":
            assert colors
            assert len(meant) == 1
            return {o.name for o in meant}
        case "tag":
            assert len(meant) == 1
            return {o.tag for o in meant}
        case "tag_color":
            return {o.color for o in shapes if o.tag and o.tag in words}
        case "count":
            return {str(len(shapes))}
        case "largest" | "smallest" | "tag_extreme":
            order = sorted(shapes, key=lambda o: o.size_px)
            top, next_ = order[:2] if {"smallest", "tiniest"} & set(words) else order[-1:-3:-1]
            ratio = max(top.size_px, next_.size_px) / min(top.size_px, next_.size_px)
            assert ratio >= 1.3
            return {top.tag if question.kind == "tag_extreme" else top.color}
        case "bar_height":
            return {str(b.value) for b in bars if b.color in colors}
        case "bar_tallest":
            return {b.color for b in bars if b.value == max(b.value for b in bars)}
    kind = "number" if question.kind == "number" else "sign"
    read = {o.name for o in scene.objects if o.kind == kind}
    if question.kind in ("first_letter", "last_letter"):
        return {name[0 if question.kind == "first_letter" else -1] for name in read}
    return read


def test_targets_lie_on_what_is_asked_about(scenes: list[Scene]) -> None:
    for scene in scenes[:100]:
        for question in scene.questions:
            rows, columns = np.nonzero(question.target)
            boxes = scene.boxes
            for row, column in zip(rows, columns, strict=True):
                patch = (8 * column, 8 * row, 8 * column + 8, 8 * row + 8)
                assert any(overlap(patch, tuple(box)) for box in boxes)
            if question.kind == "color_of":
                assert question.target.sum() < 500


def test_shapes_tags_and_panels_do_not_overlap(scenes: list[Scene]) -> None:
    for scene in scenes:
        boxes = [o.box for o in scene.objects if o.kind != "bar"]
        boxes += [o.tag_box for o in scene.objects if o.tag]
        assert not any(overlap(a, b) for a, b in combinations(boxes, 2))


def test_a_tag_is_much_nearer_to_its_own_shape(scenes: list[Scene]) -> None:
    def distance(a: tuple[float, ...], b: tuple[float, ...]) -> float:
        across = max(a[0] - b[2], b[0] - a[2], 0.0)
        down = max(a[1] - b[3], b[1] - a[3], 0.0)
        return float(np.hypot(across, down))

    for scene in scenes:
        shapes = [o for o in scene.objects if o.kind == "shape"]
        for item in shapes:
            if item.tag:
                own = distance(item.tag_box, item.box)
                others = [distance(item.tag_box, o.box) for o in shapes if o is not item]
                assert all(2 * own <= other for other in others)


def test_letters_and_digits_are_never_unreadably_small(scenes: list[Scene]) -> None:
    for scene in scenes:
        for item in scene.objects:
            assert item.size_px >= {"shape": 7, "sign": 6.5, "number": 12, "bar": 3}[item.kind]
            assert not item.tag or item.tag_px >= 6.5


def test_answers_are_balanced_and_all_kinds_occur(by_kind: dict[str, list[Question]]) -> None:
    assert set(by_kind) == set(KINDS)
    for kind, questions in by_kind.items():
        if len(questions) >= 30:
            most = Counter(q.answer for q in questions).most_common(1)[0][1]
            assert most / len(questions) < 0.30, kind


def test_sizes_vary_widely_within_a_kind(by_kind: dict[str, list[Question]]) -> None:
    wide = ("color_of", "shape_of", "read_word", "number", "largest", "bar_tallest", "bar_height")
    for kind in wide:
        low, high = np.percentile([q.size_px for q in by_kind[kind]], [5, 95])
        assert high / low >= 3, kind
    # Beside a small shape a tag cannot need more than the shape: the range is a little narrower.
    for kind in ("tag", "tag_color", "smallest"):
        low, high = np.percentile([q.size_px for q in by_kind[kind]], [5, 95])
        assert high / low >= 2, kind


def test_wordings_are_many_and_share_their_openings(by_kind: dict[str, list[Question]]) -> None:
    for kind in ("color_of", "shape_of", "read_word", "number", "bar_height", "tag"):
        openings = {" ".join(q.text.split()[:2]) for q in by_kind[kind]}
        assert len(openings) >= 5, kind
    kinds_of_opening = defaultdict(set)
    for kind, questions in by_kind.items():
        for question in questions:
            kinds_of_opening[question.text.split()[0]].add(kind)
    assert all(len(kinds_of_opening[word]) >= 6 for word in ("what", "which", "tell", "name"))


def test_question_words_cover_questions_and_answers(scenes: list[Scene]) -> None:
    words = question_words()
    assert list(words) == sorted(set(words))
    assert {*COLORS, *SHAPES} <= set(words)
    for scene in scenes:
        tags = {o.tag for o in scene.objects}
        for question in scene.questions:
            assert question.text == question.text.lower()
            assert question.answer == question.answer.lower()
            asked = set(re.findall(r"[a-z]+", f"{question.text} {question.again}"))
            assert asked <= set(words) | tags
            if question.kind in (
                "color_of",
                "shape_of",
                "largest",
                "smallest",
                "bar_tallest",
            ):
                assert question.answer in words


def test_handwritten_digits_of_training_are_never_used_elsewhere() -> None:
    training, held_out = set(digit_pool(True)), set(digit_pool(False))
    assert not training & held_out
    assert len(training) + len(held_out) == 1797
    assert all(i % 9 in (0, 1) for i in held_out)


def test_photographs_of_training_come_from_another_half() -> None:
    from training.scenes.scene import _photo

    for name in ("china.jpg", "flower.jpg"):
        left, right = (np.asarray(_photo(name, training)) for training in (True, False))
        assert left.shape == right.shape == (427, 320, 3)
        assert not np.array_equal(left, right)
