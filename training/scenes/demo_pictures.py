"""Write the pictures and questions that the demo and the console show.

``python -m training.scenes.demo_pictures --out serve/pictures`` makes the committed files again,
byte for byte. Knows scenes; has never seen a model's answer: the questions are chosen by kind and
size only, and asked in the plainest of each kind's wordings.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from training.scenes.scene import Question, Scene

PICTURES = 6
QUESTIONS_EACH = 2
# Of the wordings in `training.scenes.templates` the one that a person would use.
PLAIN = {
    "color_of": "what colour is {ref}?",
    "shape_of": "what shape is {ref}?",
    "read_word": "what does the sign say?",
    "first_letter": "what is the first letter on the sign?",
    "last_letter": "what is the last letter on the sign?",
    "number": "what is the handwritten number?",
    "largest": "what colour is the biggest shape?",
    "smallest": "what colour is the smallest shape?",
    "tag": "what is written beside {ref}?",
    "tag_color": "what colour is the shape labelled {tag}?",
    "tag_extreme": "what is written beside the {big} shape?",
    "bar_tallest": "what colour is the tallest bar?",
    "bar_height": "how tall is {ref}?",
    "count": "how many shapes are there?",
}


def demo_questions(n_pictures: int = PICTURES) -> list[dict[str, str | int]]:
    """Return the questions, two kinds per scene; ``seed`` names the scene.

    Of the kinds asked least so far the first question is about the largest thing, the second about
    the smallest, so that a dozen questions show many kinds and sizes. Scenes with fewer than two
    kinds are passed over.
    """
    from training.scenes.scene import generate_scene

    chosen: list[dict[str, str | int]] = []
    used: list[str] = []
    seed = 0
    while len(chosen) < n_pictures * QUESTIONS_EACH:
        scene = generate_scene(seed, namespace="demo")
        by_size = sorted(scene.questions, key=lambda q: -q.size_px)
        pair: list[Question] = []
        for order in (by_size, by_size[::-1]):
            rest = [q for q in order if q.kind not in {p.kind for p in pair}]
            if rest:
                pair.append(min(rest, key=lambda q: used.count(q.kind)))
                used.append(pair[-1].kind)
        if len(pair) == QUESTIONS_EACH:
            chosen += [
                {"picture": f"scene-{seed:02d}.png", "question": plainly(q, scene),
                 "answer": q.answer, "kind": q.kind, "seed": seed}
                for q in pair
            ]  # fmt: skip
        seed += 1
    return chosen


def plainly(question: Question, scene: Scene) -> str:
    """Return the question in its kind's plain wording, about the same thing."""
    from training.scenes.templates import SIZE_WORDS, SYNONYMS

    words = re.findall(r"\w+", question.text)
    shapes = {o.name for o in scene.objects if o.kind == "shape"}
    known = {SYNONYMS.get(name, name): name for name in shapes} | {name: name for name in shapes}
    color = next((word for word in words if word in {o.color for o in scene.objects}), "")
    noun = next((known[word] for word in words if word in known), "shape")
    if question.kind == "shape_of":
        is_bar_too = any(o.kind == "bar" and o.color == color for o in scene.objects)
        noun = "object" if is_bar_too else "one"
    elif question.kind == "bar_height":
        noun = "bar"
    return PLAIN[question.kind].format(
        ref=f"the {color} {noun}" if color else f"the {noun}",
        tag=next((o.tag for o in scene.objects if o.tag and o.tag in words), ""),
        big="biggest" if set(words) & set(SIZE_WORDS["largest"]) else "smallest",
    )


def write(out: Path) -> int:
    """Write ``<scene>.png`` and ``questions.json`` and return the number of questions."""
    from PIL import Image

    from training.scenes.scene import generate_scene

    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("scene-*.png"):
        old.unlink()
    questions = demo_questions()
    for name, seed in {(str(each["picture"]), int(each.pop("seed"))) for each in questions}:
        image = Image.fromarray(generate_scene(seed, namespace="demo").image)
        image.save(out / name, optimize=True)
    text = json.dumps(questions, indent=1, ensure_ascii=False)
    (out / "questions.json").write_text(text + "\n", encoding="utf-8")
    return len(questions)


def main(
    out: Annotated[Path, typer.Option(help="Folder to fill.")] = Path("serve/pictures"),
) -> None:
    """Write the demo's pictures and questions."""
    print(f"{write(out)} questions in {out}")


if __name__ == "__main__":
    typer.run(main)
