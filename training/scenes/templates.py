"""Wordings of the questions about generated scenes, and every word they can contain.

Several wordings of each kind open like those of others, so that the first words alone do not give
the kind away. Knows nothing of pictures.
"""

from __future__ import annotations

import re

from training.scenes.panels import COLORS, SHAPES

BACKGROUNDS = ("plain", "stripes", "dots", "checks", "noise", "gradient", "photo")
SHAPE_NOUNS = ("shape", "figure", "form", "object")
SYNONYMS = {"circle": "disc", "square": "box", "cross": "plus"}

TEMPLATES: dict[str, tuple[str, ...]] = {
    "color_of": (
        "what {color} is {ref}?",
        "tell me the {color} of {ref}.",
        "{ref} is which {color}?",
        "name the {color} of {ref}.",
        "which {color} does {ref} have?",
        "what is the {color} of {ref}?",
        "look at {ref}: which {color} is it?",
        "what {color} was used for {ref}?",
        "in the picture, {ref} has what {color}?",
    ),
    "shape_of": (
        "what {form} is {ref}?",
        "which {form} does {ref} have?",
        "what is the {form} of {ref}?",
        "name the {form} of {ref}.",
        "{ref} has which {form}?",
        "tell me the {form} of {ref}.",
        "what kind of {form} is {ref}?",
        "look at {ref}: which {form} is it?",
    ),
    "read_word": (
        "what does the {sign} say?",
        "read the {sign}.",
        "what is written on the {sign}?",
        "what can be read on the {sign}?",
        "which letters are on the {sign}?",
        "tell me the text of the {sign}.",
        "what is on the {sign}?",
        "name the letters on the {sign}.",
        "the {sign} says what?",
    ),
    "first_letter": (
        "what is the first letter on the {sign}?",
        "which letter comes first on the {sign}?",
        "what letter does the {sign} begin with?",
        "name the first letter of the {sign}.",
        "tell me the first letter on the {sign}.",
        "the {sign} starts with which letter?",
    ),
    "last_letter": (
        "what is the last letter on the {sign}?",
        "which letter comes last on the {sign}?",
        "what letter does the {sign} end with?",
        "name the last letter of the {sign}.",
        "tell me the last letter on the {sign}.",
        "the {sign} ends with which letter?",
    ),
    "number": (
        "what is the handwritten number?",
        "which number is written by hand?",
        "what number can be read in the picture?",
        "read the number.",
        "which digits are written by hand?",
        "tell me the digits.",
        "what is written by hand?",
        "name the number in the picture.",
        "what number was written here?",
    ),
    "largest": (
        "what {color} is the {big} {noun}?",
        "tell me the {color} of the {big} {noun}.",
        "which {color} does the {big} {noun} have?",
        "the {big} {noun} is which {color}?",
        "name the {color} of the {big} {noun}.",
        "of all {nouns}, what {color} is the {big} one?",
        "look at the {nouns}: which {color} is the {big}?",
    ),
    "tag": (
        "what is written beside {ref}?",
        "what can be read next to {ref}?",
        "which letters are next to {ref}?",
        "read the tag of {ref}.",
        "what is the label of {ref}?",
        "tell me the letters beside {ref}.",
        "what does the tag of {ref} say?",
        "{ref} is labelled with what?",
        "name the label beside {ref}.",
    ),
    "tag_color": (
        "what {color} is the {noun} labelled {tag}?",
        "which {color} does the {noun} with the tag {tag} have?",
        "tell me the {color} of the {noun} labelled {tag}.",
        "the {noun} next to {tag} is which {color}?",
        "name the {color} of the {noun} beside {tag}.",
        "what is the {color} of the {noun} with the label {tag}?",
        "look for {tag}: what {color} is its {noun}?",
    ),
    "tag_extreme": (
        "what is written beside the {big} {noun}?",
        "what can be read next to the {big} {noun}?",
        "read the tag of the {big} {noun}.",
        "what is the label of the {big} {noun}?",
        "tell me the letters beside the {big} {noun}.",
        "the {big} {noun} is labelled with what?",
        "of all {nouns}, the {big} has what label?",
    ),
    "bar_tallest": (
        "what {color} is the {tall} {bar}?",
        "which {bar} is the {tall}?",
        "tell me the {color} of the {tall} {bar}.",
        "the {tall} {bar} of the {chart} is which {color}?",
        "name the {color} of the {tall} {bar} in the {chart}.",
        "in the {chart}, what {color} has the {tall} {bar}?",
        "of all {bars}, which {color} is the {tall}?",
        "which {color} is highest in the {chart}?",
    ),
    "bar_height": (
        "what is the height of {ref}?",
        "how high is {ref}?",
        "how tall is {ref}?",
        "which value does {ref} have?",
        "what value can be read for {ref}?",
        "tell me the height of {ref} in the {chart}.",
        "read the {chart}: how high is {ref}?",
        "name the value of {ref}.",
        "in the {chart}, {ref} has what height?",
    ),
    "count": (
        "how many {nouns} are there?",
        "count the {nouns}.",
        "what is the number of {nouns}?",
        "tell me how many {nouns} can be seen.",
        "how many {nouns} does the picture have?",
        "the picture has how many {nouns}?",
    ),
}  # fmt: skip
TEMPLATES["smallest"] = TEMPLATES["largest"]
FILLERS: dict[str, tuple[str, ...]] = {
    "color": ("color", "color", "colour", "hue"),
    "form": ("shape", "shape", "form", "figure"),
    "sign": ("sign", "sign", "board", "plate"),
    "noun": SHAPE_NOUNS,
    "nouns": ("shapes", "figures", "forms", "objects"),
    "bar": ("bar", "bar", "column"),
    "bars": ("bars", "columns"),
    "chart": ("chart", "graph", "plot"),
    "tall": ("tallest", "highest"),
}
SIZE_WORDS = {"largest": ("largest", "biggest"), "smallest": ("smallest", "tiniest")}
KINDS = tuple(TEMPLATES)


def question_words() -> tuple[str, ...]:
    """Returns every lower-case word of questions and word answers, sorted (no tags, no digits)."""
    parts = [text for texts in TEMPLATES.values() for text in texts]
    words = {w for part in parts for w in re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", part))}
    for fillers in (*FILLERS.values(), *SIZE_WORDS.values()):
        words.update(fillers)
    words.update(("the", "one", *COLORS, *SHAPES, *SYNONYMS.values()))
    return tuple(sorted(words))
