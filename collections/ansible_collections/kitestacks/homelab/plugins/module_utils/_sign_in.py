# Copyright: (c) the KiteStacks maintainers
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All that Authentik holds for us, derived from the catalogue and from what the inventory says of the household."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.kitestacks.homelab.plugins.module_utils._catalogue import (
    ADMIN_GROUP,
    EMAIL_VERIFIED_MAPPING,
    OBJECT_PREFIX,
    USER_GROUP,
    Catalogue,
    oidc_applications,
    sign_in_groups,
)

OWNER = "kitestacks"
"""What our objects say that they belong to."""
DIRECTORY = f"{OBJECT_PREFIX}ldap"
SEARCH_ACCOUNT = f"{OBJECT_PREFIX}ldap-search"
"""The service account, and the role of the right, with which a service searches the directory."""

# True for addresses that the inventory gave: nobody but us can change what `managed_by` says.
_EMAIL = f"""\
return {{
    "email": request.user.email,
    "email_verified": request.user.attributes.get("managed_by") == "{OWNER}",
}}"""

Rows = list[dict[str, Any]]


def sign_in_objects(  # noqa: PLR0917 - a filter
    catalogue: Catalogue,
    url: str,
    users: Sequence[Mapping[str, Any]] = (),
    groups: Sequence[str] = (),
    client_secrets: Mapping[str, str] | None = None,
    directory: Mapping[str, str] | None = None,
) -> dict[str, Rows]:
    """Return what Authentik shall hold: `groups`, `users`, `scope_mappings`, `applications` and `outposts`.

    Each is what the module of its name takes. `url` is where browsers find Authentik. `users` are the household
    (`username`, `name`, `email`, `groups`), `groups` names of groups that no service names. `client_secrets` maps a
    service's name to the secret of its OAuth2 provider. `directory` is given where an LDAP outpost runs: its `base_dn`,
    `outpost_token` and `search_password`.
    """
    people: Rows = [{"groups": [USER_GROUP], **user, "type": "internal"} for user in users]
    names = {*sign_in_groups(catalogue), *groups, *(name for person in people for name in person["groups"])}
    applications = oidc_applications(catalogue, client_secrets)
    providers = [row["provider"] for row in applications if "provider" in row]
    proxied = [provider["name"] for provider in providers if provider["type"] == "proxy"]
    outposts: Rows = [{"embedded": True, "providers": proxied, "config": {"authentik_host": url}}]
    if directory is not None:
        people.append(_search_account(directory["search_password"]))
        applications.append(_directory_application(directory["base_dn"]))
        outposts.append(_directory_outpost(url, directory["outpost_token"]))
    return {
        "groups": [{"name": name, "is_superuser": name == ADMIN_GROUP} for name in sorted(names)],
        "users": people,
        "scope_mappings": [
            {
                "name": EMAIL_VERIFIED_MAPPING,
                "scope_name": "email",
                "description": "E-mail address",
                "expression": _EMAIL,
            }
        ],
        "applications": applications,
        "outposts": outposts,
    }


def _search_account(password: str) -> dict[str, Any]:
    token = {"identifier": SEARCH_ACCOUNT, "key": password, "intent": "app_password"}
    return {
        "username": SEARCH_ACCOUNT,
        "name": "Searches the directory",
        "type": "service_account",
        "groups": [],
        "tokens": [token],
    }


def _directory_application(base_dn: str) -> dict[str, Any]:
    """Who may use it may sign in by LDAP; which service lets whom in is for the service's own filter to say."""
    return {
        "slug": DIRECTORY,
        "name": "Directory",
        "group": "",
        "meta_launch_url": "blank://blank",  # a tile for nobody
        "groups": [ADMIN_GROUP, USER_GROUP],
        "users": [SEARCH_ACCOUNT],
        "provider": {"type": "ldap", "base_dn": base_dn, "search_mode": "cached", "bind_mode": "direct"},
    }


def _directory_outpost(url: str, token: str) -> dict[str, Any]:
    return {
        "name": DIRECTORY,
        "type": "ldap",
        "providers": [DIRECTORY],
        "config": {"authentik_host": url},
        "token": token,
        "search": {"role": SEARCH_ACCOUNT, "users": [SEARCH_ACCOUNT]},
    }
