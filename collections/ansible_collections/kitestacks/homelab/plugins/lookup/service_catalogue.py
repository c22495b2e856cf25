# Copyright: (c) the KiteStacks maintainers
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
name: service_catalogue
author: KiteStacks maintainers (@kitestacks)
version_added: 1.0.0
short_description: Every deployed service, as its role declares it and the inventory places it
description:
  - Reads C(meta/service.yml) of every role on the roles path and joins it with the inventory group of the role's name.
  - A service whose group is empty or missing is not deployed, and not in the list.
  - Fails with one sentence per mistake when a declaration or a placement cannot be used.
options:
  domain:
    description: The domain below which public names live.
    type: str
    default: "{{ kitestacks_domain }}"
"""

EXAMPLES = r"""
- name: The public names are known
  ansible.builtin.debug:
    msg: "{{ lookup('kitestacks.homelab.service_catalogue') | map(attribute='hostname') | select | list }}"
"""

RETURN = r"""
_raw:
  description:
    - The services by name. Beside the keys of the declaration each has RV(_raw[].name), RV(_raw[].hosts) (in order of
      preference) and RV(_raw[].hostname) (its full public name, none for an internal service).
  type: list
  elements: dict
"""

from typing import Any

from ansible import constants as C
from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible_collections.kitestacks.homelab.plugins.module_utils import _catalogue


class LookupModule(LookupBase):
    """Load the catalogue with the groups and the domain of the play."""

    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[Any]:
        """Return the catalogue as one list of services."""
        variables = variables or {}
        domain = kwargs.get("domain") or self._templar.template(variables.get("kitestacks_domain"))
        if not domain:
            raise AnsibleLookupError("kitestacks_domain is not set: give it in the inventory's group_vars/all")
        try:
            return _catalogue.load(C.DEFAULT_ROLES_PATH, variables.get("groups", {}), domain)
        except _catalogue.CatalogueError as error:
            raise AnsibleLookupError(f"The service catalogue cannot be used:\n{error}") from error
