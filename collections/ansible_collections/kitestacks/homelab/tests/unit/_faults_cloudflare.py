# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Cloudflare kinds for test_faults.py, see _faults.py."""

from __future__ import annotations

import base64
import copy
import re
import typing as t

from ansible_collections.kitestacks.homelab.plugins.modules import (
    cloudflare_access,
    cloudflare_dns_records,
    cloudflare_tunnel_config,
    cloudflare_tunnels,
)
from ansible_collections.kitestacks.homelab.tests.fakes._server import Request, Server
from ansible_collections.kitestacks.homelab.tests.fakes.cloudflare import CONTRACT, TOKEN, CloudflareApi

from ._faults import Case

ZONE = "example.com"
OURS = "[kitestacks]"
SECRET = base64.b64encode(b"s" * 32).decode()


def connection(server: Server) -> dict[str, t.Any]:
    return {"api_url": server.url, "api_token": TOKEN}


def without(value: t.Any, *names: str) -> t.Any:
    """Leave out what differs from run to run: dates, and ids (by name)."""
    dropped = {
        "id",
        "created_on",
        "modified_on",
        "comment_modified_on",
        "created_at",
        "updated_at",
        "deleted_at",
        *names,
    }
    if isinstance(value, dict):
        return {name: without(item, *names) for name, item in value.items() if name not in dropped}
    if isinstance(value, list):
        return [without(item, *names) for item in value]
    return value


# DNS records.


def dns_service() -> CloudflareApi:
    api = CloudflareApi([ZONE])
    api.add_record(ZONE, name="old1", type="A", content="192.0.2.1", comment=OURS)
    api.add_record(ZONE, name="old2", type="TXT", content="old", comment=OURS)
    api.add_record(ZONE, name="moved", type="A", content="192.0.2.2", comment=OURS)
    api.add_record(ZONE, name="alias", type="CNAME", content="before.example.net", comment=OURS)
    api.add_record(ZONE, name="kind", type="A", content="192.0.2.3", comment=OURS)
    api.add_record(ZONE, name="@", type="MX", content="mail.example.net", priority=20, comment=OURS)
    api.add_record(ZONE, name="foreign", type="A", content="192.0.2.9")
    api.add_record(ZONE, name="@", type="TXT", content="somebody-verification=1")
    api.add_record(ZONE, name="_acme-challenge", type="TXT", content="challenge", comment=OURS)
    api.add_record(ZONE, name="sub", type="NS", content="ns.example.net", comment=OURS)
    return api


def dns_foreign(api: CloudflareApi) -> t.Any:
    names = ("foreign.example.com", "_acme-challenge.example.com", "sub.example.com")
    return [
        copy.deepcopy(record)
        for record in api.zone_records(ZONE)
        if record["name"] in names or "somebody" in record["content"]
    ]


def dns_snapshot(api: CloudflareApi) -> t.Any:
    return sorted(
        (without(record) for record in api.zone_records(ZONE)),
        key=lambda record: (record["name"], record["type"], record["content"]),
    )


DNS = {
    "zone": ZONE,
    "purge": True,
    "records": [
        {"name": "new1", "type": "A", "content": "192.0.2.11"},
        {"name": "new1", "type": "A", "content": "192.0.2.12"},
        {"name": "new2", "type": "AAAA", "content": "2001:db8::1", "proxied": True},
        {"name": "@", "type": "TXT", "content": "v=spf1 -all"},
        {"name": "@", "type": "CAA", "data": {"flags": 0, "tag": "issue", "value": "ca.example.net"}},
        {
            "name": "_sip._tcp",
            "type": "SRV",
            "data": {"priority": 1, "weight": 2, "port": 5060, "target": "sip.example.com"},
        },
        {"name": "moved", "type": "A", "content": "192.0.2.22"},
        {"name": "alias", "type": "CNAME", "content": "after.example.net"},
        {"name": "kind", "type": "CNAME", "content": "target.example.net", "proxied": True},
        {"name": "@", "type": "MX", "content": "mail.example.net", "priority": 10},
    ],
}


# Tunnels.


def tunnel_service() -> CloudflareApi:
    api = CloudflareApi([ZONE])
    for name in ("live1", "live2", "kite-old1", "kite-old2", "foreign"):
        reply = api.handle(
            request("POST", f"/accounts/{api.account['id']}/cfd_tunnel", name=name, config_src="cloudflare")
        )
        assert reply.status == 200
        api.connect(reply.body["result"]["id"])
    return api


def request(method: str, path: str, **body: t.Any) -> t.Any:
    return Request(method, path, {}, {"authorization": f"Bearer {TOKEN}"}, body or None)


def tunnel_snapshot(api: CloudflareApi) -> t.Any:
    return sorted(
        (
            {
                "name": tunnel.document["name"],
                "deleted": tunnel.document["deleted_at"] is not None,
                "secret": tunnel.secret == SECRET,
                "connectors": len(tunnel.connectors),
            }
            for tunnel in api.tunnels.values()
        ),
        key=lambda tunnel: tunnel["name"],
    )


def tunnel_foreign(api: CloudflareApi) -> t.Any:
    return [
        (copy.deepcopy(tunnel.document), tunnel.secret, len(tunnel.connectors))
        for tunnel in api.tunnels.values()
        if tunnel.document["name"] == "foreign"
    ]


TUNNELS = {
    "tunnels": [
        *({"name": f"new{number}"} for number in range(8)),
        {"name": "new8", "tunnel_secret": SECRET},
        {"name": "new9", "config_src": "local"},
        {"name": "kite-old1", "state": "absent"},
    ],
    "purge": True,
    "purge_name_prefix": "kite-",
}


# The configuration of a tunnel.


def config_service() -> CloudflareApi:
    api = tunnel_service()
    tunnel = next(iter(api.tunnels.values()))
    for connector in tunnel.connectors.values():
        connector.lag = 1
    return api


def config_snapshot(api: CloudflareApi) -> t.Any:
    return next(iter(api.tunnels.values())).configuration


CONFIG = {
    "tunnel": "live1",
    "ingress": [{"hostname": f"s{number}.example.com", "service": "http://edge:8080"} for number in range(12)],
    "origin_request": {"connect_timeout": 5},
}


# Access.


def access_service() -> CloudflareApi:
    api = CloudflareApi([ZONE])
    path = f"/accounts/{api.account['id']}/access"

    def put(kind: str, **body: t.Any) -> str:
        reply = api.handle(request("POST", f"{path}/{kind}", **body))
        assert reply.status == 201, reply.body
        return str(reply.body["result"]["id"])

    family = put("groups", name="Kite family", include=[{"email": {"email": "old@example.com"}}])
    put("groups", name="Kite gone", include=[{"group": {"id": family}}])
    put("groups", name="Foreign", include=[{"everyone": {}}])
    policy = put("policies", name="Kite allow", decision="allow", include=[{"everyone": {}}])
    put("policies", name="Kite unused", decision="deny", include=[{"everyone": {}}])
    foreign = put("policies", name="Foreign", decision="deny", include=[{"everyone": {}}])
    put(
        "apps",
        name="Kite wiki",
        domain="wiki.example.com",
        type="self_hosted",
        policies=[{"id": policy, "precedence": 1}],
    )
    put(
        "apps",
        name="Kite gone",
        domain="gone.example.com",
        type="self_hosted",
        policies=[{"id": policy, "precedence": 1}],
    )
    put(
        "apps",
        name="Foreign",
        domain="foreign.example.com",
        type="self_hosted",
        policies=[{"id": foreign, "precedence": 1}],
    )
    put("identity_providers", name="Foreign", type="onetimepin", config={})
    return api


def access_snapshot(api: CloudflareApi) -> t.Any:
    names = {object_id: item["name"] for kind in api.access.values() for object_id, item in kind.items()}
    shown = {}
    for kind, items in api.access.items():
        # References by name: ids differ from run to run.
        listed = []
        for item in items.values():
            document = {name: value for name, value in item.items() if name != "id"}
            text = re.sub(r"[0-9a-f-]{36}", lambda hit: names.get(hit.group(), hit.group()), repr(document))
            listed.append(re.sub(r"'(created_at|updated_at|aud)': '[^']*'", "", text))
        shown[kind] = sorted(listed)
    return shown


def access_foreign(api: CloudflareApi) -> t.Any:
    return [copy.deepcopy(item) for kind in api.access.values() for item in kind.values() if item["name"] == "Foreign"]


ACCESS = {
    "groups": [
        {"name": "Kite admins", "include": [{"email": "a@example.com"}, {"group": "Kite family"}]},
        {"name": "Kite family", "include": [{"email_domain": "example.com"}]},
    ],
    "identity_providers": [
        {
            "name": "Kite Authentik",
            "type": "oidc",
            "client_secret": "not-a-real-one",
            "config": {
                "client_id": "access",
                "auth_url": "https://auth.example.com/authorize",
                "token_url": "https://auth.example.com/token",
                "certs_url": "https://auth.example.com/jwks",
            },
        }
    ],
    "policies": [
        {"name": "Kite allow", "decision": "allow", "include": [{"group": "Kite family"}]},
        {"name": "Kite admin", "decision": "allow", "include": [{"group": "Kite admins"}], "session_duration": "30m"},
    ],
    "applications": [
        {
            "name": "Kite wiki",
            "domain": "wiki.example.com",
            "policies": ["Kite admin", "Kite allow"],
            "allowed_identity_providers": ["Kite Authentik"],
        },
        {"name": "Kite status", "domain": "status.example.com", "policies": ["Kite allow"]},
        {"name": "Kite links", "domain": "links.example.com", "policies": []},
        {"name": "Kite files", "domain": "files.example.com/private", "policies": ["Kite admin"]},
    ],
    "purge": True,
    "purge_name_prefix": "Kite ",
}


def case(name: str, module: t.Any, options: dict[str, t.Any], changes: int, parts: tuple[t.Any, t.Any, t.Any]) -> Case:
    service, snapshot, foreign = parts
    return Case(name, module.main, options, service, connection, snapshot, foreign, changes, CONTRACT)


_DNS = (dns_service, dns_snapshot, dns_foreign)
CASES = [
    case("dns", cloudflare_dns_records, {**DNS, "batch_size": 1}, 13, _DNS),
    case("dns-batch", cloudflare_dns_records, DNS, 13, _DNS),
    case("tunnels", cloudflare_tunnels, TUNNELS, 12, (tunnel_service, tunnel_snapshot, tunnel_foreign)),
    case("config", cloudflare_tunnel_config, CONFIG, 1, (config_service, config_snapshot, tunnel_foreign)),
    case("access", cloudflare_access, ACCESS, 12, (access_service, access_snapshot, access_foreign)),
]
