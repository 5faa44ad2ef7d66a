"""A complete random model folder in a second, for tests and for trying the service.

Same architecture family and files as a real checkpoint (192-pixel pictures, 24x24 grid, five
scales). Its answers are noise that depends on picture, question and scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig

from m3model.config import DEFAULT_SCALES, M3Config
from m3model.model import M3ForConditionalGeneration
from m3model.processing import M3Processor, build_image_processor
from m3model.prompt.vocabulary import build_tokenizer
from m3model.relevance.readout import RelevanceReadout

_SENTENCES = """
what which how many is are the a an of in on color colour shape word number letter first
largest tallest bar chart sign background red green blue yellow orange purple white black
gray circle square triangle star heart cross ring there it does say does read picture
object objects high one two three yes no
"""


def tiny_config(
    vocab_size: int, *, image_token_id: int = 4, hidden_size: int = 64, layers: int = 2
) -> M3Config:
    """A small M3 configuration: 192 pixels, patch 8, so 24x24 patches and scales 1/9/36/144/576."""
    return M3Config(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "image_size": 192,
            "patch_size": 8,
            "projection_dim": 32,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "intermediate_size": 2 * hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 2048,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        image_token_index=image_token_id,
        vision_feature_layer=-1,
        scales=list(DEFAULT_SCALES),
    )


def redraw_weights(model: torch.nn.Module, seed: int) -> None:
    """Draws every parameter anew, large enough that logits differ between tokens."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
            elif parameter.ndim > 1 and "embed" not in name:
                parameter.copy_(noise / parameter[0].numel() ** 0.5 * 1.5)
            else:
                parameter.copy_(noise * (0.1 if name.endswith("bias") else 1.0))


def write_tiny_checkpoint(folder: str | PathLike[str], seed: int = 0) -> Path:
    """`folder`, holding a whole checkpoint and a relevance readout."""
    path = Path(folder)
    tokenizer = build_tokenizer(_SENTENCES.split())
    config = tiny_config(len(tokenizer), image_token_id=tokenizer.convert_tokens_to_ids("<image>"))
    model = M3ForConditionalGeneration(config)
    redraw_weights(model, seed)
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=0, max_new_tokens=64
    )
    model.save_pretrained(path)
    M3Processor(build_image_processor(config.vision_config.image_size), tokenizer).save_pretrained(
        path
    )
    random = np.random.default_rng(seed)
    width, rank = config.hidden_size, 8

    def draw(*shape: int, scale: float = 1.0) -> NDArray[np.float32]:
        return (scale * random.normal(size=shape)).astype(np.float32)

    RelevanceReadout(
        norm_weight=np.ones(width, dtype=np.float32),
        norm_bias=np.zeros(width, dtype=np.float32),
        patch_proj=draw(width, rank, scale=width**-0.5),
        token_table=draw(len(tokenizer), rank),
        token_bias=draw(len(tokenizer), scale=0.1),
        bias=np.zeros(1, dtype=np.float32),
    ).save(path)
    return path


def write_tiny_clip(
    folder: str | PathLike[str], words: Sequence[str], *, vision_width: int = 32, seed: int = 0
) -> Path:
    """`folder`, holding a random CLIP model whose picture half is as wide as the tiny tower.

    Args:
        words: its tokenizer's vocabulary; any other word is unknown.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    path = Path(folder)
    known = {word: i for i, word in enumerate(("<s>", "</s>", "<unk>", *words))}
    inner = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(path)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = {
        **sizes, "hidden_size": 16, "vocab_size": len(known), "max_position_embeddings": 8,
        "bos_token_id": 0, "eos_token_id": 1, "projection_dim": 12,
    }  # fmt: skip
    vision = {
        **sizes, "hidden_size": vision_width, "image_size": 16, "patch_size": 8,
        "projection_dim": 12,
    }  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    model = CLIPModel(config)
    redraw_weights(model, seed)
    model.save_pretrained(path)
    return path
