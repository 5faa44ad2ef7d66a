"""A client of the running service, and a real browser for the console.

The browser is headless Chromium, spoken to by its DevTools protocol.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from websockets.sync.client import connect

from router import Router, SecondLook, default_router_path
from router.second_look import Gate
from serve.in_process import Service, compose
from serve.settings import ServeSettings
from serve.web.listening import bind

SCALES = (1, 9, 36, 144, 576)
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
WAIT_S = 30.0


@pytest.fixture(scope="module")
def http(running: Any) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=running.url, timeout=30) as client:
        yield client


def is_envelope(reply: httpx2.Response, status: int, code: str) -> str:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    return str(error["message"])


class Page:
    """One tab; ``errors`` is what the browser complained about."""

    def __init__(self, socket: Any, session: str) -> None:
        self._socket, self._session, self._last = socket, session, 0
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        self._socket.send(json.dumps(message | {"sessionId": self._session}))
        while True:
            said = json.loads(self._socket.recv(WAIT_S))
            if said.get("sessionId") != self._session:
                continue
            if said.get("id") == self._last:
                assert "error" not in said, said
                return dict(said["result"])
            self._listen(said.get("method"), said.get("params"))

    def _listen(self, method: str | None, params: Any) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(json.dumps(params["entry"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(json.dumps(params["args"]))

    def js(self, expression: str) -> Any:
        done = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def until(self, condition: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not self.js(condition):
            assert time.monotonic() < deadline, (condition, self.text("error"), self.errors)
            time.sleep(0.05)

    def text(self, element: str) -> str:
        return str(self.js(f"document.getElementById({element!r}).textContent"))

    def click(self, selector: str) -> None:
        self.js(f"document.querySelector({selector!r}).click()")

    def ask(self, question: str) -> None:
        """Ask in the form and wait for the answer."""
        self.js(f"document.getElementById('question').value = {json.dumps(question)}")
        self.click("#ask")
        asked = f"document.getElementById('asked').textContent === {json.dumps(question)}"
        self.until(f"{asked} && !document.getElementById('ask').disabled")

    def pixel(self, patch: int) -> list[int]:
        """Return the colour in the middle of one of the picture's 24 x 24 patches."""
        row, column = divmod(patch, 24)
        pen = "document.querySelector('#drop canvas').getContext('2d')"
        at = f"{column * 32 + 16}, {row * 32 + 16}, 1, 1"
        return list(self.js(f"[...{pen}.getImageData({at}).data.slice(0, 3)]"))

    def settled(self) -> Page:
        """Return the page, once it has answered its first example."""
        self.until("!!document.querySelector('#history tbody tr')")
        self.until("!document.getElementById('ask').disabled")
        return self

    def show(self, **routing: Any) -> None:
        """Show an answer that was read so, about the picture that is there."""
        told = {"reason": "predicted", "visual_tokens": 124, "scales": [36], "p_suffices": None}
        answer = {"question": "q", "text": "seven", "ms": 1, "routing": told | routing}
        self.js(f"show({json.dumps(answer)})")


Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Chromium of our own, and the socket that commands it."""
    if CHROMIUM is None:
        pytest.skip("no Chromium; apt-get install chromium")
    profile = tmp_path_factory.mktemp("chromium")
    process = subprocess.Popen(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--disable-dev-shm-usage", "--remote-debugging-port=0", f"--user-data-dir={profile}",
         "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    listening = profile / "DevToolsActivePort"
    deadline = time.monotonic() + WAIT_S
    while not (listening.is_file() and len(listening.read_text().splitlines()) == 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    port, path = listening.read_text().splitlines()
    with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None) as socket:
        yield socket
    process.terminate()
    process.wait(WAIT_S)


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens an address in a tab with storage of its own, 1280 px wide and light unless told."""
    contexts: list[str] = []

    def command(method: str, **params: Any) -> dict[str, Any]:
        browser.send(json.dumps({"id": 0, "method": method, "params": params}))
        while True:
            said = json.loads(browser.recv(WAIT_S))
            if said.get("id") == 0:
                assert "error" not in said, said
                return dict(said["result"])

    def make(url: str, width: int = 1280, scheme: str = "light") -> Page:
        context = command("Target.createBrowserContext")["browserContextId"]
        contexts.append(context)
        target = command("Target.createTarget", url="about:blank", browserContextId=context)
        joined = command("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(browser, joined["sessionId"])
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=1000, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.call("Emulation.setEmulatedMedia", features=features)
        page.call("Page.navigate", url=url)
        page.until("document.readyState === 'complete'")
        return page

    yield make
    for context in contexts:
        command("Target.disposeBrowserContext", browserContextId=context)


@contextmanager
def served(api: Any) -> Iterator[str]:
    """Serves an application on a free port."""
    socket = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(
        api, log_level="critical", lifespan="off", timeout_graceful_shutdown=5,
    ))  # fmt: skip
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    server.should_exit = True
    thread.join(20)
    socket.close()


@contextmanager
def composed(**settings: Any) -> Iterator[Service]:
    """The embedded model in one process."""
    service = compose(ServeSettings(registry=None, log_dir=None, **settings))
    yield service
    service.encoder.close()
    service.generator.close()
    service.gateway.log.close()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """As it ships."""
    with composed() as made:
        yield made


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with served(service.api) as address:
        yield address


@pytest.fixture(scope="module")
def unsure_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The shipped router made to start at 1 and to look again at 576, whatever the answer."""
    finest, other = Gate(0.0, 0.0, 0.0, 9.0), Gate(0.0, 0.0, 0.0, -9.0)
    shipped = Router.from_pretrained(default_router_path())
    last = len(shipped.space) - 1
    rows = tuple((*[other] * (last - start), finest) for start in range(last))
    look = SecondLook(shipped.space.names, rows, start_price=1e6, price=0.01)
    router = Router(
        shipped.predictor, shipped.schema, shipped.policy, second_look=look, space=shipped.space
    )  # fmt: skip
    folder = router.save_pretrained(tmp_path_factory.mktemp("unsure") / "router")
    with composed(router=folder) as made, served(made.api) as address:
        yield address


@pytest.fixture(scope="module")
def focus_url(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, make_focus_router: Any
) -> Iterator[str]:
    """A small model whose router always reads 36 tokens and the cells that the question needs."""
    folder = tmp_path_factory.mktemp("focus") / "router"
    make_focus_router(folder, "36+576@250rx48")
    with composed(model=tiny_model, router=folder) as made, served(made.api) as address:
        yield address


@pytest.fixture(scope="session")
def listening() -> Callable[[Any], AbstractContextManager[str]]:
    """Serves an application on a free port; the context is its address."""
    return served
