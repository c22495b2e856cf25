# Copyright: (c) the KiteStacks maintainers
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any, Callable

from ansible_collections.kitestacks.homelab.plugins.module_utils import _catalogue, _sign_in


class FilterModule:
    """Derivations of the service catalogue; each is documented in the YAML file of its name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "access_applications": _catalogue.access_applications,
            "dns_records": _catalogue.dns_records,
            "edge_backends": _catalogue.edge_backends,
            "oidc_applications": _catalogue.oidc_applications,
            "portal_tiles": _catalogue.portal_tiles,
            "required_secrets": _catalogue.required_secrets,
            "sign_in_objects": _sign_in.sign_in_objects,
            "tunnel_ingress": _catalogue.tunnel_ingress,
        }
