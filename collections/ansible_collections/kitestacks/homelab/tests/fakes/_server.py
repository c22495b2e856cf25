# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP half of every fake API: connections, faults on demand, a log of calls, the contract check.

The state half is a `Service`: an object with a base path and a `handle` method that knows nothing of HTTP. In a test:

    with Server(CloudflareApi()) as server:
        server.fault(status=500, when="after", write=3)   # the fourth write is carried out, its answer is lost
        ...                                               # talk to server.url
        assert server.count("POST") == 1

From outside the process the same is had under `/_control/`: GET `log`, POST `faults` (the arguments of `fault`),
POST `reset` (forgets the log and the faults, keeps the state).
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import struct
import threading
import time
import typing as t
import urllib.parse
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

if t.TYPE_CHECKING:
    from ._contract import Contract

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass
class Request:
    """What a service gets: `path` is below its base path, `body` the decoded JSON document (None: no body)."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: t.Any = None


@dataclass
class Reply:
    """What a service answers: `body` is a JSON document, or text for an answer that is no JSON."""

    status: int
    body: t.Any = None
    headers: dict[str, str] = field(default_factory=dict)

    def encode(self) -> tuple[bytes, str]:
        """Return the bytes and the content type."""
        if self.body is None and self.status in (204, 405):
            return b"", "text/html; charset=utf-8"
        if isinstance(self.body, str):
            return self.body.encode(), "text/html; charset=utf-8"
        return json.dumps(self.body).encode(), "application/json"


class Service(t.Protocol):
    """The state half of a fake API."""

    base_path: str

    def handle(self, request: Request) -> Reply:
        """Answer a request. It is called by one thread at a time."""


@dataclass
class Call:
    """One request that arrived, in order of arrival; `connection` numbers the TCP connections."""

    method: str
    path: str
    query: dict[str, str]
    body: t.Any
    connection: int
    status: int | None = None  # None: the connection was reset


@dataclass
class Fault:
    """Something that goes wrong.

    Attributes:
        status: answer with this status; None resets the connection.
        when: `before` the request is carried out, or `after` it (the work is done, the answer is lost).
        body: body of the answer; a str is sent as HTML.
        headers: headers of the answer, for example retry-after.
        method: only requests with this method; None for every method.
        path: only paths in which this regular expression is found.
        write: only the request that is the n-th write (POST, PUT, PATCH, DELETE) from now on, counted from 0.
        times: how many requests it hits before it is used up.
        delay: seconds to wait before answering; with `status` 0 that is all that happens.
    """

    status: int | None = None
    when: str = "before"
    body: t.Any = ""
    headers: dict[str, str] = field(default_factory=dict)
    method: str | None = None
    path: str = ""
    write: int | None = None
    times: int = 1
    delay: float = 0.0
    seen: int = 0

    def hits(self, request: Request) -> bool:
        """Tell whether this request is to fail, and count it."""
        if self.times <= 0 or (self.method and self.method != request.method) or not re.search(self.path, request.path):
            return False
        if self.write is not None:
            if request.method not in WRITES:
                return False
            self.seen += 1
            if self.seen <= self.write:
                return False
        self.times -= 1
        return True


class Server:
    """A fake API on a loopback port. Use it as a context manager, or call `start` and `stop`."""

    def __init__(
        self,
        service: Service,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        contract: Contract | None = None,
        certificate: str | None = None,
    ) -> None:
        """Bind the port (0: any free one).

        Args:
            service: the state half.
            host: address to listen on.
            port: port to listen on.
            contract: the vendor's API document; requests that break it get 400, answers that break it 500, and both
                are kept in `violations`.
            certificate: PEM file with certificate and key, to speak TLS.
        """
        self.service = service
        self.contract = contract
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        self.violations: list[str] = []
        self.connections = 0
        self.lock = threading.RLock()
        self._http = _Http((host, port), self)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        scheme = "https" if certificate else "http"
        self.origin = f"{scheme}://{host}:{self._http.server_address[1]}"
        self.url = self.origin + service.base_path
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve in a thread."""
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and free the port."""
        if self._thread is not None:
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()

    def run(self) -> None:
        """Serve in this thread until interrupted."""
        self._http.serve_forever()

    def fault(self, **values: t.Any) -> Fault:
        """Add a fault, see `Fault`."""
        fault = Fault(**values)
        with self.lock:
            self.faults.append(fault)
        return fault

    def count(self, method: str | None = None, path: str = "") -> int:
        """Return how many requests arrived with this method and a path in which this regular expression is found."""
        return sum(
            (method is None or call.method == method) and bool(re.search(path, call.path)) for call in self.calls
        )

    def writes(self) -> list[Call]:
        """Return the calls that change something."""
        return [call for call in self.calls if call.method in WRITES]

    def reset(self) -> None:
        """Forget calls, faults, violations and the connection count; the state stays."""
        with self.lock:
            self.calls.clear()
            self.faults.clear()
            self.violations.clear()
            self.connections = 0

    def answer(self, request: Request, connection: int) -> tuple[Reply | None, float]:
        """Answer a request: (None, ...) means that the connection is to be reset. The second value is a delay."""
        with self.lock:
            call = Call(request.method, request.path, request.query, request.body, connection)
            self.calls.append(call)
            fault = next((fault for fault in self.faults if fault.hits(request)), None)
            reply: Reply | None = None
            if fault is None or fault.when == "after" or fault.status == 0:
                reply = self._checked(request)
            if fault is not None and fault.status != 0:
                reply = None if fault.status is None else Reply(fault.status, fault.body, dict(fault.headers))
            call.status = None if reply is None else reply.status
            return reply, fault.delay if fault is not None else 0.0

    def control(self, request: Request) -> Reply:
        """Answer a request below `/_control/`."""
        with self.lock:
            if request.path == "log":
                return Reply(
                    200,
                    {
                        "calls": [asdict(call) for call in self.calls],
                        "connections": self.connections,
                        "violations": self.violations,
                        "contract": self.contract is not None,
                    },
                )
            if request.method == "POST" and request.path == "faults":
                self.fault(**request.body)
                return Reply(200, {})
            if request.method == "POST" and request.path == "reset":
                self.reset()
                return Reply(200, {})
        return Reply(404, {})

    def _checked(self, request: Request) -> Reply:
        if self.contract is None:
            return self.service.handle(request)
        wrong = self.contract.check_request(request.method, request.path, request.query, request.body)
        if wrong:
            # The service refuses most of these itself, in the vendor's words; what it lets through is refused here.
            reply = self.service.handle(request) if request.method not in WRITES else None
            if reply is not None and reply.status >= 400:
                return reply
            self.violations.extend(f"request {request.method} {request.path}: {line}" for line in wrong)
            return Reply(400, {"contract": wrong})
        reply = self.service.handle(request)
        wrong = self.contract.check_response(request.method, request.path, reply.status, reply.body)
        if wrong:
            self.violations.extend(f"response {request.method} {request.path}: {line}" for line in wrong)
            return Reply(500, {"contract": wrong})
        return reply


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], server: Server) -> None:
        self.fake = server
        super().__init__(address, _Handler)

    def handle_error(self, *_arguments: object) -> None:
        """Keep quiet: clients of a fake hang up as they please."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Http

    def setup(self) -> None:
        super().setup()
        fake = self.server.fake
        with fake.lock:
            fake.connections += 1
            self.number = fake.connections

    def log_message(self, *_arguments: object) -> None:
        """The calls are kept in `Server.calls` instead."""

    def _serve(self) -> None:
        fake = self.server.fake
        url = urllib.parse.urlsplit(self.path)
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        try:
            body = json.loads(raw) if raw else None
        except ValueError:
            body = raw.decode("utf-8", "replace")
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        headers = {name.lower(): value for name, value in self.headers.items()}
        delay, reply = 0.0, None
        if url.path.startswith("/_control/"):
            reply = fake.control(Request(self.command, url.path[len("/_control/") :], query, headers, body))
            with fake.lock:
                fake.connections -= 1
        elif not url.path.startswith(fake.service.base_path):
            reply = Reply(404, "<html><body>Not Found</body></html>")
        else:
            path = urllib.parse.unquote(url.path[len(fake.service.base_path) :])
            reply, delay = fake.answer(Request(self.command, path, query, headers, body), self.number)
        if delay:
            time.sleep(delay)
        if reply is None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            # The files hold the socket open: it is the last close that sends the RST.
            self.rfile.close()
            self.connection.close()
            return
        content, kind = reply.encode()
        self.send_response(reply.status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815
