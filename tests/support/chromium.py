"""A headless Chromium of the system, driven through its DevTools pipe: no driver, no port, no package.

Commands and events are JSON, one after the other with a zero byte between, over two pipes that the browser finds as its
descriptors 3 and 4 (`--remote-debugging-pipe`).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # tests run as root in containers
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
_PATIENCE_S = 120.0  # machines of tests are busy
Message = dict[str, Any]


def missing_browser() -> str | None:
    """Why there is no browser to test with; None where there is one."""
    return None if _program() else f"none of {', '.join(_NAMES)} is installed (Debian: apt install chromium)"


def _program() -> str | None:
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Page:
    """One page, with all that it has asked for and complained of."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.requests: list[str] = []
        """URLs that it has asked for, but for `data:`."""
        self.problems: list[str] = []
        """Errors, warnings and other messages of its console, exceptions, requests that failed."""
        self.dialogs: list[str] = []
        """What alert, confirm and prompt have said."""
        self._loaded = False

    def call(self, method: str, **parameters: Any) -> Message:
        """Send a command of the DevTools protocol to the page, and wait for its answer."""
        return self._browser.call(method, session=self._session, **parameters)

    def resize(self, width: int, *, height: int = 900, dark: bool = False) -> None:
        """Give the page another width in CSS pixels; up to 640 it is a phone."""
        phone = width <= 640
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)

    def open(self, path: Path) -> None:
        """Load a local file, and wait until it and its pictures are there."""
        self.visit(path.resolve().as_uri())
        self.evaluate("Promise.all([...document.images].map(image => image.decode().catch(() => null)))")

    def visit(self, url: str) -> None:
        """Load a page, and wait until it is there."""
        self._loaded = False
        self.call("Page.navigate", url="about:blank")  # else another fragment of the same page would load nothing
        self._browser.wait(lambda: self._loaded, "an empty page")
        self._loaded = False
        self.call("Page.navigate", url=url)
        self._browser.wait(lambda: self._loaded, f"{url} to load")

    def choose_files(self, selector: str, paths: Sequence[str]) -> None:
        """Give files to an input, as a person who chooses them."""
        self.call("DOM.enable")
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=list(paths))

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, awaited where it is a promise; it must fit into JSON."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise RuntimeError(f"{expression}: {done['exceptionDetails']}")
        return done["result"].get("value")

    def screenshot(self) -> bytes:
        """The whole page, however long, as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])

    def pdf(self) -> bytes:
        """The page as it prints, on A4."""
        sheet = {"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": False, "preferCSSPageSize": True}
        return base64.b64decode(self.call("Page.printToPDF", **sheet)["data"])

    def take(self, event: str, about: Message) -> None:
        """Note an event of the page."""
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Network.requestWillBeSent" and not about["request"]["url"].startswith("data:"):
            self.requests.append(about["request"]["url"])
        elif event == "Network.loadingFailed":
            self.problems.append(f"request failed: {about.get('errorText')}")
        elif event == "Runtime.consoleAPICalled":
            self.problems.append(f"console.{about['type']}: {about['args']}")
        elif event == "Runtime.exceptionThrown":
            self.problems.append(f"exception: {about['exceptionDetails']}")
        elif event == "Log.entryAdded":
            self.problems.append(f"{about['entry']['level']}: {about['entry']['text']}")
        elif event == "Page.javascriptDialogOpening":
            self.dialogs.append(about["message"])
            self._browser.send("Page.handleJavaScriptDialog", session=self._session, accept=False)


class Browser:
    """A running browser; see `browser`."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to_browser, self._from_browser = to_browser, from_browser
        self._buffer = b""
        self._number = 0
        self._answers: dict[int, Message] = {}
        self._pages: dict[str, Page] = {}

    def new_page(self, width: int = 1280, *, dark: bool = False) -> Page:
        """An empty page of a width in CSS pixels."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.resize(width, dark=dark)
        return page

    def call(self, method: str, *, session: str | None = None, **parameters: Any) -> Message:
        """Send a command, and wait for its answer."""
        number = self.send(method, session=session, **parameters)
        self.wait(lambda: number in self._answers, method)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def send(self, method: str, *, session: str | None = None, **parameters: Any) -> int:
        """Send a command; returns its number."""
        self._number += 1
        message: Message = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._to_browser, content) :]
        return self._number

    def wait_until(self, is_so: Callable[[], bool], what: str) -> None:
        """Ask again and again until something is so."""
        end = time.monotonic() + _PATIENCE_S
        while not is_so():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {_PATIENCE_S:.0f} s for {what}")
            time.sleep(0.1)

    def wait(self, done: Any, what: str) -> None:
        """Take messages until something is done."""
        end = time.monotonic() + _PATIENCE_S
        while not done():
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._from_browser], [], [], left)[0]:
                raise TimeoutError(f"waited {_PATIENCE_S:.0f} s for {what}")
            piece = os.read(self._from_browser, 1 << 20)
            if not piece:
                raise RuntimeError(f"the browser ended before {what}")
            *messages, self._buffer = (self._buffer + piece).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self._answers[message["id"]] = message
                elif page := self._pages.get(message.get("sessionId", "")):
                    page.take(message["method"], message["params"])


@contextmanager
def browser() -> Iterator[Browser]:
    """Start the browser with an empty profile, and end it with all its processes."""
    program = _program()
    if program is None:
        raise RuntimeError(missing_browser())
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        silent = os.open(os.devnull, os.O_RDWR)
        moves = [(os.POSIX_SPAWN_DUP2, silent, number) for number in (0, 1, 2)]
        # by way of high numbers: 3 and 4 may be those of the pipes themselves
        moves += [(os.POSIX_SPAWN_DUP2, to_read, 103), (os.POSIX_SPAWN_DUP2, from_write, 104)]
        moves += [(os.POSIX_SPAWN_DUP2, 103, 3), (os.POSIX_SPAWN_DUP2, 104, 4)]
        moves += [(os.POSIX_SPAWN_CLOSE, number) for number in (103, 104)]
        command = [program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = os.posix_spawn(program, command, os.environ, file_actions=moves, setsid=True)
        for number in (to_read, from_write, silent):
            os.close(number)
        running = Browser(to_write, from_read)
        try:
            yield running
        finally:
            with suppress(OSError, RuntimeError, TimeoutError):
                running.call("Browser.close")
            os.close(to_write)
            os.close(from_read)
            _end(process)


def _end(process: int) -> None:
    """Wait for a process of ours, then end what is left of its session."""
    end = time.monotonic() + 10
    while os.waitpid(process, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            break
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
