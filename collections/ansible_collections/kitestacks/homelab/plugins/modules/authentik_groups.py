#!/usr/bin/python
# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: authentik_groups
short_description: Groups of Authentik
version_added: 1.0.0
description:
  - Creates, updates and deletes groups, their parents, roles and members.
  - A set module. One task declares many objects; what is not declared is left alone unless O(purge=true).
  - Only the options that are given are compared and sent.
author:
  - KiteStacks maintainers (@kitestacks)
extends_documentation_fragment:
  - kitestacks.homelab.attributes
  - kitestacks.homelab.connection
  - kitestacks.homelab.authentik
  - kitestacks.homelab.authentik.purge
  - kitestacks.homelab.authentik.owner
options:
  groups:
    description:
      - The groups.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - Name, unique on the server.
        type: str
        required: true
      state:
        description:
          - Whether it shall exist.
        type: str
        choices: [absent, present]
        default: present
      is_superuser:
        description:
          - Whether the members are administrators of Authentik.
        type: bool
      parents:
        description:
          - Groups that this one belongs to; the whole list. Needs Authentik 2025.12.
        type: list
        elements: str
      roles:
        description:
          - Roles that the group has; the whole list.
        type: list
        elements: str
      users:
        description:
          - User names of the members; the whole list. Leave it out where M(kitestacks.homelab.authentik_users) says it.
        type: list
        elements: str
      attributes:
        description:
          - Attributes to set; others stay as they are.
        type: dict
"""

EXAMPLES = r"""
- name: The groups of the household exist, and none that was once declared here
  kitestacks.homelab.authentik_groups:
    url: "{{ authentik_url }}"
    token: "{{ authentik_token }}"
    groups:
      - name: kitestacks-users
      - name: kitestacks-admins
        parents:
          - kitestacks-users
        attributes:
          notes: People who look after the homelab
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
      sample: group
    key:
      description: Name of the object.
      type: str
      sample: kitestacks-admins
    action:
      description: What was done, or would be done in check mode.
      type: str
      sample: updated
    id:
      description: Id of the object, V(null) in check mode for one that does not exist yet.
      type: raw
      sample: d329022d-c9c5-4c61-906c-83f36f5e3aa0
    changes:
      description: Fields that changed, by dotted path.
      type: list
      elements: str
      sample: [parents]
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

from ansible_collections.kitestacks.homelab.plugins.module_utils import _authentik
from ansible_collections.kitestacks.homelab.plugins.module_utils._authentik import GROUP, Session, stated
from ansible_collections.kitestacks.homelab.plugins.module_utils._reconcile import Action, Document, PlanError, plan

OPTION = "groups"
SPEC: dict[str, dict[str, t.Any]] = {
    OPTION: {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "attributes": {"type": "dict"},
            "is_superuser": {"type": "bool"},
            "name": {"type": "str", "required": True},
            "parents": {"type": "list", "elements": "str"},
            "roles": {"type": "list", "elements": "str"},
            "state": {"type": "str", "choices": ["absent", "present"], "default": "present"},
            "users": {"type": "list", "elements": "str"},
        },
    },
    **_authentik.purge_spec(owner=True),
}


def make_plan(session: Session) -> list[Action]:
    """Return what has to be done, parents before their children."""
    items = session.module.params[OPTION]
    _authentik.named_twice(OPTION, GROUP, [item["name"] for item in items])
    names = {item["name"] for item in items if item["state"] == "present"}
    gone = {item["name"] for item in items if item["state"] == "absent"}
    present = []
    for item in items:
        if item["state"] == "absent":
            continue
        where = f"{OPTION}: {item['name']}"
        lost = sorted(gone & set(item["parents"] or ()))
        if lost:
            raise PlanError(f"{where}: parents: {lost[0]!r} is declared absent")
        desired = session.check(GROUP, where, stated(item, "state"), {"group": names})
        present.append(session.own(GROUP, where, desired))
    absent = [{"name": name} for name in sorted(gone)]
    live = session.live(GROUP)
    _authentik.refuse_protected(GROUP, OPTION, live, gone)
    ours = session.purge(GROUP, OPTION, present)
    return plan(GROUP, parents_first(present), live, absent=absent, purge=ours, option=OPTION)


def parents_first(groups: list[Document]) -> list[Document]:
    """Return the groups in an order in which each one's declared parents come before it.

    Raises:
        PlanError: a group is its own ancestor.

    """
    rest = {group["name"]: group for group in groups}
    ordered: list[Document] = []
    while rest:
        ready = [group for group in rest.values() if not any(name in rest for name in group.get("parents", ()))]
        if not ready:
            raise PlanError(f"{OPTION}: {min(rest)}: parents: the group would be its own ancestor")
        for group in ready:
            ordered.append(rest.pop(group["name"]))
    return ordered


def main() -> None:
    _authentik.main(SPEC, make_plan)


if __name__ == "__main__":
    main()
