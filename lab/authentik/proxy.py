"""The embedded outpost: requests for a host that a proxy provider claims are let through to who is behind it.

Only mode `proxy`; and only providers that the embedded outpost has been given. The outpost sends browsers to the
`authentik_host` of its configuration: where that is empty, they are sent to localhost, as by Authentik.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import re
import secrets
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlencode, urlsplit

from ansible_collections.kitestacks.homelab.tests.fakes.authentik import EMBEDDED
from werkzeug.utils import redirect
from werkzeug.wrappers import Request, Response

from lab.authentik import oidc, pages
from lab.authentik.database import Json, keep, kept, take
from lab.authentik.visit import Visit

log = logging.getLogger(__name__)

_OWN = "/outpost.goauthentik.io"
_CALLBACK = "X-authentik-auth-callback"
_HOP_BY_HOP = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)
_SIGN_IN_SECONDS = 600
_BLOCK = 1 << 16


@dataclass
class Forward:
    """A request that goes on to the host behind a provider; sent when the database is not needed any more."""

    request: Request
    base_url: SplitResult
    to: SplitResult
    verify: bool
    headers: dict[str, str] = field(default_factory=dict)

    def send(self) -> Response:
        """Return the answer of that host, as it comes.

        Raises:
            ConnectionAbortedError: the connection was a WebSocket's and is over: there is nothing left to answer.
        """
        connection = self._connection()
        try:
            if self.request.headers.get("Upgrade", "").lower() == "websocket":
                self._splice(connection)
            length = self.request.content_length
            body: Any = self.request.stream if length or self.request.headers.get("Transfer-Encoding") else None
            headers = self._headers() | ({"Content-Length": str(length)} if length else {})
            connection.request(self.request.method, self._target(), body, headers, encode_chunked=body and not length)
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if isinstance(error, ConnectionAbortedError):
                raise
            log.warning("%s does not answer: %s", self.to.geturl(), error)
            return pages.message("Bad Gateway", "The application behind this name does not answer.", 502)
        headers_back = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP]
        response = Response(_stream(answer, connection), answer.status, headers_back, direct_passthrough=True)
        response.call_on_close(connection.close)
        return response

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self.to.hostname or "", self.to.port
        if self.to.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=60)
        context = ssl.create_default_context()
        if not self.verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection(host, port, timeout=60, context=context)

    def _target(self) -> str:
        return self.to.path.rstrip("/") + str(self.request.environ["REQUEST_URI"])

    def _headers(self) -> dict[str, str]:
        # A visitor's own X-authentik-* would be believed by the application.
        sent = {
            name: value
            for name, value in self.request.headers.items()
            if name.lower() not in _HOP_BY_HOP | {"content-length"} and not name.lower().startswith("x-authentik-")
        }
        forwarded = {"X-Forwarded-Host": self.base_url.netloc, "X-Forwarded-Proto": self.base_url.scheme}
        return {name: text for name, text in sent.items() if name.title() not in forwarded} | forwarded | self.headers

    def _splice(self, connection: http.client.HTTPConnection) -> None:
        """Pass a WebSocket's bytes both ways until one side ends."""
        client: socket.socket = self.request.environ["werkzeug.socket"]
        connection.connect()
        server = connection.sock
        headers = {**self._headers(), "Connection": "Upgrade", "Upgrade": "websocket"}
        lines = [
            f"{self.request.method} {self._target()} HTTP/1.1",
            *(f"{key}: {text}" for key, text in headers.items()),
        ]
        server.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        server.settimeout(None)
        client.settimeout(None)
        back = threading.Thread(target=_pass, args=(server, client), daemon=True)
        back.start()
        _pass(client, server)
        back.join()
        raise ConnectionAbortedError("the WebSocket is over")


def answer(visit: Visit) -> Response | Forward | None:  # noqa: PLR0911 - a table of cases
    """Answer a request for a host that a proxy provider claims; None for every other."""
    row, outpost = _provider(visit)
    if row is None or outpost is None:
        return None
    path = visit.request.path
    if path == f"{_OWN}/ping":
        return None
    if path == f"{_OWN}/start":
        return _start(visit, row, outpost)
    if path == f"{_OWN}/callback" or visit.request.args.get(_CALLBACK, "").lower() == "true":
        return _callback(visit, row)
    if path == f"{_OWN}/sign_out":
        return _sign_out(visit, row, outpost)
    to, verify = urlsplit(row["internal_host"]), row["internal_host_ssl_validation"]
    forward = Forward(visit.request, urlsplit(visit.base_url), to, verify)
    session = kept(visit.connection, "proxy_session", visit.request.cookies.get(_cookie(row), "")) or {}
    user = visit.api.store.get("users", str(session.get("user", "")))
    if user is not None and user["is_active"]:
        forward.headers = _about(visit, row, user)
        return forward
    if any(re.search(line, path) for line in row["skip_path_regex"].splitlines() if line):
        return forward
    return redirect(f"{_OWN}/start?{urlencode({'rd': visit.base_url.rstrip('/') + visit.path})}")


def _provider(visit: Visit) -> tuple[Json | None, Json | None]:
    store = visit.api.store
    host = urlsplit(visit.base_url).netloc
    outpost = next((row for row in store.rows("outposts") if row["managed"] == EMBEDDED), None)
    for pk in outpost["providers"] if outpost else []:
        row = store.get("proxy", str(pk))
        if row and row["mode"] == "proxy" and urlsplit(row["external_host"]).netloc == host:
            return row, outpost
    return None, outpost


def _cookie(row: Json) -> str:
    return f"authentik_proxy_{hashlib.sha256(row['client_id'].encode()).hexdigest()[:8]}"


def _authentik(outpost: Json) -> str:
    config = outpost["config"]
    host = str(config.get("authentik_host_browser") or config.get("authentik_host") or "")
    if not host:
        log.error("the embedded outpost has no authentik_host: browsers are sent to localhost")
    return (host or "http://localhost:9000").rstrip("/")


def _set_cookie(row: Json, response: Response, key: str) -> Response:
    secure = row["external_host"].startswith("https")
    response.set_cookie(_cookie(row), key, httponly=True, secure=secure, samesite="Lax")
    return response


def _start(visit: Visit, row: Json, outpost: Json) -> Response:
    wanted = visit.request.args.get("rd", "")
    external = row["external_host"].rstrip("/")
    back = wanted if urlsplit(wanted)[:2] == urlsplit(external)[:2] else external
    key, state = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    keep(visit.connection, "proxy_session", key, {"state": state, "back": back}, _SIGN_IN_SECONDS)
    query = {
        "client_id": row["client_id"],
        "redirect_uri": f"{external}{_OWN}/callback?{_CALLBACK}=true",
        "response_type": "code",
        "scope": "openid profile email ak_proxy",
        "state": state,
    }
    return _set_cookie(row, redirect(f"{_authentik(outpost)}/application/o/authorize/?{urlencode(query)}"), key)


def _callback(visit: Visit, row: Json) -> Response:
    args = visit.request.args
    session = take(visit.connection, "proxy_session", visit.request.cookies.get(_cookie(row), ""))
    if session is None or "state" not in session:
        return redirect(row["external_host"])
    code = take(visit.connection, "code", args.get("code", ""))
    if args.get("state") != session["state"] or code is None or code["provider"] != row["pk"]:
        log.warning("%s: the code cannot be redeemed", row["name"])
        return pages.message("Bad Request", "The sign-in failed; please try again.", 400)
    key = secrets.token_urlsafe(32)
    seconds = oidc.duration(row["access_token_validity"])
    keep(visit.connection, "proxy_session", key, {"user": code["user"]}, seconds)
    return _set_cookie(row, redirect(session["back"]), key)


def _sign_out(visit: Visit, row: Json, outpost: Json) -> Response:
    take(visit.connection, "proxy_session", visit.request.cookies.get(_cookie(row), ""))
    application = visit.api.application_of(row["pk"])
    slug = application["slug"] if application else ""
    return redirect(f"{_authentik(outpost)}/application/o/{slug}/end-session/")


def _about(visit: Visit, row: Json, user: Json) -> dict[str, str]:
    """Return the headers that tell the application who is there."""
    application = visit.api.application_of(row["pk"]) or {"slug": ""}
    return {
        "X-authentik-username": user["username"],
        "X-authentik-groups": "|".join(group["name"] for group in visit.api.groups(user)),
        "X-authentik-email": user["email"],
        "X-authentik-name": user["name"],
        "X-authentik-uid": user["uid"],
        "X-authentik-meta-outpost": "authentik Embedded Outpost",
        "X-authentik-meta-provider": row["name"],
        "X-authentik-meta-app": application["slug"],
        "X-authentik-meta-version": f"goauthentik.io/outpost/{visit.configuration.version}",
    }


def _stream(answer: http.client.HTTPResponse, connection: http.client.HTTPConnection) -> Iterator[bytes]:
    try:
        while block := answer.read1(_BLOCK):
            yield block
    finally:
        connection.close()


def _pass(source: socket.socket, target: socket.socket) -> None:
    try:
        while block := source.recv(_BLOCK):
            target.sendall(block)
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue
