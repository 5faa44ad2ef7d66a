"""One answered question as a picture: what the model saw, how finely, and where the words point.

Knows answers, the decoder and matplotlib, which load only with this module; knows no connection.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TypeAlias

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from m3model.pictures import CHECKED_BEFORE, decode_picture
from serve.client.wire import Answer
from serve.client.words import cost_in_words

PADDING = (122, 116, 104)  # the mean colour that LLaVA's processor pads a picture with
INK, FAINT, ACCENT = "#1d1f21", "#666a6f", "#0b6e63"
MARK = "#ffcc33"  # around the patches that are meant
WIDTH_IN, MARGIN_IN, DPI = 6.4, 0.22, 150
VEIL, VEIL_OPACITY = (0.06, 0.07, 0.08), 0.55  # over patches that the question does not mean
LEADING = 1.35  # height of a line, in font sizes
Segment: TypeAlias = tuple[tuple[float, float], tuple[float, float]]


def save_answer(file: Path, picture: Path, question: str, answer: Answer) -> None:
    """Write the picture with the grid that was read and the patches the question's words point to.

    Below stand question, answer and cost. The patches are there where the answer was asked for
    with ``explain`` and something was predicted.

    Args:
        file: to write, .png or .svg.
        picture: what was asked about.
    """
    texts = [  # lines, size in points, colour, weight
        (textwrap.wrap(question, 62), 13.0, FAINT, "normal"),
        (textwrap.wrap(answer.text or "(empty answer)", 40), 20.0, INK, "bold"),
        (textwrap.wrap(cost_in_words(answer), 56), 13.0, ACCENT, "bold"),
    ]
    gap_in, side_in = 0.1, WIDTH_IN - 2 * MARGIN_IN
    heights_in = [len(lines) * size * LEADING / 72 for lines, size, _, _ in texts]
    height_in = 2 * MARGIN_IN + side_in + sum(heights_in) + gap_in * len(texts)
    figure = Figure((WIDTH_IN, height_in), dpi=DPI, facecolor="white")
    left, side = MARGIN_IN / WIDTH_IN, side_in / WIDTH_IN
    top_in = height_in - MARGIN_IN - side_in
    axes = figure.add_axes((left, top_in / height_in, side, side_in / height_in))
    axes.axis("off")
    pixels = padded(picture)
    across = (0.0, 1.0, 1.0, 0.0)  # left, right, bottom, top
    axes.imshow(pixels, extent=across, interpolation="bicubic")
    relevance = None
    if answer.explain is not None and answer.explain.relevance:
        of_first = answer.explain.relevance[0]
        relevance = np.array(of_first.values, dtype=np.float64).reshape(of_first.side, -1)
        axes.imshow(veil(relevance), extent=across, interpolation="nearest")
    cells = math.isqrt(answer.scale)
    thin = min(1.0, 10 / max(cells, 1))
    for at in np.linspace(0, 1, cells + 1)[1:-1]:
        for width, colour in ((1.6, "#0006"), (0.8, "#fffb")):
            axes.plot([at, at], [0, 1], color=colour, linewidth=width * thin)
            axes.plot([0, 1], [at, at], color=colour, linewidth=width * thin)
    if relevance is not None:
        edges = outline(relevance)
        for width, colour in ((3.4, "#000b"), (1.8, MARK)):
            axes.add_collection(
                LineCollection(edges, colors=colour, linewidths=width, capstyle="projecting")
            )
    axes.set(xlim=(0, 1), ylim=(1, 0))
    y_in = top_in
    for (lines, size, colour, weight), text_in in zip(texts, heights_in, strict=True):
        y_in -= gap_in
        figure.text(
            left, y_in / height_in, "\n".join(lines), color=colour, weight=weight, size=size,
            va="top", linespacing=LEADING, parse_math=False,
        )  # fmt: skip
        y_in -= text_in
    figure.savefig(file, metadata={"Date": None} if file.suffix.lower() == ".svg" else None)


def padded(picture: Path) -> NDArray[np.uint8]:
    """Return the pixels (S, S, 3) as the model sees them: upright, on white, padded to a square.

    Raises:
        BadPicture: it cannot be decoded.
    """
    flat = Image.fromarray(decode_picture(picture.read_bytes(), CHECKED_BEFORE))
    side = max(flat.size)
    square = Image.new("RGB", (side, side), PADDING)
    square.paste(flat, ((side - flat.width) // 2, (side - flat.height) // 2))
    return np.asarray(square, dtype=np.uint8)


def veil(relevance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (side, side, 4) RGBA that leaves the most relevant patch clear and dims the others."""
    shade = np.empty((*relevance.shape, 4))
    shade[..., :3] = VEIL
    shade[..., 3] = VEIL_OPACITY * (1.0 - relevance / max(relevance.max(), 1.0))
    return shade


def outline(relevance: NDArray[np.float64]) -> list[Segment]:
    """Return the line segments around the patches at least half as relevant as the most relevant.

    They are the patches that the router's features count as meant; the picture is 1 x 1.
    """
    side = len(relevance)
    meant = np.pad(relevance >= max(relevance.max() / 2, 1.0), 1)
    across = [
        ((x / side, y / side), ((x + 1) / side, y / side))
        for y, x in np.argwhere(meant[1:, 1:-1] != meant[:-1, 1:-1])
    ]
    down = [
        ((x / side, y / side), (x / side, (y + 1) / side))
        for y, x in np.argwhere(meant[1:-1, 1:] != meant[1:-1, :-1])
    ]
    return across + down
