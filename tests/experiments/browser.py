"""Headless Chromium through ChromeDriver's own HTTP interface: no package is needed."""

import base64
import json
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1400,1000",
]
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the name that the protocol gives to one


@dataclass(frozen=True)
class Browser:
    """One window."""

    address: str

    def open(self, path: Path) -> None:
        self._post("url", url=path.resolve().as_uri())

    def script(self, code: str, *arguments: Any) -> Any:
        """What `code`, the body of a function, returns."""
        return self._post("execute/sync", script=code, args=list(arguments))

    def click(self, selector: str) -> None:
        """A real click: it fails where something lies above the element."""
        found = self._post("element", using="css selector", value=selector)[_ELEMENT]
        self._post(f"element/{found}/click")

    def pointer(self, *moves: tuple[str, int, int]) -> None:
        """`("move" | "down" | "up", x, y)`, one after the other, in the window's pixels."""
        kinds = {"move": "pointerMove", "down": "pointerDown", "up": "pointerUp"}
        actions = [
            {"type": kinds[kind], "x": x, "y": y}
            if kind == "move"
            else {"type": kinds[kind], "button": 0}
            for kind, x, y in moves
        ]
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}}
        self._post("actions", actions=[mouse | {"actions": actions}])

    def screenshot(self) -> bytes:
        return base64.b64decode(self._send("GET", "screenshot"))

    def console(self) -> list[str]:
        """What the page wrote there, errors of scripts and refused requests among it."""
        return [entry["message"] for entry in self._post("se/log", type="browser")]

    def _post(self, verb: str, **content: Any) -> Any:
        return self._send("POST", verb, content)

    def _send(self, method: str, verb: str, content: dict[str, Any] | None = None) -> Any:
        return send(method, f"{self.address}/{verb}", content)


def send(method: str, address: str, content: dict[str, Any] | None) -> Any:
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(address, data, method=method)
    open_directly = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    try:
        with open_directly(request, timeout=60) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(json.load(error)["value"]["message"]) from error


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser that sees no network; the test skips where none is installed."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or chromium is None:
        pytest.skip("no browser: install Debian's packages chromium and chromium-driver")
    with tempfile.TemporaryDirectory() as profile:
        process = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        with process, process.stdout as said:
            try:
                ready = next(
                    m for line in said if (m := re.search(r"successfully on port (\d+)", line))
                )
                sessions = f"http://127.0.0.1:{ready[1]}/session"
                flags = [*_FLAGS, f"--user-data-dir={profile}"]
                wanted = {
                    "goog:chromeOptions": {"binary": chromium, "args": flags},
                    "goog:loggingPrefs": {"browser": "ALL"},
                }
                asked = {"capabilities": {"alwaysMatch": wanted}}
                address = f"{sessions}/{send('POST', sessions, asked)['sessionId']}"
                yield Browser(address)
                send("DELETE", address, None)
            finally:
                process.terminate()
