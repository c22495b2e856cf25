# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stateful fake of the Cloudflare API: zones, DNS records, tunnels, Access.

`CloudflareApi` is the state and the rules; `_server.Server` speaks HTTP for it. An edge that shares the state reads
`resolve`, `ingress` and `authorise`, reports connectors through `connect`, `applied` and `disconnect`, and is told of
changes through `listeners`. An edge with real connections reports each of them through `opened` and `closed` instead.

Where the vendor documents no behaviour this fake takes the strict side: an Access policy that an application uses
cannot be deleted, a batch has at most 200 changes, a comment at most 100 characters (the Free plan).

Run it: `python -m ansible_collections.kitestacks.homelab.tests.fakes.cloudflare --port 8080 --zone example.com`.
"""

from __future__ import annotations

import argparse
import base64
import copy
import datetime
import hmac
import ipaddress
import json
import re
import typing as t
import uuid
from dataclasses import dataclass, field

from ._contract import Contract
from ._server import Reply, Request, Server

CONTRACT = "cloudflare-subset.json"
TOKEN = "fake-token"
PERMISSIONS = frozenset(
    {
        "Zone Read",
        "DNS Read",
        "DNS Write",
        "Cloudflare Tunnel Read",
        "Cloudflare Tunnel Write",
        "Access: Apps and Policies Read",
        "Access: Apps and Policies Write",
        "Access: Organizations, Identity Providers, and Groups Read",
        "Access: Organizations, Identity Providers, and Groups Write",
    }
)
ADDRESS_TYPES = ("A", "AAAA", "CNAME")
DATA_TYPES = (
    "CAA", "CERT", "DNSKEY", "DS", "HTTPS", "LOC", "NAPTR", "SMIMEA", "SRV", "SSHFP", "SVCB", "TLSA", "URI",
)  # fmt: skip
PLAIN_TYPES = ("A", "AAAA", "CNAME", "MX", "NS", "OPENPGPKEY", "PTR", "TXT")
RECORD_KEYS = {
    "name", "type", "content", "data", "ttl", "proxied", "comment", "tags", "settings", "priority", "private_routing",
}  # fmt: skip
BATCH_LIMIT = 200

Document = dict[str, t.Any]


class VendorError(Exception):
    """A request that the API refuses, in the vendor's words."""

    def __init__(self, status: int, code: int, message: str, chain: tuple[tuple[int, str], ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        error: Document = {"code": code, "message": message}
        if chain:
            error["error_chain"] = [{"code": number, "message": text} for number, text in chain]
        self.errors = [error]


@dataclass
class Connector:
    """One running cloudflared: `pending` polls of the API pass before it reports a configuration that was pushed."""

    client_id: str
    config_version: int = 0
    version: str = "2026.8.2"
    connections: list[Document] = field(default_factory=list)
    lag: int = 0
    pending: int = 0


@dataclass
class Tunnel:
    """A tunnel with what the API never shows of it: its secret."""

    document: Document
    secret: str
    configuration: Document | None = None
    version: int = 0
    connectors: dict[str, Connector] = field(default_factory=dict)


class CloudflareApi:
    """The state of a Cloudflare account and the rules by which requests change it."""

    base_path = "/client/v4"

    def __init__(
        self,
        zones: t.Iterable[str] = ("example.com",),
        *,
        tokens: t.Mapping[str, t.Iterable[str]] | None = None,
        quote_txt: bool = True,
        rate_limit: int = 1_000_000,
    ) -> None:
        """Make an account that holds zones.

        Args:
            zones: names of zones.
            tokens: permissions by token; by default the token `fake-token` has all of them.
            quote_txt: whether TXT content is given back in quotes; the real API has done both.
            rate_limit: requests after which 429 is answered.
        """
        self.tokens = {name: set(rights) for name, rights in (tokens or {TOKEN: PERMISSIONS}).items()}
        self.quote_txt = quote_txt
        self.rate_limit = rate_limit
        self.requests = 0
        self.account: Document = {"id": _hex(1), "name": "Home", "type": "standard"}
        self.zones: dict[str, Document] = {}
        self.records: dict[str, dict[str, Document]] = {}
        self.tunnels: dict[str, Tunnel] = {}
        self.access: dict[str, dict[str, Document]] = {kind: {} for kind in ACCESS}
        self.listeners: list[t.Callable[[str, str], None]] = []
        self._ghosts: dict[str, int] = {}
        self._serial = 100
        for name in zones:
            self.add_zone(name)

    # What tests and an edge use.

    def add_zone(self, name: str) -> str:
        """Add a zone with the records that every zone has, and return its id."""
        zone_id = self._hex_id()
        self.zones[zone_id] = {
            "id": zone_id,
            "name": name,
            "status": "active",
            "type": "full",
            "paused": False,
            "development_mode": 0,
            "owner": {"type": "user"},
            "account": {"id": self.account["id"], "name": self.account["name"]},
            "meta": {"step": 2, "page_rule_quota": 3, "phishing_detected": False},
            "name_servers": ["ada.ns.example.net", "bob.ns.example.net"],
            "original_name_servers": None,
            "original_registrar": None,
            "original_dnshost": None,
            "created_on": _now(),
            "modified_on": _now(),
            "activated_on": _now(),
            "plan": {"id": _hex(2), "name": "Free Website", "price": 0, "legacy_id": "free"},
        }
        self.records[zone_id] = {}
        return zone_id

    def zone_id(self, name: str) -> str:
        """Return the id of a zone."""
        return next(zone_id for zone_id, zone in self.zones.items() if zone["name"] == name)

    def add_record(self, zone: str, **document: t.Any) -> Document:
        """Put a record in a zone as if it had always been there."""
        return self._record_create(self.zone_id(zone), {"ttl": 1, **document})

    def zone_records(self, zone: str) -> list[Document]:
        """Return the records of a zone."""
        return list(self.records[self.zone_id(zone)].values())

    def resolve(self, name: str) -> list[Document]:
        """Return the records of a host name in any zone: what an edge needs to route a public request."""
        wanted = _ascii(name)
        return [record for records in self.records.values() for record in records.values() if record["name"] == wanted]

    def ingress(self, tunnel_id: str) -> tuple[int, Document | None]:
        """Return version and configuration of a tunnel, as an edge pushes them to a connector."""
        tunnel = self.tunnels[tunnel_id]
        return tunnel.version, tunnel.configuration

    def authorise(self, account: str, tunnel_id: str, secret: str) -> bool:
        """Tell whether a connector's token is right: the edge's check when it registers."""
        tunnel = self.tunnels.get(tunnel_id)
        alive = tunnel is not None and tunnel.document["deleted_at"] is None
        return bool(alive and tunnel and account == self.account["id"] and hmac.compare_digest(secret, tunnel.secret))

    def connect(self, tunnel_id: str, client_id: str | None = None, *, connections: int = 4, lag: int = 0) -> Connector:
        """Record a connector with its connections; it runs the current configuration.

        Args:
            tunnel_id: the tunnel.
            client_id: the connector's uuid; made up when not given.
            connections: how many connections it holds.
            lag: polls of the API before it reports a configuration that was pushed; -1 never.
        """
        tunnel = self.tunnels[tunnel_id]
        connector = Connector(client_id or str(uuid.uuid4()), tunnel.version, lag=lag)
        connector.connections = [_connection(connector, "192.0.2.1") for _number in range(connections)]
        tunnel.connectors[connector.client_id] = connector
        return connector

    def opened(self, tunnel_id: str, client_id: str, version: str, address: str) -> str:
        """Record one connection that an edge accepted, and return its id; the edge reports what is `applied`.

        Args:
            tunnel_id: the tunnel.
            client_id: the connector's uuid.
            version: the connector's version.
            address: where it connects from.
        """
        tunnel = self.tunnels[tunnel_id]
        connector = tunnel.connectors.setdefault(client_id, Connector(client_id, version=version, lag=-1))
        connection = _connection(connector, address)
        connector.connections.append(connection)
        tunnel.document.update(conns_active_at=_now(), conns_inactive_at=None)
        return str(connection["id"])

    def closed(self, tunnel_id: str, client_id: str, connection_id: str) -> None:
        """Record that a connection ended; a connector without any is forgotten."""
        tunnel = self.tunnels[tunnel_id]
        connector = tunnel.connectors.get(client_id)
        if connector is None:
            return
        connector.connections = [known for known in connector.connections if known["id"] != connection_id]
        if not connector.connections:
            del tunnel.connectors[client_id]
        if not tunnel.connectors:
            tunnel.document.update(conns_active_at=None, conns_inactive_at=_now())

    def applied(self, tunnel_id: str, client_id: str, version: int) -> None:
        """Record that a connector runs this version of the configuration."""
        self.tunnels[tunnel_id].connectors[client_id].config_version = version

    def disconnect(self, tunnel_id: str, client_id: str) -> None:
        """Forget a connector."""
        self.tunnels[tunnel_id].connectors.pop(client_id, None)

    def token(self, tunnel_id: str) -> str:
        """Return the token that a connector is started with."""
        secret = self.tunnels[tunnel_id].secret
        document = {"a": self.account["id"], "t": tunnel_id, "s": secret}
        return base64.b64encode(json.dumps(document, separators=(",", ":")).encode()).decode()

    def haunt(self, name: str, refusals: int) -> None:
        """Let the next creations of this name be refused as if a deleted record were still there."""
        self._ghosts[name] = refusals

    # Requests.

    def handle(self, request: Request) -> Reply:
        """Answer a request."""
        self.requests += 1
        headers = {"Ratelimit": f'"default";r={max(0, self.rate_limit - self.requests)};t=300'}
        headers["Ratelimit-Policy"] = f'"default";q={self.rate_limit};w=300'
        try:
            if self.requests > self.rate_limit:
                headers["Retry-After"] = "300"
                raise VendorError(429, 971, "Please wait and consider throttling your request speed")
            reply = self._route(request)
        except VendorError as refused:
            body = {"success": False, "errors": refused.errors, "messages": [], "result": None}
            reply = Reply(refused.status, body)
        reply.headers.update(headers)
        return reply

    def _route(self, request: Request) -> Reply:
        scheme, _space, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise VendorError(401, 9106, "Missing X-Auth-Key, X-Auth-Email or Authorization headers")
        if token not in self.tokens:
            raise VendorError(401 if request.path.endswith("/verify") else 403, 1000, "Invalid API Token")
        for method, pattern, permission, name in ROUTES:
            hit = re.fullmatch(pattern, request.path)
            if hit is None or method != request.method:
                continue
            if permission and not self._may(token, permission):
                raise VendorError(403, 10000, "Authentication error")
            if request.method in ("POST", "PUT", "PATCH") and not isinstance(request.body, (dict, type(None))):
                raise VendorError(400, 6003, "Could not parse the request body")
            if hit.groupdict().get("account_id", self.account["id"]) != self.account["id"]:
                raise VendorError(
                    404, 7003, "Could not route to the account, perhaps your object identifier is invalid?"
                )
            if hit.groupdict().get("zone_id", next(iter(self.zones), "")) not in self.zones:
                raise VendorError(404, 7003, "Could not route to the zone, perhaps your object identifier is invalid?")
            names = {key: value for key, value in hit.groupdict().items() if key != "account_id"}
            reply: Reply = getattr(self, name)(request, **names)
            return reply
        raise VendorError(404, 7000, "No route for that URI")

    def _may(self, token: str, permission: str) -> bool:
        rights = self.tokens[token]
        return permission in rights or permission.replace(" Read", " Write") in rights

    # Tokens, accounts, zones.

    def _verify(self, _request: Request) -> Reply:
        return _ok({"id": _hex(3), "status": "active"})

    def _accounts(self, request: Request) -> Reply:
        return _page([self.account], request, default=20, totals=False)

    def _zones(self, request: Request) -> Reply:
        name = request.query.get("name")
        return _page([zone for zone in self.zones.values() if name in (None, zone["name"])], request, default=20)

    def _zone(self, _request: Request, zone_id: str) -> Reply:
        return _ok(self.zones[zone_id])

    # DNS records.

    def _records(self, request: Request, zone_id: str) -> Reply:
        tests: dict[str, t.Callable[[Document, str], bool]] = {
            "name": lambda record, value: record["name"] == _ascii(value),
            "type": lambda record, value: record["type"] == value,
            "content": lambda record, value: record["content"] == value,
            "comment.contains": lambda record, value: value in (record["comment"] or ""),
        }
        found = [
            record
            for record in self.records[zone_id].values()
            if all(test(record, request.query[name]) for name, test in tests.items() if name in request.query)
        ]
        return _page(found, request, default=100, largest=5_000_000)

    def _record(self, _request: Request, zone_id: str, record_id: str) -> Reply:
        return _ok(self._record_found(zone_id, record_id))

    def _record_post(self, request: Request, zone_id: str) -> Reply:
        return _ok(self._record_create(zone_id, request.body))

    def _record_put(self, request: Request, zone_id: str, record_id: str) -> Reply:
        return _ok(self._record_replace(zone_id, record_id, request.body))

    def _record_patch(self, request: Request, zone_id: str, record_id: str) -> Reply:
        return _ok(self._record_merge(zone_id, record_id, request.body))

    def _record_delete(self, _request: Request, zone_id: str, record_id: str) -> Reply:
        self._record_found(zone_id, record_id)
        del self.records[zone_id][record_id]
        self._tell("dns", zone_id)
        return _ok({"id": record_id})

    def _batch(self, request: Request, zone_id: str) -> Reply:
        _known(request.body or {}, {"deletes", "patches", "puts", "posts"})
        parts: dict[str, list[Document]] = {
            name: (request.body or {}).get(name) or [] for name in ("deletes", "patches", "puts", "posts")
        }
        if sum(map(len, parts.values())) > BATCH_LIMIT:
            raise VendorError(400, 1004, f"DNS Validation Error: a batch may hold {BATCH_LIMIT} changes at most")
        kept = copy.deepcopy(self.records[zone_id])
        done: dict[str, list[Document]] = {name: [] for name in parts}
        try:
            for item in parts["deletes"]:
                done["deletes"].append(self._record_found(zone_id, item["id"]))
                del self.records[zone_id][item["id"]]
            for item in parts["patches"]:
                body = {name: value for name, value in item.items() if name != "id"}
                done["patches"].append(self._record_merge(zone_id, item["id"], body))
            for item in parts["puts"]:
                body = {name: value for name, value in item.items() if name != "id"}
                done["puts"].append(self._record_replace(zone_id, item["id"], body))
            for item in parts["posts"]:
                done["posts"].append(self._record_create(zone_id, item))
        except VendorError:
            self.records[zone_id] = kept  # one transaction
            raise
        self._tell("dns", zone_id)
        return _ok(done)

    def _record_found(self, zone_id: str, record_id: str) -> Document:
        if record_id not in self.records[zone_id]:
            raise VendorError(404, 81044, "Record does not exist.")
        return self.records[zone_id][record_id]

    def _record_create(self, zone_id: str, body: Document) -> Document:
        record_id = self._hex_id()
        record = self._record_made(zone_id, record_id, body, {})
        self.records[zone_id][record_id] = record
        self._tell("dns", zone_id)
        return record

    def _record_replace(self, zone_id: str, record_id: str, body: Document) -> Document:
        old = self._record_found(zone_id, record_id)
        new = self._record_made(zone_id, record_id, body, old)
        self.records[zone_id][record_id] = new
        self._tell("dns", zone_id)
        return new

    def _record_merge(self, zone_id: str, record_id: str, body: Document) -> Document:
        old = self._record_found(zone_id, record_id)
        _known(body, RECORD_KEYS)
        kept = {name: value for name, value in old.items() if name in RECORD_KEYS}
        if old["type"] in DATA_TYPES:
            kept.pop("content")
        if body.get("type", old["type"]) != old["type"]:
            raise VendorError(400, 1004, "DNS Validation Error", ((9000, "The record type cannot be changed."),))
        merged = {**kept, **body}
        if "data" in body:
            merged["data"] = {**old["data"], **body["data"]}
        return self._record_replace(zone_id, record_id, merged)

    def _record_made(self, zone_id: str, record_id: str, body: Document, old: Document) -> Document:
        _known(body, RECORD_KEYS)
        zone = self.zones[zone_id]["name"]
        kind = body.get("type")
        if kind not in PLAIN_TYPES + DATA_TYPES:
            raise VendorError(400, 1004, "DNS Validation Error", ((9018, f"Invalid DNS record type {kind}."),))
        name = _ascii(str(body.get("name", "")))
        if name in ("@", ""):
            name = zone
        elif name != zone and not name.endswith(f".{zone}"):
            name = f"{name}.{zone}"
        ttl = body.get("ttl", 1)
        if ttl != 1 and not 60 <= ttl <= 86400:
            raise VendorError(
                400, 1004, "DNS Validation Error", ((9021, "Invalid TTL. Must be between 60 and 86400."),)
            )
        proxied = bool(body.get("proxied"))
        if proxied and kind not in ADDRESS_TYPES:
            raise VendorError(400, 1004, "DNS Validation Error", ((9004, "This record type cannot be proxied."),))
        if len(body.get("comment") or "") > 100:
            raise VendorError(400, 1004, "DNS Validation Error: the comment has more than 100 characters")
        if body.get("tags"):
            raise VendorError(400, 1004, "DNS Validation Error: tags are not available on this plan")
        record: Document = {
            "id": record_id,
            "name": name,
            "type": kind,
            "content": self._content(kind, body),
            "proxiable": kind in ADDRESS_TYPES,
            "proxied": proxied,
            "ttl": 1 if proxied else ttl,
            "settings": dict(body.get("settings") or {}),
            "meta": {},
            "comment": body.get("comment") or None,
            "tags": [],
            "created_on": old.get("created_on", _now()),
            "modified_on": _now(),
        }
        if record["comment"]:
            record["comment_modified_on"] = _now()
        if kind in DATA_TYPES:
            record["data"] = dict(body.get("data") or {})
        if kind in ("MX", "URI"):
            record["priority"] = body.get("priority", 0)
        if kind == "SRV":
            record["priority"] = record["data"].get("priority", 0)
        self._clash(zone_id, record)
        return record

    def _content(self, kind: str, body: Document) -> str:
        if kind in DATA_TYPES:
            data = body.get("data")
            if not data:
                raise VendorError(400, 1004, "DNS Validation Error", ((9100, f"{kind} records need data."),))
            parts = [(key, value) for key, value in data.items() if not (kind == "SRV" and key == "priority")]
            return " ".join(f'"{value}"' if key == "value" else f"{value}" for key, value in sorted(parts))
        content = body.get("content")
        if not content:
            raise VendorError(400, 1004, "DNS Validation Error", ((9009, f"Content for {kind} record is invalid."),))
        content = str(content)
        if kind in ("A", "AAAA"):
            try:
                return str((ipaddress.IPv4Address if kind == "A" else ipaddress.IPv6Address)(content))
            except ValueError:
                raise VendorError(
                    400, 1004, "DNS Validation Error", ((9005, f"Content for {kind} record must be a valid address."),)
                ) from None
        if kind in ("CNAME", "MX", "NS", "PTR"):
            return _ascii(content)
        if kind == "TXT" and self.quote_txt and not content.startswith('"'):
            return " ".join(f'"{content[start : start + 255]}"' for start in range(0, len(content), 255))
        return content

    def _clash(self, zone_id: str, record: Document) -> None:
        name, kind = record["name"], record["type"]
        if self._ghosts.get(name, 0) > 0:
            self._ghosts[name] -= 1
            raise VendorError(400, 81053, "An A, AAAA, or CNAME record with that host already exists.")
        for other in self.records[zone_id].values():
            if other["id"] == record["id"] or other["name"] != name:
                continue
            if kind == "CNAME" and other["type"] in ADDRESS_TYPES:
                raise VendorError(400, 81053, "An A, AAAA, or CNAME record with that host already exists.")
            if other["type"] == "CNAME" and kind in ADDRESS_TYPES:
                raise VendorError(400, 81054, "A CNAME record with that host already exists.")
            if kind == "SRV":
                continue  # the real API accepts an identical SRV record twice
            if (other["type"], other["content"], other.get("priority")) == (
                kind,
                record["content"],
                record.get("priority"),
            ):
                raise VendorError(400, 81058, "An identical record already exists.")

    # Tunnels.

    def _tunnels(self, request: Request) -> Reply:
        query = request.query
        found = []
        for tunnel in self.tunnels.values():
            shown = self._tunnel_shown(tunnel)
            if query.get("name") not in (None, shown["name"]):
                continue
            if "is_deleted" in query and (query["is_deleted"] == "true") != (shown["deleted_at"] is not None):
                continue
            found.append(shown)
        return _page(found, request, default=20, totals=False)

    def _tunnel_post(self, request: Request) -> Reply:
        body = request.body or {}
        _known(body, {"name", "config_src", "tunnel_secret"})
        if not body.get("name"):
            raise VendorError(400, 1014, "A tunnel name is required")
        self._tunnel_name_free(body["name"])
        secret = body.get("tunnel_secret") or base64.b64encode(uuid.uuid4().bytes + uuid.uuid4().bytes).decode()
        _checked_secret(secret)
        tunnel_id = str(uuid.UUID(int=self._next()))
        document = {
            "id": tunnel_id,
            "account_tag": self.account["id"],
            "name": body["name"],
            "created_at": _now(),
            "deleted_at": None,
            "conns_active_at": None,
            "conns_inactive_at": None,
            "tun_type": "cfd_tunnel",
            "metadata": {},
            "config_src": body.get("config_src", "local"),
            "remote_config": body.get("config_src") == "cloudflare",
        }
        self.tunnels[tunnel_id] = Tunnel(document, secret)
        return _ok(self._tunnel_shown(self.tunnels[tunnel_id]))

    def _tunnel(self, _request: Request, tunnel_id: str) -> Reply:
        return _ok(self._tunnel_shown(self._tunnel_found(tunnel_id, deleted=True)))

    def _tunnel_patch(self, request: Request, tunnel_id: str) -> Reply:
        tunnel = self._tunnel_found(tunnel_id)
        body = request.body or {}
        _known(body, {"name", "tunnel_secret"})
        if body.get("name", tunnel.document["name"]) != tunnel.document["name"]:
            self._tunnel_name_free(body["name"])
            tunnel.document["name"] = body["name"]
        if "tunnel_secret" in body:
            _checked_secret(body["tunnel_secret"])
            tunnel.secret = body["tunnel_secret"]
        return _ok(self._tunnel_shown(tunnel))

    def _tunnel_delete(self, _request: Request, tunnel_id: str) -> Reply:
        tunnel = self._tunnel_found(tunnel_id)
        if any(connector.connections for connector in tunnel.connectors.values()):
            raise VendorError(400, 1022, "You cannot delete a tunnel that has active connections")
        tunnel.document["deleted_at"] = _now()
        self._tell("tunnel", tunnel_id)
        return _ok(self._tunnel_shown(tunnel))

    def _connections(self, _request: Request, tunnel_id: str) -> Reply:
        tunnel = self._tunnel_found(tunnel_id, deleted=True)
        for connector in tunnel.connectors.values():
            if connector.config_version != tunnel.version and connector.lag >= 0:
                connector.pending -= 1
                if connector.pending < 0:
                    connector.config_version = tunnel.version
        shown = [
            {
                "id": connector.client_id,
                "arch": "linux_amd64",
                "version": connector.version,
                "features": ["allow_remote_config", "serialized_headers"],
                "run_at": _now(),
                "config_version": connector.config_version,
                "conns": connector.connections,
            }
            for connector in tunnel.connectors.values()
        ]
        return _ok(shown)

    def _connections_delete(self, request: Request, tunnel_id: str) -> Reply:
        tunnel = self._tunnel_found(tunnel_id)
        chosen = request.query.get("client_id")
        for client_id in list(tunnel.connectors):
            if chosen in (None, client_id):
                del tunnel.connectors[client_id]
        self._tell("connections", tunnel_id)
        return _ok(None)

    def _tunnel_token(self, _request: Request, tunnel_id: str) -> Reply:
        self._tunnel_found(tunnel_id)
        return _ok(self.token(tunnel_id))

    def _configuration(self, _request: Request, tunnel_id: str) -> Reply:
        return _ok(self._configuration_shown(self._tunnel_found(tunnel_id)))

    def _configuration_put(self, request: Request, tunnel_id: str) -> Reply:
        tunnel = self._tunnel_found(tunnel_id)
        body = request.body or {}
        _known(body, {"config"})
        config = body.get("config") or {}
        _known(config, {"ingress", "originRequest", "warp-routing"})
        if "warp-routing" in config:
            raise VendorError(400, 1057, "warp-routing is read-only")
        rules = config.get("ingress") or []
        if not rules or rules[-1].get("hostname") or rules[-1].get("path"):
            raise VendorError(400, 1056, "The last ingress rule must match all URLs")
        for rule in rules:
            _known(rule, {"hostname", "path", "service", "originRequest"})
            if not rule.get("service"):
                raise VendorError(400, 1056, "An ingress rule needs a service")
            rule.setdefault("originRequest", {})
        tunnel.configuration = {"originRequest": {}, "warp-routing": {"enabled": False}, **config}
        tunnel.version += 1
        for connector in tunnel.connectors.values():
            connector.pending = connector.lag
        self._tell("configuration", tunnel_id)
        return _ok(self._configuration_shown(tunnel))

    def _configuration_shown(self, tunnel: Tunnel) -> Document:
        return {
            "tunnel_id": tunnel.document["id"],
            "version": tunnel.version,
            "config": tunnel.configuration,
            "source": tunnel.document["config_src"],
            "created_at": tunnel.document["created_at"],
        }

    def _tunnel_found(self, tunnel_id: str, *, deleted: bool = False) -> Tunnel:
        tunnel = self.tunnels.get(tunnel_id)
        if tunnel is None or (tunnel.document["deleted_at"] is not None and not deleted):
            raise VendorError(404, 1003, "Tunnel not found")
        return tunnel

    def _tunnel_name_free(self, name: str) -> None:
        for tunnel in self.tunnels.values():
            if tunnel.document["name"] == name and tunnel.document["deleted_at"] is None:
                raise VendorError(409, 1013, "You already have a tunnel with this name")

    def _tunnel_shown(self, tunnel: Tunnel) -> Document:
        alive = sum(len(connector.connections) for connector in tunnel.connectors.values())
        lost = any(len(connector.connections) < 4 for connector in tunnel.connectors.values())
        status = (
            ("degraded" if lost else "healthy")
            if alive
            else ("down" if tunnel.connectors or tunnel.document["conns_inactive_at"] else "inactive")
        )
        flat = [connection for connector in tunnel.connectors.values() for connection in connector.connections]
        return {**tunnel.document, "status": status, "connections": flat}

    # Access.

    def _access_list(self, request: Request, kind: str) -> Reply:
        found = [self._access_shown(kind, document) for document in self.access[kind].values()]
        found = [document for document in found if request.query.get("name") in (None, document["name"])]
        return _page(found, request, default=ACCESS[kind].page, totals=False)

    def _access_get(self, _request: Request, kind: str, object_id: str) -> Reply:
        return _ok(self._access_shown(kind, self._access_found(kind, object_id)))

    def _access_post(self, request: Request, kind: str) -> Reply:
        object_id = str(uuid.UUID(int=self._next()))
        self.access[kind][object_id] = self._access_made(kind, object_id, request.body or {}, {})
        reply = _ok(self._access_shown(kind, self.access[kind][object_id]))
        reply.status = 201
        return reply

    def _access_put(self, request: Request, kind: str, object_id: str) -> Reply:
        old = self._access_found(kind, object_id)
        self.access[kind][object_id] = self._access_made(kind, object_id, request.body or {}, old)
        return _ok(self._access_shown(kind, self.access[kind][object_id]))

    def _access_delete(self, _request: Request, kind: str, object_id: str) -> Reply:
        self._access_found(kind, object_id)
        for app in self.access["apps"].values():
            if kind == "policies" and any(link["id"] == object_id for link in app.get("policies", [])):
                raise VendorError(409, 12130, "access.api.error.conflict: the policy is used by an application")
        for document in [*self.access["policies"].values(), *self.access["groups"].values()]:
            rules = [rule for part in ("include", "exclude", "require") for rule in document.get(part) or []]
            if kind == "groups" and {"group": {"id": object_id}} in rules:
                raise VendorError(409, 12131, "access.api.error.conflict: the group is used by a rule")
        del self.access[kind][object_id]
        reply = _ok({"id": object_id})
        reply.status = 202
        return reply

    def _access_found(self, kind: str, object_id: str) -> Document:
        if object_id not in self.access[kind]:
            raise VendorError(404, 11021, "access.api.error.not_found")
        return self.access[kind][object_id]

    def _access_made(self, kind: str, object_id: str, body: Document, old: Document) -> Document:
        shape = ACCESS[kind]
        _known(body, shape.keys)
        for name in shape.required:
            if body.get(name) is None:
                raise VendorError(400, 12130, f"access.api.error.invalid_request: {name} is required")
        document: Document = {
            "id": object_id,
            **copy.deepcopy(shape.defaults),
            **copy.deepcopy(body),
            "created_at": old.get("created_at", _now()),
            "updated_at": _now(),
        }
        if kind == "apps":
            document["aud"] = old.get("aud", object_id.replace("-", "") * 2)
            document["policies"] = self._policy_links(document.get("policies") or [])
        if kind == "policies":
            document["reusable"] = True
        if kind in ("apps", "identity_providers") and body["type"] not in shape.types:
            raise VendorError(400, 12130, f"access.api.error.invalid_request: type {body['type']} is unknown")
        for part in ("include", "exclude", "require"):
            for rule in document.get(part) or []:
                self._check_rule(rule)
        if kind == "identity_providers":
            for name in ("created_at", "updated_at"):
                del document[name]
        return document

    def _check_rule(self, rule: Document) -> None:
        group = (rule.get("group") or {}).get("id")
        if group is not None and group not in self.access["groups"]:
            raise VendorError(400, 12130, f"access.api.error.invalid_request: no group {group}")

    def _policy_links(self, links: list[t.Any]) -> list[Document]:
        made = []
        for position, link in enumerate(links, 1):
            given = {"id": link} if isinstance(link, str) else link
            if given.get("id") not in self.access["policies"]:
                raise VendorError(400, 12130, f"access.api.error.invalid_request: no policy {given.get('id')}")
            made.append({"id": given["id"], "precedence": given.get("precedence", position)})
        if len({link["precedence"] for link in made}) < len(made):
            raise VendorError(400, 11018, "access.api.error.invalid_policy_precedence")
        return made

    def _access_shown(self, kind: str, document: Document) -> Document:
        shown = copy.deepcopy(document)
        if kind == "apps":
            shown["policies"] = [
                {**self.access["policies"][link["id"]], "precedence": link["precedence"]}
                for link in document["policies"]
            ]
        if kind == "policies":
            shown["app_count"] = sum(
                any(link["id"] == document["id"] for link in app["policies"]) for app in self.access["apps"].values()
            )
        if kind == "identity_providers" and shown["config"].get("client_secret"):
            shown["config"]["client_secret"] = "**********"
        return shown

    # Numbers.

    def _next(self) -> int:
        self._serial += 1
        return self._serial

    def _hex_id(self) -> str:
        return _hex(self._next())

    def _tell(self, what: str, object_id: str) -> None:
        for listener in self.listeners:
            listener(what, object_id)


@dataclass(frozen=True)
class Shape:
    """What a kind of Access object may hold, and what the server fills in."""

    keys: frozenset[str]
    required: tuple[str, ...]
    page: int
    defaults: Document = field(default_factory=dict)
    types: tuple[str, ...] = ()


_RULES = frozenset({"name", "include", "exclude", "require"})
ACCESS = {
    "apps": Shape(
        frozenset(
            {
                "allow_authenticate_via_warp", "allow_iframe", "allowed_idps", "app_launcher_visible",
                "auto_redirect_to_identity", "cors_headers", "custom_deny_message", "custom_deny_url",
                "custom_non_identity_deny_url", "custom_pages", "destinations", "domain", "enable_binding_cookie",
                "http_only_cookie_attribute", "logo_url", "name", "options_preflight_bypass", "path_cookie_attribute",
                "policies", "same_site_cookie_attribute", "self_hosted_domains", "service_auth_401_redirect",
                "session_duration", "skip_interstitial", "tags", "type",
            }
        ),
        ("name", "type", "domain"),
        100,
        {"session_duration": "24h", "app_launcher_visible": True, "auto_redirect_to_identity": False},
        ("self_hosted", "ssh", "vnc", "bookmark"),
    ),
    "policies": Shape(
        _RULES
        | {
            "decision", "approval_groups", "approval_required", "isolation_required", "purpose_justification_prompt",
            "purpose_justification_required", "session_duration",
        },
        ("name", "decision", "include"),
        100,
        {"exclude": [], "require": [], "session_duration": "24h"},
    ),
    "groups": Shape(_RULES | {"is_default"}, ("name", "include"), 100, {"exclude": [], "require": []}),
    "identity_providers": Shape(
        frozenset({"name", "type", "config", "scim_config"}),
        ("name", "type", "config"),
        200,
        {"scim_config": {"enabled": False}},
        ("onetimepin", "oidc", "github", "google", "saml"),
    ),
}  # fmt: skip


_ACCOUNT = "/accounts/(?P<account_id>[^/]+)"
_ZONE = "/zones/(?P<zone_id>[^/]+)"
_TUNNEL = f"{_ACCOUNT}/cfd_tunnel/(?P<tunnel_id>[^/]+)"
_DNS = f"{_ZONE}/dns_records"
_ONE = f"{_DNS}/(?P<record_id>[^/]+)"

# Method, path, permission that the token needs, handler.
ROUTES: list[tuple[str, str, str, str]] = [
    ("GET", "/user/tokens/verify", "", "_verify"),
    ("GET", f"{_ACCOUNT}/tokens/verify", "", "_verify"),
    ("GET", "/accounts", "", "_accounts"),
    ("GET", "/zones", "Zone Read", "_zones"),
    ("GET", _ZONE, "Zone Read", "_zone"),
    ("GET", _DNS, "DNS Read", "_records"),
    ("POST", _DNS, "DNS Write", "_record_post"),
    ("POST", f"{_DNS}/batch", "DNS Write", "_batch"),
    ("GET", _ONE, "DNS Read", "_record"),
    ("PUT", _ONE, "DNS Write", "_record_put"),
    ("PATCH", _ONE, "DNS Write", "_record_patch"),
    ("DELETE", _ONE, "DNS Write", "_record_delete"),
    ("GET", f"{_ACCOUNT}/cfd_tunnel", "Cloudflare Tunnel Read", "_tunnels"),
    ("POST", f"{_ACCOUNT}/cfd_tunnel", "Cloudflare Tunnel Write", "_tunnel_post"),
    ("GET", _TUNNEL, "Cloudflare Tunnel Read", "_tunnel"),
    ("PATCH", _TUNNEL, "Cloudflare Tunnel Write", "_tunnel_patch"),
    ("DELETE", _TUNNEL, "Cloudflare Tunnel Write", "_tunnel_delete"),
    ("GET", f"{_TUNNEL}/connections", "Cloudflare Tunnel Read", "_connections"),
    ("DELETE", f"{_TUNNEL}/connections", "Cloudflare Tunnel Write", "_connections_delete"),
    ("GET", f"{_TUNNEL}/token", "Cloudflare Tunnel Write", "_tunnel_token"),
    ("GET", f"{_TUNNEL}/configurations", "Cloudflare Tunnel Read", "_configuration"),
    ("PUT", f"{_TUNNEL}/configurations", "Cloudflare Tunnel Write", "_configuration_put"),
]
for _kinds, _permission in (
    ("apps|policies", "Access: Apps and Policies"),
    ("groups|identity_providers", "Access: Organizations, Identity Providers, and Groups"),
):
    _all = f"{_ACCOUNT}/access/(?P<kind>{_kinds})"
    _each = f"{_all}/(?P<object_id>[^/]+)"
    ROUTES += [
        ("GET", _all, f"{_permission} Read", "_access_list"),
        ("POST", _all, f"{_permission} Write", "_access_post"),
        ("GET", _each, f"{_permission} Read", "_access_get"),
        ("PUT", _each, f"{_permission} Write", "_access_put"),
        ("DELETE", _each, f"{_permission} Write", "_access_delete"),
    ]


def _connection(connector: Connector, address: str) -> Document:
    number = str(uuid.uuid4())
    return {
        "id": number,
        "uuid": number,
        "client_id": connector.client_id,
        "client_version": connector.version,
        "colo_name": "lab01",
        "is_pending_reconnect": False,
        "opened_at": _now(),
        "origin_ip": address,
    }


def _ok(result: t.Any) -> Reply:
    return Reply(200, {"success": True, "errors": [], "messages": [], "result": copy.deepcopy(result)})


def _page(found: list[Document], request: Request, *, default: int, largest: int = 1000, totals: bool = True) -> Reply:
    size = min(int(request.query.get("per_page", default)), largest)
    page = int(request.query.get("page", 1))
    reply = _ok(found[(page - 1) * size : page * size])
    info = {"page": page, "per_page": size, "count": len(reply.body["result"]), "total_count": len(found)}
    if totals:
        info["total_pages"] = max(1, -(-len(found) // size))
    reply.body["result_info"] = info
    return reply


def _known(body: Document, keys: t.Iterable[str]) -> None:
    for name in body:
        if name not in keys:
            raise VendorError(400, 1004, f"unknown key {name}")


def _checked_secret(secret: str) -> None:
    try:
        size = len(base64.b64decode(secret, validate=True))
    except ValueError:
        size = 0
    if size < 32:
        raise VendorError(400, 1058, "The tunnel secret must be at least 32 bytes, base64")


def _ascii(name: str) -> str:
    name = name.rstrip(".").lower()
    return name if name.isascii() else name.encode("idna").decode()


def _hex(number: int) -> str:
    return f"{number:032x}"


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--zone", action="append", help="a zone of the account; may be given again")
    parser.add_argument("--certificate", help="PEM file with certificate and key, to speak TLS")
    options = parser.parse_args()
    server = Server(
        CloudflareApi(options.zone or ["example.com"]),
        host=options.host,
        port=options.port,
        contract=Contract.load(CONTRACT),
        certificate=options.certificate,
    )
    print(server.url, flush=True)
    try:
        server.run()
    except KeyboardInterrupt:
        server.stop()


if __name__ == "__main__":
    main()
