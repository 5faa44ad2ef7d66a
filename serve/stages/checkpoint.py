"""A model folder as the service uses it: what the gateway must know of it, and the loaded halves.

Knows where things lie in a checkpoint; knows nothing of requests. The gateway reads `ModelCard`
without loading torch; encoder and generator each keep only their half of the weights.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from serve.errors import ServeSetupError
from serve.settings import ServeSettings

if TYPE_CHECKING:
    from m3model import Engine, M3ForConditionalGeneration, M3Processor
    from m3model.relevance.source import RelevanceSource

Half = Literal["encoder", "generator", "both"]


@dataclass(frozen=True)
class ModelCard:
    """What a caller may ask of a model: its name and its scales, ascending."""

    name: str
    scales: tuple[int, ...]

    @classmethod
    def read(cls, folder: Path) -> ModelCard:
        """Return the card of a model folder.

        Raises:
            ServeSetupError: config.json cannot be read or is not an M3 configuration.
        """
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            scales = tuple(sorted(int(scale) for scale in config["scales"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ServeSetupError(
                f"{folder / 'config.json'} is not the configuration of an M3 model "
                f"({type(error).__name__}: {error}); convert it with python -m m3model.convert"
            ) from error
        if not scales:
            raise ServeSetupError(f"{folder / 'config.json'} names no scales")
        return cls(folder.resolve().name, scales)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model, its processor, and where relevance can come from (by name; encoders only).

    The two names are of the folder it was loaded from, whose weights are read whole for them: once,
    where a router or a log asks.
    """

    model: M3ForConditionalGeneration
    processor: M3Processor
    sources: Mapping[str, RelevanceSource]
    device: str
    folder: Path

    @cached_property
    def model_hash(self) -> str:
        """The hash of weights, configuration and readout."""
        from m3model.config import hash_model

        return hash_model(self.folder)

    @cached_property
    def label_recipe(self) -> str:
        """The recipe of its answers, where nothing cuts them."""
        from m3model.engine.recipe import answering_dtype, label_recipe_hash

        dtype = answering_dtype(self.device)
        return label_recipe_hash(self.folder, dtype, weights=self.model_hash)


def load_checkpoint(
    folder: Path,
    *,
    half: Half = "both",
    device: str | None = None,
    threads: int = 1,
    text_encoder: Path | None = None,
) -> Checkpoint:
    """Return the loaded model, ready to be used; float32 on a CPU, bfloat16 on a GPU.

    Args:
        folder: of the model.
        half: what will be used; the weights of the other half are released.
        device: torch device, None for cuda where there is one.
        threads: CPU threads of torch in this process.
        text_encoder: CLIP folder, to give CLIP relevance too.

    Raises:
        ServeSetupError: the folder's weights or the text encoder cannot be loaded.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    from m3model import M3ForConditionalGeneration, M3Processor
    from m3model.engine.recipe import answering_device, answering_dtype
    from m3model.relevance.choice import relevance_sources

    disable_progress_bar()  # a server's stderr is a log
    place = answering_device(device)
    if place == "cpu":
        torch.set_num_threads(threads)
    dtype = getattr(torch, answering_dtype(place))
    try:
        model: Any = M3ForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa"
        )
        processor = M3Processor.from_pretrained(folder)
        model = model.to(place).eval()
        sources = {} if half == "generator" else relevance_sources(model, folder, text_encoder)
    except Exception as error:  # loaders of damaged files raise all kinds
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ServeSetupError(f"the model in {folder} cannot be loaded: {line}") from error
    if half == "encoder":
        # The embedding table stays: the question's embedding is a feature. Of the first layer only
        # what the relevance sources hold stays.
        model.model.language_model.layers = torch.nn.ModuleList()
        model.lm_head = torch.nn.Identity()
    elif half == "generator":
        model.model.vision_tower = torch.nn.Identity()
        model.model.multi_modal_projector = torch.nn.Identity()
    return Checkpoint(model, processor, sources, place, folder)


def start_engine(
    settings: ServeSettings, checkpoint: Checkpoint | None = None
) -> tuple[Engine, M3Processor]:
    """Return the running engine that the settings name, and the model's processor.

    Args:
        settings: of the service.
        checkpoint: loaded already, with both halves; else the generator's half is loaded, where
            this process is to generate.

    Raises:
        ServeSetupError: the weights cannot be loaded, or vLLM does not start.
    """
    from m3model import LocalEngine

    folder = settings.model_path()
    if settings.engine == "vllm":
        return _start_vllm(settings, folder)
    checkpoint = checkpoint or load_checkpoint(
        folder, half="generator", device=settings.device, threads=settings.torch_threads
    )
    engine = LocalEngine(checkpoint.model, checkpoint.processor, kv_tokens=settings.kv_tokens)
    return engine, checkpoint.processor


def _start_vllm(settings: ServeSettings, folder: Path) -> tuple[Engine, M3Processor]:
    from m3model import M3Processor
    from m3model.engine.recipe import answering_device, answering_dtype
    from m3model.engine.vllm.engine import VllmEngine
    from m3model.errors import EngineUnavailable

    assert settings.vllm_python is not None
    kind, _, index = answering_device(settings.device).partition(":")
    if index not in ("", "0"):
        raise ServeSetupError(
            f"device: {settings.device}: vLLM takes the GPUs of CUDA_VISIBLE_DEVICES; set that "
            f"and device: {kind}"
        )
    processor = M3Processor.from_pretrained(folder)
    try:
        engine = VllmEngine(
            folder, processor, python=settings.vllm_python, device=kind,
            dtype=answering_dtype(kind), kv_tokens=settings.kv_tokens,
            options=settings.vllm_options,
        )  # fmt: skip
    except EngineUnavailable as error:
        raise ServeSetupError(str(error)) from error
    return engine, processor


def spare_what_is_loaded() -> None:
    """Keep the garbage collector from reading what is loaded, which stays to the end.

    Half a million objects of torch and transformers take it a quarter of a second, in which nobody
    is answered, each time that many new ones have been made. For processes that are ours.
    """
    gc.collect()
    gc.freeze()
