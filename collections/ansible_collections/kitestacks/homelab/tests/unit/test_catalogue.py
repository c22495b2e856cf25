# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalogue: joined with placement, refused when wrong, and what is derived from it."""

from __future__ import annotations

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
        ({"port": 70000}, "port is 70000; it must be from 1 to 65535"),
        ({"port": None}, "port is missing; a service with a public_name needs it"),
        ({"sign_in": None}, "sign_in is missing"),
        ({"sign_in": "saml"}, "sign_in is 'saml'; it must be one of oidc, proxy, ldap, native, public"),
        ({"failover": "maybe"}, "failover is 'maybe'; it must be one of both, first, writer"),
        ({"public_name": "Wiki"}, "public_name is 'Wiki'; it must be one label"),
        ({"public_name": "a.b"}, "public_name is 'a.b'; it must be one label"),
        ({"health_path": "status"}, "health_path is 'status'; it must begin with a slash"),
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
    assert _catalogue.required_secrets(catalogue) == ["wiki_token"]


names = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)
services = st.dictionaries(
    names,
    st.fixed_dictionaries(
        {
            "title": st.text(min_size=1, max_size=8),
            "public": st.booleans(),
            "hosts": st.lists(st.sampled_from(["monk", "kscloud1"]), unique=True),
        }
    ),
    max_size=8,
)


@given(services)
def test_every_deployed_public_service_has_exactly_one_route_on_every_host(drawn: dict[str, dict[str, object]]) -> None:
    declarations = {
        name: {
            "title": value["title"],
            "description": "d",
            "section": "s",
            "failover": "both",
            **({"public_name": name, "port": 80, "health_path": "/", "sign_in": "public"} if value["public"] else {}),
        }
        for name, value in drawn.items()
    }
    groups = {name: value["hosts"] for name, value in drawn.items()}
    catalogue = _catalogue.build(declarations, groups, "example.org")
    wanted = sorted(name for name, value in drawn.items() if value["public"] and value["hosts"])
    for host in ("monk", "kscloud1"):
        rows = _catalogue.edge_backends(catalogue, host)
        assert [row["name"] for row in rows] == wanted
        assert all(set(row["servers"]) == set(drawn[row["name"]]["hosts"]) for row in rows)
        assert all(row["servers"][0] == host for row in rows if host in row["servers"])
    assert sorted(tile["name"] for tile in _catalogue.portal_tiles(catalogue)) == wanted
    for gone in wanted:
        rest = _catalogue.build(declarations, {**groups, gone: []}, "example.org")
        assert [row["name"] for row in _catalogue.edge_backends(rest, "monk")] == [
            name for name in wanted if name != gone
        ]
