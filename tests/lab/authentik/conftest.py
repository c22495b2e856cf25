"""An Authentik of one's own: a real PostgreSQL, servers and workers as processes, a browser without a page."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import psycopg
import pytest

from ..conftest import ROOT, eventually

HOST = "auth.kitestacks.test"
TOKEN = "bootstrap-token-of-a-test"
PASSWORD = "password-of-a-test"
FORWARDED = {"X-Forwarded-Proto": "https"}
"""What the edge adds to a visitor's request."""


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass
class Cluster:
    """A PostgreSQL of Debian's package, in a folder of its own; it does not run as root."""

    folder: Path
    port: int = field(default_factory=free_port)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def run(self, program: str, *arguments: str) -> None:
        """Run a program of PostgreSQL as the user that owns the data."""
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        demote: list[str] = []
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            demote = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
        result = subprocess.run(
            [*demote, str(found[-1] / program), *arguments],
            cwd="/",
            check=False,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=60,
        )
        assert result.returncode == 0, result.stderr

    def make(self) -> None:
        self.run("initdb", "--pgdata", str(self.data), "--username=authentik", "--auth=trust", "--no-sync")
        self.configure()

    def configure(self) -> None:
        settings = f"port={self.port}\nlisten_addresses='127.0.0.1'\nunix_socket_directories=''\nfsync=off\n"
        (self.data / "postgresql.auto.conf").write_text(settings)

    def copy(self, name: str) -> Cluster:
        """Return a standby of it; it follows nobody."""
        other = Cluster(self.folder.parent / name)
        other.folder.mkdir(mode=0o755)
        give(other.folder)
        address = f"--host=127.0.0.1 --port={self.port} --username=authentik".split()
        self.run("pg_basebackup", *address, "--pgdata", str(other.data), "--checkpoint=fast", "--no-sync")
        other.configure()
        (other.data / "standby.signal").touch()
        return other

    def start(self) -> None:
        self.run("pg_ctl", "--pgdata", str(self.data), "--log", str(self.folder / "log"), "--wait", "start")

    def stop(self) -> None:
        self.run("pg_ctl", "--pgdata", str(self.data), "--mode=immediate", "--wait", "stop")

    def database(self, name: str) -> None:
        with self.connect("postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')

    def connect(self, name: str, **options: Any) -> Any:
        return psycopg.connect(host="127.0.0.1", port=self.port, user="authentik", dbname=name, **options)


def give(folder: Path) -> None:
    """Let PostgreSQL's user have a folder."""
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")


@dataclass
class Reply:
    """What came back."""

    status: int
    body: bytes
    headers: dict[str, str]
    cookies: list[str]

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def location(self) -> str:
        return self.headers["location"]

    @property
    def query(self) -> dict[str, str]:
        """The query of the address that it redirects to."""
        return {name: values[0] for name, values in parse_qs(urlsplit(self.location).query).items()}


def send(port: int, method: str, target: str, body: Any = None, *, host: str = HOST, **headers: str) -> Reply:
    """Send one request, as the edge would: over http, and https is what the visitor speaks."""
    sent = {
        "Host": host,
        **FORWARDED,
        **{name.replace("_", "-"): text for name, text in headers.items()},
    }
    if isinstance(body, dict):
        body, kind = json.dumps(body), "application/json"
        sent.setdefault("Content-Type", kind)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, target, body, sent)
        answer = connection.getresponse()
        content = answer.read()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, content, found, answer.headers.get_all("Set-Cookie") or [])
    finally:
        connection.close()


@dataclass
class Program:
    """A server or worker."""

    popen: subprocess.Popen[bytes]
    log: Path
    port: int
    metrics: int

    def ready(self) -> bool:
        assert self.popen.poll() is None, self.log.read_text()
        try:
            return send(self.port, "GET", "/-/health/ready/").status == 200
        except OSError:
            return False

    def ended(self, timeout: float = 45) -> tuple[int, str]:
        return self.popen.wait(timeout), self.log.read_text()

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()


@dataclass
class Lab:
    """One database and what runs on it."""

    cluster: Cluster
    name: str
    folder: Path
    programs: list[Program] = field(default_factory=list)
    version: str = "2026.8.4"

    def environment(self, **more: str) -> dict[str, str]:
        paths = [str(ROOT), str(ROOT / "collections"), os.environ.get("PYTHONPATH", "")]
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PGCONNECT_TIMEOUT": "2",
            "AUTHENTIK_SECRET_KEY": "secret-key-of-a-test",
            "AUTHENTIK_POSTGRESQL__HOST": "127.0.0.1",
            "AUTHENTIK_POSTGRESQL__PORT": str(self.cluster.port),
            "AUTHENTIK_POSTGRESQL__NAME": self.name,
            "AUTHENTIK_POSTGRESQL__SSLMODE": "disable",
            "AUTHENTIK_BOOTSTRAP_TOKEN": TOKEN,
            "AUTHENTIK_BOOTSTRAP_PASSWORD": PASSWORD,
            "AUTHENTIK_LAB_VERSION": self.version,
            "AUTHENTIK_LAB_BLUEPRINT_DELAY": "0",
            **more,
        }

    def start(self, mode: str, **more: str) -> Program:
        """Start a program without waiting for it; an empty value takes a variable away."""
        port, metrics = free_port(), free_port()
        environment = self.environment(
            AUTHENTIK_LISTEN__HTTP=f"127.0.0.1:{port}", AUTHENTIK_LISTEN__METRICS=f"127.0.0.1:{metrics}"
        )
        mine = self.folder / f"{mode}-{len(self.programs)}"
        mine.mkdir()
        environment.update({"TMPDIR": str(mine), **more})
        environment = {name: value for name, value in environment.items() if value}
        log = mine / "log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [sys.executable, "-m", "lab.authentik", mode], cwd=ROOT, env=environment, stdout=output, stderr=output
            )
        self.programs.append(Program(popen, log, port, metrics))
        return self.programs[-1]

    def up(self, servers: int = 1, workers: int = 1, **more: str) -> list[Program]:
        """Start servers and workers, wait for the flows, and return the servers."""
        started = [self.start("server", **more) for _number in range(servers)]
        for _number in range(workers):
            self.start("worker", **more)
        for program in started:
            eventually("the server is ready", program.ready, 30)
        eventually("the flows are in", lambda: api(started[0], "GET", "flows/instances/").get("results"), 30)
        return started


def api(program: Program, method: str, path: str, body: Any = None, token: str = TOKEN) -> Any:
    """Call the API and return what it answers."""
    reply = send(program.port, method, f"/api/v3/{path}", body, Authorization=f"Bearer {token}")
    return reply.json() if reply.body else {}


def one(program: Program, path: str, **query: str) -> Any:
    """Return the one object that a list holds under these filters."""
    (found,) = api(program, "GET", f"{path}?{urlencode(query)}")["results"]
    return found


@dataclass
class Application:
    """An application with an OAuth2 provider, as our modules make it."""

    slug: str
    secret: str
    provider: int
    pk: str
    redirect_uri: str

    @classmethod
    def make(cls, program: Program, slug: str, **more: Any) -> Application:
        flows = {row["slug"]: row["pk"] for row in api(program, "GET", "flows/instances/?page_size=100")["results"]}
        scopes = api(program, "GET", "propertymappings/provider/scope/?page_size=100")["results"]
        wanted = ("openid", "email", "profile", "offline_access")
        certificate = api(program, "GET", "crypto/certificatekeypairs/")["results"][0]["pk"]
        redirect_uri = f"https://{slug}.kitestacks.test/oidc/callback"
        provider = api(
            program,
            "POST",
            "providers/oauth2/",
            {
                "name": slug,
                "client_id": slug,
                "client_secret": f"secret-of-{slug}",
                "authorization_flow": flows["default-provider-authorization-implicit-consent"],
                "invalidation_flow": flows["default-provider-invalidation-flow"],
                "redirect_uris": [{"matching_mode": "strict", "url": redirect_uri}],
                "property_mappings": [row["pk"] for row in scopes if row["scope_name"] in wanted],
                "signing_key": certificate,
                "grant_types": ["authorization_code", "refresh_token", "client_credentials"],
                **more,
            },
        )
        made = api(program, "POST", "core/applications/", {"name": slug, "slug": slug, "provider": provider["pk"]})
        return cls(slug, f"secret-of-{slug}", provider["pk"], made["pk"], redirect_uri)

    def authorize(self, verifier: str = "", **more: str) -> str:
        query = {
            "client_id": self.slug,
            "response_type": "code",
            "redirect_uri": self.redirect_uri,
            "scope": "openid email profile",
            "state": "the-state",
            "nonce": "the-nonce",
        }
        if verifier:
            digest = hashlib.sha256(verifier.encode()).digest()
            query["code_challenge"] = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            query["code_challenge_method"] = "S256"
        return "/application/o/authorize/?" + urlencode({**query, **more})

    def token(self, port: int, endpoint: str = "token", **values: str) -> Reply:
        """Ask the token endpoint, or another one that is asked in its way."""
        form = {"client_id": self.slug, "client_secret": self.secret, **values}
        kind = "application/x-www-form-urlencoded"
        return send(port, "POST", f"/application/o/{endpoint}/", urlencode(form), Content_Type=kind)

    def redeem(self, port: int, code: str, **values: str) -> Reply:
        return self.token(port, grant_type="authorization_code", code=code, redirect_uri=self.redirect_uri, **values)


class Browser:
    """Keeps cookies; asks its servers in turn, as a tunnel with two connectors does."""

    def __init__(self, *programs: Program, host: str = HOST) -> None:
        self.ports = [program.port for program in programs]
        self.host = host
        self.cookies: dict[tuple[str, str], str] = {}
        self.asked = 0

    def send(self, method: str, target: str, body: Any = None, host: str = "", **headers: str) -> Reply:
        host = host or self.host
        self.asked += 1
        port = self.ports[self.asked % len(self.ports)]
        mine = {name: value for (site, name), value in self.cookies.items() if site == host}
        if mine:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in mine.items())
        reply = send(port, method, target, body, host=host, **headers)
        for cookie in reply.cookies:
            name, _equals, value = cookie.partition(";")[0].partition("=")
            self.cookies[host, name] = value
        return reply

    def executor(self, page: str, body: Any = None) -> Any:
        """Take one step in the flow of a page, following every redirect; return the challenge."""
        url = urlsplit(page)
        target = f"/api/v3/flows/executor/{url.path.removeprefix('/if/flow/')}?query={quote(url.query, safe='')}"
        reply = self.send("POST" if body else "GET", target, body)
        while reply.status == 302:
            reply = self.send("GET", reply.location)
        assert reply.status == 200, (reply.status, reply.body)
        return reply.json()

    def sign_in(self, page: str, username: str, password: str) -> str:
        """Walk through the authentication flow; return where it leads to."""
        assert self.executor(page)["component"] == "ak-stage-identification"
        answer = {"component": "ak-stage-identification", "uid_field": username}
        assert self.executor(page, answer)["component"] == "ak-stage-password"
        found = self.executor(page, {"component": "ak-stage-password", "password": password})
        assert found["component"] == "xak-flow-redirect", found
        return str(found["to"])

    def authorize(self, target: str, username: str = "akadmin", password: str = PASSWORD) -> Reply:
        """Ask for a code, signing in when that is asked for; return the answer of `authorize`."""
        reply = self.send("GET", target)
        if reply.status == 302 and reply.location.startswith("/if/flow/default-authentication-flow/"):
            reply = self.send("GET", self.sign_in(reply.location, username, password))
        return reply


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL for all tests."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        subprocess.run([ROOT / "bin" / "setup", "packages", "postgresql"], check=True)
    with tempfile.TemporaryDirectory(prefix="postgresql-") as name:
        Path(name).chmod(0o755)
        folder = Path(name) / "main"
        folder.mkdir()
        give(folder)
        cluster = Cluster(folder)
        cluster.make()
        cluster.start()
        yield cluster
        cluster.stop()


@pytest.fixture(scope="module")
def lab(cluster: Cluster) -> Iterator[Lab]:
    """A database of the module's own; what was started on it ends with it."""
    yield from _lab(cluster)


@pytest.fixture
def own_lab(cluster: Cluster) -> Iterator[Lab]:
    """A database of the test's own."""
    yield from _lab(cluster)


def _lab(cluster: Cluster) -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="authentik-") as name:
        lab = Lab(cluster, f"lab-{secrets.token_hex(4)}", Path(name))
        cluster.database(lab.name)
        try:
            yield lab
        finally:
            for program in lab.programs:
                program.kill()
                print(program.log, program.log.read_text()[-3000:])


@pytest.fixture(scope="module")
def servers(lab: Lab) -> list[Program]:
    """Two servers and two workers on one database."""
    return lab.up(servers=2, workers=2)
