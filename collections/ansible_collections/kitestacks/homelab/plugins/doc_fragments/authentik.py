# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that the authentik_* modules share."""

from __future__ import annotations


class ModuleDocFragment:
    """C(authentik): where the server is. C(authentik.purge) and C(authentik.owner): what is ours to delete."""

    DOCUMENTATION = r"""
options:
  url:
    description:
      - Base URL of Authentik, such as V(http://127.0.0.1:9000).
      - If not set, the environment variable E(AUTHENTIK_URL) is used.
    type: str
    required: true
  token:
    description:
      - API token of an administrator. If not set, the environment variable E(AUTHENTIK_TOKEN) is used.
    type: str
    required: true
attributes:
  action_group:
    support: full
    description: Use C(group/kitestacks.homelab.authentik) in C(module_defaults) to set defaults for this module.
    membership:
      - kitestacks.homelab.authentik
notes:
  - In check mode an address that refuses connections is that of a server which an earlier task is about to install.
    The sets are then foretold as new.
seealso:
  - name: Authentik API
    description: The vendor's reference.
    link: https://api.goauthentik.io/
"""

    PURGE = r"""
options:
  purge:
    description:
      - Delete objects that are ours and not declared.
      - What Authentik itself made is never deleted.
      - In check mode the result lists what would be deleted.
    type: bool
    default: false
  purge_name_prefix:
    description:
      - With O(purge=true), objects whose key begins with this text are ours.
    type: str
  purge_allow_empty:
    description:
      - Permit O(purge=true) with an empty set, which deletes all that is ours.
    type: bool
    default: false
"""

    OWNER = r"""
options:
  owner:
    description:
      - Name that is stored in every declared object. With O(purge=true), objects that carry it are ours.
    type: str
"""
