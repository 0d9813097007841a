"""Open a page in headless Chromium by the DevTools protocol, through pipes and without a network.

https://chromedevtools.github.io/devtools-protocol/ describes the methods.
"""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
"""The browser, or None where there is none."""

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class View(NamedTuple):
    """A page as the browser shows it at one width."""

    width: int  # of the window, CSS pixels
    content: int  # width that the content takes, CSS pixels
    overflowing: list[str]  # elements that reach beyond the window outside of boxes that scroll
    background: str  # colour of the body
    messages: list[str]  # errors and warnings of the console, and failed requests
    screenshot: bytes  # PNG of the whole page


class Session:
    """A connection to a browser with one tab."""

    def __init__(self, send: int, receive: int):
        self.send, self.receive = os.fdopen(send, "wb"), os.fdopen(receive, "rb")
        self.number, self.buffer, self.events = 0, b"", []
        self.target = ""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method and return its result; events that come before it are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.target:
            message["sessionId"] = self.target
        self.send.write(json.dumps(message).encode() + b"\0")
        self.send.flush()
        while True:
            answer = self.read()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def wait(self, event: str) -> None:
        """Wait for an event."""
        while not any(each.get("method") == event for each in self.events):
            self.events.append(self.read())

    def read(self) -> dict[str, Any]:
        """Return the next message of the browser."""
        while b"\0" not in self.buffer:
            part = os.read(self.receive.fileno(), 1 << 20)
            assert part, "the browser has ended"
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def session() -> Iterator[Session]:
    """Start a browser with an empty profile, and end it afterwards."""
    assert CHROMIUM
    pipes = [*os.pipe(), *os.pipe()]
    to_browser, send, receive, from_browser = (fcntl.fcntl(p, fcntl.F_DUPFD, 10) for p in pipes)
    for pipe in pipes:
        os.close(pipe)
    # The browser reads from 3 and writes to 4. A function that places them before the start would
    # take a fork, of which JAX warns.
    place = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = subprocess.Popen(
            ["bash", "-c", place, "bash", CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        opened = Session(send, receive)
        try:
            target = opened.call("Target.createTarget", url="about:blank")["targetId"]
            attached = opened.call("Target.attachToTarget", targetId=target, flatten=True)
            opened.target = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                opened.call(f"{domain}.enable")
            yield opened
        finally:
            browser.terminate()
            browser.wait(20)
            opened.send.close()
            opened.receive.close()


OVERFLOWING = """
[...document.querySelectorAll('body *')].filter(e => {
  if (e.getBoundingClientRect().right <= innerWidth + 0.5) return false;
  for (let a = e.parentElement; a; a = a.parentElement)
    if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(a).overflowX)) return false;
  return true;
}).map(e => e.tagName + '.' + e.className)
"""


def view(path: Path, width: int, dark: bool = False) -> View:
    """Open a page and return its screenshot and its layout.

    Args:
      path: the HTML file.
      width: width of the window in CSS pixels.
      dark: whether the reader prefers dark colours.
    """
    with session() as tab:
        tab.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.call("Emulation.setEmulatedMedia", features=[scheme])
        tab.call("Page.navigate", url=path.absolute().as_uri())
        tab.wait("Page.loadEventFired")

        def value(expression: str) -> Any:
            result = tab.call("Runtime.evaluate", expression=expression, returnByValue=True)
            return result["result"]["value"]

        content = value("document.documentElement.scrollWidth")
        overflowing = value(OVERFLOWING)
        background = value("getComputedStyle(document.body).backgroundColor")
        shot = tab.call("Page.captureScreenshot", captureBeyondViewport=True)
        messages = []
        for event in tab.events:
            about = event.get("params", {})
            if event.get("method") in ("Runtime.exceptionThrown", "Network.loadingFailed"):
                messages.append(json.dumps(about))
            if event.get("method") == "Log.entryAdded":
                messages.append(about["entry"]["text"])
            if event.get("method") == "Runtime.consoleAPICalled":
                messages.append(json.dumps(about["args"]))
            if event.get("method") == "Network.requestWillBeSent":
                url = about["request"]["url"]
                if not url.startswith(("data:", "file:", "about:")):
                    messages.append(f"request {url}")
        screenshot = base64.b64decode(shot["data"])
    return View(width, content, overflowing, background, messages, screenshot)
