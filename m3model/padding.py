"""A large picture as pad-then-resize makes it, without the padded square in between.

Padding makes a strip of 10,000 x 1 pixels a square of 100 million, 300 MB for a file of a hundred
bytes. Here the content is resized with no more of the padding than the filter reaches. Knows
Pillow's way of resizing (rows first, then columns, 8 bits in between); knows nothing of models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

# A square of up to 4 million pixels costs little either way, and the library's own path is kept.
LARGEST_SQUARE_PX = 2048
# Up to four times the picture's own area the answer is the old one bit for bit: the whole length
# is resized then, which is never more work than a picture of that area already is.
STRIP = 4
_ROWS_AT_ONCE = 64
_BICUBIC = Image.Resampling.BICUBIC
_REACH = 2.0  # of the bicubic filter, in pixels of the coarser side


def padded_square(picture: Image.Image, size: int, colour: tuple[int, ...]) -> Image.Image:
    """Return the RGB picture centred on a square of ``colour``, resized to (size, size).

    The pixels are those of padding first; of a strip they may differ by the last bit, because
    where its window lies is rounded.
    """
    width, height = picture.size
    window = _window(max(width, height), min(width, height), size)
    if width >= height:
        canvas = Image.new("RGB", (size, window.length), colour)
        canvas.paste(picture.resize((size, height), _BICUBIC), (0, window.content_at))
        content = canvas.resize(
            (size, window.n_out), _BICUBIC, box=(0, window.box[0], size, window.box[1])
        )
        place = (0, window.out_at)
    else:
        columns = Image.new("RGB", (window.n_out, height))
        for top in range(0, height, _ROWS_AT_ONCE):
            rows = min(_ROWS_AT_ONCE, height - top)
            canvas = Image.new("RGB", (window.length, rows), colour)
            canvas.paste(picture.crop((0, top, width, top + rows)), (window.content_at, 0))
            box = (window.box[0], 0, window.box[1], rows)
            columns.paste(canvas.resize((window.n_out, rows), _BICUBIC, box=box), (0, top))
        content = columns.resize((window.n_out, size), _BICUBIC)
        place = (window.out_at, 0)
    square = Image.new("RGB", (size, size), colour)
    square.paste(content, place)
    return square


@dataclass(frozen=True)
class _Window:
    """The part of the square's padded axis that is made: ``length`` pixels, with the content from
    ``content_at``. Its ``box`` becomes the ``n_out`` pixels of the result from ``out_at``.
    """

    length: int
    content_at: int
    box: tuple[float, float]
    n_out: int
    out_at: int


def _window(side: int, thickness: int, size: int) -> _Window:
    start = (side - thickness) // 2
    if side <= STRIP * thickness:
        return _Window(side, start, (0, side), size, 0)
    scale = side / size
    reach = _REACH * max(scale, 1.0)
    # One more pixel of the result on either side: there the filter sees padding alone.
    first = max(0, math.floor((start - reach) / scale) - 1)
    last = min(size, math.ceil((start + thickness + reach) / scale) + 1)
    begin = max(0, math.floor(first * scale - reach) - 1)
    end = min(side, math.ceil(last * scale + reach) + 1)
    box = (first * scale - begin, last * scale - begin)
    return _Window(end - begin, start - begin, box, last - first, first)
