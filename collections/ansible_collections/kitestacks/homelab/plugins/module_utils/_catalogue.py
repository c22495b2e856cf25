# Copyright: (c) the KiteStacks maintainers
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The service catalogue: one declaration per service, and what is derived from all of them.

A service is declared once, in `roles/<name>/meta/service.yml`. `load` reads the declarations, joins each with its
placement (the inventory group of its name), and refuses what is wrong with one message per mistake. Every derivation
has the same shape: catalogue in, list out. They are pure, so that the same rows come out everywhere.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Service = dict[str, Any]
"""One service: the keys of its declaration with their defaults, and `name`, `hosts` (in order of preference) and
`hostname` (the full public name, None for an internal service)."""

Catalogue = list[Service]
"""Every deployed service, by name."""

SIGN_IN = ("oidc", "proxy", "ldap", "native", "public")
FAILOVER = ("both", "first", "writer")
"""`both`: any host's copy serves, the local one first. `first`: it lives on one host. `writer`: every request goes to
the first host whose health path says that it is the writer."""

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PATH = re.compile(r"/[^\s]*")

# key: (type, default); a key without a default must be stated.
_REQUIRED = object()
_SCHEMA: dict[str, Any] = {
    "title": (str, _REQUIRED),
    "description": (str, _REQUIRED),
    "section": (str, ""),
    "icon": (str, ""),
    "public_name": (str, None),
    "port": (int, None),
    "health_path": (str, None),
    "sign_in": (str, None),
    "failover": (str, "first"),
    "secrets": (list, ()),
    "sso": (dict, None),
    "access": (dict, None),
    "optional": (bool, False),  # its role may find that it is not needed, and deploy nothing
}

# What `sso` may say, by how the service signs its users in.
_SSO: dict[str, set[str]] = {
    "oidc": {"email_verified", "groups", "redirect_paths", "sub_mode"},
    "proxy": {"groups", "unauthenticated_paths"},
    "ldap": {"groups"},
    "native": {"groups"},
    "public": set(),
}

SUB_MODES = ("hashed_user_id", "user_id", "user_uuid", "user_username", "user_email", "user_upn")
"""What can tell a service who somebody is (`sso.sub_mode`); Authentik's own choice is the first."""
CLIENT_SECRET = "_oidc_client_secret"  # noqa: S105 - the end of a name
"""After the name of a service with sign_in oidc: the variable of its client secret, one of its secrets."""
OBJECT_PREFIX = "kitestacks-"
"""How the names of our objects in Authentik begin that cannot say whose they are."""
ADMIN_GROUP = "kitestacks-admins"
USER_GROUP = "kitestacks-users"
EMAIL_VERIFIED_MAPPING = "kitestacks-email-verified"
"""The scope mapping of a service that demands a verified address (`sso.email_verified`)."""
IDENTITY_SERVICE = "authentik"

# What `access` may say: rules of Cloudflare Access, as the module cloudflare_access takes them.
_ACCESS = {"include", "require", "exclude", "session_duration"}

EDGE_URL = "http://edge:8080"
"""Where the connector of the tunnel sends every public name: the edge of its own host."""
EDGE_INNER_URL = "http://edge:8082"
"""Where Authentik's proxy sends a request that it has let through: the edge's inner port, which knows no sign-in."""


class CatalogueError(Exception):
    """Declarations or placement that cannot be used; `mistakes` has one sentence for each."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = list(mistakes)


def suggestion(word: str, known: Sequence[str]) -> str:
    """Return "; did you mean X?" for the known word that is nearest, "" when none is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _check(name: str, declaration: Any) -> list[str]:
    """Return what is wrong with one declaration, a sentence each."""
    where = f"roles/{name}/meta/service.yml"
    if not isinstance(declaration, Mapping):
        return [f"{where}: must be a mapping of keys to values"]
    mistakes = [
        f"{where}: {key!r} is not a key of a service{suggestion(str(key), list(_SCHEMA))}"
        for key in declaration
        if key not in _SCHEMA
    ]
    for key, (kind, default) in _SCHEMA.items():
        value = declaration.get(key)
        if value is None:
            if default is _REQUIRED:
                mistakes.append(f"{where}: {key} is missing")
        elif not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            mistakes.append(f"{where}: {key} is {value!r}; it must be a {kind.__name__}")
    if mistakes:
        return mistakes
    public = declaration.get("public_name")
    if public is not None:
        if not _LABEL.fullmatch(public):
            mistakes.append(f"{where}: public_name is {public!r}; it must be one label of a host name, like 'www'")
        mistakes += [
            f"{where}: {key} is missing; a service with a public_name needs it"
            for key in ("port", "health_path", "sign_in")
            if declaration.get(key) is None
        ]
    port = declaration.get("port")
    if port is not None and not 0 < port < 65536:
        mistakes.append(f"{where}: port is {port}; it must be from 1 to 65535")
    path = declaration.get("health_path")
    if path is not None and not _PATH.fullmatch(path):
        mistakes.append(f"{where}: health_path is {path!r}; it must begin with a slash and have no spaces")
    for key, choices in (("sign_in", SIGN_IN), ("failover", FAILOVER)):
        value = declaration.get(key)
        if value is not None and value not in choices:
            mistakes.append(f"{where}: {key} is {value!r}; it must be one of {', '.join(choices)}")
    mistakes += _check_sso(where, declaration.get("sign_in"), declaration.get("sso") or {})
    mistakes += access_mistakes(f"{where}: access", declaration.get("access"))
    mistakes += [
        f"{where}: secrets has {secret!r}; a secret is named like a variable of the role, {name}_<x>"
        for secret in declaration.get("secrets", ())
        if not isinstance(secret, str) or not secret.startswith(f"{name}_")
    ]
    return mistakes


def _check_sso(where: str, sign_in: Any, sso: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the `sso` of a service, a sentence each."""
    if sign_in not in SIGN_IN:
        return []  # said already
    known = _SSO[sign_in]
    mistakes = [
        f"{where}: sso.{key} is not for a service with sign_in {sign_in}{suggestion(str(key), sorted(known))}"
        for key in sso
        if key not in known
    ]
    if sign_in == "oidc" and not sso.get("redirect_paths"):
        mistakes.append(f"{where}: sso.redirect_paths is missing; a service with sign_in oidc needs it")
    for key in sorted(known & set(sso)):
        value = sso[key]
        if key == "email_verified":
            if not isinstance(value, bool):
                mistakes.append(f"{where}: sso.{key} is {value!r}; it must be true or false")
        elif key == "sub_mode":
            if value not in SUB_MODES:
                mistakes.append(f"{where}: sso.{key} is {value!r}; it must be one of {', '.join(SUB_MODES)}")
        elif not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            mistakes.append(f"{where}: sso.{key} is {value!r}; it must be a list of texts")
        elif key.endswith("_paths"):
            mistakes += [
                f"{where}: sso.{key} has {path!r}; a path must begin with a slash and have no spaces"
                for path in value
                if not _PATH.fullmatch(path)
            ]
    return mistakes


def access_mistakes(where: str, access: Any) -> list[str]:
    """Return what is wrong with the rules of Access for a service, a sentence each; no rules: it is not guarded."""
    if not access:
        return []
    if not isinstance(access, Mapping):
        return [f"{where} is {access!r}; it must be a mapping with {', '.join(sorted(_ACCESS))}"]
    mistakes = [
        f"{where}.{key} is not known{suggestion(str(key), sorted(_ACCESS))}" for key in access if key not in _ACCESS
    ]
    if not access.get("include"):
        mistakes.append(f"{where}.include is missing; without it nobody would be let in")
    mistakes += [
        f"{where}.{key} is {access[key]!r}; it must be a list of rules, each like {{'email': 'ann@example.org'}}"
        for key in ("include", "require", "exclude")
        if key in access
        and not (isinstance(access[key], list) and all(isinstance(rule, Mapping) for rule in access[key]))
    ]
    return mistakes


def build(declarations: Mapping[str, Any], groups: Mapping[str, Sequence[str]], domain: str) -> Catalogue:
    """Join declarations with placement.

    `declarations` maps a service's name to the content of its service.yml, `groups` an inventory group to its hosts in
    order. Services whose group is missing or empty are not deployed and left out. Raises CatalogueError.
    """
    mistakes: list[str] = []
    catalogue: Catalogue = []
    owners: dict[str, str] = {}
    for name in sorted(declarations):
        wrong = _check(name, declarations[name])
        mistakes += wrong
        hosts = list(groups.get(name, ()))
        if wrong or not hosts:
            continue
        service = {key: default for key, (_kind, default) in _SCHEMA.items()}
        service.update(declarations[name])
        service["secrets"] = list(service["secrets"])
        public = service["public_name"]
        if public is not None and service["sign_in"] == "oidc":
            service["secrets"].append(f"{name}{CLIENT_SECRET}")
        service.update(name=name, hosts=hosts, hostname=None if public is None else f"{public}.{domain}")
        if public is not None and public in owners:
            mistakes.append(f"roles/{name}/meta/service.yml: public_name {public!r} is taken by {owners[public]}")
        if public is not None:
            owners[public] = name
        if service["failover"] == "first" and len(hosts) > 1:
            mistakes.append(
                f"group {name} has {len(hosts)} hosts ({', '.join(hosts)}); {name} can live on one host only: its data"
                " is not shared between hosts"
            )
        catalogue.append(service)
    if mistakes:
        raise CatalogueError(mistakes)
    return catalogue


def load(roles_paths: Sequence[str], groups: Mapping[str, Sequence[str]], domain: str) -> Catalogue:
    """Read every `<path>/<role>/meta/service.yml` and `build` the catalogue. Raises CatalogueError."""
    import yaml

    declarations: dict[str, Any] = {}
    mistakes: list[str] = []
    for path in roles_paths:
        for file in sorted(Path(path).glob("*/meta/service.yml")):
            role = file.parent.parent.name
            if role in declarations:
                continue
            try:
                declarations[role] = yaml.safe_load(file.read_text(encoding="utf-8"))
            except yaml.YAMLError as error:
                mistakes.append(f"roles/{role}/meta/service.yml: is not YAML: {error}")
    if mistakes:
        raise CatalogueError(mistakes)
    return build(declarations, groups, domain)


def edge_backends(catalogue: Catalogue, host: str) -> list[dict[str, Any]]:
    """Return what the edge of a host routes: a row per public service.

    Row: `name`, `title`, `hostname`, `port`, `health_path`, `entrance`, the service that a visitor is sent to first
    (Authentik, when that asks who it is in this service's stead), and `servers`, the hosts to try in order, as seen
    from `host`: its own copy first, except for a `writer`, whose order is the same everywhere.
    """
    rows = []
    for service in catalogue:
        if service["hostname"] is None:
            continue
        servers = list(service["hosts"])
        if service["failover"] == "both" and host in servers:
            servers.sort(key=lambda name: name != host)
        row = {key: service[key] for key in ("name", "title", "hostname", "port", "health_path")}
        entrance = IDENTITY_SERVICE if service["sign_in"] == "proxy" else service["name"]
        rows.append({**row, "entrance": entrance, "servers": servers})
    return rows


def portal_tiles(catalogue: Catalogue) -> list[dict[str, Any]]:
    """Return the portal's tiles: a row per public service that names a section, by section and title.

    Row: `name`, `title`, `description`, `section`, `icon`, `url`.
    """
    rows = [
        {
            **{key: service[key] for key in ("name", "title", "description", "section", "icon")},
            "url": f"https://{service['hostname']}",
        }
        for service in catalogue
        if service["hostname"] is not None and service["section"]
    ]
    return sorted(rows, key=lambda row: (row["section"], row["title"]))


def tunnel_ingress(catalogue: Catalogue, edge_url: str = EDGE_URL) -> list[dict[str, Any]]:
    """Return the tunnel's ingress rules: a row per public service, all to the edge of the connector's own host.

    Row: `hostname`, `service`. The rule for everything else is added by `cloudflare_tunnel_config`.
    """
    return [{"hostname": service["hostname"], "service": edge_url} for service in catalogue if service["hostname"]]


def dns_records(catalogue: Catalogue, tunnel_id: str) -> list[dict[str, Any]]:
    """Return the zone's records: a proxied CNAME to the tunnel per public service.

    Row: `name`, `type`, `content`, `proxied`, `comment`.
    """
    return [
        {
            "name": service["hostname"],
            "type": "CNAME",
            "content": f"{tunnel_id}.cfargotunnel.com",
            "proxied": True,
            "comment": service["title"],
        }
        for service in catalogue
        if service["hostname"]
    ]


def sign_in_groups(catalogue: Catalogue) -> list[str]:
    """Return the groups that may use one service or another, sorted; the two that every homelab has among them."""
    return sorted({ADMIN_GROUP, USER_GROUP}.union(*(_groups(service) for service in catalogue)))


def _groups(service: Service) -> list[str]:
    """Return the groups that may use a service: the declared ones or else all users, and always the admins."""
    return sorted({ADMIN_GROUP, *((service["sso"] or {}).get("groups") or [USER_GROUP])})


def access_applications(
    catalogue: Catalogue, overrides: Mapping[str, Any] | None = None, prefix: str = ""
) -> dict[str, list[dict[str, Any]]]:
    """Return what Cloudflare Access guards: `applications` and `policies`, one each per guarded service.

    A service is guarded when it declares `access`; what `overrides` has for it counts instead, `{}` for no guard.
    A policy whose rules speak of service tokens only asks nobody to sign in. Names begin with `prefix`.

    Raises CatalogueError for an override that names no public service or cannot be used.
    """
    overrides = overrides or {}
    public = {service["name"]: service for service in catalogue if service["hostname"]}
    mistakes = [
        f"cloudflare_access: {name!r} is no deployed service with a public name{suggestion(name, list(public))}"
        for name in overrides
        if name not in public
    ]
    for name, access in overrides.items():
        mistakes += access_mistakes(f"cloudflare_access.{name}", access)
    if mistakes:
        raise CatalogueError(mistakes)
    found: dict[str, list[dict[str, Any]]] = {"applications": [], "policies": []}
    for name, service in public.items():
        access = overrides.get(name, service["access"])
        if not access:
            continue
        title = f"{prefix}{service['title']}"
        robots = all(set(rule) <= {"service_token", "any_valid_service_token"} for rule in access["include"])
        rules = {key: access[key] for key in ("include", "require", "exclude") if key in access}
        found["policies"].append({"name": title, "decision": "non_identity" if robots else "allow", **rules})
        duration = {"session_duration": access["session_duration"]} if "session_duration" in access else {}
        found["applications"].append({"name": title, "domain": service["hostname"], "policies": [title], **duration})
    return found


def oidc_applications(catalogue: Catalogue, client_secrets: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Return Authentik's applications: a row per public service that is not `public`.

    Row: `slug`, `name`, `group`, `meta_launch_url`, `groups`, and `provider`; or, for a service that keeps its own
    sign-in (`native`, `ldap`), the empty `provider_name` that says that there is none: its application is a tile.
    `client_secrets` maps a service's name to the secret of its OAuth2 provider; without one Authentik makes it.
    """
    rows = []
    for service in catalogue:
        if not service["hostname"] or service["sign_in"] == "public":
            continue
        url = f"https://{service['hostname']}"
        sso = service["sso"] or {}
        row = {
            "slug": service["name"],
            "name": service["title"],
            "group": service["section"],
            "meta_launch_url": url,
            "groups": _groups(service),
        }
        if service["sign_in"] == "oidc":
            email = EMAIL_VERIFIED_MAPPING if sso.get("email_verified") else "email"
            row["provider"] = {
                "name": OBJECT_PREFIX + service["name"],
                "type": "oauth2",
                "client_id": service["name"],
                "redirect_uris": [{"url": url + path} for path in sso["redirect_paths"]],
                "issuer_mode": "per_provider",
                "sub_mode": sso.get("sub_mode", SUB_MODES[0]),
                "property_mappings": ["openid", email, "profile"],
            }
            if client_secrets and service["name"] in client_secrets:
                row["provider"]["client_secret"] = client_secrets[service["name"]]
        elif service["sign_in"] == "proxy":
            row["provider"] = {
                "name": OBJECT_PREFIX + service["name"],
                "type": "proxy",
                "mode": "proxy",
                "external_host": url,
                "internal_host": EDGE_INNER_URL,
                "skip_path_regex": "\n".join(f"^{re.escape(path)}" for path in sso.get("unauthenticated_paths", ())),
            }
        else:
            row["provider_name"] = ""
        rows.append(row)
    return rows


def required_secrets(catalogue: Catalogue) -> list[str]:
    """Return the names of all secrets that deployed services need, sorted."""
    return sorted({secret for service in catalogue for secret in service["secrets"]})
