"""HTTP/2 connections for asyncio, on top of h2: streams that are read and written with back pressure.

A received byte is acknowledged when the reader takes it, so at most one window per stream is ever in memory; a write
waits until the peer's window and the socket take it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

Headers = list[tuple[str, str]]
STREAM_WINDOW = 1 << 18
CONNECTION_WINDOW = 1 << 26
_FRAME = 1 << 16
_MOST_STREAMS = 1000


class StreamError(ConnectionError):
    """The peer reset the stream, or the connection is gone."""


class Stream:
    """One request and its response.

    Attributes:
        headers: the peer's header block: the request on a server, None until the response is there on a client.
        has_body: whether a body comes after the peer's headers, be it an empty one.

    """

    def __init__(self, connection: Connection, number: int) -> None:
        self._connection = connection
        self.number = number
        self.headers: Headers | None = None
        self.has_body = True
        self.wake = asyncio.Event()
        self.room = asyncio.Event()
        self._received: deque[tuple[bytes, int]] = deque()
        self.input_ended = False
        self.output_ended = False
        self.failure: str | None = None

    def header(self, name: str) -> str | None:
        """Return a header of the peer; the last one where there are several."""
        return dict(self.headers or []).get(name)

    async def response(self) -> Headers:
        """Wait for the response's headers.

        Raises:
            StreamError: there will be none.

        """
        while self.headers is None:
            self._check()
            if self.input_ended:
                raise StreamError("the stream ended without headers")
            await self._changed()
        return self.headers

    async def read(self) -> bytes:
        """Return the next bytes of the body, b"" at its end.

        Raises:
            StreamError: the body is cut off.

        """
        while not self._received:
            if self.input_ended:
                return b""
            self._check()
            await self._changed()
        data, size = self._received.popleft()
        self._connection.took(self.number, size)
        return data

    async def write(self, data: bytes) -> None:
        """Send bytes of the body as the peer's window allows.

        Raises:
            StreamError: nobody will take them.

        """
        view = memoryview(data)
        while view:
            self._check()
            part = self._connection.send_part(self.number, view)
            if not part:
                self.room.clear()
                await self.room.wait()
                continue
            view = view[part:]
            await self._connection.drain()

    async def send_headers(self, headers: Headers, *, end: bool = False) -> None:
        """Send the response's headers."""
        self._check()
        self._connection.send_headers(self.number, headers, end=end)
        self.output_ended = end
        await self._connection.drain()

    async def end(self) -> None:
        """Say that the body is complete."""
        if not self.output_ended and self.failure is None:
            self.output_ended = True
            self._connection.end_stream(self.number)
            await self._connection.drain()

    def reset(self) -> None:
        """Break the stream off unless both ends are done with it."""
        if self.failure is None and not (self.input_ended and self.output_ended):
            self.fail("reset by this end")
            codes = h2.errors.ErrorCodes
            self._connection.reset_stream(self.number, codes.NO_ERROR if self.output_ended else codes.CANCEL)
        self._connection.forget(self.number, sum(size for _data, size in self._received))
        self._received.clear()

    # What the connection calls.

    def receive(self, data: bytes, size: int) -> None:
        """Keep bytes until they are read; `size` is what they count against the window."""
        self._received.append((data, size))
        self.wake.set()

    def fail(self, why: str) -> None:
        """Wake everybody up with an error."""
        self.failure = self.failure or why
        self.wake.set()
        self.room.set()

    def _check(self) -> None:
        if self.failure is not None:
            raise StreamError(self.failure)

    async def _changed(self) -> None:
        self.wake.clear()
        await self.wake.wait()


class Connection:
    """One end of a connection. `run` serves it; the peer's requests go to `handler` (a server only)."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        client: bool,
        handler: Callable[[Stream], Awaitable[None]] | None = None,
    ) -> None:
        self._reader = reader
        self.writer = writer
        self._handler = handler
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=client, header_encoding="latin-1", validate_outbound_headers=False)
        )
        self._streams: dict[int, Stream] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._drain_lock = asyncio.Lock()
        self._pong = asyncio.Event()
        self.failure: str | None = None
        self.refusing = False
        self._h2.local_settings = h2.settings.Settings(
            client=client,
            initial_values={
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                h2.settings.SettingCodes.MAX_FRAME_SIZE: _FRAME,
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: _MOST_STREAMS,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: 1 << 18,
                **({h2.settings.SettingCodes.ENABLE_PUSH: 0} if client else {}),
            },
        )
        self._h2.max_inbound_frame_size = _FRAME

    @property
    def active(self) -> int:
        """Number of streams that are open."""
        return len(self._streams)

    async def run(self) -> None:
        """Serve the connection until it ends; every stream that is open then fails."""
        self.start()
        why = "the connection was closed"
        try:
            while data := await self._reader.read(1 << 17):
                for event in self._h2.receive_data(data):
                    self._event(event)
                self.flush()
        except (OSError, h2.exceptions.ProtocolError) as wrong:
            why = f"the connection broke: {wrong or type(wrong).__name__}"
        finally:
            self.close(why)
            for task in list(self._tasks):
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=5)

    def start(self) -> None:
        """Send this end's preface, once: a client may then `request` before `run` is scheduled."""
        if self._h2.state_machine.state is h2.connection.ConnectionState.IDLE:
            self._h2.initiate_connection()
            self._h2.increment_flow_control_window(CONNECTION_WINDOW)
            self.flush()

    async def request(self, headers: Headers, *, end: bool) -> Stream:
        """Open a stream (a client only).

        Raises:
            StreamError: the connection is gone, or takes no more streams.

        """
        if self.failure is not None:
            raise StreamError(self.failure)
        try:
            number = self._h2.get_next_available_stream_id()
            stream = Stream(self, number)
            self.send_headers(number, headers, end=end)
        except h2.exceptions.ProtocolError as wrong:
            raise StreamError(str(wrong)) from None
        stream.output_ended = end
        self._streams[number] = stream
        return stream

    async def ping(self, timeout: float) -> bool:
        """Tell whether the peer answers a ping within so many seconds."""
        if self.failure is not None:
            return False
        self._pong.clear()
        self._h2.ping(b"kitelab!")
        self.flush()
        try:
            await asyncio.wait_for(self._pong.wait(), timeout)
        except TimeoutError:
            return False
        return self.failure is None

    def close(self, why: str = "closed by this end") -> None:
        """Close the connection; what is open fails."""
        if self.failure is None:
            self.failure = why
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self._h2.close_connection()
            self.flush()
            self.writer.close()
        for stream in list(self._streams.values()):
            stream.fail(why)
        self._pong.set()

    def abort(self, why: str) -> None:
        """Close a connection whose peer does not answer, without waiting for what is unsent."""
        self.close(why)
        if isinstance(self.writer.transport, asyncio.Transport):
            self.writer.transport.abort()

    # What streams call.

    def took(self, number: int, size: int) -> None:
        """Give the peer room again."""
        if self.failure is None and size:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self._h2.acknowledge_received_data(size, number)
            self.flush()

    def send_part(self, number: int, view: memoryview) -> int:
        """Send as much of `view` as fits the window and a frame; return how much it was."""
        try:
            room = self._h2.local_flow_control_window(number)
            size = min(room, self._h2.max_outbound_frame_size, len(view), _FRAME)
            if size > 0:
                self._h2.send_data(number, bytes(view[:size]))
        except h2.exceptions.ProtocolError as wrong:
            raise StreamError(str(wrong)) from None
        self.flush()
        return max(int(size), 0)

    def send_headers(self, number: int, headers: Headers, *, end: bool) -> None:
        """Send a header block."""
        self._h2.send_headers(
            number, [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers], end
        )
        self.flush()

    def end_stream(self, number: int) -> None:
        """Close this end's half of a stream."""
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self._h2.end_stream(number)
        self.flush()

    def reset_stream(self, number: int, code: int) -> None:
        """Reset a stream."""
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self._h2.reset_stream(number, code)
        self.flush()

    def forget(self, number: int, unread: int) -> None:
        """Drop a stream that is over; what nobody read is acknowledged for the connection's sake."""
        if self._streams.pop(number, None) is not None:
            self.took(number, unread)

    async def drain(self) -> None:
        """Wait until the socket takes more."""
        try:
            async with self._drain_lock:
                await self.writer.drain()
        except OSError as wrong:
            raise StreamError(f"the connection broke: {wrong}") from None

    def flush(self) -> None:
        """Hand the socket what h2 has to send."""
        data = self._h2.data_to_send()
        if data and not self.writer.is_closing():
            self.writer.write(data)

    def _event(self, event: h2.events.Event) -> None:
        number = getattr(event, "stream_id", None)
        stream = self._streams.get(number or 0)
        if isinstance(event, h2.events.RequestReceived):
            self._accept(event)
        elif isinstance(event, h2.events.DataReceived):
            if stream is None or stream.failure is not None:
                self.took(event.stream_id, event.flow_controlled_length)
            else:
                stream.receive(event.data, event.flow_controlled_length)
        elif isinstance(event, h2.events.WindowUpdated):
            for waiting in [stream] if stream else self._streams.values() if not number else []:
                waiting.room.set()
        elif isinstance(event, h2.events.RemoteSettingsChanged):
            for waiting in self._streams.values():
                waiting.room.set()
        elif isinstance(event, h2.events.PingAckReceived):
            self._pong.set()
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.refusing = True
        elif stream is not None:
            _update(stream, event)

    def _accept(self, event: h2.events.RequestReceived) -> None:
        stream = Stream(self, event.stream_id)
        stream.headers = _decoded(event.headers)
        stream.has_body = event.stream_ended is None
        self._streams[stream.number] = stream
        task = asyncio.ensure_future(self._serve(stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, stream: Stream) -> None:
        if self._handler is None:
            raise TypeError("a connection that serves needs a handler")
        try:
            await self._handler(stream)
        except StreamError:
            pass
        finally:
            stream.reset()


def _decoded(headers: object) -> Headers:
    return [
        (
            name if isinstance(name, str) else name.decode("latin-1"),
            value if isinstance(value, str) else value.decode("latin-1"),
        )
        for name, value in headers  # type: ignore[attr-defined]
    ]


def _update(stream: Stream, event: h2.events.Event) -> None:
    if isinstance(event, h2.events.ResponseReceived):
        stream.headers = _decoded(event.headers)
        stream.wake.set()
    elif isinstance(event, h2.events.StreamEnded):
        stream.input_ended = True
        stream.wake.set()
    elif isinstance(event, h2.events.StreamReset):
        stream.fail(f"the peer reset the stream (code {int(event.error_code or 0)})")
