"""Requests as a visitor makes them, and counting what became of them."""

from __future__ import annotations

import http.client
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lab import machines
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
def edge(host: str) -> Iterator[int]:
    """Yield a loopback port of this machine that leads, over ssh, to the port of a host's edge that connectors use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = machines.ssh_command(host)
    forward = ["-N", "-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{port}:127.0.0.1:8080"]
    tunnel = subprocess.Popen([words[0], *forward, *words[1:]], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError as error:
                if tunnel.poll() is not None or time.monotonic() > deadline:
                    raise LabError(f"no way to the edge of {host} over ssh") from error
                time.sleep(0.05)
        yield port
    finally:
        tunnel.terminate()
        tunnel.communicate()


def request(port: int, hostname: str, path: str = "/", method: str = "GET", timeout: float = 10) -> Answer:
    """Make one request on a connection of its own."""
    begin = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, headers={"Host": hostname, "Connection": "close"})
        response = connection.getresponse()
        body = response.read().decode(errors="replace")
        return Answer(begin, time.monotonic() - begin, response.status, response.headers.get("X-Served-By", ""), body)
    except (OSError, http.client.HTTPException) as error:
        return Answer(begin, time.monotonic() - begin, 0, "", str(error))
    finally:
        connection.close()


def steady(port: int, hostname: str, count: int, rate: float, path: str = "/") -> Sequence[Answer]:
    """Make `count` requests, `rate` a second whatever the answers take, and return them in the order they were made."""
    answers: list[Answer | None] = [None] * count
    begin = time.monotonic()

    def one(index: int) -> None:
        answers[index] = request(port, hostname, path)

    threads = []
    for index in range(count):
        time.sleep(max(0.0, begin + index / rate - time.monotonic()))
        thread = threading.Thread(target=one, args=(index,))
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()
    return [answer for answer in answers if answer is not None]
