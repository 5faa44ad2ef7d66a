"""What gives way under three times the load that a service can take: tokens first, then requests.

One process serves m3-mini with its router over HTTP, this one asks: one question at a time (idle),
sixteen at a time (capacity), then in an open loop at Poisson times at a multiple of that capacity,
and after it once in a while, until the price is back. The wait that the overloaded service allows
is twice what an idle one takes. Pictures are known to the encoder throughout; every question's
tokens when idle are known, so that questions asked under load are compared with themselves.

    python benchmarks/overload.py [--times X] [--max-harm SHARE] [--json PATH] [--quick]
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import multiprocessing
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
from _result import arguments, write
from PIL import Image
from rich.console import Console
from rich.table import Table

from serve.client.wire import chat_body
from serve.settings import OverloadSettings, ServeSettings
from training.sources.scenes import SceneSource

CHAT = "/v1/chat/completions"
AT_ONCE = 16  # requests that measure the capacity
ALLOWED = 2.0  # wait under load, of an idle service's median
EVERY_S = 0.5  # between two questions after the load
WATCHED_S = 15.0  # after the load
ONSET_S = 1.5  # of the short loads
GOALS = {"p95_ratio": 3.0, "tokens_share": 0.7, "price_back_s": 10.0}
Bodies = Sequence[bytes]


@dataclass(frozen=True)
class Reply:
    """What came of one request; ``at_s`` is when it was sent, after the phase began.

    ``late_ms`` after it was due: beyond some milliseconds this machine was too busy to ask.
    """

    question: int
    at_s: float
    status: int
    ms: float
    visual_tokens: int = 0
    reason: str = ""
    price: float | None = None
    late_ms: float = 0.0


def serve(port: int, settings: ServeSettings, ready: Event) -> None:
    """Serve until SIGTERM."""
    from serve.in_process import run
    from serve.web.listening import bind

    run(settings, bind("127.0.0.1", port), ready.set)


class Caller:
    """Asks over connections that are kept; a usual client would take as long as the service."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Return status and body; GET without a body.

        Raises:
            OSError, IncompleteReadError: no reply came.
        """
        connection = self._idle.pop() if self._idle else None
        reader, writer = connection or await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(
            f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(": ", 1) for line in head.decode().splitlines()[1:-1])
        said = await reader.readexactly(int(fields["content-length"]))
        self._idle.append((reader, writer))
        return int(head.split()[1]), said

    def close(self) -> None:
        """Close every connection."""
        for _, writer in self._idle:
            writer.close()


@contextlib.asynccontextmanager
async def service(log_dir: Path, overload: OverloadSettings) -> AsyncIterator[Caller]:
    """Give a caller of a service in a process of its own; its pictures are not yet known."""
    from serve.web.listening import bind

    with bind("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    settings = ServeSettings(registry=None, log_dir=log_dir, overload=overload)
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    process = spawn.Process(target=serve, args=(port, settings, ready))
    process.start()
    try:
        if not await asyncio.to_thread(ready.wait, 120):
            raise SystemExit("the service did not start")
        caller = Caller(port)
        yield caller
        caller.close()
    finally:
        if process.pid is not None and process.is_alive():
            process.terminate()
        process.join()


def questions(n_pictures: int) -> list[bytes]:
    """Return the bodies of every question about generated pictures."""
    bodies, source = [], SceneSource(n_pictures, seed=77)
    for index in range(n_pictures):
        task, png = source.load(index), io.BytesIO()
        Image.fromarray(task.rgb).save(png, "PNG")
        bodies += [
            json.dumps(chat_body(png.getvalue(), ask.question, {"max_tokens": 16})).encode()
            for ask in task.asks
        ]
    random.Random(0).shuffle(bodies)
    return bodies


async def ask(
    caller: Caller,
    bodies: Bodies,
    question: int,
    began: float,
    due: float | None = None,
) -> Reply:
    """Return what came of a question."""
    sent = time.perf_counter()
    try:
        status, said = await caller.send(CHAT, bodies[question])
    except (OSError, asyncio.IncompleteReadError):
        status, said = 599, b""
    ms = 1000.0 * (time.perf_counter() - sent)
    routing = json.loads(said)["routing"] if status == 200 else {}
    late_ms = 0.0 if due is None else 1000.0 * (sent - due)
    told = routing.get("visual_tokens", 0), routing.get("reason", ""), routing.get("price"), late_ms
    return Reply(question, sent - began, status, ms, *told)


async def in_turn(caller: Caller, bodies: Bodies, at_once: int) -> list[Reply]:
    """Return every question's reply, so many at once."""
    left, began = iter(range(len(bodies))), time.perf_counter()

    async def one() -> list[Reply]:
        return [await ask(caller, bodies, question, began) for question in left]

    each = await asyncio.gather(*(one() for _ in range(at_once)))
    return [reply for replies in each for reply in replies]


async def at_random(
    caller: Caller, bodies: Bodies, rate: float, seconds: float, seed: int = 1
) -> list[Reply]:
    """Return the replies of requests that come at Poisson times, whatever became of the others."""
    chance, began, at = random.Random(seed), time.perf_counter(), 0.0
    tasks = []
    while (at := at + chance.expovariate(rate)) < seconds:
        await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
        question = chance.randrange(len(bodies))
        tasks.append(asyncio.create_task(ask(caller, bodies, question, began, began + at)))
    return list(await asyncio.gather(*tasks))


async def now_and_then(caller: Caller, bodies: Bodies, seconds: float) -> list[Reply]:
    """Return the replies of single requests with pauses between them."""
    began, replies = time.perf_counter(), []
    while time.perf_counter() - began < seconds:
        replies.append(await ask(caller, bodies, len(replies) % len(bodies), began))
        await asyncio.sleep(EVERY_S)
    return replies


async def measure(
    bodies: Bodies, times: float, seconds: float, max_harm: float, n_onsets: int
) -> dict[str, Any]:
    """Return the report: an idle service, its capacity, another one overloaded.

    Args:
        bodies: of the questions.
        times: of the capacity.
        seconds: of the load.
        max_harm: bound up to which the price may rise.
        n_onsets: further, short loads: how many tokens go before anybody is refused.
    """
    with tempfile.TemporaryDirectory() as scratch:
        async with service(Path(scratch) / "calm", OverloadSettings()) as caller:
            await in_turn(caller, bodies, 4)  # every picture becomes known
            idle = await in_turn(caller, bodies, 1)
            began = time.perf_counter()
            crowd = await in_turn(caller, [*bodies, *bodies], AT_ONCE)
            capacity = len(crowd) / (time.perf_counter() - began)
        allowed_s = ALLOWED * float(np.median([reply.ms for reply in idle])) / 1000.0
        overload = OverloadSettings(max_wait_s=allowed_s, max_harm=max_harm)
        async with service(Path(scratch) / "loaded", overload) as caller:
            await in_turn(caller, bodies, 1)
            await asyncio.sleep(10.0)
            loaded = await at_random(caller, bodies, times * capacity, seconds)
            after = await now_and_then(caller, bodies, WATCHED_S)
            onsets = [loaded]
            for seed in range(2, 2 + n_onsets):
                onsets.append(await at_random(caller, bodies, times * capacity, ONSET_S, seed))
                await asyncio.sleep(10.0)
            metrics = (await caller.send("/metrics"))[1].decode()
    floor = next(x for x in metrics.splitlines() if x.startswith("m3_price_floor "))
    if any(reply.status != 200 or reply.reason == "degraded" for reply in [*idle, *crowd]):
        raise SystemExit("the idle service degraded or refused something: nothing to compare with")
    return {
        "benchmark": "overload", "times": times, "seconds": seconds, "max_harm": max_harm,
        "capacity_rps": round(capacity, 2), "max_wait_s": round(allowed_s, 4),
        **judged(idle, loaded, after, onsets), "price_floor_at_the_end": float(floor.split()[-1]),
        "seconds_of_load": by_second(loaded, idle),
    }  # fmt: skip


def judged(
    idle: list[Reply], loaded: list[Reply], after: list[Reply], onsets: list[list[Reply]]
) -> dict[str, Any]:
    """Return what the goals are about."""
    accepted = [reply for reply in loaded if reply.status == 200]
    refused = [reply for reply in loaded if reply.status == 429]
    before = [reply for onset in onsets for reply in before_refusals(onset)]
    p95 = {name: percentile(of, 95) for name, of in (("idle", idle), ("loaded", accepted))}
    back = [reply.at_s + reply.ms / 1000.0 for reply in after if reply.reason == "degraded"]
    return {
        "idle": {"n": len(idle), "p50_ms": percentile(idle, 50), "p95_ms": p95["idle"],
                 "visual_tokens": mean_tokens(idle)},
        "loaded": {"sent": len(loaded), "accepted": len(accepted), "refused": len(refused),
                   "failed_5xx": sum(reply.status >= 500 for reply in loaded),
                   "other": sum(reply.status not in (200, 429) and reply.status < 500
                                for reply in loaded),
                   "p50_ms": percentile(accepted, 50), "p95_ms": p95["loaded"],
                   "visual_tokens": mean_tokens(accepted),
                   "tokens_share": share(accepted, idle)},
        "before_first_429": {"n": len(before), "onsets": len(onsets),
                             "visual_tokens": mean_tokens(before),
                             "tokens_share": share(before, idle)},
        "p95_ratio": round(p95["loaded"] / p95["idle"], 3),
        "sent_late_p95_ms": round(float(np.percentile([r.late_ms for r in accepted], 95)), 1),
        "price_back_s": round(max(back, default=0.0), 2),
    }  # fmt: skip


def before_refusals(onset: Sequence[Reply]) -> list[Reply]:
    """Return those accepted from the first raised price to the first refusal: what tokens gave."""
    degraded = [reply.at_s for reply in onset if reply.reason == "degraded"]
    refused = [reply.at_s for reply in onset if reply.status == 429]
    begun, ended = (min(times, default=float("inf")) for times in (degraded, refused))
    return [reply for reply in onset if reply.status == 200 and begun <= reply.at_s < ended]


def share(replies: Sequence[Reply], idle: Sequence[Reply]) -> float | None:
    """Return the visual tokens of replies, of those that the same questions took when idle."""
    usual = {reply.question: reply.visual_tokens for reply in idle}
    whole = sum(usual[reply.question] for reply in replies)
    return round(sum(reply.visual_tokens for reply in replies) / whole, 4) if whole else None


def by_second(loaded: Sequence[Reply], idle: Sequence[Reply]) -> list[dict[str, Any]]:
    """Return a row for each second of the load."""
    rows = []
    for second in range(int(max(reply.at_s for reply in loaded)) + 1):
        sent = [reply for reply in loaded if int(reply.at_s) == second]
        fine = [reply for reply in sent if reply.status == 200]
        prices = [reply.price for reply in fine if reply.price is not None]
        rows.append(
            {"second": second, "sent": len(sent), "accepted": len(fine),
             "refused": sum(reply.status == 429 for reply in sent),
             "p50_ms": percentile(fine, 50), "p95_ms": percentile(fine, 95),
             "visual_tokens": mean_tokens(fine), "tokens_share": share(fine, idle),
             "degraded": len(prices), "price": max(prices, default=None)}
        )  # fmt: skip
    return rows


def percentile(replies: Sequence[Reply], q: float) -> float:
    """Return a percentile of the milliseconds, nan of nothing."""
    return round(float(np.percentile([r.ms for r in replies], q)), 1) if replies else float("nan")


def mean_tokens(replies: Sequence[Reply]) -> float:
    """Return the mean visual tokens, nan of nothing."""
    tokens = [reply.visual_tokens for reply in replies]
    return round(float(np.mean(tokens)), 1) if tokens else float("nan")


def show(report: dict[str, Any]) -> None:
    """Print the seconds of the load and what the goals say."""
    names = list(report["seconds_of_load"][0])
    table = Table(title=f"{report['times']:g} x the capacity of {report['capacity_rps']} a second")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for row in report["seconds_of_load"]:
        table.add_row(*("" if row[n] is None else f"{row[n]:.4g}" for n in names))
    Console(width=140).print(table)
    idle, loaded, before = report["idle"], report["loaded"], report["before_first_429"]
    print(
        f"idle: p50 {idle['p50_ms']} ms, p95 {idle['p95_ms']} ms, {idle['visual_tokens']} tokens\n"
        f"load: {loaded['accepted']} of {loaded['sent']} accepted, {loaded['refused']} refused, "
        f"{loaded['failed_5xx']} failed (5xx); p50 {loaded['p50_ms']} ms, p95 {loaded['p95_ms']} ms"
        f" = {report['p95_ratio']} x idle (goal {GOALS['p95_ratio']:g})\n"
        f"visual tokens, of those of the same questions when idle: before the first 429 "
        f"{before['tokens_share']} ({before['n']} requests, goal {GOALS['tokens_share']:g}), "
        f"over all {loaded['tokens_share']}\n"
        f"requests were sent {report['sent_late_p95_ms']} ms late (p95); "
        f"price back after {report['price_back_s']} s (goal {GOALS['price_back_s']:g} s)"
    )


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__, quick="few pictures and seconds: shows that it runs")
    parser.add_argument("--times", type=float, default=3.0, help="of the capacity")
    parser.add_argument(
        "--max-harm", type=float, default=OverloadSettings().max_harm,
        help="bound on lost answers up to which the price may rise; default: the service's",
    )  # fmt: skip
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: exit(143))
    n_pictures, seconds, n_onsets = (8, 8.0, 2) if given.quick else (60, 60.0, 8)
    bodies = questions(n_pictures)
    report = asyncio.run(measure(bodies, given.times, seconds, given.max_harm, n_onsets))
    show(report)
    write(report, given.json)


if __name__ == "__main__":
    main()
