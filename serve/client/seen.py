"""A picture as the model sees it: padded to a square, and as the tokens that were read of it.

Knows the decoder, Pillow and the text of a terminal; knows no connection.
"""

from __future__ import annotations

from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m3model.pictures import CHECKED_BEFORE, decode_picture
from serve.client.focus import CELL_SIDE, Focus

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

PADDING = (122, 116, 104)  # the mean colour that LLaVA's processor pads a picture with
MOST_SIDE_PX = 2048  # twice what is drawn
UPPER_HALF = "▀"  # one token in the letter's colour above one in the background's
FINE, COARSE = "█", "░"  # without colours


def padded(picture: Path) -> NDArray[np.uint8]:
    """Return the pixels (S, S, 3) as the model sees them: upright, on white, padded to a square.

    Large ones are made smaller.

    Raises:
        BadPicture: it cannot be decoded.
    """
    flat = Image.fromarray(decode_picture(picture.read_bytes(), CHECKED_BEFORE))
    flat.thumbnail((MOST_SIDE_PX, MOST_SIDE_PX))  # padding makes a square of the longer side
    side = max(flat.size)
    square = Image.new("RGB", (side, side), PADDING)
    square.paste(flat, ((side - flat.width) // 2, (side - flat.height) // 2))
    return np.asarray(square, dtype=np.uint8)


def in_blocks(picture: Path, focus: Focus, console: Console) -> Text:
    """Return the tokens that were read as letters, a line for each row of cells.

    Where the console has colours, fine tokens have the mean colour of what they cover, and coarse
    ones a shade of theirs.

    Raises:
        BadPicture: it cannot be decoded.
    """
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    in_colour = console.color_system is not None and not console.no_color
    fine, coarse = ("#", ".") if console.options.ascii_only else (FINE, COARSE)
    pixels = padded(picture)
    fine_colours = _token_colours(pixels, isqrt(focus.fine))
    coarse_colours = _token_colours(pixels, isqrt(focus.coarse))
    blocks = Text(no_wrap=True)
    for cell in range(focus.across**2):
        row, column = divmod(cell, focus.across)
        if cell in focus.cells:
            for x in range(CELL_SIDE * column, CELL_SIDE * (column + 1)):
                upper, lower = (
                    Color.from_rgb(*fine_colours[CELL_SIDE * row + y, x]) for y in (0, 1)
                )
                if in_colour:
                    blocks.append(UPPER_HALF, Style(color=upper, bgcolor=lower))
                else:
                    blocks.append(fine)
        else:
            y, x = (at * isqrt(focus.coarse) // focus.across for at in (row, column))
            shade = Style(color=Color.from_rgb(*coarse_colours[y, x])) if in_colour else None
            blocks.append(CELL_SIDE * coarse, shade)
        if column == focus.across - 1 and row < focus.across - 1:
            blocks.append("\n")
    return blocks


def _token_colours(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return (side, side, 3) the mean colour of what each token covers."""
    small = Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.uint8)
