"""Optimiser of m3-mini: fp32 masters of a low-precision model, Muon on matrices, AdamW on the rest.

The model itself runs in bf16 or fp32, and so do Muon's products; masters, moments and updates stay
fp32, so a run may resume in the other one. Everything it needs is a flat dictionary of tensors
(safetensors, never pickle).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from training.files import replacing

BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.03
CLIP_NORM = 1.0
MOMENTUM = 0.95
NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS = (3.4445, -4.7750, 2.0315), 5


class Muon(torch.optim.Optimizer):
    """The steps of ``torch.optim.Muon``, whose products are bf16 always; here in a dtype of choice.

    With ``adjust_lr_fn="match_rms_adamw"`` and Nesterov momentum; in bf16 equal to it bit for bit.

    Args:
        params: matrices.
        dtype: that the Newton-Schulz products are taken in.
    """

    def __init__(self, params: list[Tensor], dtype: torch.dtype, weight_decay: float) -> None:
        super().__init__(params, {"lr": 0.0, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Update every matrix by its gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                buffer = state["momentum_buffer"]
                buffer.lerp_(matrix.grad, 1 - MOMENTUM)
                update = orthogonal(matrix.grad.lerp(buffer, MOMENTUM), self.dtype)
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(matrix.shape)))


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Return about the nearest matrix with orthogonal rows or columns, by Newton-Schulz steps."""
    linear, cubic, quintic = NEWTON_SCHULZ
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype, copy=True)
    x = x.T if is_tall else x
    x.div_(x.norm().clamp(min=1e-7))
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        gram = torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic)
        x = torch.addmm(x, gram, x, beta=linear)
    return x.T if is_tall else x


class MasterOptimizer:
    """Steps an fp32 model with the gradients of its copy in another dtype, or the same.

    Args:
        master: fp32 model; it holds the truth and is what is saved.
        model: the same architecture in the dtype that computes; refreshed after each step.
        dtype: that dtype.
    """

    def __init__(self, master: nn.Module, model: nn.Module, dtype: torch.dtype) -> None:
        self.named = [(n, p) for n, p in master.named_parameters() if p.requires_grad]
        self.copies = [dict(model.named_parameters())[name] for name, _ in self.named]
        matrices = {
            n for n, p in self.named if p.ndim == 2 and (".layers." in n or "projector" in n)
        }
        rest = [(n, p) for n, p in self.named if n not in matrices]
        self.optimizers = {
            "muon": Muon([p for n, p in self.named if n in matrices], dtype, WEIGHT_DECAY),
            "adamw": torch.optim.AdamW(
                [
                    {"params": [p for _, p in rest if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
                    {"params": [p for _, p in rest if p.ndim <= 1], "weight_decay": 0.0},
                ],
                betas=BETAS,
            ),
        }

    def step(self, learning_rate: float, world_size: int) -> float:
        """Average the copy's gradients over workers, clip, update, refresh; return their norm."""
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.copies]
        flat = torch.cat([g.float().reshape(-1) for g in grads])
        if world_size > 1:
            torch.distributed.all_reduce(flat)
            flat /= world_size
        norm = float(flat.norm())
        flat *= min(1.0, CLIP_NORM / (norm + 1e-6))
        parts = flat.split([p.numel() for p in self.copies])
        for (_, master), copy, part in zip(self.named, self.copies, parts, strict=True):
            master.grad = part.view(master.shape)
            copy.grad = None
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
        self.refresh()
        return norm

    @torch.no_grad()
    def refresh(self) -> None:
        """Write the masters into the copy."""
        for (_, master), copy in zip(self.named, self.copies, strict=True):
            copy.copy_(master)

    def state(self) -> dict[str, Tensor]:
        """Return masters and moments as contiguous tensors by name."""
        tensors = {f"master.{name}": p.detach() for name, p in self.named}
        for kind, optimizer in self.optimizers.items():
            for index, entry in optimizer.state_dict()["state"].items():
                for key, value in entry.items():
                    tensors[f"{kind}.{index}.{key}"] = torch.as_tensor(value)
        return {key: value.contiguous() for key, value in tensors.items()}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take up what ``state`` returned, and refresh the copy."""
        for name, p in self.named:
            p.copy_(tensors[f"master.{name}"])
        for kind, optimizer in self.optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                family, _, tail = key.partition(".")
                if family == kind:
                    index, _, field = tail.partition(".")
                    state.setdefault(int(index), {})[field] = value
            optimizer.load_state_dict(
                {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
            )
        self.refresh()


class Checkpoint:
    """The resumable state of a run: ``<out>/checkpoint/state.safetensors``, replaced atomically."""

    def __init__(self, out: Path) -> None:
        self.tensors = out / "checkpoint" / "state.safetensors"

    def save(self, optimizer: MasterOptimizer, progress: dict) -> None:
        """Write masters, moments and the place in the run."""
        from safetensors.torch import save_file

        self.tensors.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.tensors) as temporary:
            save_file(optimizer.state(), temporary, metadata={"progress": json.dumps(progress)})

    def load(self) -> tuple[dict[str, Tensor], dict] | None:
        """Return (tensors, progress) of the last save, or None."""
        from safetensors import safe_open

        if not self.tensors.exists():
            return None
        with safe_open(str(self.tensors), "pt") as file:
            names = file.offset_keys()
            return {n: file.get_tensor(n) for n in names}, json.loads(file.metadata()["progress"])
