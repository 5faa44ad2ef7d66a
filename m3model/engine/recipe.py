"""What determines an answer besides what is asked, and the one name of it: the label recipe.

A recipe is text of up to three parts, "0123456789abcdef-float32-16": a hash of the model folder
(weights, configuration, tokenizer, chat template, preprocessing, generation settings), the number
type it is computed in, and after how many tokens an answer is cut. A part that differs from answer
to answer is left out, with those behind it. Knows folders and text; knows nothing of pictures or
routers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path
from typing import Any

from m3model.prompt.templates import VICUNA_TEMPLATE

TEMPLATES = ("chat_template.jinja", "chat_template.json")
TOKENIZER_CONFIG = "tokenizer_config.json"
# Beside weights and config.json, which `hash_model` covers, all that a checkpoint is read from.
FILES = (
    TOKENIZER_CONFIG, "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt",
    "added_tokens.json", "special_tokens_map.json", *TEMPLATES, "preprocessor_config.json",
    "processor_config.json", "generation_config.json",
)  # fmt: skip
# Who wrote a file, and when it was loaded from where: no answer depends on it.
_UNTOLD = ("transformers_version", "name_or_path", "_name_or_path", "is_local", "local_files_only")


def label_recipe_hash(
    model: Path,
    dtype: str | None = None,
    max_new_tokens: int | None = None,
    *,
    weights: str | None = None,
) -> str:
    """Return the recipe of a model folder's answers.

    Args:
        dtype: number type it is computed in ("float32"); None where it is not one for all.
        max_new_tokens: where answers are cut; None where each has a limit of its own.
        weights: the folder's `hash_model`, where that is known already.
    """
    from m3model.config import hash_model  # loads transformers, which a gateway does without

    digest = hashlib.sha256((weights or hash_model(model)).encode())
    for name in FILES:
        if (path := model / name).is_file():
            content = _plain(path)
            digest.update(f"\0{name} {len(content)}\0".encode() + content)
    if not _has_template(model):  # then the processor takes its own
        digest.update(f"\0template\0{VICUNA_TEMPLATE}".encode())
    parts = [digest.hexdigest()[:16], dtype, max_new_tokens]
    return "-".join(map(str, takewhile(lambda part: part is not None, parts)))


def cut_after(recipe: str | None, max_new_tokens: int | None) -> str | None:
    """Return the recipe of an answer that was cut after so many tokens; None: nothing is known."""
    if recipe is None or max_new_tokens is None:
        return recipe
    return f"{recipe}-{max_new_tokens}"


def uncut(recipe: str | None) -> str | None:
    """Return the recipe of answers as these, were they not cut; None: nothing is known."""
    return None if recipe is None else "-".join(recipe.split("-")[:2])


def model_of(recipe: str) -> str:
    """Return the part of a recipe that names the model folder."""
    return recipe.partition("-")[0]


def shared_recipe(recipes: Iterable[str | None]) -> str | None:
    """Return what recipes have in common; None: one is not known, or the models differ."""
    split = [None if recipe is None else recipe.split("-") for recipe in recipes]
    known = [parts for parts in split if parts is not None]
    if not known or len(known) < len(split):
        return None
    alike = takewhile(lambda parts: len(set(parts)) == 1, zip(*known, strict=False))
    return "-".join(parts[0] for parts in alike) or None


def answering_device(name: str | None = None) -> str:
    """Return the torch device that answers; None takes a GPU where there is one."""
    import torch

    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def answering_dtype(device: str) -> str:
    """Return the number type that a device answers in: float32 on a CPU, else bfloat16."""
    return "float32" if device == "cpu" else "bfloat16"


def _plain(path: Path) -> bytes:
    """Return what a file says, without what does not count; one that is no JSON, as it is."""
    content = path.read_bytes()
    if path.suffix != ".json":
        return content
    try:
        said: Any = json.loads(content)
    except ValueError:
        return content
    if isinstance(said, dict):
        said = {key: value for key, value in said.items() if key not in _UNTOLD}
    return json.dumps(said, sort_keys=True).encode()


def _has_template(model: Path) -> bool:
    if any((model / name).is_file() for name in TEMPLATES):
        return True
    try:
        said = json.loads((model / TOKENIZER_CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.get("chat_template") is not None
