"""A dozen questions through the running service: ``python -m serve.demo``, or ``make demo``.

Starts ``m3-serve up`` as its own process, asks through the Python client, prints what was chosen
and what it saved, and stops everything it started; says on standard error what it is doing, in a
pipe too. Knows the service from outside only.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.text import Text

from m3model.terminal import PIPE_WIDTH, bar, one_command, run, say, stage, table
from serve.client import Answer, APIError, M3Client
from serve.client.focus import CELL_TOKENS, Focus, Look
from serve.client.words import grid_in_words

PICTURES = Path(__file__).parent / "pictures"
READY_S, STOP_S = 240.0, 60.0
SAYS, SHOWN_LINES = "m3-serve: ", 20
DRAWN, DRAWN_COLUMNS, GAP = 2, 40, 3  # pictures beside one another

app = one_command("python -m serve.demo")


class DemoFailed(RuntimeError):
    """The demo could not run to its end; the message says why and what to do."""


@dataclass(frozen=True)
class Asked:
    """One of the demo's questions with the answer it got."""

    question: str
    reference: str
    picture: str
    answer: Answer

    @property
    def is_right(self) -> bool:
        """Return whether the answer is the reference, letter case and a full stop aside."""
        return self.answer.text.strip().rstrip(".").lower() == self.reference.lower()


@dataclass(frozen=True)
class Saving:
    """What the questions cost, and what they would have cost at the finest scale."""

    visual_tokens: int
    finest_visual_tokens: int
    prefill_flops: float
    finest_prefill_flops: float


def saving(config: Any, finest: int, answers: Sequence[Answer]) -> Saving:
    """Return the tokens and prefill operations of the answers, as given and all at ``finest``."""
    from m3model.cost import prefill_flops

    text = [each.prompt_tokens - each.visual_tokens for each in answers]
    return Saving(
        visual_tokens=sum(each.visual_tokens for each in answers),
        finest_visual_tokens=finest * len(answers),
        prefill_flops=sum(prefill_flops(config, each.prompt_tokens) for each in answers),
        finest_prefill_flops=sum(prefill_flops(config, finest + tokens) for tokens in text),
    )


@contextmanager
def service(arguments: Sequence[str], port: int) -> Iterator[str]:
    """Start ``m3-serve up`` and yield its URL when it is ready; nothing of it is left afterwards.

    Raises:
        DemoFailed: it ended, or was not ready in time; its last lines were shown.
    """
    command = [sys.executable, "-m", "serve.cli", "up", "--port", str(port), *arguments]
    with tempfile.TemporaryDirectory(prefix="m3-demo-") as folder:
        output = Path(folder) / "output"
        scratch = ["--log-dir", f"{folder}/log", "--registry", f"{folder}/registry"]
        with output.open("wb") as sink:
            process = subprocess.Popen(
                [*command, *scratch], stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                start_new_session=True,
            )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        try:
            with stage("starting the service") as tell:
                _wait_until_ready(process, url, output, tell)
            yield url
        finally:
            _stop(process)


def _wait_until_ready(
    process: subprocess.Popen[bytes], url: str, output: Path, tell: Callable[[str], None]
) -> None:
    deadline, told, is_ready = time.monotonic() + READY_S, 0, False
    # The port listens before the model is loaded: a long wait for an answer would be silent.
    with M3Client(url, timeout=1.0, max_retries=0) as client:
        while time.monotonic() < deadline:
            with suppress(APIError):
                is_ready = client.health()["status"] == "ok"
            lines = _lines(output)
            for line in lines[told:]:
                if line.startswith(SAYS):
                    tell(line.removeprefix(SAYS))
            told = len(lines)
            if is_ready:
                return
            if process.poll() is not None:
                say("\n".join(_lines(output)[-SHOWN_LINES:]))
                raise DemoFailed("the service ended before it was ready; its last lines are above")
            time.sleep(0.3)
    say("\n".join(_lines(output)[-SHOWN_LINES:]))
    raise DemoFailed(f"the service was not ready in {READY_S:.0f} s; its last lines are above")


def _lines(output: Path) -> list[str]:
    """Return the whole lines that the service has written so far."""
    return output.read_text(errors="replace").rpartition("\n")[0].splitlines()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the service to drain and end; end by force what is still there after a minute."""
    started: list[psutil.Process] = []
    if process.poll() is None:
        started = psutil.Process(process.pid).children(recursive=True)
        with stage("stopping the service"):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    _, left = psutil.wait_procs(started, timeout=10.0)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the group that `service` opened for it
    for each in left:
        each.kill()
    psutil.wait_procs(left, timeout=5.0)


def ask_all(url: str, pictures: Path) -> tuple[list[Asked], int]:
    """Return every question of ``questions.json`` with its answer, and the finest scale."""
    questions = json.loads((pictures / "questions.json").read_text(encoding="utf-8"))
    asked = []
    with M3Client(url, timeout=120.0) as client, bar("asking", "questions", 0.0) as move:
        finest = max(int(name.removeprefix("m3-")) for name in client.models() if name != "m3-auto")
        for number, each in enumerate(questions, start=1):
            answer = client.ask(pictures / each["picture"], each["question"], max_tokens=16)
            asked.append(Asked(each["question"], each["answer"], each["picture"], answer))
            move(number, len(questions), f"{each['question']} {answer.text}")
    return asked, finest


def print_answers(asked: Sequence[Asked], finest: int, saved: Saving) -> None:
    """Print the table and the saving."""
    table(
        "Questions about pictures, each read as the router chose (coarse + fine tokens)",
        ["picture", "question", "answer", "expected", "read", "visual tokens", "ms"],
        [
            [
                Path(each.picture).stem, each.question,
                Text(each.answer.text, style="green" if each.is_right else "red"), each.reference,
                read_in_figures(each.answer), str(each.answer.visual_tokens),
                f"{each.answer.total_ms:.0f}",
            ]
            for each in asked
        ],
    )  # fmt: skip
    right = sum(each.is_right for each in asked)
    print(f"Right answers: {right} of {len(asked)}")
    for what, spent, whole in (
        ("Visual tokens", saved.visual_tokens, saved.finest_visual_tokens),
        ("Prefill MFLOP", saved.prefill_flops / 1e6, saved.finest_prefill_flops / 1e6),
    ):
        print(
            f"{what}: {spent:,.0f} instead of {whole:,.0f} (always {finest} tokens): "
            f"{1 - spent / whole:.0%} saved"
        )
    print("Pictures are generated; none was used to train the model or fit the router.")


def read_in_figures(answer: Answer) -> str:
    """Return the tokens that each look read, in figures."""
    return ", then ".join(map(_tokens, answer.looks)) or "0"


def _tokens(look: Look) -> str:
    return f"{look.scale} + {CELL_TOKENS * len(look.cells)}" if look.cells else str(look.scale)


def print_readings(asked: Sequence[Asked], pictures: Path) -> None:
    """Print two pictures, if so many have fine tokens, as the tokens that were read of them."""
    from rich.console import Console
    from rich.table import Table

    from serve.client.seen import in_blocks

    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    focused: dict[str, tuple[Asked, Focus]] = {}
    for each in asked:
        if each.answer.focus is not None and each.answer.focus.cells:
            focused.setdefault(each.picture, (each, each.answer.focus))
    shown = list(focused.values())[: max(1, min(DRAWN, console.width // DRAWN_COLUMNS))]
    beside = Table.grid()
    for _ in shown:
        beside.add_column(width=DRAWN_COLUMNS - GAP)
        beside.add_column(width=GAP)
    rows = [
        [Text(f"{Path(each.picture).stem}: {each.question}") for each, _ in shown],
        [in_blocks(pictures / each.picture, focus, console) for each, focus in shown],
        [Text(grid_in_words(each.answer)[-1]) for each, _ in shown],
    ]
    for row in rows:
        beside.add_row(*(cell for its in row for cell in (its, "")))
    if shown:
        console.print(beside)


def _missing(model: Path | None) -> str | None:
    """Return what is missing and the command that makes it, or None."""
    from m3model import default_model_path
    from router import default_router_path

    if model is None and not (default_model_path() / "config.json").is_file():
        folder = default_model_path()
        return f"no model in {folder}; train it: m3-train model --preset mini --out {folder}"
    if model is None and not (default_router_path() / "config.json").is_file():
        folder = default_router_path()
        return (
            f"no router in {folder}; fit it: m3-train collect --scenes 8000 --out .m3/oracle && "
            f"m3-train fit --oracle .m3/oracle --out {folder}"
        )
    if not (PICTURES / "questions.json").is_file():
        return f"no pictures in {PICTURES}; make them: python -m training.scenes.demo_pictures"
    return None


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@app.command()
def demo(
    in_process: Annotated[bool, typer.Option(help="One process instead of Ray Serve.")] = False,
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 0,
    model: Annotated[Path | None, typer.Option(help="Model folder; default: m3-mini.")] = None,
    router: Annotated[Path | None, typer.Option(help="Router folder; default: shipped.")] = None,
) -> None:
    """Ask a dozen questions about pictures and print what the router saved."""
    if missing := _missing(model):
        raise DemoFailed(missing)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    arguments = ["--in-process"] if in_process else []
    arguments += ["--model", str(model)] if model else []
    arguments += ["--router", str(router)] if router else []
    with service(arguments, port or free_port()) as url:
        asked, finest = ask_all(url, PICTURES)
    from m3model import M3Config, default_model_path  # loads transformers: not before it is needed

    config = M3Config.from_pretrained(model or default_model_path())
    saved = saving(config, finest, [each.answer for each in asked])
    print_answers(asked, finest, saved)
    print_readings(asked, PICTURES)


if __name__ == "__main__":
    run(app, DemoFailed, APIError)
