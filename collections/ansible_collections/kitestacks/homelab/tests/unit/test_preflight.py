# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mistakes that are found before a host is touched: each is named, and what is right is let through."""

from __future__ import annotations

import pytest
from ansible_collections.kitestacks.homelab.plugins.module_utils import _catalogue, _preflight

SPECS = {
    "edge": {"edge_timeout": {"type": "str", "description": "d"}, "edge_peers": {"type": "dict", "description": "d"}},
    "base": {
        "base_upgrades": {"type": "bool", "description": "d"},
        "base_networks": {"type": "list", "elements": "str", "description": "d"},
    },
}
EDGE = {"title": "Edge", "description": "d", "failover": "both", "secrets": ["edge_peer_token"]}
STRONG = "x" * 32


@pytest.mark.parametrize("domain", ["example.org", "home.example.co.uk", "a-b.test"])
def test_domains_that_are_fine(domain: str) -> None:
    assert _preflight.domain_mistakes(domain) == []


@pytest.mark.parametrize(
    "domain", [None, "", "localhost", "Example.org", "exa mple.org", "-x.org", "https://x.org", "x.org."]
)
def test_domains_that_are_not(domain: object) -> None:
    assert len(_preflight.domain_mistakes(domain)) == 1


def test_groups_that_are_fine() -> None:
    groups = {"all": ["monk"], "ungrouped": [], "homelab": ["monk"], "edge": ["monk"], "vps": ["monk"]}
    assert _preflight.group_mistakes(groups, ["edge", "portal"]) == []


def test_a_misspelt_group_is_noticed() -> None:
    groups = {"homelab": ["monk"], "portl": ["monk"]}
    assert _preflight.group_mistakes(groups, ["edge", "portal"]) == [
        "group portl: no role has this name; did you mean portal?"
    ]


def test_a_host_outside_homelab_is_noticed() -> None:
    groups = {"homelab": ["monk"], "edge": ["monk", "nas"]}
    (mistake,) = _preflight.group_mistakes(groups, ["edge"])
    assert mistake.startswith("host nas is in group edge and not in homelab")


def test_an_inventory_without_homelab_is_refused() -> None:
    assert len(_preflight.group_mistakes({"all": []}, ["edge"])) == 1


@pytest.mark.parametrize(
    ("variables", "parts"),
    [
        ({"edge_timeout": "5s", "other": 1}, []),
        ({"edge_timeot": "5s"}, ["monk: edge_timeot is not a variable of role edge; did you mean edge_timeout?"]),
        ({"base_upgrades": "perhaps"}, ["monk: argument 'base_upgrades' is of type"]),
        ({"base_upgrades": "yes"}, []),
        ({"edge_peers": 5}, ["monk: argument 'edge_peers' is of type"]),
        (
            {"edge_x": 1, "base_networks": {}},
            ["monk: argument 'base_networks'", "edge_x is not a variable of role edge"],
        ),
    ],
)
def test_variables_of_roles(variables: dict[str, object], parts: list[str]) -> None:
    mistakes = _preflight.variable_mistakes("monk", variables, SPECS)
    assert len(mistakes) == len(parts), mistakes
    for mistake, part in zip(mistakes, parts):
        assert part in mistake


@pytest.mark.parametrize(
    ("address", "subnet", "networks", "part"),
    [
        ("192.0.2.1", "172.31.250.0/24", ["0.0.0.0/0", "::/0"], None),
        ("monk.lan", None, None, None),
        ("192.0.2.1", "100.64.5.0/24", None, "lies in the tailnet's own range"),
        ("192.0.2.1", "192.0.2.0/24", None, "holds 192.0.2.1, the host's own address"),
        ("192.0.2.1", "172.31.250.7/24", None, "must be a network's own address"),
        ("192.0.2.1", "172.31.250.0/30", None, "hold 16 or more"),
        ("192.0.2.1", "many", None, "docker_network_subnet is 'many'"),
        ("192.0.2.1", None, ["home"], "base_ssh_allow_from has 'home'"),
    ],
)
def test_networks(address: str, subnet: object, networks: object, part: object) -> None:
    mistakes = _preflight.address_mistakes("monk", address, subnet, networks)
    assert len(mistakes) == (0 if part is None else 1), mistakes
    if part:
        assert part in mistakes[0]


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (STRONG, None),
        (None, "edge_peer_token is missing: run"),
        ("", "is missing"),
        ("short", "must have 32"),
        ("x" * 31 + "-", "must have 32"),
    ],
)
def test_secrets(value: object, part: object) -> None:
    catalogue = _catalogue.build({"edge": EDGE}, {"edge": ["monk", "kscloud1"]}, "example.org")
    variables = {"monk": {"edge_peer_token": value}, "kscloud1": {"edge_peer_token": value}}
    mistakes = _preflight.secret_mistakes(catalogue, variables)
    assert len(mistakes) == (0 if part is None else 1)
    if part:
        assert part in mistakes[0]
        assert "short" not in mistakes[0]


WIKI = {
    "title": "Wiki",
    "description": "d",
    "public_name": "wiki",
    "port": 80,
    "health_path": "/",
    "sign_in": "oidc",
    "sso": {"redirect_paths": ["/callback"], "groups": ["family"]},
}
IDENTITY = {**WIKI, "public_name": "auth", "sign_in": "public", "sso": None}


def test_a_sign_in_without_authentik_is_noticed() -> None:
    declarations = {"wiki": WIKI, "authentik": IDENTITY}
    alone = _catalogue.build(declarations, {"wiki": ["monk"]}, "example.org")
    (mistake,) = _preflight.sign_in_mistakes(alone)
    assert mistake.startswith("wiki signs in with Authentik (sign_in oidc) and group authentik has no host")
    both = _catalogue.build(declarations, {"wiki": ["monk"], "authentik": ["monk"]}, "example.org")
    assert _preflight.sign_in_mistakes(both) == []


ROBIN = {"username": "robin", "name": "Robin", "email": "robin@example.org", "groups": ["kitestacks-admins", "family"]}


@pytest.mark.parametrize(
    ("users", "parts"),
    [
        (None, []),
        ([], []),
        ([ROBIN], []),
        ([ROBIN, {"username": "kim", "name": "Kim", "email": "kim@example.org"}], []),
        ([{**ROBIN, "groups": ["kitestacks-admins", "editors"]}], []),
        ([ROBIN, ROBIN], ["authentik_users: robin: is listed twice"]),
        (["robin"], ["authentik_users: item 1: username is missing", "nobody is in kitestacks-admins"]),
        ([{**ROBIN, "password": "x"}], ["robin: password is not for the inventory"]),
        ([{**ROBIN, "e_mail": "x"}], ["robin: 'e_mail' is not a key of a user; did you mean email?"]),
        ([{**ROBIN, "email": ""}], ["robin: email is missing"]),
        (
            [{**ROBIN, "groups": ["kitestacks-admins", "famly"]}],
            ["robin: group 'famly' is neither of a service nor in authentik_groups; did you mean family?"],
        ),
        ([{**ROBIN, "groups": ["family"]}], ["nobody is in kitestacks-admins"]),
    ],
)
def test_the_household(users: object, parts: list[str]) -> None:
    catalogue = _catalogue.build({"wiki": WIKI}, {"wiki": ["monk"]}, "example.org")
    mistakes = _preflight.user_mistakes(catalogue, users, ["editors"])
    assert len(mistakes) == len(parts), mistakes
    for part, mistake in zip(parts, mistakes, strict=True):
        assert part in mistake
