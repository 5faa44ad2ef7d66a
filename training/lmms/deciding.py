"""How finely each picture of a question is read: at one scale, at one focus, or as a router says.

Knows readings and routers; knows nothing of tasks or answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from m3model.engine.recipe import model_of
from router.actions import ActionSpace, Reading
from router.decision import Constraints
from router.router import Router
from router.second_look import OpenLook
from training.errors import TrainingError
from training.lmms.encoding import PictureEncoder, SeenPicture

AUTO = "auto"


@dataclass(frozen=True)
class Chosen:
    """What is read of each picture, and what may ask for more once the answer is known."""

    readings: tuple[Reading, ...]
    look: OpenLook | None = None


class Chooser(Protocol):
    """Says what is read."""

    @property
    def name(self) -> str:
        """Return what a run with it is called in its samples."""

    def choose(
        self,
        encoder: PictureEncoder,
        pictures: Sequence[SeenPicture],
        question: str,
        room: int,
        look: bool,
    ) -> Chosen:
        """Return what is read for a question.

        Args:
            room: visual tokens that the conversation leaves room for.
            look: whether a second look may follow.

        Raises:
            TrainingError, RoutingError: it cannot be read so.
        """


@dataclass(frozen=True)
class AtScale:
    """Every picture whole, at one scale."""

    scale: int

    @property
    def name(self) -> str:
        """Its number."""
        return str(self.scale)

    def choose(
        self,
        encoder: PictureEncoder,
        pictures: Sequence[SeenPicture],
        question: str,
        room: int,
        look: bool,
    ) -> Chosen:
        """Return that scale for each picture."""
        return Chosen((Reading.uniform(self.scale),) * len(pictures))


@dataclass(frozen=True)
class AtFocus:
    """The one picture at a focus: coarse, with those cells fine that the question points to."""

    space: ActionSpace
    name: str

    def choose(
        self,
        encoder: PictureEncoder,
        pictures: Sequence[SeenPicture],
        question: str,
        room: int,
        look: bool,
    ) -> Chosen:
        """Return the focus on what the question is about."""
        if not pictures:
            return Chosen(())
        if len(pictures) > 1:
            raise TrainingError(
                f"a focus reads one picture, this question shows {len(pictures)}: "
                "run the task at a scale or with scale=auto"
            )
        plan = self.space.plan(encoder.relevance(pictures[0], question))
        return Chosen((self.space.reading(self.space.index(self.name), plan),))


@dataclass(frozen=True)
class Routed:
    """As a router decides, with a second look where it has one: what the service does."""

    router: Router
    name: str = AUTO

    def choose(
        self,
        encoder: PictureEncoder,
        pictures: Sequence[SeenPicture],
        question: str,
        room: int,
        look: bool,
    ) -> Chosen:
        """Return the router's decision, within the room that the conversation leaves."""
        if not pictures:
            return Chosen(())
        maps = [encoder.relevance(picture, question) for picture in pictures]
        rows = [
            encoder.features(picture, question, found)
            for picture, found in zip(pictures, maps, strict=True)
        ]
        one, space = len(pictures) == 1, self.router.space
        known = self.router.knows(question) and encoder.reads(question)
        route = partial(
            self.router.route,
            np.stack(rows),
            plan=space.plan(maps[0]) if one and not space.is_uniform else None,
            unfamiliar=not known,
        )
        free = Constraints(second_look=look and one)
        decision = route(free)
        if decision.visual_tokens > room:
            decision = route(replace(free, max_visual_tokens=room))
        return Chosen(decision.readings, decision.open_look)


def check_router(router: Router, folder: Path, encoder: PictureEncoder) -> None:
    """Return if a router was fitted on the answers and features of the loaded model.

    Raises:
        TrainingError: it was not, or for other features.
    """
    here = {"model_hash": encoder.model_hash, "label_recipe": model_of(encoder.recipe)}
    for key, mine in here.items():
        told = router.metadata.get(key)
        if told is not None and model_of(str(told)) != mine:
            raise TrainingError(
                f"the router {folder} was fitted on the answers of another model ({key} {told}, "
                f"{encoder.folder} has {mine}): give the router of this model"
            )
    if router.schema.hash != encoder.schema.hash or tuple(router.scales) != encoder.scales:
        raise TrainingError(
            f"the router {folder} was fitted on other features or scales than {encoder.folder} "
            "gives: fit one on its answers (m3-train collect, fit)"
        )
