"""A headless Chromium (Debian's package), driven by Playwright, for which the lab's Cloudflare is the internet."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright import sync_api

from lab import certificates, settings
from lab.shell import run

ARTIFACTS = settings.ROOT / ".artifacts"


class Browser:
    """One page, and what a person does with it."""

    def __init__(self, page: sync_api.Page) -> None:
        """Take over a page."""
        self._page = page

    def open(self, url: str) -> None:
        """Go to an address."""
        self._page.goto(url, wait_until="domcontentloaded")

    def run(self, script: str) -> Any:
        """Return what an expression of JavaScript gives in the page; None while it is on its way to another."""
        try:
            return self._page.evaluate(script)
        except sync_api.Error:
            return None

    @property
    def url(self) -> str:
        """Where the page is."""
        return self._page.url

    @property
    def text(self) -> str:
        """What a person reads."""
        return str(self.run("document.body ? document.body.innerText : ''") or "")

    def wait(self, script: str, seconds: float = 30) -> None:
        """Wait until an expression is true in the page."""
        try:
            self._page.wait_for_function(script, timeout=seconds * 1000)
        except sync_api.TimeoutError:
            raise AssertionError(f"{script} is not so at {self.url}: {self.text[:500]}") from None

    def fill(self, field: str, value: str) -> None:
        """Type into the field of a form, when it is there."""
        self._page.locator(f"input[name={field}]").fill(value)

    def enter(self) -> None:
        """Press Enter."""
        self._page.keyboard.press("Enter")

    def screenshot(self, name: str) -> Path:
        """Keep a picture of the page as an artifact."""
        path = ARTIFACTS / f"{name}.png"
        self._page.screenshot(path=path)
        return path


@contextmanager
def browser() -> Iterator[Browser]:
    """Yield a browser with no memory, which reaches the homelab's public names and nothing else."""
    run(settings.ROOT / "bin" / "setup", "packages", "chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=[
                f"--host-resolver-rules=MAP *.{settings.DOMAIN} {settings.CLOUDFLARE.address}, MAP * ~NOTFOUND",
                # Trusts the lab's certificate, and no other that it would not have trusted before.
                f"--ignore-certificate-errors-spki-list={_pin()}",
            ],
        )
        yield Browser(chromium.new_page(viewport={"width": 1100, "height": 800}))
        chromium.close()


def _pin() -> str:
    certificate = certificates.FOLDER / "server.crt"
    key = f"openssl x509 -in {certificate} -noout -pubkey | openssl pkey -pubin -outform der"
    pipeline = f"{key} | openssl dgst -sha256 -binary"
    digest = subprocess.run(["bash", "-c", pipeline], check=True, capture_output=True).stdout
    return base64.b64encode(digest).decode()
