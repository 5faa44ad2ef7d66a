"""The identity of a model folder: a hash that oracle data, routers and certificates name it by.

Knows files; loads no weights.
"""

from __future__ import annotations

import hashlib
from pathlib import Path


def hash_model(model: Path) -> str:
    """Return 16 hex digits that change with a model folder's weights, config or readout."""
    digest = hashlib.sha256()
    for path in sorted([model / "config.json", *model.glob("*.safetensors")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]
