#!/usr/bin/python
# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: authentik_scope_mappings
short_description: Scope mappings of Authentik
version_added: 1.0.0
description:
  - Creates, updates and deletes the scope mappings of OAuth2 and proxy providers.
  - A set module. One task declares many objects; what is not declared is left alone unless O(purge=true).
  - Only the options that are given are compared and sent.
  - The default mappings are never changed. To say something else, declare a mapping of another name for the same scope.
author:
  - KiteStacks maintainers (@kitestacks)
extends_documentation_fragment:
  - kitestacks.homelab.attributes
  - kitestacks.homelab.connection
  - kitestacks.homelab.authentik
  - kitestacks.homelab.authentik.purge
options:
  scope_mappings:
    description:
      - The mappings.
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
      scope_name:
        description:
          - Scope that a client asks for. Needed for a new mapping.
        type: str
      expression:
        description:
          - Body of a Python function that returns the claims. Needed for a new mapping.
        type: str
      description:
        description:
          - What the user is asked to consent to.
        type: str
"""

EXAMPLES = r"""
- name: Applications that demand a verified address get one
  kitestacks.homelab.authentik_scope_mappings:
    url: "{{ authentik_url }}"
    token: "{{ authentik_token }}"
    scope_mappings:
      - name: kitestacks-email-verified
        scope_name: email
        description: E-mail address
        expression: |
          return {"email": request.user.email, "email_verified": True}
    purge: true
    purge_name_prefix: kitestacks-
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
      sample: scope mapping
    key:
      description: Name of the object.
      type: str
      sample: kitestacks-email-verified
    action:
      description: What was done, or would be done in check mode.
      type: str
      sample: updated
    id:
      description: Id of the object, V(null) in check mode for one that does not exist yet.
      type: raw
      sample: 0ed15600-fb20-43a2-9caa-3b049b0a3450
    changes:
      description: Fields that changed, by dotted path.
      type: list
      elements: str
      sample: [expression]
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
from ansible_collections.kitestacks.homelab.plugins.module_utils._authentik import SCOPE_MAPPING, Session, stated
from ansible_collections.kitestacks.homelab.plugins.module_utils._reconcile import Action, PlanError, plan

OPTION = "scope_mappings"
SPEC: dict[str, dict[str, t.Any]] = {
    OPTION: {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "description": {"type": "str"},
            "expression": {"type": "str"},
            "name": {"type": "str", "required": True},
            "scope_name": {"type": "str"},
            "state": {"type": "str", "choices": ["absent", "present"], "default": "present"},
        },
    },
    **_authentik.purge_spec(owner=False),
}


def make_plan(session: Session) -> list[Action]:
    """Return what has to be done."""
    items = session.module.params[OPTION]
    _authentik.named_twice(OPTION, SCOPE_MAPPING, [item["name"] for item in items])
    live = session.live(SCOPE_MAPPING)
    by_name = {document["name"]: document for document in live}
    present = []
    for item in items:
        if item["state"] == "absent":
            continue
        where = f"{OPTION}: {item['name']}"
        found = by_name.get(item["name"])
        if found is not None and found["managed"]:
            raise PlanError(f"{where}: is one of Authentik's own, which it resets; declare one of another name")
        for name in ("scope_name", "expression"):
            if (found is None or item[name] is not None) and not (item[name] or "").strip():
                raise PlanError(f"{where}: {name}: is empty" if found else f"{where}: {name}: a new mapping needs it")
        present.append(stated(item, "state"))
    absent = [item for item in items if item["state"] == "absent"]
    _authentik.refuse_protected(SCOPE_MAPPING, OPTION, live, [item["name"] for item in absent])
    ours = session.purge(SCOPE_MAPPING, OPTION, present)
    return plan(SCOPE_MAPPING, present, live, absent=absent, purge=ours, option=OPTION)


def main() -> None:
    _authentik.main(SPEC, make_plan)


if __name__ == "__main__":
    main()
