"""Ask one question about one picture and show what the router decided.

    python examples/ask.py [PICTURE] [QUESTION]

Needs a running service: make serve, or m3-serve up.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from serve.client import APIError, M3Client

PICTURE = Path(__file__).parents[1] / "serve" / "pictures" / "scene-00.png"
URL = os.environ.get("M3_URL", "http://127.0.0.1:8000")


def main() -> None:
    """Ask, and print the answer with the probability of every scale and focus."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", nargs="?", type=Path, default=PICTURE)
    parser.add_argument("question", nargs="?", default="what colour is the biggest shape?")
    parser.add_argument("--url", default=URL, help="address of the service")
    given = parser.parse_args()

    with M3Client(given.url, api_key=os.environ.get("M3_API_KEY")) as client:
        answer = client.ask(given.picture, given.question, explain=True)
        finest = max(int(name.removeprefix("m3-")) for name in client.models() if name != "m3-auto")

    print(f"{given.question}  {answer.text}")
    chosen = answer.scale if answer.explain is None else answer.explain.scale
    for action, p_suffices in (answer.p_suffices or {}).items():
        mark = "<- chosen" if action == chosen else ""
        print(f"{action:>16} {p_suffices:4.0%} sure to suffice  {mark}".rstrip())
    print(f"read {answer.visual_tokens} visual tokens instead of {finest} ({answer.reason})")
    if answer.focus is not None:
        print(f"{len(answer.focus.cells)} cells of level {answer.focus.fine} finely")
    if answer.second_look is not None:
        print(f"looked again after an unsure answer at {answer.second_look['from']}")
    if answer.explain is not None:
        print(answer.explain.sentence)


if __name__ == "__main__":
    try:
        main()
    except (APIError, OSError) as error:
        sys.exit(f"error: {error}")
