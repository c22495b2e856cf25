# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import base64
import json

import pytest
from ansible_collections.kitestacks.homelab.plugins.modules import cloudflare_tunnels
from ansible_collections.kitestacks.homelab.tests.fakes._server import Reply
from ansible_collections.kitestacks.homelab.tests.fakes.cloudflare import TOKEN

from ._module import run_module

SECRET = base64.b64encode(b"a" * 32).decode()
CONNECTOR = "00000000-0000-4000-8000-00000000000c"
OTHER = base64.b64encode(b"b" * 32).decode()


def go(server, *tunnels, **options):
    tunnels = [{"name": item} if isinstance(item, str) else item for item in tunnels]
    given = {"api_url": server.url, "api_token": TOKEN, "tunnels": tunnels, **options}
    return run_module(cloudflare_tunnels.main, **given)


def live(server):
    return [tunnel for tunnel in server.service.tunnels.values() if tunnel.document["deleted_at"] is None]


def test_a_tunnel_is_created_adopted_and_then_unchanged(cloudflare):
    first = go(cloudflare, "homelab")
    tunnel = live(cloudflare)[0]
    assert tunnel.document["config_src"] == "cloudflare"
    assert first["tunnels"]["homelab"] == {
        "id": tunnel.document["id"],
        "cname": f"{tunnel.document['id']}.cfargotunnel.com",
        "status": "inactive",
    }
    cloudflare.service.connect(tunnel.document["id"])
    again = go(cloudflare, "homelab")
    assert not again["changed"]
    assert again["tunnels"]["homelab"]["status"] == "healthy"


def test_20_tunnels_without_changes_take_one_request(cloudflare):
    names = [f"t{number}" for number in range(20)]
    account = cloudflare.service.account["id"]
    go(cloudflare, *names, account_id=account)
    cloudflare.reset()
    assert not go(cloudflare, *names, account_id=account)["changed"]
    assert (len(cloudflare.calls), cloudflare.connections) == (1, 1)


def test_deleted_tunnels_are_ignored(cloudflare):
    go(cloudflare, "homelab")
    go(cloudflare, {"name": "homelab", "state": "absent"})
    assert live(cloudflare) == []
    assert not go(cloudflare, {"name": "homelab", "state": "absent"})["changed"]
    assert go(cloudflare, "homelab")["stats"]["created"] == 1
    assert len(cloudflare.service.tunnels) == 2


def test_connections_are_closed_before_a_tunnel_is_deleted(cloudflare):
    go(cloudflare, "homelab")
    cloudflare.service.connect(live(cloudflare)[0].document["id"])
    cloudflare.reset()
    assert go(cloudflare, {"name": "homelab", "state": "absent"})["changed"]
    assert cloudflare.writes()[0].path.endswith("/connections")


@pytest.mark.usefixtures("waits")
def test_connectors_that_come_back_while_a_tunnel_is_deleted_are_closed_again(cloudflare):
    go(cloudflare, "homelab")
    tunnel_id = live(cloudflare)[0].document["id"]
    cloudflare.service.connect(tunnel_id, CONNECTOR)
    back = [3]

    def reconnect(what, object_id):
        if what == "connections" and back[0]:
            back[0] -= 1
            cloudflare.service.connect(object_id, CONNECTOR)

    cloudflare.service.listeners.append(reconnect)
    result = go(cloudflare, {"name": "homelab", "state": "absent"})
    assert not result.get("failed"), result
    assert live(cloudflare) == []
    assert result["stats"]["retries"] == 3


def test_a_secret_is_set_once_and_rotated_on_request_only(cloudflare):
    go(cloudflare, {"name": "homelab", "tunnel_secret": SECRET})
    tunnel = live(cloudflare)[0]
    assert tunnel.secret == SECRET
    assert not go(cloudflare, {"name": "homelab", "tunnel_secret": OTHER})["changed"]
    assert tunnel.secret == SECRET
    rotated = go(cloudflare, {"name": "homelab", "tunnel_secret": OTHER, "rotate_secret": True})
    assert tunnel.secret == OTHER
    assert rotated["results"][0]["changes"] == ["tunnel_secret"]
    assert OTHER not in json.dumps(rotated)
    assert "********" in rotated["diff"]["after"]


def test_the_token_is_returned_only_when_asked_for(cloudflare):
    result = go(cloudflare, "homelab", return_token=True)
    token = json.loads(base64.b64decode(result["tunnels"]["homelab"]["token"]))
    tunnel = live(cloudflare)[0]
    assert token == {"a": cloudflare.service.account["id"], "t": tunnel.document["id"], "s": tunnel.secret}
    assert cloudflare.service.authorise(token["a"], token["t"], token["s"])
    assert not cloudflare.service.authorise(token["a"], token["t"], OTHER)
    assert "token" not in go(cloudflare, "homelab")["tunnels"]["homelab"]


def test_check_mode_writes_nothing_and_tells_the_same(cloudflare):
    go(cloudflare, "kite-old", "foreign")
    wanted = ["homelab", {"name": "gone", "state": "absent"}]
    options = {"purge": True, "purge_name_prefix": "kite-"}
    cloudflare.reset()
    planned = go(cloudflare, *wanted, **options, check=True)
    assert not cloudflare.writes()
    assert planned["tunnels"] == {}
    done = go(cloudflare, *wanted, **options)
    assert planned["diff"] == done["diff"]
    assert [(line["key"], line["action"]) for line in planned["results"]] == [
        ("homelab", "created"),
        ("kite-old", "deleted"),
    ]
    assert {tunnel.document["name"] for tunnel in live(cloudflare)} == {"homelab", "foreign"}


def test_where_the_configuration_is_kept_cannot_change(cloudflare):
    go(cloudflare, {"name": "homelab", "config_src": "local"})
    refused = go(cloudflare, "homelab")
    assert "tunnels (homelab).config_src: is local since the tunnel was created" in refused["msg"]
    assert len(cloudflare.writes()) == 1


def test_one_of_several_accounts_has_to_be_named(cloudflare, monkeypatch):
    two = [cloudflare.service.account, {"id": "f" * 32, "name": "Work", "type": "standard"}]
    monkeypatch.setattr(type(cloudflare.service), "_accounts", lambda *_arguments: page(two))
    refused = go(cloudflare, "homelab")
    assert "account_id: has to be given" in refused["msg"]
    assert "Work (ffffffffffffffffffffffffffffffff)" in refused["msg"]


def page(result):
    return Reply(
        200, {"success": True, "errors": [], "messages": [], "result": result, "result_info": {"total_count": 2}}
    )
