# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the Cloudflare modules share."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation of the options in C(_cloudflare.SPEC) and its companions."""

    DOCUMENTATION = r"""
options:
  api_token:
    description:
      - API token. If not set, the environment variable E(CLOUDFLARE_API_TOKEN) is used.
      - M(kitestacks.homelab.cloudflare_info) tells whether it has the permissions that are needed.
    type: str
    required: true
  api_url:
    description: Base URL of the API. If not set, the environment variable E(CLOUDFLARE_API_URL) is used.
    type: str
    default: https://api.cloudflare.com/client/v4
attributes:
  action_group:
    support: full
    description: Use C(group/kitestacks.homelab.cloudflare) in C(module_defaults) to set defaults for this module.
    membership:
      - kitestacks.homelab.cloudflare
"""

    ACCOUNT = r"""
options:
  account_id:
    description: Id of the account. May be left out when the token sees exactly one.
    type: str
"""

    PURGE = r"""
options:
  purge:
    description:
      - Whether to delete what is not declared and whose name starts with O(purge_name_prefix).
      - Check mode lists what would be deleted.
    type: bool
    default: false
  purge_allow_empty:
    description: Whether O(purge=true) may be used when nothing is declared.
    type: bool
    default: false
  purge_name_prefix:
    description: What the names of our own objects start with. Required by O(purge=true).
    type: str
"""
