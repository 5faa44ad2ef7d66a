"""Ask one question about every picture of a folder, several at a time; answers as CSV.

    python examples/batch_folder.py FOLDER QUESTION [--out answers.csv] [--concurrency 8]

Needs a running service: make serve, or m3-serve up. Answers go to stdout (or --out) as they come,
progress and the saving to stderr. A picture that fails is a row with its error; the others go on.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import os
import sys
from pathlib import Path
from typing import TextIO

from serve.client import Answer, APIError, AsyncM3Client

KINDS = {".png", ".jpg", ".jpeg", ".webp", ".gif"}
COLUMNS = ("picture", "answer", "scale", "visual_tokens", "reason", "ms", "error")
URL = os.environ.get("M3_URL", "http://127.0.0.1:8000")


async def ask_all(
    client: AsyncM3Client, pictures: list[Path], question: str, concurrency: int, sink: TextIO
) -> list[Answer]:
    """Return the answers, each written to the sink as soon as it is there."""
    rows = csv.DictWriter(sink, COLUMNS)
    rows.writeheader()
    free = asyncio.Semaphore(concurrency)

    async def ask(picture: Path) -> tuple[Path, Answer | Exception]:
        async with free:
            try:
                return picture, await client.ask(picture, question)
            except (APIError, OSError) as error:
                return picture, error

    answers = []
    for done, waiting in enumerate(asyncio.as_completed(map(ask, pictures)), start=1):
        picture, found = await waiting
        if isinstance(found, Answer):
            answers.append(found)
            rows.writerow({
                "picture": picture.name, "answer": found.text, "scale": found.scale,
                "visual_tokens": found.visual_tokens, "reason": found.reason,
                "ms": round(found.total_ms),
            })  # fmt: skip
        else:
            rows.writerow({"picture": picture.name, "error": str(found)})
        sink.flush()
        print(f"{done} of {len(pictures)}", file=sys.stderr)
    return answers


async def run(given: argparse.Namespace, sink: TextIO) -> int:
    """Ask about the whole folder, print what was saved, and return how many pictures failed."""
    pictures = sorted(p for p in given.folder.iterdir() if p.suffix.lower() in KINDS)
    async with AsyncM3Client(given.url, api_key=os.environ.get("M3_API_KEY")) as client:
        ids = await client.models()
        finest = max(int(name.removeprefix("m3-")) for name in ids if name != "m3-auto")
        answers = await ask_all(client, pictures, given.question, given.concurrency, sink)
    spent, whole = sum(a.visual_tokens for a in answers), finest * len(answers)
    if answers:
        print(f"{spent} visual tokens instead of {whole}: {1 - spent / whole:.0%} saved",
              file=sys.stderr)  # fmt: skip
    return len(pictures) - len(answers)


def main() -> None:
    """Read the arguments and ask."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("question")
    parser.add_argument("--out", type=Path, help="CSV file; stdout if left out")
    parser.add_argument("--concurrency", type=int, default=8, help="questions at a time")
    parser.add_argument("--url", default=URL, help="address of the service")
    given = parser.parse_args()
    if given.out is None:
        failed = asyncio.run(run(given, sys.stdout))
    else:
        with given.out.open("w", newline="", encoding="utf-8") as sink:
            failed = asyncio.run(run(given, sink))
    if failed:
        sys.exit(f"error: {failed} pictures have no answer; their rows say why")


if __name__ == "__main__":
    try:
        main()
    except (APIError, OSError) as error:
        sys.exit(f"error: {error}")
