#!/usr/bin/python
# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: authentik_blueprints
short_description: Blueprints of Authentik, applied
version_added: 1.0.0
description:
  - Creates, updates and deletes blueprint instances, and waits until Authentik has applied what changed.
  - A set module. One task declares many objects; what is not declared is left alone unless O(purge=true).
  - Only the options that are given are compared and sent.
  - Authentik applies a blueprint in the background. The module fails when it ends with an error.
  - Deleting a blueprint does not delete what it made.
  - The key C(kitestacks_pending) in the context says whether a run was cut off before the blueprint was applied.
author:
  - KiteStacks maintainers (@kitestacks)
extends_documentation_fragment:
  - kitestacks.homelab.attributes
  - kitestacks.homelab.connection
  - kitestacks.homelab.authentik
  - kitestacks.homelab.authentik.purge
options:
  blueprints:
    description:
      - The blueprints.
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
      content:
        description:
          - The blueprint itself, as YAML text. A new one needs this or O(blueprints[].path).
        type: str
      path:
        description:
          - Path of a file below the worker's blueprint folder.
        type: str
      context:
        description:
          - Values that the blueprint reads; other keys stay as they are.
        type: dict
      enabled:
        description:
          - Whether it is applied at all.
        type: bool
        default: true
  wait_timeout:
    description:
      - Seconds to wait for a blueprint to be applied.
    type: int
    default: 120
"""

EXAMPLES = r"""
- name: A group that only a blueprint can describe
  kitestacks.homelab.authentik_blueprints:
    url: "{{ authentik_url }}"
    token: "{{ authentik_token }}"
    blueprints:
      - name: kitestacks-guests
        content: |
          version: 1
          metadata:
            name: kitestacks-guests
          entries:
            - model: authentik_core.group
              identifiers:
                name: kitestacks-guests
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
      sample: blueprint
    key:
      description: Name of the object.
      type: str
      sample: kitestacks-guests
    action:
      description: What was done, or would be done in check mode.
      type: str
      sample: updated
    id:
      description: Id of the object, V(null) in check mode for one that does not exist yet.
      type: raw
      sample: 51777b0b-85fd-4ff7-872c-a6bf47fed9f6
    changes:
      description: Fields that changed, by dotted path.
      type: list
      elements: str
      sample: [content]
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

import hashlib
import re
import typing as t
from dataclasses import replace

from ansible_collections.kitestacks.homelab.plugins.module_utils import _authentik, _http
from ansible_collections.kitestacks.homelab.plugins.module_utils._authentik import (
    BLUEPRINT,
    PENDING,
    Resource,
    Session,
    stated,
    strip,
)
from ansible_collections.kitestacks.homelab.plugins.module_utils._http import ApiError
from ansible_collections.kitestacks.homelab.plugins.module_utils._reconcile import (
    Action,
    Document,
    PlanError,
    compare,
    get,
    plan,
)

OPTION = "blueprints"
SPEC: dict[str, dict[str, t.Any]] = {
    OPTION: {
        "type": "list",
        "elements": "dict",
        "required": True,
        "mutually_exclusive": [("content", "path")],
        "options": {
            "content": {"type": "str"},
            "context": {"type": "dict"},
            "enabled": {"type": "bool", "default": True},
            "name": {"type": "str", "required": True},
            "path": {"type": "str"},
            "state": {"type": "str", "choices": ["absent", "present"], "default": "present"},
        },
    },
    "wait_timeout": {"type": "int", "default": 120},
    **_authentik.purge_spec(owner=False),
}
KIND = replace(BLUEPRINT, merged=frozenset({"context"}), defaults={f"context.{PENDING}": False})
# That a blueprint was applied is no object of the API, but a step that can fail by itself.
RUN = Resource(name="blueprint run", key=("name",), id="name")


def make_plan(session: Session) -> list[Action]:
    """Return what has to be done: each blueprint is written with a mark, applied, and the mark taken off."""
    items = session.module.params[OPTION]
    _authentik.named_twice(OPTION, KIND, [item["name"] for item in items])
    session.load("blueprint")
    live = session.live(KIND)
    found = {document["name"]: document for document in live}
    actions: list[Action] = []
    for item in items:
        if item["state"] == "present":
            actions += _plan_one(item, found.get(item["name"]))
    present = [item for item in items if item["state"] == "present"]
    gone = {item["name"] for item in items if item["state"] == "absent"}
    _authentik.refuse_protected(KIND, OPTION, live, gone)
    ours = session.purge(KIND, OPTION, present)
    rest = [document for document in live if document["name"] not in {item["name"] for item in present}]
    actions += plan(KIND, [], rest, absent=[{"name": name} for name in sorted(gone)], purge=ours, option=OPTION)
    session.senders["blueprint run"] = _send_run(session)
    session.readers["blueprint run"] = list
    return actions


def _plan_one(item: t.Mapping[str, t.Any], found: Document | None) -> list[Action]:
    where = f"{OPTION}: {item['name']}"
    if found is None and not item["content"] and not item["path"]:
        raise PlanError(f"{where}: content: a new blueprint needs it, or path")
    if item["content"] is not None and not re.search(r"^version:\s*1\s*$", item["content"], re.MULTILINE):
        raise PlanError(f"{where}: content: is no blueprint; it has no line 'version: 1'")
    desired = stated(item, "state")
    context = desired.pop("context", {})
    if PENDING in context:
        raise PlanError(f"{where}: context: {PENDING} is a mark of this module")
    main = compare(KIND, {**desired, "context": {**context, PENDING: False}}, found)
    changed = [name for name in main.changes if name != f"context.{PENDING}"]
    if not item["enabled"] or (main.action == "unchanged" and (found or {}).get("status") == "successful"):
        return [main]
    run = {"name": item["name"], "status": "successful"}
    state = {"name": item["name"], "status": "unknown" if found is None else found["status"]}
    marked = {**desired, "context": {**context, PENDING: True}}
    first = (
        compare(KIND, marked, found) if changed or found is None else Action(KIND, "unchanged", main.key, marked, found)
    )
    return [first, Action(RUN, "update", item["name"], run, state, ("status",))]


def _send_run(session: Session) -> _authentik.Sender:
    timeout = session.module.params["wait_timeout"]

    def send(action: Action) -> Document:
        path = f"{KIND.path}{session.id_of('blueprint', action.key)}/"
        before = session.api.get(path)
        session.api.request("POST", f"{path}apply/", repeatable=True)
        waited = 0.0
        while True:
            now = session.api.get(path)
            ended = now["last_applied"] != before["last_applied"]
            if _applied(now, ended=ended):
                break
            if ended and now["status"] in ("error", "orphaned", "warning"):
                message = f"Authentik could not apply it: status {now['status']}; the log of its worker says why"
                raise ApiError("POST", f"{path}apply/", 200, None, message)
            if waited >= timeout:
                message = f"not applied within {timeout} s (status {now['status']}); does the worker run?"
                raise ApiError("POST", f"{path}apply/", 200, None, message)
            _http._sleep(1.0)
            waited += 1.0
        if get(now, f"context.{PENDING}"):
            session.api.request("PATCH", path, body={"context": {**now["context"], PENDING: False}})
        return {"name": action.key}

    return send


def _applied(now: Document, *, ended: bool) -> bool:
    """Tell whether the stored content is the applied one: Authentik keeps the hash of what it applied last."""
    if now["status"] != "successful":
        return False
    if now["path"]:
        return ended
    return bool(now["last_applied_hash"] == hashlib.sha512(strip(now["content"]).encode()).hexdigest()) or ended


def main() -> None:
    _authentik.main(SPEC, make_plan)


if __name__ == "__main__":
    main()
