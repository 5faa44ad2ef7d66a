"""Generated scenes as a source: their questions as the oracle asks them, in one wording or two.

Keeps with each question what only the generator knows: size, clutter and the target's true mask.
Knows scenes and asks; does not know models, scales or files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from training.errors import TrainingError
from training.sources.target_cells import METADATA_KEY, target_cells
from training.sources.tasks import Ask, PictureTask, SourceKind

if TYPE_CHECKING:
    from training.scenes.scene import Scene

SCENE_SEEDS = 1_000_000  # scene seeds per collect seed: two seeds never share a scene
MAX_REPEATS = 2


def asks_of(scene: Scene, name: str) -> tuple[Ask, ...]:
    """Return every question of a scene; ids are ``name`` and the question's position."""
    foreground = scene.instance > 0
    return tuple(
        Ask(
            question=question.text,
            reference=question.answer,
            question_id=f"{name}-{position}",
            kind=question.kind,
            dataset="scenes",
            size_px=None if question.size_px is None else float(question.size_px),
            metadata={
                "clutter": _plain(question.clutter),
                "target_share": float(question.target.mean()),
                METADATA_KEY: target_cells(question.target, foreground),
            },
        )
        for position, question in enumerate(scene.questions)
    )


def repeats_of(scene: Scene, asks: tuple[Ask, ...]) -> tuple[Ask, ...]:
    """Return every question of a scene in its other wording.

    Each names in ``metadata["repeat_of"]`` the question that it repeats.
    """
    return tuple(
        replace(
            ask,
            question=question.again,
            question_id=f"{ask.question_id}-again",
            metadata={**ask.metadata, "repeat_of": ask.question_id},
        )
        for ask, question in zip(asks, scene.questions, strict=True)
    )


def _plain(value: Any) -> float | int | str | None:
    if value is None or isinstance(value, int | float | str):
        return value
    return float(value)


@dataclass(frozen=True)
class SceneSource:
    """``count`` generated scenes; scene i of seed s is always the same one.

    ``repeats``: wordings each question is asked in. A repeat names the question that it repeats
    in ``metadata["repeat_of"]``; it says how much of an outcome is luck, and trains nothing.
    """

    count: int
    seed: int
    namespace: str = "collect"
    kind: SourceKind = "scenes"
    repeats: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.count <= SCENE_SEEDS:
            raise TrainingError(f"--scenes must be between 1 and {SCENE_SEEDS}, got {self.count}")
        if self.seed < 0:
            raise TrainingError(f"--seed must not be negative, got {self.seed}")
        if not 1 <= self.repeats <= MAX_REPEATS:
            raise TrainingError(f"--repeats must be 1 or {MAX_REPEATS}, got {self.repeats}")

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> PictureTask:
        """Return scene ``index`` with its questions, metadata included."""
        from training.scenes.scene import generate_scene

        scene = generate_scene(self.seed * SCENE_SEEDS + index, namespace=self.namespace)
        name = f"{self.namespace}-{self.seed}-{index}"
        asks = asks_of(scene, name)
        if self.repeats > 1:
            asks += repeats_of(scene, asks)
        return PictureTask(name, np.ascontiguousarray(scene.image), asks)

    def parameters(self) -> dict[str, Any]:
        """Return the count, the seed and the namespace, and the repeats where there are any."""
        left_out = {"kind"} if self.repeats > 1 else {"kind", "repeats"}
        return {"source": "scenes", **{k: v for k, v in asdict(self).items() if k not in left_out}}

    def notes(self) -> list[str]:
        """Return nothing: every scene is used."""
        return []
