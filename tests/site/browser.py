"""A headless Chromium (Debian's package), for which the lab's Cloudflare is the internet."""

from __future__ import annotations

import base64
import itertools
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab import certificates, settings
from lab.shell import run

ARTIFACTS = settings.ROOT / ".artifacts"


class Browser:
    """One page, driven over Chromium's own debugging pipe: JSON messages that end with a zero byte."""

    def __init__(self, process: subprocess.Popen[bytes], send: int, receive: int) -> None:
        """Open a page."""
        self._process = process
        self._send, self._receive = send, os.fdopen(receive, "rb", buffering=0)
        self._numbers = itertools.count(1)
        self._rest = b""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._page = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def _call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            line, zero, self._rest = self._rest.partition(b"\0")
            if not zero:
                more = self._receive.read(65536)
                assert more, "Chromium ended"
                self._rest = line + more
                continue
            answer = json.loads(line)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def open(self, url: str) -> None:
        """Go to an address."""
        self._call("Page.navigate", self._page, url=url)

    def run(self, script: str) -> Any:
        """Return what an expression of JavaScript gives in the page; None while it is on its way to another."""
        found = self._call("Runtime.evaluate", self._page, expression=script, returnByValue=True)
        return None if "exceptionDetails" in found else found["result"].get("value")

    @property
    def url(self) -> str:
        """Where the page is."""
        return str(self.run("location.href"))

    @property
    def text(self) -> str:
        """What a person reads."""
        return str(self.run("document.body ? document.body.innerText : ''") or "")

    def wait(self, script: str, seconds: float = 30) -> None:
        """Wait until an expression is true in the page."""
        deadline = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < deadline, f"{script} is not so at {self.url}: {self.text[:500]}"
            time.sleep(0.1)

    def fill(self, field: str, value: str) -> None:
        """Type into the field of a form, when it is there."""
        selector = json.dumps(f"input[name={field}]")
        self.wait(f"!!document.querySelector({selector})")
        self.run(f"document.querySelector({selector}).focus()")
        self._call("Input.insertText", self._page, text=value)

    def enter(self) -> None:
        """Press Enter."""
        for kind in ("keyDown", "keyUp"):
            key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
            self._call("Input.dispatchKeyEvent", self._page, type=kind, **key)

    def screenshot(self, name: str) -> Path:
        """Keep a picture of the page as an artifact."""
        ARTIFACTS.mkdir(exist_ok=True)
        picture = self._call("Page.captureScreenshot", self._page, format="png")["data"]
        path = ARTIFACTS / f"{name}.png"
        path.write_bytes(base64.b64decode(picture))
        return path

    def close(self) -> None:
        """End the browser, and all that it has started."""
        self._call("Browser.close")
        self._process.wait(10)


@contextmanager
def browser() -> Iterator[Browser]:
    """Yield a browser with no memory, which reaches the homelab's public names and nothing else."""
    run(settings.ROOT / "bin" / "setup", "packages", "chromium")
    to_us, from_it = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        words = [
            *(
                "chromium",
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
            ),
            *("--remote-debugging-pipe", f"--user-data-dir={profile}", "--window-size=1100,800"),
            f"--host-resolver-rules=MAP *.{settings.DOMAIN} {settings.CLOUDFLARE.address}, MAP * ~NOTFOUND",
            # Trusts the lab's certificate, and no other that it would not have trusted before.
            f"--ignore-certificate-errors-spki-list={_pin()}",
            "about:blank",
        ]
        # The pipe is at the descriptors 3 and 4, whatever ours are.
        shell = ["bash", "-c", f'exec "$@" 3<&{to_us[0]} 4>&{from_it[1]}', "chromium", *words]
        process = subprocess.Popen(shell, pass_fds=(to_us[0], from_it[1]), stderr=subprocess.DEVNULL)
        os.close(to_us[0])
        os.close(from_it[1])
        try:
            page = Browser(process, to_us[1], from_it[0])
            yield page
            page.close()
        finally:
            process.kill()
            process.wait()
            os.close(to_us[1])


def _pin() -> str:
    certificate = certificates.FOLDER / "server.crt"
    key = f"openssl x509 -in {certificate} -noout -pubkey | openssl pkey -pubin -outform der"
    pipeline = f"{key} | openssl dgst -sha256 -binary"
    digest = subprocess.run(["bash", "-c", pipeline], check=True, capture_output=True).stdout
    return base64.b64encode(digest).decode()
