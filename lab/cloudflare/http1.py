"""HTTP/1.1 for asyncio, on top of h11: a server for visitors and probes, and requests to origins."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import h11

Headers = list[tuple[str, str]]
_CHUNK = 1 << 16
HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings"}
)
"""Headers that concern one connection and are never passed on."""


class Broken(ConnectionError):  # noqa: N818 - it is what happened to the connection
    """The peer hung up or speaks no HTTP."""


@dataclass
class Request:
    """What a visitor asks for.

    Attributes:
        method: in capitals.
        host: without its port, in lower case.
        target: path and query as they came.
        headers: as they came, without pseudo headers.
        body: reads the next bytes, b"" at the end.
        has_body: whether a body was announced.
        peer: the visitor's address.
        websocket: the visitor wants to switch to WebSocket.

    """

    method: str
    host: str
    target: str
    headers: Headers
    body: Callable[[], Awaitable[bytes]]
    has_body: bool
    peer: str
    websocket: bool = False

    def header(self, name: str) -> str | None:
        """Return a header; the first one where there are several."""
        return next((value for given, value in self.headers if given.lower() == name), None)


class Responder:
    """How a request is answered: `start`, `write` as often as needed, `end`; or `switch`, `write`, `end`."""

    started = False

    async def start(self, status: int, headers: Headers) -> None:
        """Send status and headers."""
        raise NotImplementedError

    async def switch(self, headers: Headers) -> None:
        """Answer 101: from here on the bodies are raw bytes in both directions."""
        raise NotImplementedError

    async def write(self, data: bytes) -> None:
        """Send a part of the body at once."""
        raise NotImplementedError

    async def end(self) -> None:
        """Say that the body is complete."""
        raise NotImplementedError

    async def reply(
        self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8", *more: tuple[str, str]
    ) -> None:
        """Send a whole answer."""
        await self.start(status, [("content-type", kind), ("content-length", str(len(body))), *more])
        await self.write(body)
        await self.end()


Handler = Callable[[Request, Responder], Awaitable[None]]


class _Visitor(Responder):
    """One HTTP/1.1 connection of a visitor: its requests one after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler) -> None:
        self._reader = reader
        self._writer = writer
        self._handler = handler
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 17)
        self._switched = False
        self._body_done = False
        self._head = False

    async def serve(self) -> None:
        while True:
            event = await self._event()
            if not isinstance(event, h11.Request):
                return
            request = self._request(event)
            self.started, self._body_done, self._head = False, False, request.method == "HEAD"
            await self._handled(request)
            while not self._switched and self._h11.their_state is h11.SEND_BODY:
                if not await self._read():  # what the handler left unread
                    break
            if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
                return
            self._h11.start_next_cycle()

    async def _handled(self, request: Request) -> None:
        """Run the handler, and stop it when the visitor hangs up meanwhile."""
        task = asyncio.ensure_future(self._handler(request, self))
        gone = asyncio.ensure_future(self._gone()) if not request.has_body and not request.websocket else None
        try:
            await asyncio.wait([task] if gone is None else [task, gone], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
            await task
        except asyncio.CancelledError:
            if not task.cancelled():
                task.cancel()
                raise
            raise Broken("the visitor hung up") from None
        finally:
            if gone is not None:
                gone.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await gone

    async def _gone(self) -> None:
        """Return when the visitor hangs up; what it sends early is kept for the next request."""
        while data := await self._reader.read(_CHUNK):
            self._h11.receive_data(data)

    def _request(self, event: h11.Request) -> Request:
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers.raw_items()]
        known = {name.lower(): value for name, value in headers}
        upgrade = known.get("upgrade", "").lower() == "websocket" and "upgrade" in known.get("connection", "").lower()
        length = known.get("content-length", "0")
        return Request(
            method=event.method.decode(),
            host=known.get("host", "").rsplit(":", 1)[0].lower(),
            target=event.target.decode("latin-1"),
            headers=headers,
            body=self._read,
            has_body="transfer-encoding" in known or length != "0",
            peer=(self._writer.get_extra_info("peername") or ("",))[0],
            websocket=upgrade,
        )

    async def _event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while True:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as wrong:
                raise Broken(str(wrong)) from None
            if event is not h11.NEED_DATA:
                return event
            if self._h11.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            self._h11.receive_data(await self._reader.read(_CHUNK))

    async def _read(self) -> bytes:
        if self._switched:
            rest, _closed = self._h11.trailing_data
            if rest and not self._body_done:
                self._body_done = True
                return bytes(rest)
            return await self._reader.read(_CHUNK)
        if self._h11.their_state is not h11.SEND_BODY:
            return b""
        event = await self._event()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            return b""
        raise Broken("the visitor hung up")

    async def start(self, status: int, headers: Headers) -> None:
        self.started = True
        kept = [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP]
        await self._send(h11.Response(status_code=status, headers=kept))

    async def switch(self, headers: Headers) -> None:
        self.started = True
        await self._send(h11.InformationalResponse(status_code=101, headers=headers))
        self._switched = True

    async def write(self, data: bytes) -> None:
        if self._switched:
            self._writer.write(data)
            await self._writer.drain()
        elif data and not self._head:
            await self._send(h11.Data(data=data))

    async def end(self) -> None:
        if not self._switched:
            await self._send(h11.EndOfMessage())

    async def _send(self, event: h11.Event) -> None:
        try:
            data = self._h11.send(event)
        except h11.LocalProtocolError as wrong:
            raise Broken(str(wrong)) from None
        if data:
            self._writer.write(data)
            await self._writer.drain()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler) -> None:
    """Answer the requests of one connection until it ends."""
    try:
        await _Visitor(reader, writer, handler).serve()
    except OSError:
        pass  # visitors hang up as they please
    finally:
        writer.close()


class Origin:
    """One request to an origin, on a connection of its own: nothing that a restart of the origin left half dead."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 17)
        self.status = 0
        self.headers: Headers = []

    @classmethod
    async def open(
        cls, host: str, port: int, timeout: float, context: ssl.SSLContext | None = None, name: str | None = None
    ) -> Origin:
        """Connect to the first address that takes the connection.

        As Go does it, and so cloudflared: the addresses of the name one after the other, each with its share of the
        time that is left, but two seconds at least.

        Raises:
            OSError: there is nothing, or not within `timeout` seconds (TimeoutError).

        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        found = await asyncio.wait_for(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM), timeout)
        failure: OSError = OSError(f"{host} has no address")
        for number, (*_kind, address) in enumerate(found):
            left = deadline - loop.time()
            share = min(left, max(2.0, left / (len(found) - number)))
            connection = asyncio.open_connection(
                str(address[0]), port, ssl=context, server_hostname=name if context else None
            )
            try:
                return cls(*await asyncio.wait_for(connection, share))
            except OSError as wrong:
                failure = wrong
        raise failure

    async def send(self, method: str, target: str, headers: Headers) -> None:
        """Send the head of the request."""
        await self._send(h11.Request(method=method, target=target, headers=headers))

    async def write(self, data: bytes) -> None:
        """Send a part of the body, or raw bytes after a switch."""
        if self.status == 101:
            self._writer.write(data)
            await self._writer.drain()
        else:
            await self._send(h11.Data(data=data))

    async def end(self) -> None:
        """Say that the request's body is complete."""
        await self._send(h11.EndOfMessage())

    async def response(self) -> None:
        """Wait for `status` and `headers`.

        Raises:
            Broken: the origin hung up.

        """
        event = await self._event()
        while isinstance(event, h11.InformationalResponse) and event.status_code != 101:
            event = await self._event()
        if not isinstance(event, (h11.Response, h11.InformationalResponse)):
            raise Broken("the origin hung up")
        self.status = event.status_code
        self.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers.raw_items()]

    async def body(self) -> AsyncIterator[bytes]:
        """Give the response's body as it arrives."""
        if self.status == 101:
            rest, _closed = self._h11.trailing_data
            if rest:
                yield bytes(rest)
            while data := await self._reader.read(_CHUNK):
                yield data
            return
        while True:
            event = await self._event()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise Broken("the origin hung up")

    def close(self) -> None:
        """Hang up."""
        self._writer.close()

    async def _send(self, event: h11.Event) -> None:
        try:
            data = self._h11.send(event)
        except h11.LocalProtocolError as wrong:
            raise Broken(str(wrong)) from None
        if data:
            self._writer.write(data)
            await self._writer.drain()

    async def _event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while True:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as wrong:
                raise Broken(str(wrong)) from None
            if event is not h11.NEED_DATA:
                return event
            self._h11.receive_data(await self._reader.read(_CHUNK))
