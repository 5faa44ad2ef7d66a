"""Starts the one process that labels audited requests while the service is idle, and watches it.

The process is `m3-train collect --follow`, since the service knows no training. Knows its command
line and the lines it prints; decides neither what is labelled nor when.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from router.places import Place
from serve.metrics import Metrics
from serve.settings import ServeSettings

LOG = logging.getLogger(__name__)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
LONG_LIFE_S = 600.0  # after which the next pause is the first again
END_S = 5.0
TELL_S = 2.0  # Ray forgets a gauge that is not set again


@contextmanager
def labelling_while_idle(
    settings: ServeSettings, url: str, metrics: Callable[[], Metrics]
) -> Iterator[None]:
    """Label what is audited into the folder that the settings name, while the context lasts.

    Args:
        settings: of the service; where they name no folder nothing is done.
        url: at which the service answers.
        metrics: makes what is told how far it is.
    """
    if settings.label_idle is None:
        yield
        return
    process = LabellingProcess(_command(settings, url), settings.torch_threads, metrics())
    try:
        yield
    finally:
        process.end()


def _command(settings: ServeSettings, url: str) -> list[str]:
    """Return what follows the name of the interpreter."""
    told: dict[str, Place | str | None] = {
        "--from-log": settings.log_dir, "--out": settings.label_idle,
        "--model": settings.model_path(), "--idle-of": url, "--device": settings.device,
        "--text-encoder": settings.text_encoder,
    }  # fmt: skip
    flags = [str(each) for flag in told.items() if flag[1] is not None for each in flag]
    return ["-m", "training.cli", "collect", "--follow", "--skip-bad", *flags]


class LabellingProcess:
    """A process that is there until `end`: it is started again when it dies, after a growing pause.

    Args:
        command: what follows the name of the interpreter.
        threads: that it may compute with.
        metrics: told how far it is.
        first_pause_s: before it is started again for the first time.
    """

    def __init__(
        self,
        command: Sequence[str],
        threads: int,
        metrics: Metrics,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self._command, self._metrics = command, metrics
        self._environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self._first_pause_s = first_pause_s
        self._lock, self._ending = threading.Lock(), threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._is_down, self._waiting = False, 0
        threading.Thread(target=self._keep_telling, name="idle-telling", daemon=True).start()
        self._thread = threading.Thread(target=self._run, name="idle-labelling", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """End the process; returns once it is gone."""
        with self._lock:
            self._ending.set()
            process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
        self._thread.join(END_S)

    def _run(self) -> None:
        # The kernel ends the process with the thread that started it, so this one stays.
        pause_s = self._first_pause_s
        while not self._ending.is_set():
            began = time.monotonic()
            words, status = self._live_once()
            if self._ending.is_set():
                return
            self._is_down = True
            self._tell()
            if time.monotonic() - began > LONG_LIFE_S:
                pause_s = self._first_pause_s
            how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
            LOG.warning(
                "idle labelling ended with %s, and is started again in %g s: %s", how, pause_s,
                words or "it said nothing",
            )  # fmt: skip
            self._ending.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _live_once(self) -> tuple[str, int]:
        """Run the process; return its last words and its status once it has ended."""
        # A session of its own, see `serve.idle.last`.
        with self._lock:
            if self._ending.is_set():
                return "", 0
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", "serve.idle.last", str(os.getpid()), *self._command],
                env=self._environment, text=True, errors="replace", start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        assert process.stdout is not None
        words, labelled = "", 0
        with process.stdout as lines:
            for line in lines:
                if (told := _progress(line)) is None:
                    words = line.strip() or words
                    LOG.info("idle labelling: %s", line.rstrip())
                    continue
                self._is_down, self._waiting = False, told[1]
                self._tell()
                self._metrics.count("m3_labelled_pictures", told[0] - labelled)
                labelled = told[0]
        return words, process.wait()

    def _keep_telling(self) -> None:
        while not self._ending.wait(TELL_S):
            self._tell()

    def _tell(self) -> None:
        self._metrics.gauge("m3_labelling_down", self._is_down)
        self._metrics.gauge("m3_unlabelled_pictures", self._waiting)


def _progress(line: str) -> tuple[int, int] | None:
    """Return the pictures labelled and waiting that a line tells; None for any other line."""
    try:
        told = json.loads(line)
        return int(told["labelled"]), int(told["waiting"])
    except (ValueError, TypeError, KeyError):
        return None
