"""The official checkpoint format (matryoshka-mm, LLaVA-1.5): its keys and config as ours.

Pure mapping of names and numbers; reading and writing files is `convert`'s work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from m3model.config import DEFAULT_SCALES, M3Config
from m3model.errors import ConversionError

CLIP_L_336 = "openai/clip-vit-large-patch14-336"
_DROPPED = re.compile(r"(\.rotary_emb\.inv_freq|\.embeddings\.position_ids)$")
_RENAMED = (
    (re.compile(r"^model\.vision_tower\.vision_tower\.(vision_model\.)?"), "model.vision_tower."),
    (re.compile(r"^model\.mm_projector\.0\."), "model.multi_modal_projector.linear_1."),
    (re.compile(r"^model\.mm_projector\.2\."), "model.multi_modal_projector.linear_2."),
    (re.compile(r"^model\.(embed_tokens|layers|norm)\."), r"model.language_model.\1."),
)
_TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "attention_bias",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def our_key(key: str) -> str | None:
    """Our name of an official key, or None for buffers that are recomputed.

    Unknown names come back unchanged, to be reported.
    """
    if _DROPPED.search(key):
        return None
    for pattern, replacement in _RENAMED:
        renamed, hits = pattern.subn(replacement, key, count=1)
        if hits:
            return renamed
    return key


def scales_of(source: Mapping[str, Any]) -> list[int]:
    """The checkpoint's scales ascending.

    Its config stores a list, one number, or nothing: then they are M3's five.
    """
    stored = source.get("matryoshka_vis_token_scale")
    if stored is None:
        return list(DEFAULT_SCALES)
    return sorted(stored) if isinstance(stored, list) else [stored]


def config_from_official(source: Mapping[str, Any], vision: Mapping[str, Any]) -> M3Config:
    """Our config, with one row added to the vocabulary for the image token.

    Raises:
        ConversionError: the checkpoint is of another kind (no projector, another projector,
            LLaVA-NeXT), or its scales do not fit the grid.
    """
    wanted = {
        "mm_projector_type": ("mlp2x_gelu",),
        "mm_vision_select_feature": ("patch", None),
        "mm_patch_merge_type": ("flat", None),
    }
    for name, allowed in wanted.items():
        if source.get(name) not in allowed:
            raise ConversionError(
                f"config.json has {name} = {source.get(name)!r}, only {allowed[0]!r} is supported "
                "(LLaVA-1.5 and its M3 descendants)"
            )
    if str(source.get("image_aspect_ratio", "")).startswith("anyres"):
        raise ConversionError(
            "config.json has image_aspect_ratio 'anyres': LLaVA-NeXT checkpoints are not supported"
        )
    for name in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    ):
        if not isinstance(source.get(name), int):
            raise ConversionError(
                f"config.json has no {name}: this is not an official LLaVA checkpoint"
            )
    text = {name: source[name] for name in _TEXT_FIELDS if source.get(name) is not None}
    rows = int(source["vocab_size"])
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": float(source.get("rope_theta", 10_000.0)),
    }
    scaling = source.get("rope_scaling")
    if scaling:
        rope.update({key: value for key, value in scaling.items() if key != "type"})
        rope["rope_type"] = scaling.get("rope_type", scaling.get("type", "default"))
    text.update(model_type="llama", vocab_size=rows + 1, rope_parameters=rope)
    try:
        return _config(source, vision, text, rows)
    except StrictDataclassError as error:
        raise ConversionError(f"config.json holds a value of the wrong kind: {error}") from error
    except ValueError as error:
        raise ConversionError(f"config.json: {error}") from error


def _config(
    source: Mapping[str, Any], vision: Mapping[str, Any], text: dict[str, Any], rows: int
) -> M3Config:
    return M3Config(
        vision_config={**vision, "model_type": "clip_vision_model"},
        text_config=text,
        image_token_index=rows,
        text_vocab_size=rows,
        scales=scales_of(source),
        vision_feature_layer=int(source.get("mm_vision_select_layer", -2)),
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2,
        tie_word_embeddings=bool(source.get("tie_word_embeddings", False)),
    )
