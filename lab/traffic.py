"""Requests as a visitor makes them, and counting what became of them."""

from __future__ import annotations

import concurrent.futures
import functools
import http.client
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from lab import certificates, machines, settings
from lab.shell import LabError


@dataclass(frozen=True)
class Answer:
    """What became of one request. `status` is 0 when no answer came; `server` is the host whose copy answered."""

    begin: float
    seconds: float
    status: int
    server: str
    body: str


@contextmanager
def forwarded(host: str, address: str) -> Iterator[int]:
    """Yield a loopback port of this machine that leads, over ssh, to an address (HOST:PORT) as a host reaches it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = machines.ssh_command(host)
    forward = ["-N", "-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{port}:{address}"]
    tunnel = subprocess.Popen([words[0], *forward, *words[1:]], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError as error:
                if tunnel.poll() is not None or time.monotonic() > deadline:
                    raise LabError(f"no way to {address} of {host} over ssh") from error
                time.sleep(0.05)
        yield port
    finally:
        tunnel.kill()  # asked to end right after a reset, it has been seen to stay for a minute
        tunnel.communicate()


def edge(host: str) -> AbstractContextManager[int]:
    """Yield a loopback port of this machine that leads to the port of a host's edge that connectors use."""
    return forwarded(host, "127.0.0.1:8080")


def request(port: int, hostname: str, path: str = "/", method: str = "GET", timeout: float = 10) -> Answer:
    """Ask the edge behind a port of `edge`, on a connection of its own."""
    return _answer(http.client.HTTPConnection("127.0.0.1", port, timeout=timeout), hostname, path, method, {})


def curl(via: str = "") -> list[str]:
    """Return the words of a curl that asks for public names as `visit` does; options and the URL follow them."""
    way = ["--silent", "--show-error", "--cacert", str(certificates.CA)]
    way += ["--connect-to", f"::{settings.CLOUDFLARE.address}:443"]
    return ["curl", *way, *(word for name, value in _pinned(via).items() for word in ("--header", f"{name}: {value}"))]


def _pinned(via: str) -> dict[str, str]:
    """Return the headers that make the connector of a host take the request; none for ""."""
    return {"X-Lab-Connector": machines.address(via)} if via else {}


class _Visitor(http.client.HTTPSConnection):
    """A connection to the lab's Cloudflare, which is where every public name leads."""

    def connect(self) -> None:
        """Connect to the edge, whatever the name."""
        plain = socket.create_connection((settings.CLOUDFLARE.address, 443), self.timeout)
        self.sock = _trust().wrap_socket(plain, server_hostname=self.host)


@functools.cache
def _trust() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificates.CA))


def visit(hostname: str, path: str = "/", method: str = "GET", timeout: float = 10, via: str = "") -> Answer:
    """Ask for a public name as a visitor does, on a connection of its own.

    `via` is the host whose connector shall take the request; "" leaves the choice to Cloudflare.
    """
    return _answer(_Visitor(hostname, timeout=timeout), hostname, path, method, _pinned(via))


def websocket(hostname: str, path: str = "/", via: str = "") -> ssl.SSLSocket:
    """Open a WebSocket to a public name; what is sent and received are its bytes as they are."""
    connection = _Visitor(hostname, timeout=10)
    connection.connect()
    pinned = "".join(f"{name}: {value}\r\n" for name, value in _pinned(via).items())
    head = f"GET {path} HTTP/1.1\r\nHost: {hostname}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{pinned}"
    stream: ssl.SSLSocket = connection.sock
    stream.sendall(f"{head}Sec-WebSocket-Key: a2l0ZXN0YWNrcy1sYWIhIQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = stream.recv(1)
        if not data:
            raise LabError(f"{hostname} closed the connection instead of opening a WebSocket: {answer!r}")
        answer += data
    if not answer.startswith(b"HTTP/1.1 101"):
        raise LabError(f"{hostname} does not open a WebSocket: {answer.splitlines()[0]!r}")
    return stream


def _answer(
    connection: http.client.HTTPConnection, hostname: str, path: str, method: str, headers: Mapping[str, str]
) -> Answer:
    begin = time.monotonic()
    try:
        connection.request(method, path, headers={"Host": hostname, "Connection": "close", **headers})
        response = connection.getresponse()
        body = response.read().decode(errors="replace")
        return Answer(begin, time.monotonic() - begin, response.status, response.headers.get("X-Served-By", ""), body)
    except (OSError, http.client.HTTPException) as error:
        return Answer(begin, time.monotonic() - begin, 0, "", str(error))
    finally:
        connection.close()


def steady(ask: Callable[[], Answer], count: int, rate: float) -> Sequence[Answer]:
    """Ask `count` times, `rate` a second whatever the answers take; return the answers in the order of asking."""
    answers: list[Answer | None] = [None] * count
    begin = time.monotonic()

    def one(index: int) -> None:
        answers[index] = ask()

    threads = []
    for index in range(count):
        time.sleep(max(0.0, begin + index / rate - time.monotonic()))
        thread = threading.Thread(target=one, args=(index,))
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()
    return [answer for answer in answers if answer is not None]


def during(
    ask: Callable[[], Answer], what: Callable[[], None], *, count: int, rate: float = 20, after: float = 2
) -> tuple[Sequence[Answer], float]:
    """Ask steadily, and do `what` when `after` seconds have passed; return the answers and the moment it was begun."""
    moment = [0.0]

    def act() -> None:
        time.sleep(after)
        moment[0] = time.monotonic()
        what()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        acting = pool.submit(act)
        answers = steady(ask, count, rate)
        acting.result()  # what went wrong in it is not lost
    return answers, moment[0]


@dataclass(frozen=True)
class Loss:
    """What a fault cost: requests that failed, of how many, with which statuses (0: no answer), and times in seconds.

    `until` is when the last failed request had ended, counted from the fault; `slowest` is the slowest good answer.
    """

    failed: int
    asked: int
    statuses: tuple[int, ...]
    until: float
    slowest: float

    def __str__(self) -> str:
        """Return it for a person."""
        seen = f" ({', '.join(str(status) for status in self.statuses)})" if self.failed else ""
        return (
            f"{self.failed} of {self.asked} failed{seen}, until {self.until:.1f} s, slowest good {self.slowest:.1f} s"
        )


def loss(answers: Sequence[Answer], moment: float) -> Loss:
    """Sum up the answers around a fault that happened at `moment`."""
    failed = [answer for answer in answers if answer.status != 200]
    return Loss(
        failed=len(failed),
        asked=len(answers),
        statuses=tuple(sorted({answer.status for answer in failed})),
        until=max((answer.begin + answer.seconds - moment for answer in failed), default=0.0),
        slowest=max((answer.seconds for answer in answers if answer.status == 200), default=0.0),
    )


def connections() -> dict[str, int]:
    """Return the number of usable connections to the lab's Cloudflare by the connector's address."""
    found: dict[str, int] = {}
    for connection in cloudflare("GET", "/_edge/state")["connections"]:
        found[connection["address"]] = found.get(connection["address"], 0) + bool(connection["usable"])
    return found


def all_is_well(copies: Mapping[str, int]) -> bool:
    """Tell whether every host's connector is connected and every edge sees `copies` (by service) healthy."""
    return connections() == {host.address: 4 for host in settings.HOSTS} and all(
        machines.edge_services(host.name).items() >= copies.items() for host in settings.HOSTS
    )


def cloudflare(method: str, path: str, body: Any = None) -> Any:
    """Call the lab's Cloudflare: its API below /client/v4, its own controls below /_edge and /_control."""
    connection = _Visitor("api.cloudflare.com", timeout=30)
    try:
        token = machines.CLOUDFLARE_TOKEN.read_text().strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        document = json.loads(answer.read() or b"null")
    finally:
        connection.close()
    if answer.status >= 400:
        raise LabError(f"{method} {path}: {answer.status} {document}")
    return document
