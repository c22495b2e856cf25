"""Registration: the Cap'n Proto calls on the control stream, from both ends.

The connector is the client. Message layouts are those of Cap'n Proto's rpc.capnp, with the two interfaces' structs as
facts of cloudflared's protocol (`RegistrationServer`: registerConnection 0, unregisterConnection 1,
updateLocalConfiguration 2).
"""

from __future__ import annotations

import asyncio
import struct
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from lab.cloudflare import capnp
from lab.cloudflare.capnp import Capability, Reader, Struct

INTERFACE = 0xF71695EC7FE85497
REGISTER, UNREGISTER, UPDATE_LOCAL = 0, 1, 2
_ABORT, _CALL, _RETURN, _FINISH, _BOOTSTRAP = 1, 2, 3, 4, 8
_RESULTS, _EXCEPTION = 0, 1
FEATURES = ("allow_remote_config", "serialized_headers")


class Duplex(Protocol):
    """A stream of bytes in both directions; `read` gives b"" at its end."""

    async def read(self) -> bytes:
        """Return the next bytes."""

    async def write(self, data: bytes) -> None:
        """Send bytes."""


@dataclass
class Registration:
    """What a connector says of itself when it registers a connection."""

    account: str
    secret: bytes
    tunnel_id: str
    index: int
    client_id: str
    version: str
    arch: str = "linux_amd64"
    features: list[str] = field(default_factory=lambda: list(FEATURES))
    attempts: int = 0


@dataclass
class Details:
    """What the edge answers to a registration that it accepts."""

    connection_id: str
    location: str
    remotely_managed: bool = True


class Refused(Exception):  # noqa: N818 - it is an answer
    """The edge refuses a registration; `retry` tells whether trying again makes sense."""

    def __init__(self, cause: str, *, retry: bool = True) -> None:
        super().__init__(cause)
        self.retry = retry


class _Buffered:
    def __init__(self, stream: Duplex) -> None:
        self.stream = stream
        self.held = b""

    async def exactly(self, size: int) -> bytes:
        while len(self.held) < size:
            more = await self.stream.read()
            if not more:
                raise EOFError
            self.held += more
        taken, self.held = self.held[:size], self.held[size:]
        return taken


def _message(kind: int, body: Struct) -> bytes:
    return capnp.encode(Struct(struct.pack("<H", kind), [body]))


class Server:
    """The edge's end: answers the calls of one control stream."""

    def __init__(
        self, register: Callable[[Registration], Awaitable[Details]], unregister: Callable[[], Awaitable[None]]
    ) -> None:
        """Take the handlers; `register` raises Refused."""
        self._register = register
        self._unregister = unregister

    async def serve(self, stream: Duplex) -> None:
        """Answer calls until the stream ends.

        Raises:
            Refused: a registration was refused, and the connector was told why: the connection is to be closed.
            capnp.FormatError: the connector sends something that is no RPC.

        """
        buffered = _Buffered(stream)
        while True:
            try:
                message = await capnp.read(buffered.exactly)
            except EOFError:
                return
            kind, body = message.number(0, "H"), message.struct(0)
            if kind == _BOOTSTRAP:
                table = [Struct(struct.pack("<HHI", 1, 0, 0), [None])]
                await stream.write(_answer(body.number(0, "I"), Struct(b"", [Capability(0), table])))
            elif kind == _CALL:
                await self._call(stream, body)
            elif kind == _ABORT:
                return

    async def _call(self, stream: Duplex, call: Reader) -> None:
        question, method = call.number(0, "I"), call.number(4, "H")
        params = call.struct(1).struct(0)
        refusal: Refused | None = None
        if call.number(8, "Q") != INTERFACE or method not in (REGISTER, UNREGISTER, UPDATE_LOCAL):
            reason = Struct(struct.pack("<HHI", 0, 0, 3), ["method not implemented"])
            await stream.write(_message(_RETURN, Struct(_return_data(question, _EXCEPTION), [reason])))
            return
        result = Struct()
        if method == REGISTER:
            try:
                details = await self._register(_registration(params))
                tag, inner = 1, _details(details)
            except Refused as refused:
                refusal = refused
                tag, inner = 0, Struct(struct.pack("<qQ", 0, refused.retry), [str(refused)])
            result = Struct(b"", [Struct(struct.pack("<Q", tag), [inner])])
        elif method == UNREGISTER:
            await self._unregister()
        await stream.write(_answer(question, Struct(b"", [result, None])))
        if refusal:
            raise refusal


def _return_data(question: int, kind: int) -> bytes:
    return struct.pack("<IHHQ", question, 0, kind, 0)


def _answer(question: int, payload: Struct) -> bytes:
    return _message(_RETURN, Struct(_return_data(question, _RESULTS), [payload]))


def _details(details: Details) -> Struct:
    data = struct.pack("<Q", details.remotely_managed)
    return Struct(data, [uuid.UUID(details.connection_id).bytes, details.location])


def _registration(params: Reader) -> Registration:
    auth, options = params.struct(0), params.struct(2)
    client = options.struct(0)
    tunnel, client_id = params.data(1), client.data(0)
    if len(tunnel) != 16 or len(client_id) != 16:
        raise Refused("the tunnel's and the client's id must have 16 bytes", retry=False)
    return Registration(
        account=auth.text(0),
        secret=auth.data(1),
        tunnel_id=str(uuid.UUID(bytes=tunnel)),
        index=params.number(0, "B"),
        client_id=str(uuid.UUID(bytes=client_id)),
        features=client.texts(1),
        version=client.text(2),
        arch=client.text(3),
        attempts=options.number(2, "B"),
    )


class Client:
    """The connector's end of one control stream."""

    def __init__(self, stream: Duplex) -> None:
        self._stream = stream
        self._buffered = _Buffered(stream)
        self._question = 0
        self._lock = asyncio.Lock()

    async def register(self, wanted: Registration) -> Details:
        """Register the connection.

        Raises:
            Refused: the edge says no, in its words.
            EOFError: the edge hung up.

        """
        await self._stream.write(_message(_BOOTSTRAP, Struct(struct.pack("<Q", 0), [None])))
        client = Struct(b"", [uuid.UUID(wanted.client_id).bytes, wanted.features, wanted.version, wanted.arch])
        options = Struct(struct.pack("<BBB", 0, 0, min(wanted.attempts, 255)), [client, None])
        auth = Struct(b"", [wanted.account, wanted.secret])
        params = Struct(struct.pack("<B", wanted.index), [auth, uuid.UUID(wanted.tunnel_id).bytes, options])
        response = (await self._call(REGISTER, params)).struct(0)
        inner = response.struct(0)
        if response.number(0, "H") == 0:
            raise Refused(inner.text(0), retry=inner.flag(64))
        return Details(str(uuid.UUID(bytes=inner.data(0))), inner.text(1), inner.flag(0))

    async def unregister(self) -> None:
        """Tell the edge to send nothing new to this connection."""
        await self._call(UNREGISTER, Struct())

    async def _call(self, method: int, params: Struct) -> Reader:
        async with self._lock:
            self._question += 1
            question = self._question
            # The target is what the bootstrap (question 0) will answer.
            target = Struct(struct.pack("<IHH", 0, 1, 0), [Struct(struct.pack("<Q", 0), [None])])
            data = struct.pack("<IHHQQ", question, method, 0, INTERFACE, 0)
            await self._stream.write(_message(_CALL, Struct(data, [target, Struct(b"", [params, None]), None])))
            while True:
                message = await capnp.read(self._buffered.exactly)
                body = message.struct(0)
                if message.number(0, "H") == _RETURN and body.number(0, "I") == question:
                    break
            await self._stream.write(_message(_FINISH, Struct(struct.pack("<Q", question))))
            if body.number(6, "H") != _RESULTS:
                raise Refused(body.struct(0).text(0) or "the edge cancelled the call")
            return body.struct(0).struct(0)
