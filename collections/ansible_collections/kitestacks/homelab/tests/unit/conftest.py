# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import subprocess

import pytest
from ansible_collections.kitestacks.homelab.plugins.module_utils import _http
from ansible_collections.kitestacks.homelab.tests.fakes._contract import Contract, folder
from ansible_collections.kitestacks.homelab.tests.fakes._server import Server
from ansible_collections.kitestacks.homelab.tests.fakes.cloudflare import CONTRACT as CLOUDFLARE_CONTRACT
from ansible_collections.kitestacks.homelab.tests.fakes.cloudflare import CloudflareApi


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """Return a PEM file with a self-signed certificate for 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text((folder / "cert.pem").read_text() + (folder / "key.pem").read_text())
    return both


@pytest.fixture
def waits(monkeypatch):
    """Let no client wait; return the seconds that it would have waited."""
    slept: list[float] = []
    monkeypatch.setattr(_http, "_sleep", slept.append)
    monkeypatch.setattr(_http, "_clock", lambda: sum(slept))
    return slept


@pytest.fixture
def cloudflare():
    """Serve a Cloudflare account with the zone example.com; `server.service` is its state."""
    with Server(CloudflareApi(["example.com"]), contract=Contract.load(CLOUDFLARE_CONTRACT)) as server:
        yield server
        assert not server.violations


def pytest_terminal_summary(terminalreporter):
    """Say at the end when requests and answers were not checked against the vendors' documents."""
    for name in ("cloudflare-subset.json", "authentik-subset.json"):
        if not (folder() / name).is_file():
            terminalreporter.write_line(f"contract check off: no {name} in KITE_CONTRACTS or ../shared/contracts")
