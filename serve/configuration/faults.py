"""What is wrong in a configuration, and at which key: paths, suggestions, sentences.

Knows pydantic models, of this service and of Ray alike; knows nothing of files. Unknown keys are
looked for in the models' fields, because Ray's models accept them without a word.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

Place = tuple[str | int, ...]  # keys and numbers of list items, from the top
Model = type[BaseModel]
FEW = 8  # so many known keys are listed where none is close
MOST_SHOWN = 60  # characters of a wrong value


@dataclass(frozen=True)
class Fault:
    """Something wrong at one place."""

    place: Place
    sentence: str

    def __str__(self) -> str:
        path = ".".join(map(str, self.place))
        return f"{path}: {self.sentence}" if path else self.sentence

    def below(self, place: Place) -> Fault:
        """Return the same of a value that lies at a place."""
        return Fault((*place, *self.place), self.sentence)


def unknown(place: Place, known: Sequence[str], kind: str = "key") -> Fault:
    """Return that the last part of a place is none of those known, and which may be meant."""
    close = get_close_matches(str(place[-1]), known, 1)
    if close:
        return Fault(place, f"unknown {kind}; did you mean {close[0]}?")
    listed = f"; known here: {', '.join(known)}" if len(known) <= FEW else ""
    return Fault(place, f"unknown {kind}{listed}")


def unknown_keys(models: Sequence[Model], value: Any, place: Place = ()) -> Iterator[Fault]:
    """Yield the keys, at any depth, that none of the models has a field for."""
    for models_here, mapping, where in sub_models(models, value, place):
        known = {name for model in models_here for name in names_of(model)}
        for key in mapping:
            if key not in known:
                yield unknown((*where, key), sorted(known))


def sub_models(
    models: Sequence[Model], value: Any, place: Place = ()
) -> Iterator[tuple[list[Model], Mapping[Any, Any], Place]]:
    """Yield the models and every mapping within a value that they are for, from the top down."""
    if not isinstance(value, Mapping) or not models:
        return
    yield list(models), value, place
    for key, inner in value.items():
        annotations = [
            field.annotation
            for model in models
            for name, field in model.model_fields.items()
            if key in (name, field.alias)
        ]
        for annotation in annotations:
            yield from _within(annotation, inner, (*place, key))


def names_of(model: Model) -> list[str]:
    """Return the keys that a model takes."""
    fields = model.model_fields.items()
    return [*(name for name, _ in fields), *(each.alias for _, each in fields if each.alias)]


def wrong_values(error: ValidationError, value: Any) -> list[Fault]:
    """Return what pydantic found, with places of the value instead of pydantic's own."""
    faults = []
    for each in error.errors():
        sentence = each["msg"].removeprefix("Value error, ")
        shown = repr(each["input"])
        if each["type"] == "missing":
            sentence = "missing"
        elif isinstance(each["input"], str | int | float | None) and len(shown) <= MOST_SHOWN:
            sentence += "" if shown in sentence else f", not {shown}"
        faults.append(Fault(_place_in(value, each["loc"]), sentence))
    return faults


def _place_in(value: Any, location: tuple[str | int, ...]) -> Place:
    """Return the parts of pydantic's location that are keys: it also names members of unions."""
    place: list[str | int] = []
    for number, part in enumerate(location):
        entries: Mapping[Any, Any] = dict(enumerate(value)) if isinstance(value, list) else value
        if not isinstance(entries, Mapping):
            break
        if part in entries:
            place.append(part)
            value = entries[part]
        elif number == len(location) - 1:  # what is missing
            place.append(part)
    return tuple(place)


def _within(
    annotation: Any, value: Any, place: Place
) -> Iterator[tuple[list[Model], Mapping[Any, Any], Place]]:
    members = list(_members(annotation))
    if isinstance(value, Mapping):
        yield from sub_models([each for each in members if _is_model(each)], value, place)
    for each in members:
        arguments = get_args(each)
        if isinstance(value, list) and _is_kind(each, list | tuple | Sequence) and arguments:
            for number, inner in enumerate(value):
                yield from _within(arguments[0], inner, (*place, number))
        if isinstance(value, Mapping) and _is_kind(each, dict | Mapping) and len(arguments) == 2:
            for key, inner in value.items():
                yield from _within(arguments[1], inner, (*place, key))


def _members(annotation: Any) -> Iterator[Any]:
    """Yield what an annotation allows, unions and additions taken apart."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        for each in get_args(annotation):
            yield from _members(each)
    elif origin is Annotated:
        yield from _members(get_args(annotation)[0])
    else:
        yield annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_kind(annotation: Any, kinds: Any) -> bool:
    origin = get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, kinds)
