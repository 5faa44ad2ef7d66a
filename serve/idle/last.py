"""Runs Python with arguments as a process that every other comes before, and that dies with its
parent.

    python -m serve.idle.last PARENT_PID ARGUMENTS...

Knows the kernel's ways to say so; what the kernel refuses is left. Started in a session of its own:
where sessions share a processor evenly, niceness counts only within them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

NICEST = 19
SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG; it outlasts the exec below


def come_last() -> None:
    """Give this process the processor only where nobody else wants it."""
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICEST), encoding="ascii")
    with suppress(OSError):
        os.nice(NICEST)
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def die_with(parent: int) -> None:
    """Have the kernel end this process when the one that started it ends, even by kill -9."""
    ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        sys.exit(1)


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    come_last()
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
