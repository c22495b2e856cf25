# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fake behaves as Cloudflare does where modules could go wrong, and checks what it is told and says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from ansible_collections.kitestacks.homelab.tests.fakes import _contract
from ansible_collections.kitestacks.homelab.tests.fakes._contract import Contract
from ansible_collections.kitestacks.homelab.tests.fakes._server import Reply, Request, Server
from ansible_collections.kitestacks.homelab.tests.fakes.cloudflare import CONTRACT, TOKEN, CloudflareApi

A = {"type": "A", "name": "www", "content": "192.0.2.1", "ttl": 1}
CNAME = {"type": "CNAME", "name": "www", "content": "x.example.net", "ttl": 1}


@pytest.fixture
def api():
    return CloudflareApi(["example.com"])


def ask(api, method, path, body=None, query=None, token=TOKEN):
    headers = {"authorization": f"Bearer {token}"} if token else {}
    reply = api.handle(Request(method, path, query or {}, headers, body))
    return reply.status, reply.body


def records(api):
    return f"/zones/{api.zone_id('example.com')}/dns_records"


def tunnels(api):
    return f"/accounts/{api.account['id']}/cfd_tunnel"


def code(answer):
    status, body = answer
    assert not body["success"]
    assert body["result"] is None
    return status, body["errors"][0]["code"]


def test_requests_without_or_with_a_wrong_token_are_refused(api):
    assert code(ask(api, "GET", "/zones", token=None)) == (401, 9106)
    assert code(ask(api, "GET", "/zones", token="x"))[1] == 1000
    api.tokens["poor"] = {"Zone Read"}
    assert code(ask(api, "GET", records(api), token="poor")) == (403, 10000)


def test_records_clash_as_they_do(api):
    assert ask(api, "POST", records(api), A)[0] == 200
    assert code(ask(api, "POST", records(api), A)) == (400, 81058)
    assert code(ask(api, "POST", records(api), CNAME)) == (400, 81053)
    api.records[api.zone_id("example.com")].clear()
    assert ask(api, "POST", records(api), CNAME)[0] == 200
    assert code(ask(api, "POST", records(api), A)) == (400, 81054)
    assert code(ask(api, "POST", records(api), CNAME)) == (400, 81053)
    assert code(ask(api, "DELETE", records(api) + "/none")) == (404, 81044)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({**A, "ttl": 30}, 9021),
        ({**A, "type": "TXT", "proxied": True}, 9004),
        ({**A, "content": "x"}, 9005),
        ({**A, "type": "SPF"}, 9018),
        ({**A, "type": "SRV"}, 9100),
    ],
)
def test_a_record_that_is_wrong_is_refused_with_the_reason(api, record, reason):
    status, body = ask(api, "POST", records(api), record)
    assert (status, body["errors"][0]["code"], body["errors"][0]["error_chain"][0]["code"]) == (400, 1004, reason)


def test_unknown_keys_are_refused(api):
    assert code(ask(api, "POST", records(api), {**A, "proxid": True})) == (400, 1004)
    assert code(ask(api, "POST", tunnels(api), {"name": "x", "secret": "y"})) == (400, 1004)


def test_a_batch_deletes_first_and_is_all_or_nothing(api):
    _status, body = ask(api, "POST", records(api), A)
    old = body["result"]["id"]
    batch = {"deletes": [{"id": old}], "posts": [CNAME]}
    assert ask(api, "POST", records(api) + "/batch", batch)[0] == 200
    before = api.zone_records("example.com")
    bad = {"deletes": [{"id": before[0]["id"]}], "posts": [A, {**A, "ttl": 5}]}
    assert code(ask(api, "POST", records(api) + "/batch", bad)) == (400, 1004)
    assert api.zone_records("example.com") == before
    many = {"posts": [{**A, "name": f"h{number}"} for number in range(201)]}
    assert ask(api, "POST", records(api) + "/batch", many)[0] == 400


def test_deleted_tunnels_stay_visible(api):
    _status, body = ask(api, "POST", tunnels(api), {"name": "t"})
    tunnel_id = body["result"]["id"]
    assert code(ask(api, "POST", tunnels(api), {"name": "t"})) == (409, 1013)
    api.connect(tunnel_id)
    assert code(ask(api, "DELETE", f"{tunnels(api)}/{tunnel_id}")) == (400, 1022)
    assert ask(api, "DELETE", f"{tunnels(api)}/{tunnel_id}/connections")[0] == 200
    assert ask(api, "DELETE", f"{tunnels(api)}/{tunnel_id}")[0] == 200
    assert len(ask(api, "GET", tunnels(api), query={"name": "t"})[1]["result"]) == 1
    assert ask(api, "GET", tunnels(api), query={"name": "t", "is_deleted": "false"})[1]["result"] == []
    assert ask(api, "GET", f"{tunnels(api)}/{tunnel_id}")[1]["result"]["deleted_at"]
    assert ask(api, "POST", tunnels(api), {"name": "t"})[0] == 200


def test_configurations_have_a_version_and_need_a_catch_all(api):
    tunnel_id = ask(api, "POST", tunnels(api), {"name": "t", "config_src": "cloudflare"})[1]["result"]["id"]
    path = f"{tunnels(api)}/{tunnel_id}/configurations"
    empty = ask(api, "GET", path)[1]["result"]
    assert (empty["version"], empty["config"]) == (0, None)
    rule = {"hostname": "www.example.com", "service": "http://x"}
    assert code(ask(api, "PUT", path, {"config": {"ingress": [rule]}})) == (400, 1056)
    full = {"config": {"ingress": [rule, {"service": "http_status:404"}]}}
    assert [ask(api, "PUT", path, full)[1]["result"]["version"] for _number in range(2)] == [1, 2]


def test_an_edge_reads_the_state_and_is_told_of_changes(api):
    told = []
    api.listeners.append(lambda what, object_id: told.append((what, object_id)))
    tunnel_id = ask(api, "POST", tunnels(api), {"name": "t", "config_src": "cloudflare"})[1]["result"]["id"]
    connector = api.connect(tunnel_id, lag=-1)
    config = {"ingress": [{"service": "http_status:404"}]}
    ask(api, "PUT", f"{tunnels(api)}/{tunnel_id}/configurations", {"config": config})
    assert ("configuration", tunnel_id) in told
    version, configuration = api.ingress(tunnel_id)
    assert (version, configuration["ingress"][0]["service"]) == (1, "http_status:404")
    assert connector.config_version == 0
    api.applied(tunnel_id, connector.client_id, 1)
    assert ask(api, "GET", f"{tunnels(api)}/{tunnel_id}/connections")[1]["result"][0]["config_version"] == 1
    api.add_record("example.com", **CNAME)
    assert [record["type"] for record in api.resolve("WWW.example.com")] == ["CNAME"]


def test_a_policy_in_use_cannot_be_deleted(api):
    path = f"/accounts/{api.account['id']}/access"
    rule = {"name": "p", "decision": "allow", "include": [{"everyone": {}}]}
    policy = ask(api, "POST", f"{path}/policies", rule)[1]["result"]["id"]
    app = {"name": "a", "domain": "a.example.com", "type": "self_hosted", "policies": [policy]}
    status, body = ask(api, "POST", f"{path}/apps", app)
    assert (status, body["result"]["policies"][0]["name"]) == (201, "p")
    assert ask(api, "DELETE", f"{path}/policies/{policy}")[0] == 409
    twice = {**app, "policies": [{"id": policy, "precedence": 1}, {"id": policy, "precedence": 1}]}
    assert code(ask(api, "POST", f"{path}/apps", twice)) == (400, 11018)


def test_the_rate_limit_is_told_and_kept():
    api = CloudflareApi(rate_limit=2)
    headers = {"authorization": f"Bearer {TOKEN}"}
    replies = [api.handle(Request("GET", "/zones", {}, headers)) for _number in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 429]
    assert replies[0].headers["Ratelimit"] == '"default";r=1;t=300'
    assert replies[2].headers["Retry-After"] == "300"


def contract():
    found = Contract.load(CONTRACT)
    if found is None:
        pytest.skip(f"no {CONTRACT}: put the vendors' documents into ../shared/contracts or set KITE_CONTRACTS")
    return found


def test_the_contract_refuses_what_the_vendor_does_not_know():
    path = "/zones/" + "0" * 32 + "/dns_records"
    check = contract().check_request
    assert check("POST", path, {}, A) == []
    assert check("POST", path, {}, {**A, "content": "x"}) == ["content: 'x' is not a 'ipv4'"]
    assert check("POST", path, {}, {**A, "proxid": True}) == ["unknown key proxid"]
    assert check("POST", path, {}, None) == ["body missing"]
    assert check("GET", path, {"per_pag": "5"}, None) == ["unknown query parameter per_pag"]
    assert check("GET", path, {"match": "some"}, None) == ["query match: 'some' is none of ['any', 'all']"]
    assert check("GET", "/nowhere", {}, None) == ["no such operation"]
    assert check("POST", path + "/batch", {}, {"deletes": [{}]}) == ["deletes/0: 'id' is a required property"]


def test_the_contract_checks_answers_too():
    check = contract().check_response
    path = "/accounts/" + "0" * 32 + "/cfd_tunnel"
    good = {"success": True, "errors": [], "messages": [], "result": []}
    assert check("GET", path, 200, good) == []
    assert check("GET", path, 200, {**good, "result": [{"status": "sleepy"}]})
    assert check("GET", path, 200, {"result": []})
    assert check("GET", path, 204, good) == ["status 204 is not documented"]
    assert check("GET", path, 404, {"success": False, "errors": [{"code": 1003, "message": "x"}], "messages": []}) == []
    assert check("GET", path, 404, {"success": False, "errors": []})


class Liar:
    base_path = "/client/v4"

    def handle(self, _request: Request) -> Reply:
        return Reply(200, {"success": "perhaps"})


def test_a_fake_that_breaks_the_contract_is_found_out():
    with Server(Liar(), contract=contract()) as server:
        with pytest.raises(urllib.error.HTTPError, match="500"):
            urllib.request.urlopen(f"{server.url}/zones")
        assert any(line.startswith("response GET /zones: ") for line in server.violations)
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(urllib.request.Request(f"{server.url}/zones?colour=red", method="GET"))


def test_without_the_documents_the_check_is_off_and_that_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("KITE_CONTRACTS", str(tmp_path))
    assert Contract.load(CONTRACT) is None
    assert capsys.readouterr().err == f"contract check off: no {CONTRACT} in KITE_CONTRACTS or ../shared/contracts\n"


def test_it_runs_as_a_program_with_faults_and_a_log():
    module = "ansible_collections.kitestacks.homelab.tests.fakes.cloudflare"
    collections = Path(_contract.__file__).parents[5]
    command = [sys.executable, "-m", module, "--zone", "example.org"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(collections)}
    ) as program:
        try:
            url = program.stdout.readline().strip()
            origin = url.removesuffix("/client/v4")
            asked = urllib.request.Request(f"{url}/zones", headers={"Authorization": f"Bearer {TOKEN}"})
            assert json.load(urllib.request.urlopen(asked))["result"][0]["name"] == "example.org"
            fault = json.dumps({"status": 503, "body": "<html>down</html>"}).encode()
            urllib.request.urlopen(urllib.request.Request(f"{origin}/_control/faults", data=fault, method="POST"))
            with pytest.raises(urllib.error.HTTPError, match="503"):
                urllib.request.urlopen(asked)
            log = json.load(urllib.request.urlopen(f"{origin}/_control/log"))
            assert [(call["method"], call["path"], call["status"]) for call in log["calls"]] == [
                ("GET", "/zones", 200),
                ("GET", "/zones", 503),
            ]
            assert log["violations"] == []
        finally:
            program.terminate()
