"""What m3-mini is: its shape, tokenizer, growth from a coarse to a fine grid, folder on disk.

Knows configurations and weights; knows nothing of scenes' content, losses or the order of training.
Notation: G patches a side, D hidden width, R relevance width, V vocabulary size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from m3model.config import M3Config
from m3model.model import M3ForConditionalGeneration
from m3model.relevance.readout import RelevanceReadout
from training.cuts import MOST_CELLS
from training.errors import TrainingError
from training.scenes.scene import CHARS, COLORS, PATCH_CLASSES, question_words

PATCH_PX = 8
NORM_EPS = 1e-5


@dataclass(frozen=True)
class MiniShape:
    """Sizes of m3-mini: about 1.9 M parameters, 3.8 MB in fp16."""

    width: int = 128
    vision_layers: int = 5
    vision_mlp: int = 512
    text_layers: int = 4
    text_mlp: int = 344
    heads: int = 2
    relevance_width: int = 64


def mini_scales(grid_side: int) -> list[int]:
    """Return the scales a grid of this side can be read at: 24 → 1, 9, 36, 144, 576."""
    return [n * n for n in (1, 3, 6, 12, 24) if n <= grid_side]


def mini_config(shape: MiniShape, tokenizer, grid_side: int) -> M3Config:
    """Return the configuration of an m3-mini that reads pictures of ``grid_side * 8`` pixels."""
    from transformers import CLIPVisionConfig, LlamaConfig

    vision = CLIPVisionConfig(
        hidden_size=shape.width,
        intermediate_size=shape.vision_mlp,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.heads,
        image_size=grid_side * PATCH_PX,
        patch_size=PATCH_PX,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        projection_dim=shape.width,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.text_mlp,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return M3Config(
        vision_config=vision,
        text_config=text,
        scales=mini_scales(grid_side),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        text_vocab_size=len(tokenizer),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )


def mini_tokenizer():
    """Return the tokenizer of m3-mini: the scenes' words, and characters for every other word."""
    from m3model.prompt.vocabulary import build_tokenizer

    return build_tokenizer(sorted({*question_words(), *PATCH_CLASSES[1:], *COLORS}))


def sincos_positions(grid_side: int, width: int, pixels_per_cell: float = 1.0) -> Tensor:
    """Return (G*G, D) two-dimensional sine-cosine positions, measured in patches."""
    steps = torch.arange(grid_side, dtype=torch.float32) * pixels_per_cell
    frequencies = torch.exp(torch.linspace(0.0, -np.log(100.0), width // 4))
    angles = steps[:, None] * frequencies[None, :]
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = axis[:, None, :].expand(grid_side, grid_side, -1)
    columns = axis[None, :, :].expand(grid_side, grid_side, -1)
    return torch.cat([rows, columns], dim=2).reshape(grid_side * grid_side, width) * 0.3


class MiniModel(nn.Module):
    """An M3 plus readouts: of dense labels (training only) and of relevance (the router).

    The dense labels are read with the language model's own word embeddings: a patch of a red star
    is pulled towards ``red`` and ``star``, so the language model finds answers in visual tokens
    from the first step on.
    """

    def __init__(self, shape: MiniShape, tokenizer, grid_side: int) -> None:
        super().__init__()
        self.shape, self.grid_side = shape, grid_side
        self.m3 = M3ForConditionalGeneration(mini_config(shape, tokenizer, grid_side))
        width, vocabulary = shape.width, len(tokenizer)
        self.relevance = nn.ParameterDict(
            {
                "norm_weight": torch.ones(width),
                "norm_bias": torch.zeros(width),
                "patch_proj": torch.randn(width, shape.relevance_width) * width**-0.5,
                "token_table": torch.randn(vocabulary, shape.relevance_width) * 0.1,
                "token_bias": torch.zeros(vocabulary),
                "bias": torch.full((1,), -2.0),
            }
        )
        ids = tokenizer.convert_tokens_to_ids
        self.label_tokens = {
            "class": torch.tensor([ids(name) for name in PATCH_CLASSES[1:]]),
            "color": torch.tensor([ids(name) for name in COLORS]),
            "char": torch.tensor([ids(name) for name in CHARS[1:]]),
        }
        self.label_none = nn.ParameterDict(
            {name: torch.randn(width) * 0.1 for name in self.label_tokens}
        )
        self.label_gain = nn.ParameterDict({name: torch.tensor(4.0) for name in self.label_tokens})
        self._initialise(grid_side)

    @torch.no_grad()
    def _initialise(self, grid_side: int) -> None:
        embeddings = self.m3.model.vision_tower.embeddings
        embeddings.position_embedding.weight.zero_()
        embeddings.position_embedding.weight[1:] = sincos_positions(grid_side, self.shape.width)
        for name, weight in self.m3.named_parameters():
            if weight.ndim == 2 and "position_embedding" not in name:
                nn.init.normal_(
                    weight, std=0.02 if "embed_tokens" in name else weight.shape[1] ** -0.5 * 0.7
                )

    def grid(self, pixels: Tensor) -> Tensor:
        """Return (B, G*G, D) projected features of (B, 3, H, W) pixels, by one vision pass."""
        return self.m3.encode_images(pixels)

    def label_logits(self, grid: Tensor, name: str) -> Tensor:
        """Return (B, G*G, 1 + n) scores of no label and of each label of the family ``name``."""
        features = nn.functional.layer_norm(grid, grid.shape[-1:])
        words = self.m3.get_input_embeddings().weight[self.label_tokens[name].to(grid.device)]
        words = torch.cat([self.label_none[name][None].to(words.dtype), words])
        words = nn.functional.normalize(words.float(), dim=-1).to(grid.dtype)
        return (
            (features @ words.T)
            * self.label_gain[name].to(grid.dtype)
            * self.shape.width**-0.5
            * 2.0
        )

    def relevance_logits(self, grid: Tensor, question_ids: Tensor, question_mask: Tensor) -> Tensor:
        """Return (B, Q, G*G) relevance of every patch to Q questions ((B, Q, L) ids and mask)."""
        parts = self.relevance
        features = nn.functional.layer_norm(
            grid,
            grid.shape[-1:],
            parts["norm_weight"].to(grid.dtype),
            parts["norm_bias"].to(grid.dtype),
            NORM_EPS,
        )
        patches = features @ parts["patch_proj"].to(grid.dtype)
        mask = question_mask.to(grid.dtype)
        asked = (parts["token_table"].to(grid.dtype)[question_ids] * mask[..., None]).sum(2)
        offset = (parts["token_bias"].to(grid.dtype)[question_ids] * mask).sum(2) + parts[
            "bias"
        ].to(grid.dtype)
        return asked @ patches.transpose(1, 2) + offset[..., None]


@torch.no_grad()
def grow(coarse: MiniModel, tokenizer, grid_side: int) -> MiniModel:
    """Return a model of a finer grid that starts from ``coarse``.

    Positions are analytic in patches, so they extend; what the coarse positions learnt on top
    enters as its mean. It works the other way round as well.
    """
    fine = MiniModel(coarse.shape, tokenizer, grid_side)
    key = "m3.model.vision_tower.embeddings.position_embedding.weight"
    state = {k: v.clone() for k, v in coarse.state_dict().items()}
    learnt = state[key][1:] - sincos_positions(coarse.grid_side, coarse.shape.width)
    fresh = sincos_positions(grid_side, coarse.shape.width) + learnt.mean(0)
    state[key] = torch.cat([state[key][:1], fresh])
    fine.load_state_dict(state)
    return fine


def exported_tokenizer(folder: Path):
    """Return the tokenizer of a folder written by ``export``."""
    from m3model.processing import M3Processor

    return M3Processor.from_pretrained(folder).tokenizer


@torch.no_grad()
def load_exported(model: MiniModel, folder: Path) -> None:
    """Take up the weights and the relevance readout of a folder written by ``export``.

    What only training uses (the gains of the dense labels) begins anew.

    Raises:
        TrainingError: the folder holds a model of another shape.
    """
    m3 = M3ForConditionalGeneration.from_pretrained(folder)
    readout = RelevanceReadout.from_pretrained(folder)
    if readout is None:
        raise TrainingError(f"{folder} has no relevance readout, so it is not an m3-mini")
    try:
        model.m3.load_state_dict({k: v.float() for k, v in m3.state_dict().items()})
        for name, weight in model.relevance.items():
            weight.copy_(torch.from_numpy(np.array(getattr(readout, name))).reshape(weight.shape))
    except RuntimeError as error:
        raise TrainingError(
            f"{folder} holds an m3-mini of another shape: {str(error).splitlines()[-1].strip()}"
        ) from error


CARD = Path(__file__).with_name("model_card.md.jinja")


@torch.no_grad()
def export(
    model: MiniModel, tokenizer, folder: Path, seed: int = 0, *, reads_cuts: bool = False
) -> None:
    """Write a Hugging Face folder: fp16 weights, tokenizer, processor, readout, card.

    Args:
        reads_cuts: whether the run taught cuts, which the card tells.
    """
    from transformers import GenerationConfig

    from m3model.processing import M3Processor, build_image_processor

    folder.mkdir(parents=True, exist_ok=True)
    m3 = M3ForConditionalGeneration(model.m3.config)
    m3.load_state_dict({k: v.float() for k, v in model.m3.state_dict().items()})
    m3.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=32,
    )
    m3.half().save_pretrained(folder)
    # Loaded without a dtype the model must compute in fp32: fp16 is slow or missing on CPUs.
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"dtype": "float32"}, indent=2, sort_keys=True) + "\n"
    )
    side = model.grid_side * PATCH_PX
    M3Processor(build_image_processor(side), tokenizer).save_pretrained(folder)
    readout = {k: v.detach().float().cpu().numpy() for k, v in model.relevance.items()}
    RelevanceReadout(**readout).save(folder)
    parameters = sum(p.numel() for p in m3.parameters())
    card = _card(m3.config.scales, side, parameters, seed, reads_cuts)
    (folder / "README.md").write_text(card)


def _card(scales: Sequence[int], side: int, parameters: int, seed: int, reads_cuts: bool) -> str:
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        language="en",
        library_name="m3-router",
        license="apache-2.0",
        pipeline_tag="image-text-to-text",
        tags=["m3-router", "matryoshka", "adaptive-visual-tokens"],
    )
    millions = parameters / 1e6
    card = ModelCard.from_template(
        data, template_path=str(CARD), scales=scales, side=side, millions=millions, seed=seed,
        reads_cuts=reads_cuts, most_cells=max(MOST_CELLS),
    )  # fmt: skip
    return f"{card}\n"
