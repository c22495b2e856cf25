# Copyright: (c) the KiteStacks maintainers
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be known to be wrong before a host is touched: inventory, catalogue, variables and secrets.

Every function returns sentences, one per mistake, that name the place and say what to do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.kitestacks.homelab.plugins.module_utils._catalogue import (
    ADMIN_GROUP,
    IDENTITY_SERVICE,
    USER_GROUP,
    Catalogue,
    required_secrets,
    sign_in_groups,
    suggestion,
)

TAILNET = "100.64.0.0/10"
"""The address range that Tailscale gives out."""

USER_KEYS = ("username", "name", "email", "groups")
"""What the inventory says of a person."""

_DOMAIN = re.compile(r"(?=.{4,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


def domain_mistakes(domain: Any) -> list[str]:
    """Return what is wrong with the domain below which public names live."""
    if not isinstance(domain, str) or not _DOMAIN.fullmatch(domain):
        return [
            f"kitestacks_domain is {domain!r}; it must be a domain of yours in small letters, like example.org, in the"
            " inventory's group_vars/all"
        ]
    return []


def group_mistakes(groups: Mapping[str, Sequence[str]], roles: Sequence[str]) -> list[str]:
    """Return what is wrong with the placement: groups that look like a misspelt service, hosts outside `homelab`."""
    mistakes = []
    homelab = list(groups.get("homelab", ()))
    if not homelab:
        return ["the inventory has no group homelab with hosts in it; every host of the homelab belongs there"]
    for group in groups:
        if group in ("all", "ungrouped", "homelab"):
            continue
        if group not in roles:
            near = suggestion(group, roles)
            if near:
                mistakes.append(f"group {group}: no role has this name{near}")
            continue
        mistakes += [
            f"host {host} is in group {group} and not in homelab: base, docker and tailscale would not be set up there"
            for host in groups[group]
            if host not in homelab
        ]
    return mistakes


def variable_mistakes(host: str, variables: Mapping[str, Any], specs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what is wrong with one host's role variables: unknown ones, and values of the wrong type.

    `variables` are the host's inventory variables, `specs` maps a role to the `options` of its argument specification.
    """
    mistakes = []
    for name in sorted(variables):
        role = max((role for role in specs if name.startswith(f"{role}_")), key=len, default=None)
        if role is None:
            continue
        if name not in specs[role]:
            mistakes.append(f"{host}: {name} is not a variable of role {role}{suggestion(name, list(specs[role]))}")
            continue
        option = {key: value for key, value in specs[role][name].items() if key not in ("description", "default")}
        option["required"] = False
        result = ArgumentSpecValidator({name: option}).validate({name: variables[name]})
        mistakes += [f"{host}: {message}" for message in result.error_messages]
    return mistakes


def address_mistakes(host: str, address: Any, container_subnet: Any, ssh_networks: Any) -> list[str]:
    """Return what is wrong with a host's networks.

    `address` is how the host is reached (a name is not looked at), `container_subnet` the network of its containers,
    `ssh_networks` who may reach its ssh port. None: not set in the inventory.
    """
    import netaddr

    mistakes = []
    for network in ssh_networks or ():
        try:
            netaddr.IPNetwork(network)
        except (netaddr.AddrFormatError, ValueError, TypeError):
            mistakes.append(f"{host}: base_ssh_allow_from has {network!r}; it must be a network like 192.168.1.0/24")
    if container_subnet is not None:
        try:
            subnet = netaddr.IPNetwork(container_subnet)
        except (netaddr.AddrFormatError, ValueError, TypeError):
            return [
                *mistakes,
                f"{host}: docker_network_subnet is {container_subnet!r}; it must be like 172.31.250.0/24",
            ]
        if subnet.cidr in netaddr.IPNetwork(TAILNET):
            mistakes.append(f"{host}: docker_network_subnet {subnet} lies in the tailnet's own range {TAILNET}")
        if subnet.ip != subnet.network or subnet.size < 16:
            mistakes.append(
                f"{host}: docker_network_subnet {subnet} must be a network's own address and hold 16 or more"
            )
        try:
            if netaddr.IPAddress(address) in subnet:
                mistakes.append(f"{host}: docker_network_subnet {subnet} holds {address}, the host's own address")
        except (netaddr.AddrFormatError, ValueError, TypeError):
            pass  # a name: resolved by ssh, not here
    return mistakes


def secret_mistakes(catalogue: Catalogue, variables: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the secrets that are missing or too weak. `variables` maps a host to its inventory variables."""
    mistakes: dict[str, str] = {}
    for service in catalogue:
        for name in service["secrets"]:
            for host in service["hosts"]:
                value = variables.get(host, {}).get(name)
                if not value:
                    mistakes[name] = (
                        f"{name} is missing: run `ansible-playbook playbooks/operations/secrets.yml` with the same"
                        " inventory, which makes it"
                    )
                elif not re.fullmatch(r"[A-Za-z0-9]{32,}", str(value)):
                    mistakes[name] = f"{name} must have 32 characters or more, letters and digits only"
    return [mistakes[name] for name in required_secrets(catalogue) if name in mistakes]


def sign_in_mistakes(catalogue: Catalogue) -> list[str]:
    """Return the services that sign in with Authentik where there is none."""
    if any(service["name"] == IDENTITY_SERVICE for service in catalogue):
        return []
    return [
        f"{service['name']} signs in with Authentik (sign_in {service['sign_in']}) and group {IDENTITY_SERVICE} has no"
        f" host: give it one, or take {service['name']} out of the inventory"
        for service in catalogue
        if service["hostname"] and service["sign_in"] in ("oidc", "proxy", "ldap")
    ]


def user_mistakes(catalogue: Catalogue, users: Any, groups: Any) -> list[str]:
    """Return what is wrong with `authentik_users`: the household, a mapping each. None: not set.

    `groups` is `authentik_groups`: names of groups beside those that the catalogue names.
    """
    mistakes = []
    seen: set[str] = set()
    known = [*sign_in_groups(catalogue), *(groups or ())]
    for position, user in enumerate(users or (), 1):
        where = f"authentik_users: item {position}"
        if not isinstance(user, Mapping) or not re.fullmatch(r"[\w.@+-]{1,150}", str(user.get("username") or "")):
            mistakes.append(f"{where}: username is missing, or has other than letters, digits and . @ + - _")
            continue
        name = user["username"]
        where = f"authentik_users: {name}"
        if name in seen:
            mistakes.append(f"{where}: is listed twice")
        seen.add(name)
        mistakes += [
            f"{where}: {key} is not for the inventory: the user sets it, with a link of"
            " playbooks/operations/recovery_link.yml"
            if key == "password"
            else f"{where}: {key!r} is not a key of a user{suggestion(str(key), USER_KEYS)}"
            for key in user
            if key not in USER_KEYS
        ]
        mistakes += [f"{where}: {key} is missing" for key in ("name", "email") if not user.get(key)]
        mistakes += [
            f"{where}: group {group!r} is neither of a service nor in authentik_groups{suggestion(str(group), known)}"
            for group in user.get("groups") or (USER_GROUP,)
            if group not in known
        ]
    if users and not any(ADMIN_GROUP in (user.get("groups") or ()) for user in users if isinstance(user, Mapping)):
        mistakes.append(f"authentik_users: nobody is in {ADMIN_GROUP}: who shall look after the homelab?")
    return mistakes
