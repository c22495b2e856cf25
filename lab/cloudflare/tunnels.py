"""The edge's side of tunnels: connectors register here, are told the configuration, and carry requests."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import secrets
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.kitestacks.homelab.tests.fakes._server import Server
from ansible_collections.kitestacks.homelab.tests.fakes.cloudflare import CloudflareApi

from lab.cloudflare import capnp, http2, protocol, rpc

log = logging.getLogger("edge")
LOCATION = "lab01"
_FIRST_CALL = 10.0
_PUSH_TIMEOUT = 10.0


@dataclass
class Settings:
    """What Cloudflare decides for itself and documents nowhere: the lab's choices, changeable while it runs.

    Attributes:
        pin: only connectors whose id starts with this, or of this address; "" means any.
        nearest: connectors, as for `pin`, that are taken as long as they are there; "" means that none is nearer.
        service_tokens: secrets of Access service tokens by client id.
        retry: whether a request without a body is sent to another connector when its connection breaks before the
            response begins.
        ping_interval: seconds between pings.
        ping_timeout: seconds without an answer after which a connection counts as dead.

    """

    pin: str = ""
    nearest: str = ""
    service_tokens: dict[str, str] = field(default_factory=dict)
    retry: bool = False
    ping_interval: float = 3.0
    ping_timeout: float = 5.0


@dataclass
class _Pipe:
    """A control stream as the RPC server wants it."""

    stream: http2.Stream

    async def read(self) -> bytes:
        try:
            return await self.stream.read()
        except http2.StreamError:
            return b""

    async def write(self, data: bytes) -> None:
        await self.stream.write(data)


@dataclass(eq=False)
class Session:
    """One connection of a connector."""

    connection: http2.Connection
    address: str
    registration: rpc.Registration | None = None
    id: str = ""
    usable: bool = False
    draining: bool = False
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count a request while it runs."""
        self.in_flight += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self.idle.set()


class Tunnels:
    """All connections of all tunnels."""

    def __init__(self, server: Server, api: CloudflareApi, settings: Settings) -> None:
        """Follow the API's state. Call it inside the event loop that serves the connections."""
        self.api = api
        self.settings = settings
        self.sessions: list[Session] = []
        self.events: deque[dict[str, Any]] = deque(maxlen=1000)
        self.served: Counter[str] = Counter()
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pushing: dict[str, asyncio.Lock] = {}
        api.listeners.append(self._told)

    # Connectors.

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection of a connector until it ends."""
        connection = http2.Connection(reader, writer, client=True)
        session = Session(connection, (writer.get_extra_info("peername") or ("",))[0])
        runner = asyncio.ensure_future(connection.run())
        pings = asyncio.ensure_future(self._ping(session))
        try:
            connection.start()
            await self._control(session)
        except (OSError, rpc.Refused, capnp.FormatError) as wrong:
            self._note(session, "lost" if session.id else "refused", str(wrong))
        finally:
            self._closed(session)
            connection.close()
            pings.cancel()
            await asyncio.wait([runner], timeout=5)

    async def _control(self, session: Session) -> None:
        stream = await session.connection.request(_edge_headers("GET", protocol.CONTROL), end=False)
        await stream.response()

        async def register(registration: rpc.Registration) -> rpc.Details:
            return self._register(session, registration)

        async def unregister() -> None:
            session.draining = True
            self._note(session, "draining", f"{session.in_flight} requests in flight")

        calls = asyncio.ensure_future(rpc.Server(register, unregister).serve(_Pipe(stream)))
        try:
            await asyncio.wait([calls], timeout=_FIRST_CALL)
            if not session.registration and not calls.done():
                raise ConnectionError(f"it did not register within {_FIRST_CALL:.0f} s")
            await calls
        finally:
            calls.cancel()
        if session.draining:
            # The connector closed its control stream: it takes nothing new and waits for what is in flight.
            if session.in_flight:
                await session.idle.wait()
        elif session.connection.failure:
            raise ConnectionError(session.connection.failure)

    def _register(self, session: Session, registration: rpc.Registration) -> rpc.Details:
        secret = base64.b64encode(registration.secret).decode()
        with self._server.lock:
            tunnel = self.api.tunnels.get(registration.tunnel_id)
            if tunnel is None or tunnel.document["deleted_at"] is not None:
                raise rpc.Refused("Unauthorized: Tunnel not found")
            if not self.api.authorise(registration.account, registration.tunnel_id, secret):
                raise rpc.Refused("Unauthorized: Invalid tunnel secret")
            session.id = self.api.opened(
                registration.tunnel_id, registration.client_id, registration.version, session.address
            )
            managed = bool(tunnel.document["remote_config"])
        for old in self.sessions:
            if old.registration and _place(old.registration) == _place(registration):
                old.connection.close("replaced by a newer connection")
        session.registration = registration
        self.sessions.append(session)
        self._note(session, "registered")
        self._spawn(self._configure(session))
        return rpc.Details(session.id, LOCATION, managed)

    async def _configure(self, session: Session) -> None:
        """Push the configuration to a new connection, then route to it."""
        await self._push(session)
        session.usable = True

    async def _push(self, session: Session) -> None:
        registration = session.registration
        if registration is None:
            return
        async with self._pushing.setdefault(session.id, asyncio.Lock()):
            with self._server.lock:
                version, config = self.api.ingress(registration.tunnel_id)
            if config is None:
                return
            body = json.dumps({"version": version, "config": config}).encode()
            try:
                answer = await asyncio.wait_for(self._pushed(session, body), _PUSH_TIMEOUT)
            except (OSError, ValueError, TimeoutError) as wrong:
                self._note(session, "push failed", f"version {version}: {wrong or type(wrong).__name__}")
                return
        if answer.get("err") is not None:
            self._note(session, "configuration refused", f"version {version}: {answer['err']}")
        applied = int(answer.get("lastAppliedVersion", -1))
        with self._server.lock:
            connectors = self.api.tunnels[registration.tunnel_id].connectors
            if registration.client_id in connectors:
                self.api.applied(registration.tunnel_id, registration.client_id, max(applied, 0))

    async def _pushed(self, session: Session, body: bytes) -> dict[str, Any]:
        headers = [*_edge_headers("POST", protocol.CONFIGURATION), ("content-length", str(len(body)))]
        stream = await session.connection.request(headers, end=False)
        try:
            await stream.write(body)
            await stream.end()
            await stream.response()
            answer = b""
            while data := await stream.read():
                answer += data
        finally:
            stream.reset()
        document = json.loads(answer)
        if not isinstance(document, dict):
            raise ValueError("the answer is no object")
        return document

    async def _ping(self, session: Session) -> None:
        while session.connection.failure is None:
            await asyncio.sleep(self.settings.ping_interval)
            if not await session.connection.ping(self.settings.ping_timeout):
                session.connection.abort("no answer to a ping")

    def _closed(self, session: Session) -> None:
        if session in self.sessions and session.registration is not None:
            self.sessions.remove(session)
            self._pushing.pop(session.id, None)
            with self._server.lock:
                self.api.closed(session.registration.tunnel_id, session.registration.client_id, session.id)
            self._note(session, "closed")

    # What the API changes.

    def _told(self, what: str, name: str) -> None:
        """Pass a change on to the event loop: the API's requests are answered in threads."""
        self._loop.call_soon_threadsafe(self._changed, what, name)

    def _changed(self, what: str, name: str) -> None:
        mine = [session for session in self.sessions if session.registration and session.registration.tunnel_id == name]
        if what == "configuration":
            for session in mine:
                self._spawn(self._push(session))
        elif what in ("connections", "tunnel"):
            with self._server.lock:
                tunnel = self.api.tunnels[name]
                kept = set() if tunnel.document["deleted_at"] else set(tunnel.connectors)
            for session in mine:
                if session.registration and session.registration.client_id not in kept:
                    session.connection.close("closed through the API")

    # Requests.

    def pick(self, tunnel_id: str, pin: str = "", besides: set[Session] | None = None) -> Session | None:
        """Return a connection for a request: a random connector, then one of its connections at random.

        Args:
            tunnel_id: the tunnel.
            pin: only connectors whose id or address starts with this.
            besides: connections that failed already.

        """
        wish, near = pin or self.settings.pin, self.settings.nearest
        healthy: dict[str, list[Session]] = {}
        for session in self.sessions:
            registration = session.registration
            if registration is None or registration.tunnel_id != tunnel_id or session in (besides or ()):
                continue
            if not session.usable or session.draining or session.connection.failure or session.connection.refusing:
                continue
            if not wish or _is(session, wish):
                healthy.setdefault(registration.client_id, []).append(session)
        if not healthy:
            return None
        nearer = [client for client, sessions in healthy.items() if near and _is(sessions[0], near)]
        client = random.choice(nearer or list(healthy))  # noqa: S311 - no secret
        self.served[client] += 1
        return random.choice(healthy[client])  # noqa: S311

    def state(self) -> dict[str, Any]:
        """Return settings, connections, requests per connector and the last events, for tests and people."""
        return {
            "settings": {**vars(self.settings), "service_tokens": sorted(self.settings.service_tokens)},
            "connections": [
                {
                    "id": session.id,
                    "tunnel_id": session.registration.tunnel_id,
                    "client_id": session.registration.client_id,
                    "index": session.registration.index,
                    "version": session.registration.version,
                    "address": session.address,
                    "usable": session.usable and not session.draining,
                    "in_flight": session.in_flight,
                }
                for session in self.sessions
                if session.registration
            ],
            "served": dict(self.served),
            "events": list(self.events),
        }

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _note(self, session: Session, what: str, more: str = "") -> None:
        registration = session.registration
        client = registration.client_id if registration else ""
        index = registration.index if registration else -1
        self.events.append(
            {
                "at": time.time(),
                "what": what,
                "client_id": client,
                "index": index,
                "address": session.address,
                "more": more,
            }
        )
        log.info("%s: connector %s connection %s from %s %s", what, client or "?", index, session.address, more)


def _is(session: Session, wish: str) -> bool:
    """Tell whether a session is of the connector that a start of an id, or an address, means."""
    registration = session.registration
    return registration is not None and (registration.client_id.startswith(wish) or session.address == wish)


def _place(registration: rpc.Registration) -> tuple[str, str, int]:
    return registration.tunnel_id, registration.client_id, registration.index


def _edge_headers(method: str, upgrade: str) -> http2.Headers:
    return [
        (":method", method),
        (":scheme", "https"),
        (":authority", protocol.EDGE_NAME),
        (":path", "/"),
        (protocol.UPGRADE, upgrade),
    ]


def ray() -> str:
    """Return a new identifier of a request."""
    return f"{secrets.token_hex(8)}-{LOCATION.upper()}"
