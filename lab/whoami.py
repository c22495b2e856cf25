"""A small web service that tells what it was asked: for tests of everything that stands before a service.

GET anything answers with the path and the headers as JSON (`?sleep=S` after S seconds), GET /stream?n=N&gap=S with N
events, one each S seconds. A WebSocket echoes bytes. POST answers with the size of the body, which is not kept.
"""

from __future__ import annotations

import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""

    def end_headers(self) -> None:
        """Name the host, as every service of the homelab may."""
        if name := os.environ.get("SERVED_BY"):
            self.send_header("X-Served-By", name)
        super().end_headers()

    def do_GET(self) -> None:
        """Echo a WebSocket, stream, or tell what was asked."""
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if self.headers.get("Upgrade", "").lower() == "websocket":
            self._echo()
        elif url.path == "/stream":
            self._stream(int(query["n"]), float(query["gap"]))
        else:
            time.sleep(float(query.get("sleep", 0)))
            self._reply({"path": self.path, "headers": dict(self.headers.items())})

    do_HEAD = do_GET  # noqa: N815 - the base class wants this name

    def do_POST(self) -> None:
        """Count the body, of known length or in chunks."""
        size, left = 0, int(self.headers.get("Content-Length", -1))
        while left:
            if left < 0:
                part = int(self.rfile.readline(), 16)
                data = self.rfile.read(part)
                self.rfile.readline()
                left = -1 if part else 0
            else:
                data = self.rfile.read(min(left, 1 << 16))
                left -= len(data)
            size += len(data)
        self._reply({"size": size})

    def _reply(self, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Set-Cookie", "a=1")
        self.send_header("Set-Cookie", "b=2")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _stream(self, count: int, gap: float) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for number in range(count):
                text = f"data: {number}\n\n".encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
                time.sleep(gap)
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True  # the visitor left

    def _echo(self) -> None:
        self.send_response(101)
        for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", "x")):
            self.send_header(name, value)
        self.end_headers()
        while data := self.connection.recv(1 << 16):
            self.connection.sendall(data)
        self.close_connection = True


def main() -> None:
    """Serve on port 8000 until the process is stopped."""
    server = ThreadingHTTPServer(("", 8000), Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
