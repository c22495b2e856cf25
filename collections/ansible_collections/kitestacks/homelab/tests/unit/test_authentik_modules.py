# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the Authentik modules do: requests, traps of the API, ownership, versions."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import yaml
from ansible_collections.kitestacks.homelab.plugins.module_utils import _http
from ansible_collections.kitestacks.homelab.tests.fakes._server import Request
from ansible_collections.kitestacks.homelab.tests.fakes.authentik import EMBEDDED

from ._authentik_runs import MODULES, Lab, actions, module
from ._module import run_module

APPS, GROUPS, USERS = "authentik_applications", "authentik_groups", "authentik_users"
PROVIDERS, OUTPOSTS, MAPPINGS = "authentik_providers", "authentik_outposts", "authentik_scope_mappings"
BLUEPRINTS, INFO = "authentik_blueprints", "authentik_info"
CONTENT = (
    "version: 1\nmetadata:\n  name: b\nentries:\n  - model: authentik_core.group\n    identifiers:\n      name: g\n"
)


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(_http, "_sleep", slept.append)
    return slept


@pytest.fixture
def lab():
    with Lab() as running:
        yield running


def applications(count: int, **values):
    """Return declarations of applications with a provider and a group each."""
    return [
        {
            "slug": f"app-{number}",
            "name": f"App {number}",
            "groups": ["household"],
            "provider": {
                "client_id": f"client-{number}",
                "client_secret": f"secret-of-{number}",
                "redirect_uris": [{"url": f"https://app-{number}.example.test/callback"}],
            },
            **values,
        }
        for number in range(count)
    ]


def provider(lab, name, kind="oauth2", **values):
    flow = lab.api.find("flows", slug="default-provider-invalidation-flow")["pk"]
    flows = {"authorization_flow": flow, "invalidation_flow": flow}
    more = {"oauth2": {"redirect_uris": []}, "ldap": {}, "proxy": {"external_host": "https://p.test"}}[kind]
    return lab.api.add(kind, name=name, **flows, **more, **values)


# -- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 20, 100])
def test_a_run_without_changes_lists_each_kind_once_however_many_applications(lab, count):
    lab.api.add("groups", name="household")
    first = lab.ok(APPS, applications=applications(count))
    assert first["stats"]["created"] == 3 * count
    result = lab.ok(APPS, applications=applications(count))
    assert result["changed"] is False
    calls = Counter(call.path for call in lab.server.calls)
    assert set(calls.values()) == {1}, calls
    assert (len(lab.server.calls), lab.server.connections) == (9, 1)
    assert result["stats"]["requests"] == 9
    print(f"{count} applications: first run {first['stats']['requests']} requests, no change 9")


def test_more_than_a_page_is_read_to_its_end(lab):
    for number in range(230):
        lab.api.add("groups", name=f"group-{number}")
    result = lab.ok(GROUPS, groups=[{"name": f"group-{number}"} for number in range(230)])
    assert result["changed"] is False
    lists = [call.query for call in lab.server.calls if call.path == "/core/groups/"]
    assert [query.get("page") for query in lists] == [None, "2", "3"]
    assert {query["page_size"] for query in lists} == {"100"}


@pytest.mark.parametrize("name", MODULES)
def test_check_mode_tells_what_the_run_does_and_writes_nothing(lab, name):
    options = prepared(lab, name)
    before = lab.snapshot()
    checked = lab.ok(name, check=True, **options)
    assert lab.server.writes() == []
    assert lab.snapshot() == before
    done = lab.ok(name, **options)
    assert checked["changed"] == done["changed"] == (name != INFO)
    if name != INFO:
        assert actions(checked) == actions(done)
        assert checked["diff"] == done["diff"]
        assert checked["diff"]["before"] != checked["diff"]["after"]
        again = lab.ok(name, **options)
        assert (again["changed"], lab.server.writes()) == (False, [])


def prepared(lab, name):
    """Return the options of a module's first example, with what it refers to in place."""
    task = yaml.safe_load(module(name).EXAMPLES)[0]
    options = task[f"kitestacks.homelab.{name}"]
    del options["url"], options["token"]
    if name == OUTPOSTS:
        provider(lab, "directory", "ldap")
        provider(lab, "uptime", "proxy")
    return options


# -- the traps of the API --------------------------------------------------------------------------------------------


def test_an_empty_405_is_a_failure_of_the_server_and_is_repeated(lab, waits):
    provider(lab, "directory", "ldap")
    lab.ok(OUTPOSTS, outposts=[{"name": "o", "type": "ldap", "providers": ["directory"]}])
    lab.api.quirks.outpost_races = 2
    result = lab.ok(OUTPOSTS, outposts=[{"name": "o", "state": "absent"}])
    assert [call.status for call in lab.server.writes()] == [405, 405, 204]
    assert len(waits) == 2
    assert actions(result) == [("outpost", "o", "deleted")]


def test_an_empty_405_that_stays_is_said_to_be_what_it_is(lab):
    provider(lab, "directory", "ldap")
    lab.ok(OUTPOSTS, outposts=[{"name": "o", "type": "ldap", "providers": ["directory"]}])
    lab.api.quirks.outpost_races = 1000
    result = lab.run(OUTPOSTS, outposts=[{"name": "o", "state": "absent"}], retries=1)
    assert "Authentik failed while it handled the request" in result["msg"]
    assert result["failed_items"][0]["error"]["status"] == 405


def test_bindings_have_no_uniqueness_and_doubles_are_taken_away(lab):
    group = lab.api.add("groups", name="household")
    other = lab.api.add("groups", name="other")
    lab.ok(APPS, applications=[{"slug": "a", "name": "A"}])
    target = lab.api.find("applications", slug="a")["pk"]
    for _number in range(3):
        lab.api.add("bindings", target=target, group=group["pk"], order=7)
    lab.api.add("bindings", target=target, group=other["pk"], order=0)
    result = lab.ok(APPS, applications=[{"slug": "a", "groups": ["household"]}])
    assert [action for _kind, _key, action in actions(result)] == ["deleted"] * 3
    left = [row for row in lab.api.store.rows("bindings") if row["target"] == target]
    assert [(row["group"], row["order"]) for row in left] == [(group["pk"], 7)]


def test_bindings_of_kinds_that_were_not_declared_stay(lab):
    user = lab.api.add("users", username="robin", name="Robin")
    policy = lab.api.add_policy("office hours")
    lab.ok(APPS, applications=[{"slug": "a", "name": "A"}])
    target = lab.api.find("applications", slug="a")["pk"]
    lab.api.add("bindings", target=target, user=user["pk"], order=0)
    lab.api.add("bindings", target=target, policy=policy["pk"], order=1)
    assert lab.ok(APPS, applications=[{"slug": "a", "groups": []}])["changed"] is False
    assert len(lab.ok(APPS, applications=[{"slug": "a", "policies": [], "users": []}])["results"]) == 3


def test_a_binding_is_changed_with_its_target_and_subject(lab):
    lab.api.add_policy("office hours")
    policies = [{"name": "office hours", "order": 0}]
    lab.ok(APPS, applications=[{"slug": "a", "name": "A", "policies": policies}])
    policies[0].update(order=5, negate=True)
    result = lab.ok(APPS, applications=[{"slug": "a", "policies": policies}])
    (call,) = lab.server.writes()
    assert (call.method, call.status) == ("PATCH", 200)
    assert set(call.body) == {"target", "policy", "order", "negate"}
    assert actions(result) == [("binding", "a office hours", "updated")]


def test_page_size_is_always_sent(lab):
    lab.api.add("groups", name="household")
    lab.ok(APPS, applications=applications(2))
    lists = [call for call in lab.server.calls if call.method == "GET" and "admin" not in call.path]
    assert {call.query.get("page_size") for call in lists} == {"100"}


def test_applications_that_the_token_may_not_open_are_seen(lab):
    lab.api.add("groups", name="household")
    lab.ok(APPS, applications=applications(1))
    assert lab.ok(APPS, applications=applications(1))["changed"] is False
    call = next(call for call in lab.server.calls if call.path == "/core/applications/")
    assert call.query["superuser_full_list"] == "true"


def test_a_default_provider_has_scopes_a_key_and_grants():
    with Lab("2026.5.6") as lab:
        lab.ok(PROVIDERS, providers=[{"name": "p"}])
        stored = lab.api.find("oauth2", name="p")
        scopes = {row["pk"]: row["scope_name"] for row in lab.api.store.rows("scope_mappings")}
        assert {scopes[pk] for pk in stored["property_mappings"]} == {"openid", "email", "profile"}
        assert stored["signing_key"] == lab.api.store.rows("certificates")[0]["pk"]
        assert stored["grant_types"] == ["authorization_code", "refresh_token"]


@pytest.mark.parametrize(("version", "sent"), [("2025.12.1", False), ("2026.2.2", False), ("2026.5.0-rc1", True)])
def test_grant_types_are_sent_from_2026_5_on(version, sent):
    with Lab(version) as lab:
        lab.ok(PROVIDERS, providers=[{"name": "p", "redirect_uris": [{"url": "https://a.test/"}]}])
        (call,) = lab.server.writes()
        assert ("grant_types" in call.body) is sent
        assert ("redirect_uri_type" in call.body["redirect_uris"][0]) is sent
        assert (
            lab.ok(PROVIDERS, providers=[{"name": "p", "redirect_uris": [{"url": "https://a.test/"}]}])["changed"]
            is False
        )


def test_a_provider_of_an_older_server_gets_its_grants_after_the_upgrade():
    with Lab("2026.2.2") as lab:
        lab.ok(PROVIDERS, providers=[{"name": "p"}])
        lab.api.version_string = "2026.5.6"
        row = lab.api.find("oauth2", name="p")
        lab.api.store.put("oauth2", str(row["pk"]), {**row, "grant_types": []})
        assert lab.ok(PROVIDERS, providers=[{"name": "p"}])["results"][0]["changes"] == ["grant_types"]


def test_a_field_of_a_newer_server_is_refused_by_name():
    with Lab("2025.10.3") as lab:
        result = lab.run(GROUPS, groups=[{"name": "a"}, {"name": "g", "parents": ["a"]}])
        assert result["msg"] == "groups: g: parents: needs Authentik 2025.12, the server is 2025.10.3"


def test_unknown_fields_of_a_newer_server_are_tolerated(lab, monkeypatch):
    lab.server.contract = None
    render = lab.api.render

    def newer(kind, row, query):
        return {**render(kind, row, query), "field_of_2027": {"a": 1}}

    monkeypatch.setattr(lab.api, "render", newer)
    lab.api.add("groups", name="household")
    assert lab.ok(APPS, applications=applications(2))["changed"]
    assert lab.ok(APPS, applications=applications(2))["changed"] is False


def test_equal_durations_are_no_change(lab):
    lab.ok(PROVIDERS, providers=[{"name": "p", "access_token_validity": "hours=1;minutes=30"}])
    assert lab.ok(PROVIDERS, providers=[{"name": "p", "access_token_validity": "minutes=90"}])["changed"] is False
    assert lab.ok(PROVIDERS, providers=[{"name": "p", "access_token_validity": "minutes=91"}])["changed"] is True


def test_the_order_of_lists_is_no_change(lab):
    uris = [{"url": "https://a.test/"}, {"url": "https://b.test/"}]
    scopes = ["email", "openid"]
    lab.ok(PROVIDERS, providers=[{"name": "p", "redirect_uris": uris, "property_mappings": scopes}])
    again = {"name": "p", "redirect_uris": uris[::-1], "property_mappings": scopes[::-1]}
    assert lab.ok(PROVIDERS, providers=[again])["changed"] is False


def test_line_ends_around_a_text_are_no_change(lab):
    mapping = {"name": "m", "scope_name": "s", "expression": "return {}\n\n"}
    lab.ok(MAPPINGS, scope_mappings=[mapping])
    assert lab.ok(MAPPINGS, scope_mappings=[mapping])["changed"] is False


def test_a_scope_mapping_is_named_by_name_scope_or_managed_id(lab):
    ids = ["openid", "goauthentik.io/providers/oauth2/scope-email", "authentik default OAuth Mapping: OpenID 'profile'"]
    lab.ok(PROVIDERS, providers=[{"name": "p", "property_mappings": ids}])
    assert lab.ok(PROVIDERS, providers=[{"name": "p"}])["changed"] is False


def test_attributes_of_others_stay(lab):
    lab.api.add("groups", name="g", attributes={"theirs": {"a": 1}, "ours": 1})
    lab.ok(GROUPS, groups=[{"name": "g", "attributes": {"ours": 2, "theirs": {"b": 2}}}], owner="kitestacks")
    wanted = {"theirs": {"a": 1, "b": 2}, "ours": 2, "managed_by": "kitestacks"}
    assert lab.api.find("groups", name="g")["attributes"] == wanted


# -- providers and applications --------------------------------------------------------------------------------------


def test_a_provider_that_changes_its_type_is_made_anew_and_given_back(lab):
    lab.ok(APPS, applications=[{"slug": "a", "name": "A", "provider": {"redirect_uris": []}}])
    proxy = {"type": "proxy", "mode": "forward_single", "external_host": "https://a.test"}
    result = lab.ok(APPS, applications=[{"slug": "a", "provider": proxy}])
    assert actions(result) == [
        ("OAuth2 provider", "a", "deleted"),
        ("proxy provider", "a", "created"),
        ("application", "a", "updated"),
    ]
    assert lab.api.find("applications", slug="a")["provider"] == lab.api.find("proxy", name="a")["pk"]
    assert lab.ok(APPS, applications=[{"slug": "a", "provider": proxy}])["changed"] is False


def test_providers_can_change_places(lab):
    apps = [{"slug": slug, "name": slug, "provider_name": slug} for slug in "ab"]
    provider(lab, "a")
    provider(lab, "b", "proxy")
    lab.ok(APPS, applications=apps)
    apps[0]["provider_name"], apps[1]["provider_name"] = "b", "a"
    lab.ok(APPS, applications=apps)
    assert lab.api.find("applications", slug="a")["provider"] == lab.api.find("proxy", name="b")["pk"]
    assert lab.api.find("applications", slug="b")["provider"] == lab.api.find("oauth2", name="a")["pk"]
    assert lab.ok(APPS, applications=apps)["changed"] is False


def test_an_application_of_ours_that_shall_have_no_provider_loses_the_one_it_had(lab):
    lab.api.add("groups", name="household")
    lab.ok(APPS, applications=applications(1), owner="kitestacks", purge=True)
    bare = [{"slug": "app-0", "name": "App 0", "provider_name": ""}]
    result = lab.ok(APPS, applications=bare, owner="kitestacks", purge=True)
    assert actions(result) == [("OAuth2 provider", "app-0", "deleted"), ("application", "app-0", "updated")]
    assert lab.api.store.rows("oauth2") == []
    assert lab.ok(APPS, applications=bare, owner="kitestacks", purge=True)["changed"] is False


def test_a_foreign_application_that_shall_have_no_provider_keeps_it_in_the_list(lab):
    lab.api.add("groups", name="household")
    lab.ok(APPS, applications=applications(1))
    lab.ok(APPS, applications=[{"slug": "app-0", "provider_name": ""}])
    assert [row["name"] for row in lab.api.store.rows("oauth2")] == ["app-0"]


def test_what_a_run_that_was_cut_off_left_of_a_provider_is_told_by_its_prefix(lab):
    provider(lab, "kitestacks-left")
    used = provider(lab, "kitestacks-used")
    provider(lab, "somebody's")
    lab.api.add("applications", slug="theirs", name="Theirs", provider=used["pk"])
    options = {"applications": [], "owner": "kitestacks", "purge": True, "purge_allow_empty": True}
    assert actions(lab.ok(APPS, **options)) == []
    result = lab.ok(APPS, **options, purge_name_prefix="kitestacks-")
    assert actions(result) == [("OAuth2 provider", "kitestacks-left", "deleted")]


@pytest.mark.parametrize("name", [GROUPS, USERS, MAPPINGS, BLUEPRINTS, APPS, OUTPOSTS])
def test_check_mode_before_there_is_a_server_foretells_that_all_is_new(name):
    with Lab() as lab:
        origin = lab.server.origin
    option = name.partition("_")[2]
    key = {"users": "username", "applications": "slug"}.get(option, "name")
    items = [{key: "one", **({"type": "ldap"} if option == "outposts" else {})}, {key: "two", "state": "absent"}]
    options = {"url": origin, "token": "t" * 32, option: items, "retries": 0}
    foretold = run_module(module(name).main, check=True, **options)
    assert (foretold["changed"], foretold["stats"]["created"]) == (True, 1)
    assert "Nothing answers" in str(foretold["warnings"])
    assert run_module(module(name).main, check=True, **{**options, option: items[1:]})["changed"] is False
    assert run_module(module(name).main, **options)["failed"]


def test_an_application_that_was_removed_from_the_set_takes_its_provider_and_nothing_else(lab):
    lab.api.add("groups", name="household")
    mine = provider(lab, "hand-made", client_id="hand")
    lab.api.add("applications", name="Hand made", slug="hand-made", provider=mine["pk"])
    provider(lab, "spare", "ldap")
    lab.ok(APPS, applications=applications(3), owner="kitestacks", purge=True)
    before = lab.snapshot()
    result = lab.ok(APPS, applications=applications(2), owner="kitestacks", purge=True)
    assert actions(result) == [("OAuth2 provider", "app-2", "deleted"), ("application", "app-2", "deleted")]
    after = lab.snapshot()
    gone = {kind: len(before[kind]) - len(after[kind]) for kind in before}
    assert {kind: count for kind, count in gone.items() if count} == {"oauth2": 1, "applications": 1, "bindings": 1}
    assert lab.api.find("applications", slug="hand-made")["provider"] == mine["pk"]


def test_an_application_that_is_renamed_keeps_its_client_id(lab):
    app = {"slug": "before", "name": "A", "provider": {"client_id": "c", "redirect_uris": []}}
    lab.ok(APPS, applications=[app], owner="kitestacks", purge=True)
    renamed = {**app, "slug": "after"}
    result = lab.run(APPS, applications=[renamed], owner="kitestacks")
    assert result["msg"] == "applications: after: provider: client_id: the provider 'before' has it already"
    result = lab.ok(APPS, applications=[renamed], owner="kitestacks", purge=True)
    assert actions(result)[0] == ("OAuth2 provider", "before", "deleted")
    assert [row["slug"] for row in lab.api.store.rows("applications")] == ["after"]
    assert lab.ok(APPS, applications=[renamed], owner="kitestacks", purge=True)["changed"] is False


def test_check_mode_prints_the_delete_list(lab):
    lab.api.add("groups", name="household")
    lab.ok(APPS, applications=applications(3), owner="kitestacks")
    options = {"applications": [], "owner": "kitestacks", "purge": True, "purge_allow_empty": True}
    result = lab.ok(APPS, check=True, **options)
    assert [key for kind, key, _action in actions(result) if kind == "application"] == ["app-0", "app-1", "app-2"]
    assert "app-2" in result["diff"]["before"]
    assert lab.server.writes() == []


def test_purging_never_takes_what_authentik_made(lab):
    for name, options in (
        (GROUPS, {"groups": []}),
        (USERS, {"users": []}),
        (MAPPINGS, {"scope_mappings": []}),
        (OUTPOSTS, {"outposts": []}),
        (BLUEPRINTS, {"blueprints": []}),
    ):
        for prefix in ("a", "authentik", "ak", "Default", "Anonymous"):
            result = lab.ok(name, purge=True, purge_allow_empty=True, purge_name_prefix=prefix, **options)
            assert result["changed"] is False


def test_a_secret_is_compared_and_never_shown(lab):
    app = applications(1)[0] | {"groups": []}
    lab.ok(APPS, applications=[app])
    app["provider"]["client_secret"] = "another-secret"
    result = lab.ok(APPS, applications=[app])
    assert result["results"][0]["changes"] == ["client_secret"]
    assert "********" in result["diff"]["after"]
    assert "secret-of-0" not in str(result)
    assert "another-secret" not in str(result)


# -- users and tokens ------------------------------------------------------------------------------------------------


def test_a_password_is_set_once(lab):
    person = {"username": "robin", "password": "first-password"}
    lab.ok(USERS, users=[person])
    assert lab.api.user("robin")["password"] == "first-password"
    person["password"] = "second-password"
    assert lab.ok(USERS, users=[person])["changed"] is False
    assert lab.ok(USERS, users=[{**person, "update_password": "always"}])["changed"] is True
    assert lab.api.user("robin")["password"] == "second-password"


def test_a_password_that_was_not_set_because_the_run_was_cut_off_is_set_by_the_next(lab):
    lab.server.fault(status=403, body={"detail": "no"}, path="set_password", times=1)
    result = lab.run(USERS, users=[{"username": "robin", "password": "first-password"}])
    assert [line["kind"] for line in result["applied"]] == ["user"]
    assert [line["kind"] for line in result["failed_items"]] == ["password"]
    assert lab.ok(USERS, users=[{"username": "robin", "password": "first-password"}])["changed"] is True
    assert lab.api.user("robin")["password"] == "first-password"
    assert lab.ok(USERS, users=[{"username": "robin", "password": "first-password"}])["changed"] is False


def test_a_service_account_with_an_app_password(lab):
    token = {"identifier": "searcher", "key": "app-password-1"}
    account = {"username": "ldap-search", "type": "service_account", "tokens": [token]}
    lab.ok(USERS, users=[account])
    stored = lab.api.find("tokens", identifier="searcher")
    user = lab.api.user("ldap-search")
    assert (stored["key"], stored["intent"], stored["user"]) == ("app-password-1", "app_password", user["pk"])
    token["key"] = "app-password-2"
    assert actions(lab.ok(USERS, users=[account])) == [("token key", "searcher", "updated")]
    assert lab.ok(USERS, users=[account])["changed"] is False
    token["state"] = "absent"
    assert actions(lab.ok(USERS, users=[account])) == [("token", "searcher", "deleted")]


# -- outposts --------------------------------------------------------------------------------------------------------


def test_the_configuration_is_completed_on_creation_and_merged_on_change(lab):
    provider(lab, "directory", "ldap")
    outpost = {"name": "o", "type": "ldap", "providers": ["directory"], "config": {"log_level": "debug"}}
    lab.ok(OUTPOSTS, outposts=[outpost])
    config = lab.api.find("outposts", name="o")["config"]
    assert (config["log_level"], config["refresh_interval"]) == ("debug", "minutes=5")
    outpost["config"] = {"authentik_host": "https://auth.example.test/"}
    assert lab.ok(OUTPOSTS, outposts=[outpost])["results"][0]["changes"] == ["config.authentik_host"]
    config = lab.api.find("outposts", name="o")["config"]
    assert (config["log_level"], config["authentik_host"]) == ("debug", "https://auth.example.test/")


def test_two_clients_can_attach_to_the_embedded_outpost_at_once(lab):
    """Another client writes its provider between our list and our write: neither is lost."""
    mine, theirs = provider(lab, "mine", "proxy"), provider(lab, "theirs", "proxy")
    wrote = []

    def interfere(request: Request) -> None:
        outpost = lab.api.find("outposts", managed=EMBEDDED)
        if request.method == "GET" and request.path == f"/outposts/instances/{outpost['pk']}/" and not wrote:
            wrote.append(True)
            outpost["providers"] = [theirs["pk"]]
            lab.api.store.put("outposts", outpost["pk"], outpost)

    lab.api.quirks.before = interfere
    lab.ok(OUTPOSTS, outposts=[{"embedded": True, "providers": ["mine"]}])
    assert wrote
    assert set(lab.api.find("outposts", managed=EMBEDDED)["providers"]) == {mine["pk"], theirs["pk"]}


def test_an_attachment_that_another_client_overwrites_is_written_again(lab):
    mine, theirs = provider(lab, "mine", "proxy"), provider(lab, "theirs", "proxy")
    seen: list[str] = []

    def interfere(request: Request) -> None:
        outpost = lab.api.find("outposts", managed=EMBEDDED)
        if request.path == f"/outposts/instances/{outpost['pk']}/":
            seen.append(request.method)
            if seen == ["GET", "PATCH", "GET"]:  # right after our first write
                outpost["providers"] = [theirs["pk"]]
                lab.api.store.put("outposts", outpost["pk"], outpost)

    lab.api.quirks.before = interfere
    lab.ok(OUTPOSTS, outposts=[{"embedded": True, "providers": ["mine"]}])
    assert seen.count("PATCH") == 2
    assert set(lab.api.find("outposts", managed=EMBEDDED)["providers"]) == {mine["pk"], theirs["pk"]}


def test_the_embedded_outpost_keeps_what_others_attached(lab):
    theirs = provider(lab, "theirs", "proxy")
    provider(lab, "mine", "proxy")
    outpost = lab.api.find("outposts", managed=EMBEDDED)
    lab.api.store.put("outposts", outpost["pk"], {**outpost, "providers": [theirs["pk"]]})
    lab.ok(OUTPOSTS, outposts=[{"embedded": True, "providers": ["mine"]}])
    assert theirs["pk"] in lab.api.find("outposts", managed=EMBEDDED)["providers"]
    lab.ok(OUTPOSTS, outposts=[{"embedded": True, "providers": ["mine"], "exclusive_providers": True}])
    assert theirs["pk"] not in lab.api.find("outposts", managed=EMBEDDED)["providers"]


def test_the_token_of_an_outpost_is_ours_and_the_search_right_is_granted_once(lab):
    directory = provider(lab, "directory", "ldap")
    lab.api.add("users", username="searcher", name="s")
    search = {"role": "ldap-search", "users": ["searcher"], "groups": ["authentik Read-only"]}
    outpost = {"name": "o", "type": "ldap", "providers": ["directory"], "token": "outpost-key-1", "search": search}
    lab.ok(OUTPOSTS, outposts=[outpost])
    stored = lab.api.find("outposts", name="o")
    assert lab.api.find("tokens", identifier=f"ak-outpost-{stored['pk']}-api")["key"] == "outpost-key-1"
    (permission,) = lab.api.store.rows("permissions")
    role = lab.api.find("roles", name="ldap-search")
    assert (permission["role"], permission["object_pk"]) == (role["pk"], str(directory["pk"]))
    assert lab.api.user("searcher")["roles"] == [role["pk"]]
    assert len(lab.api.find("groups", name="authentik Read-only")["roles"]) == 2
    assert lab.ok(OUTPOSTS, outposts=[outpost])["changed"] is False


# -- blueprints ------------------------------------------------------------------------------------------------------


def test_a_blueprint_is_waited_for(lab, waits):
    lab.api.quirks.blueprint_polls = 5
    result = lab.ok(BLUEPRINTS, blueprints=[{"name": "b", "content": CONTENT}])
    assert actions(result) == [("blueprint", "b", "created"), ("blueprint run", "b", "updated")]
    assert lab.api.find("blueprints", name="b")["status"] == "successful"
    assert len(waits) >= 4
    assert lab.ok(BLUEPRINTS, blueprints=[{"name": "b", "content": CONTENT}])["changed"] is False


def test_a_blueprint_that_fails_fails_the_task_and_is_tried_again_when_mended(lab):
    broken = CONTENT.replace("authentik_core.group", "nonsense")
    result = lab.run(BLUEPRINTS, blueprints=[{"name": "b", "content": broken}])
    assert "status error" in result["msg"]
    assert lab.run(BLUEPRINTS, blueprints=[{"name": "b", "content": broken}]).get("failed")
    assert lab.ok(BLUEPRINTS, blueprints=[{"name": "b", "content": CONTENT}])["changed"] is True
    assert lab.ok(BLUEPRINTS, blueprints=[{"name": "b", "content": CONTENT}])["changed"] is False


def test_a_blueprint_that_no_worker_applies_is_given_up(lab):
    lab.api.quirks.blueprint_polls = 10_000
    result = lab.run(BLUEPRINTS, blueprints=[{"name": "b", "content": CONTENT}], wait_timeout=3)
    assert "not applied within 3 s" in result["msg"]
    assert "worker" in result["msg"]


@pytest.mark.parametrize("write", [1, 2])
def test_a_blueprint_that_was_written_but_not_applied_is_applied_by_the_next_run(lab, write):
    lab.ok(BLUEPRINTS, blueprints=[{"name": "b", "content": CONTENT, "context": {"a": 1}}])
    lab.server.fault(status=403, body={"detail": "no"}, write=write)
    assert lab.run(BLUEPRINTS, blueprints=[{"name": "b", "context": {"a": 2}}]).get("failed")
    lab.server.faults.clear()
    lab.ok(BLUEPRINTS, blueprints=[{"name": "b", "context": {"a": 2}}])
    assert lab.server.count("POST", "apply/$") == 1
    assert lab.ok(BLUEPRINTS, blueprints=[{"name": "b", "context": {"a": 2}}])["changed"] is False


# -- readiness -------------------------------------------------------------------------------------------------------


def test_info_waits_for_flows_and_not_for_a_port(lab, waits):
    lab.api.quirks.flows_hidden_for = 4
    result = lab.ok(INFO, wait=True)
    assert result["ready"] is True
    assert len(waits) == 4
    assert set(result["flows"]) == {row["slug"] for row in lab.api.store.rows("flows")} & set(result["flows"])
    assert len(result["flows"]) == 3


def test_info_says_what_is_missing(lab):
    lab.api.quirks.flows_hidden_for = 1
    result = lab.ok(INFO)
    assert result["ready"] is False
    assert "flow default-authentication-flow" in result["missing"]
    assert (result["version"], result["user"]["is_superuser"], result["changed"]) == ("2026.2.2", True, False)


def test_info_waits_while_a_proxy_answers_and_the_token_is_not_valid_yet(lab):
    lab.server.fault(status=502, body="<html><body><h1>502 Bad Gateway</h1></body></html>", times=6)
    lab.server.fault(status=404, body="<html>not yet</html>", times=1)
    lab.server.fault(status=403, body={"detail": "Token invalid/expired"}, times=2)
    assert lab.ok(INFO, wait=True)["ready"] is True


def test_info_gives_up_and_says_why(lab):
    lab.api.quirks.flows_hidden_for = 10_000
    result = lab.run(INFO, wait=True, wait_timeout=0)
    assert re.search(r"not ready within 0 s; missing: flow default-authentication-flow", result["msg"])


def test_a_reference_to_what_an_earlier_task_will_make_is_a_warning_in_check_mode(lab):
    result = lab.ok(APPS, check=True, applications=applications(1))
    assert [entry for entry in result["warnings"] if "household" in str(entry)]
    assert lab.run(APPS, applications=applications(1)).get("failed")
    search = {"role": "ldap-search", "users": ["searcher"]}
    outpost = {"name": "o", "type": "ldap", "providers": ["directory"], "token": "key-of-o", "search": search}
    result = lab.ok(OUTPOSTS, check=True, outposts=[outpost])
    assert ("user", "searcher", "updated") in actions(result)
    assert all(any(name in str(entry) for entry in result["warnings"]) for name in ("directory", "searcher"))
    assert lab.run(OUTPOSTS, outposts=[outpost]).get("failed")


def test_a_provider_is_documented_alike_in_both_modules():
    """Fragments do not reach into suboptions, so this part stands twice."""

    def suboptions(name, *path):
        found = yaml.safe_load(module(name).DOCUMENTATION)["options"]
        for part in path:
            found = found[part]["suboptions"]
        return {key: value for key, value in found.items() if key not in ("name", "state")}

    own = str(suboptions(PROVIDERS, "providers"))
    assert own == str(suboptions(APPS, "applications", "provider")).replace("applications[].provider.", "providers[].")
