"""The questions of a generated scene as the oracle asks them, in one wording or in two.

Keeps with each question what only the generator knows: size, clutter and the target's true mask.
Knows scenes and asks; does not know models, scales or files.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from training.sources import Ask
from training.target_cells import METADATA_KEY, target_cells

if TYPE_CHECKING:
    from training.scenes import Scene


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
