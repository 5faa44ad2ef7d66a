"""One answered question as a picture: what the model saw, how finely, and where the words point.

Knows answers and matplotlib, which loads only with this module; knows no connection.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from math import isqrt
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from serve.client.focus import Focus, Look, Segment, coarse_lines, fine_lines
from serve.client.seen import padded
from serve.client.wire import Answer
from serve.client.words import cost_in_words, grid_in_words

INK, FAINT, ACCENT, SECOND = "#1d1f21", "#666a6f", "#0b6e63", "#b3700a"
MARK = "#ffcc33"  # around the patches that are meant
TINTS, TINT_OPACITY = ("#2fd6c0", "#ffa726"), 0.22  # of the cells that each look read finely
SHADOW, LIGHT = "#0006", "#fffb"  # a line that is seen on any picture
ACROSS = (0.0, 1.0, 1.0, 0.0)  # the padded picture: left, right, bottom, top
WIDTH_IN, MARGIN_IN, DPI = 6.4, 0.22, 150
VEIL, VEIL_OPACITY = (0.06, 0.07, 0.08), 0.55  # over patches that the question does not mean
LEADING = 1.35  # height of a line, in font sizes


def save_answer(file: Path, picture: Path, question: str, answer: Answer) -> None:
    """Write the picture with the grid that was read and the patches the question's words point to.

    Coarse tokens have lines all over; fine ones finer lines, and a tint. Of two looks the first has
    lines in its colour. Below stand question, answer, cost and what the lines mean. The patches are
    there where the answer was asked for with ``explain`` and something was predicted.

    Args:
        file: to write, .png or .svg.
        picture: what was asked about.
    """
    texts = [  # lines, size in points, colour, weight
        (textwrap.wrap(question, 62), 13.0, FAINT, "normal"),
        (textwrap.wrap(answer.text or "(empty answer)", 40), 20.0, INK, "bold"),
        (textwrap.wrap(cost_in_words(answer), 56), 13.0, ACCENT, "bold"),
    ]
    for meaning, colour in zip(grid_in_words(answer), (ACCENT, SECOND), strict=False):
        texts.append((textwrap.wrap(meaning, 86), 9.5, colour, "normal"))
    gap_in, side_in = 0.1, WIDTH_IN - 2 * MARGIN_IN
    heights_in = [len(lines) * size * LEADING / 72 for lines, size, _, _ in texts]
    height_in = 2 * MARGIN_IN + side_in + sum(heights_in) + gap_in * len(texts)
    figure = Figure((WIDTH_IN, height_in), dpi=DPI, facecolor="white")
    left, side = MARGIN_IN / WIDTH_IN, side_in / WIDTH_IN
    top_in = height_in - MARGIN_IN - side_in
    axes = figure.add_axes((left, top_in / height_in, side, side_in / height_in))
    axes.axis("off")
    axes.imshow(padded(picture), extent=ACROSS, interpolation="bicubic")
    relevance = None
    if answer.explain is not None and answer.explain.relevance:
        of_first = answer.explain.relevance[0]
        relevance = np.array(of_first.values, dtype=np.float64).reshape(of_first.side, -1)
        axes.imshow(veil(relevance), extent=ACROSS, interpolation="nearest")
    _draw_grids(axes, answer.looks)
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


def _draw_grids(axes: Axes, looks: Sequence[Look]) -> None:
    """Draw where the tokens of one or two looks lie: tints, then lines, the last look's white."""
    for look, colour in zip(looks, TINTS, strict=False):
        if look.focus is not None:
            axes.imshow(tint(look.focus, colour), extent=ACROSS, interpolation="nearest")
    for look in looks[-1:]:
        _draw_lines(axes, look, LIGHT, 0.8)
    for look in looks[:-1]:
        _draw_lines(axes, look, TINTS[0], 1.2)


def _draw_lines(axes: Axes, look: Look, colour: str, width: float) -> None:
    thin = min(1.0, 10 / isqrt(look.scale))
    for its, times in ((SHADOW, 2.0), (colour, 1.0)):
        for lines, share in ((coarse_lines(look), thin), (fine_lines(look), 0.5)):
            widths = width * times * share
            axes.add_collection(LineCollection(lines, colors=its, linewidths=widths))


def tint(focus: Focus, colour: str) -> NDArray[np.float64]:
    """Return (across, across, 4) RGBA that tints the cells that were read finely."""
    shade = np.zeros((focus.across**2, 4))
    shade[:, :3] = to_rgb(colour)
    shade[list(focus.cells), 3] = TINT_OPACITY
    return shade.reshape(focus.across, focus.across, 4)


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
