"""The lab's Cloudflare and a connector, over cloudflared's protocol. KITE_CLOUDFLARED=/path uses the real program."""

from __future__ import annotations

import base64
import concurrent.futures
import http.client
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from .conftest import ZONE, Edge, Tunnel, eventually

MEGABYTE = 1 << 20


def _memory(pid: int) -> int:
    """Return the most memory that a process ever had, in MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) // 1024


def test_a_request_goes_through_the_tunnel_and_back(tunnel: Tunnel, origin: int) -> None:
    (connector,) = tunnel.serve(origin)
    answer = tunnel.edge.visit(
        tunnel.name, "/a%20b?x=1&y=%2F", cf_connecting_ip="6.6.6.6", x_forwarded_for="6.6.6.6", cookie="a=1; b=2"
    )
    assert answer.status == 200
    seen = answer.json()
    headers = {name.lower(): value for name, value in seen["headers"].items()}
    assert seen["path"] == "/a%20b?x=1&y=%2F"
    assert headers["host"] == tunnel.name
    assert headers["cf-connecting-ip"] == "127.0.0.1"
    assert headers["x-forwarded-for"] == "6.6.6.6, 127.0.0.1"
    assert headers["x-forwarded-proto"] == "https"
    assert headers["cookie"] == "a=1; b=2"
    assert headers["cf-warp-tag-id"] == connector.client_id
    assert re.fullmatch(r"[0-9a-f]{16}-LAB01", headers["cf-ray"])
    assert [value for name, value in answer.headers if name.lower() == "set-cookie"] == ["a=1", "b=2"]
    assert tunnel.edge.visit(tunnel.name, "/", "HEAD").body == b""
    assert tunnel.edge.api("GET", tunnel.path)["status"] == "healthy"


def test_two_connectors_share_the_requests_and_one_can_be_chosen(tunnel: Tunnel, origin: int) -> None:
    connectors = tunnel.serve(origin, 2)
    chosen = {connector.client_id: 0 for connector in connectors}
    for _number in range(40):
        chosen[tunnel.edge.visit(tunnel.name).json()["headers"]["Cf-Warp-Tag-Id"]] += 1
    assert min(chosen.values()) > 5  # of 40 tosses of a coin: 6 in a hundred million miss it
    for client_id in chosen:
        for _number in range(3):
            answer = tunnel.edge.visit(tunnel.name, x_lab_connector=client_id)
            assert answer.json()["headers"]["Cf-Warp-Tag-Id"] == client_id
            tunnel.edge.api("POST", "/_edge/settings", {"pin": client_id})
            assert tunnel.edge.visit(tunnel.name).json()["headers"]["Cf-Warp-Tag-Id"] == client_id
            tunnel.edge.api("POST", "/_edge/settings", {"pin": ""})


def test_the_nearest_connector_is_taken_as_long_as_it_is_there(tunnel: Tunnel, origin: int) -> None:
    connectors = {connector.client_id: connector for connector in tunnel.serve(origin, 2)}
    near, far = connectors
    tunnel.edge.api("POST", "/_edge/settings", {"nearest": near})
    answers = {tunnel.edge.visit(tunnel.name).json()["headers"]["Cf-Warp-Tag-Id"] for _number in range(10)}
    assert answers == {near}
    connectors[near].popen.kill()
    eventually("the edge notices", lambda: len(tunnel.versions()) == 1)
    assert tunnel.edge.visit(tunnel.name).json()["headers"]["Cf-Warp-Tag-Id"] == far
    tunnel.edge.api("POST", "/_edge/settings", {"nearest": ""})


def _load(tunnel: Tunnel, seconds: float, rate: float, target: str = "/") -> concurrent.futures.Future[list[int]]:
    """Visit in the background; the result is the statuses, 0 for a connection that broke."""
    pool = concurrent.futures.ThreadPoolExecutor(24)

    def one() -> int:
        try:
            return tunnel.edge.visit(tunnel.name, target).status
        except (OSError, http.client.HTTPException):
            return 0

    def run() -> list[int]:
        visits = []
        for number in range(int(seconds * rate)):
            visits.append(pool.submit(one))
            time.sleep(max(0.0, begun + (number + 1) / rate - time.monotonic()))
        return [visit.result() for visit in visits]

    begun = time.monotonic()
    return concurrent.futures.ThreadPoolExecutor(1).submit(run)


def test_a_killed_connector_costs_at_most_what_was_in_flight(tunnel: Tunnel, origin: int) -> None:
    first, second = tunnel.serve(origin, 2)
    load = _load(tunnel, 3.0, 20)
    time.sleep(1.0)  # the load needs to be running
    first.popen.send_signal(signal.SIGKILL)
    statuses = load.result()
    failed = [status for status in statuses if status != 200]
    print(f"kill -9: {len(failed)} of {len(statuses)} requests failed")
    assert len(failed) <= 1
    assert second.ready()
    eventually("the dead connector is forgotten", lambda: len(tunnel.versions()) == 1)


def test_a_hanging_connector_is_found_by_pings(tunnel: Tunnel, origin: int) -> None:
    first, _second = tunnel.serve(origin, 2)
    first.popen.send_signal(signal.SIGSTOP)
    eventually("the hanging connector is forgotten", lambda: len(tunnel.versions()) == 1, 10)
    assert {tunnel.edge.visit(tunnel.name).status for _number in range(10)} == {200}


def test_a_stopped_connector_finishes_what_is_in_flight(tunnel: Tunnel, origin: int) -> None:
    first, _second = tunnel.serve(origin, 2)
    load = _load(tunnel, 4.0, 10, "/?sleep=1")
    time.sleep(1.5)  # so that a second's worth of requests is in flight
    begun = time.monotonic()
    first.popen.send_signal(signal.SIGTERM)
    assert first.popen.wait(20) == 0
    took = time.monotonic() - begun
    statuses = load.result()
    print(f"SIGTERM: exit after {took:.2f} s, {sum(status != 200 for status in statuses)} of {len(statuses)} failed")
    assert statuses == [200] * len(statuses)
    assert took < 3.0


def test_an_answer_arrives_as_it_is_made(tunnel: Tunnel, origin: int) -> None:
    tunnel.serve(origin)
    connection = tunnel.edge.connect(tunnel.name)
    begun = time.monotonic()
    connection.request("GET", "/stream?n=4&gap=0.4", headers={"Host": tunnel.name})
    answer = connection.getresponse()
    arrived = []
    while line := answer.readline():
        if line.startswith(b"data"):
            arrived.append(time.monotonic() - begun)
    connection.close()
    assert len(arrived) == 4
    for number, moment in enumerate(arrived):
        assert 0.4 * number - 0.05 <= moment < 0.4 * number + 0.35, arrived


def test_a_websocket_echoes(tunnel: Tunnel, origin: int) -> None:
    tunnel.serve(origin)
    connection = tunnel.edge.connect(tunnel.name)
    head = (
        f"GET /ws HTTP/1.1\r\nHost: {tunnel.name}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    wire: socket.socket = connection.sock
    wire.sendall(head.encode())
    received = b""
    while b"\r\n\r\n" not in received:
        received += wire.recv(4096)
    assert received.startswith(b"HTTP/1.1 101 ")
    assert b"sec-websocket-accept:" in received.lower()
    for message in (b"\x81\x05hello", b"x" * 100_000):
        wire.sendall(message)
        echo = b""
        while len(echo) < len(message):
            echo += wire.recv(1 << 16)
        assert echo == message
    wire.close()


def test_a_large_upload_is_not_kept_in_memory(tunnel: Tunnel, origin: int) -> None:
    (connector,) = tunnel.serve(origin)
    before = _memory(tunnel.edge.pid), _memory(connector.popen.pid)

    def parts() -> Iterator[bytes]:
        for _number in range(100):
            yield bytes(MEGABYTE)

    begun = time.monotonic()
    connection = tunnel.edge.connect(tunnel.name)
    connection.request(
        "POST", "/upload", parts(), {"Host": tunnel.name, "Content-Length": str(100 * MEGABYTE)}, encode_chunked=False
    )
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())) == (200, {"size": 100 * MEGABYTE})
    connection.close()
    grown = _memory(tunnel.edge.pid) - before[0], _memory(connector.popen.pid) - before[1]
    print(f"100 MB up: {time.monotonic() - begun:.1f} s, edge +{grown[0]} MB, connector +{grown[1]} MB")
    assert max(grown) < 24


def test_small_bodies_of_unknown_length_arrive_whole(tunnel: Tunnel, origin: int) -> None:
    tunnel.serve(origin)
    for _number in range(20):  # head and body may arrive in one piece or in several
        assert tunnel.edge.visit(tunnel.name, "/upload", "POST", iter([b"a" * 10, b"b" * 20])).json() == {"size": 30}
    assert tunnel.edge.visit(tunnel.name, "/upload", "POST", b"").json() == {"size": 0}


def test_names_without_a_record_get_1016(edge: Edge) -> None:
    answer = edge.visit(f"nobody.{ZONE}")
    assert answer.status == 530
    assert b"error code: 1016" in answer.body


def test_tunnels_without_a_connector_get_1033(tunnel: Tunnel, origin: int) -> None:
    assert tunnel.edge.api("GET", tunnel.path)["status"] == "inactive"
    answer = tunnel.edge.visit(tunnel.name)
    assert answer.status == 530
    assert b"error code: 1033" in answer.body
    (connector,) = tunnel.serve(origin)
    assert tunnel.edge.visit(tunnel.name).status == 200
    connector.popen.kill()
    connector.popen.wait()
    eventually("1033 again", lambda: b"error code: 1033" in tunnel.edge.visit(tunnel.name).body)
    assert tunnel.edge.api("GET", tunnel.path)["status"] == "down"


def _with_secret(token: str, secret: bytes) -> str:
    document = json.loads(base64.b64decode(token))
    document["s"] = base64.b64encode(secret).decode()
    return base64.b64encode(json.dumps(document).encode()).decode()


def test_a_wrong_secret_is_refused_in_plain_words(tunnel: Tunnel) -> None:
    process = tunnel.edge.connector(_with_secret(tunnel.token, b"w" * 32))
    eventually("the log says why", lambda: "Unauthorized: Invalid tunnel secret" in process.log.read_text())
    assert process.popen.poll() is None  # it goes on trying, as cloudflared does
    assert process.probe("/ready")[0] == 503
    assert tunnel.versions() == []


def test_a_new_configuration_is_applied_and_reported(tunnel: Tunnel, origin: int) -> None:
    tunnel.serve(origin, 2)
    version = tunnel.configure({"hostname": f"other.{ZONE}", "service": f"http://127.0.0.1:{origin}"})
    begun = time.monotonic()
    eventually("both connectors run it", lambda: tunnel.versions() == [version] * 2, 5)
    print(f"applied by both after {time.monotonic() - begun:.3f} s")
    assert tunnel.edge.visit(tunnel.name).status == 404  # the catch-all


def test_a_bad_configuration_leaves_the_one_before(tunnel: Tunnel, origin: int) -> None:
    (connector,) = tunnel.serve(origin)
    before = tunnel.versions()
    tunnel.configure({"hostname": tunnel.name, "service": "nonsense"})
    eventually("the log says so", lambda: "Failed to deserialize new configuration" in connector.log.read_text())
    events = [event["what"] for event in tunnel.edge.state()["events"] if event["client_id"] == connector.client_id]
    assert "configuration refused" in events
    assert tunnel.versions() == before
    assert tunnel.edge.visit(tunnel.name).status == 200


def test_an_origin_that_is_not_there_gets_502(tunnel: Tunnel, origin: int) -> None:
    (connector,) = tunnel.serve(origin)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        version = tunnel.configure({"hostname": tunnel.name, "service": f"http://127.0.0.1:{free.getsockname()[1]}"})
        eventually("it is applied", lambda: tunnel.versions() == [version])
        assert tunnel.edge.visit(tunnel.name).status == 502
    metrics = connector.probe("/metrics")[1]
    assert re.search(r"^cloudflared_tunnel_request_errors 1$", metrics, re.MULTILINE)
    assert re.search(rf"^cloudflared_orchestration_config_version {version}$", metrics, re.MULTILINE)
    assert re.search(r"^cloudflared_tunnel_ha_connections 4$", metrics, re.MULTILINE)


def test_connections_closed_through_the_api_come_back(tunnel: Tunnel, origin: int) -> None:
    (connector,) = tunnel.serve(origin)
    tunnel.edge.api("DELETE", f"{tunnel.path}/connections")
    eventually("the connector notices", lambda: not connector.ready())
    eventually("its first connection is back", lambda: tunnel.edge.visit(tunnel.name).status == 200)


def test_visitors_may_speak_http2(tunnel: Tunnel, origin: int) -> None:
    tunnel.serve(origin)
    command = ["curl", "--silent", "--http2", "--cacert", str(tunnel.edge.folder / "server.crt")]
    command += [
        "--resolve",
        f"{tunnel.name}:{tunnel.edge.ports['public']}:127.0.0.1",
        "--write-out",
        "\n%{http_version} %{http_code}",
    ]
    url = f"https://{tunnel.name}:{tunnel.edge.ports['public']}"
    done = subprocess.run([*command, url], check=True, capture_output=True, text=True)
    assert done.stdout.endswith("\n2 200")
    upload = subprocess.run(
        [*command, "--data-binary", "@-", url], check=True, capture_output=True, text=True, input="x" * 500_000
    )
    assert upload.stdout == '{"size": 500000}\n2 200'


def test_access_applications_let_nobody_in(tunnel: Tunnel, origin: int) -> None:
    tunnel.serve(origin)
    access = f"/accounts/{tunnel.edge.account}/access"
    app = {"name": "closed", "type": "self_hosted", "domain": f"{tunnel.name}/admin"}
    made = tunnel.edge.api("POST", f"{access}/apps", app)
    assert tunnel.edge.visit(tunnel.name, "/admin/x").status == 403
    assert tunnel.edge.visit(tunnel.name, "/administrator").status == 200
    everyone = {"name": "open", "decision": "bypass", "include": [{"everyone": {}}]}
    policy = tunnel.edge.api("POST", f"{access}/policies", everyone)
    tunnel.edge.api("PUT", f"{access}/apps/{made['id']}", {**app, "policies": [policy["id"]]})
    assert tunnel.edge.visit(tunnel.name, "/admin/x").status == 200
    services = {"name": "services", "decision": "non_identity", "include": [{"any_valid_service_token": {}}]}
    policy = tunnel.edge.api("POST", f"{access}/policies", services)
    tunnel.edge.api("PUT", f"{access}/apps/{made['id']}", {**app, "policies": [policy["id"]]})
    tunnel.edge.api("POST", "/_edge/settings", {"service_tokens": {"robot": "word"}})
    for secret, status in (("word", 200), ("other", 403)):
        names = {"cf_access_client_id": "robot", "cf_access_client_secret": secret}
        assert tunnel.edge.visit(tunnel.name, "/admin/x", **names).status == status
    tunnel.edge.api("POST", "/_edge/settings", {"service_tokens": {}})


def test_an_origin_is_let_go_when_its_visitor_leaves(tunnel: Tunnel, origin: int) -> None:
    tunnel.serve(origin)

    def in_flight() -> int:
        mine = [each for each in tunnel.edge.state()["connections"] if each["tunnel_id"] == tunnel.id]
        return sum(each["in_flight"] for each in mine)

    for target in ("/stream?n=1000&gap=0.1", "/?sleep=30"):
        connection = tunnel.edge.connect(tunnel.name)
        connection.request("GET", target, headers={"Host": tunnel.name})
        eventually("the request runs", lambda: in_flight() == 1, 5)
        connection.close()
        eventually("the request is dropped", lambda: in_flight() == 0, 5)


def test_the_edge_may_go_and_come_back(tunnel: Tunnel, origin: int) -> None:
    (connector,) = tunnel.serve(origin)
    tunnel.edge.stop()
    eventually("the connector notices", lambda: connector.probe("/ready")[0] == 503, 5)
    tunnel.edge.start()
    eventually("it is served again", lambda: tunnel.edge.visit(tunnel.name).status == 200)
    assert connector.popen.poll() is None


def test_a_request_without_a_body_may_be_tried_elsewhere(tunnel: Tunnel, origin: int) -> None:
    first, _second = tunnel.serve(origin, 2)
    tunnel.edge.api("POST", "/_edge/settings", {"retry": True})
    try:
        load = _load(tunnel, 2.0, 10, "/?sleep=0.5")
        time.sleep(1.0)  # so that some are in flight
        first.popen.send_signal(signal.SIGKILL)
        statuses = load.result()
    finally:
        tunnel.edge.api("POST", "/_edge/settings", {"retry": False})
    assert statuses == [200] * len(statuses)
