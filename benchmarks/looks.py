"""How many copies of a picture have another look than it: what near copies straddle splits.

Scenes are generated; photographs are crops of the two that scikit-learn brings along.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from m3model.pictures import decode_picture
from router.records import look_of
from training.scenes import generate_scene


def copies(rgb: np.ndarray, random: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (what was done, the copy) for each way of copying."""
    height, width, _ = rgb.shape
    one = rgb.copy()
    one[random.integers(height), random.integers(width), 0] ^= 1
    yield "one pixel", one
    yield "all +1", np.where(rgb < 255, rgb + 1, rgb).astype(np.uint8)
    noise = rgb.astype(int) + random.integers(-1, 2, rgb.shape)
    yield "noise of 1", np.clip(noise, 0, 255).astype(np.uint8)
    for quality in (95, 75):
        buffer = io.BytesIO()
        Image.fromarray(rgb).save(buffer, "JPEG", quality=quality)
        yield f"jpeg {quality}", decode_picture(buffer.getvalue())
    half = Image.fromarray(rgb).resize((width // 2, height // 2), Image.Resampling.BILINEAR)
    yield "half size", np.asarray(half)
    yield "brighter 10 %", np.clip(rgb * 1.1, 0, 255).astype(np.uint8)
    for share in (1, 3):
        yield f"cut {share} %", rgb[max(1, height * share // 100) :, max(1, width * share // 100) :]


def photographs(count: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield square crops of 100 to 400 pixels."""
    for number in range(count):
        rgb = load_sample_image(("china.jpg", "flower.jpg")[number % 2])
        side = int(random.integers(100, 400))
        y, x = (int(random.integers(length - side)) for length in rgb.shape[:2])
        yield np.ascontiguousarray(rgb[y : y + side, x : x + side])


def main() -> None:
    """Print the share of copies with another look, and how many looks the originals have."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    count, random = (20, 300)[not given.quick], np.random.default_rng(0)
    kinds = {
        "scenes": (np.asarray(generate_scene(i, namespace="collect").image) for i in range(count)),
        "photographs": photographs(count, random),
    }
    result: dict[str, dict[str, float]] = {}
    for kind, pictures in kinds.items():
        looks, missed = [], dict[str, int]()
        for rgb in pictures:
            looks.append(look_of(rgb))
            for way, copy in copies(rgb, random):
                missed[way] = missed.get(way, 0) + (look_of(copy) != looks[-1])
        shares = {way: n / count for way, n in missed.items()}
        result[kind] = {"pictures": count, "looks": len(set(looks)), **shares}
        print(kind, ", ".join(f"{name} {value:g}" for name, value in result[kind].items()))
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
