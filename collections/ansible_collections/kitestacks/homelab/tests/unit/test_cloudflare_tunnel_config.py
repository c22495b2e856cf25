# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.kitestacks.homelab.plugins.modules import cloudflare_tunnel_config, cloudflare_tunnels
from ansible_collections.kitestacks.homelab.tests.fakes.cloudflare import TOKEN

from ._module import run_module

RULES = [
    {"hostname": "www.example.com", "service": "http://edge:8080"},
    {"hostname": "*.example.com", "service": "https://edge:8443", "origin_request": {"no_tls_verify": True}},
]


@pytest.fixture
def tunnel(cloudflare):
    options = {"api_url": cloudflare.url, "api_token": TOKEN}
    run_module(cloudflare_tunnels.main, **options, tunnels=[{"name": "homelab"}])
    cloudflare.reset()
    return next(iter(cloudflare.service.tunnels.values()))


def go(server, ingress=None, **options):
    given = {"api_url": server.url, "api_token": TOKEN, "tunnel": "homelab", "ingress": ingress or RULES, **options}
    return run_module(cloudflare_tunnel_config.main, **given)


def test_rules_are_set_with_a_catch_all_and_then_unchanged(cloudflare, tunnel):
    first = go(cloudflare)
    assert [rule["service"] for rule in tunnel.configuration["ingress"]] == [
        "http://edge:8080",
        "https://edge:8443",
        "http_status:404",
    ]
    assert (first["results"][0]["action"], first["version"]) == ("created", 1)
    assert first["tunnel_id"] == first["results"][0]["id"] == tunnel.document["id"]
    again = go(cloudflare)
    assert not again["changed"]
    assert (again["version"], tunnel.version) == (1, 1)


def test_a_run_without_changes_takes_three_requests(cloudflare, tunnel):
    account = cloudflare.service.account["id"]
    go(cloudflare, account_id=account)
    cloudflare.reset()
    go(cloudflare, account_id=account)
    # The tunnel, its configuration, its connectors.
    assert ([call.method for call in cloudflare.calls], cloudflare.connections) == (["GET"] * 3, 1)
    assert tunnel.version == 1


@pytest.mark.parametrize(
    "changed",
    [
        list(reversed(RULES)),
        RULES[:1],
        [{**RULES[0], "service": "http://edge:8081"}, RULES[1]],
        [{**RULES[0], "path": "^/x"}, RULES[1]],
        [RULES[0], {**RULES[1], "origin_request": None}],
        [RULES[0], {**RULES[1], "origin_request": {"no_tls_verify": False}}],
        [RULES[0], {**RULES[1], "origin_request": {"no_tls_verify": True, "http2_origin": True}}],
    ],
)
def test_order_and_every_part_of_a_rule_count(cloudflare, tunnel, changed):
    if changed[0] == RULES[1]:
        changed = [{"hostname": "b.example.com", "service": "http://edge:8080"}, RULES[0]]
        go(cloudflare, [changed[1], changed[0]])
    else:
        go(cloudflare)
    result = go(cloudflare, changed)
    assert result["results"][0]["changes"] == ["ingress"]
    assert tunnel.version == 2
    assert not go(cloudflare, changed)["changed"]


def test_what_is_not_stated_stays(cloudflare, tunnel):
    go(cloudflare, origin_request={"connect_timeout": 5, "http2_origin": True})
    go(cloudflare, RULES[:1])
    assert tunnel.configuration["originRequest"] == {"connectTimeout": 5, "http2Origin": True}
    result = go(cloudflare, RULES[:1], origin_request={"connect_timeout": 9})
    assert result["results"][0]["changes"] == ["originRequest.connectTimeout"]


def test_every_option_has_its_name_in_the_api(cloudflare, tunnel):
    options = {
        "access": {"aud_tag": ["a" * 64], "required": True, "team_name": "home"},
        "ca_pool": "/ca.pem",
        "connect_timeout": 1,
        "disable_chunked_encoding": True,
        "http2_origin": True,
        "http_host_header": "x",
        "keep_alive_connections": 2,
        "keep_alive_timeout": 3,
        "match_sni_to_host": True,
        "no_happy_eyeballs": True,
        "no_tls_verify": True,
        "origin_server_name": "y",
        "proxy_type": "socks",
        "tcp_keep_alive": 4,
        "tls_timeout": 5,
    }
    contract = cloudflare.contract
    go(cloudflare, [{**RULES[0], "origin_request": options}], origin_request=options)
    sent = tunnel.configuration["originRequest"]
    assert len(sent) == len(options)
    assert tunnel.configuration["ingress"][0]["originRequest"] == sent
    if contract is not None:
        names = contract.document["components"]["schemas"]["tunnel_originRequest"]["properties"]
        assert set(sent) == set(names)


def test_it_waits_for_every_connector(cloudflare, tunnel):
    for lag in (0, 2):
        cloudflare.service.connect(tunnel.document["id"], lag=lag)
    result = go(cloudflare)
    assert [item["config_version"] for item in result["connectors"]] == [1, 1]
    assert cloudflare.count("GET", "connections$") == 3


def test_a_connector_that_does_not_take_the_configuration_is_named(cloudflare, tunnel):
    stuck = cloudflare.service.connect(tunnel.document["id"], lag=-1)
    cloudflare.service.connect(tunnel.document["id"])
    result = go(cloudflare, wait_timeout=1)
    assert result["failed"]
    assert result["changed"]
    assert f"do not run version 1: {stuck.client_id} (version 0)" in result["msg"]
    # The next run changes nothing, and still says that something is wrong.
    again = go(cloudflare, wait_timeout=0)
    assert again["failed"]
    assert not again["changed"]
    assert not go(cloudflare, wait=False).get("failed")


def test_a_connector_that_goes_away_is_not_waited_for(cloudflare, tunnel):
    connector = cloudflare.service.connect(tunnel.document["id"], lag=-1)

    def leave(what, object_id):
        if what == "configuration":
            cloudflare.service.disconnect(object_id, connector.client_id)

    cloudflare.service.listeners.append(leave)
    assert go(cloudflare)["connectors"] == []


def test_check_mode_writes_nothing_and_does_not_wait(cloudflare, tunnel):
    cloudflare.service.connect(tunnel.document["id"], lag=-1)
    planned = go(cloudflare, check=True)
    assert planned["changed"]
    assert not cloudflare.writes()
    assert tunnel.version == 0
    assert planned["diff"] == go(cloudflare, wait=False)["diff"]


def test_a_tunnel_that_is_missing_or_local_is_refused(cloudflare, tunnel):
    assert "tunnel: there is no tunnel other" in go(cloudflare, tunnel="other")["msg"]
    tunnel.document["config_src"] = "local"
    assert "tunnel: homelab is configured locally" in go(cloudflare)["msg"]
    assert not cloudflare.writes()


def test_what_the_server_adds_is_no_difference(cloudflare, tunnel):
    go(cloudflare)
    tunnel.configuration["warp-routing"] = {"enabled": True}
    tunnel.configuration["originRequest"] = {"connectTimeout": 30}
    assert not go(cloudflare)["changed"]
    go(cloudflare, RULES[:1])
    assert "warp-routing" not in cloudflare.writes()[-1].body["config"]
