# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Providers as people declare them: shared by the modules for providers and for applications."""

from __future__ import annotations

import re
import typing as t
import urllib.parse
from dataclasses import dataclass, field

from ._authentik import PROVIDER, PROVIDER_MODELS, PROVIDERS, Resource, Session, named_twice, stated
from ._reconcile import Action, Document, PlanError, compare

CERTIFICATE_NAME = "authentik Self-signed Certificate"

_COMMON = frozenset({"name", "authentication_flow", "authorization_flow", "invalidation_flow"})
_LIFETIMES = frozenset({"access_token_validity", "refresh_token_validity"})
FIELDS: dict[str, frozenset[str]] = {
    "oauth2": _COMMON
    | _LIFETIMES
    | {
        "access_code_validity", "client_id", "client_secret", "client_type", "encryption_key", "grant_types",
        "include_claims_in_id_token", "issuer_mode", "logout_method", "logout_uri", "property_mappings",
        "redirect_uris", "refresh_token_threshold", "signing_key", "sub_mode",
    },
    "ldap": _COMMON
    | {
        "base_dn", "bind_mode", "certificate", "gid_start_number", "mfa_support", "search_mode", "tls_server_name",
        "uid_start_number",
    },
    "proxy": _COMMON
    | _LIFETIMES
    | {
        "basic_auth_enabled", "basic_auth_password_attribute", "basic_auth_user_attribute", "certificate",
        "cookie_domain", "external_host", "intercept_header_auth", "internal_host", "internal_host_ssl_validation",
        "mode", "property_mappings", "skip_path_regex",
    },
}  # fmt: skip

# Always enforced: with the API's own defaults an OAuth2 provider has no scopes, signs with HS256, refuses every grant.
DEFAULTS: dict[str, Document] = {
    "oauth2": {
        "authorization_flow": "default-provider-authorization-implicit-consent",
        "grant_types": ["authorization_code", "refresh_token"],
        "invalidation_flow": "default-provider-invalidation-flow",
        "property_mappings": ["openid", "email", "profile"],
        "signing_key": CERTIFICATE_NAME,
    },
    # The authorization flow of an LDAP provider is the one that a bind runs through.
    "ldap": {
        "authorization_flow": "default-authentication-flow",
        "invalidation_flow": "default-provider-invalidation-flow",
    },
    "proxy": {
        "authorization_flow": "default-provider-authorization-implicit-consent",
        "invalidation_flow": "default-provider-invalidation-flow",
    },
}

PROVIDER_SPEC: dict[str, dict[str, t.Any]] = {
    "access_code_validity": {"type": "str"},
    "access_token_validity": {"type": "str", "no_log": False},
    "authentication_flow": {"type": "str"},
    "authorization_flow": {"type": "str"},
    "base_dn": {"type": "str"},
    "basic_auth_enabled": {"type": "bool"},
    "basic_auth_password_attribute": {"type": "str", "no_log": False},
    "basic_auth_user_attribute": {"type": "str"},
    "bind_mode": {"type": "str", "choices": ["direct", "cached"]},
    "certificate": {"type": "str"},
    "client_id": {"type": "str"},
    "client_secret": {"type": "str", "no_log": True},
    "client_type": {"type": "str", "choices": ["confidential", "public"]},
    "cookie_domain": {"type": "str"},
    "encryption_key": {"type": "str", "no_log": False},
    "external_host": {"type": "str"},
    "gid_start_number": {"type": "int"},
    "grant_types": {
        "type": "list",
        "elements": "str",
        "choices": [
            "authorization_code",
            "implicit",
            "hybrid",
            "refresh_token",
            "client_credentials",
            "password",
            "urn:ietf:params:oauth:grant-type:device_code",
        ],
    },
    "include_claims_in_id_token": {"type": "bool", "no_log": False},
    "intercept_header_auth": {"type": "bool"},
    "internal_host": {"type": "str"},
    "internal_host_ssl_validation": {"type": "bool"},
    "invalidation_flow": {"type": "str"},
    "issuer_mode": {"type": "str", "choices": ["global", "per_provider"]},
    "logout_method": {"type": "str", "choices": ["backchannel", "frontchannel"]},
    "logout_uri": {"type": "str"},
    "mfa_support": {"type": "bool"},
    "mode": {"type": "str", "choices": ["proxy", "forward_single", "forward_domain"]},
    "name": {"type": "str"},
    "property_mappings": {"type": "list", "elements": "str"},
    "redirect_uris": {
        "type": "list",
        "elements": "dict",
        "options": {
            "matching_mode": {"type": "str", "choices": ["strict", "regex"], "default": "strict"},
            "redirect_uri_type": {"type": "str", "choices": ["authorization", "logout"], "default": "authorization"},
            "url": {"type": "str", "required": True},
        },
    },
    "refresh_token_threshold": {"type": "str", "no_log": False},
    "refresh_token_validity": {"type": "str", "no_log": False},
    "search_mode": {"type": "str", "choices": ["direct", "cached"]},
    "signing_key": {"type": "str", "no_log": False},
    "skip_path_regex": {"type": "str"},
    "sub_mode": {
        "type": "str",
        "choices": ["hashed_user_id", "user_id", "user_uuid", "user_username", "user_email", "user_upn"],
    },
    "tls_server_name": {"type": "str"},
    "type": {"type": "str", "choices": ["ldap", "oauth2", "proxy"], "default": "oauth2"},
    "uid_start_number": {"type": "int"},
}


@dataclass
class Plans:
    """What has to be done to providers, in parts, because applications come between them.

    Attributes:
        replaced: deletions of providers that return with another type; they come first, names are unique over types.
        kept: creations and updates.
        gone: deletions; they come last.
        claimed: names of live providers whose client id a declared one takes, with the place of that, for messages.

    """

    replaced: list[Action] = field(default_factory=list)
    kept: list[Action] = field(default_factory=list)
    gone: list[Action] = field(default_factory=list)
    claimed: dict[str, str] = field(default_factory=dict)

    def settle(self) -> None:
        """Delete those first whose client id is taken over; client ids are unique.

        Raises:
            PlanError: the provider that has a client id stays.

        """
        for name, where in self.claimed.items():
            first = [action for action in self.gone if action.key == name]
            if not first and not any(action.key == name for action in self.replaced):
                raise PlanError(f"{where}: client_id: the provider {name!r} has it already")
            self.replaced.extend(first)
            self.gone = [action for action in self.gone if action.key != name]


def plan_providers(session: Session, option: str, items: t.Sequence[tuple[str, t.Mapping[str, t.Any]]]) -> Plans:
    """Plan providers that shall exist.

    Args:
        session: the module run.
        option: the module option that holds them, for messages.
        items: for each its place (for messages) and its declaration, with a name.

    Raises:
        PlanError: a declaration is wrong.

    """
    named_twice(option, PROVIDER, [item["name"] for _where, item in items])
    plans = Plans()
    by_name = {document["name"]: document for document in session.rows(PROVIDER)}
    client_ids: dict[str, str] = {}
    live: dict[str, dict[t.Any, Document]] = {}  # by type and id, in the names that are known once all is checked
    checked = [_declared(session, where, item) for where, item in items]
    for (where, item), desired in zip(items, checked):
        kind = PROVIDERS[item["type"]]
        found = by_name.get(item["name"])
        type_now = None if found is None else PROVIDER_MODELS.get(found["meta_model_name"])
        if found is not None and type_now is None:
            raise PlanError(f"{where}: name: {item['name']!r} is the name of a {found['verbose_name']} already")
        if found is not None and type_now is not None and type_now != item["type"]:
            plans.replaced.append(deletion(session, found))
            found = None
        current = None
        if found is not None:
            if item["type"] not in live:
                live[item["type"]] = {document["pk"]: document for document in session.live(kind)}
            current = live[item["type"]].get(found["pk"])
        if current is None:
            _complete(where, item["type"], desired)
        if "client_id" in desired:
            _claim_client(session, plans, where, desired, client_ids)
        plans.kept.append(compare(kind, desired, current))
    return plans


def deletion(session: Session, document: Document) -> Action:
    """Return the deletion of a provider as the list of all providers shows it."""
    session.forget("provider", document["pk"])
    kind = PROVIDERS[PROVIDER_MODELS[document["meta_model_name"]]]
    return Action(kind, "delete", document["name"], current=document)


def ours_to_delete(document: Document) -> bool:
    """Tell whether a provider is of a type that these modules know."""
    return document["meta_model_name"] in PROVIDER_MODELS


def _declared(session: Session, where: str, item: t.Mapping[str, t.Any]) -> Document:
    kind_name = item["type"]
    given = stated(item, "type", "state")
    foreign = sorted(set(given) - FIELDS[kind_name])
    if foreign:
        raise PlanError(f"{where}: {foreign[0]}: is no option of a provider of type {kind_name}")
    desired = {"name": item["name"], **DEFAULTS[kind_name], **given}
    kind: Resource = PROVIDERS[kind_name]
    _check_addresses(where, desired)
    for name in ("uid_start_number", "gid_start_number"):
        if desired.get(name, 1) < 1:
            raise PlanError(f"{where}: {name}: {desired[name]} is no valid number to start at")
    if "base_dn" in desired and not re.fullmatch(r"\s*\w[\w-]*=[^=]+(,\s*\w[\w-]*=[^=]+)*", desired["base_dn"]):
        raise PlanError(
            f"{where}: base_dn: {desired['base_dn']!r} is no distinguished name such as 'dc=example,dc=org'"
        )
    _check_redirects(session, where, desired.get("redirect_uris", ()))
    return session.check(kind, where, desired)


def _check_addresses(where: str, desired: Document) -> None:
    for name in ("external_host", "internal_host", "logout_uri"):
        value = desired.get(name)
        if value and not is_http(value):
            raise PlanError(f"{where}: {name}: {value!r} is no http:// or https:// URL")
    if "skip_path_regex" in desired:
        for line in desired["skip_path_regex"].splitlines():
            _check_regex(f"{where}: skip_path_regex", line)


def _check_redirects(session: Session, where: str, uris: t.Iterable[t.Mapping[str, t.Any]]) -> None:
    seen = set()
    for uri in uris:
        url = uri["url"]
        if uri["matching_mode"] == "regex":
            _check_regex(f"{where}: redirect_uris", url)
        else:
            parts = urllib.parse.urlsplit(url)
            # Applications on phones have schemes of their own, with nothing that looks like a host.
            if not parts.scheme or not (parts.netloc or parts.path) or re.search(r"[\s*]", url):
                raise PlanError(f"{where}: redirect_uris: {url!r} is no URL (matching_mode=regex takes a pattern)")
        if uri["redirect_uri_type"] == "logout" and session.version < (2026, 5):
            raise PlanError(
                f"{where}: redirect_uris: redirect_uri_type=logout needs Authentik 2026.5, "
                f"the server is {session.version_text}"
            )
        if (url, uri["redirect_uri_type"]) in seen:
            raise PlanError(f"{where}: redirect_uris: {url!r} is listed twice")
        seen.add((url, uri["redirect_uri_type"]))


def _check_regex(where: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise PlanError(f"{where}: {pattern!r} is no regular expression: {error}") from None


def is_http(url: str) -> bool:
    """Tell whether `url` is an http or https URL with a host."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _complete(where: str, kind_name: str, desired: Document) -> None:
    """Check and fill what only a new provider needs."""
    if kind_name == "oauth2":
        desired.setdefault("redirect_uris", [])
    if kind_name == "proxy":
        if not desired.get("external_host"):
            raise PlanError(f"{where}: external_host: a provider of type proxy needs it")
        if desired.get("mode", "proxy") == "proxy" and not desired.get("internal_host"):
            raise PlanError(f"{where}: internal_host: mode=proxy needs it")


def _claim_client(session: Session, plans: Plans, where: str, desired: Document, seen: dict[str, str]) -> None:
    client = desired["client_id"]
    if not client:
        raise PlanError(f"{where}: client_id: is empty")
    if client in seen:
        raise PlanError(f"{where}: client_id: is that of {seen[client]} too")
    seen[client] = desired["name"]
    for other in session.rows(PROVIDERS["oauth2"]):
        if other.get("client_id") == client and other["name"] != desired["name"]:
            plans.claimed[other["name"]] = where
