"""The vLLM process: requests from the socket it was given, tokens back, until that is closed.

Run as `python -m m3_vllm.server FD` in vLLM's environment. It knows vLLM's asynchronous engine and
the messages; nothing of text, of stop strings or of how many requests may wait: the other side
does. The first message is {"start": AsyncEngineArgs, "device": name}; then {"ask": id, ...} and
{"cancel": id}.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from typing import Any

from .wire import HEAD, packed, unpacked

BEAT_S = 0.5
LONGEST_REASON = 500


async def main(fd: int) -> None:
    """Serves the socket `fd` to its end."""
    os.set_inheritable(fd, False)  # it ends with this process, not with a child of it
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=fd))
    link = Link(reader, writer)
    said, _ = await link.receive()
    try:
        engine, about = start(said["start"], said["device"])
    except BaseException as error:
        line = " ".join(str(error).split())[:LONGEST_REASON]
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        await link.send({"failed": f"{type(error).__name__}: {line}", "missing": missing})
        raise
    await link.send({"ready": about})
    server = Server(link, engine)
    beating = asyncio.create_task(server.beat())
    try:
        await server.listen()
    except (EOFError, ConnectionError):  # nobody is left to answer
        pass
    finally:
        beating.cancel()
        engine.shutdown()


def start(options: dict[str, Any], device: str) -> tuple[Any, dict[str, Any]]:
    """vLLM's engine, and what there is to tell of it.

    Raises:
        RuntimeError: it would compute elsewhere than on the device; what else vLLM raises.
    """
    import vllm
    from vllm.platforms import current_platform

    if current_platform.device_type != device:
        raise RuntimeError(
            f"this vLLM computes on {current_platform.device_type!r}, not on {device!r}: install "
            "the build for it, or set device"
        )
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(vllm.AsyncEngineArgs(**options))
    about = {
        "version": str(vllm.__version__),
        "max_length": int(engine.model_config.max_model_len),
    }
    return engine, about


class Link:
    """Messages over a stream; what is sent is never interleaved."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def receive(self) -> tuple[dict[str, Any], list[Any]]:
        """The next message and its pictures.

        Raises:
            EOFError: there is none.
        """
        n_text, n_body = HEAD.unpack(await self._reader.readexactly(HEAD.size))
        text = await self._reader.readexactly(n_text)
        return unpacked(text, bytearray(await self._reader.readexactly(n_body)))

    async def send(self, said: dict[str, Any]) -> None:
        """Hands a message over, waiting while the other side is behind."""
        for part in packed(said):
            self._writer.write(part)
        await self._writer.drain()


class Server:
    """Requests in flight, each a task that reads vLLM's answer."""

    def __init__(self, link: Link, engine: Any) -> None:
        self._link, self._engine = link, engine
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def listen(self) -> None:
        """Does what it is told.

        Raises:
            EOFError: the other side is gone.
        """
        while True:
            said, pictures = await self._link.receive()
            if "ask" in said:
                name = int(said["ask"])
                self._tasks[name] = asyncio.create_task(self._answer(name, said, pictures))
                await asyncio.sleep(0)  # it has begun, and will tell its end, if cancelled next
            elif (task := self._tasks.get(said["cancel"])) is not None:
                task.cancel()

    async def beat(self) -> None:
        """Tells again and again that all is well, until it is not."""
        while not self._engine.errored:
            await self._link.send({"beat": True})
            await asyncio.sleep(BEAT_S)
        await self._die("vLLM's engine died")

    async def _answer(self, name: int, said: dict[str, Any], pictures: list[Any]) -> None:
        end: dict[str, Any] = {"end": name}
        try:
            answer = self._engine.generate(
                prompt_of(said, pictures), params_of(said["sampling"]), str(name)
            )
            async with contextlib.aclosing(answer) as outputs:
                async for output in outputs:
                    await self._link.send(tokens_of(name, output))
        except asyncio.CancelledError:
            pass  # vLLM aborts a request whose reader leaves
        except Exception as error:
            if self._engine.errored:
                await self._die(f"vLLM's engine died: {error}")
            cause = error.__cause__ or error
            end["failed"] = f"{type(cause).__name__}: {cause}"
        del self._tasks[name]
        with contextlib.suppress(ConnectionError):
            await self._link.send(end)

    async def _die(self, why: str) -> None:
        with contextlib.suppress(ConnectionError):
            await self._link.send({"died": why})
        os._exit(1)


def prompt_of(said: dict[str, Any], pictures: list[Any]) -> dict[str, Any]:
    """The prompt as vLLM takes it: a list of (n_i, D), and what its caches know each by."""
    prompt: dict[str, Any] = {"prompt_token_ids": said["prompt_ids"]}
    if pictures:
        prompt["multi_modal_data"] = {"image": pictures}
        prompt["multi_modal_uuids"] = {"image": said["names"]}
    return prompt


def params_of(sampling: dict[str, Any]) -> Any:
    """How vLLM draws; text is none of its business."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        **sampling, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
    )


def tokens_of(name: int, output: Any) -> dict[str, Any]:
    """The message of what an output adds: [token id, log-probability, the most probable] each."""
    said = output.outputs[0]
    tokens = []
    for token_id, told in zip(said.token_ids, said.logprobs or (), strict=True):
        ranked = sorted(told.items(), key=lambda item: item[1].rank or 0)
        top = [(int(each), float(of.logprob)) for each, of in ranked]
        tokens.append((int(token_id), float(told[token_id].logprob), top))
    return {"tokens": tokens, "of": name, "cached": output.num_cached_tokens or 0}


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(int(sys.argv[1])))
    os._exit(0)  # vLLM's threads are not waited for
