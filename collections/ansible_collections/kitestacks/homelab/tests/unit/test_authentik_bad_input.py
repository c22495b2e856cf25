# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mistakes are refused before anything is written, each with one message that names the item and the option."""

from __future__ import annotations

import typing as t

import pytest

from ._authentik_runs import Lab

APPS, GROUPS, USERS = "authentik_applications", "authentik_groups", "authentik_users"
PROVIDERS, OUTPOSTS, MAPPINGS = "authentik_providers", "authentik_outposts", "authentik_scope_mappings"
BLUEPRINTS = "authentik_blueprints"

OAUTH2: dict[str, t.Any] = {"name": "p", "redirect_uris": [{"url": "https://a.example.test/cb"}]}
PROXY: dict[str, t.Any] = {"name": "p", "type": "proxy", "mode": "forward_single", "external_host": "https://a.test"}
APP: dict[str, t.Any] = {"slug": "a", "name": "A"}
SCOPE: dict[str, t.Any] = {"name": "m", "scope_name": "email", "expression": "return {}"}


def provider(**values: t.Any) -> dict[str, t.Any]:
    return {"providers": [{**OAUTH2, **values}]}


def proxy(**values: t.Any) -> dict[str, t.Any]:
    return {"providers": [{**PROXY, **values}]}


def app(**values: t.Any) -> dict[str, t.Any]:
    return {"applications": [{**APP, **values}]}


def outpost(**values: t.Any) -> dict[str, t.Any]:
    return {"outposts": [{"name": "o", "type": "ldap", "providers": ["there-ldap"], **values}]}


def user(**values: t.Any) -> dict[str, t.Any]:
    return {"users": [{"username": "u", **values}]}


CASES: dict[str, tuple[str, dict[str, t.Any], tuple[str, ...]]] = {
    # providers
    "unknown flow": (PROVIDERS, provider(authorization_flow="defaultflow"), ("p", "authorization_flow", "no flow")),
    "nearly a flow": (
        PROVIDERS,
        provider(invalidation_flow="default-provider-invalidation"),
        ("p", "invalidation_flow", "did you mean 'default-provider-invalidation-flow'?"),
    ),
    "unknown scope mapping": (PROVIDERS, provider(property_mappings=["opnid"]), ("p", "property_mappings", "opnid")),
    "scope listed twice": (
        PROVIDERS,
        provider(property_mappings=["openid", "goauthentik.io/providers/oauth2/scope-openid"]),
        ("p", "property_mappings", "twice"),
    ),
    "unknown certificate": (PROVIDERS, provider(signing_key="none"), ("p", "signing_key", "no certificate")),
    "redirect URI that is no URL": (
        PROVIDERS,
        provider(redirect_uris=[{"url": "a.example.test/cb"}]),
        ("p", "redirect_uris", "is no URL"),
    ),
    "redirect URI with a wildcard": (
        PROVIDERS,
        provider(redirect_uris=[{"url": "https://*.example.test/cb"}]),
        ("p", "redirect_uris", "matching_mode=regex"),
    ),
    "redirect URI with a broken pattern": (
        PROVIDERS,
        provider(redirect_uris=[{"url": "https://(a", "matching_mode": "regex"}]),
        ("p", "redirect_uris", "no regular expression"),
    ),
    "redirect URI twice": (
        PROVIDERS,
        provider(redirect_uris=[{"url": "https://a.test/"}, {"url": "https://a.test/"}]),
        ("p", "redirect_uris", "twice"),
    ),
    "logout URI on an older server": (
        PROVIDERS,
        provider(redirect_uris=[{"url": "https://a.test/", "redirect_uri_type": "logout"}]),
        ("p", "redirect_uris", "2026.5", "2026.2.2"),
    ),
    "unknown matching mode": (
        PROVIDERS,
        provider(redirect_uris=[{"url": "https://a.test/", "matching_mode": "glob"}]),
        ("matching_mode", "glob"),
    ),
    "duration that is none": (PROVIDERS, provider(access_token_validity="1h"), ("p", "access_token_validity", "1h")),
    "unknown grant": (PROVIDERS, provider(grant_types=["magic"]), ("grant_types", "magic")),
    "unknown type": (PROVIDERS, provider(type="saml"), ("type", "saml")),
    "option of another type": (PROVIDERS, provider(base_dn="dc=a"), ("p", "base_dn", "oauth2")),
    "LDAP provider with scopes": (
        PROVIDERS,
        {"providers": [{"name": "l", "type": "ldap", "property_mappings": ["openid"]}]},
        ("l", "property_mappings", "ldap"),
    ),
    "base_dn that is none": (
        PROVIDERS,
        {"providers": [{"name": "l", "type": "ldap", "base_dn": "example.org"}]},
        ("l", "base_dn", "example.org"),
    ),
    "uid number": (
        PROVIDERS,
        {"providers": [{"name": "l", "type": "ldap", "uid_start_number": 0}]},
        ("l", "uid_start_number"),
    ),
    "proxy without a host": (PROVIDERS, proxy(external_host=None), ("p", "external_host", "needs")),
    "proxy host without a scheme": (PROVIDERS, proxy(external_host="a.test"), ("p", "external_host", "a.test")),
    "forwarding proxy without a target": (PROVIDERS, proxy(mode="proxy"), ("p", "internal_host")),
    "broken path pattern": (PROVIDERS, proxy(skip_path_regex="^/a\n^/(b"), ("p", "skip_path_regex", "^/(b")),
    "provider declared twice": (PROVIDERS, {"providers": [OAUTH2, PROXY]}, ("p", "twice", "items 1, 2")),
    "provider without a name": (PROVIDERS, {"providers": [{"type": "proxy"}]}, ("name",)),
    "provider with an empty name": (PROVIDERS, provider(name=" "), ("item 1", "name", "empty")),
    "client id twice": (
        PROVIDERS,
        {"providers": [{**OAUTH2, "client_id": "c"}, {"name": "q", "client_id": "c"}]},
        ("q", "client_id", "p"),
    ),
    "client id of another": (PROVIDERS, provider(client_id="there"), ("p", "client_id", "'there'")),
    # applications
    "unknown group": (APPS, app(groups=["kitestack-users"]), ("a", "groups", "'kitestack-users'")),
    "group listed twice": (APPS, app(groups=["there-group", "there-group"]), ("a", "groups", "twice")),
    "unknown user": (APPS, app(users=["nobody"]), ("a", "users", "nobody")),
    "unknown policy": (APPS, app(policies=[{"name": "none"}]), ("a", "policies", "none")),
    "slug with a blank": (APPS, {"applications": [{"slug": "bad slug", "name": "B"}]}, ("bad slug", "slug")),
    "application declared twice": (APPS, {"applications": [APP, APP]}, ("a", "twice")),
    "new application without a name": (APPS, {"applications": [{"slug": "b"}]}, ("b", "name")),
    "launch URL that is none": (APPS, app(meta_launch_url="a.test"), ("a", "meta_launch_url")),
    "two providers for one application": (
        APPS,
        app(provider=OAUTH2, provider_name="there"),
        ("provider", "provider_name", "mutually exclusive"),
    ),
    "one provider for two applications": (
        APPS,
        {
            "applications": [
                {**APP, "provider_name": "there-proxy"},
                {"slug": "b", "name": "B", "provider_name": "there-proxy"},
            ]
        },
        ("b", "provider", "'there-proxy'", "a too"),
    ),
    "provider of a foreign application": (APPS, app(provider_name="there"), ("a", "'there'", "'there-app'")),
    "unknown provider": (APPS, app(provider_name="none"), ("a", "provider_name", "none")),
    "bad provider within": (APPS, app(provider={"signing_key": "none"}), ("a", "provider", "signing_key", "none")),
    "hidden on an older server": (APPS, app(meta_hide=True), ("a", "meta_hide", "2026.5")),
    "publisher and owner": (
        APPS,
        {**app(meta_publisher="Me"), "owner": "kitestacks"},
        ("a", "meta_publisher", "owner"),
    ),
    "purge without a marker": (APPS, {**app(), "purge": True}, ("purge", "owner", "purge_name_prefix")),
    "purge with an empty set": (
        APPS,
        {"applications": [], "purge": True, "owner": "kitestacks"},
        ("applications", "empty", "purge_allow_empty"),
    ),
    "name outside the prefix": (
        GROUPS,
        {"groups": [{"name": "g"}], "purge": True, "purge_name_prefix": "k-"},
        ("g", "purge_name_prefix"),
    ),
    # groups
    "unknown parent": (GROUPS, {"groups": [{"name": "g", "parents": ["none"]}]}, ("g", "parents", "none")),
    "group in a circle": (
        GROUPS,
        {"groups": [{"name": "g", "parents": ["h"]}, {"name": "h", "parents": ["g"]}]},
        ("g", "parents", "ancestor"),
    ),
    "parent that is to go": (
        GROUPS,
        {"groups": [{"name": "g", "parents": ["h"]}, {"name": "h", "state": "absent"}]},
        ("g", "parents", "'h'"),
    ),
    "unknown member": (GROUPS, {"groups": [{"name": "g", "users": ["none"]}]}, ("g", "users", "none")),
    "unknown role": (GROUPS, {"groups": [{"name": "g", "roles": ["none"]}]}, ("g", "roles", "none")),
    "attributes as a list": (GROUPS, {"groups": [{"name": "g", "attributes": ["a"]}]}, ("attributes",)),
    "built-in group": (
        GROUPS,
        {"groups": [{"name": "authentik Admins", "state": "absent"}]},
        ("authentik Admins", "state"),
    ),
    # users
    "unknown group of a user": (USERS, user(groups=["none"]), ("u", "groups", "none")),
    "e-mail address": (USERS, user(email="u@home"), ("u", "email")),
    "user type": (USERS, user(type="robot"), ("type", "robot")),
    "user declared twice": (USERS, {"users": [{"username": "u"}, {"username": "u"}]}, ("u", "twice")),
    "empty password": (USERS, user(password=""), ("u", "password")),
    "user name too long": (USERS, {"users": [{"username": "u" * 151}]}, ("username", "150")),
    "token without a key": (USERS, user(tokens=[{"identifier": "t"}]), ("key", "state")),
    "token name": (USERS, user(tokens=[{"identifier": "a b", "key": "k1"}]), ("u", "a b", "identifier")),
    "token of somebody else": (
        USERS,
        user(tokens=[{"identifier": "authentik-bootstrap-token", "key": "k1"}]),
        ("u", "authentik-bootstrap-token", "akadmin"),
    ),
    "ourselves": (USERS, {"users": [{"username": "akadmin", "state": "absent"}]}, ("akadmin", "state")),
    # outposts
    "outpost without a name": (OUTPOSTS, {"outposts": [{"type": "ldap"}]}, ("item 1", "name")),
    "outpost without providers": (OUTPOSTS, outpost(providers=[]), ("o", "providers", "empty")),
    "outpost of the wrong type": (OUTPOSTS, outpost(providers=["there"]), ("o", "providers", "'there'", "ldap")),
    "outpost with an unknown provider": (OUTPOSTS, outpost(providers=["none"]), ("o", "providers", "none")),
    "outpost without a type": (OUTPOSTS, {"outposts": [{"name": "o"}]}, ("o", "type")),
    "search by an unknown user": (
        OUTPOSTS,
        outpost(search={"role": "r", "users": ["none"]}),
        ("o", "search", "users", "none"),
    ),
    "search of a proxy": (
        OUTPOSTS,
        {"outposts": [{"embedded": True, "search": {"role": "r"}}]},
        ("search", "ldap"),
    ),
    "embedded outpost with a name": (OUTPOSTS, {"outposts": [{"embedded": True, "name": "o"}]}, ("name", "embedded")),
    "embedded outpost that is to go": (
        OUTPOSTS,
        {"outposts": [{"embedded": True, "state": "absent"}]},
        ("embedded", "state"),
    ),
    # scope mappings and blueprints
    "mapping without an expression": (
        MAPPINGS,
        {"scope_mappings": [{"name": "m", "scope_name": "s"}]},
        ("m", "expression"),
    ),
    "built-in mapping": (
        MAPPINGS,
        {"scope_mappings": [{**SCOPE, "name": "authentik default OAuth Mapping: OpenID 'email'"}]},
        ("email", "Authentik's own"),
    ),
    "blueprint without content": (BLUEPRINTS, {"blueprints": [{"name": "b"}]}, ("b", "content", "path")),
    "blueprint of another version": (
        BLUEPRINTS,
        {"blueprints": [{"name": "b", "content": "version: 9\nentries: []\n"}]},
        ("b", "content", "version: 1"),
    ),
    "blueprint with both": (
        BLUEPRINTS,
        {"blueprints": [{"name": "b", "content": "version: 1\n", "path": "a.yaml"}]},
        ("content", "path", "mutually exclusive"),
    ),
}


@pytest.fixture(scope="module")
def lab():
    with Lab() as running:
        flow = running.api.find("flows", slug="default-provider-invalidation-flow")["pk"]
        flows = {"authorization_flow": flow, "invalidation_flow": flow}
        there = running.api.add("oauth2", name="there", client_id="there", redirect_uris=[], **flows)
        running.api.add("ldap", name="there-ldap", **flows)
        running.api.add("proxy", name="there-proxy", external_host="https://p.test", **flows)
        running.api.add("applications", name="There", slug="there-app", provider=there["pk"])
        running.api.add("groups", name="there-group")
        yield running


@pytest.mark.parametrize("case", CASES)
def test_is_refused_before_any_write(lab, case):
    name, options, words = CASES[case]
    before = lab.snapshot()
    result = lab.run(name, **options)
    assert result.get("failed"), "it was accepted"
    assert [word for word in words if word not in result["msg"]] == [], result["msg"]
    assert "\n" not in result["msg"]
    assert lab.server.writes() == []
    assert lab.snapshot() == before


def test_there_are_enough_of_them():
    assert len(CASES) >= 30


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "auth.example.test"}, ("url", "auth.example.test")),
        ({"url": "http://127.0.0.1:9/"}, ("GET /admin/version/", "no answer")),
        ({"token": "wrong"}, ("403", "Token invalid/expired")),
        ({"token": ""}, ("403", "credentials were not provided")),
    ],
)
def test_a_wrong_server_or_token_is_said_at_once(lab, options, words, monkeypatch):
    monkeypatch.setattr("ansible_collections.kitestacks.homelab.plugins.module_utils._http._sleep", lambda _s: None)
    result = lab.run(GROUPS, groups=[{"name": "g"}], **options)
    assert result.get("failed")
    assert all(word in result["msg"] for word in words), result["msg"]
    assert len(lab.server.calls) <= 1


def test_a_wrong_path_is_no_missing_object(lab):
    result = lab.run(GROUPS, groups=[{"name": "g"}], url=f"{lab.server.origin}/auth")
    assert "url" in result["msg"]
    assert "404" in result["msg"]
