"""Relevance from CLIP itself: patches and the question in the space CLIP was trained to share.

The vision tower of a LLaVA model is the picture half of a CLIP model; with the other half the two
can be compared without training. Patch features take the value path of the tower's last layer (no
mixing between patches, as MaskCLIP does, Zhou et al. 2022), then CLIP's norm and projection.
Knows CLIP folders; knows nothing of readouts, routers or services.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from m3model.errors import RelevanceUnavailable
from m3model.relevance.source import CLIP, squashed

Array = NDArray[np.float32]


class ClipRelevance:
    """Cosine of patches and question in CLIP's space, z-scored and squashed.

    Args:
        tower: the model's vision tower.
        text: a `CLIPTextModelWithProjection`, on the CPU: a question is one short pass.
        tokenizer: of the text tower.
        projection: (P, vision width), CLIP's visual projection.
        identity: hex digits of the text encoder's weights; part of the source's name.

    Raises:
        RelevanceUnavailable: the widths do not fit the tower or each other.
    """

    needs_tower = True

    def __init__(
        self, tower: Any, text: Any, tokenizer: Any, projection: torch.Tensor, identity: str
    ) -> None:
        self.name = f"{CLIP}-{identity}"
        wide, shared = int(tower.config.hidden_size), int(text.config.projection_dim)
        if tuple(projection.shape) != (shared, wide):
            raise RelevanceUnavailable(
                f"the text encoder belongs to another vision tower: its visual projection is "
                f"{tuple(projection.shape)}, this model's tower needs ({shared}, {wide})"
            )
        self._layer = tower.encoder.layers[-1]
        self._norm, self._text, self._tokenizer = tower.post_layernorm, text, tokenizer
        self._projection = projection.float()

    @classmethod
    def from_pretrained(cls, folder: str | Path, model: Any) -> ClipRelevance:
        """The source made of a CLIP folder and a model whose tower came from it.

        Args:
            folder: of a `CLIPModel`, or of a `CLIPTextModelWithProjection` whose weights also hold
                `visual_projection.weight`; with its tokenizer.

        Raises:
            RelevanceUnavailable: no CLIP folder, or of other widths than the model's tower.
        """
        from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModelWithProjection
        from transformers.utils.logging import disable_progress_bar

        path = Path(folder)
        disable_progress_bar()
        try:
            weights, identity = _weights(path)
            projection = weights.get("visual_projection.weight")
            config = CLIPTextConfig.from_pretrained(path)
            if "text_projection.weight" in weights:
                config.projection_dim = len(weights["text_projection.weight"])
            text = CLIPTextModelWithProjection(config).eval()
            needed = text.state_dict()
            known = {name: value for name, value in weights.items() if name in needed}
            text.load_state_dict(known, strict=True)
            tokenizer = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise _refusal(path, error) from error
        if projection is None:
            raise RelevanceUnavailable(
                f"{path} lacks visual_projection.weight: give the folder of the whole CLIP model"
            )
        return cls(model.model.vision_tower, text, tokenizer, projection, identity)

    @torch.inference_mode()
    def project(self, grid: Array, tower: torch.Tensor | None) -> Array:
        """Patches in CLIP's space, less their mean, of length one (N, P).

        Args:
            tower: (N, vision width) states that enter the tower's last layer.
        """
        if tower is None or len(tower) != len(grid):
            raise ValueError("CLIP relevance needs the vision tower's states of every patch")
        attention = self._layer.self_attn
        values = attention.out_proj(attention.v_proj(self._layer.layer_norm1(tower)))
        shared = self._norm(values).float().cpu() @ self._projection.T
        shared = torch.nn.functional.normalize(shared, dim=1)
        centred = shared - shared.mean(dim=0)
        return np.asarray(torch.nn.functional.normalize(centred, dim=1).numpy(), np.float32)

    @torch.inference_mode()
    def score(self, projected: Array, question: str, ids: Sequence[int]) -> Array:
        """Relevance (N,) of the question's text; longer ones are cut to CLIP's context."""
        longest = int(self._text.config.max_position_embeddings)
        tokens = self._tokenizer(question, return_tensors="pt", truncation=True, max_length=longest)
        embedded = self._text(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).text_embeds[0]
        return squashed(projected @ embedded.float().numpy())


def text_encoder_identity(folder: str | Path) -> str:
    """Return 8 hex digits of a text encoder's weights.

    Raises:
        RelevanceUnavailable: the folder holds none.
    """
    try:
        return _weights(Path(folder))[1]
    except (OSError, ValueError) as error:
        raise _refusal(Path(folder), error) from error


def _refusal(folder: Path, error: Exception) -> RelevanceUnavailable:
    if isinstance(error, RelevanceUnavailable):
        return error
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return RelevanceUnavailable(f"{folder} holds no CLIP text encoder: {line}")


def _weights(folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Return a folder's tensors outside the vision tower, and 8 hex digits of them."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise OSError("it has no *.safetensors")
    weights: dict[str, torch.Tensor] = {}
    digest = hashlib.sha256()
    for file in files:
        with safe_open(file, framework="pt") as held:
            for name in sorted(held.keys()):
                if name.startswith("vision_model.") or name.endswith("position_ids"):
                    continue
                tensor = held.get_tensor(name).float()
                weights[name] = tensor
                digest.update(name.encode())
                digest.update(tensor.numpy().tobytes())
    return weights, digest.hexdigest()[:8]
