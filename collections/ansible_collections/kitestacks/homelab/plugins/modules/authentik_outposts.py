#!/usr/bin/python
# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: authentik_outposts
short_description: Outposts of Authentik, with their tokens and the right to search the directory
version_added: 1.0.0
description:
  - Creates, updates and deletes outposts, gives them tokens of ours, and grants the right to search their directory.
  - A set module. One task declares many objects; what is not declared is left alone unless O(purge=true).
  - Only the options that are given are compared and sent.
  - The list of providers and the configuration are read again right before they are written, and the result is checked.
author:
  - KiteStacks maintainers (@kitestacks)
extends_documentation_fragment:
  - kitestacks.homelab.attributes
  - kitestacks.homelab.connection
  - kitestacks.homelab.authentik
  - kitestacks.homelab.authentik.purge
options:
  outposts:
    description:
      - The outposts.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - Name, unique on the server. Needed unless O(outposts[].embedded=true).
        type: str
      embedded:
        description:
          - Mean the outpost that is part of Authentik's server, whatever its name is.
        type: bool
        default: false
      state:
        description:
          - Whether it shall exist.
        type: str
        choices: [absent, present]
        default: present
      type:
        description:
          - What the outpost serves. Needed for a new one.
        type: str
        choices: [ldap, proxy]
      providers:
        description:
          - Names of the providers that it serves.
        type: list
        elements: str
      exclusive_providers:
        description:
          - Whether O(outposts[].providers) is the whole list, or is added to it.
          - Defaults to V(false) with O(outposts[].embedded=true), because other people attach their providers there,
            otherwise to V(true).
        type: bool
      config:
        description:
          - Settings, such as C(authentik_host) and C(log_level); others stay as they are.
        type: dict
      service_connection:
        description:
          - Name of the Docker or Kubernetes connection by which Authentik deploys it; empty for none.
        type: str
      token:
        description:
          - Key of the outpost's token, the one that it is started with.
        type: str
      search:
        description:
          - Who may search the whole directory of its LDAP providers. Needs Authentik 2025.12.
        type: dict
        suboptions:
          role:
            description:
              - Name of the role that holds the right; it is made if it does not exist.
            type: str
            required: true
          users:
            description:
              - User names that get the role.
            type: list
            elements: str
            default: []
          groups:
            description:
              - Names of groups that get the role.
            type: list
            elements: str
            default: []
"""

EXAMPLES = r"""
- name: The directory is served, and what has no sign-in of its own stands behind the embedded outpost
  kitestacks.homelab.authentik_outposts:
    url: "{{ authentik_url }}"
    token: "{{ authentik_token }}"
    outposts:
      - name: ldap
        type: ldap
        providers:
          - directory
        config:
          authentik_host: https://auth.example.org/
        token: "{{ ldap_outpost_token }}"
        search:
          role: ldap-search
          users:
            - akadmin
      - embedded: true
        providers:
          - uptime
"""

RETURN = r"""
results:
  description: One entry for each object of the plan.
  returned: success
  type: list
  elements: dict
  contains:
    kind:
      description: Type of the object.
      type: str
      sample: outpost
    key:
      description: Name of the object.
      type: str
      sample: ldap
    action:
      description: What was done, or would be done in check mode.
      type: str
      sample: updated
    id:
      description: Id of the object, V(null) in check mode for one that does not exist yet.
      type: raw
      sample: 6df75f0f-39ae-402b-8140-3b77851c1f80
    changes:
      description: Fields that changed, by dotted path.
      type: list
      elements: str
      sample: [providers]
stats:
  description: Requests sent, retries among them, and the number of objects by action.
  returned: success
  type: dict
  sample: {requests: 5, retries: 0, created: 0, updated: 1, deleted: 0, unchanged: 3}
applied:
  description: After a failure midway, what was done before it. The next run finishes the work.
  returned: failure midway
  type: list
  elements: dict
failed_items:
  description: After a failure midway, the objects that failed, with the error.
  returned: failure midway
  type: list
  elements: dict
pending:
  description: After a failure midway, what was not tried.
  returned: failure midway
  type: list
  elements: dict
"""

import typing as t
from dataclasses import dataclass, field

from ansible_collections.kitestacks.homelab.plugins.module_utils import _authentik, _http
from ansible_collections.kitestacks.homelab.plugins.module_utils._authentik import (
    EMBEDDED,
    GROUP,
    OUTPOST,
    PROVIDER,
    PROVIDER_MODELS,
    ROLE,
    USER,
    Resource,
    Session,
    stated,
)
from ansible_collections.kitestacks.homelab.plugins.module_utils._http import ApiError
from ansible_collections.kitestacks.homelab.plugins.module_utils._reconcile import (
    Action,
    Document,
    PlanError,
    compare,
    plan,
)

OPTION = "outposts"
SPEC: dict[str, dict[str, t.Any]] = {
    OPTION: {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "config": {"type": "dict"},
            "embedded": {"type": "bool", "default": False},
            "exclusive_providers": {"type": "bool"},
            "name": {"type": "str"},
            "providers": {"type": "list", "elements": "str"},
            "search": {
                "type": "dict",
                "options": {
                    "groups": {"type": "list", "elements": "str", "default": []},
                    "role": {"type": "str", "required": True},
                    "users": {"type": "list", "elements": "str", "default": []},
                },
            },
            "service_connection": {"type": "str"},
            "state": {"type": "str", "choices": ["absent", "present"], "default": "present"},
            "token": {"type": "str", "no_log": True},
            "type": {"type": "str", "choices": ["ldap", "proxy"]},
        },
    },
    **_authentik.purge_spec(owner=False),
}
SEARCH = "search_full_directory"
LDAP_APP = "authentik_providers_ldap"
LDAP_MODEL = f"{LDAP_APP}.ldapprovider"
# The token of an outpost is made by Authentik, a moment after the outpost; we only give it its key.
OUTPOST_KEY = Resource(name="outpost token", key=("outpost",), id="outpost", secret=frozenset({"key"}))
PERMISSION = Resource(name="search permission", key=("role", "provider"), id="provider")
TOKEN_WAIT = 30  # seconds
WRITES_AT_MOST = 5  # of one outpost whose list another client writes at the same time


@dataclass
class Plan:
    """The plan by type, and what the senders need to know of each outpost."""

    roles: dict[str, Action] = field(default_factory=dict)
    outposts: list[Action] = field(default_factory=list)
    keys: list[Action] = field(default_factory=list)
    permissions: list[Action] = field(default_factory=list)
    grants: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    added: dict[str, list[str]] = field(default_factory=dict)


def make_plan(session: Session) -> list[Action]:
    """Return what has to be done."""
    items = session.module.params[OPTION]
    session.load("provider")
    session.load("outpost")
    live = session.live(OUTPOST)
    found = {document["name"]: document for document in live}
    embedded = next((document for document in live if document["managed"] == EMBEDDED), None)
    names = [_name(item, position, embedded) for position, item in enumerate(items, 1)]
    _authentik.named_twice(OPTION, OUTPOST, names)
    wanted = Plan()
    desired = []
    for name, item in zip(names, items):
        if item["state"] == "present":
            desired.append(_declared(session, wanted, name, item, found.get(name)))
            _plan_key(session, wanted, name, item, found.get(name))
            if item["search"]:
                _plan_search(session, wanted, name, item, desired[-1])
    gone = [name for name, item in zip(names, items) if item["state"] == "absent"]
    _authentik.refuse_protected(OUTPOST, OPTION, live, gone)
    own_names = [document for document in desired if document["name"] != (embedded or {}).get("name")]
    ours = session.purge(OUTPOST, OPTION, own_names)
    kept = plan(OUTPOST, desired, live, absent=[{"name": name} for name in gone], purge=ours, option=OPTION)
    session.senders.update(
        {
            "outpost": _send_outpost(session, wanted.added),
            "outpost token": _send_key(session),
            "search permission": _send_permission(session),
        }
    )
    session.readers.update({"outpost token": list, "search permission": list})
    deleted = [action for action in kept if action.action == "delete"]
    made = [action for action in kept if action.action != "delete"]
    granted = _plan_grants(session, wanted.grants)
    return [*wanted.roles.values(), *made, *wanted.keys, *wanted.permissions, *granted, *deleted]


def _name(item: t.Mapping[str, t.Any], position: int, embedded: Document | None) -> str:
    where = f"{OPTION}: item {position}"
    if not item["embedded"]:
        if not item["name"]:
            raise PlanError(f"{where}: name: is needed (or embedded=true)")
        return str(item["name"])
    if item["name"]:
        raise PlanError(f"{where}: name: the embedded outpost has its own; leave it out")
    if embedded is None:
        raise PlanError(
            f"{where}: embedded: this server has no embedded outpost (AUTHENTIK_OUTPOSTS__DISABLE_EMBEDDED_OUTPOST)"
        )
    if item["state"] == "absent":
        raise PlanError(f"{where}: state: the embedded outpost is part of the server; it stays")
    return str(embedded["name"])


def _declared(
    session: Session, wanted: Plan, name: str, item: t.Mapping[str, t.Any], found: Document | None
) -> Document:
    where = f"{OPTION}: {name}"
    kind = item["type"] or (found or {}).get("type")
    if kind is None:
        raise PlanError(f"{where}: type: a new outpost needs it")
    document = stated(item, "state", "embedded", "exclusive_providers", "token", "search")
    document.update(name=name, type=kind)
    if found is None:
        document.setdefault("providers", [])
        document["config"] = _authentik.merge(_default_config(session), document.get("config", {}))
    document = session.check(OUTPOST, where, document)
    if "providers" not in document:
        return document
    _check_types(session, where, kind, document["providers"])
    exclusive = not item["embedded"] if item["exclusive_providers"] is None else item["exclusive_providers"]
    if not exclusive and found is not None:
        wanted.added[name] = document["providers"]
        more = [provider for provider in document["providers"] if provider not in found["providers"]]
        document["providers"] = [*found["providers"], *more]
    elif not document["providers"]:
        raise PlanError(f"{where}: providers: is empty; Authentik refuses an outpost without providers")
    return document


def _default_config(session: Session) -> Document:
    found: Document = session.api.get("/outposts/instances/default_settings/")["config"]
    return found


def _check_types(session: Session, where: str, kind: str, names: t.Iterable[str]) -> None:
    types = {row["name"]: row for row in session.rows(PROVIDER)}
    for name in names:
        if name in types and PROVIDER_MODELS.get(types[name]["meta_model_name"]) != kind:
            raise PlanError(
                f"{where}: providers: {name!r} is of type {types[name]['verbose_name']}; "
                f"an outpost of type {kind} cannot serve it"
            )


def _plan_key(session: Session, wanted: Plan, name: str, item: t.Mapping[str, t.Any], found: Document | None) -> None:
    if item["token"] is None:
        return
    if not item["token"]:
        raise PlanError(f"{OPTION}: {name}: token: is empty")
    current: Document = {"outpost": name}
    if found is not None:
        current["key"] = _authentik.view_key(session, found["token_identifier"])
    same = current.get("key") == item["token"]
    wanted.keys.append(
        Action(
            OUTPOST_KEY,
            "unchanged" if same else "update",
            name,
            {"outpost": name, "key": item["token"]},
            current,
            () if same else ("key",),
        )
    )


def _plan_search(session: Session, wanted: Plan, name: str, item: t.Mapping[str, t.Any], outpost: Document) -> None:
    where = f"{OPTION}: {name}: search"
    role = item["search"]["role"]
    if outpost["type"] != "ldap":
        raise PlanError(f"{where}: only an outpost of type ldap has a directory to search")
    session.load("role")
    roles = {document["name"]: document for document in session.live(ROLE)}
    wanted.roles.setdefault(role, compare(ROLE, {"name": role}, roles.get(role)))
    for provider in item["providers"] or outpost.get("providers", ()):
        wanted.permissions.append(_plan_permission(session, role, provider))
    for option, kind in (("users", USER), ("groups", GROUP)):
        for member in item["search"][option]:
            session.check(kind, where, {"roles": [role]}, {"role": {role}})
            session.reference(f"{where}: {option}", kind.name, member, {})
            wanted.grants.setdefault((kind.name, member), set()).add(role)


def _plan_permission(session: Session, role: str, provider: str) -> Action:
    desired = {"role": role, "provider": provider}
    identifier = session.id_of("provider", provider)
    query = {"model": LDAP_MODEL, "object_pk": identifier}
    holders = [] if identifier is None else session.api.list("/rbac/permissions/assigned_by_roles/", query)
    held = any(
        holder["name"] == role
        and any(
            permission["codename"] == SEARCH and str(permission.get("object_pk", identifier)) == str(identifier)
            for permission in holder["object_permissions"]
        )
        for holder in holders
    )
    return compare(PERMISSION, desired, desired if held else None)


def _plan_grants(session: Session, grants: t.Mapping[tuple[str, str], set[str]]) -> list[Action]:
    """Plan the roles that users and groups get on top of those they have."""
    actions = []
    for (kind_name, member), roles in grants.items():
        kind = {USER.name: USER, GROUP.name: GROUP}[kind_name]
        label = kind.key[0]
        found = (document for document in session.live(kind) if document[label] == member)
        current = next(found, {label: member, "roles": []})  # in check mode it may not exist yet
        more = sorted(roles - set(current["roles"]))
        actions.append(compare(kind, {label: member, "roles": [*current["roles"], *more]}, current))
    return actions


def _send_outpost(session: Session, added: t.Mapping[str, list[str]]) -> _authentik.Sender:
    """Return the sender of outposts: an update starts from what the server holds at that moment, not at plan time."""

    def send(action: Action) -> Document | None:
        if action.action != "update":
            return session.write(action)
        current = action.current or {}
        path = OUTPOST.url(current)
        more = added.get(action.key, [])
        for _attempt in range(WRITES_AT_MOST):
            fresh = session.named(OUTPOST, session.api.get(path))
            body = dict(action.body)
            if more and "providers" in body:
                missing = [name for name in more if name not in fresh["providers"]]
                body["providers"] = [*fresh["providers"], *missing]
            session.api.request("PATCH", path, body=session.wire(OUTPOST, body, fresh))
            stored = session.named(OUTPOST, session.api.get(path))
            if set(body.get("providers", ())) <= set(stored["providers"]):
                return stored
        raise ApiError("PATCH", path, 200, None, "another client writes the list of providers at the same time")

    return send


def _send_key(session: Session) -> _authentik.Sender:
    def send(action: Action) -> Document:
        identifier = f"ak-outpost-{session.id_of('outpost', action.key)}-api"
        key = (action.desired or {})["key"]
        waited = 0.0
        while True:
            try:
                _authentik.set_key(session, identifier, key)
            except ApiError as error:
                if error.status != 404 or waited >= TOKEN_WAIT:
                    raise
                _http._sleep(1.0)
                waited += 1.0
            else:
                return {"outpost": action.key}

    return send


def _send_permission(session: Session) -> _authentik.Sender:
    def send(action: Action) -> Document:
        desired = action.desired or {}
        session.api.request(
            "POST",
            f"/rbac/permissions/assigned_by_roles/{session.id_of('role', desired['role'])}/assign/",
            body={
                "permissions": [f"{LDAP_APP}.{SEARCH}"],
                "model": LDAP_MODEL,
                "object_pk": str(session.id_of("provider", desired["provider"])),
            },
            repeatable=True,  # what is assigned already is assigned once
        )
        return desired

    return send


def main() -> None:
    _authentik.main(SPEC, make_plan)


if __name__ == "__main__":
    main()
