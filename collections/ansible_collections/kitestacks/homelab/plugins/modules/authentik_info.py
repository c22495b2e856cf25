#!/usr/bin/python
# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: authentik_info
short_description: Version and readiness of Authentik
version_added: 1.0.0
description:
  - Returns version and ids, and says what is missing, or waits for it.
  - An open port, and even the health check, say nothing. Authentik answers before its default flows exist and before
    the first token is valid.
author:
  - KiteStacks maintainers (@kitestacks)
extends_documentation_fragment:
  - kitestacks.homelab.attributes.info
  - kitestacks.homelab.connection
  - kitestacks.homelab.authentik
options:
  flows:
    description:
      - Slugs of the flows that are needed.
    type: list
    elements: str
    default:
      - default-authentication-flow
      - default-provider-authorization-implicit-consent
      - default-provider-invalidation-flow
  scope_mappings:
    description:
      - Scope mappings that are needed, by name, managed id, or scope for the default ones.
    type: list
    elements: str
    default: [openid, email, profile]
  certificates:
    description:
      - Names of the certificates that are needed.
    type: list
    elements: str
    default: [authentik Self-signed Certificate]
  wait:
    description:
      - Wait until nothing is missing, and fail if that does not come about.
    type: bool
    default: false
  wait_timeout:
    description:
      - Seconds to wait. The first start of a new installation takes minutes.
    type: int
    default: 300
"""

EXAMPLES = r"""
- name: Authentik can be configured
  kitestacks.homelab.authentik_info:
    url: "{{ authentik_url }}"
    token: "{{ authentik_token }}"
    wait: true
  register: authentik

- name: Its version
  ansible.builtin.debug:
    msg: "{{ authentik.version }}"
"""

RETURN = r"""
version:
  description: Release that runs.
  returned: success
  type: str
  sample: 2026.2.2
ready:
  description: Whether nothing is missing.
  returned: success
  type: bool
  sample: true
missing:
  description: What is missing.
  returned: success
  type: list
  elements: str
  sample: []
user:
  description: The user whose token it is.
  returned: success
  type: dict
  sample: {username: akadmin, is_superuser: true}
flows:
  description: Ids of the needed flows that exist, by slug.
  returned: success
  type: dict
  sample: {default-authentication-flow: ddcb4ee0-7bb6-41e1-b68e-e5f813867bab}
scope_mappings:
  description: Ids of the needed scope mappings that exist, by name.
  returned: success
  type: dict
  sample: {openid: b13ab34d-1ac6-4556-96e2-3422a80b4500}
certificates:
  description: Ids of the needed certificates that exist, by name.
  returned: success
  type: dict
  sample: {authentik Self-signed Certificate: f22fc4f7-07e1-42a3-970d-5f936ec38c91}
stats:
  description: Requests sent, and retries among them.
  returned: success
  type: dict
  sample: {requests: 5, retries: 0}
"""

import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kitestacks.homelab.plugins.module_utils import _http
from ansible_collections.kitestacks.homelab.plugins.module_utils._authentik import AUTHENTIK_SPEC, Authentik, Session
from ansible_collections.kitestacks.homelab.plugins.module_utils._http import ApiError
from ansible_collections.kitestacks.homelab.plugins.module_utils._reconcile import PlanError

PAUSE = 2.0  # seconds between two looks
# Option, name space.
NEEDED = {"flows": "flow", "scope_mappings": "scope mapping", "certificates": "certificate"}
SPEC: dict[str, dict[str, t.Any]] = {
    "certificates": {"type": "list", "elements": "str", "default": ["authentik Self-signed Certificate"]},
    "flows": {
        "type": "list",
        "elements": "str",
        "default": [
            "default-authentication-flow",
            "default-provider-authorization-implicit-consent",
            "default-provider-invalidation-flow",
        ],
    },
    "scope_mappings": {"type": "list", "elements": "str", "default": ["openid", "email", "profile"]},
    "wait": {"type": "bool", "default": False},
    "wait_timeout": {"type": "int", "default": 300},
}


def look(module: AnsibleModule) -> dict[str, t.Any]:
    """Return what the server has of what is needed.

    Raises:
        ApiError: it does not answer as it should.

    """
    session = Session(module)
    me = session.api.get("/core/users/me/")["user"]
    found: dict[str, t.Any] = {
        "version": session.version_text,
        "user": {"username": me["username"], "is_superuser": me["is_superuser"]},
        "missing": [],
    }
    for option, space in NEEDED.items():
        ids = {name: session.id_of(space, name) for name in module.params[option]}
        found[option] = {name: identifier for name, identifier in ids.items() if identifier is not None}
        found["missing"] += [f"{space} {name}" for name, identifier in ids.items() if identifier is None]
    found["ready"] = not found["missing"]
    found["stats"] = count(session.api)
    session.api.close()
    return found


def count(api: Authentik) -> dict[str, int]:
    """Return the requests that were sent."""
    return {"requests": api.stats.requests, "retries": api.stats.retries}


def not_yet(error: ApiError) -> bool:
    """Tell whether an error may pass: no server, a proxy's 404 or 5xx, or a token that does not exist yet."""
    return error.status in (None, 403, 404, 405) or (error.status or 0) >= 500


def wait(module: AnsibleModule) -> dict[str, t.Any]:
    """Look until nothing is missing; end the module with what is, when the time is over."""
    deadline = time.monotonic() + module.params["wait_timeout"]
    while True:
        try:
            found = look(module)
            last = f"missing: {', '.join(found['missing'])}"
            if found["ready"]:
                return found
        except ApiError as error:
            if not not_yet(error):
                raise
            last = str(error)
        if time.monotonic() >= deadline:
            module.fail_json(msg=f"Authentik was not ready within {module.params['wait_timeout']} s; {last}")
        _http._sleep(PAUSE)


def main() -> None:
    module = AnsibleModule(argument_spec={**AUTHENTIK_SPEC, **SPEC}, supports_check_mode=True)
    try:
        found = wait(module) if module.params["wait"] else look(module)
    except PlanError as error:
        module.fail_json(msg=str(error))
    except ApiError as error:
        module.fail_json(msg=str(error), error=error.as_dict())
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
