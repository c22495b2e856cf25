"""What a stranger on the network reaches, and what the tailnet's policy lets through."""

from __future__ import annotations

import re
from collections.abc import Iterator

import docker
import pytest

from lab import machines, settings
from lab.shell import LabError

from .conftest import HOSTS, eventually


def _guest(*command: str) -> tuple[int, str]:
    """Run a command in the stranger's container; return its exit status and output."""
    container = docker.from_env().containers.get(settings.GUEST.name)
    code, output = container.exec_run(list(command))
    return code, output.decode(errors="replace")


def test_from_outside_only_ssh_answers(homelab: None) -> None:
    addresses = [host.address for host in settings.HOSTS]
    code, output = _guest(
        "nmap", "-n", "-Pn", "-T5", "--min-rate", "12000", "--max-retries", "1", "-p-", "--open", "-oG", "-", *addresses
    )
    assert code == 0, output
    for address in addresses:
        line = next(line for line in output.splitlines() if f"{address} ()\tPorts" in line)
        assert re.findall(r"(\d+)/open", line) == ["22"]


@pytest.fixture(scope="module")
def owner(second: object) -> Iterator[dict[str, str]]:
    """A device of the owner's in the tailnet; yields the hosts' tailnet addresses."""
    del second
    machines.join_guest()
    yield {host: machines.tailnet_address(host) for host in HOSTS}
    machines.leave_guest()


def test_the_owners_device_reaches_ssh_over_the_tailnet_and_nothing_else(homelab: None, owner: dict[str, str]) -> None:
    for host, address in owner.items():
        code, output = _guest("nc", "-z", "-w", "5", address, "22")
        assert code == 0, f"{host}: {output}"
        for port in (8080, 8081, 8083, 8404, 9100, 5432, 2375):
            code, output = _guest("nc", "-z", "-w", "2", address, str(port))
            assert code != 0, f"{host}:{port} answered"
    log = machines.run_on("monk", "journalctl", "-u", "tailscaled", "--no-pager", "-n", "400")
    assert "no rules matched" in log


def test_what_is_for_the_tailnet_goes_nowhere_else(homelab: None) -> None:
    """Without tailscaled its addresses are not asked for at the provider's, where anybody could answer."""
    address = machines.tailnet_address("kscloud1")
    attempt = machines.connecting(address, 8081)
    containers = ("docker", "exec", "postgresql", *attempt)
    machines.run_on("monk", *attempt)
    machines.run_on("monk", "systemctl", "stop", "tailscaled.service")
    try:
        for words in (attempt, containers):
            with pytest.raises(LabError, match="Connection refused"):
                machines.run_on("monk", *words)
    finally:
        machines.run_on("monk", "systemctl", "start", "tailscaled.service")
    eventually(lambda: machines.can_connect("monk", address, 8081), 30, "monk is in the tailnet again")


@pytest.mark.parametrize(
    ("source", "target", "port", "allowed"),
    [
        ("monk", "kscloud1", 8081, True),
        ("kscloud1", "monk", 8081, True),
        ("kscloud1", "monk", 8083, True),
        ("monk", "kscloud1", 22, True),
        ("monk", "kscloud1", 5432, True),
        ("kscloud1", "monk", 5432, True),
        ("kscloud1", "monk", 6379, False),
        ("kscloud1", "monk", 22, False),
        ("monk", "kscloud1", 8404, False),
        ("kscloud1", "monk", 9100, False),
    ],
)
def test_between_the_hosts_only_what_the_policy_allows(
    homelab: None, source: str, target: str, port: int, allowed: bool
) -> None:
    address = machines.tailnet_address(target)
    assert machines.can_connect(source, address, port) is allowed


def test_the_public_addresses_do_not_lead_to_what_is_published_on_the_tailnet(homelab: None) -> None:
    """A packet for the tailnet address that comes in on the public interface is dropped."""
    for host in settings.HOSTS:
        address = machines.tailnet_address(host.name)
        code, _output = _guest("ip", "route", "replace", f"{address}/32", "via", host.address)
        assert code == 0
        try:
            code, _output = _guest("curl", "-sS", "--max-time", "3", f"http://{address}:8081/")
            assert code == 28, "expected a time-out"
        finally:
            _guest("ip", "route", "del", f"{address}/32")
