# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Authentik kinds for test_faults.py, see _faults.py."""

from __future__ import annotations

import json
import re
import typing as t
from functools import partial

from ansible_collections.kitestacks.homelab.tests.fakes._server import Server
from ansible_collections.kitestacks.homelab.tests.fakes.authentik import (
    ADMIN_TOKEN,
    EMBEDDED,
    AuthentikApi,
    contract,
    walk,
)

from ._authentik_runs import module
from ._faults import Case

OWNER = {"attributes": {"managed_by": "kitestacks"}}
CONTENT = "version: 1\nentries:\n  - model: authentik_core.group\n    identifiers:\n      name: {0}\n"
# Made up by the server, another one each time.
_RANDOM = {"pk", "num_pk", "uid", "uuid", "id", "last_applied", "pbm_uuid", "polls"}


class AuthentikCase(Case):
    """The document of this vendor needs mending; the stand-in does it."""

    def start(self) -> Server:
        return Server(self.service(), contract=contract())


def connection(server: Server) -> dict[str, t.Any]:
    return {"url": server.origin, "token": ADMIN_TOKEN}


def snapshot(api: AuthentikApi) -> t.Any:
    """Return all rows with names in place of ids, so that two servers can be compared."""
    names: dict[t.Any, str] = {}
    numbers: dict[tuple[str, int], str] = {}
    for kind, row in walk(api):
        name = row.get("slug") or row.get("username") or row.get("identifier") or row.get("name") or kind
        if isinstance(row["pk"], int):
            numbers["user" if kind == "users" else "provider", row["pk"]] = name
        else:
            names[row["pk"]] = names[str(row["pk"]).replace("-", "")] = name
    for row in api.store.rows("flows"):
        names[row["pk"]] = row["slug"]

    def shown(value: t.Any, field: str = "") -> t.Any:
        if isinstance(value, dict):
            return {key: shown(entry, key) for key, entry in value.items() if key not in _RANDOM}
        if isinstance(value, list):
            return [shown(entry, field) for entry in value]
        if isinstance(value, str):
            text = re.sub(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}", lambda hit: names.get(hit[0], hit[0]), value)
            text = re.sub(r"--user-\d+", "--user", text)
            return numbers.get(("provider", int(text)), text) if field == "object_pk" else text
        space = "user" if field in ("user", "users") else "provider"
        return numbers.get((space, value), value) if isinstance(value, int) and field.startswith(space) else value

    found = []
    for kind, row in walk(api):
        kept = shown(row)
        if kind == "proxy" or (kind == "tokens" and row["managed"] and not row["key"].startswith("ours")):
            kept.pop("client_id", None)
            kept.pop("key", None)
        if kind in ("oauth2", "outposts", "users", "groups"):
            for field in ("property_mappings", "providers", "groups", "roles", "parents"):
                kept[field] = sorted(kept.get(field) or [])
        if kind == "permissions":
            kept.pop("pk", None)
        found.append((kind, kept))
    return sorted(found, key=lambda pair: json.dumps(pair, sort_keys=True))


def foreign(api: AuthentikApi, *, kinds: t.Collection[str]) -> t.Any:
    """Return the rows of somebody else, as they are."""
    return [
        (kind, row)
        for kind, row in walk(api)
        if kind in kinds and "foreign" in f"{row.get('slug')} {row.get('username')} {row.get('name')}"
    ]


def flows(api: AuthentikApi) -> dict[str, str]:
    flow = api.find("flows", slug="default-invalidation-flow")["pk"]
    return {"authorization_flow": flow, "invalidation_flow": flow}


# Groups: 5 created, 4 updated, 3 deleted.


def groups_service() -> AuthentikApi:
    api = AuthentikApi()
    for number in range(4):
        api.add("groups", name=f"changed{number}", attributes={"a": 1})
    for number in range(3):
        api.add("groups", name=f"old{number}", **OWNER)
    api.add("groups", name="foreign", attributes={"managed_by": "somebody"})
    return api


GROUPS = {
    "groups": [
        *({"name": f"new{number}", "parents": ["new0"] if number else []} for number in range(5)),
        *({"name": f"changed{number}", "attributes": {"a": 2}} for number in range(4)),
    ],
    "owner": "kitestacks",
    "purge": True,
}

# Users: 4 created, one with a password, 2 updated, 2 deleted; a token made, one deleted, two keys set.


def users_service() -> AuthentikApi:
    api = AuthentikApi()
    for number in range(2):
        api.add("users", username=f"changed{number}", name="before")
    for number in range(2):
        api.add("users", username=f"old{number}", name="old", **OWNER)
    searcher = api.add("users", username="searcher", name="searcher", type="service_account", **OWNER)
    for name in ("kept", "gone"):
        api.add("tokens", identifier=name, user=searcher["pk"], key="before", intent="app_password", expiring=False)
    api.add("users", username="foreign", name="foreign")
    return api


USERS = {
    "users": [
        {"username": "new0", "password": "password-of-new0"},
        {"username": "new1", "email": "new1@example.test", "groups": ["authentik Read-only"]},
        {"username": "new2", "type": "external"},
        {"username": "changed0", "name": "after"},
        {"username": "changed1", "is_active": False},
        {
            "username": "searcher",
            "tokens": [
                {"identifier": "kept", "key": "ours1"},
                {"identifier": "made", "key": "ours2"},
                {"identifier": "gone", "state": "absent"},
            ],
        },
    ],
    "owner": "kitestacks",
    "purge": True,
}

# Scope mappings: 6 created, 3 updated, 3 deleted.


def mappings_service() -> AuthentikApi:
    api = AuthentikApi()
    for name in ("k-changed0", "k-changed1", "k-changed2", "k-old0", "k-old1", "k-old2", "foreign"):
        api.add("scope_mappings", name=name, scope_name=name, expression="return {}")
    return api


MAPPINGS = {
    "scope_mappings": [
        *({"name": f"k-new{n}", "scope_name": f"s{n}", "expression": "return {}\n"} for n in range(6)),
        *({"name": f"k-changed{n}", "expression": "return {'a': 1}"} for n in range(3)),
    ],
    "purge": True,
    "purge_name_prefix": "k-",
}

# Providers: 6 created, 2 updated, one made anew with another type, 2 deleted.


def providers_service() -> AuthentikApi:
    api = AuthentikApi()
    for name in ("k-changed", "k-turned", "k-old0", "foreign"):
        api.add("oauth2", name=name, client_id=name, client_secret="before", redirect_uris=[], **flows(api))
    api.add("ldap", name="k-ldap", **flows(api))
    api.add("proxy", name="k-old1", external_host="https://old.test", **flows(api))
    return api


PROVIDERS = {
    "providers": [
        *(
            {
                "name": f"k-new{number}",
                "client_id": f"new{number}",
                "client_secret": "not-a-real-one",
                "redirect_uris": [{"url": f"https://new{number}.test/cb"}],
            }
            for number in range(4)
        ),
        {"name": "k-new-ldap", "type": "ldap", "base_dn": "dc=example,dc=test"},
        {"name": "k-new-proxy", "type": "proxy", "mode": "forward_single", "external_host": "https://a.test"},
        {"name": "k-changed", "client_secret": "not-a-real-one"},
        {"name": "k-ldap", "type": "ldap", "search_mode": "cached"},
        {"name": "k-turned", "type": "proxy", "mode": "forward_single", "external_host": "https://t.test"},
    ],
    "purge": True,
    "purge_name_prefix": "k-",
}

# Applications: 3 with provider and bindings created, one updated, a double binding taken away, one deleted.


def applications_service() -> AuthentikApi:
    api = AuthentikApi()
    group = api.add("groups", name="household")
    for slug in ("changed", "old", "foreign"):
        row = api.add("oauth2", name=slug, client_id=slug, client_secret="s", redirect_uris=[], **flows(api))
        publisher = "somebody" if slug == "foreign" else "kitestacks"
        made = api.add("applications", name=slug, slug=slug, provider=row["pk"], meta_publisher=publisher)
        for _number in range(2):
            api.add("bindings", target=made["pk"], group=group["pk"], order=0)
    return api


APPLICATIONS = {
    "applications": [
        {
            "slug": "new0",
            "name": "New",
            "groups": ["household", "authentik Admins"],
            "provider": {"client_id": "new0", "client_secret": "not-a-real-one", "redirect_uris": []},
        },
        {
            "slug": "new1",
            "name": "Behind the proxy",
            "groups": ["household"],
            "provider": {"type": "proxy", "mode": "forward_single", "external_host": "https://new1.test"},
        },
        {"slug": "new2", "name": "A bookmark", "meta_launch_url": "https://new2.test/"},
        {"slug": "changed", "name": "After", "groups": ["household"]},
    ],
    "owner": "kitestacks",
    "purge": True,
}

# Outposts: a role, 2 made with their keys, one changed, 2 deleted, 2 rights, a user and a group that get the role.


def outposts_service() -> AuthentikApi:
    api = AuthentikApi()
    for name in ("directory", "second"):
        api.add("ldap", name=name, **flows(api))
    proxies = [api.add("proxy", name=name, external_host="https://a.test", **flows(api)) for name in ("mine", "theirs")]
    embedded = api.find("outposts", managed=EMBEDDED)
    api.store.put("outposts", embedded["pk"], {**embedded, "providers": [proxies[1]["pk"]]})
    api.add("outposts", name="k-old0", type="proxy", providers=[proxies[1]["pk"]], config={})
    api.add("outposts", name="k-old1", type="proxy", providers=[proxies[1]["pk"]], config={})
    api.add("outposts", name="foreign", type="proxy", providers=[proxies[1]["pk"]], config={"log_level": "info"})
    api.add("users", username="searcher", name="searcher")
    return api


OUTPOSTS = {
    "outposts": [
        {
            "name": "k-new",
            "type": "ldap",
            "providers": ["directory", "second"],
            "token": "ours1",
            "search": {"role": "ldap-search", "users": ["searcher"], "groups": ["authentik Read-only"]},
        },
        {"name": "k-more", "type": "proxy", "providers": ["mine"], "token": "ours2", "config": {"log_level": "debug"}},
        {"embedded": True, "providers": ["mine"], "config": {"authentik_host": "https://auth.example.test/"}},
    ],
    "purge": True,
    "purge_name_prefix": "k-",
}

# Blueprints: 3 made and 2 changed, all 5 applied, 2 deleted.


def blueprints_service() -> AuthentikApi:
    api = AuthentikApi()
    for name in ("k-changed0", "k-changed1", "k-old0", "k-old1", "foreign"):
        api.add("blueprints", name=name, content=CONTENT.format("before"), status="successful")
    return api


BLUEPRINTS = {
    "blueprints": [
        *({"name": f"k-new{number}", "content": CONTENT.format(number)} for number in range(3)),
        {"name": "k-changed0", "content": CONTENT.format("after")},
        {"name": "k-changed1", "context": {"a": 1}},
    ],
    "purge": True,
    "purge_name_prefix": "k-",
}


def case(name: str, options: dict[str, t.Any], service: t.Callable[[], AuthentikApi], kinds: str) -> Case:
    theirs = partial(foreign, kinds=kinds.split())
    main = module(f"authentik_{name}").main
    return AuthentikCase(
        f"authentik-{name}", main, options, service, connection, snapshot, theirs, 12, "authentik-subset.json"
    )


CASES = [
    case("groups", GROUPS, groups_service, "groups"),
    case("users", USERS, users_service, "users"),
    case("scope_mappings", MAPPINGS, mappings_service, "scope_mappings"),
    case("providers", PROVIDERS, providers_service, "oauth2 ldap proxy"),
    case("applications", APPLICATIONS, applications_service, "applications oauth2"),
    case("outposts", OUTPOSTS, outposts_service, "outposts"),
    case("blueprints", BLUEPRINTS, blueprints_service, "blueprints"),
]
