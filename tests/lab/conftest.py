"""A Cloudflare of one's own on loopback: the edge as a process, connectors as processes, an origin in this one."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lab.whoami import Handler

ROOT = Path(__file__).resolve().parents[2]
ZONE = "kitestacks.test"
REAL = os.environ.get("KITE_CLOUDFLARED")
NAMES = ("api.cloudflare.com", "h2.cftunnel.com", ZONE, f"*.{ZONE}")


def eventually(what: str, check: Callable[[], Any], timeout: float = 20.0) -> Any:
    """Return the first true value of `check`, asked every 20 ms."""
    until = time.monotonic() + timeout
    while not (value := check()):
        assert time.monotonic() < until, f"{what}: not within {timeout} s"
        time.sleep(0.02)
    return value


@pytest.fixture(scope="session")
def origin() -> Iterator[int]:
    """Port of an origin."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


@dataclass
class Answer:
    """What a visitor got."""

    status: int
    body: bytes
    headers: list[tuple[str, str]]
    seconds: float

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Process:
    """A connector that runs, or ran."""

    popen: subprocess.Popen[bytes]
    log: Path
    metrics: int

    def probe(self, path: str) -> tuple[int, str]:
        """Ask its metrics port."""
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def ready(self, count: int = 4) -> bool:
        """Tell whether it has so many connections."""
        status, text = self.probe("/ready")
        return status == 200 and json.loads(text)["readyConnections"] == count

    @property
    def client_id(self) -> str:
        return str(json.loads(self.probe("/ready")[1])["connectorId"])


@dataclass
class Edge:
    """The lab's Cloudflare as a process."""

    folder: Path
    popen: subprocess.Popen[bytes] | None = None
    ports: dict[str, int] = field(default_factory=dict)
    tunnels: int = 0
    processes: list[Process] = field(default_factory=list)

    def start(self) -> None:
        """Start it, on the ports that it had before."""
        file = self.folder / "ports.json"
        file.unlink(missing_ok=True)
        paths = [str(ROOT), str(ROOT / "collections"), os.environ.get("PYTHONPATH", "")]
        log = self.folder / "edge.log"
        with log.open("ab") as output:
            self.popen = popen = subprocess.Popen(
                [
                    *(sys.executable, "-m", "lab.cloudflare.edge", "--zone", ZONE, "--ports-file", file),
                    *("--certificate", self.folder / "server.crt", "--key", self.folder / "server.key"),
                    *(f"--{name}-port={self.ports.get(name, 0)}" for name in ("public", "tunnel", "api")),
                    *(
                        "--ping-interval",
                        "1",
                        "--ping-timeout",
                        "2",
                        "--state",
                        self.folder / "state.json",
                        "--contract",
                    ),
                ],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)},
                stdout=output,
                stderr=output,
            )
        eventually("the edge is up", lambda: file.exists() or popen.poll() is not None)
        assert popen.poll() is None, log.read_text()
        self.ports = json.loads(file.read_text())

    def stop(self) -> None:
        """Kill it."""
        if self.popen is not None:
            self.popen.kill()
            self.popen.wait()

    @property
    def pid(self) -> int:
        assert self.popen is not None
        return self.popen.pid

    def api(self, method: str, path: str, body: Any = None, *, name: str = "api.cloudflare.com") -> Any:
        """Call the API and return its result; `path` begins after /client/v4, or with /_."""
        connection = self.connect(name)
        headers = {"Authorization": "Bearer fake-token", "Host": name}
        target = path if path.startswith("/_") else f"/client/v4{path}"
        connection.request(method, target, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        document = json.loads(answer.read())
        connection.close()
        assert answer.status < 300, document
        return document if path.startswith("/_") else document["result"]

    @property
    def account(self) -> str:
        return str(self.api("GET", "/accounts")[0]["id"])

    def connect(self, name: str) -> http.client.HTTPSConnection:
        """Open a connection for requests to a name."""
        context = ssl.create_default_context(cafile=self.folder / "server.crt")
        connection = http.client.HTTPSConnection(name, self.ports["public"], timeout=60, context=context)
        connection.sock = context.wrap_socket(
            socket.create_connection(("127.0.0.1", self.ports["public"])), server_hostname=name
        )
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def visit(self, name: str, target: str = "/", method: str = "GET", body: Any = None, **headers: str) -> Answer:
        """Make one public request; underscores in names of headers stand for dashes."""
        begun = time.monotonic()
        connection = self.connect(name)
        try:
            sent = {key.replace("_", "-"): value for key, value in headers.items()}
            connection.request(method, target, body, {"Host": name, **sent})
            answer = connection.getresponse()
            content = answer.read()
            return Answer(answer.status, content, answer.getheaders(), time.monotonic() - begun)
        finally:
            connection.close()

    def state(self) -> dict[str, Any]:
        """Return what the edge says of itself."""
        return self.api("GET", "/_edge/state")

    def tunnel(self) -> Tunnel:
        """Create a tunnel with a public name of its own."""
        self.tunnels += 1
        made = self.api(
            "POST", f"/accounts/{self.account}/cfd_tunnel", {"name": f"t{self.tunnels}", "config_src": "cloudflare"}
        )
        tunnel = Tunnel(self, made["id"], f"app{self.tunnels}.{ZONE}")
        zone = self.api("GET", "/zones")[0]["id"]
        record = {
            "type": "CNAME",
            "name": tunnel.name,
            "content": f"{made['id']}.cfargotunnel.com",
            "proxied": True,
            "ttl": 1,
        }
        self.api("POST", f"/zones/{zone}/dns_records", record)
        return tunnel

    def connector(self, token: str, **variables: str) -> Process:
        """Start a connector: the real cloudflared when KITE_CLOUDFLARED names it."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            metrics = free.getsockname()[1]
        addresses = [f"127.0.{number}.1:{self.ports['tunnel']}" for number in range(1, 7)]
        environment = {
            **os.environ,
            "TUNNEL_TOKEN": token,
            "TUNNEL_EDGE": ",".join(addresses),
            "TUNNEL_CACERT": str(self.folder / "server.crt"),
            "TUNNEL_TRANSPORT_PROTOCOL": "http2",
            "TUNNEL_METRICS": f"127.0.0.1:{metrics}",
            "TUNNEL_NO_PRECHECKS": "true",
            "NO_AUTOUPDATE": "true",
            **variables,
        }
        command = [REAL] if REAL else [sys.executable, "-m", "lab.cloudflare.connector"]
        log = self.folder / f"connector-{len(self.processes)}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [*command, "--no-autoupdate", "tunnel", "run"], env=environment, cwd=ROOT, stdout=output, stderr=output
            )
        process = Process(popen, log, metrics)
        self.processes.append(process)
        return process


@dataclass
class Tunnel:
    """A tunnel at the edge."""

    edge: Edge
    id: str
    name: str

    @property
    def path(self) -> str:
        return f"/accounts/{self.edge.account}/cfd_tunnel/{self.id}"

    @property
    def token(self) -> str:
        return str(self.edge.api("GET", f"{self.path}/token"))

    def configure(self, *rules: dict[str, Any]) -> int:
        """Set the ingress rules and return their version."""
        config = {"ingress": [*rules, {"service": "http_status:404"}]}
        return int(self.edge.api("PUT", f"{self.path}/configurations", {"config": config})["version"])

    def versions(self) -> list[int]:
        """Return the version that each connector runs."""
        return [each["config_version"] for each in self.edge.api("GET", f"{self.path}/connections")]

    def serve(self, origin: int, count: int = 1) -> list[Process]:
        """Route the name to the origin and have so many connectors."""
        version = self.configure({"hostname": self.name, "service": f"http://127.0.0.1:{origin}"})
        processes = [self.edge.connector(self.token) for _number in range(count)]
        for process in processes:
            eventually("four connections", process.ready)
        eventually("the configuration is applied", lambda: self.versions() == [version] * count)
        mine = [each for each in self.edge.state()["connections"] if each["tunnel_id"] == self.id]
        assert len(mine) == 4 * count
        return processes


def certificate(folder: Path) -> None:
    """Make a key and a certificate that is its own authority."""
    subject = ",".join(f"DNS:{name}" for name in NAMES)
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-noenc",
                "-days",
                "2",
            ),
            *("-subj", "/CN=test", "-addext", f"subjectAltName={subject}"),
            *("-keyout", folder / "server.key", "-out", folder / "server.crt"),
        ],
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def edge() -> Iterator[Edge]:
    """An edge; what was started with it ends with it."""
    with tempfile.TemporaryDirectory(prefix="edge-") as name:
        edge = Edge(Path(name))
        certificate(edge.folder)
        try:
            edge.start()
            yield edge
            assert edge.api("GET", "/_control/log")["violations"] == []
        finally:
            for process in edge.processes:
                process.popen.kill()
                process.popen.wait()
            edge.stop()
            print((edge.folder / "edge.log").read_text()[-6000:])
            for process in edge.processes:
                print(process.log.name, process.log.read_text()[-1500:])


@pytest.fixture
def tunnel(edge: Edge) -> Iterator[Tunnel]:
    """A tunnel of the test's own; its connectors are gone after it."""
    before = len(edge.processes)
    yield edge.tunnel()
    for process in edge.processes[before:]:
        process.popen.kill()
        process.popen.wait()
