"""A picture decoded in a process of its own, where a decoder would hold up every other thread.

Pillow decodes WebP without letting go of Python's lock: half a second of a large one is half a
second in which a service answers nobody. Knows processes and pipes; knows no formats.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import numpy as np
from numpy.typing import NDArray

TIMEOUT_S = 60.0
_CODE = "from m3model.pictures.decoding import decode_stdin; decode_stdin()"


def decode_apart(data: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the pixels, (H, W, 3) uint8 RGB.

    Args:
        data: the file.
        size: width and height of its pixels; of some turns they are exchanged.

    Raises:
        ValueError: it cannot be decoded.
    """
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", _CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env=env,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(data)
            process.stdin.close()
            turned = process.stdout.read(1) == b"T"
            pixels = np.empty((*(size if turned else size[::-1]), 3), dtype=np.uint8)
            left = pixels.data.cast("B")
            while left and (n := process.stdout.readinto(left[: 2**20])):  # type: ignore[attr-defined]
                left = left[n:]
            process.wait(TIMEOUT_S)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            left = memoryview(b"?")  # what it left undone
        finally:
            process.kill()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
    if left or process.returncode:
        raise ValueError("the decoder ended early")
    return pixels
