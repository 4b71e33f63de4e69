"""A real headless Chromium, driven through chromedriver by the W3C's WebDriver protocol."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers import PATIENCE_S, end, free_ports, wait_for_answer

CHROMIUM = shutil.which("chromium")
CHROMEDRIVER = shutil.which("chromedriver")

ENTER = "\ue007"
"""How WebDriver spells the key."""

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""Under which name an answer holds an element (W3C WebDriver, section 12.1)."""


@dataclass(frozen=True)
class Browser:
    """One window."""

    session: str

    def open(self, url: str) -> None:
        """Go to a page, also where only what follows the # differs."""
        self._ask("url", {"url": "about:blank"})
        self._ask("url", {"url": url})

    def text(self) -> str:
        """All that the page shows."""
        return str(self.run("return document.body ? document.body.innerText : ''"))

    def run(self, script: str) -> Any:
        """What a function with this body returns in the page."""
        return self._ask("execute/sync", {"script": script, "args": []})

    def wait_for(self, *wanted: str) -> str:
        """Wait until the page shows every one of these; return all that it shows."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            text = self.text()
            missing = [what for what in wanted if what not in text]
            if not missing:
                return text
            assert time.monotonic() < deadline, f"the page does not show {missing}:\n{text}"
            time.sleep(0.5)

    def type(self, selector: str, keys: str) -> None:
        """Press keys in the element that a CSS selector finds."""
        element = self._ask("element", {"using": "css selector", "value": selector})[_ELEMENT]
        self._ask(f"element/{element}/value", {"text": keys})

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as a PNG."""
        path.write_bytes(base64.b64decode(self._ask("screenshot")))

    def _ask(self, what: str, body: dict[str, Any] | None = None) -> Any:
        return _ask(f"{self.session}/{what}", body)


def _ask(url: str, body: dict[str, Any] | None = None, *, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        reason = error.read().decode(errors="replace")
        raise AssertionError(f"chromedriver refused {url}: {reason}") from None


@contextmanager
def browsing(*, width: int = 1440, height: int = 900) -> Iterator[Browser]:
    """A window of a browser that knows nothing and reaches nothing but loopback."""
    assert CHROMIUM and CHROMEDRIVER
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        arguments = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", f"--user-data-dir={profile}",
            f"--window-size={width},{height}", "--hide-scrollbars",
            # A mouse: pages show to fingers what they show to a mouse only where it hovers.
            "--blink-settings=primaryHoverType=2,availableHoverTypes=2,"
            "primaryPointerType=4,availablePointerTypes=4",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ]  # fmt: skip
        (port,) = free_ports(1)
        log = Path(profile) / "chromedriver.log"
        with log.open("w") as output:
            driver = subprocess.Popen(
                [CHROMEDRIVER, f"--port={port}"],
                stdout=output,
                stderr=output,
                env=os.environ | {"HOME": profile},
            )
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for_answer(f"{address}/status")
            options = {"binary": CHROMIUM, "args": arguments}
            wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
            session = f"{address}/session/{_ask(f'{address}/session', wanted)['sessionId']}"
            try:
                yield Browser(session)
            finally:
                with suppress(OSError, AssertionError):
                    _ask(session, method="DELETE")
        finally:
            end(driver)
