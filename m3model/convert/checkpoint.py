"""Official M3 / LLaVA-1.5 checkpoints into ours: `python -m m3model.convert --src DIR --dst DIR`.

Every tensor is accounted for before anything is written; the result appears whole or not at all.
Names and numbers of the official format live in `official`, its tokenizer in `tokenizer`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

    from m3model.config import M3Config

from m3model.errors import CheckpointMismatch, ConversionError
from m3model.terminal import VersionOption, one_command, run

EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
_SHOWN = 12

app = one_command("python -m m3model.convert")


@dataclass(frozen=True)
class _Entry:
    """One tensor of the source: its file, its name there, its shape."""

    file: Path
    key: str
    shape: tuple[int, ...]


def convert(src: Path, dst: Path, vision_config: Path | None = None) -> M3Config:
    """The new checkpoint's config, once `dst` holds the whole converted model.

    Args:
        src: folder with an official `config.json` and safetensors (one file, or shards with an
            index).
        dst: folder to create; may exist if it is empty.
        vision_config: JSON file with the vision tower's config; default: the folder that
            `mm_vision_tower` names, else what is built in for openai/clip-vit-large-patch14-336.

    Raises:
        ConversionError: the source cannot be converted, or `dst` is in use.
        CheckpointMismatch: tensors missing, unexpected, doubled or of the wrong shape; the
            message names them.
    """
    from m3model.convert.official import config_from_official
    from m3model.convert.tokenizer import load_tokenizer

    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise ConversionError(f"{dst} exists and is not empty: choose another folder")
    source = _read_json(src / "config.json")
    config = config_from_official(source, _vision_config(source, src, vision_config))
    entries = _entries(_weight_files(src))
    _check(config, entries)
    tokenizer = load_tokenizer(src, config.image_token_id)

    dst.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{dst.name}.", suffix=".partial", dir=dst.parent))
    try:
        config.dtype = _write_weights(entries, partial)
        config.architectures = ["M3ForConditionalGeneration"]
        config.save_pretrained(partial)
        _write_extras(source, config, tokenizer, partial)
        partial.chmod(0o755)
        if dst.exists():
            dst.rmdir()
        os.replace(partial, dst)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConversionError(f"{path} does not exist") from None
    except (ValueError, TypeError) as error:
        raise ConversionError(f"{path} is not a JSON object: {error}") from error


def _vision_config(source: Mapping[str, Any], src: Path, given: Path | None) -> dict[str, Any]:
    from m3model.config import CLIP_L_336_VISION
    from m3model.convert.official import CLIP_L_336

    tower = str(source.get("mm_vision_tower") or "")
    folders = [Path(tower), src / tower] if tower else []
    path = given or next(
        (f / "config.json" for f in folders if (f / "config.json").is_file()), None
    )
    if path is None:
        if tower == CLIP_L_336:
            return dict(CLIP_L_336_VISION)
        raise ConversionError(
            f"config.json names the vision tower {tower!r}, which is no folder here: "
            "pass its config.json with --vision-config"
        )
    read = _read_json(path)
    vision = read.get("vision_config", read)
    missing = [
        name for name in CLIP_L_336_VISION if name not in vision and name not in _CLIP_DEFAULTS
    ]
    if missing:
        raise ConversionError(
            f"{path} has no {', '.join(missing)}: this is not a CLIP vision config"
        )
    return {name: vision.get(name, _CLIP_DEFAULTS.get(name)) for name in CLIP_L_336_VISION}


# What transformers leaves out of a saved CLIP config because it is the default.
_CLIP_DEFAULTS = {"projection_dim": 512, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}


def _weight_files(src: Path) -> list[Path]:
    index = src / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_read_json(index).get("weight_map", {}).values()))
        lost = [name for name in names if not (src / name).is_file()]
        if lost or not names:
            raise ConversionError(
                f"{index} names files that are not there: {', '.join(lost) or 'none named'}"
            )
        return [src / name for name in names]
    if (src / "model.safetensors").is_file():
        return [src / "model.safetensors"]
    if any(src.glob("*.bin")):
        raise ConversionError(
            f"{src} holds .bin weights only: such files can run code when read. "
            "Save the checkpoint as safetensors first (save_pretrained does)"
        )
    raise ConversionError(f"{src} holds no model.safetensors and no model.safetensors.index.json")


def _entries(files: list[Path]) -> dict[str, _Entry]:
    """Our key -> where its tensor is. Only headers are read."""
    from safetensors import SafetensorError, safe_open

    from m3model.convert.official import our_key

    entries: dict[str, _Entry] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 (not a dict)
                    ours = our_key(key)
                    if ours is None:
                        continue
                    if ours in entries:
                        raise CheckpointMismatch(
                            f"doubled: {key} in {file.name} and {entries[ours].file.name}"
                        )
                    entries[ours] = _Entry(file, key, tuple(opened.get_slice(key).get_shape()))
        except SafetensorError as error:
            raise ConversionError(f"{file} is not a readable safetensors file: {error}") from error
    return entries


def _check(config: M3Config, entries: Mapping[str, _Entry]) -> None:
    """Compares names and shapes with a model built without memory."""
    import torch

    from m3model.model import M3ForConditionalGeneration

    with torch.device("meta"):
        wanted = {
            k: tuple(t.shape) for k, t in M3ForConditionalGeneration(config).state_dict().items()
        }
    if config.tie_word_embeddings and HEAD not in entries:
        wanted.pop(HEAD, None)
    for key in (EMBEDDING, HEAD):
        if key in wanted:
            wanted[key] = (wanted[key][0] - 1, *wanted[key][1:])
    missing = sorted(wanted.keys() - entries.keys())
    unexpected = sorted(entries[key].key for key in entries.keys() - wanted.keys())
    shapes = sorted(
        f"{entries[key].key} {list(entries[key].shape)} instead of {list(wanted[key])}"
        for key in wanted.keys() & entries.keys()
        if entries[key].shape != wanted[key]
    )
    found = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes}
    parts = [f"{label} ({len(n)}): {_some(n)}" for label, n in found.items() if n]
    if parts:
        hint = ""
        if any(key.startswith("model.vision_tower.") for key in missing):
            hint = (
                " (the vision tower's weights must be inside the checkpoint, as M3's are; "
                "plain LLaVA-1.5 leaves them out)"
            )
        raise CheckpointMismatch("; ".join(parts) + hint)


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest


def _write_weights(entries: Mapping[str, _Entry], folder: Path) -> torch.dtype:
    """The embedding's dtype, once every weight is written.

    One file per source file, never more than one of them in memory.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    files = sorted({entry.file for entry in entries.values()})
    weight_map: dict[str, str] = {}
    total = 0
    dtype: torch.dtype | None = None
    for number, file in enumerate(files, start=1):
        name = (
            "model.safetensors"
            if len(files) == 1
            else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        )
        tensors: dict[str, torch.Tensor] = {}
        with safe_open(file, framework="pt") as opened:
            for key, entry in entries.items():
                if entry.file == file:
                    tensor = opened.get_tensor(entry.key)
                    tensors[key] = _with_image_row(tensor) if key in (EMBEDDING, HEAD) else tensor
        if EMBEDDING in tensors:
            dtype = tensors[EMBEDDING].dtype
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / "model.safetensors.index.json").write_text(
            json.dumps(index, indent=2) + "\n", encoding="utf-8"
        )
    assert dtype is not None  # _check saw the embedding
    return dtype


def _with_image_row(table: torch.Tensor) -> torch.Tensor:
    """The table plus a zero row for the image token; the model masks its logit."""
    import torch

    return torch.cat([table, table.new_zeros(1, table.shape[1])])


def _write_extras(
    source: Mapping[str, Any], config: M3Config, tokenizer: Any, folder: Path
) -> None:
    from transformers import GenerationConfig

    from m3model.processing import build_image_processor
    from m3model.prompt.templates import VICUNA_TEMPLATE

    text = config.text_config
    pad = text.pad_token_id if text.pad_token_id is not None else 0
    GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=pad
    ).save_pretrained(folder)
    images = build_image_processor(config.vision_config.image_size)
    images.do_pad = source.get("image_aspect_ratio", "pad") == "pad"
    images.save_pretrained(folder)
    if tokenizer is not None:
        if tokenizer.chat_template is None:
            tokenizer.chat_template = VICUNA_TEMPLATE
        tokenizer.save_pretrained(folder)


@app.command()
def checkpoint(
    src: Annotated[Path, typer.Option(help="Folder of the official checkpoint.")],
    dst: Annotated[Path, typer.Option(help="Folder to write; must not hold anything.")],
    vision_config: Annotated[
        Path | None,
        typer.Option(help="config.json of the vision tower, if it is not CLIP ViT-L/14-336."),
    ] = None,
    version: VersionOption = False,
) -> None:
    """Turn an official M3 or LLaVA-1.5 checkpoint (safetensors) into an m3model folder."""
    config = convert(src, dst, vision_config)
    typer.echo(
        f"{dst}: scales {', '.join(map(str, config.scales))}, "
        f"image token id {config.image_token_id}"
    )


def main() -> None:
    """Run the command line; what a user can mend is one line and exit code 2."""
    run(app, ConversionError, CheckpointMismatch, OSError)
