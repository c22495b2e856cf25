"""What a visitor meets, through either host's edge, while things break."""

from __future__ import annotations

import json
import subprocess
from functools import partial

import jmespath
import pytest

from lab import faults, machines, settings, traffic

from .conftest import HOSTS, WWW, eventually


def _asked(host: str) -> traffic.Answer:
    with traffic.edge(host) as port:
        return traffic.request(port, WWW)


def _answers_by_itself(host: str) -> bool:
    answer = _asked(host)
    return (answer.status, answer.server) == (200, host)


def _state(host: str) -> str:
    """Tell what a host that does not serve says, the most telling last, for the message of a test."""
    listening = machines.run_on(host, "ss", "-ltnp")
    containers = machines.run_on(host, "docker", "ps", "--all")
    return f"{listening}\n{containers}\n{machines.edge_services(host)}\n{_asked(host)}"


def _sees_both_copies(host: str) -> bool:
    return machines.edge_services(host).get("portal") == 2


@pytest.mark.parametrize("host", HOSTS)
def test_www_answers_through_either_edge(homelab: None, host: str) -> None:
    with traffic.edge(host) as port:
        answer = traffic.request(port, WWW)
        assert (answer.status, answer.server) == (200, host)
        assert "KiteStacks Portal" in answer.body
        assert traffic.request(port, f"nobody.{settings.DOMAIN}").status == 404


def test_the_status_says_so(homelab: None) -> None:
    words = ["bin/lab", "status", "--json"]
    status = json.loads(subprocess.run(words, cwd=settings.ROOT, check=True, capture_output=True, text=True).stdout)
    assert jmespath.search("hosts[].[name, state]", status) == [[host, "running"] for host in HOSTS]
    everywhere = {"authentik", "authentik-worker", "cloudflared", "edge", "edge-spare", "portal", "postgresql"}
    for host in status["hosts"]:
        assert {service["name"] for service in host["services"]} >= everywhere
    assert jmespath.search("hosts[].services[?health != 'healthy'][].name", status) == []
    assert all(address.startswith("100.") for address in jmespath.search("hosts[].tailnet", status))


@pytest.mark.parametrize("host", HOSTS)
def test_a_stopped_portal_is_served_from_the_other_host(homelab: None, host: str) -> None:
    eventually(lambda: _sees_both_copies(host), 20, f"{host}'s edge sees both copies")
    with traffic.edge(host) as port:
        answers, moment = traffic.during(
            partial(traffic.request, port, WWW), lambda: faults.stop_container(host, "portal"), count=320
        )
    within = [answer for answer in answers if answer.begin < moment + 3]
    later = [answer for answer in answers if answer.begin >= moment + 3]
    assert len(later) >= 200
    assert [answer for answer in later if answer.status != 200] == []
    assert {answer.server for answer in later} == set(HOSTS) - {host}
    failed = sum(answer.status != 200 for answer in within)
    slow = sum(answer.seconds > 0.5 for answer in within)
    print(
        f"\n{host}: portal stopped, {len(within)} requests until 3 s after: {failed} failed, {slow} slower than 0.5 s"
    )
    assert failed == 0


def test_each_host_serves_its_own_when_the_tailnet_is_cut(homelab: None) -> None:
    faults.cut_tailnet("monk")
    for host in HOSTS:
        with traffic.edge(host) as port:
            answers = traffic.steady(partial(traffic.request, port, WWW), 60, 20)
        assert {(answer.status, answer.server) for answer in answers} == {(200, host)}
    faults.heal()
    for host in HOSTS:
        eventually(lambda host=host: _sees_both_copies(host), 30, f"{host}'s edge sees both copies again")


def test_the_page_that_says_away(homelab: None) -> None:
    faults.stop_container("kscloud1", "portal")
    faults.stop_container("monk", "portal")
    with traffic.edge("monk") as port:
        # Until the checks have noticed, a request first waits for a copy that does not answer.
        eventually(
            lambda: machines.edge_services("monk").get("portal") == 0, 15, "the edge knows that nobody serves it"
        )
        answer = traffic.request(port, WWW)
    assert answer.status == 503
    assert answer.seconds < 1
    assert "KiteStacks Portal is away for a moment" in answer.body
    assert "kscloud1 and monk" in answer.body or "monk and kscloud1" in answer.body
    assert "%[" not in answer.body


@pytest.mark.parametrize(
    "order", [["monk"], ["kscloud1"], ["monk", "kscloud1"], ["kscloud1", "monk"]], ids=" then ".join
)
def test_all_answers_again_after_a_reboot_without_ansible(homelab: None, order: list[str]) -> None:
    """One host, or both one after the other without waiting for the first."""
    for host in order:
        faults.stop(host)
        machines.start(host)
    for host in HOSTS:
        machines.wait_for_boot(host)
        seconds = eventually(
            lambda host=host: _answers_by_itself(host) and _sees_both_copies(host),
            60,
            f"{host} serves again",
            partial(_state, host),
        )
        print(f"\n{' then '.join(order)}: {host} serves and sees both copies {seconds:.1f} s after ssh answers")


def test_both_hosts_lose_power_at_once(homelab: None) -> None:
    for host in HOSTS:
        faults.power_off(host)
    for host in HOSTS:
        machines.start(host)
    for host in HOSTS:
        machines.wait_for_boot(host)
        eventually(
            lambda host=host: _answers_by_itself(host) and _sees_both_copies(host),
            60,
            f"{host} serves again",
            partial(_state, host),
        )


def test_boot_without_the_tailnet(homelab: None) -> None:
    """The address that docker publishes the peer port on is not there yet: the engine must start all the same."""
    machines.run_on("monk", "systemctl", "disable", "tailscaled.service")
    try:
        faults.reboot("monk")
        eventually(lambda: _answers_by_itself("monk"), 60, "monk serves its own copy without the tailnet")
    finally:
        machines.run_on("monk", "systemctl", "enable", "--now", "tailscaled.service")
    eventually(lambda: _sees_both_copies("monk") and _sees_both_copies("kscloud1"), 60, "both see both copies again")
