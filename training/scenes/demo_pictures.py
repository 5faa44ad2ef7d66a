"""Write the pictures and questions that the demo and the console show.

``python -m training.scenes.demo_pictures --out serve/pictures`` makes the committed files again,
byte for byte. Knows scenes; has never seen a model's answer: the questions are chosen by kind and
size only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from training.scenes.scene import Question

PICTURES = 6
QUESTIONS_EACH = 2


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
        by_size = sorted(generate_scene(seed, namespace="demo").questions, key=lambda q: -q.size_px)
        pair: list[Question] = []
        for order in (by_size, by_size[::-1]):
            rest = [q for q in order if q.kind not in {p.kind for p in pair}]
            if rest:
                pair.append(min(rest, key=lambda q: used.count(q.kind)))
                used.append(pair[-1].kind)
        if len(pair) == QUESTIONS_EACH:
            chosen += [
                {"picture": f"scene-{seed:02d}.png", "question": q.text, "answer": q.answer,
                 "kind": q.kind, "seed": seed}
                for q in pair
            ]  # fmt: skip
        seed += 1
    return chosen


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
