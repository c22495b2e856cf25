#!/usr/bin/python
# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cloudflare_info
short_description: Tell what a Cloudflare API token can see and do
version_added: 1.0.0
description:
  - Returns the zone, the account and the state of the API token, and says by name which permissions the token lacks.
  - The API does not tell a token its own permissions, so each one that is asked for in O(permissions) is tried by a
    request that cannot change anything. Reading ones list one object. Writing ones send an empty batch or address an
    object with an id that cannot exist.
extends_documentation_fragment:
  - kitestacks.homelab.attributes.info
  - kitestacks.homelab.cloudflare
  - kitestacks.homelab.cloudflare.account
  - kitestacks.homelab.connection
options:
  zone:
    description: Name of a zone to look up. Needed to check C(dns_read) and C(dns_write).
    type: str
  permissions:
    description: Permissions to check.
    type: list
    elements: str
    choices:
      - access_apps_read
      - access_apps_write
      - access_organizations_read
      - access_organizations_write
      - dns_read
      - dns_write
      - tunnel_read
      - tunnel_write
      - zone_read
    default: []
author:
  - KiteStacks maintainers (@kitestacks)
"""

EXAMPLES = r"""
- name: Find out what the token may do
  kitestacks.homelab.cloudflare_info:
    zone: example.com
    permissions:
      - zone_read
      - dns_write
      - tunnel_write
  register: cloudflare

- name: The token has every permission that is needed
  ansible.builtin.assert:
    that: cloudflare.missing_permissions | length == 0
    fail_msg: "The Cloudflare API token lacks: {{ cloudflare.missing_permissions | join(', ') }}"
"""

RETURN = r"""
token:
  description: State of the API token.
  returned: success
  type: dict
  contains:
    id:
      description: Id of the token.
      type: str
      sample: 00000000000000000000000000000003
    status:
      description: V(active), V(disabled) or V(expired).
      type: str
      sample: active
    expires_on:
      description: When it expires. Null when it does not.
      type: str
  sample: {id: "00000000000000000000000000000003", status: active, expires_on: null}
account:
  description: The account. Null when the token sees none, or several and O(account_id) is not set.
  returned: success
  type: dict
  sample: {id: "00000000000000000000000000000001", name: Home}
zone:
  description: The zone. Null when O(zone) is not set or the token does not see it.
  returned: success
  type: dict
  sample:
    id: "00000000000000000000000000000065"
    name: example.com
    status: active
    plan: free
    name_servers: [ada.ns.example.net, bob.ns.example.net]
permissions:
  description: Whether the token has each permission in O(permissions).
  returned: success
  type: dict
  sample: {zone_read: true, dns_write: false}
missing_permissions:
  description: Those it lacks, under the names that Cloudflare's dashboard has for them.
  returned: success
  type: list
  elements: str
  sample: ["Zone > DNS > Edit"]
stats:
  description: What it took.
  returned: success
  type: dict
  sample: {requests: 5, retries: 0}
"""

import typing as t

from ansible_collections.kitestacks.homelab.plugins.module_utils import _cloudflare
from ansible_collections.kitestacks.homelab.plugins.module_utils._http import ApiError
from ansible_collections.kitestacks.homelab.plugins.module_utils._reconcile import Document, PlanError

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

# No object has this id.
NOBODY = "00000000-0000-0000-0000-000000000000"
_TUNNELS = "/accounts/{account}/cfd_tunnel"
_ACCESS = "/accounts/{account}/access"
# Permission: (its name in the dashboard, method, path, body).
PROBES: dict[str, tuple[str, str, str, t.Any]] = {
    "zone_read": ("Zone > Zone > Read", "GET", "/zones/{zone}", None),
    "dns_read": ("Zone > DNS > Read", "GET", "/zones/{zone}/dns_records", None),
    "dns_write": ("Zone > DNS > Edit", "POST", "/zones/{zone}/dns_records/batch", {}),
    "tunnel_read": ("Account > Cloudflare Tunnel > Read", "GET", _TUNNELS, None),
    "tunnel_write": ("Account > Cloudflare Tunnel > Edit", "PATCH", f"{_TUNNELS}/{NOBODY}", {}),
    "access_apps_read": ("Account > Access: Apps and Policies > Read", "GET", f"{_ACCESS}/apps", None),
    "access_apps_write": (
        "Account > Access: Apps and Policies > Edit",
        "DELETE",
        f"{_ACCESS}/apps/{NOBODY}",
        None,
    ),
    "access_organizations_read": (
        "Account > Access: Organizations, Identity Providers, and Groups > Read",
        "GET",
        f"{_ACCESS}/groups",
        None,
    ),
    "access_organizations_write": (
        "Account > Access: Organizations, Identity Providers, and Groups > Edit",
        "DELETE",
        f"{_ACCESS}/groups/{NOBODY}",
        None,
    ),
}
SPEC: dict[str, dict[str, t.Any]] = {
    **_cloudflare.ACCOUNT_SPEC,
    "zone": {"type": "str"},
    "permissions": {"type": "list", "elements": "str", "choices": sorted(PROBES), "default": []},
}


def gather(module: AnsibleModule, api: _cloudflare.Cloudflare) -> dict[str, t.Any]:
    """Return what the token sees and may do."""
    params = module.params
    for name in params["permissions"]:
        if "{zone}" in PROBES[name][2] and not params["zone"]:
            raise PlanError(f"zone: has to be given to check {name}")
    token = verify(api, params["account_id"])
    zone = find_zone(api, params["zone"])
    account = find_account(api, params["account_id"], zone)
    names = {"zone": zone["id"] if zone else None, "account": account["id"] if account else None}
    allowed = {name: probe(api, name, names) for name in params["permissions"]}
    return {
        "changed": False,
        "token": {name: token.get(name) for name in ("id", "status", "expires_on")},
        "account": account,
        "zone": zone
        and {
            **{name: zone.get(name) for name in ("id", "name", "status", "name_servers")},
            "plan": (zone.get("plan") or {}).get("legacy_id"),
        },
        "permissions": allowed,
        "missing_permissions": [PROBES[name][0] for name, may in allowed.items() if not may],
        "stats": {"requests": api.stats.requests, "retries": api.stats.retries},
    }


def verify(api: _cloudflare.Cloudflare, account_id: str | None) -> Document:
    """Return the state of the token. Tokens of an account are verified at another place than those of a user."""
    try:
        found: Document = api.get("/user/tokens/verify")
    except ApiError as error:
        if account_id is None or error.status not in (400, 401, 403):
            raise
        found = api.get(f"/accounts/{account_id}/tokens/verify")
    return found


def find_zone(api: _cloudflare.Cloudflare, name: str | None) -> Document | None:
    """Return the zone, or None when the token does not see it."""
    if name is None:
        return None
    try:
        return api.zone(_cloudflare.ascii_name(name))
    except PlanError:
        return None
    except ApiError as error:
        if error.status != 403:
            raise
        return None


def find_account(api: _cloudflare.Cloudflare, account_id: str | None, zone: Document | None) -> Document | None:
    """Return id and name of the account: the given one, else the zone's, else the only one that the token sees."""
    known = (zone or {}).get("account") or {}
    if account_id is None and known.get("id"):
        return {"id": known["id"], "name": known.get("name")}
    found = [item for item in api.list("/accounts", {"per_page": 50}) if account_id in (None, item["id"])]
    if len(found) == 1:
        return {"id": found[0]["id"], "name": found[0].get("name")}
    return None if account_id is None else {"id": account_id, "name": None}


def probe(api: _cloudflare.Cloudflare, name: str, ids: t.Mapping[str, str | None]) -> bool:
    """Tell whether the token has a permission: anything but a refusal of the token means that it does."""
    _label, method, path, body = PROBES[name]
    if any(f"{{{key}}}" in path and value is None for key, value in ids.items()):
        return False
    query = {"per_page": 5} if method == "GET" and path != "/zones/{zone}" else None
    try:
        api.request(method, path.format(**ids), query=query, body=body)
    except ApiError as error:
        if error.unknown_outcome or error.status == 429:
            raise
        return error.status not in (401, 403)
    return True


def main() -> None:
    """Run the module."""
    _cloudflare.main(SPEC, gather)


if __name__ == "__main__":
    main()
