"""`VllmProcess`: a Python of another environment that runs vLLM, and the socket to it.

The socket is one of a pair that nobody else can reach; the process ends when it is closed, however
that comes about. It knows messages, not what they mean.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from m3model.engine.vllm.folder import PLUGIN, plugin_folder, stock_folder
from m3model.engine.vllm.m3_vllm.wire import HEAD, packed, unpacked
from m3model.errors import EngineUnavailable

CLOSING_S = 10.0  # for vLLM to let go of its device
# What a process of ours must not do, and how its own processes begin: not with our socket in hand.
SETTINGS = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}  # fmt: skip


class VllmProcess:
    """A running vLLM.

    Args:
        python: of an environment that has vLLM.
        model: folder of an M3 checkpoint.
        device: where it is to compute.
        options: of vLLM's `AsyncEngineArgs`, without the model.

    Raises:
        EngineUnavailable: it did not start; the message says why.
    """

    def __init__(self, python: Path, model: Path, device: str, options: Mapping[str, Any]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="m3-vllm-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._socket, theirs = socket.socketpair()
        try:
            with theirs:
                stock = stock_folder(model, self._folder / "model")
                path = plugin_folder(self._folder / "path")
                self._process = self._begin(python, path, theirs.fileno())
            options = {**options, "model": str(stock)}
            self.ready = self._wait(python, {"start": options, "device": device})
        except BaseException:
            self.end(0.0)
            raise

    def send(self, said: dict[str, Any], pictures: Sequence[torch.Tensor] = ()) -> None:
        """Hands a message over; for one thread.

        Raises:
            OSError: the process is gone.
        """
        for part in packed(said, pictures):
            self._socket.sendall(part)

    def receive(self) -> dict[str, Any]:
        """The next message; for one thread.

        Raises:
            EOFError, OSError: the process is gone.
        """
        n_text, n_body = HEAD.unpack(self._exactly(HEAD.size))
        text = bytes(self._exactly(n_text))
        return unpacked(text, self._exactly(n_body))[0]

    def hang_up(self) -> None:
        """Closes the socket for both sides, so that whoever reads or writes it stops."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def end(self, wait_s: float = CLOSING_S) -> None:
        """Returns once it is gone, and all that it had started with it."""
        self.hang_up()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(wait_s)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)  # its own processes too
            self._process.wait()
        self._socket.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _begin(self, python: Path, path: Path, fd: int) -> subprocess.Popen[bytes]:
        env = {"VLLM_LOGGING_LEVEL": "WARNING", **os.environ, **SETTINGS, "PYTHONPATH": str(path)}
        if "VLLM_PLUGINS" in env:  # a list of those that are allowed
            env["VLLM_PLUGINS"] += f",{PLUGIN}"
        command = [str(python), "-m", f"{PLUGIN}.server", str(fd)]
        try:
            return subprocess.Popen(
                command, env=env, pass_fds=[fd], stdin=subprocess.DEVNULL, stdout=2,
                cwd=path, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise EngineUnavailable(
                f"{python} cannot be run ({error.strerror}): name the python of an environment "
                "that has vLLM"
            ) from error

    def _wait(self, python: Path, start: dict[str, Any]) -> dict[str, Any]:
        """What vLLM tells of itself, however long it takes to load."""
        assert self._process is not None
        try:
            self.send(start)
            said = self.receive()
        except (EOFError, OSError) as error:
            code = self._process.wait(CLOSING_S)
            raise EngineUnavailable(
                f"the vLLM process of {python} ended with code {code} before it was ready; "
                "its own words are in this process's error output"
            ) from error
        if "ready" in said:
            return dict(said["ready"])
        if said.get("missing") == "vllm":
            raise EngineUnavailable(
                f"the environment of {python} has no vLLM: {python} -m pip install vllm"
            )
        raise EngineUnavailable(f"vLLM does not start: {said.get('failed')}")

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        at, view = 0, memoryview(data)
        while at < size:
            read = self._socket.recv_into(view[at:])
            if not read:
                raise EOFError("the vLLM process hung up")
            at += read
        return data
