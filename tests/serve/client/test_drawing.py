"""An answer as a picture file: what lies over the picture, and what the file is."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from m3model.pictures import decode_picture
from router.explain import explain
from router.explanation import RelevanceMap
from router.features.schema import feature_schema
from router.policy import Policy
from serve.client import Answer, Focus
from serve.client.drawing import TINT_OPACITY, outline, save_answer, tint, veil
from serve.client.seen import PADDING, padded

SCHEMA = feature_schema((1, 4, 16), 4, 6)
WHITE = (255, 255, 255)


def picture(folder: Path, mode: str = "RGB", size: tuple[int, int] = (40, 20)) -> Path:
    file = folder / f"{mode}.png"
    Image.new(mode, size, WHITE + (0,) * (mode == "RGBA")).save(file)
    return file


def answer(relevance: tuple[int, ...], scale: int = 4) -> Answer:
    parts = np.zeros((3, len(SCHEMA.names) + 1))
    told = explain(SCHEMA, (0.2, 0.7, 0.9), Policy((0.0, 0.25, 1.0), 1.0), None, parts)
    told = replace(told, relevance=(RelevanceMap(4, relevance),))
    return Answer(scale, scale, "predicted", {4: 0.7, 16: 0.9}, explain=told, text="a $5 \\frac")


def test_a_picture_is_padded_as_the_model_sees_it(tmp_path: Path) -> None:
    for mode in ("RGB", "RGBA"):  # what is transparent is white, as in the service
        pixels = padded(picture(tmp_path, mode))
        assert pixels.shape == (40, 40, 3)
        assert (pixels[:10] == PADDING).all()
        assert (pixels[10:30] == 255).all()


def test_what_is_drawn_is_what_was_decoded(tmp_path: Path) -> None:
    """Grey of 16 bits, a palette with a clear colour, two megabytes of text beside the pixels."""
    grey = Image.fromarray(np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32))
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([0, 0, 0, 200, 30, 60])
    text = PngInfo()
    text.add_text("workflow", "x" * 2_000_000, zip=True)
    for number, (image, more) in enumerate(
        [(grey, {}), (palette, {"transparency": 1}), (palette, {"pnginfo": text})]
    ):
        file = tmp_path / f"{number}.png"
        image.save(file, **more)
        assert np.array_equal(padded(file), decode_picture(file.read_bytes()))


def test_a_long_picture_is_padded_small(tmp_path: Path) -> None:
    """A square of its longer side would take a quarter of a gigabyte."""
    for size in ((9000, 40), (40, 9000), (1, 1)):
        pixels = padded(picture(tmp_path, size=size))
        assert len(pixels) == pixels.shape[1] == min(2048, max(size))
        is_white = (pixels == 255).all(axis=2)
        middle = np.s_[len(pixels) // 2] if size[0] >= size[1] else np.s_[:, len(pixels) // 2]
        assert is_white[middle].all()
        assert is_white.sum() <= 10 * len(pixels)


def test_a_turned_photograph_is_upright(tmp_path: Path) -> None:
    photo, exif = Image.new("RGB", (40, 20), "white"), Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    photo.save(tmp_path / "turned.jpg", exif=exif)
    pixels = padded(tmp_path / "turned.jpg")
    assert (pixels[:, :8] == PADDING).all()


def test_the_veil_leaves_the_most_relevant_patch_clear() -> None:
    shade = veil(np.array([[0.0, 100.0], [50.0, 200.0]]))
    assert shade[1, 1, 3] == 0.0
    np.testing.assert_allclose(shade[..., 3] / shade[0, 0, 3], [[1.0, 0.5], [0.75, 0.0]])
    assert veil(np.zeros((2, 2)))[..., 3].min() > 0.0  # nothing is meant: all is dim


def test_the_outline_runs_around_what_is_at_least_half_as_relevant() -> None:
    one = outline(np.array([[0.0, 10.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.0]]))
    third = 1 / 3
    square = {
        ((third, 0.0), (2 * third, 0.0)), ((third, third), (2 * third, third)),
        ((third, 0.0), (third, third)), ((2 * third, 0.0), (2 * third, third)),
    }  # fmt: skip
    assert set(one) == square
    two = outline(np.array([[0.0, 10.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 0.0]]))
    assert len(two) == 6  # two patches, no line between them
    assert outline(np.zeros((3, 3))) == []


def test_what_the_words_point_to_stays_bright(tmp_path: Path) -> None:
    """White picture, one relevant patch of 4 x 4, read as one token: no grid."""
    white = picture(tmp_path, size=(40, 40))
    values = [0] * 16
    values[6] = 255  # second row, third column
    save_answer(tmp_path / "a.png", white, "where?", answer(tuple(values), scale=1))
    drawn = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"), dtype=int)
    left, side = 33, 894
    middle = [left + int((n + 0.5) * side / 4) for n in range(4)]
    seen = np.array([[drawn[y, x].min() for x in middle] for y in middle])
    assert seen[1, 2] == 255
    seen[1, 2] = 0
    assert seen.max() < 160


def test_the_tint_lies_on_the_cells_that_were_read_finely() -> None:
    """Level 16 has 2 x 2 cells."""
    shade = tint(Focus(1, 16, (1, 2), 9), "#ff0000")
    np.testing.assert_allclose(shade[..., 3], [[0.0, TINT_OPACITY], [TINT_OPACITY, 0.0]])
    np.testing.assert_allclose(shade[0, 1, :3], [1.0, 0.0, 0.0])


def drawn(file: Path) -> np.ndarray:
    """Return the picture's own square in a file that was saved: its white, and what lies on it."""
    whole = np.asarray(Image.open(file).convert("RGB"), dtype=float)
    return whole[33:927, 33:927]


def test_a_wide_picture_has_its_grid_on_the_padded_square(tmp_path: Path) -> None:
    """40 x 20: a quarter of the square above it is padding, and belongs to the first tokens."""
    wide = picture(tmp_path)
    focus = Focus(4, 64, (0, 6), 12)  # of 4 x 4 cells: first row, first; second row, third
    for name, read in (("plain", None), ("focus", focus)):
        save_answer(tmp_path / f"{name}.png", wide, "q", Answer(4, 12, "predicted", focus=read))
    plain, seen = drawn(tmp_path / "plain.png"), drawn(tmp_path / "focus.png")
    middle = plain[440:455, 100:340].mean(axis=(1, 2))
    assert middle.min() < 240 < middle.max()  # the coarse line, on white
    cell = len(plain) // 4
    changed = np.abs(plain - seen).max(axis=2)
    for row in range(4):
        for column in range(4):
            inside = np.s_[
                row * cell + 8 : (row + 1) * cell - 8, column * cell + 8 : (column + 1) * cell - 8
            ]
            assert (changed[inside].min() > 5) == (4 * row + column in focus.cells)
    assert changed[2 * cell + 8 :].max() == 0.0
    lines = seen[cell + 20 : 2 * cell - 20, 2 * cell + 8 : 3 * cell - 8].mean(axis=(0, 2))
    assert np.argmin(lines) + 8 == pytest.approx(cell / 2, abs=3)  # between the cell's tokens


def test_both_looks_are_drawn(tmp_path: Path) -> None:
    white = picture(tmp_path, size=(40, 40))
    first = {"from": 4, "focus": {"coarse": 4, "fine": 16, "cells": [3], "visual_tokens": 8}}
    told = {"confidence": 0.5, "first_visual_tokens": 8, "second_visual_tokens": 64}
    once = Answer(64, 64, "predicted", text="x")
    save_answer(tmp_path / "one.png", white, "q", once)
    save_answer(tmp_path / "two.png", white, "q", replace(once, second_look=first | told))
    one, two = drawn(tmp_path / "one.png"), drawn(tmp_path / "two.png")
    changed = np.abs(one - two).max(axis=2) > 5
    assert changed[460:880, 460:880].mean() > 0.9  # the cell of the first look
    assert changed[10:430, 10:430].mean() < 0.1  # of the other height, lines lie a bit elsewhere
    assert changed[100, 440:455].any()  # its coarse line


def test_an_svg_is_drawn_too_and_anything_may_be_asked(tmp_path: Path) -> None:
    for nothing_predicted in (Answer(9, 9, "pinned", text=""), Answer(0, 0, "no_image", text="x")):
        save_answer(tmp_path / "a.svg", picture(tmp_path), "$x$ " * 60, nothing_predicted)
        assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")


def ask(url: str, file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serve.cli", "ask", str(file), "What is it?", "--url", url]
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)


def test_the_command_saves_a_picture_beside_its_answer(running: Any, tmp_path: Path) -> None:
    white, wanted = picture(tmp_path), tmp_path / "answer.png"
    done = ask(running.url, white, "--max-tokens", "3", "--save-picture", str(wanted))
    assert done.returncode == 0, done.stderr
    assert "36 of 576 visual tokens, 94 % saved (predicted)\n" in done.stderr
    assert "log odds" not in done.stderr  # --explain was not asked for
    assert done.stdout.count("\n") == 1
    with Image.open(wanted) as drawn:
        assert (drawn.format, drawn.width) == ("PNG", 960)


@contextmanager
def answering(routing: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A service that always answers "seven", read so; yields its address and what it was sent."""
    sent: list[dict[str, Any]] = []
    choice = {"index": 0, "message": {"content": "seven"}, "finish_reason": "stop"}
    reply = json.dumps({"id": "chatcmpl-1", "choices": [choice], "routing": routing}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", sent
        server.shutdown()
        thread.join()


def test_the_command_tells_and_draws_where_the_fine_tokens_lie(
    command: Any, tmp_path: Path
) -> None:
    wide, wanted = picture(tmp_path), tmp_path / "answer.png"
    focus = {"coarse": 4, "fine": 64, "cells": [0, 6], "visual_tokens": 12}
    routing = {"scale": 4, "scales": [4], "visual_tokens": 12, "reason": "predicted"}
    with answering(routing | {"p_suffices": {"4": 0.5, "64": 0.9}, "focus": focus}) as (url, sent):
        ask = ("m3-serve", "ask", wide, "q", "--url", url)
        for more in ((), ("--explain",)):
            done = command(*ask, "--save-picture", wanted, *more)
            assert (done.returncode, done.stdout) == (0, "seven\n"), done.stderr
            assert done.stderr.splitlines()[:2] == [
                "4 coarse + 8 fine = 12 of 64 visual tokens, 81 % saved (predicted)",
                "4 coarse tokens everywhere, 4 x 2 fine tokens where the question looks",
            ]
            cell = drawn(wanted)[240:430, 460:650]  # the third of the second row, on white
            assert cell[..., 0].mean() < cell[..., 1].mean() - 20  # tinted
            wanted.unlink()
        command(*ask, "--no-focus")
    asked_for = [body.get("routing") for body in sent]
    assert asked_for == [{"explain": True}, {"explain": True}, {"focus": False}]


def test_a_picture_that_cannot_be_saved_is_one_line_before_anything_is_asked(
    tmp_path: Path,
) -> None:
    white, nobody = picture(tmp_path), "http://127.0.0.1:1"
    for wanted, says in (("a.jpg", ".png or .svg"), ("no/a.png", "no does not exist")):
        done = ask(nobody, white, "--save-picture", str(tmp_path / wanted))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith("error: ")
        assert says in done.stderr
