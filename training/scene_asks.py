"""The questions of a generated scene as the oracle asks them, once or in several wordings.

Keeps with each question what only the generator knows: size, clutter and the target's true mask.
Knows scenes and asks; does not know models, scales or files.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from training.rewording import reword
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


def again(asks: tuple[Ask, ...], wordings: int, *, seed: int) -> tuple[Ask, ...]:
    """Return every question in ``wordings`` - 1 other wordings, fewer where there are no more.

    Each names in ``metadata["repeat_of"]`` the question that it repeats.
    """
    rng = np.random.default_rng(seed)
    taken = {ask.question for ask in asks}
    found = []
    for ask in asks:
        for number in range(1, wordings):
            said = reword(rng, ask.kind, ask.question, taken)
            if said is None:
                break
            taken.add(said)
            found.append(
                replace(
                    ask,
                    question=said,
                    question_id=f"{ask.question_id}-again{number}",
                    metadata={**ask.metadata, "repeat_of": ask.question_id},
                )
            )
    return tuple(found)


def _plain(value: Any) -> float | int | str | None:
    if value is None or isinstance(value, int | float | str):
        return value
    return float(value)
