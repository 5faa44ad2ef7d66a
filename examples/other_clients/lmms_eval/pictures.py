"""What lmms-eval shows of a question in serve/pictures/questions.json."""

from pathlib import Path
from typing import Any

from PIL import Image

PICTURES = Path("serve/pictures")


def of(doc: dict[str, Any]) -> list[Image.Image]:
    """Return its picture."""
    return [Image.open(PICTURES / doc["picture"]).convert("RGB")]


def question(doc: dict[str, Any], *_: object) -> str:
    """Return its text."""
    return str(doc["question"])
