# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json

import pytest
from ansible_collections.kitestacks.homelab.plugins.modules import cloudflare_access
from ansible_collections.kitestacks.homelab.tests.fakes.cloudflare import TOKEN

from ._faults_cloudflare import ACCESS, access_foreign, access_service
from ._module import run_module

OIDC = {
    "client_id": "access",
    "auth_url": "https://auth.example.com/authorize",
    "token_url": "https://auth.example.com/token",
    "certs_url": "https://auth.example.com/jwks",
}


def go(server, **options):
    return run_module(cloudflare_access.main, **{"api_url": server.url, "api_token": TOKEN, **options})


def stored(server, kind):
    return {item["name"]: item for item in server.service.access[kind].values()}


def test_a_whole_set_is_made_in_the_order_of_its_references(cloudflare):
    cloudflare.service = access_service()
    foreign = access_foreign(cloudflare.service)
    planned = go(cloudflare, **ACCESS, check=True)
    assert not cloudflare.writes()
    done = go(cloudflare, **ACCESS)
    assert not done.get("failed"), done
    assert planned["diff"] == done["diff"]
    lines = [(line["key"], line["action"]) for line in done["results"]]
    assert lines == [(line["key"], line["action"]) for line in planned["results"]]
    groups, policies, apps = (stored(cloudflare, kind) for kind in ("groups", "policies", "apps"))
    assert set(groups) == {"Kite admins", "Kite family", "Foreign"}
    assert {"group": {"id": groups["Kite family"]["id"]}} in groups["Kite admins"]["include"]
    assert policies["Kite admin"]["include"] == [{"group": {"id": groups["Kite admins"]["id"]}}]
    assert [link["id"] for link in apps["Kite wiki"]["policies"]] == [
        policies["Kite admin"]["id"],
        policies["Kite allow"]["id"],
    ]
    assert set(policies) == {"Kite allow", "Kite admin", "Foreign"}
    assert access_foreign(cloudflare.service) == foreign
    assert not go(cloudflare, **ACCESS)["changed"]


def test_a_run_without_changes_takes_one_request_for_each_kind(cloudflare):
    account = cloudflare.service.account["id"]
    go(cloudflare, **ACCESS, account_id=account)
    cloudflare.reset()
    assert not go(cloudflare, **ACCESS, account_id=account)["changed"]
    assert (len(cloudflare.calls), cloudflare.connections) == (4, 1)


def test_only_the_kinds_that_are_needed_are_read(cloudflare):
    account = cloudflare.service.account["id"]
    go(cloudflare, groups=[{"name": "g", "include": [{"email": "a@example.com"}]}], account_id=account)
    assert cloudflare.count("GET") == 1
    cloudflare.reset()
    policy = {"name": "p", "decision": "allow", "include": [{"group": "g"}]}
    go(cloudflare, policies=[policy], account_id=account)
    assert sorted(call.path.rpartition("/")[2] for call in cloudflare.calls if call.method == "GET") == [
        "groups",
        "policies",
    ]


def test_rules_are_sets_and_compared_as_a_whole(cloudflare):
    rules = [{"email": "a@example.com"}, {"ip": "192.0.2.0/24"}, {"geo": "DE"}, {"everyone": True}]
    go(cloudflare, groups=[{"name": "g", "include": rules}])
    assert not go(cloudflare, groups=[{"name": "g", "include": rules[::-1]}])["changed"]
    changed = go(cloudflare, groups=[{"name": "g", "include": rules[1:]}])
    assert changed["results"][0]["changes"] == ["include"]
    assert stored(cloudflare, "groups")["g"]["include"][-1] == {"everyone": {}}
    other = go(cloudflare, groups=[{"name": "g", "include": [*rules[1:3], {"any_valid_service_token": True}]}])
    assert other["changed"]


def test_put_keeps_what_is_not_stated(cloudflare):
    rules = [{"everyone": True}]
    go(cloudflare, policies=[{"name": "p", "decision": "allow", "include": rules}])
    app = {"name": "Wiki", "domain": "Wiki.example.com/", "policies": ["p"], "logo_url": "https://example.com/l.png"}
    go(cloudflare, applications=[app])
    result = go(cloudflare, applications=[{"name": "Wiki 2", "domain": "wiki.example.com"}])
    assert result["results"][0]["changes"] == ["name"]
    wiki = stored(cloudflare, "apps")["Wiki 2"]
    assert wiki["logo_url"] == "https://example.com/l.png"
    assert len(wiki["policies"]) == 1


@pytest.mark.parametrize(("one", "other"), [("24h", "1440m"), ("1h30m", "5400s"), ("90m", "1h30m0s")])
def test_durations_are_compared_as_durations(cloudflare, one, other):
    policy = {"name": "p", "decision": "allow", "include": [{"everyone": True}]}
    go(cloudflare, policies=[{**policy, "session_duration": one}])
    assert not go(cloudflare, policies=[{**policy, "session_duration": other}])["changed"]
    assert go(cloudflare, policies=[{**policy, "session_duration": "25h"}])["changed"]


def test_a_secret_is_sent_but_neither_shown_nor_compared(cloudflare):
    provider = {"name": "Authentik", "type": "oidc", "config": OIDC, "client_secret": "sesame"}
    first = go(cloudflare, identity_providers=[provider])
    assert stored(cloudflare, "identity_providers")["Authentik"]["config"]["client_secret"] == "sesame"
    assert "sesame" not in json.dumps(first)
    assert not go(cloudflare, identity_providers=[{**provider, "client_secret": "other"}])["changed"]
    rotated = go(cloudflare, identity_providers=[{**provider, "client_secret": "other", "rotate_secret": True}])
    assert rotated["results"][0]["changes"] == ["config.client_secret"]
    assert stored(cloudflare, "identity_providers")["Authentik"]["config"]["client_secret"] == "other"


def test_a_provider_is_not_written_without_the_secret_that_it_has(cloudflare):
    provider = {
        "name": "Authentik",
        "type": "oidc",
        "config": {**OIDC, "scopes": ["openid"]},
        "client_secret": "sesame",
    }
    go(cloudflare, identity_providers=[provider])
    moved = {**provider, "config": {**OIDC, "auth_url": "https://new.example.com/authorize"}}
    refused = go(cloudflare, identity_providers=[{**moved, "client_secret": None}])
    assert "identity_providers (Authentik).client_secret: is required to update it" in refused["msg"]
    assert len(cloudflare.writes()) == 1
    assert go(cloudflare, identity_providers=[moved])["results"][0]["changes"] == ["config.auth_url"]
    config = stored(cloudflare, "identity_providers")["Authentik"]["config"]
    assert (config["client_secret"], config["scopes"]) == ("sesame", ["openid"])


def test_names_are_not_unique_at_cloudflare_and_a_second_one_is_told(cloudflare):
    policy = {"name": "p", "decision": "allow", "include": [{"everyone": True}]}
    go(cloudflare, policies=[policy])
    copy = {**next(iter(cloudflare.service.access["policies"].values())), "id": "0" * 36}
    cloudflare.service.access["policies"]["0" * 36] = copy
    refused = go(cloudflare, policies=[policy])
    assert "policies: Access policy p exists more than once" in refused["msg"]


def test_purge_leaves_kinds_alone_that_are_not_declared(cloudflare):
    cloudflare.service = access_service()
    go(cloudflare, applications=[], purge=True, purge_allow_empty=True, purge_name_prefix="Kite ")
    assert set(stored(cloudflare, "apps")) == {"Foreign"}
    assert set(stored(cloudflare, "policies")) == {"Kite allow", "Kite unused", "Foreign"}


def test_groups_that_use_each_other_are_deleted_users_first(cloudflare):
    cloudflare.service = access_service()
    done = go(cloudflare, groups=[{"name": name, "state": "absent"} for name in ("Kite family", "Kite gone")])
    assert not done.get("failed"), done
    assert [line["key"] for line in done["results"]] == ["Kite gone", "Kite family"]


def test_groups_may_be_declared_before_what_they_include(cloudflare):
    groups = [
        {"name": "c", "include": [{"group": "b"}]},
        {"name": "b", "include": [{"group": "a"}]},
        {"name": "a", "include": [{"everyone": True}]},
    ]
    assert [line["key"] for line in go(cloudflare, groups=groups)["results"]] == ["a", "b", "c"]
    assert not go(cloudflare, groups=groups)["changed"]
