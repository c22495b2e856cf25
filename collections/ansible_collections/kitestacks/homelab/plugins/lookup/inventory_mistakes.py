# Copyright: (c) the KiteStacks maintainers
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
name: inventory_mistakes
author: KiteStacks maintainers (@kitestacks)
version_added: 1.0.0
short_description: What is wrong with the inventory, the service catalogue and the secrets
description:
  - Looks at everything that can be known to be wrong without touching a host, and returns one sentence per mistake.
  - Checks the domain, the groups, every variable whose name begins with a role's name (whether the role has it, and its
    type), the hosts' networks, the declarations of the services, that those who sign in with Authentik have one,
    the household's users, and the secrets that deployed services need.
requirements:
  - netaddr
"""

EXAMPLES = r"""
- name: The inventory can be used
  ansible.builtin.assert:
    that: query('kitestacks.homelab.inventory_mistakes') | length == 0
"""

RETURN = r"""
_raw:
  description: The mistakes, a sentence each.
  type: list
  elements: str
"""

from pathlib import Path
from typing import Any

import yaml
from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase
from ansible_collections.kitestacks.homelab.plugins.module_utils import _catalogue, _preflight


def _specs() -> dict[str, dict[str, Any]]:
    """Return the options of the argument specification of every role on the roles path."""
    specs: dict[str, dict[str, Any]] = {}
    for path in C.DEFAULT_ROLES_PATH:
        for file in sorted(Path(path).glob("*/meta/argument_specs.yml")):
            document = yaml.safe_load(file.read_text(encoding="utf-8"))
            specs.setdefault(file.parent.parent.name, document["argument_specs"]["main"].get("options", {}))
    return specs


class LookupModule(LookupBase):
    """Collect the mistakes of the whole inventory."""

    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        """Return the mistakes, a sentence each."""
        variables = variables or {}
        groups = variables["groups"]
        specs = _specs()
        roles = sorted(specs)
        mistakes = _preflight.domain_mistakes(self._value(variables.get("kitestacks_domain")))
        mistakes += _preflight.group_mistakes(groups, roles)
        known: dict[str, dict[str, Any]] = {}
        for host in groups.get("homelab", ()):
            known[host] = self._host_variables(variables["hostvars"][host], roles)
            mistakes += _preflight.variable_mistakes(host, known[host], specs)
            mistakes += _preflight.address_mistakes(
                host,
                known[host].get("ansible_host", host),
                known[host].get("docker_network_subnet"),
                known[host].get("base_ssh_allow_from"),
            )
        try:
            catalogue = _catalogue.load(C.DEFAULT_ROLES_PATH, groups, "domain.invalid")
        except _catalogue.CatalogueError as error:
            return mistakes + error.mistakes
        mistakes += _preflight.sign_in_mistakes(catalogue)
        for host in groups.get(_catalogue.IDENTITY_SERVICE, ())[:1]:
            found = known.get(host, {})
            mistakes += _preflight.user_mistakes(catalogue, found.get("authentik_users"), found.get("authentik_groups"))
        return mistakes + _preflight.secret_mistakes(catalogue, known)

    def _value(self, value: Any) -> Any:
        return self._templar.template(value)

    def _host_variables(self, hostvars: Any, roles: list[str]) -> dict[str, Any]:
        """Return the host's variables that belong to a role, and how it is reached.

        A value that needs facts cannot be known yet and is left out.
        """
        found: dict[str, Any] = {}
        for name in hostvars:
            if name != "ansible_host" and not name.startswith(tuple(f"{role}_" for role in roles)):
                continue
            try:
                found[name] = hostvars[name]
            except AnsibleError:
                continue
        return found
