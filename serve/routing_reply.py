"""The `routing` object of a reply: what was read of the pictures, why, and what it rests on.

Knows JSON shapes; knows nothing of models, routers or HTTP.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from router.explanation import Explanation


def is_none(value: object) -> bool:
    """Return whether a field is left out."""
    return value is None


class Certified(BaseModel):
    """The bound a decision keeps; ``delta`` 0, ``price`` null: the finest scale, nothing lost."""

    bound: Literal["harm"] = "harm"
    max_harm: float
    delta: float
    price: float | None


class Focused(BaseModel):
    """A picture read coarsely all over, and finely in the cells that the question is about."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    coarse: int
    """Scale of the whole picture."""
    fine: int
    """Level of the fine tokens. A cell is a square of 2x2 of them."""
    cells: list[int]
    """The cells, numbered row by row from 0 over the picture, padded to a square."""
    visual_tokens: int
    """Of this reading alone: coarse ones, and four for each cell."""


class SecondLooked(BaseModel):
    """The answer that was not good enough, and what both looks read."""

    model_config = ConfigDict(serialize_by_alias=True, use_attribute_docstrings=True)

    first_scale: int = Field(alias="from")
    """Its scale."""
    confidence: float
    """How sure the model was of it: the product of its tokens' probabilities."""
    first_visual_tokens: int
    """Visual tokens of the first look."""
    second_visual_tokens: int
    """Visual tokens of the second; ``routing.visual_tokens`` is the sum."""
    focus: Focused | None = Field(None, exclude_if=is_none)
    """What the first one read finely, where it did."""


class Routing(BaseModel):
    """How a reading was chosen; a top-level field of every answer."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    scale: int
    """Of the answer; after a second look the second one; of several pictures the finest; beside a
    ``focus`` that of the whole picture."""
    scales: list[int]
    """Of each picture, in the order of the request; empty without one."""
    action: str | None = Field(None, exclude_if=is_none)
    """What the one picture was read by, as ``p_suffices`` names it: its scale, or the name of a
    focus; after a second look the second one's. Left out of several pictures and of none."""
    visual_tokens: int
    """Read in all; after a second look by both."""
    reason: str
    """predicted, pinned (scale or model id), detail (of every picture), budget_cap (something else
    was wanted and fits neither cap nor context), no_image, unfamiliar (a question in a script or
    in words that router or model never met: the finest scales allowed), degraded (overload: a
    raised price, no second look), restricted (the router is held to a safer price, or to the
    finest scales allowed, until it is certified anew or replaced), or fallback (routing failed: the
    finest scales allowed)."""
    p_suffices: dict[str, float] | None
    """Scale, or name of a focus -> probability that its answer suffices, the mean over pictures;
    null where nothing was predicted. Each picture's own are in ``explain``."""
    router_version: str | None
    """Which router decided; null: none."""
    latency_ms: float
    """Features and decision."""
    focus: Focused | None = Field(None, exclude_if=is_none)
    """What of the picture was read finely, where it was not read at one scale all over."""
    explain: Explanation | None = Field(None, exclude_if=is_none)
    """Where ``explain`` asked for it."""
    certified: Certified | None = Field(None, exclude_if=is_none)
    """The bound that is kept, where ``max_harm`` asked for one."""
    second_look: SecondLooked | None = Field(None, exclude_if=is_none)
    """The first answer, where there were two."""
    price: float | None = Field(None, exclude_if=is_none)
    """The price in force, where it was raised and changed the choice: ``reason`` degraded."""
