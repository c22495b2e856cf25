# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Cloudflare modules through the real ansible-playbook: the examples of their documentation, and their secrets."""

from __future__ import annotations

import base64
import importlib
import syslog

import pytest
import yaml
from ansible.module_utils import basic
from ansible_collections.kitestacks.homelab.plugins.modules import cloudflare_access, cloudflare_tunnels
from ansible_collections.kitestacks.homelab.tests.fakes._contract import Contract
from ansible_collections.kitestacks.homelab.tests.fakes._server import Server
from ansible_collections.kitestacks.homelab.tests.fakes.cloudflare import CONTRACT, PERMISSIONS, TOKEN, CloudflareApi

from ._module import run_module
from ._playbook import check_rounds, play, three_times

MODULES = ["access", "dns_records", "info", "tunnel_config", "tunnels"]
GROUP = "group/kitestacks.homelab.cloudflare"


def defaults(server, token=TOKEN):
    return {GROUP: {"api_url": server.url, "api_token": token}}


def examples(module):
    path = f"ansible_collections.kitestacks.homelab.plugins.modules.cloudflare_{module}"
    return yaml.safe_load(importlib.import_module(path).EXAMPLES)


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_run_in_check_mode_for_real_and_without_changes(cloudflare, tmp_path, module):
    if module == "tunnel_config":
        run_module(cloudflare_tunnels.main, api_url=cloudflare.url, api_token=TOKEN, tunnels=[{"name": "homelab"}])
    played = play(
        tmp_path,
        three_times(examples(module)),
        "--diff",
        defaults=defaults(cloudflare),
        environment={"AUTHENTIK_CLIENT_SECRET": "not-a-real-one"},
    )
    check_rounds(played)


KNOWN = "kn0wn"
TOKEN_SECRET = f"{KNOWN}-api-token"
TUNNEL_SECRET = base64.b64encode(f"{KNOWN}-tunnel-secret-of-32-bytes-or-so".encode()).decode()
OTHER_SECRET = base64.b64encode(f"{KNOWN}-another-secret-of-32-bytes-or-so".encode()).decode()
CLIENT_SECRET = f"{KNOWN}-client-secret"
SHORT_SECRET = base64.b64encode(f"{KNOWN}-short".encode()).decode()


def provider(secret=CLIENT_SECRET, **config):
    urls = dict.fromkeys(("auth_url", "token_url", "certs_url"), "https://auth.example.com/x")
    return {"name": "i", "type": "oidc", "client_secret": secret, "config": {"client_id": "c", **urls, **config}}


def tasks():
    prefix = "kitestacks.homelab.cloudflare_"
    tunnel = {"name": "homelab", "tunnel_secret": TUNNEL_SECRET}
    record = {"name": "www", "type": "A", "content": "192.0.2.1"}
    listed = [
        ("create", "tunnels", {"tunnels": [tunnel]}, {}),
        ("rotate", "tunnels", {"tunnels": [{**tunnel, "tunnel_secret": OTHER_SECRET, "rotate_secret": True}]}, {}),
        ("token", "tunnels", {"tunnels": [{"name": "homelab"}], "return_token": True}, {"no_log": True}),
        ("refused", "tunnels", {"tunnels": [{**tunnel, "tunnel_secret": SHORT_SECRET}]}, {}),
        ("config", "tunnel_config", {"tunnel": "homelab", "ingress": []}, {}),
        ("access", "access", {"identity_providers": [provider()]}, {}),
        ("access changed", "access", {"identity_providers": [provider(auth_url="https://b.example.com")]}, {}),
        ("access rotated", "access", {"identity_providers": [{**provider(f"{KNOWN}-2"), "rotate_secret": True}]}, {}),
        ("access wrong", "access", {"identity_providers": [provider(auth_url=CLIENT_SECRET)]}, {}),
        ("dns", "dns_records", {"zone": "example.com", "records": [record]}, {}),
        ("dns fails", "dns_records", {"zone": "example.com", "records": [{**record, "name": "echo"}]}, {}),
        ("info", "info", {"zone": "example.com", "permissions": ["dns_write"]}, {}),
    ]
    return [
        {"name": name, prefix + module: options, "ignore_errors": True, **more}
        for name, module, options, more in listed
    ]


def test_no_secret_is_shown_at_the_highest_verbosity(tmp_path):
    api = CloudflareApi(["example.com"], tokens={TOKEN_SECRET: PERMISSIONS})
    with Server(api, contract=Contract.load(CONTRACT)) as server:
        # A server that repeats what it was sent.
        echo = {"success": False, "errors": [{"code": 1, "message": f"no: Bearer {TOKEN_SECRET}"}], "result": None}
        server.fault(status=400, path="batch", write=1, body=echo)
        played = play(tmp_path, tasks(), "-vvv", "--diff", defaults=defaults(server, TOKEN_SECRET))
        tunnel = next(iter(api.tunnels.values()))
        assert tunnel.secret == OTHER_SECRET
        token = api.token(tunnel.document["id"])
    outcomes = {record["task"]: record["outcome"] for record in played.records}
    failed = {name for name, outcome in outcomes.items() if outcome == "failed"}
    assert failed == {"refused", "access wrong", "dns fails"}, played.stdout
    assert len(outcomes) == len(tasks())
    shown = played.everything
    for secret in (TOKEN_SECRET, TUNNEL_SECRET, OTHER_SECRET, CLIENT_SECRET, SHORT_SECRET, f"{KNOWN}-2", token, KNOWN):
        assert secret not in shown
        assert base64.b64encode(secret.encode()).decode() not in shown
    assert "********" in shown  # the diff says that there is something


def test_no_secret_is_in_the_line_for_syslog(cloudflare, monkeypatch):
    lines = []
    monkeypatch.setattr(basic, "has_journal", False)
    monkeypatch.setattr(syslog, "syslog", lambda *arguments: lines.append(" ".join(map(str, arguments))))
    options = {"api_url": cloudflare.url, "api_token": TOKEN, "_ansible_no_log": False}
    run_module(cloudflare_tunnels.main, tunnels=[{"name": "a", "tunnel_secret": TUNNEL_SECRET}], **options)
    run_module(cloudflare_access.main, identity_providers=[provider()], **options)
    assert len(lines) == 2
    for secret in (TOKEN, TUNNEL_SECRET, CLIENT_SECRET):
        assert all(secret not in line for line in lines)
    assert "api_url=http" in lines[0]
