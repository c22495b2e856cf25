"""What happens when Cloudflare refuses or is away: a message that says what to do, and all that was served goes on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from lab import machines, settings, site, traffic
from lab.shell import LabError

from .conftest import HOSTS, WWW, eventually


def _served() -> bool:
    return all(traffic.visit(WWW, via=host).status == 200 for host in HOSTS)


@pytest.fixture(autouse=True)
def _goes_on(homelab: None) -> Iterator[None]:
    """The portal is served before, and still after whatever a test did."""
    eventually(_served, 60, "the portal is served through both connectors")
    yield
    traffic.cloudflare("POST", "/_control/reset")
    assert _served()


def _run(*options: str) -> tuple[int, str]:
    """Run the Cloudflare layer; return its exit status and all that it printed, in one line."""
    run = site.play("site.yml", "--tags cloudflare", *options, show="nothing")
    return run.rc, re.sub(r"\x1b\[[0-9;]*m|\s+", " ", run.output)


def _tunnel() -> dict[str, Any]:
    account = traffic.cloudflare("GET", "/client/v4/accounts")["result"][0]["id"]
    found = traffic.cloudflare("GET", f"/client/v4/accounts/{account}/cfd_tunnel?is_deleted=false")["result"]
    return {**found[0], "path": f"/client/v4/accounts/{account}/cfd_tunnel/{found[0]['id']}"}


def test_a_wrong_token() -> None:
    code, output = _run("-e cloudflare_api_token=not-the-token")
    assert code != 0
    assert "The API token is not valid" in output
    assert "changed=1" not in output


def test_no_token() -> None:
    code, output = _run("-e cloudflare_api_token=")
    assert code != 0
    assert "cloudflare_api_token is missing: make a token at https://dash.cloudflare.com" in output


def test_a_token_without_a_permission() -> None:
    traffic.cloudflare("POST", "/_edge/tokens", {"small": ["Zone Read", "Cloudflare Tunnel Write"]})
    code, output = _run("-e cloudflare_api_token=small")
    assert code != 0
    assert "The Cloudflare API token lacks: Zone > DNS > Edit" in output


def test_a_zone_that_is_not_there() -> None:
    code, output = _run("-e cloudflare_zone=example.org")
    assert code != 0
    assert "sees no zone example.org" in output


def test_a_rate_limit_in_the_middle_of_the_run() -> None:
    tunnel = _tunnel()
    # By somebody else, so that the run has something to put right.
    bent = {"ingress": [{"hostname": WWW, "service": "http://edge:8080"}, {"service": "http_status:410"}]}
    traffic.cloudflare("PUT", f"{tunnel['path']}/configurations", {"config": bent})
    limit = {"method": "PUT", "path": "configurations", "status": 429, "headers": {"Retry-After": "1"}, "times": 2}
    traffic.cloudflare("POST", "/_control/faults", limit)
    code, output = _run()
    assert code == 0, output
    live = traffic.cloudflare("GET", f"{tunnel['path']}/configurations")["result"]["config"]["ingress"]
    assert live[-1] == {"service": "http_status:404"}


def test_an_api_that_is_away() -> None:
    code, output = _run(f"-e cloudflare_api_url=https://{settings.CLOUDFLARE.address}:9/client/v4")
    assert code != 0
    assert "The connectors and all that they serve stay as they are" in output


def test_a_rule_that_no_connector_can_read_is_put_right() -> None:
    """Somebody's mistake in the dashboard: connectors keep what they have, and would serve nothing once restarted."""
    tunnel = _tunnel()
    bad = {"config": {"ingress": [{"hostname": WWW, "service": "nonsense"}, {"service": "http_status:404"}]}}
    traffic.cloudflare("PUT", f"{tunnel['path']}/configurations", bad)
    assert _served()
    code, output = _run()
    assert code == 0, output
    versions = {row["config_version"] for row in traffic.cloudflare("GET", f"{tunnel['path']}/connections")["result"]}
    live = traffic.cloudflare("GET", f"{tunnel['path']}/configurations")["result"]
    assert versions == {live["version"]}
    assert live["config"]["ingress"][0]["service"] == "http://edge:8080"


def test_a_tunnel_that_somebody_deleted_is_made_anew() -> None:
    tunnel = _tunnel()
    traffic.cloudflare("DELETE", f"{tunnel['path']}/connections")
    eventually(lambda: _delete(tunnel["path"]), 10, "the tunnel is deleted")
    assert traffic.visit(WWW).status == 530
    code, output = _run()
    assert code == 0, output
    assert _tunnel()["id"] != tunnel["id"]


def _delete(path: str) -> bool:
    try:
        traffic.cloudflare("DELETE", path)
    except LabError:
        traffic.cloudflare("DELETE", f"{path}/connections")
        return False
    return True


def test_a_rotated_secret_costs_no_request() -> None:
    before = {host: machines.run_on(host, "cat", "/opt/kitestacks/cloudflared/secrets/token") for host in HOSTS}

    def rotate() -> None:
        run = site.play("playbooks/operations/rotate_tunnel.yml", show="nothing")
        assert run.rc == 0, run.output

    answers, _moment = traffic.during(lambda: traffic.visit(WWW), rotate, count=700)
    failed = [answer for answer in answers if answer.status != 200]
    print(f"\ntunnel's secret rotated: {len(failed)} of {len(answers)} failed")
    assert failed == []
    after = {host: machines.run_on(host, "cat", "/opt/kitestacks/cloudflared/secrets/token") for host in HOSTS}
    assert len(set(after.values())) == 1
    assert set(after.values()).isdisjoint(before.values())
    connections = traffic.cloudflare("GET", "/_edge/state")["connections"]
    assert {connection["address"] for connection in connections} == {machines.address(host) for host in HOSTS}
    assert site.play("site.yml", "--tags cloudflare", show="nothing").changed() == set()
