"""M3 training of a checkpoint on LLaVA-format data: encode once, loss averaged over every scale.

With ``focus`` half of the loss is that of one random cut a picture (``training.finetune.focus``).

Official M3 training runs the vision tower once per scale and holds every scale's graph until the
backward pass. Here the tower runs once a step; each scale's loss is taken back to a detached copy
of the patch grid before the next scale begins, and what gathers there goes through projector and
tower in one last step. The gradients are the same; one language-model graph is held at a time. A
cut is one more such reading.

Knows Hugging Face's Trainer and the model; does not know routers or oracle data.
Several GPUs: ``accelerate launch -m training.cli model --init ...``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from m3model import Focus, M3Config, M3ForConditionalGeneration, M3Processor, RelevanceReadout
from m3model.relevance.choice import relevance_name
from training.cuts import level_shares
from training.errors import BadRecord, TrainingError
from training.finetune.conversations import LlavaDataset, collate
from training.finetune.focus import CutDraw
from training.sources.llava import count_bad, read_llava

# A focus for each picture, and labels for the calls that read them so.
Cuts = Callable[[Any, torch.Tensor, dict[str, Any]], tuple[list[Focus], torch.Tensor]]
CUT_SHARE = 0.5  # of the loss


@dataclass(frozen=True)
class FinetuneJob:
    """What to train, on what, how; the defaults are the official ones (1 epoch, 2e-5, cosine)."""

    init: Path
    data: Path
    images: Path
    out: Path
    epochs: float = 1.0
    max_steps: int = -1
    batch_size: int = 4
    accumulate: int = 1
    lr: float = 2e-5
    warmup: float = 0.03
    max_length: int = 2048
    seed: int = 0
    save_steps: int = 500
    gradient_checkpointing: bool = False
    freeze_vision: bool = False
    focus: bool = False
    hold_all_graphs: bool = False
    workers: int = 2
    skip_bad: bool = False
    device: str | None = None


def multi_scale_loss(
    model: Any, batch: dict[str, Any], unwrapped: Any = None, cuts: Cuts | None = None
) -> torch.Tensor:
    """Return the mean over all scales of the answer loss, all graphs held; one vision pass.

    Args:
        model: what is called for the loss (a data-parallel wrapper, or the model itself).
        unwrapped: the model itself where ``model`` is a wrapper.
        cuts: draws a cut for each picture, whose loss makes up half of what is returned.
    """
    own, text = model if unwrapped is None else unwrapped, _text(batch)
    if "pixel_values" not in batch:
        return _loss(model, text)
    grid = own.encode_images(batch["pixel_values"])
    total = torch.zeros((), device=grid.device)
    for reading, share in _readings(own, grid, batch, cuts):
        total = total + share * _loss(model, text | reading, grid)
    return total


def multi_scale_backward(
    model: Any,
    batch: dict[str, Any],
    backward: Callable[[torch.Tensor], None],
    weight: float = 1.0,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    cuts: Cuts | None = None,
) -> torch.Tensor:
    """Return the same loss, detached, with ``weight`` times its gradient already added up.

    One reading's graph is alive at a time: each is taken back to the grid before the next begins.
    """
    text = _text(batch)
    if "pixel_values" not in batch:
        with autocast():
            loss = _loss(model, text)
        backward(loss * weight)
        return loss.detach()
    with autocast():
        grid = model.encode_images(batch["pixel_values"])
    leaf = grid.detach().requires_grad_(grid.requires_grad)
    total = torch.zeros((), device=grid.device)
    for reading, share in _readings(model, grid, batch, cuts):
        with autocast():
            loss = _loss(model, text | reading, leaf)
        backward(loss * (weight * share))
        total += loss.detach().float() * share
    if leaf.grad is not None:
        # A plain backward: any loss scaling is already in what gathered here.
        grid.backward(leaf.grad)
    return total


def _readings(
    model: Any, grid: torch.Tensor, batch: dict[str, Any], cuts: Cuts | None
) -> list[tuple[dict[str, Any], float]]:
    """Return what differs in each call of a step, and the call's share of the loss."""
    scales = list(model.config.scales)
    uniform = 1.0 if cuts is None else 1.0 - CUT_SHARE
    readings: list[tuple[dict[str, Any], float]]
    readings = [({"scale": scale}, uniform / len(scales)) for scale in scales]
    if cuts is not None:
        foci, labels = cuts(model, grid, batch)
        readings.append(({"scale": foci, "labels": labels}, CUT_SHARE))
    return readings


def _text(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}


def _loss(model: Any, call: dict[str, Any], grid: torch.Tensor | None = None) -> torch.Tensor:
    loss: torch.Tensor = model(**call, **({} if grid is None else {"image_grids": grid})).loss
    return loss


class M3Trainer(Trainer):
    """Hugging Face's Trainer with the loss of M3."""

    def __init__(
        self,
        *args: Any,
        hold_all_graphs: bool = False,
        cut_draw: CutDraw | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._cut_draw = cut_draw
        # The loss is a mean over label tokens of the micro-batch, as in the official code.
        self.model_accepts_loss_kwargs = False
        self._hold_all_graphs = hold_all_graphs

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        """Return the mean of the scales' losses, with what the cuts add."""
        own = self.accelerator.unwrap_model(model)
        with self.accelerator.autocast():
            loss = multi_scale_loss(model, inputs, own, self._cuts())
        return (loss, {}) if return_outputs else loss

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the step's loss; gradients are added up scale by scale where one process trains.

        Data-parallel wrappers exchange gradients during one backward pass, so several processes
        take the ordinary way, which holds all graphs.
        """
        if self._hold_all_graphs or self.accelerator.num_processes > 1:
            return super().training_step(model, inputs, *args, **kwargs)
        model.train()
        batch = self._prepare_inputs(inputs)
        weight = 1.0 / self.current_gradient_accumulation_steps
        loss = multi_scale_backward(
            model, batch, self.accelerator.backward, weight, self.accelerator.autocast, self._cuts()
        )
        return loss * weight

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load what ``save_pretrained`` wrote.

        It writes tensors under LLaVA's published names. The Trainer looks for the names in memory,
        warns, and would go on with the language model that the run began with.
        """
        if model is not None or not any(Path(resume_from_checkpoint).glob("model*.safetensors")):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved: Any = M3ForConditionalGeneration.from_pretrained(
            resume_from_checkpoint, dtype=torch.float32
        )
        self.model.load_state_dict(saved.state_dict())

    def _cuts(self) -> Cuts | None:
        if self._cut_draw is None:
            return None
        return partial(self._cut_draw.draw, step=self.state.global_step)


class _Report(TrainerCallback):  # type: ignore[misc]
    def __init__(self, report: Callable[[int, int, float | None], None]) -> None:
        self._report = report

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero:
            self._report(state.global_step, state.max_steps, (logs or {}).get("loss"))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self._report(state.global_step, state.max_steps, None)


def finetune(
    job: FinetuneJob,
    *,
    report: Callable[[int, int, float | None], None] = lambda step, steps, loss: None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train, write the model folder to ``job.out`` and return it; a run that was cut off goes on.

    Raises:
        TrainingError: nothing to train on, or bad data.
    """
    read = read_llava(job.data, job.images, skip_bad=job.skip_bad)
    count_bad(read.bad, say)
    if not read.records:
        raise TrainingError(f"{job.data} holds no usable record")
    if not (job.init / "config.json").is_file():
        raise TrainingError(f"{job.init} is not a model folder: it has no config.json")
    processor = M3Processor.from_pretrained(job.init)
    # Half-precision weights would swallow updates of 2e-5: they are kept in fp32 while training.
    stored = M3Config.from_pretrained(job.init).dtype
    model: Any = M3ForConditionalGeneration.from_pretrained(job.init, dtype=torch.float32)
    model.config.use_cache = False
    cut_draw = _cut_draw(job, model.config.scales, say) if job.focus else None
    on_gpu = torch.cuda.is_available() and job.device != "cpu"
    if job.freeze_vision:
        model.model.vision_tower.requires_grad_(False)
    arguments = TrainingArguments(
        output_dir=str(job.out / "checkpoints"),
        num_train_epochs=job.epochs,
        max_steps=job.max_steps,
        per_device_train_batch_size=job.batch_size,
        gradient_accumulation_steps=job.accumulate,
        learning_rate=job.lr,
        lr_scheduler_type="cosine",
        warmup_steps=job.warmup,
        weight_decay=0.0,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        activation_checkpointing=job.gradient_checkpointing,
        activation_checkpointing_kwargs=(
            {"use_reentrant": False} if job.gradient_checkpointing else None
        ),
        remove_unused_columns=False,
        dataloader_num_workers=job.workers,
        save_steps=job.save_steps,
        save_total_limit=2,
        logging_steps=10,
        seed=job.seed,
        report_to=[],
        disable_tqdm=True,
        # A batch of text alone leaves the vision tower out, and layers behind the feature layer
        # are never used: data parallelism must expect that.
        ddp_find_unused_parameters=True,
    )
    # Several GPUs mean several processes (accelerate launch), never threads over one model.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    trainer = M3Trainer(
        model=model,
        args=arguments,
        train_dataset=LlavaDataset(read.records, processor, job.max_length),
        data_collator=collate,
        callbacks=[_Report(report)],
        hold_all_graphs=job.hold_all_graphs,
        cut_draw=cut_draw,
    )
    trainer.remove_callback(PrinterCallback)  # progress is reported, not printed
    found = sorted((job.out / "checkpoints").glob("checkpoint-*"))
    if found:
        say(f"going on from {max(found, key=lambda p: int(p.name.split('-')[-1])).name}")
    try:
        trainer.train(resume_from_checkpoint=bool(found))
    except BadRecord as error:
        # A loader process wraps its error in a traceback; what it says stands in the last line.
        line = str(error).strip().splitlines()[-1]
        raise BadRecord(line.removeprefix("training.errors.BadRecord: ")) from None
    model.config.use_cache = True
    if trainer.is_world_process_zero():
        # Not save_model: it adds training_args.bin, a pickle, to the folder that is served.
        trained = trainer.accelerator.unwrap_model(trainer.model)
        trained.to(stored or torch.float32).save_pretrained(job.out)
        processor.save_pretrained(job.out)
        if RelevanceReadout.from_pretrained(job.init) is not None:
            say("the relevance readout was trained on the old patches and is not carried over")
    return job.out


def _cut_draw(job: FinetuneJob, scales: list[int], say: Callable[[str], None]) -> CutDraw:
    """Return how pictures are cut.

    Raises:
        TrainingError: the checkpoint's scales leave no room for a cut.
    """
    try:
        level_shares(scales)
    except ValueError as error:
        raise TrainingError(f"--focus: {error}") from error
    say(f"cuts follow the relevance of {relevance_name(job.init)}")
    return CutDraw.of(job.init, job.seed)
