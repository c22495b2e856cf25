"""The public side of the edge: visitors' requests are routed by DNS record to a connection of a tunnel."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from ansible_collections.kitestacks.homelab.tests.fakes import _server

from lab.cloudflare import http1, http2, protocol
from lab.cloudflare.http1 import Headers, Request, Responder
from lab.cloudflare.tunnels import Session, Tunnels, ray

API_NAME = "api.cloudflare.com"
PIN = "x-lab-connector"
"""Request header by which a test chooses the connector: the start of its id, or its address."""
_SUFFIX = ".cfargotunnel.com"
_OURS = frozenset(
    {
        "cf-access-client-id",
        "cf-access-client-secret",
        "cf-connecting-ip",
        "cf-ray",
        "cf-visitor",
        "cf-ipcountry",
        "x-forwarded-for",
        "x-forwarded-proto",
        PIN,
    }
)
_NO_RECORD = (530, 1016, "Origin DNS error")
_NO_CONNECTOR = (530, 1033, "Cloudflare Tunnel error")
_DENIED = (403, 1020, "Access denied")
_BAD_GATEWAY = (502, 502, "Bad gateway")
_MOST_API_BODY = 1 << 22


class Front:
    """Answers visitors, and the API's clients: both come to one address, told apart by the host they ask for."""

    def __init__(self, tunnels: Tunnels, server: _server.Server, api_names: Iterable[str] = ()) -> None:
        self._tunnels = tunnels
        self._api_names = {API_NAME, *api_names}
        self._server = server
        self._serial = 0

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection of a visitor, by HTTP/2 where the client chose it."""
        secured = writer.get_extra_info("ssl_object")
        if secured is None or secured.selected_alpn_protocol() != "h2":
            await http1.serve(reader, writer, self.answer)
            return
        peer = (writer.get_extra_info("peername") or ("",))[0]

        async def handler(stream: http2.Stream) -> None:
            with contextlib.suppress(OSError):
                await self.answer(_request(stream, peer), _H2Responder(stream))

        await http2.Connection(reader, writer, client=False, handler=handler).run()

    async def answer(self, request: Request, responder: Responder) -> None:
        """Answer a request."""
        if request.host in self._api_names:
            await self._api(request, responder)
            return
        identifier = ray()
        with self._server.lock:
            records = self._tunnels.api.resolve(request.host) if request.host else []
            denied = _denied(self._tunnels.api.access, request, self._tunnels.settings.service_tokens)
        if not any(record["type"] in ("A", "AAAA", "CNAME") for record in records):
            await _page(responder, identifier, _NO_RECORD, f"{request.host or 'no host'} has no record")
            return
        if denied:
            await _page(responder, identifier, _DENIED, denied)
            return
        target = next((r["content"] for r in records if r["type"] == "CNAME" and r["content"].endswith(_SUFFIX)), None)
        if target is None or not any(record["proxied"] for record in records):
            why = "its record is no proxied CNAME to a tunnel"
            await _page(responder, identifier, _NO_RECORD, f"{request.host}: {why}")
            return
        await self._carry(request, responder, identifier, target.removesuffix(_SUFFIX))

    async def _carry(self, request: Request, responder: Responder, identifier: str, tunnel_id: str) -> None:
        failed: set[Session] = set()
        while True:
            session = self._tunnels.pick(tunnel_id, request.header(PIN) or "", failed)
            if session is None:
                await _page(responder, identifier, _NO_CONNECTOR, "no connector is connected")
                return
            with session.busy():
                try:
                    stream = await session.connection.request(
                        _forwarded(request, identifier), end=not (request.has_body or request.websocket)
                    )
                except http2.StreamError:
                    failed.add(session)  # nothing was sent: another connection takes it
                    continue
                try:
                    await _exchange(stream, request, responder, identifier)
                except http2.StreamError:
                    if responder.started:
                        raise http1.Broken("the tunnel's connection broke during the response") from None
                    if self._tunnels.settings.retry and not request.has_body and not request.websocket:
                        failed.add(session)
                        continue
                    await _page(responder, identifier, _BAD_GATEWAY, "the tunnel's connection broke")
                finally:
                    stream.reset()
                return

    # The API, and what the lab adds to it.

    async def _api(self, request: Request, responder: Responder) -> None:
        raw = b""
        while request.has_body and (data := await request.body()):
            raw += data
            if len(raw) > _MOST_API_BODY:
                await responder.reply(413, b"too large\n")
                return
        try:
            body = json.loads(raw) if raw else None
        except ValueError:
            body = raw.decode("utf-8", "replace")
        url = urllib.parse.urlsplit(request.target)
        headers = {name.lower(): value for name, value in request.headers}
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        base = self._tunnels.api.base_path
        if url.path.startswith("/_edge/"):
            await self._lab(url.path.removeprefix("/_edge/"), request.method, body, responder)
            return
        if url.path.startswith("/_control/"):
            inner = _server.Request(request.method, url.path.removeprefix("/_control/"), query, headers, body)
            reply: _server.Reply | None = await asyncio.to_thread(self._server.control, inner)
        elif url.path.startswith(base):
            inner = _server.Request(
                request.method, urllib.parse.unquote(url.path.removeprefix(base)), query, headers, body
            )
            self._serial += 1
            reply, delay = await asyncio.to_thread(self._server.answer, inner, self._serial)
            await asyncio.sleep(delay)
        else:
            reply = _server.Reply(404, "<html><body>Not Found</body></html>")
        if reply is None:
            raise http1.Broken("a fault that was asked for")
        content, kind = reply.encode()
        await responder.reply(reply.status, content, kind, *reply.headers.items())

    async def _lab(self, path: str, method: str, body: Any, responder: Responder) -> None:
        """Answer what the lab adds.

        `GET state`, `POST settings` (any of them), `POST cut` ({"client_id": start of an id, "" for all}),
        `POST tokens` (permissions by API token, besides the tokens that there are).
        """
        settings = self._tunnels.settings
        if method == "POST" and path == "settings" and isinstance(body, dict) and set(body) <= set(asdict(settings)):
            for name, value in body.items():
                setattr(settings, name, type(getattr(settings, name))(value))
        elif method == "POST" and path == "cut" and isinstance(body, dict):
            for session in list(self._tunnels.sessions):
                if session.registration and session.registration.client_id.startswith(body.get("client_id", "")):
                    session.connection.abort("cut for a test")
        elif method == "POST" and path == "tokens" and isinstance(body, dict):
            self._tunnels.api.tokens |= {token: set(permissions) for token, permissions in body.items()}
        elif (method, path) != ("GET", "state"):
            await responder.reply(404, b"GET state, POST settings, POST cut or POST tokens\n")
            return
        await responder.reply(200, json.dumps(self._tunnels.state()).encode(), "application/json")


class _H2Responder(Responder):
    def __init__(self, stream: http2.Stream) -> None:
        self._stream = stream
        self._head = stream.header(":method") == "HEAD"

    async def start(self, status: int, headers: Headers) -> None:
        self.started = True
        kept = [(name, value) for name, value in headers if name.lower() not in http1.HOP_BY_HOP]
        await self._stream.send_headers([(":status", str(status)), *kept])

    async def write(self, data: bytes) -> None:
        if not self._head:
            await self._stream.write(data)

    async def end(self) -> None:
        await self._stream.end()


def _request(stream: http2.Stream, peer: str) -> Request:
    headers = stream.headers or []
    pseudo = {name: value for name, value in headers if name.startswith(":")}
    plain = [(name, value) for name, value in headers if not name.startswith(":")]
    return Request(
        method=pseudo.get(":method", "GET"),
        host=pseudo.get(":authority", dict(plain).get("host", "")).rsplit(":", 1)[0].lower(),
        target=pseudo.get(":path", "/"),
        headers=plain,
        body=stream.read,
        has_body=stream.has_body,
        peer=peer,
    )


def _forwarded(request: Request, identifier: str) -> Headers:
    """Return the request as a connector gets it: what visitors claim about themselves is replaced."""
    before = request.header("x-forwarded-for")
    kept = [
        (name, value)
        for name, value in protocol.end_to_end(request.headers)
        if name.lower() not in _OURS | {"host", "expect"} and not name.lower().startswith("cf-cloudflared-")
    ]
    return [
        (":method", request.method),
        (":scheme", "https"),
        (":authority", request.host),
        (":path", request.target),
        *([(protocol.UPGRADE, protocol.WEBSOCKET)] if request.websocket else []),
        *kept,
        ("cf-connecting-ip", request.peer),
        ("cf-ray", identifier),
        ("cf-visitor", '{"scheme":"https"}'),
        ("cf-ipcountry", "XX"),
        ("cdn-loop", "cloudflare; loops=1"),
        ("x-forwarded-for", f"{before}, {request.peer}" if before else request.peer),
        ("x-forwarded-proto", "https"),
    ]


async def _upload(stream: http2.Stream, request: Request) -> None:
    """Send the visitor's body; when the visitor breaks off, the stream is broken off too."""
    try:
        while data := await request.body():
            await stream.write(data)
        await stream.end()
    except http2.StreamError:
        pass  # whoever waits for the response is told
    except OSError:
        stream.reset()


async def _exchange(stream: http2.Stream, request: Request, responder: Responder, identifier: str) -> None:
    """Carry bodies in both directions at the same time, without keeping them."""
    upload = asyncio.ensure_future(_upload(stream, request)) if request.has_body else None
    try:
        headers = await stream.response()
        status = int(stream.header(":status") or 502)
        shown = protocol.unpack_headers(stream.header(protocol.RESPONSE_HEADERS) or "")
        if protocol.from_connector(stream.header(protocol.RESPONSE_META)):
            await _page(responder, identifier, (status, *_BAD_GATEWAY[1:]), "the connector could not reach the origin")
            return
        if not shown:
            shown = [(name, value) for name, value in headers if not name.startswith((":", "cf-cloudflared-"))]
        shown = [(name, value) for name, value in shown if name.lower() not in ("cf-ray", "server")]
        shown += [("cf-ray", identifier), ("server", "cloudflare")]
        if request.websocket and status == 200 and any(name.lower() == "sec-websocket-accept" for name, _ in shown):
            await responder.switch([*protocol.end_to_end(shown), ("Upgrade", "websocket"), ("Connection", "Upgrade")])
            upload = asyncio.ensure_future(_upload(stream, request))
        else:
            await responder.start(status, protocol.end_to_end(shown))
        while data := await stream.read():
            await responder.write(data)
        await responder.end()
    finally:
        if upload is not None:
            upload.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await upload


def _denied(access: dict[str, dict[str, Any]], request: Request, tokens: Mapping[str, str]) -> str:
    """Return why Access denies a request, "" when it does not.

    Nobody can sign in to the lab's Access: a bypass for everyone lets one in, or a service token where a policy for
    services takes any.
    """
    secret = tokens.get(request.header("cf-access-client-id") or "")
    is_service = secret is not None and secret == request.header("cf-access-client-secret")

    def admits(policy: dict[str, Any]) -> bool:
        include = policy.get("include", [])
        if policy.get("decision") == "non_identity":
            return is_service and {"any_valid_service_token": {}} in include
        return policy.get("decision") == "bypass" and {"everyone": {}} in include

    place = request.host + urllib.parse.urlsplit(request.target).path
    for app in access["apps"].values():
        domain = str(app["domain"]).rstrip("/")
        if place != domain and not place.startswith(f"{domain}/"):
            continue
        policies = [access["policies"].get(link["id"], {}) for link in app["policies"]]
        if not any(admits(policy) for policy in policies):
            return f"the Access application {app['name']} protects {request.host}"
    return ""


async def _page(responder: Responder, identifier: str, error: tuple[int, int, str], why: str) -> None:
    """Send one of the edge's own pages: `error` is status, Cloudflare's code and title."""
    status, code, title = error
    text = f"error code: {code}\n{title}: {why} (the lab's stand-in for Cloudflare)\n"
    await responder.reply(
        status, text.encode(), "text/plain; charset=utf-8", ("cf-ray", identifier), ("server", "cloudflare")
    )
