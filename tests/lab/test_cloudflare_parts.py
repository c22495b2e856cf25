"""The parts of the lab's Cloudflare that need no processes: messages, rules, the connector's command line."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import struct
import subprocess
import sys
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as some

from lab.cloudflare import capnp, connector, http2, ingress, protocol, rpc

from .conftest import REAL, ROOT, Edge, Tunnel, eventually

TOKEN = base64.b64encode(json.dumps({"a": "acc", "t": str(uuid.uuid4()), "s": "c2VjcmV0"}).encode()).decode()


def _read(data: bytes) -> capnp.Reader:
    left = bytearray(data)

    async def exactly(size: int) -> bytes:
        if len(left) < size:
            raise EOFError
        taken = bytes(left[:size])
        del left[:size]
        return taken

    return asyncio.run(capnp.read(exactly))


def test_a_message_reads_as_it_was_written() -> None:
    inner = capnp.Struct(struct.pack("<Q", 7), ["name", b"\x00data", None])
    root = capnp.Struct(struct.pack("<IHB", 1, 2, 3), [inner, ["a", "", "ccc"], [inner, inner], capnp.Capability(5)])
    got = _read(capnp.encode(root))
    assert (got.number(0, "I"), got.number(4, "H"), got.number(6, "B"), got.number(64, "Q")) == (1, 2, 3, 0)
    assert (got.struct(0).number(0, "Q"), got.struct(0).text(0), got.struct(0).data(1)) == (7, "name", b"\x00data")
    assert got.texts(1) == ["a", "", "ccc"]
    items = got.pointer(2)
    assert isinstance(items, list)
    assert [(item.number(0, "Q"), item.text(0)) for item in items] == [(7, "name")] * 2
    assert got.pointer(3) == capnp.Capability(5)
    assert got.struct(9).text(4) == ""  # what an older sender did not write reads as nothing


def test_far_pointers_lead_to_other_segments() -> None:
    text = struct.pack("<iI", 1, 3 << 3 | 2) + b"hi\0\0\0\0\0\0"
    root = struct.pack("<iHH", 0, 0, 2) + struct.pack("<II", 2, 1) + struct.pack("<II", 0 << 3 | 6, 2)
    segments = [root, text, struct.pack("<II", 1 << 3 | 2, 1) + struct.pack("<iI", 1, 3 << 3 | 2)]
    sizes = struct.pack("<4I", 2, *(len(segment) // 8 for segment in segments))
    got = _read(sizes + b"".join(segments))
    assert [got.text(0), got.text(1)] == ["hi", "hi"]


@given(some.binary(max_size=400))
def test_no_bytes_crash_the_reader(body: bytes) -> None:
    body += bytes(-len(body) % 8)
    try:
        got = _read(struct.pack("<II", 0, len(body) // 8) + body)
        for number in range(4):
            got.texts(number)
            got.struct(number).struct(0)
    except capnp.FormatError:
        pass


@given(some.lists(some.tuples(some.text("abcXYZ-", min_size=1), some.text(some.characters(codec="latin-1")))))
def test_headers_unpack_as_they_were_packed(headers: list[tuple[str, str]]) -> None:
    assert protocol.unpack_headers(protocol.pack_headers(headers)) == headers


def test_a_slow_reader_stops_the_sender() -> None:
    async def main() -> int:
        sent = 0

        async def handler(stream: http2.Stream) -> None:
            nonlocal sent
            await stream.send_headers([(":status", "200")])
            for _number in range(256):
                await stream.write(bytes(1 << 16))
                sent += 1 << 16
            await stream.end()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await http2.Connection(reader, writer, client=False, handler=handler).run()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = http2.Connection(*await asyncio.open_connection("127.0.0.1", port), client=True)
        client.start()
        running = asyncio.ensure_future(client.run())
        head = [(":method", "GET"), (":scheme", "https"), (":authority", "x"), (":path", "/")]
        stream = await client.request(head, end=True)
        await stream.response()
        assert await client.ping(2)  # the other end is quiet again: the window is full
        held = sent
        total = 0
        while data := await stream.read():
            total += len(data)
        assert total == 1 << 24
        client.close()
        await running
        server.close()
        return held

    assert asyncio.run(main()) <= http2.STREAM_WINDOW


def test_rules_match_as_cloudflareds_do() -> None:
    rules = ingress.parse(
        {
            "originRequest": {"connectTimeout": "1m30s"},
            "ingress": [
                {"hostname": "a.test", "path": "^/x/", "service": "http://one:1"},
                {
                    "hostname": "*.test",
                    "service": "https://two",
                    "originRequest": {"connectTimeout": 5, "noTLSVerify": True},
                },
                {"service": "http_status:404"},
            ],
        }
    )
    found = {
        place: next(number for number, rule in enumerate(rules) if rule.matches(*place))
        for place in [("a.test", "/x/y"), ("a.test", "/y"), ("a.b.test", "/"), ("test", "/")]
    }
    assert list(found.values()) == [0, 1, 1, 2]
    assert (rules[0].connect_timeout, rules[1].connect_timeout, rules[1].port) == (90.0, 5.0, 443)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([], "the last ingress rule must match all URLs"),
        ([{"hostname": "a.test", "service": "http://a"}], "the last ingress rule must match all URLs"),
        ([{"service": "nonsense"}], "rule #1: 'nonsense' is no service"),
        ([{"service": "http://a:99999"}], "rule #1"),
        ([{"service": "http://a", "originRequest": {"proxyType": "socks"}}], "does not know originRequest proxyType"),
        ([{"service": "http://a", "originRequest": {"connectTimeout": "soon"}}], "'soon' is no duration"),
        ([{"service": "http://a", "originRequest": {"caPool": "/nowhere"}}], "caPool /nowhere"),
    ],
)
def test_rules_that_cannot_be_applied_are_named(rules: list[dict[str, object]], words: str) -> None:
    with pytest.raises(ingress.ConfigurationError, match=re.escape(words)):
        ingress.parse({"ingress": rules})


def _run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lab.cloudflare.connector", *command],
        cwd=ROOT, env={"PATH": "", "PYTHONPATH": ":".join(sys.path), **variables},
        check=False, text=True, capture_output=True, timeout=20,
    )  # fmt: skip


def test_the_connector_says_that_it_is_a_stand_in() -> None:
    for command in ("version", "--version"):
        done = _run(command)
        assert (done.returncode, "KiteStacks' stand-in" in done.stdout) == (0, True)


@pytest.mark.parametrize(
    ("command", "variables", "words"),
    [
        (["tunnel", "run"], {}, "needs a token"),
        (["tunnel", "run"], {"TUNNEL_TOKEN": "rubbish"}, "Provided Tunnel token is not valid"),
        (["tunnel", "run", "--token-file", "/nowhere"], {}, "Failed to read token file"),
        (["tunnel", "run", "--metrics", "127.0.0.1:1"], {"TUNNEL_TOKEN": TOKEN}, "unrecognized arguments"),
        (["tunnel", "--protocol", "quic", "run"], {"TUNNEL_TOKEN": TOKEN}, "speaks http2 only"),
        (["tunnel", "--grace-period", "long", "run"], {"TUNNEL_TOKEN": TOKEN}, "--grace-period"),
        (["tunnel", "ready"], {}, "--metrics is required"),
        (["tunnel", "--metrics", "127.0.0.1:1", "ready"], {}, "no connector answers on 127.0.0.1:1"),
    ],
)
def test_the_connector_refuses_in_plain_words(command: list[str], variables: dict[str, str], words: str) -> None:
    done = _run(*command, **variables)
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_options_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNNEL_EDGE", "a:1,b:2")
    monkeypatch.setenv("TUNNEL_GRACE_PERIOD", "1m")
    monkeypatch.setenv("TUNNEL_TOKEN_FILE", "/run/secrets/token")
    options = connector.arguments(["--no-autoupdate", "tunnel", "--retries=3", "run"])
    assert (options.edge, options.grace_period, options.retries) == (["a:1", "b:2"], 60.0, 3)
    assert options.token_file == "/run/secrets/token"


def test_a_registration_arrives_as_it_was_sent() -> None:
    sent = rpc.Registration("acc", b"\x00\xff" * 16, str(uuid.uuid4()), 3, str(uuid.uuid4()), "v", attempts=2)

    class End:
        def __init__(self) -> None:
            self.queue: asyncio.Queue[bytes] = asyncio.Queue()
            self.other: End = self

        async def read(self) -> bytes:
            return await self.queue.get()

        async def write(self, data: bytes) -> None:
            for byte in range(0, len(data), 5):  # in pieces, as streams do
                self.other.queue.put_nowait(data[byte : byte + 5])

    async def main() -> tuple[rpc.Registration, rpc.Details]:
        near, far = End(), End()
        near.other, far.other = far, near
        got: list[rpc.Registration] = []

        async def register(registration: rpc.Registration) -> rpc.Details:
            got.append(registration)
            return rpc.Details(str(uuid.UUID(int=7)), "lab01", remotely_managed=True)

        async def unregister() -> None:
            got.append(sent)

        serving = asyncio.ensure_future(rpc.Server(register, unregister).serve(far))
        client = rpc.Client(near)
        details = await client.register(sent)
        await client.unregister()
        serving.cancel()
        assert len(got) == 2
        return got[0], details

    assert asyncio.run(main()) == (sent, rpc.Details(str(uuid.UUID(int=7)), "lab01", remotely_managed=True))


def test_the_readiness_check_asks_the_running_connector(tunnel: Tunnel, origin: int) -> None:
    (process,) = tunnel.serve(origin)
    command = [REAL] if REAL else [sys.executable, "-m", "lab.cloudflare.connector"]
    check = [*command, "tunnel", "--metrics", f"127.0.0.1:{process.metrics}", "ready"]

    def status() -> int:
        return subprocess.run(check, check=False, cwd=ROOT, capture_output=True).returncode

    assert status() == 0
    tunnel.edge.api("DELETE", f"{tunnel.path}/connections")
    eventually("not ready", lambda: status() == 1, 5)


def test_the_module_waits_until_connectors_run_what_it_set(edge: Edge, tunnel: Tunnel, origin: int) -> None:
    connectors = tunnel.serve(origin, 2)
    name = edge.api("GET", tunnel.path)["name"]

    def module(*rules: dict[str, object]) -> dict[str, object]:
        values = {
            "tunnel": name, "ingress": list(rules), "account_id": edge.account, "api_token": "fake-token",
            "api_url": f"http://127.0.0.1:{edge.ports['api']}/client/v4", "wait_timeout": 5,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "ansible_collections.kitestacks.homelab.plugins.modules.cloudflare_tunnel_config"],
            check=False, cwd=ROOT / "collections", input=json.dumps({"ANSIBLE_MODULE_ARGS": values}),
            text=True, capture_output=True,
        )  # fmt: skip
        document = json.loads(done.stdout)
        assert isinstance(document, dict)
        return document

    good: dict[str, object] = {"hostname": tunnel.name, "service": f"http://localhost:{origin}"}
    first = module(good)
    assert first["changed"] is True, first
    assert tunnel.versions() == [2, 2]
    assert module(good)["changed"] is False
    assert edge.visit(tunnel.name).status == 200
    bad = module({**good, "origin_request": {"ca_pool": "/nowhere/ca.pem"}})  # only the connector can know
    assert bad["failed"] is True
    assert connectors[0].client_id in json.dumps(bad)
