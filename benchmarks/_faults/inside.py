"""What is done to a process of the service from inside it: nothing of the product is made for it.

Ray runs these in the actor that is named (`__ray_call__`). Each fault strikes when the victim has
work in its hands, and what it had is written down in the same moment.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

FOREVER_S = 3600.0


def pid(actor: Any) -> int:
    """Return the number of the actor's process."""
    return os.getpid()


def hurt(actor: Any, kind: str, note: str) -> None:
    """Hurt the actor as soon as it is busy; ``note`` gets what was in flight, and when."""
    threading.Thread(target=_hurt, args=(actor, kind, Path(note)), daemon=True).start()


def poison(actor: Any, picture: bytes) -> None:
    """Have this encoder die of one picture."""
    vision = part_of(actor)._vision
    prepare = vision.prepare

    def deadly(data: bytes) -> Any:
        if data == picture:
            os.kill(os.getpid(), signal.SIGKILL)
        return prepare(data)

    part_of(actor)._decoder._decode = deadly


def part_of(actor: Any) -> Any:
    """Return the encoder, generator or gateway of a replica's actor."""
    return actor._replica_impl._user_callable_wrapper._callable


def router_version(actor: Any) -> str:
    """Return the version of the router that an encoder decides by."""
    return str(part_of(actor)._router.version)


def in_flight(actor: Any) -> int:
    """Return how many requests a proxy or a replica has in its hands; a generator, its engine."""
    if hasattr(actor, "http_proxy"):
        return int(actor.http_proxy._ongoing_requests)
    part = part_of(actor)
    if hasattr(part, "_engine"):
        stats = part._engine.stats()
        return int(stats.running + stats.waiting)
    return int(actor._replica_impl.get_num_ongoing_requests())


def _hurt(actor: Any, kind: str, note: Path) -> None:
    while not (n := in_flight(actor)):
        time.sleep(0.0005)
    if kind in ("hung_worker", "dead_engine"):
        _break_engine(part_of(actor)._engine, kind, note)
        return
    _write(note, n)
    if kind == "blocked_loop":
        loop = actor._replica_impl._user_callable_wrapper._user_code_event_loop
        loop.call_soon_threadsafe(time.sleep, FOREVER_S)
    else:
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[kind])


def _break_engine(engine: Any, kind: str, note: Path) -> None:
    """Have the next pass hang, or find its memory gone as on a lost device."""
    real = engine._packed.launch

    def broken(chunks: Any) -> Any:
        stats = engine.stats()
        _write(note, stats.running + stats.waiting)
        if kind == "hung_worker":
            time.sleep(FOREVER_S)
        engine._pool.keys = engine._pool.keys.to("meta")
        return real(chunks)

    engine._packed.launch = broken


def _write(note: Path, in_flight: int) -> None:
    aside = note.with_suffix(".new")
    aside.write_text(json.dumps({"in_flight": in_flight, "at": time.time()}))
    aside.replace(note)
