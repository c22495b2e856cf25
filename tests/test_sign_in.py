"""What roles/authentik/tasks/sso.yml makes of any catalogue, on a server in any state: exactly what is declared."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.kitestacks.homelab.plugins.module_utils import _catalogue, _http, _sign_in
from ansible_collections.kitestacks.homelab.tests.unit._authentik_runs import Lab, actions
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

ROLE = Path(__file__).resolve().parent.parent / "roles/authentik"
TASKS = yaml.safe_load((ROLE / "tasks/sso.yml").read_text())[0]["block"]
RECOVERY = yaml.safe_load((ROLE / "vars/main.yml").read_text())["_authentik_recovery"]
URL = "https://auth.example.org"
DIRECTORY = {"base_dn": "dc=example,dc=org", "outpost_token": "o" * 32, "search_password": "s" * 32}
VERSIONS = ["2025.12.4", "2026.2.2", "2026.8.4"]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http, "_sleep", lambda _seconds: None)


def _value(value: Any, objects: dict[str, Any]) -> Any:
    """Return an option of a task of sso.yml with its templates filled in."""
    if isinstance(value, list):
        return [_value(entry, objects) for entry in value]
    if isinstance(value, dict):
        return {name: _value(entry, objects) for name, entry in value.items()}
    if isinstance(value, str) and (found := re.fullmatch(r"\{\{ _authentik_objects\['(\w+)'\] \}\}", value)):
        return objects[found[1]]
    if not isinstance(value, str):
        return value
    value = value.replace("{{ _authentik_recovery }}", RECOVERY).replace("{{ _authentik_owner }}", _sign_in.OWNER)
    assert "{{" not in value
    return value


def reconcile(lab: Lab, objects: dict[str, Any]) -> tuple[list[tuple[str, str, str]], int]:
    """Do what sso.yml does; return what was done and the number of requests."""
    done, requests = [], 0
    for task in TASKS:
        (module,) = (name for name in task if name.startswith("kitestacks.homelab."))
        options = {name: _value(value, objects) for name, value in task[module].items()}
        result = lab.ok(module.rpartition(".")[2], **options)
        done += actions(result)
        requests += result["stats"]["requests"]
    return done, requests


def _objects(drawn: dict[str, Any]) -> dict[str, Any]:
    """Return what sso.yml shall make of a drawn homelab."""
    declarations = {}
    for name, (sign_in, groups, verified) in drawn["services"].items():
        sso: dict[str, Any] = {} if sign_in == "public" else {"groups": groups}
        if sign_in == "oidc":
            sso |= {"redirect_paths": ["/callback"], "email_verified": verified}
        if sign_in == "proxy" and verified:
            sso["unauthenticated_paths"] = ["/api/push/"]
        declarations[name] = {
            "title": name.title(),
            "description": "d",
            "public_name": name,
            "port": 80,
            "health_path": "/",
            "sign_in": sign_in,
            "sso": sso,
        }
    catalogue = _catalogue.build(declarations, {name: ["monk"] for name in declarations}, "example.org")
    secrets = {service["name"]: service["name"] * 32 for service in catalogue}
    users = [
        {"username": name, "name": name.title(), "email": f"{name}@example.org", "groups": groups}
        for name, groups in drawn["users"].items()
    ]
    directory = DIRECTORY if drawn["directory"] else None
    return _sign_in.sign_in_objects(catalogue, URL, users, drawn["groups"], secrets, directory)


groups = st.lists(st.sampled_from(["kitestacks-admins", "kitestacks-users", "family", "guests"]), unique=True)
homelabs = st.fixed_dictionaries(
    {
        "services": st.dictionaries(
            st.sampled_from(["wiki", "status", "links", "photos"]),
            st.tuples(st.sampled_from(_catalogue.SIGN_IN), groups, st.booleans()),
        ),
        "users": st.dictionaries(st.sampled_from(["robin", "kim", "alex"]), groups),
        "groups": groups,
        "directory": st.booleans(),
    }
)


def _by_hand(lab: Lab) -> None:
    """Make what a person made in Authentik's pages, and what must be there after any run."""
    flows = {
        f"{kind}_flow": lab.api.find("flows", slug=slug)["pk"]
        for kind, slug in (
            ("authorization", "default-provider-authorization-implicit-consent"),
            ("invalidation", "default-provider-invalidation-flow"),
        )
    }
    provider = lab.api.add("oauth2", name="by-hand", redirect_uris=[], **flows)
    application = lab.api.add("applications", slug="by-hand", name="By hand", provider=provider["pk"])
    group = lab.api.add("groups", name="by-hand")
    lab.api.add("users", username="by-hand", name="By hand", groups=[group["pk"]])
    lab.api.add("bindings", target=application["pk"], group=group["pk"], order=0)
    lab.api.add("scope_mappings", name="by-hand", scope_name="x", expression="return {}")


def _hand_made(lab: Lab) -> dict[str, list[dict[str, Any]]]:
    names = ("name", "slug", "username")
    kept = {
        kind: [row for row in rows if any(row.get(name) == "by-hand" for name in names)]
        for kind, rows in lab.snapshot().items()
    }
    targets = {row["pk"] for row in kept["applications"]}
    return {**kept, "bindings": [row for row in lab.api.store.rows("bindings") if row["target"] in targets]}


def _ours(lab: Lab) -> dict[str, Any]:
    """Return what the server holds for us, by name, as far as a visitor would notice it."""
    rows = lab.snapshot()
    names = {row["pk"]: row["name"] for row in rows["groups"]}
    users = {row["pk"]: row["username"] for row in rows["users"]}
    providers = {row["pk"]: row for kind in ("oauth2", "ldap", "proxy") for row in rows[kind]}
    mappings = {row["pk"]: row["name"] for row in rows["scope_mappings"]}
    bound: dict[str, set[str]] = {}
    for row in rows["bindings"]:
        subject = names.get(row["group"]) or users.get(row["user"]) or "?"
        bound.setdefault(row["target"], set()).add(subject)
    return {
        "groups": {
            row["name"]: row["is_superuser"]
            for row in rows["groups"]
            if row["attributes"].get("managed_by") == "kitestacks"
        },
        "users": {
            row["username"]: (row["email"], {names[group] for group in row["groups"]})
            for row in rows["users"]
            if row["attributes"].get("managed_by") == "kitestacks"
        },
        "applications": {
            row["slug"]: (
                bound.get(row["pk"], set()),
                _provider(providers.get(row["provider"]), mappings),
            )
            for row in rows["applications"]
            if row["meta_publisher"] == "kitestacks"
        },
        "providers": {row["name"] for row in providers.values() if row["name"].startswith("kitestacks-")},
        "outposts": {
            row["name"]: {providers[pk]["name"] for pk in row["providers"]}
            for row in rows["outposts"]
            if row["name"].startswith("kitestacks-") or row["managed"]
        },
    }


def _provider(row: dict[str, Any] | None, mappings: dict[str, str]) -> Any:
    if row is None:
        return None
    if "redirect_uris" in row and "client_secret" in row and "external_host" not in row:
        verified = "kitestacks-email-verified" in {mappings[pk] for pk in row["property_mappings"]}
        return row["client_secret"], [uri["url"] for uri in row["redirect_uris"]], verified
    return row.get("external_host") or row["base_dn"], row.get("skip_path_regex", "")


def _declared(drawn: dict[str, Any]) -> dict[str, Any]:
    """Return what `_ours` shall be; said from what was drawn, not by the code that derives it."""
    applications: dict[str, Any] = {}
    for name, (sign_in, allowed, verified) in drawn["services"].items():
        who = {*(allowed or ["kitestacks-users"]), "kitestacks-admins"}
        url = f"https://{name}.example.org"
        if sign_in == "oidc":
            applications[name] = (who, (name * 32, [f"{url}/callback"], verified))
        elif sign_in == "proxy":
            applications[name] = (who, (url, "^/api/push/" if verified else ""))
        elif sign_in != "public":
            applications[name] = (who, None)
    used = {"kitestacks-admins", "kitestacks-users", *drawn["groups"]}
    used |= {group for sign_in, allowed, _ in drawn["services"].values() if sign_in != "public" for group in allowed}
    used |= {group for member in drawn["users"].values() for group in member}
    users = {name: (f"{name}@example.org", set(member)) for name, member in drawn["users"].items()}
    outposts = {
        "authentik Embedded Outpost": {
            f"kitestacks-{name}" for name, (sign_in, *_) in drawn["services"].items() if sign_in == "proxy"
        }
    }
    if drawn["directory"]:
        who = {"kitestacks-admins", "kitestacks-users", "kitestacks-ldap-search"}
        applications["kitestacks-ldap"] = (who, ("dc=example,dc=org", ""))
        users["kitestacks-ldap-search"] = ("", set())
        outposts["kitestacks-ldap"] = {"kitestacks-ldap"}
    providers = {
        f"kitestacks-{name}" for name, (sign_in, *_) in drawn["services"].items() if sign_in in ("oidc", "proxy")
    }
    if drawn["directory"]:
        providers.add("kitestacks-ldap")
    return {
        "providers": providers,
        "groups": {name: name == "kitestacks-admins" for name in used},
        "users": users,
        "applications": applications,
        "outposts": outposts,
    }


@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(before=st.one_of(st.none(), homelabs), after=homelabs, version=st.sampled_from(VERSIONS), cut=st.integers(0, 40))
def test_the_server_ends_as_declared_whatever_it_held(
    before: dict[str, Any] | None, after: dict[str, Any], version: str, cut: int
) -> None:
    """From nothing, or from another homelab that a run was cut off in the middle of."""
    with Lab(version) as lab:
        _by_hand(lab)
        hand_made = _hand_made(lab)
        if before is not None:
            reconcile(lab, _objects(before))
            for kind in ("bindings", "applications", "oauth2", "users"):
                rows = lab.snapshot()[kind]
                if rows and (row := rows[cut % len(rows)]) not in hand_made[kind]:
                    # What a run that was cut off, or a person, left away.
                    if kind == "users" and not row["attributes"].get("managed_by"):
                        continue
                    lab.api._delete(kind, row)
        reconcile(lab, _objects(after))
        assert _ours(lab) == _declared(after)
        assert _hand_made(lab) == hand_made
        done, _requests = reconcile(lab, _objects(after))
        assert done == []


def _many(number: int) -> dict[str, Any]:
    """Return the objects of a homelab with this many services."""
    declarations = {
        f"s{place:03}": {
            "title": f"S{place}",
            "description": "d",
            "public_name": f"s{place:03}",
            "port": 80,
            "health_path": "/",
            "sign_in": ("oidc", "proxy", "native")[place % 3],
            "sso": {"redirect_paths": ["/callback"]} if place % 3 == 0 else {},
        }
        for place in range(number)
    }
    catalogue = _catalogue.build(declarations, {name: ["monk"] for name in declarations}, "example.org")
    return _sign_in.sign_in_objects(catalogue, URL, directory=DIRECTORY)


def test_a_run_without_changes_costs_the_same_with_three_services_and_with_thirty() -> None:
    costs = []
    for number in (3, 30):
        with Lab("2026.8.4") as lab:
            reconcile(lab, _many(number))
            done, requests = reconcile(lab, _many(number))
            assert done == []
            costs.append(requests)
    assert costs[0] == costs[1] <= 50


def test_a_service_that_comes_and_goes_brings_and_takes_exactly_its_own() -> None:
    with Lab("2026.8.4") as lab:
        reconcile(lab, _many(3))
        came, _ = reconcile(lab, _many(4))
        assert Counter(came) == Counter(
            [
                ("OAuth2 provider", "kitestacks-s003", "created"),
                ("application", "s003", "created"),
                ("binding", "s003 kitestacks-admins", "created"),
                ("binding", "s003 kitestacks-users", "created"),
            ]
        )
        went, _ = reconcile(lab, _many(3))
        assert Counter(went) == Counter(
            [("OAuth2 provider", "kitestacks-s003", "deleted"), ("application", "s003", "deleted")]
        )
