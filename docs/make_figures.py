"""Draws the README's two pictures: docs/images/curve.png and docs/images/answer.png.

The curve is the one `m3-train evaluate` draws, of the committed benchmark result. The answer is
what `m3-serve ask --save-picture` draws, asked of a service that is started and stopped for it: of
the demo's questions the first that is answered rightly, in one look with fine tokens.

    python docs/make_figures.py [curve | answer]
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serve.demo import Asked

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
RESULT = ROOT / "benchmarks" / "results" / "routing_quality.json"


def draw_curve(out: Path) -> None:
    """Draw accuracy against visual tokens from the committed result."""
    from training.evaluation.plots import accuracy_curve

    accuracy_curve(json.loads(RESULT.read_text(encoding="utf-8")), out)


def draw_answer(out: Path) -> None:
    """Draw an answer: the picture, where the tokens went, what was saved."""
    from serve.demo import PICTURES, ask_all, free_port, service

    with service(["--in-process"], free_port()) as url:
        asked, _ = ask_all(url, PICTURES)
        shown = next((each for each in asked if _shows_it(each)), None)
        if shown is None:
            sys.exit("error: no question was answered rightly in one look with fine tokens")
        command = [sys.executable, "-m", "serve.cli", "ask", str(PICTURES / shown.picture)]
        command += [shown.question, "--save-picture", str(out), "--url", url]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def _shows_it(asked: Asked) -> bool:
    return asked.is_right and asked.answer.focus is not None and asked.answer.second_look is None


FIGURES = {"curve": draw_curve, "answer": draw_answer}

if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for name in sys.argv[1:] or FIGURES:
        FIGURES[name](IMAGES / f"{name}.png")
