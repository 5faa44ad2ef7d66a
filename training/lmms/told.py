"""What is kept with every answer of a run, in the one place of a sample that models may fill.

lmms-eval writes a model's token counts into its sample files as the model gives them: beside the
counts stand the visual tokens, and under ``m3`` what an import needs and a sample has not: which
picture it was, what was asked, how sure the answer is and whose it is. Knows JSON; knows nothing of
models, runs or lmms-eval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEY = "m3"


@dataclass(frozen=True)
class Told:
    """``wish`` is the run's: a scale, a focus or "auto"; ``actions`` what was read of each picture;
    ``visual_tokens`` those of the question, both looks where there were two; ``picture_ids`` as in
    `router.records`; ``confidence`` the likelihood of the answer with its end token; ``recipe`` as
    in `m3model.engine.recipe`; ``messages`` the conversation as the processor takes it.
    """

    wish: str
    actions: tuple[str, ...]
    visual_tokens: int
    picture_ids: tuple[str, ...]
    confidence: float
    recipe: str
    messages: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """Return what stands beside the counts."""
        kept = {
            "wish": self.wish,
            "actions": list(self.actions),
            "picture_ids": list(self.picture_ids),
            "confidence": self.confidence,
            "recipe": self.recipe,
            "messages": list(self.messages),
        }
        return {"visual_tokens": self.visual_tokens, KEY: kept}

    @classmethod
    def from_json(cls, counts: Mapping[str, Any]) -> Told:
        """Return what `to_json` made.

        Raises:
            ValueError: it is not there, or damaged.
        """
        kept = counts.get(KEY)
        if not isinstance(kept, dict):
            raise ValueError("the model told nothing of pictures")
        try:
            told = cls(
                wish=str(kept["wish"]),
                actions=tuple(map(str, kept["actions"])),
                visual_tokens=int(counts["visual_tokens"]),
                picture_ids=tuple(map(str, kept["picture_ids"])),
                confidence=float(kept["confidence"]),
                recipe=str(kept["recipe"]),
                messages=tuple(dict(message) for message in kept["messages"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"what the model told is damaged: {error!r}") from error
        if not 0.0 <= told.confidence <= 1.0:
            raise ValueError(f"a confidence of {told.confidence}")
        return told
