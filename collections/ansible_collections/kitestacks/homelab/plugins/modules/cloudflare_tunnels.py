#!/usr/bin/python
# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cloudflare_tunnels
short_description: Manage the tunnels of a Cloudflare account in one pass
version_added: 1.0.0
description:
  - Creates, adopts and deletes Cloudflare Tunnels. Tunnels are told apart by name. Deleted ones, which the API keeps
    for months, are ignored.
  - A tunnel is deleted after its connections were closed.
  - The API never gives the secret of a tunnel back, so it cannot be compared. It is set when the tunnel is created, and
    replaced when O(tunnels[].rotate_secret=true) says so.
extends_documentation_fragment:
  - kitestacks.homelab.attributes
  - kitestacks.homelab.cloudflare
  - kitestacks.homelab.cloudflare.account
  - kitestacks.homelab.cloudflare.purge
  - kitestacks.homelab.connection
attributes:
  idempotent:
    support: partial
    description: A tunnel with O(tunnels[].rotate_secret=true) is changed by every run.
options:
  tunnels:
    description: The tunnels.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the tunnel.
        type: str
        required: true
      config_src:
        description:
          - Where its configuration is kept, V(cloudflare) or in a file beside the connector (V(local)). It is fixed
            when the tunnel is created.
        type: str
        choices:
          - cloudflare
          - local
        default: cloudflare
      tunnel_secret:
        description: Secret of a new tunnel, base64 of 32 bytes or more. Cloudflare makes one when this is not set.
        type: str
      rotate_secret:
        description:
          - Whether to replace the secret of a tunnel that exists by O(tunnels[].tunnel_secret). Running connectors keep
            their connections until they are restarted with the new token.
        type: bool
        default: false
      state:
        description: Whether the tunnel shall exist.
        type: str
        choices:
          - present
          - absent
        default: present
  return_token:
    description:
      - Whether RV(tunnels) holds the token that a connector is started with. It needs one more request for each tunnel.
      - The token is a secret. Set C(no_log=true) on the task.
    type: bool
    default: false
seealso:
  - module: kitestacks.homelab.cloudflare_tunnel_config
author:
  - KiteStacks maintainers (@kitestacks)
"""

EXAMPLES = r"""
- name: The tunnel of the homelab exists
  kitestacks.homelab.cloudflare_tunnels:
    tunnels:
      - name: homelab
  register: tunnels

- name: The token of the tunnel is known
  kitestacks.homelab.cloudflare_tunnels:
    tunnels:
      - name: homelab
    return_token: true
  no_log: true

- name: Old tunnels are gone
  kitestacks.homelab.cloudflare_tunnels:
    tunnels:
      - name: homelab
      - name: homelab-old
        state: absent
    purge: true
    purge_name_prefix: homelab-
"""

RETURN = r"""
tunnels:
  description: The declared tunnels by name. One that check mode would create is missing.
  returned: success
  type: dict
  contains:
    id:
      description: Id of the tunnel.
      type: str
      sample: 00000000-0000-4000-8000-000000000001
    cname:
      description: What the DNS records of its public names point to.
      type: str
      sample: 00000000-0000-4000-8000-000000000001.cfargotunnel.com
    status:
      description: V(inactive), V(healthy), V(degraded) or V(down).
      type: str
      sample: healthy
    token:
      description: The token, when O(return_token=true).
      type: str
  sample:
    homelab:
      id: 00000000-0000-4000-8000-000000000001
      cname: 00000000-0000-4000-8000-000000000001.cfargotunnel.com
      status: healthy
results:
  description: What was done to each declared tunnel and each that was deleted, in check mode what would be done.
  returned: success
  type: list
  elements: dict
  sample: [{kind: tunnel, key: homelab, action: created, id: 00000000-0000-4000-8000-000000000001, changes: []}]
stats:
  description: What it took.
  returned: success
  type: dict
  sample: {requests: 3, retries: 0, created: 1, updated: 0, deleted: 0, unchanged: 0}
applied:
  description: On failure, what was done before it, as in RV(results).
  returned: failure while writing
  type: list
  elements: dict
failed_items:
  description: On failure, the change that failed, with C(error).
  returned: failure while writing
  type: list
  elements: dict
pending:
  description: On failure, what was not tried.
  returned: failure while writing
  type: list
  elements: dict
"""

import base64
import typing as t

from ansible_collections.kitestacks.homelab.plugins.module_utils import _cloudflare
from ansible_collections.kitestacks.homelab.plugins.module_utils._apply import Ids, Step, delete, run, write
from ansible_collections.kitestacks.homelab.plugins.module_utils._reconcile import (
    Action,
    Document,
    PlanError,
    fixed_changes,
    plan,
)

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

SPEC: dict[str, dict[str, t.Any]] = {
    **_cloudflare.ACCOUNT_SPEC,
    **_cloudflare.PURGE_SPEC,
    "tunnels": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "config_src": {"type": "str", "choices": ["cloudflare", "local"], "default": "cloudflare"},
            "tunnel_secret": {"type": "str", "no_log": True},
            "rotate_secret": {"type": "bool", "default": False, "no_log": False},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
    },
    "return_token": {"type": "bool", "default": False, "no_log": False},
}
# "Active connections": those that were closed a moment ago may still be counted, and connectors return within seconds.
STILL_CONNECTED = frozenset({1022})


def reconcile(module: AnsibleModule, api: _cloudflare.Cloudflare) -> dict[str, t.Any]:
    """Bring the tunnels to what is declared."""
    items = module.params["tunnels"]
    desired = [declared(item, f"tunnels[{number}]") for number, item in enumerate(items) if item["state"] == "present"]
    absent = [{"name": item["name"]} for item in items if item["state"] == "absent"]
    purge = _cloudflare.owned_by_prefix(module, desired)
    account = api.account_id(module.params["account_id"])
    kind = _cloudflare.TUNNEL.at(account_id=account)
    current = api.tunnels(account)
    actions = plan(kind, desired, current, absent=absent, purge=purge, option="tunnels")
    rotate = {item["name"] for item in items if item["rotate_secret"] and item["state"] == "present"}
    for action in actions:
        check_fixed(action)
        if action.key in rotate and action.action == "unchanged":
            action.action, action.changes = "update", ("tunnel_secret",)
    ids: Ids = {}

    def steps() -> list[Step]:
        return [
            Step([action], lambda batch: [send(api, item, ids) for item in batch], STILL_CONNECTED)
            for action in actions
            if action.action != "unchanged"
        ]

    found = run(module, api, actions, steps, ids=ids, relist=lambda _kind: api.tunnels(account))
    status = {tunnel["id"]: tunnel.get("status") for tunnel in current}
    shown = {
        line["key"]: {
            "id": line["id"],
            "cname": f"{line['id']}.cfargotunnel.com",
            "status": status.get(line["id"], "inactive"),
        }
        for line in found["results"]
        if line["id"] is not None and line["action"] != "deleted"
    }
    if module.params["return_token"]:
        for tunnel in shown.values():
            tunnel["token"] = api.get(f"{kind.path}/{tunnel['id']}/token")
        found["stats"]["requests"] = api.stats.requests
    return {**found, "tunnels": shown}


def declared(item: t.Mapping[str, t.Any], where: str) -> Document:
    """Check a declared tunnel and return it as the API has it.

    Raises:
        PlanError: naming the item and the option.
    """
    label = f"{where} ({item['name']})"
    if not item["name"].strip():
        raise PlanError(f"{where}.name: is empty")
    found = {"name": item["name"], "config_src": item["config_src"]}
    secret = item["tunnel_secret"]
    if secret is None:
        if item["rotate_secret"]:
            raise PlanError(f"{label}.rotate_secret: needs the new tunnel_secret")
        return found
    try:
        size = len(base64.b64decode(secret, validate=True))
    except ValueError:
        raise PlanError(f"{label}.tunnel_secret: is no base64") from None
    if size < 32:
        raise PlanError(f"{label}.tunnel_secret: has {size} bytes, at least 32 are needed")
    return {**found, "tunnel_secret": secret}


def check_fixed(action: Action) -> None:
    """Refuse what cannot be changed.

    Raises:
        PlanError: naming the tunnel and the option.
    """
    if action.desired is None or action.current is None:
        return
    for name in fixed_changes(action.kind, action.desired, action.current):
        raise PlanError(
            f"tunnels ({action.key}).{name}: is {action.current.get(name)} since the tunnel was created and cannot "
            f"become {action.desired[name]}; delete the tunnel or declare it as it is"
        )


def send(api: _cloudflare.Cloudflare, action: Action, ids: Ids) -> Document | None:
    """Carry out one change; connections are closed before a tunnel is deleted, else the API refuses."""
    if action.action == "delete":
        delete(api, f"{action.kind.path}/{action.id}/connections")
    return write(api, action, ids)


def main() -> None:
    """Run the module."""
    _cloudflare.main(SPEC, reconcile)


if __name__ == "__main__":
    main()
