#!/usr/bin/python
# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: authentik_users
short_description: Users and service accounts of Authentik, with their tokens
version_added: 1.0.0
description:
  - Creates, updates and deletes users, service accounts, and tokens and app passwords of theirs.
  - A set module. One task declares many objects; what is not declared is left alone unless O(purge=true).
  - Only the options that are given are compared and sent.
  - A password cannot be read back. It is set when the user is made, and again when a run was cut off before that.
  - The key of each declared token is read to compare it, one request each; Authentik logs that as an event.
author:
  - KiteStacks maintainers (@kitestacks)
extends_documentation_fragment:
  - kitestacks.homelab.attributes
  - kitestacks.homelab.connection
  - kitestacks.homelab.authentik
  - kitestacks.homelab.authentik.purge
  - kitestacks.homelab.authentik.owner
attributes:
  idempotent:
    support: partial
    details: With O(users[].update_password=always) a password is set, and counts as changed, at every run.
options:
  users:
    description:
      - The users.
    type: list
    elements: dict
    required: true
    suboptions:
      username:
        description:
          - Name to sign in with, unique.
        type: str
        required: true
      state:
        description:
          - Whether it shall exist.
        type: str
        choices: [absent, present]
        default: present
      name:
        description:
          - Name that is shown. Defaults to the user name for a new user.
        type: str
      email:
        description:
          - E-mail address.
        type: str
      type:
        description:
          - Person of the household, guest, or account of a program.
        type: str
        choices: [external, internal, service_account]
      is_active:
        description:
          - Whether the user may sign in.
        type: bool
      path:
        description:
          - Folder that the user is listed in.
        type: str
      groups:
        description:
          - Names of the groups that the user belongs to; the whole list.
        type: list
        elements: str
      roles:
        description:
          - Names of the roles that the user has; the whole list. Needs Authentik 2025.12.
        type: list
        elements: str
      attributes:
        description:
          - Attributes to set; others stay as they are.
        type: dict
      password:
        description:
          - Password. People are better sent a recovery link.
        type: str
      update_password:
        description:
          - Whether the password is set at every run, which always counts as a change.
        type: str
        choices: [always, on_create]
        default: on_create
      tokens:
        description:
          - Tokens of the user; others stay as they are.
        type: list
        elements: dict
        suboptions:
          identifier:
            description:
              - Name of the token, unique on the server.
            type: str
            required: true
          state:
            description:
              - Whether it shall exist.
            type: str
            choices: [absent, present]
            default: present
          key:
            description:
              - The secret itself. Needed unless O(users[].tokens[].state=absent).
            type: str
          intent:
            description:
              - What it is for; V(app_password) stands in for the password at the LDAP outpost.
            type: str
            choices: [api, app_password]
            default: app_password
          description:
            description:
              - Line of text.
            type: str
          expiring:
            description:
              - Whether it ends by itself.
            type: bool
            default: false
"""

EXAMPLES = r"""
- name: A person, and the account with which osTicket searches the directory
  kitestacks.homelab.authentik_users:
    url: "{{ authentik_url }}"
    token: "{{ authentik_token }}"
    users:
      - username: robin
        name: Robin Example
        email: robin@example.org
        groups:
          - authentik Admins
      - username: ldap-search
        type: service_account
        path: goauthentik.io/service-accounts
        tokens:
          - identifier: ldap-search-password
            key: "{{ ldap_search_password }}"
    owner: kitestacks
    purge: true
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
      sample: user
    key:
      description: Name of the object.
      type: str
      sample: robin
    action:
      description: What was done, or would be done in check mode.
      type: str
      sample: updated
    id:
      description: Id of the object, V(null) in check mode for one that does not exist yet.
      type: raw
      sample: 5
    changes:
      description: Fields that changed, by dotted path.
      type: list
      elements: str
      sample: [email]
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

import re
import typing as t

from ansible_collections.kitestacks.homelab.plugins.module_utils import _authentik
from ansible_collections.kitestacks.homelab.plugins.module_utils._authentik import (
    PENDING,
    TOKEN,
    USER,
    Resource,
    Session,
    stated,
)
from ansible_collections.kitestacks.homelab.plugins.module_utils._reconcile import (
    Action,
    Document,
    PlanError,
    get,
    plan,
)

OPTION = "users"
SPEC: dict[str, dict[str, t.Any]] = {
    OPTION: {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "attributes": {"type": "dict"},
            "email": {"type": "str"},
            "groups": {"type": "list", "elements": "str"},
            "is_active": {"type": "bool"},
            "name": {"type": "str"},
            "password": {"type": "str", "no_log": True},
            "path": {"type": "str"},
            "roles": {"type": "list", "elements": "str"},
            "state": {"type": "str", "choices": ["absent", "present"], "default": "present"},
            "tokens": {
                "type": "list",
                "elements": "dict",
                "no_log": False,
                "options": {
                    "description": {"type": "str"},
                    "expiring": {"type": "bool", "default": False},
                    "identifier": {"type": "str", "required": True},
                    "intent": {"type": "str", "choices": ["api", "app_password"], "default": "app_password"},
                    "key": {"type": "str", "no_log": True},
                    "state": {"type": "str", "choices": ["absent", "present"], "default": "present"},
                },
                "required_if": [("state", "present", ["key"])],
            },
            "type": {"type": "str", "choices": ["external", "internal", "service_account"]},
            "update_password": {
                "type": "str",
                "choices": ["always", "on_create"],
                "default": "on_create",
                "no_log": False,
            },
            "username": {"type": "str", "required": True},
        },
    },
    **_authentik.purge_spec(owner=True),
}
# A password is no object of the API, but a step that can fail by itself.
PASSWORD = Resource(name="password", key=("username",), id="username", secret=frozenset({"password"}))


def make_plan(session: Session) -> list[Action]:
    """Return what has to be done: users, then their passwords and tokens, then deletions."""
    items = session.module.params[OPTION]
    _authentik.named_twice(OPTION, USER, [item["username"] for item in items])
    present = [item for item in items if item["state"] == "present"]
    gone = {item["username"] for item in items if item["state"] == "absent"}
    session.load("user")
    desired = [_declared(session, item) for item in present]
    live = session.live(USER)
    by_name = {document["username"]: document for document in live}
    passwords = []
    for item, document in zip(present, desired):
        passwords.extend(_plan_password(item, document, by_name.get(item["username"])))
    _authentik.refuse_protected(USER, OPTION, live, gone)
    ours = session.purge(USER, OPTION, desired)
    absent = [{"username": name} for name in sorted(gone)]
    users = plan(USER, desired, live, absent=absent, purge=ours, option=OPTION)
    _keep_ourselves(session, users)
    tokens, old_tokens = _plan_tokens(session, present)
    session.senders.update({"password": _send_password(session), "token key": _authentik.send_token_key(session)})
    session.readers.update({"password": list, "token key": _authentik.read_token_keys(session, tokens)})
    kept = [action for action in users if action.action != "delete"]
    deleted = [action for action in users if action.action == "delete"]
    return [*kept, *passwords, *tokens, *old_tokens, *deleted]


def _declared(session: Session, item: t.Mapping[str, t.Any]) -> Document:
    where = f"{OPTION}: {item['username']}"
    if len(item["username"]) > 150:
        raise PlanError(f"{where}: username: is longer than 150 characters")
    if item["email"] and not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", item["email"]):
        raise PlanError(f"{where}: email: {item['email']!r} is no e-mail address")
    if item["password"] == "":
        raise PlanError(f"{where}: password: is empty")
    document = stated(item, "state", "password", "update_password", "tokens")
    if session.id_of("user", item["username"]) is None:
        document.setdefault("name", item["username"])
    return session.own(USER, where, session.check(USER, where, document))


def _plan_password(item: t.Mapping[str, t.Any], desired: Document, found: Document | None) -> list[Action]:
    """Plan the password; a new user carries a mark until it is set, for the run after one that was cut off."""
    if item["password"] is None:
        return []
    marked = bool(get(found, f"attributes.{PENDING}"))
    if found is None:
        desired["attributes"] = {**desired.get("attributes", {}), PENDING: True}
    elif not marked and item["update_password"] != "always":  # noqa: S105
        return []
    known = {"username": item["username"]}
    return [Action(PASSWORD, "update", item["username"], {**known, "password": item["password"]}, known, ("password",))]


def _send_password(session: Session) -> _authentik.Sender:
    def send(action: Action) -> Document:
        identifier = session.id_of("user", action.key)
        path = f"/core/users/{identifier}/"
        session.api.request("POST", f"{path}set_password/", body=_password(action), repeatable=True)
        attributes = session.api.get(path)["attributes"]
        if attributes.get(PENDING):
            session.api.request("PATCH", path, body={"attributes": {**attributes, PENDING: False}})
        return {"username": action.key}

    return send


def _password(action: Action) -> Document:
    return {"password": (action.desired or {})["password"]}


def _keep_ourselves(session: Session, users: t.Iterable[Action]) -> None:
    """Refuse to delete the user whose token this is."""
    if any(action.action == "delete" for action in users):
        me = session.api.get("/core/users/me/")["user"]["username"]
        if any(action.action == "delete" and action.key == me for action in users):
            raise PlanError(f"{OPTION}: {me}: state: the option token is a token of this user; it stays")


def _plan_tokens(session: Session, items: t.Sequence[t.Mapping[str, t.Any]]) -> tuple[list[Action], list[Action]]:
    """Return what has to be done to tokens: creations, updates and keys, and deletions."""
    declared = [(item["username"], token) for item in items for token in item["tokens"] or ()]
    if not declared:
        return [], []
    _authentik.named_twice(f"{OPTION}: tokens", TOKEN, [token["identifier"] for _user, token in declared])
    live = session.live(TOKEN)
    by_name = {document["identifier"]: document for document in live}
    actions, gone = [], []
    for username, token in declared:
        where = f"{OPTION}: {username}: tokens: {token['identifier']}"
        if not re.fullmatch(r"[-a-zA-Z0-9_]{1,255}", token["identifier"]):
            raise PlanError(f"{where}: identifier: may hold letters, digits, hyphens and underscores only")
        found = by_name.get(token["identifier"])
        if found is not None and found["user"] != username:
            raise PlanError(f"{where}: identifier: is that of a token of the user {found['user']!r}")
        if token["state"] == "absent":
            gone.extend(plan(TOKEN, [], [found] if found else [], absent=[token], option=OPTION))
            continue
        if not token["key"]:
            raise PlanError(f"{where}: key: is empty")
        document = {**stated(token, "state", "key"), "user": username}
        document = session.check(TOKEN, where, document, {"user": [item["username"] for item in items]})
        actions += plan(TOKEN, [document], [found] if found else [], option=OPTION)
        actions.append(_authentik.plan_token_key(session, token["identifier"], token["key"], exists=found is not None))
    return actions, gone


def main() -> None:
    _authentik.main(SPEC, make_plan)


if __name__ == "__main__":
    main()
