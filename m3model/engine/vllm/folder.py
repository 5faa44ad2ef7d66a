"""What a vLLM process loads: a model folder as stock LLaVA, and its plugin, by links alone.

Our checkpoints are stock LLaVA weights under a config of their own kind, so nothing is converted
and no byte of a weight is written. It knows file names; nothing of processes.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers import GenerationConfig

from m3model.config import M3Config
from m3model.engine.vllm.m3_vllm.plugin import ARCHITECTURE
from m3model.errors import EngineUnavailable

PLUGIN = "m3_vllm"
_NOT_LINKED = ("config.json", "processor_config.json")


def stock_folder(model: Path, into: Path) -> Path:
    """`into`, a LLaVA checkpoint that links to the files of the model folder.

    Raises:
        EngineUnavailable: there are no weights that vLLM could read.
    """
    weights = sorted(model.glob("model*.safetensors"))
    if not weights:
        raise EngineUnavailable(
            f"{model} holds no model*.safetensors, and vLLM reads nothing else here; "
            "convert the checkpoint with python -m m3model.convert"
        )
    into.mkdir()
    beside = [path for path in model.iterdir() if path.is_file() and path.suffix != ".safetensors"]
    for path in [*weights, *beside]:
        if path.name not in _NOT_LINKED:
            (into / path.name).symlink_to(path.resolve())
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    whole = M3Config.from_pretrained(model)
    config.update(
        model_type="llava", architectures=[ARCHITECTURE], text_vocab_size=whole.text_vocab_size
    )
    _write(into / "config.json", config)
    processor = {
        "processor_class": "LlavaProcessor", "image_token": "<image>",
        "patch_size": whole.vision_config.patch_size, "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": whole.vision_feature_select_strategy,
    }  # fmt: skip
    _write(into / "processor_config.json", processor)
    return into


def plugin_folder(into: Path) -> Path:
    """`into`, to be put on a Python path: the plugin, installed as far as entry points go."""
    told = into / f"{PLUGIN}-1.dist-info"
    told.mkdir(parents=True)
    (into / PLUGIN).symlink_to(Path(__file__).resolve().parent / PLUGIN)
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PLUGIN}\nVersion: 1\n")
    (told / "entry_points.txt").write_text(
        f"[vllm.general_plugins]\n{PLUGIN} = {PLUGIN}.plugin:register\n"
    )
    return into


def end_ids_of(model: Path, config: M3Config) -> frozenset[int]:
    """The tokens that end an answer, as the loaded model would say."""
    ends = None
    if (model / "generation_config.json").is_file():
        ends = GenerationConfig.from_pretrained(model).eos_token_id
    ends = config.text_config.eos_token_id if ends is None else ends
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
