# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From any starting state the modules end in the declared one, a second run changes nothing, foreign objects stay."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.kitestacks.homelab.plugins.module_utils import _http
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ._authentik_runs import Lab
from ._faults_authentik import flows, snapshot

SLUGS = ("alpha", "beta", "gamma", "delta")
GROUPS = ("household", "guests", "admins")
OWNER = "kitestacks"
TYPES = {
    "oauth2": {"redirect_uris": []},
    "ldap": {},
    "proxy": {"external_host": "https://start.test", "mode": "forward_single"},
}
PROFILE = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(_http, "_sleep", lambda _seconds: None)


@st.composite
def starts(draw: st.DrawFn) -> dict[str, t.Any]:
    """Providers of any type, applications with any of them, bindings as often as it comes, ours and foreign."""
    providers = draw(st.dictionaries(st.sampled_from(SLUGS), st.sampled_from(sorted(TYPES)), max_size=4))
    names = draw(st.permutations([*providers, None, None, None, None]))
    apps = draw(st.lists(st.sampled_from(SLUGS), unique=True, max_size=4))
    return {
        "providers": providers,
        "applications": [
            {
                "slug": slug,
                "provider": name,
                "owner": draw(st.sampled_from([OWNER, "somebody", ""])),
                "bindings": draw(st.lists(st.sampled_from(GROUPS), max_size=4)),
                "description": draw(st.sampled_from(["", "before"])),
            }
            for slug, name in zip(apps, names)
        ],
    }


@st.composite
def declarations(draw: st.DrawFn) -> list[dict[str, t.Any]]:
    """Applications as the catalogue would declare them, and some that shall not exist."""
    items: list[dict[str, t.Any]] = []
    for slug in draw(st.lists(st.sampled_from(SLUGS), unique=True, min_size=1, max_size=4)):
        if items and draw(st.integers(0, 4)) == 0:
            items.append({"slug": slug, "state": "absent"})
            continue
        kind = draw(st.sampled_from(["oauth2", "proxy", "ldap"]))
        provider: dict[str, t.Any] = {"type": kind}
        if kind == "oauth2":
            urls = draw(st.lists(st.sampled_from(["https://a.test/cb", "https://b.test/cb"]), unique=True))
            provider.update(
                client_id=f"id-{slug}", client_secret="declared", redirect_uris=[{"url": url} for url in urls]
            )
        elif kind == "proxy":
            provider.update(mode="forward_single", external_host=f"https://{slug}.test")
        else:
            provider.update(search_mode=draw(st.sampled_from(["direct", "cached"])))
        item: dict[str, t.Any] = {"slug": slug, "name": slug.title(), "meta_description": "after", "provider": provider}
        item["groups"] = draw(st.lists(st.sampled_from(GROUPS), unique=True))
        items.append(item)
    return items


def build(lab: Lab, start: dict[str, t.Any]) -> None:
    api = lab.api
    groups = {name: api.add("groups", name=name)["pk"] for name in GROUPS}
    providers = {
        name: api.add(kind, name=name, **TYPES[kind], **flows(api))["pk"] for name, kind in start["providers"].items()
    }
    for entry in start["applications"]:
        made = api.add(
            "applications",
            slug=entry["slug"],
            name=entry["slug"],
            provider=providers.get(entry["provider"]),
            meta_publisher=entry["owner"],
            meta_description=entry["description"],
        )
        for name in entry["bindings"]:
            api.add("bindings", target=made["pk"], group=groups[name], order=0)
    # What belongs to nobody here and must not be touched, whatever is declared.
    foreign = api.add("proxy", name="foreign", external_host="https://foreign.test", **flows(api))
    made = api.add("applications", slug="foreign", name="foreign", provider=foreign["pk"], meta_publisher="somebody")
    api.add("bindings", target=made["pk"], group=groups["guests"], order=3)


def state_of(lab: Lab, slug: str) -> dict[str, t.Any] | None:
    """Return an application as it would be declared."""
    api = lab.api
    found = [row for row in api.store.rows("applications") if row["slug"] == slug]
    if not found:
        return None
    (row,) = found
    groups = {group["pk"]: group["name"] for group in api.store.rows("groups")}
    bindings = [groups[one["group"]] for one in api.store.rows("bindings") if one["target"] == row["pk"]]
    kind, provider = api.provider(row["provider"]) if row["provider"] is not None else ("", {})
    shown = {"type": kind, "name": provider.get("name")}
    if kind == "oauth2":
        urls = sorted(uri["url"] for uri in provider["redirect_uris"])
        shown.update(client_id=provider["client_id"], client_secret=provider["client_secret"], urls=urls)
    elif kind == "proxy":
        shown.update(mode=provider["mode"], external_host=provider["external_host"])
    elif kind == "ldap":
        shown.update(search_mode=provider["search_mode"])
    return {
        "name": row["name"],
        "description": row["meta_description"],
        "owner": row["meta_publisher"],
        "groups": sorted(bindings),
        "provider": shown,
    }


def wanted(item: dict[str, t.Any]) -> dict[str, t.Any] | None:
    if item.get("state") == "absent":
        return None
    provider = dict(item["provider"])
    uris = provider.pop("redirect_uris", None)
    if uris is not None:
        provider["urls"] = sorted(uri["url"] for uri in uris)
    return {
        "name": item["name"],
        "description": "after",
        "owner": OWNER,
        "groups": sorted(item["groups"]),
        "provider": {**provider, "name": item["slug"]},
    }


def conflicts(start: dict[str, t.Any], items: list[dict[str, t.Any]]) -> bool:
    """Tell whether a provider that is declared belongs to an application that is neither declared nor ours."""
    declared = {item["slug"] for item in items}
    present = {item["slug"] for item in items if item.get("state") != "absent"}
    turned = {
        item["slug"]
        for item in items
        if item["slug"] in present and start["providers"].get(item["slug"]) not in (None, item["provider"]["type"])
    }
    return any(
        entry["provider"] in present - turned and entry["slug"] not in declared and entry["owner"] != OWNER
        for entry in start["applications"]
    )


@PROFILE
@given(start=starts(), items=declarations(), version=st.sampled_from(["2026.2.2", "2026.5.6"]))
def test_applications_converge(start, items, version):
    with Lab(version) as lab:
        build(lab, start)
        options = {"applications": items, "owner": OWNER, "purge": True}
        before = state_of(lab, "foreign")
        theirs = {entry["slug"]: state_of(lab, entry["slug"]) for entry in start["applications"]}
        checked = lab.run("authentik_applications", check=True, **options)
        assert lab.server.writes() == []
        result = lab.run("authentik_applications", **options)
        assert bool(checked.get("failed")) == bool(result.get("failed")) == conflicts(start, items)
        if result.get("failed"):
            assert "already" in result["msg"]
            assert lab.server.writes() == []
            return
        assert lab.server.violations == []
        for item in items:
            assert state_of(lab, item["slug"]) == wanted(item)
        declared = {item["slug"] for item in items}
        for entry in start["applications"]:
            if entry["slug"] in declared:
                continue
            if entry["owner"] == OWNER:
                assert state_of(lab, entry["slug"]) is None
            elif entry["provider"] not in declared:
                assert state_of(lab, entry["slug"]) == theirs[entry["slug"]]
        assert state_of(lab, "foreign") == before
        after = snapshot(lab.api)
        again = lab.ok("authentik_applications", **options)
        assert (again["changed"], lab.server.writes(), again["stats"]["unchanged"]) == (
            False,
            [],
            len(again["results"]),
        )
        assert snapshot(lab.api) == after
        assert checked["changed"] == result["changed"]
        assert [line["action"] for line in checked["results"]] == [line["action"] for line in result["results"]]


names = st.sampled_from(["a", "b", "c", "d"])
members = st.lists(st.sampled_from(["robin", "kim"]), unique=True, max_size=2)


@PROFILE
@given(
    start=st.dictionaries(names, st.tuples(st.sampled_from([OWNER, "somebody"]), st.booleans()), max_size=4),
    wanted_groups=st.dictionaries(names, st.tuples(st.booleans(), members), min_size=1, max_size=4),
    chain=st.booleans(),
)
def test_groups_converge(start, wanted_groups, chain):
    with Lab() as lab:
        users = {name: lab.api.add("users", username=name, name=name)["pk"] for name in ("robin", "kim")}
        for name, (owner, superuser) in start.items():
            lab.api.add("groups", name=name, is_superuser=superuser, attributes={"managed_by": owner, "kept": 1})
        items = []
        for name, (superuser, people) in wanted_groups.items():
            parents = [items[-1]["name"]] if chain and items else []
            items.append({"name": name, "is_superuser": superuser, "users": people, "parents": parents})
        options = {"groups": items[::-1], "owner": OWNER, "purge": True}
        lab.ok("authentik_groups", **options)
        rows = {row["name"]: row for row in lab.api.store.rows("groups")}
        for item in items:
            row = rows[item["name"]]
            assert row["is_superuser"] == item["is_superuser"]
            assert row["parents"] == [rows[name]["pk"] for name in item["parents"]]
            found = {user["username"] for user in lab.api.store.rows("users") if row["pk"] in user["groups"]}
            assert found == set(item["users"])
            assert row["attributes"]["managed_by"] == OWNER
        for name, (owner, _superuser) in start.items():
            if name not in wanted_groups:
                assert (name in rows) == (owner != OWNER)
            else:
                assert rows[name]["attributes"]["kept"] == 1
        assert set(users) <= {user["username"] for user in lab.api.store.rows("users")}
        again = lab.ok("authentik_groups", **options)
        assert (again["changed"], lab.server.writes()) == (False, [])
