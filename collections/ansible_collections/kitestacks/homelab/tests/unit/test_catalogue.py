# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalogue: joined with placement, refused when wrong, and what is derived from it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.kitestacks.homelab.plugins.module_utils import _catalogue
from hypothesis import given
from hypothesis import strategies as st

WIKI = {
    "title": "Wiki",
    "description": "What is known",
    "section": "Knowledge",
    "public_name": "wiki",
    "port": 80,
    "health_path": "/status",
    "sign_in": "oidc",
    "failover": "writer",
    "secrets": ["wiki_token"],
    "sso": {"redirect_paths": ["/oidc/callback"], "groups": ["kitestacks-users"]},
}
GROUPS = {"wiki": ["monk", "kscloud1"], "homelab": ["monk", "kscloud1"]}


def test_a_service_is_joined_with_its_placement() -> None:
    (service,) = _catalogue.build({"wiki": WIKI}, GROUPS, "example.org")
    assert service["name"] == "wiki"
    assert service["hosts"] == ["monk", "kscloud1"]
    assert service["hostname"] == "wiki.example.org"
    assert service["icon"] == ""


@pytest.mark.parametrize("groups", [{}, {"wiki": []}])
def test_a_service_without_hosts_is_not_deployed(groups: dict[str, list[str]]) -> None:
    assert _catalogue.build({"wiki": WIKI}, groups, "example.org") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": None}, "title is missing"),
        ({"titel": "x"}, "'titel' is not a key of a service; did you mean title?"),
        ({"port": "80"}, "port is '80'; it must be a int"),
        ({"port": True}, "port is True; it must be a int"),
        ({"optional": "yes"}, "optional is 'yes'; it must be a bool"),
        ({"port": 70000}, "port is 70000; it must be from 1 to 65535"),
        ({"port": None}, "port is missing; a service with a public_name needs it"),
        ({"sign_in": None}, "sign_in is missing"),
        ({"sso": None}, "sso.redirect_paths is missing; a service with sign_in oidc needs it"),
        ({"sso": {"redirect_paths": ["cb"]}}, "sso.redirect_paths has 'cb'; a path must begin with a slash"),
        ({"sso": {"redirect_paths": "/cb"}}, "sso.redirect_paths is '/cb'; it must be a list of texts"),
        ({"sso": {**WIKI["sso"], "redirect_path": []}}, "sso.redirect_path is not for a service with sign_in oidc"),
        (
            {"sign_in": "public", "sso": {"redirect_paths": ["/a"]}},
            "sso.redirect_paths is not for a service with sign_in public",
        ),
        (
            {"sso": {**WIKI["sso"], "email_verified": "yes"}},
            "sso.email_verified is 'yes'; it must be true or false",
        ),
        ({"sso": {**WIKI["sso"], "sub_mode": "name"}}, "sso.sub_mode is 'name'; it must be one of hashed_user_id"),
        ({"sign_in": "saml"}, "sign_in is 'saml'; it must be one of oidc, proxy, ldap, native, public"),
        ({"failover": "maybe"}, "failover is 'maybe'; it must be one of both, first, writer"),
        ({"public_name": "Wiki"}, "public_name is 'Wiki'; it must be one label"),
        ({"public_name": "a.b"}, "public_name is 'a.b'; it must be one label"),
        ({"health_path": "status"}, "health_path is 'status'; it must begin with a slash"),
        (
            {"access": {"include": [{"everyone": True}], "includes": []}},
            "access.includes is not known; did you mean include?",
        ),
        ({"access": {"require": [{"email": "a@example.org"}]}}, "access.include is missing; without it nobody"),
        ({"access": {"include": ["ann"]}}, "access.include is ['ann']; it must be a list of rules"),
        ({"secrets": ["token"]}, "secrets has 'token'; a secret is named like a variable of the role, wiki_<x>"),
    ],
)
def test_a_mistake_in_a_declaration_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(_catalogue.CatalogueError) as caught:
        _catalogue.build({"wiki": {**WIKI, **change}}, GROUPS, "example.org")
    assert len(caught.value.mistakes) == 1
    assert caught.value.mistakes[0].startswith("roles/wiki/meta/service.yml: ")
    assert message in caught.value.mistakes[0]


def test_all_mistakes_are_named_at_once() -> None:
    declarations = {"wiki": {**WIKI, "port": 0}, "other": {**WIKI, "secrets": [], "sign_in": "x"}, "third": 5}
    with pytest.raises(_catalogue.CatalogueError) as caught:
        _catalogue.build(declarations, GROUPS, "example.org")
    assert len(caught.value.mistakes) == 3


def test_two_services_cannot_have_one_name() -> None:
    groups = {"wiki": ["monk"], "book": ["monk"]}
    with pytest.raises(_catalogue.CatalogueError, match="public_name 'wiki' is taken by book"):
        _catalogue.build({"wiki": WIKI, "book": {**WIKI, "secrets": []}}, groups, "example.org")


def test_a_service_that_lives_on_one_host_cannot_have_two() -> None:
    with pytest.raises(_catalogue.CatalogueError, match="group wiki has 2 hosts"):
        _catalogue.build({"wiki": {**WIKI, "failover": "first"}}, GROUPS, "example.org")


@pytest.mark.parametrize(
    ("failover", "host", "servers"),
    [
        ("both", "monk", ["monk", "kscloud1"]),
        ("both", "kscloud1", ["kscloud1", "monk"]),
        ("writer", "kscloud1", ["monk", "kscloud1"]),
        ("writer", "elsewhere", ["monk", "kscloud1"]),
    ],
)
def test_the_order_in_which_an_edge_tries_the_copies(failover: str, host: str, servers: list[str]) -> None:
    catalogue = _catalogue.build({"wiki": {**WIKI, "failover": failover}}, GROUPS, "example.org")
    (row,) = _catalogue.edge_backends(catalogue, host)
    assert row["servers"] == servers
    assert row["hostname"] == "wiki.example.org"


def test_internal_services_have_neither_route_nor_tile() -> None:
    catalogue = _catalogue.build({"db": {"title": "DB", "description": "d"}}, {"db": ["monk"]}, "example.org")
    assert len(catalogue) == 1
    assert _catalogue.edge_backends(catalogue, "monk") == []
    assert _catalogue.portal_tiles(catalogue) == []


def test_secrets_of_deployed_services_only() -> None:
    declarations = {"wiki": WIKI, "book": {**WIKI, "public_name": "book", "secrets": ["book_key"]}}
    catalogue = _catalogue.build(declarations, GROUPS, "example.org")
    assert _catalogue.required_secrets(catalogue) == ["wiki_oidc_client_secret", "wiki_token"]


def test_an_application_with_its_provider() -> None:
    catalogue = _catalogue.build({"wiki": WIKI}, GROUPS, "example.org")
    assert _catalogue.oidc_applications(catalogue, {"wiki": "hidden", "other": "x"}) == [
        {
            "slug": "wiki",
            "name": "Wiki",
            "group": "Knowledge",
            "meta_launch_url": "https://wiki.example.org",
            "groups": ["kitestacks-admins", "kitestacks-users"],
            "provider": {
                "name": "kitestacks-wiki",
                "type": "oauth2",
                "client_id": "wiki",
                "client_secret": "hidden",
                "redirect_uris": [{"url": "https://wiki.example.org/oidc/callback"}],
                "issuer_mode": "per_provider",
                "sub_mode": "hashed_user_id",
                "property_mappings": ["openid", "email", "profile"],
            },
        }
    ]


def test_a_service_that_demands_verified_addresses_and_readable_subjects() -> None:
    sso = {**WIKI["sso"], "email_verified": True, "sub_mode": "user_username"}
    catalogue = _catalogue.build({"wiki": {**WIKI, "sso": sso}}, GROUPS, "example.org")
    (row,) = _catalogue.oidc_applications(catalogue)
    assert row["provider"]["property_mappings"] == ["openid", "kitestacks-email-verified", "profile"]
    assert row["provider"]["sub_mode"] == "user_username"


@pytest.mark.parametrize(
    ("sso", "groups"),
    [
        ({}, ["kitestacks-admins", "kitestacks-users"]),
        ({"groups": []}, ["kitestacks-admins", "kitestacks-users"]),
        ({"groups": ["family"]}, ["family", "kitestacks-admins"]),
        ({"groups": ["kitestacks-admins"]}, ["kitestacks-admins"]),
    ],
)
def test_nobody_is_let_in_who_is_not_in_a_group(sso: dict[str, Any], groups: list[str]) -> None:
    """An application of Authentik without any binding is open to every account."""
    catalogue = _catalogue.build({"wiki": {**WIKI, "sign_in": "native", "sso": sso}}, GROUPS, "example.org")
    (row,) = _catalogue.oidc_applications(catalogue)
    assert row["groups"] == groups
    assert set(groups) <= set(_catalogue.sign_in_groups(catalogue))


def test_the_two_groups_that_every_homelab_has() -> None:
    assert _catalogue.sign_in_groups([]) == ["kitestacks-admins", "kitestacks-users"]


@pytest.mark.parametrize(
    ("sign_in", "entrance"), [("proxy", "authentik"), ("oidc", "wiki"), ("native", "wiki"), ("public", "wiki")]
)
def test_where_a_visitor_enters(sign_in: str, entrance: str) -> None:
    wiki = {**WIKI, "sign_in": sign_in, "sso": WIKI["sso"] if sign_in == "oidc" else None}
    (row,) = _catalogue.edge_backends(_catalogue.build({"wiki": wiki}, GROUPS, "example.org"), "monk")
    assert (row["name"], row["entrance"]) == ("wiki", entrance)


def test_what_access_guards() -> None:
    rules = {"include": [{"email_domain": "example.org"}], "session_duration": "24h"}
    wiki = {**WIKI, "access": rules}
    open_one = {**WIKI, "public_name": "open", "title": "Open", "secrets": [], "sso": WIKI["sso"]}
    groups = {"wiki": ["monk"], "open": ["monk"]}
    catalogue = _catalogue.build({"wiki": wiki, "open": open_one}, groups, "example.org")
    assert _catalogue.access_applications(catalogue, prefix="home ") == {
        "applications": [
            {"name": "home Wiki", "domain": "wiki.example.org", "policies": ["home Wiki"], "session_duration": "24h"}
        ],
        "policies": [{"name": "home Wiki", "decision": "allow", "include": rules["include"]}],
    }
    robots = {"open": {"include": [{"any_valid_service_token": True}]}, "wiki": {}}
    assert [policy["decision"] for policy in _catalogue.access_applications(catalogue, robots)["policies"]] == [
        "non_identity"
    ]
    with pytest.raises(_catalogue.CatalogueError, match=r"cloudflare_access\.wiki\.include is missing"):
        _catalogue.access_applications(catalogue, {"wiki": {"require": []}})
    with pytest.raises(_catalogue.CatalogueError, match=r"'wikki' is no deployed service .* did you mean wiki\?"):
        _catalogue.access_applications(catalogue, {"wikki": robots["open"]})


def test_a_service_behind_the_proxy() -> None:
    wiki = {**WIKI, "sign_in": "proxy", "sso": {"unauthenticated_paths": ["/api/push/", "/a.b"]}}
    (row,) = _catalogue.oidc_applications(_catalogue.build({"wiki": wiki}, GROUPS, "example.org"))
    assert row["provider"] == {
        "name": "kitestacks-wiki",
        "type": "proxy",
        "mode": "proxy",
        "external_host": "https://wiki.example.org",
        "internal_host": "http://edge:8082",
        "skip_path_regex": "^/api/push/\n^/a\\.b",
    }


def _declaration(name: str, drawn: dict[str, Any]) -> dict[str, Any]:
    """Return a valid declaration of a service from what was drawn."""
    declaration = {"title": drawn["title"], "description": "d", "section": "s", "failover": "both"}
    if drawn["sign_in"] is not None:
        declaration |= {"public_name": name, "port": 80, "health_path": "/", "sign_in": drawn["sign_in"]}
    if drawn["sign_in"] == "oidc":
        declaration["sso"] = {"redirect_paths": ["/callback"]}
    return declaration


services = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True),
    st.fixed_dictionaries(
        {
            "title": st.text(min_size=1, max_size=8),
            "sign_in": st.sampled_from([None, *_catalogue.SIGN_IN]),
            "hosts": st.lists(st.sampled_from(["monk", "kscloud1"]), unique=True),
        }
    ),
    max_size=8,
)


def _names(catalogue: _catalogue.Catalogue) -> dict[str, list[str]]:
    """Return the public names in what is derived, in order; of applications their slugs."""
    return {
        "edge": [row["hostname"] for row in _catalogue.edge_backends(catalogue, "monk")],
        "ingress": [row["hostname"] for row in _catalogue.tunnel_ingress(catalogue)],
        "records": [row["name"] for row in _catalogue.dns_records(catalogue, "id")],
        "tiles": sorted(row["url"].removeprefix("https://") for row in _catalogue.portal_tiles(catalogue)),
        "applications": [row["slug"] for row in _catalogue.oidc_applications(catalogue)],
    }


@given(services, st.randoms())
def test_all_that_is_derived_agrees(drawn: dict[str, Any], random: Any) -> None:
    """Each public name has one route, rule, record and tile, and one application or says that it is public."""
    declarations = {name: _declaration(name, value) for name, value in drawn.items()}
    groups = {name: value["hosts"] for name, value in drawn.items()}
    catalogue = _catalogue.build(declarations, groups, "example.org")
    public = sorted(name for name, value in drawn.items() if value["sign_in"] and value["hosts"])
    hostnames = [f"{name}.example.org" for name in public]
    derived = _names(catalogue)
    assert derived.pop("applications") == [name for name in public if drawn[name]["sign_in"] != "public"]
    for names in derived.values():
        assert names == hostnames

    shuffled = list(declarations.items())
    random.shuffle(shuffled)
    assert _catalogue.build(dict(shuffled), groups, "example.org") == catalogue

    for gone in public:
        rest = _names(_catalogue.build(declarations, {**groups, gone: []}, "example.org"))
        before = _names(catalogue)
        for kind, names in before.items():
            assert rest[kind] == [name for name in names if name not in (gone, f"{gone}.example.org")]


@given(services)
def test_every_edge_tries_its_own_copy_first(drawn: dict[str, Any]) -> None:
    declarations = {name: _declaration(name, value) for name, value in drawn.items()}
    groups = {name: value["hosts"] for name, value in drawn.items()}
    catalogue = _catalogue.build(declarations, groups, "example.org")
    for host in ("monk", "kscloud1"):
        for row in _catalogue.edge_backends(catalogue, host):
            assert set(row["servers"]) == set(drawn[row["name"]]["hosts"])
            assert row["servers"][0] == host or host not in row["servers"]
