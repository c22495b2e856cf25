"""What a visitor of a public name meets: through Cloudflare, either connector, either edge, while things break.

Two services are asked: the portal, which runs on both hosts, and whoami, which runs on monk only.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from lab import faults, machines, settings, site, traffic
from lab.traffic import Answer

from .conftest import HOSTS, WWW, eventually

WHOAMI = f"whoami.{settings.DOMAIN}"
AUTH = f"auth.{settings.DOMAIN}"
MORE = Path(__file__).parent / "whoami"


@pytest.fixture(scope="module")
def public(second: site.Run) -> Iterator[None]:
    """The homelab with one service more; taken away again at the end, which is a test of its own."""
    with site.services_more(MORE):
        yield


@pytest.fixture(autouse=True)
def healthy(public: None) -> Iterator[None]:
    """Each test begins with everything well, and is mended after."""
    eventually(_all_is_well, 60, "everything is well")
    yield
    faults.heal()


_all_is_well = partial(traffic.all_is_well, {"portal": 2, "whoami": 1, "authentik": 2})


def _each(*pages: tuple[str, str]) -> Callable[[], Answer]:
    """Ask for pages (name, path) in turn."""
    turn = iter(range(1 << 30))
    return lambda: traffic.visit(*pages[next(turn) % len(pages)])


_both = partial(_each, (WWW, "/"), (WHOAMI, "/"))


def _told(what: str, answers: Sequence[Answer], moment: float) -> traffic.Loss:
    """Sum up what a fault cost, and print it."""
    cost = traffic.loss(answers, moment)
    print(f"\n{what}: {cost}")
    return cost


def test_two_hundred_requests_over_all_names() -> None:
    login = (AUTH, "/if/flow/default-authentication-flow/")
    answers = traffic.steady(_each((WWW, "/"), (WHOAMI, "/"), login), 200, 20)
    assert {answer.status for answer in answers} == {200}
    assert {answer.server for answer in answers} >= set(HOSTS)
    served = traffic.cloudflare("GET", "/_edge/state")["served"]
    assert len(served) >= len(HOSTS)


@pytest.mark.parametrize("host", HOSTS)
def test_every_name_answers_alike_through_each_connector_alone(host: str) -> None:
    for name in (WWW, WHOAMI):
        answers = [traffic.visit(name, via=host) for _number in range(5)]
        assert {answer.status for answer in answers} == {200}
    assert traffic.visit(f"nobody.{settings.DOMAIN}", via=host).status == 530


@pytest.mark.parametrize("host", HOSTS)
def test_a_connector_that_is_killed_costs_one_request_at_most(host: str) -> None:
    answers, moment = traffic.during(_both(), lambda: faults.kill_container(host, "cloudflared"), count=160)
    assert _told(f"connector of {host} killed", answers, moment).failed <= 1
    eventually(_all_is_well, 60, "docker has started the connector again")


@pytest.mark.parametrize("container", ["cloudflared", "edge", "edge-spare"])
@pytest.mark.parametrize("host", HOSTS)
def test_a_clean_stop_costs_no_request(host: str, container: str) -> None:
    answers, moment = traffic.during(_both(), lambda: faults.stop_container(host, container), count=160)
    assert _told(f"{container} of {host} stopped", answers, moment).failed == 0


def test_a_rolling_restart_of_edges_and_connectors_costs_no_request() -> None:
    """Every container is made anew, host by host, as a new version would do it."""

    def renew(*limits: str) -> None:
        run = site.play("tests/site/whoami/site.yml", "--tags edge,cloudflared", *limits, show="nothing", more=MORE)
        assert run.rc == 0, run.output
        assert {task for _host, _role, task in run.changed()} >= {"The edge answers", "The connector is connected"}

    limits = ("-e edge_memory_limit=200m", "-e cloudflared_memory_limit=200m")
    answers, moment = traffic.during(_both(), lambda: renew(*limits), count=1000)
    assert _told("edges and connectors replaced", answers, moment).failed == 0
    renew()


def test_a_clean_stop_of_a_host_costs_what_lives_only_there() -> None:
    answers, moment = traffic.during(partial(traffic.visit, WWW), lambda: faults.stop("monk"), count=300)
    assert _told("monk shut down, portal", answers, moment).failed == 0


def test_a_host_without_power_is_missed_for_seconds() -> None:
    answers, moment = traffic.during(partial(traffic.visit, WWW), lambda: faults.power_off("monk"), count=300)
    assert _told("monk without power, portal", answers, moment).until < 6
    for _number in range(5):
        away = traffic.visit(WHOAMI)
        assert (away.status, away.seconds < 1) == (503, True), away
        assert "Whoami is away for a moment" in away.body
        assert "monk" in away.body


def test_a_cut_between_the_hosts_leaves_each_with_its_own() -> None:
    answers, moment = traffic.during(partial(traffic.visit, WWW), lambda: faults.cut_tailnet("monk"), count=200)
    assert _told("tailnet cut, portal", answers, moment).failed == 0
    eventually(lambda: machines.edge_services("kscloud1").get("whoami") == 0, 20, "kscloud1's edge knows")
    assert traffic.visit(WHOAMI, via="monk").status == 200
    away = traffic.visit(WHOAMI, via="kscloud1")
    assert (away.status, away.seconds < 1) == (503, True)


def test_a_container_that_stops_behind_a_live_edge() -> None:
    answers, moment = traffic.during(
        partial(traffic.visit, WWW), lambda: faults.stop_container("monk", "portal"), count=200
    )
    _told("portal of monk stopped", answers, moment)
    assert {answer.status for answer in answers if answer.begin > moment + 2} == {200}


def test_a_wedged_service_is_left_alone_after_a_moment() -> None:
    answers, moment = traffic.during(
        partial(traffic.visit, WWW, timeout=30), lambda: faults.freeze_container("monk", "portal"), count=300
    )
    _told("portal of monk wedged", answers, moment)
    later = [answer for answer in answers if answer.begin > moment + 4]
    assert {answer.status for answer in later} == {200}
    assert max(answer.seconds for answer in later) < 2


# What goes through.


def _headers(body: str) -> dict[str, str]:
    """Return the headers that whoami got, their names in small letters."""
    return {name.lower(): value for name, value in json.loads(body)["headers"].items()}


@pytest.mark.parametrize("host", HOSTS)
def test_the_service_learns_the_visitors_address_and_believes_nobody_else(host: str) -> None:
    headers = _headers(traffic.visit(WHOAMI, via=host).body)
    assert headers["x-forwarded-for"] == settings.GATEWAY
    assert headers["x-forwarded-proto"] == "https"
    forged = ("-H", "CF-Connecting-IP: 192.0.2.1", "-H", "X-Forwarded-For: 192.0.2.2")
    words = ("curl", "-sS", *forged, "-H", f"Host: {WHOAMI}", "http://127.0.0.1:8080/")
    told = _headers(machines.run_on(host, *words))
    assert "cf-connecting-ip" not in told
    assert "192.0.2." not in told["x-forwarded-for"]


@pytest.mark.parametrize("host", HOSTS)
def test_a_stream_arrives_as_it_is_made(host: str) -> None:
    words = [*traffic.curl(via=host), "--no-buffer", f"https://{WHOAMI}/stream?n=8&gap=0.5"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as curl:
        assert curl.stdout is not None
        arrived = [time.monotonic() for line in curl.stdout if line.startswith(b"data: ")]
    gaps = [later - earlier for earlier, later in zip(arrived, arrived[1:], strict=False)]
    assert len(arrived) == 8
    assert max(gaps) < 1.5
    assert arrived[-1] - arrived[0] > 3


def test_a_long_silence_does_not_break_a_request() -> None:
    """Through both edges: in at kscloud1, answered by monk."""
    answer = traffic.visit(WHOAMI, "/?sleep=45", timeout=60, via="kscloud1")
    assert (answer.status, answer.server) == (200, "monk")


@pytest.mark.parametrize("host", HOSTS)
def test_a_websocket_stays_open_over_a_reload(host: str) -> None:
    socket = traffic.websocket(WHOAMI, via=host)
    try:
        socket.sendall(b"before")
        assert socket.recv(64) == b"before"
        for each in HOSTS:
            machines.run_on(each, "sh", "-c", "kill -USR2 $(docker inspect -f '{{.State.Pid}}' edge edge-spare)")
        socket.sendall(b"after")
        assert socket.recv(64) == b"after"
    finally:
        socket.close()


def test_a_gigabyte_upload_needs_no_memory() -> None:
    size = 1 << 30
    words = [*traffic.curl(via="kscloud1"), "-X", "POST", "-T", "-", "-H", "Expect:", f"https://{WHOAMI}/"]
    with subprocess.Popen(["head", "-c", str(size), "/dev/zero"], stdout=subprocess.PIPE) as zeros:
        done = subprocess.run(words, stdin=zeros.stdout, check=True, capture_output=True)
    assert json.loads(done.stdout) == {"size": size}
    for host in HOSTS:
        for container in ("edge", "edge-spare", "cloudflared"):
            usage = machines.run_on(host, "docker", "stats", "--no-stream", "--format", "{{.MemUsage}}", container)
            assert "GiB /" not in usage, f"{container} of {host}: {usage}"


# What is derived from the catalogue, and what is not ours.


def _records() -> dict[str, dict[str, object]]:
    zone = traffic.cloudflare("GET", f"/client/v4/zones?name={settings.DOMAIN}")["result"][0]["id"]
    found = traffic.cloudflare("GET", f"/client/v4/zones/{zone}/dns_records?per_page=5000")["result"]
    return {record["name"]: record for record in found}


def test_a_service_that_goes_takes_its_name_along_and_nothing_else() -> None:
    zone = traffic.cloudflare("GET", f"/client/v4/zones?name={settings.DOMAIN}")["result"][0]["id"]
    mine = {"type": "A", "name": f"by-hand.{settings.DOMAIN}", "content": "192.0.2.7", "proxied": False, "ttl": 300}
    traffic.cloudflare("POST", f"/client/v4/zones/{zone}/dns_records", mine)
    assert set(_records()) == {WWW, AUTH, WHOAMI, f"by-hand.{settings.DOMAIN}"}
    run = site.play("site.yml", "--tags cloudflare", show="nothing")
    assert run.rc == 0, run.output
    assert set(_records()) == {WWW, AUTH, f"by-hand.{settings.DOMAIN}"}
    assert traffic.visit(WHOAMI).status == 530
    run = site.play("tests/site/whoami/site.yml", "--tags cloudflare", show="nothing", more=MORE)
    assert run.rc == 0, run.output
    assert traffic.visit(WHOAMI).status == 200
    assert site.play("tests/site/whoami/site.yml", "--tags cloudflare", show="nothing", more=MORE).changed() == set()


def test_access_guards_a_service_when_it_is_wanted() -> None:
    guard = json.dumps({"whoami": {"include": [{"any_valid_service_token": True}]}}).replace(" ", "")
    options = ("--tags cloudflare", "-e cloudflare_access_enabled=true")
    run = site.play(
        "tests/site/whoami/site.yml", *options, f"-e '{{\"cloudflare_access\":{guard}}}'", show="nothing", more=MORE
    )
    assert run.rc == 0, run.output
    assert traffic.visit(WHOAMI).status == 403
    assert traffic.visit(WWW).status == 200
    traffic.cloudflare("POST", "/_edge/settings", {"service_tokens": {"robot": "word"}})
    token = ("-H", "CF-Access-Client-Id: robot", "-H", "CF-Access-Client-Secret: word")
    done = subprocess.run([*traffic.curl(), *token, f"https://{WHOAMI}/"], check=True, capture_output=True)
    assert json.loads(done.stdout)["path"] == "/"
    traffic.cloudflare("POST", "/_edge/settings", {"service_tokens": {}})
    run = site.play("tests/site/whoami/site.yml", *options, show="nothing", more=MORE)
    assert run.rc == 0, run.output
    assert traffic.visit(WHOAMI).status == 200
