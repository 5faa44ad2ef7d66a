"""Draws the README's two pictures: docs/images/curve.png and docs/images/answer.png.

The curve is the one `m3-train evaluate` draws, of the committed benchmark result. The answer is
what `m3-serve ask --save-picture` draws, asked of a service that is started and stopped for it.

    python docs/make_figures.py [curve | answer]
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
RESULT = ROOT / "benchmarks" / "results" / "routing_quality.json"
PICTURE = ROOT / "serve" / "pictures" / "scene-03.png"
QUESTION = "what shape is the green one?"


def draw_curve(out: Path) -> None:
    """Draw accuracy against visual tokens from the committed result."""
    from training.evaluation.plots import accuracy_curve

    accuracy_curve(json.loads(RESULT.read_text(encoding="utf-8")), out)


def draw_answer(out: Path) -> None:
    """Draw an answer: the picture, where the tokens went, what was saved."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    program = [sys.executable, "-m", "serve.cli"]
    with tempfile.TemporaryDirectory() as scratch:
        command = [*program, "up", "--in-process", "--port", port, "--log-dir", scratch]
        command += ["--registry", f"{scratch}/registry"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
            try:
                assert service.stdout is not None
                if "ready" not in service.stdout.readline():
                    sys.exit("error: the service did not start")
                command = [*program, "ask", str(PICTURE), QUESTION, "--save-picture", str(out)]
                command += ["--url", f"http://127.0.0.1:{port}"]
                done = subprocess.run(command, capture_output=True, text=True)
            finally:
                service.terminate()
    if done.returncode:
        sys.exit(done.stderr)


FIGURES = {"curve": draw_curve, "answer": draw_answer}

if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for name in sys.argv[1:] or FIGURES:
        FIGURES[name](IMAGES / f"{name}.png")
