# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stateful stand-in for the part of Authentik's API v3 that the collection speaks.

`AuthentikApi.handle` answers one request; the HTTP around it is `_server.py`. State lies behind `Store`, so that a
stand-in that must survive a restart brings its own. The shapes, defaults and error bodies are those of the exchanges
recorded from Authentik 2026.2.2; the models below are written down from them and not from the modules' tables, so that
a mistake in one is not hidden by the same mistake in the other.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import random
import re
import string
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from ._contract import Contract
from ._server import Reply, Request

Json = dict[str, Any]

EMBEDDED = "goauthentik.io/outposts/embedded"
ADMIN_TOKEN = "fake-admin-token"
NOW = "2026-11-24T08:40:16.053774Z"
EARLIER = "2026-11-24T08:37:05.741587Z"
SEARCH_PERMISSION = "authentik_providers_ldap.search_full_directory"


# -- storage ---------------------------------------------------------------------------------------------------------


class Store(Protocol):
    """Where the objects lie: rows of JSON per kind, in the order of their creation."""

    def next_id(self, sequence: str) -> int:
        """Return the next number of a sequence, beginning with 1."""

    def put(self, kind: str, pk: str, row: Json) -> None:
        """Insert or replace a row."""

    def get(self, kind: str, pk: str) -> Json | None:
        """Return a copy of a row."""

    def delete(self, kind: str, pk: str) -> None:
        """Remove a row that exists."""

    def rows(self, kind: str) -> list[Json]:
        """Return copies of all rows of a kind, the oldest first."""


class MemoryStore:
    """The `Store` of the tests."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Json]] = {}
        self._sequences: dict[str, int] = {}

    def next_id(self, sequence: str) -> int:
        self._sequences[sequence] = self._sequences.get(sequence, 0) + 1
        return self._sequences[sequence]

    def put(self, kind: str, pk: str, row: Json) -> None:
        self._rows.setdefault(kind, {})[pk] = copy.deepcopy(row)

    def get(self, kind: str, pk: str) -> Json | None:
        return copy.deepcopy(self._rows.get(kind, {}).get(pk))

    def delete(self, kind: str, pk: str) -> None:
        del self._rows[kind][pk]

    def rows(self, kind: str) -> list[Json]:
        return copy.deepcopy(list(self._rows.get(kind, {}).values()))


# -- models as data --------------------------------------------------------------------------------------------------

REQUIRED = object()


@dataclass(frozen=True)
class Field:
    """One writable field: how a value is checked and what an omitted one becomes."""

    check: Callable[[AuthentikApi, Any], Any]
    default: Any = REQUIRED
    null: bool = False
    since: tuple[int, int] = (0, 0)
    unique: str = ""

    def initial(self) -> Any:
        return copy.deepcopy(self.default)


class Invalid(Exception):  # noqa: N818 - the vendor's word
    """A value that the serializer refuses; `detail` is what its error body says about the field."""

    def __init__(self, detail: Any) -> None:
        super().__init__(str(detail))
        self.detail = detail


def _text(*, blank: bool = True, longest: int = 0) -> Callable[[AuthentikApi, Any], Any]:
    def check(_api: AuthentikApi, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise Invalid(["Not a valid string."])
        value = str(value).strip()
        if not value and not blank:
            raise Invalid(["This field may not be blank."])
        if longest and len(value) > longest:
            raise Invalid([f"Ensure this field has no more than {longest} characters."])
        return value

    return check


def _slug(_api: AuthentikApi, value: Any) -> Any:
    if not re.fullmatch(r"[-a-zA-Z0-9_]+", str(value)):
        raise Invalid(["Enter a valid \u201cslug\u201d consisting of letters, numbers, underscores or hyphens."])
    return value


def _url(_api: AuthentikApi, value: Any) -> Any:
    if value and not (urlsplit(str(value)).scheme and urlsplit(str(value)).netloc):
        raise Invalid(["Enter a valid URL."])
    return value


def _email(_api: AuthentikApi, value: Any) -> Any:
    if value and not re.fullmatch(r"[^@\s]+@[^@\s]+", str(value)):
        raise Invalid(["Enter a valid email address."])
    return value


def _boolean(_api: AuthentikApi, value: Any) -> Any:
    if not isinstance(value, bool):
        raise Invalid(["Must be a valid boolean."])
    return value


def _integer(_api: AuthentikApi, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int):
        raise Invalid(["A valid integer is required."])
    return value


def _mapping(_api: AuthentikApi, value: Any) -> Any:
    if not isinstance(value, dict):
        raise Invalid(["Value must be valid JSON."])
    return value


def _duration(_api: AuthentikApi, value: Any) -> Any:
    if not re.fullmatch(r"((weeks|days|hours|minutes|seconds|milliseconds|microseconds)=[\d.,]+;?)+", str(value)):
        raise Invalid([f"{value} is not in the correct format of 'hours=3;minutes=1'."])
    return value


def _choice(*choices: str) -> Callable[[AuthentikApi, Any], Any]:
    def check(_api: AuthentikApi, value: Any) -> Any:
        if value not in choices:
            raise Invalid([f'"{value}" is not a valid choice.'])
        return value

    return check


def _ref(*kinds: str) -> Callable[[AuthentikApi, Any], Any]:
    def check(api: AuthentikApi, value: Any) -> Any:
        if kinds[0] not in INTEGER_KEYS:
            try:
                uuid.UUID(str(value))
            except ValueError:
                raise Invalid([f"\u201c{value}\u201d is not a valid UUID."]) from None
        elif isinstance(value, bool) or not isinstance(value, int):
            raise Invalid([f"Incorrect type. Expected pk value, received {type(value).__name__}."])
        if not any(api.store.get(kind, str(value)) for kind in kinds):
            raise Invalid([f'Invalid pk "{value}" - object does not exist.'])
        return value

    return check


def _list(item: Callable[[AuthentikApi, Any], Any], *, empty: bool = True) -> Callable[[AuthentikApi, Any], Any]:
    def check(api: AuthentikApi, value: Any) -> Any:
        if not isinstance(value, list):
            raise Invalid({"non_field_errors": [f'Expected a list of items but got type "{type(value).__name__}".']})
        if not value and not empty:
            raise Invalid(["This list may not be empty."])
        return [item(api, entry) for entry in value]

    return check


def _redirect_uris(api: AuthentikApi, value: Any) -> Any:
    if not isinstance(value, list):
        raise Invalid({"non_field_errors": [f'Expected a list of items but got type "{type(value).__name__}".']})
    stored: list[Json] = []
    errors: list[Json] = []
    for entry in value:
        if not isinstance(entry, dict):
            kind = type(entry).__name__
            errors.append({"non_field_errors": [f"Invalid data. Expected a dictionary, but got {kind}."]})
            continue
        wrong: Json = {}
        if entry.get("matching_mode") not in ("strict", "regex"):
            wrong["matching_mode"] = [f'"{entry.get("matching_mode")}" is not a valid choice.']
        if not entry.get("url"):
            wrong["url"] = ["This field is required."]
        row: Json = {"matching_mode": entry.get("matching_mode"), "url": entry.get("url")}
        if api.version >= (2026, 5):
            row["redirect_uri_type"] = entry.get("redirect_uri_type", "authorization")
            if row["redirect_uri_type"] not in ("authorization", "logout"):
                wrong["redirect_uri_type"] = [f'"{row["redirect_uri_type"]}" is not a valid choice.']
        errors.append(wrong)
        stored.append(row)
    if any(errors):
        raise Invalid(errors)
    return stored


def _python(_api: AuthentikApi, value: Any) -> Any:
    value = _text(blank=False)(_api, value)
    body = "\n".join("    " + line for line in value.splitlines())
    try:
        compile(f"def handler():\n{body}\n", "temp", "exec")
    except SyntaxError as error:
        raise Invalid([f"Expression Syntax Error: {error.msg}"]) from None
    return value


INTEGER_KEYS = frozenset({"users", "oauth2", "ldap", "proxy"})
PROVIDERS = ("oauth2", "ldap", "proxy")

_PROVIDER_FIELDS: dict[str, Field] = {
    "name": Field(_text(blank=False), unique="provider with this name already exists."),
    "authentication_flow": Field(_ref("flows"), None, null=True),
    "authorization_flow": Field(_ref("flows")),
    "invalidation_flow": Field(_ref("flows")),
}

FIELDS: dict[str, dict[str, Field]] = {
    "oauth2": {
        **_PROVIDER_FIELDS,
        "property_mappings": Field(_list(_ref("scope_mappings")), []),
        "client_type": Field(_choice("confidential", "public"), "confidential"),
        "client_id": Field(
            _text(blank=False, longest=255), "", unique="OAuth2/OpenID Provider with this Client ID already exists."
        ),
        "client_secret": Field(_text(longest=255), ""),
        "grant_types": Field(
            _list(
                _choice(
                    "authorization_code",
                    "implicit",
                    "hybrid",
                    "refresh_token",
                    "client_credentials",
                    "password",
                    "urn:ietf:params:oauth:grant-type:device_code",
                )
            ),
            [],
            since=(2026, 5),
        ),
        "access_code_validity": Field(_duration, "minutes=1"),
        "access_token_validity": Field(_duration, "hours=1"),
        "refresh_token_validity": Field(_duration, "days=30"),
        "refresh_token_threshold": Field(_duration, "seconds=0"),
        "include_claims_in_id_token": Field(_boolean, True),
        "signing_key": Field(_ref("certificates"), None, null=True),
        "encryption_key": Field(_ref("certificates"), None, null=True),
        "redirect_uris": Field(_redirect_uris),
        "logout_uri": Field(_url, ""),
        "logout_method": Field(_choice("backchannel", "frontchannel"), "backchannel"),
        "sub_mode": Field(
            _choice("hashed_user_id", "user_id", "user_uuid", "user_username", "user_email", "user_upn"),
            "hashed_user_id",
        ),
        "issuer_mode": Field(_choice("global", "per_provider"), "per_provider"),
        "jwt_federation_sources": Field(_list(_text()), []),
        "jwt_federation_providers": Field(_list(_ref("oauth2")), []),
    },
    "ldap": {
        **_PROVIDER_FIELDS,
        "property_mappings": Field(_list(_ref("scope_mappings")), []),
        "base_dn": Field(_text(blank=False), "DC=ldap,DC=goauthentik,DC=io"),
        "certificate": Field(_ref("certificates"), None, null=True),
        "tls_server_name": Field(_text(), ""),
        "uid_start_number": Field(_integer, 2000),
        "gid_start_number": Field(_integer, 4000),
        "search_mode": Field(_choice("direct", "cached"), "direct"),
        "bind_mode": Field(_choice("direct", "cached"), "direct"),
        "mfa_support": Field(_boolean, True),
    },
    "proxy": {
        **_PROVIDER_FIELDS,
        "property_mappings": Field(_list(_ref("scope_mappings")), []),
        "internal_host": Field(_url, ""),
        "external_host": Field(_url),
        "internal_host_ssl_validation": Field(_boolean, True),
        "certificate": Field(_ref("certificates"), None, null=True),
        "skip_path_regex": Field(_text(), ""),
        "basic_auth_enabled": Field(_boolean, False),
        "basic_auth_password_attribute": Field(_text(), ""),
        "basic_auth_user_attribute": Field(_text(), ""),
        "mode": Field(_choice("proxy", "forward_single", "forward_domain"), "proxy"),
        "intercept_header_auth": Field(_boolean, True),
        "cookie_domain": Field(_text(), ""),
        "jwt_federation_sources": Field(_list(_text()), []),
        "jwt_federation_providers": Field(_list(_ref("oauth2")), []),
        "access_token_validity": Field(_duration, "hours=1"),
        "refresh_token_validity": Field(_duration, "days=30"),
    },
    "scope_mappings": {
        "managed": Field(_text(), None, null=True),
        "name": Field(_text(blank=False), unique="Property Mapping with this name already exists."),
        "expression": Field(_python),
        "scope_name": Field(_text(blank=False)),
        "description": Field(_text(), ""),
    },
    "applications": {
        "name": Field(_text(blank=False)),
        "slug": Field(_slug, unique="Application with this slug already exists."),
        "provider": Field(_ref(*PROVIDERS), None, null=True, unique="Application with this provider already exists."),
        "backchannel_providers": Field(_list(_ref(*PROVIDERS)), []),
        "open_in_new_tab": Field(_boolean, False),
        "meta_launch_url": Field(_url, ""),
        "meta_icon": Field(_text(), ""),
        "meta_description": Field(_text(), ""),
        "meta_publisher": Field(_text(), ""),
        "meta_hide": Field(_boolean, False, since=(2026, 5)),
        "policy_engine_mode": Field(_choice("all", "any"), "any"),
        "group": Field(_text(), ""),
    },
    "groups": {
        "name": Field(_text(blank=False), unique="Group with this name already exists."),
        "is_superuser": Field(_boolean, False),
        "parents": Field(_list(_ref("groups")), []),
        "users": Field(_list(_ref("users")), []),
        "attributes": Field(_mapping, {}),
        "roles": Field(_list(_ref("roles")), []),
    },
    "users": {
        "username": Field(_text(blank=False, longest=150), unique="This field must be unique."),
        "name": Field(_text()),
        "is_active": Field(_boolean, True),
        "groups": Field(_list(_ref("groups")), []),
        "roles": Field(_list(_ref("roles")), []),
        "email": Field(_email, ""),
        "attributes": Field(_mapping, {}),
        "path": Field(_text(blank=False), "users"),
        "type": Field(_choice("internal", "external", "service_account", "internal_service_account"), "internal"),
    },
    "bindings": {
        "policy": Field(_ref("policies"), None, null=True),
        "group": Field(_ref("groups"), None, null=True),
        "user": Field(_ref("users"), None, null=True),
        "target": Field(_ref("targets")),
        "negate": Field(_boolean, False),
        "enabled": Field(_boolean, True),
        "order": Field(_integer),
        "timeout": Field(_integer, 30),
        "failure_result": Field(_boolean, False),
    },
    "outposts": {
        "name": Field(_text(blank=False), unique="Outpost with this name already exists."),
        "type": Field(lambda _api, value: value),
        "providers": Field(_list(_ref(*PROVIDERS), empty=False)),
        "service_connection": Field(_ref("service_connections"), None, null=True),
        "config": Field(_mapping),
        "managed": Field(_text(), None, null=True),
    },
    "tokens": {
        "managed": Field(_text(), None, null=True),
        "identifier": Field(_slug, unique="Token with this identifier already exists."),
        "intent": Field(_choice("verification", "api", "recovery", "app_password"), "api"),
        "user": Field(_ref("users"), None, null=True),
        "description": Field(_text(), ""),
        "expires": Field(_text(), None, null=True),
        "expiring": Field(_boolean, True),
    },
    "roles": {"name": Field(_text(blank=False), unique="Role with this name already exists.")},
    "blueprints": {
        "name": Field(_text(blank=False), unique="Blueprint Instance with this name already exists."),
        "path": Field(_text(), ""),
        "context": Field(_mapping, {}),
        "enabled": Field(_boolean, True),
        "content": Field(_text(), ""),
    },
}


class Kind(NamedTuple):
    """One collection of the API: where it lies, how a row is addressed, which filters its list knows."""

    path: str
    name: str
    methods: str = "GET POST PUT PATCH DELETE"
    key: str = "pk"
    label: str = ""
    filters: tuple[str, ...] = ()
    ignored_filters: tuple[str, ...] = ()


KINDS = (
    Kind("flows/instances/", "flows", "GET", "slug", "Flow", ("slug", "name", "designation", "flow_uuid")),
    Kind(
        "crypto/certificatekeypairs/",
        "certificates",
        "GET",
        "pk",
        "CertificateKeyPair",
        ("name", "managed"),
        ("has_key",),
    ),
    Kind("core/brands/", "brands", "GET", "brand_uuid", "Brand", ("domain", "default")),
    Kind(
        "propertymappings/provider/scope/",
        "scope_mappings",
        label="ScopeMapping",
        filters=("name", "scope_name", "managed"),
        ignored_filters=("managed__isnull",),
    ),
    Kind("providers/oauth2/", "oauth2", label="OAuth2Provider", filters=("name", "client_id")),
    Kind("providers/ldap/", "ldap", label="LDAPProvider", filters=("name__iexact",)),
    Kind("providers/proxy/", "proxy", label="ProxyProvider", filters=("name__iexact",)),
    Kind(
        "outposts/instances/",
        "outposts",
        label="Outpost",
        filters=("name__iexact", "name__icontains", "managed__iexact"),
    ),
    Kind(
        "outposts/service_connections/all/", "service_connections", "GET", label="ServiceConnection", filters=("name",)
    ),
    Kind(
        "core/applications/",
        "applications",
        key="slug",
        label="Application",
        filters=("slug", "name", "group"),
        ignored_filters=("superuser_full_list", "only_with_launch_url", "for_user"),
    ),
    Kind(
        "core/groups/",
        "groups",
        label="Group",
        filters=("name", "is_superuser"),
        ignored_filters=("include_users", "include_children", "include_parents", "include_inherited_roles"),
    ),
    Kind(
        "core/users/",
        "users",
        label="User",
        filters=("username", "name", "email", "path", "type", "is_active", "uuid"),
        ignored_filters=("include_groups", "include_roles"),
    ),
    Kind(
        "core/tokens/",
        "tokens",
        key="identifier",
        label="Token",
        filters=("identifier", "intent", "managed", "user__username"),
    ),
    Kind(
        "policies/bindings/", "bindings", label="PolicyBinding", filters=("target", "policy", "order", "policy__isnull")
    ),
    Kind("policies/all/", "policies", "GET DELETE", label="Policy", filters=("name",)),
    Kind("rbac/roles/", "roles", label="Role", filters=("name",)),
    Kind("managed/blueprints/", "blueprints", label="BlueprintInstance", filters=("name", "path")),
)

COMPONENTS = {
    "oauth2": ("ak-provider-oauth2-form", "OAuth2/OpenID Provider", "authentik_providers_oauth2.oauth2provider"),
    "ldap": ("ak-provider-ldap-form", "LDAP Provider", "authentik_providers_ldap.ldapprovider"),
    "proxy": ("ak-provider-proxy-form", "Proxy Provider", "authentik_providers_proxy.proxyprovider"),
}
MODEL_KINDS = {model: kind for kind, (_component, _verbose, model) in COMPONENTS.items()}
OUTPOST_KINDS = {"ldap": "ldap", "proxy": "proxy"}

FLOWS = {
    "default-authentication-flow": ("Welcome to authentik!", "authentication", "none"),
    "default-invalidation-flow": ("Logout", "invalidation", "none"),
    "default-provider-authorization-explicit-consent": ("Authorize", "authorization", "require_authenticated"),
    "default-provider-authorization-implicit-consent": ("Authorize", "authorization", "require_authenticated"),
    "default-provider-invalidation-flow": ("Logged out", "invalidation", "none"),
    "default-user-settings-flow": ("User settings", "stage_configuration", "require_authenticated"),
}
SCOPES = {
    "goauthentik.io/providers/proxy/scope-proxy": ("Proxy outpost", "ak_proxy", "return {}"),
    "goauthentik.io/providers/oauth2/scope-openid": ("OpenID 'openid'", "openid", "return {}"),
    "goauthentik.io/providers/oauth2/scope-email": (
        "OpenID 'email'",
        "email",
        'return {"email": request.user.email, "email_verified": False}',
    ),
    "goauthentik.io/providers/oauth2/scope-profile": (
        "OpenID 'profile'",
        "profile",
        """return {
    "name": request.user.name,
    "given_name": request.user.name,
    "preferred_username": request.user.username,
    "nickname": request.user.username,
    "groups": [group.name for group in request.user.groups.all()],
}""",
    ),
    "goauthentik.io/providers/oauth2/scope-offline_access": (
        "OpenID 'offline_access'",
        "offline_access",
        "return {}",
    ),
    "goauthentik.io/providers/oauth2/scope-entitlements": ("Application Entitlements", "entitlements", "return {}"),
    "goauthentik.io/providers/oauth2/scope-authentik_api": (
        "authentik API access",
        "goauthentik.io/api",
        "return {}",
    ),
}
CERTIFICATE = "authentik Self-signed Certificate"
OUTPOST_CONFIG: Json = {
    "authentik_host": "http://127.0.0.1:19000/",
    "authentik_host_insecure": False,
    "authentik_host_browser": "",
    "log_level": "info",
    "object_naming_template": "ak-outpost-%(name)s",
    "refresh_interval": "minutes=5",
    "container_image": None,
    "docker_network": None,
    "docker_map_ports": True,
    "docker_labels": None,
    "kubernetes_replicas": 1,
    "kubernetes_namespace": "default",
    "kubernetes_ingress_annotations": {},
    "kubernetes_ingress_secret_name": "authentik-outpost-tls",
    "kubernetes_ingress_class_name": None,
    "kubernetes_ingress_path_type": None,
    "kubernetes_httproute_annotations": {},
    "kubernetes_httproute_parent_refs": [],
    "kubernetes_service_type": "ClusterIP",
    "kubernetes_disabled_components": [],
    "kubernetes_image_pull_secrets": [],
    "kubernetes_json_patches": None,
}
NOT_FOUND_PAGE = "<!DOCTYPE html>\n<html><head><title>authentik</title></head><body>Not Found</body></html>"


class Refused(Exception):  # noqa: N818 - carries a reply
    """Ends the handling of a request with a reply."""

    def __init__(self, status: int, body: Any = None) -> None:
        super().__init__(str(status))
        self.reply = Reply(status, body)


def server_exception(method: str) -> Refused:
    """Return what Authentik answers when its own code raises: 500 HTML on GET, else an empty 405."""
    if method == "GET":
        return Refused(500, "<!DOCTYPE html>\n<html><body>Server Error</body></html>")
    return Refused(405, None)


@dataclass
class Quirks:
    """Behaviour on demand that the recorded server showed."""

    flows_hidden_for: int = 0
    """So many lists of flows are still empty: the default blueprints are not in yet."""
    outpost_races: int = 0
    """So many PATCH or DELETE of an outpost meet the worker and end as an unhandled exception."""
    blueprint_polls: int = 1
    """So many reads of a blueprint still show the state before it was applied."""
    before: Callable[[Request], None] | None = None
    """Called before a request is handled: what another client does in between."""


@dataclass
class AuthentikApi:
    """The API: `handle` answers, everything it knows lies in `store`.

    `random` makes ids and secrets: the same ones in every test. Where the store outlives the process it has to be
    `random.SystemRandom()`.
    """

    store: Store = field(default_factory=MemoryStore)
    version_string: str = "2026.2.2"
    quirks: Quirks = field(default_factory=Quirks)
    random: random.Random = field(default_factory=lambda: random.Random(20261124))
    base_path: str = "/api/v3"
    base_url: str = OUTPOST_CONFIG["authentik_host"]

    def __post_init__(self) -> None:
        if not self.store.rows("flows"):
            self.install_certificate()
            self.install_accounts(ADMIN_TOKEN)
            self.install_defaults()

    @property
    def version(self) -> tuple[int, int]:
        """Year and month of the release that is played."""
        year, month = self.version_string.split(".")[:2]
        return int(year), int(month)

    # -- the objects of a new installation ---------------------------------------------------------------------------

    def uuid(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def secret(self, length: int) -> str:
        return "".join(self.random.choices(string.ascii_letters + string.digits, k=length))

    def install_certificate(self) -> None:
        """Store what a server makes itself at its first start: the certificate and the embedded outpost."""
        self.add_certificate(CERTIFICATE)
        self.add("users", username="ak-outpost-embedded", name="ak-outpost-embedded", type="internal_service_account")
        self.add(
            "outposts",
            name="authentik Embedded Outpost",
            type="proxy",
            providers=[],
            config={**OUTPOST_CONFIG, "authentik_host": ""},
            managed=EMBEDDED,
        )

    def install_accounts(self, token: str | None, email: str = "akadmin@example.test") -> None:
        """Store what the bootstrap blueprint makes: the administrator, and its token where one is given."""
        read_only = self.add("roles", name="authentik Read-only")
        admins = self.add("groups", name="authentik Admins", is_superuser=True)
        self.add("groups", name="authentik Read-only", roles=[read_only["pk"]])
        self.add("users", username="AnonymousUser", name="AnonymousUser")
        admin = self.add("users", username="akadmin", name="akadmin", email=email, groups=[admins["pk"]])
        if token:
            self.add(
                "tokens",
                identifier="authentik-bootstrap-token",
                user=admin["pk"],
                key=token,
                intent="api",
                expiring=False,
            )

    def install_defaults(self) -> None:
        """Store what the other default blueprints make: flows, scope mappings, the brand, policies of stages."""
        for slug, (title, designation, authentication) in FLOWS.items():
            self.add_flow(slug, title, designation, authentication)
        for managed, (name, scope, expression) in SCOPES.items():
            self.add(
                "scope_mappings",
                name=f"authentik default OAuth Mapping: {name}",
                managed=managed,
                scope_name=scope,
                expression=expression,
            )
        flows = {row["slug"]: row["pk"] for row in self.store.rows("flows")}
        brand = self.uuid()
        self.store.put(
            "brands",
            brand,
            {
                "brand_uuid": brand,
                "domain": "authentik-default",
                "default": True,
                "branding_title": "authentik",
                "branding_logo": "/static/dist/assets/icons/icon_left_brand.svg",
                "branding_favicon": "/static/dist/assets/icons/icon.png",
                "branding_custom_css": "",
                "branding_default_flow_background": "/static/dist/assets/images/flow_background.jpg",
                "flow_authentication": flows["default-authentication-flow"],
                "flow_invalidation": flows["default-invalidation-flow"],
                "flow_recovery": None,
                "flow_unenrollment": None,
                "flow_user_settings": flows["default-user-settings-flow"],
                "flow_device_code": None,
                "default_application": None,
                "web_certificate": None,
                "client_certificates": [],
                "attributes": {},
            },
        )
        self.add(
            "blueprints",
            name="Default - Brand",
            path="default/default-brand.yaml",
            status="successful",
            last_applied=NOW,
        )
        # The installation binds policies to stages of its flows; they share the list with those of applications.
        for number in range(13):
            policy = self.add_policy(f"default-policy-{number}")
            target = self.uuid()
            self.store.put("targets", target, {"pk": target})
            self.add("bindings", target=target, policy=policy["pk"], order=0)

    def add_flow(
        self, slug: str, title: str = "", designation: str = "authorization", authentication: str = "none"
    ) -> Json:
        """Store a flow, as a blueprint would."""
        pk = self.uuid()
        row: Json = {
            "pk": pk,
            "policybindingmodel_ptr_id": self.uuid(),
            "name": title or slug,
            "slug": slug,
            "title": title or slug,
            "designation": designation,
            "background": "",
            "background_url": "/static/dist/assets/images/flow_background.jpg",
            "background_themed_urls": None,
            "stages": [],
            "policies": [],
            "cache_count": 0,
            "policy_engine_mode": "any",
            "compatibility_mode": False,
            "export_url": f"/api/v3/flows/instances/{slug}/export/",
            "layout": "stacked",
            "denied_action": "message_continue",
            "authentication": authentication,
        }
        self.store.put("flows", pk, row)
        return row

    def add_certificate(self, name: str) -> Json:
        """Store a certificate with a private key."""
        pk = self.uuid()
        row = {
            "pk": pk,
            "name": name,
            "fingerprint_sha256": "00",
            "fingerprint_sha1": "00",
            "cert_expiry": "2027-11-24T08:37:57Z",
            "cert_subject": f"CN={name}",
            "private_key_available": True,
            "key_type": "rsa",
            "certificate_download_url": f"/api/v3/crypto/certificatekeypairs/{pk}/view_certificate/?download",
            "private_key_download_url": f"/api/v3/crypto/certificatekeypairs/{pk}/view_private_key/?download",
            "managed": None,
        }
        self.store.put("certificates", pk, row)
        return row

    def add_policy(self, name: str) -> Json:
        """Store an expression policy."""
        pk = self.uuid()
        row = {
            "pk": pk,
            "name": name,
            "execution_logging": False,
            "component": "ak-policy-expression-form",
            "verbose_name": "Expression Policy",
            "verbose_name_plural": "Expression Policies",
            "meta_model_name": "authentik_policies_expression.expressionpolicy",
            "expression": "return True",
        }
        self.store.put("policies", pk, row)
        return row

    def add(self, kind: str, **values: Any) -> Json:
        """Store an object of a kind without a request; unset fields get the API's defaults."""
        row = {name: spec.initial() for name, spec in FIELDS[kind].items() if spec.default is not REQUIRED}
        row.update(values)
        return self._create(kind, row)

    def user(self, username: str) -> Json:
        """Return the row of a user that exists."""
        return next(row for row in self.store.rows("users") if row["username"] == username)

    def find(self, kind: str, **values: Any) -> Json:
        """Return the one row of a kind with these values."""
        (row,) = [row for row in self.store.rows(kind) if all(row.get(key) == value for key, value in values.items())]
        return row

    # -- one request -------------------------------------------------------------------------------------------------

    def handle(self, request: Request) -> Reply:
        """Answer a request."""
        if self.quirks.before is not None:
            self.quirks.before(request)
        try:
            return self._route(request, request.path.lstrip("/"))
        except Refused as refused:
            return refused.reply

    def _route(self, request: Request, path: str) -> Reply:
        method = request.method
        if path == "root/config/":
            return Reply(200, self._root_config())
        if not path.endswith("/"):
            # No redirect: a forgotten slash looks like a missing object, or like a method that is not allowed.
            raise Refused(404, NOT_FOUND_PAGE) if method == "GET" else Refused(405)
        special = next(((rule, match) for rule in SPECIAL if (match := re.fullmatch(rule.pattern, path))), None)
        kind = next((kind for kind in KINDS if path.startswith(kind.path)), None)
        rest = path[len(kind.path) :].rstrip("/") if kind else ""
        if special is None and (kind is None or "/" in rest):
            raise Refused(404, NOT_FOUND_PAGE)
        user = self._authenticate(request.headers)
        if not self._may(user, method, path):
            raise Refused(403, {"detail": "You do not have permission to perform this action."})
        document = self._document(request)
        if special is not None:
            rule, match = special
            if method != rule.method:
                raise Refused(405, {"detail": f'Method "{method}" not allowed.'})
            return rule.handler(self, user=user, query=request.query, document=document, **match.groupdict())
        assert kind is not None
        allowed = set(kind.methods.split()) & ({"GET", "PUT", "PATCH", "DELETE"} if rest else {"GET", "POST"})
        if method not in allowed:
            raise Refused(405, {"detail": f'Method "{method}" not allowed.'})
        if not rest:
            return self._list(kind, request.query, user) if method == "GET" else self._post(kind, document, user)
        return self._one(kind, self._lookup(kind, rest), request, document)

    def _one(self, kind: Kind, row: Json, request: Request, document: Json) -> Reply:
        if request.method == "GET":
            self._tick(kind.name, row)
            return Reply(200, self.render(kind.name, row, request.query))
        if kind.name == "outposts" and request.method in ("PATCH", "DELETE") and self.quirks.outpost_races > 0:
            self.quirks.outpost_races -= 1
            raise server_exception(request.method)
        if request.method == "DELETE":
            self._delete(kind.name, row)
            return Reply(204)
        return self._write(kind, row, document, partial=request.method == "PATCH")

    def _authenticate(self, headers: Mapping[str, str]) -> Json:
        scheme, _blank, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Refused(403, {"detail": "Authentication credentials were not provided."})
        for token in self.store.rows("tokens"):
            if token["key"] == key and token["intent"] == "api":
                user = self.store.get("users", str(token["user"]))
                assert user is not None
                return user
        raise Refused(403, {"detail": "Token invalid/expired"})

    def _may(self, user: Json, _method: str, path: str) -> bool:
        """Tell whether a user may make a request."""
        return self._is_superuser(user) or path == "core/users/me/"

    def _is_superuser(self, user: Json) -> bool:
        groups = [self.store.get("groups", pk) for pk in user["groups"]]
        return any(group["is_superuser"] for group in groups if group)

    @staticmethod
    def _document(request: Request) -> Json:
        if request.method in ("GET", "DELETE") or request.body is None:
            return {}
        kind = request.headers.get("content-type", "").partition(";")[0]
        if kind != "application/json":
            raise Refused(415, {"detail": f'Unsupported media type "{kind}" in request.'})
        if isinstance(request.body, str):
            raise Refused(400, {"detail": "JSON parse error - unexpected character: line 1 column 2 (char 1)"})
        if not isinstance(request.body, dict):
            name = type(request.body).__name__
            raise Refused(400, {"non_field_errors": [f"Invalid data. Expected a dictionary, but got {name}."]})
        return request.body

    # -- lists -------------------------------------------------------------------------------------------------------

    def _list(self, kind: Kind, query: Json, user: Json) -> Reply:
        rows = self.store.rows(kind.name)
        if kind.name == "flows" and self.quirks.flows_hidden_for > 0:
            self.quirks.flows_hidden_for -= 1
            rows = []
        if kind.name == "bindings":
            rows = self._filter_bindings(rows, query)
        else:
            rows = [row for row in rows if self._matches(kind, row, query)]
        if kind.name == "applications" and query.get("superuser_full_list") != "true":
            rows = [row for row in rows if self._may_use(row, user)]
        order = query.get("ordering", "")
        if order:
            rows.sort(key=lambda row: str(row.get(order.lstrip("-"))), reverse=order.startswith("-"))
        for row in rows:
            self._tick(kind.name, row)
        return self.page([self.render(kind.name, row, query) for row in rows], query, AUTOCOMPLETE.get(kind.name))

    @staticmethod
    def page(results: list[Json], query: Json, autocomplete: Json | None = None) -> Reply:
        """Return one page as Authentik's paginator does: size 20, at most 100, page numbers, 0 for none."""
        try:
            size = int(query.get("page_size", "0"))
            number = int(query.get("page", "1"))
        except ValueError:
            raise Refused(404, {"detail": "Invalid page."}) from None
        size = min(size, 100) if size > 0 else 20
        pages = max(1, -(-len(results) // size))
        if not 1 <= number <= pages:
            raise Refused(404, {"detail": "Invalid page."})
        part = results[(number - 1) * size : number * size]
        pagination = {
            "next": number + 1 if number < pages else 0,
            "previous": number - 1,
            "count": len(results),
            "current": number,
            "total_pages": pages,
            "start_index": (number - 1) * size + 1 if part else 0,
            "end_index": (number - 1) * size + len(part),
        }
        return Reply(200, {"pagination": pagination, "results": part, "autocomplete": autocomplete or {}})

    def _filter_bindings(self, rows: list[Json], query: Json) -> list[Json]:
        for name in ("target", "policy"):
            if name in query:
                try:
                    uuid.UUID(query[name])
                except ValueError:
                    raise Refused(400, {name: [f"\u201c{query[name]}\u201d is not a valid UUID."]}) from None
                rows = [row for row in rows if row[name] == query[name]]
        if "target_in" in query:
            rows = [row for row in rows if row["target"] in query["target_in"].split(",")]
        if "policy__isnull" in query:
            rows = [row for row in rows if (row["policy"] is None) == (query["policy__isnull"] == "true")]
        return rows

    def _matches(self, kind: Kind, row: Json, query: Json) -> bool:
        for name in kind.filters:
            if name not in query:
                continue
            column, _mark, operator = name.partition("__")
            value = row.get(column)
            if name == "user__username":
                value, operator = (self.store.get("users", str(row["user"])) or {}).get("username"), ""
            if name == "flow_uuid":
                value = row["pk"]
            wanted, have = query[name], "" if value is None else str(value)
            if isinstance(value, bool):
                wanted, have = wanted.lower(), have.lower()
            if operator == "iexact" and have.lower() != wanted.lower():
                return False
            if operator == "icontains" and wanted.lower() not in have.lower():
                return False
            if not operator and have != wanted:
                return False
        search = query.get("search", "").lower()
        return not search or any(search in value.lower() for value in row.values() if isinstance(value, str))

    def _may_use(self, application: Json, user: Json) -> bool:
        """Tell whether the bindings of an application let a user in (mode any; policies count as passed)."""
        bindings = [row for row in self.store.rows("bindings") if row["target"] == application["pk"] and row["enabled"]]
        return not bindings or any(
            row["policy"] is not None or row["group"] in user["groups"] or row["user"] == user["pk"] for row in bindings
        )

    # -- writes ------------------------------------------------------------------------------------------------------

    def _lookup(self, kind: Kind, key: str) -> Json:
        if kind.name in INTEGER_KEYS and not key.isdecimal():
            raise Refused(404, {"detail": "Not found."})
        for row in self.store.rows(kind.name):
            if str(row[kind.key]) == key:
                return row
        raise Refused(404, {"detail": f"No {kind.label} matches the given query."})

    def _validate(self, kind: str, document: Json, current: Json | None, *, partial: bool) -> Json:
        """Return the stored form of a request body; names that the version does not know are dropped silently."""
        values: Json = {}
        errors: Json = {}
        for name, spec in FIELDS[kind].items():
            if spec.since > self.version:
                continue
            if name not in document:
                if partial:
                    continue
                if spec.default is REQUIRED:
                    errors[name] = ["This field is required."]
                elif current is None:
                    values[name] = spec.initial()
                continue
            value = document[name]
            if value is None:
                if not spec.null:
                    errors[name] = ["This field may not be null."]
                else:
                    values[name] = None
                continue
            try:
                values[name] = spec.check(self, value)
            except Invalid as invalid:
                errors[name] = invalid.detail
                continue
            if spec.unique and self._taken(kind, name, values[name], current):
                errors[name] = [spec.unique]
        if errors:
            raise Refused(400, errors)
        return values

    def _taken(self, kind: str, name: str, value: Any, current: Json | None) -> bool:
        # The name of a provider is unique over all its types.
        kinds = PROVIDERS if kind in PROVIDERS and name == "name" else (kind,)
        for other in kinds:
            for row in self.store.rows(other):
                if row.get(name) == value and (current is None or row["pk"] != current["pk"]):
                    return True
        return False

    def _post(self, kind: Kind, document: Json, user: Json) -> Reply:
        values = self._validate(kind.name, document, None, partial=False)
        if kind.name == "tokens" and values["user"] is None:
            values["user"] = user["pk"]
        self._check(kind.name, values, "POST")
        return Reply(201, self.render(kind.name, self._create(kind.name, values), {}))

    def _write(self, kind: Kind, row: Json, document: Json, *, partial: bool) -> Reply:
        values = self._validate(kind.name, document, row, partial=partial)
        if kind.name == "bindings":
            if "target" not in document:
                raise server_exception("PATCH")
            # The serializer looks at the request alone: what the binding already has does not count.
            self._check(kind.name, {"policy": None, "group": None, "user": None, **values}, "PATCH")
            values = {"policy": None, "group": None, "user": None, **values}
        else:
            self._check(kind.name, {**row, **values}, "PATCH")
        row.update(values)
        self._save(kind.name, row)
        if kind.name == "blueprints":
            self._enqueue(row)
        return Reply(200, self.render(kind.name, row, {}))

    def _check(self, kind: str, values: Json, method: str) -> None:
        """Refuse what the serializers refuse about an object as a whole."""
        if kind == "bindings":
            subjects = [name for name in ("policy", "group", "user") if values.get(name) is not None]
            if not subjects:
                raise Refused(400, {"non_field_errors": ["One of 'group', 'policy', 'user' must be set."]})
            if len(subjects) > 1:
                raise Refused(400, {"non_field_errors": ["Only one of 'group', 'policy', 'user' can be set."]})
        if kind == "outposts":
            if values["type"] not in ("proxy", "ldap", "radius", "rac"):
                raise server_exception(method)
            for pk in values["providers"]:
                of = next(name for name in PROVIDERS if self.store.get(name, str(pk)))
                if OUTPOST_KINDS.get(values["type"]) != of:
                    label = next(known.label for known in KINDS if known.name == of)
                    message = f"Outpost type {values['type']} can't be used with {label} providers."
                    raise Refused(400, {"providers": [message]})
            interval = values["config"].get("refresh_interval")
            if interval is not None:
                try:
                    _duration(self, interval)
                except Invalid as invalid:
                    raise Refused(400, {"config": invalid.detail}) from None
        if kind == "blueprints" and values.get("content") and not re.search(r"^version: 1$", values["content"], re.M):
            raise Refused(400, {"content": ["Failed to validate blueprint", "- Invalid blueprint version"]})

    def _create(self, kind: str, values: Json) -> Json:
        sequence = "providers" if kind in PROVIDERS else kind
        pk: Any = self.store.next_id(sequence) if kind in INTEGER_KEYS else self.uuid()
        row: Json = {"pk": pk, **values}
        if kind == "oauth2":
            row["client_id"] = row["client_id"] or self.secret(40)
            row["client_secret"] = row["client_secret"] or self.secret(128)
        if kind == "proxy":
            row["client_id"] = self.secret(40)
            mappings = [m for m in self.store.rows("scope_mappings") if m["managed"] and "api" not in m["scope_name"]]
            row["property_mappings"] = row["property_mappings"] or [m["pk"] for m in mappings][:5]
        if kind == "groups":
            row["num_pk"] = self.random.randrange(10000, 60000)
        if kind == "users":
            row.update(uuid=self.uuid(), uid=self.random.randbytes(32).hex(), password=None)
        if kind == "tokens":
            row.setdefault("key", self.secret(60))
        if kind == "applications":
            self.store.put("targets", pk, {"pk": pk})
        if kind == "blueprints":
            row = {"last_applied": EARLIER, "last_applied_hash": "", "status": "unknown", "metadata": {}, **row}
        self._save(kind, row)
        if kind == "outposts":
            self._outpost_account(row)
        if kind == "blueprints" and row["status"] == "unknown":
            self._enqueue(row)
        return row

    def _save(self, kind: str, row: Json) -> None:
        if kind == "groups":
            # Membership is stored once, with the user.
            members = row.pop("users", None)
            if members is not None:
                for user in self.store.rows("users"):
                    groups = [pk for pk in user["groups"] if pk != row["pk"]]
                    user["groups"] = [*groups, row["pk"]] if user["pk"] in members else groups
                    self.store.put("users", str(user["pk"]), user)
        self.store.put(kind, str(row["pk"]), row)

    def _outpost_account(self, outpost: Json) -> None:
        name = f"ak-outpost-{outpost['pk'].replace('-', '')}"
        user = self.add(
            "users",
            username=name,
            name=f"Outpost {outpost['name']} Service-Account",
            type="internal_service_account",
            path="goauthentik.io/outposts",
        )
        role = self.add("roles", name=f"ak-managed-role--user-{user['pk']}")
        self.store.put("users", str(user["pk"]), {**user, "roles": [role["pk"]]})
        identifier = f"ak-outpost-{outpost['pk']}-api"
        self.add(
            "tokens",
            identifier=identifier,
            managed=f"goauthentik.io/outpost/{identifier}",
            user=user["pk"],
            expiring=False,
            description=f"Autogenerated by authentik for Outpost {outpost['name']}",
        )

    def _delete(self, kind: str, row: Json) -> None:
        """Remove a row and what the database cascades to."""
        pk = row["pk"]
        self.store.delete(kind, str(pk))
        if kind in PROVIDERS:
            self._strip("applications", "provider", pk)
            self._strip("applications", "backchannel_providers", pk)
            self._strip("outposts", "providers", pk)
            self._strip("permissions", "object_pk", str(pk), cascade=True)
        elif kind == "applications":
            self._strip("bindings", "target", pk, cascade=True)
            self.store.delete("targets", pk)
        elif kind == "groups":
            self._strip("bindings", "group", pk, cascade=True)
            self._strip("users", "groups", pk)
            self._strip("groups", "parents", pk)
        elif kind == "users":
            self._strip("bindings", "user", pk, cascade=True)
            self._strip("tokens", "user", pk, cascade=True)
        elif kind == "policies":
            self._strip("bindings", "policy", pk, cascade=True)
        elif kind == "scope_mappings":
            for provider in PROVIDERS:
                self._strip(provider, "property_mappings", pk)
        elif kind == "roles":
            self._strip("groups", "roles", pk)
            self._strip("users", "roles", pk)
            self._strip("permissions", "role", pk, cascade=True)
        elif kind == "outposts":
            name = f"ak-outpost-{pk.replace('-', '')}"
            for user in [user for user in self.store.rows("users") if user["username"] == name]:
                self._delete("users", user)

    def _strip(self, kind: str, column: str, pk: Any, *, cascade: bool = False) -> None:
        for row in self.store.rows(kind):
            if isinstance(row[column], list) and pk in row[column]:
                row[column] = [entry for entry in row[column] if entry != pk]
            elif row[column] == pk:
                if cascade:
                    self.store.delete(kind, str(row["pk"]))
                    continue
                row[column] = None
            else:
                continue
            self.store.put(kind, str(row["pk"]), row)

    # -- blueprints: a worker applies them later -----------------------------------------------------------------------

    def _enqueue(self, row: Json) -> None:
        if row["enabled"]:
            row["polls"] = self.quirks.blueprint_polls
            self.store.put("blueprints", row["pk"], row)

    def _tick(self, kind: str, row: Json) -> None:
        """Let the worker get on with a blueprint; `row` is brought up to date."""
        if kind != "blueprints" or row.get("polls") is None:
            return
        if row["polls"] > 0:
            row["polls"] -= 1
            self.store.put(kind, row["pk"], row)
            return
        row["polls"] = None
        models = re.findall(r"^\s*(?:- )?model: (\S+)$", row["content"], re.M)
        broken = [model for model in models if not re.fullmatch(r"authentik_[a-z0-9_]+\.[a-z0-9]+", model)]
        row["status"] = "error" if broken else "successful"
        row["last_applied"] = f"2026-11-24T09:00:{self.store.next_id('blueprint runs'):02d}.000000Z"
        if not broken:
            row["last_applied_hash"] = hashlib.sha512(row["content"].encode()).hexdigest()
        self.store.put(kind, row["pk"], row)

    # -- what a reply shows --------------------------------------------------------------------------------------------

    def render(self, kind: str, row: Json, query: Json) -> Json:
        """Return a row as the API shows it."""
        renderer = RENDERERS.get(kind)
        if kind in PROVIDERS:
            return self._render_provider(kind, row)
        return renderer(self, row, query) if renderer else row

    def _provider_head(self, kind: str, row: Json, *, base: bool = False) -> Json:
        component, verbose, model = COMPONENTS[kind]
        if base:
            component, verbose, model = "", "provider", "authentik_core.provider"
        front = next((app for app in self.store.rows("applications") if app["provider"] == row["pk"]), None)
        back = next((app for app in self.store.rows("applications") if row["pk"] in app["backchannel_providers"]), None)
        head = {name: row[name] for name in ("pk", "name", "authentication_flow", "authorization_flow")}
        return {
            **head,
            "invalidation_flow": row["invalidation_flow"],
            "property_mappings": row["property_mappings"],
            "component": component,
            "assigned_application_slug": front["slug"] if front else None,
            "assigned_application_name": front["name"] if front else None,
            "assigned_backchannel_application_slug": back["slug"] if back else None,
            "assigned_backchannel_application_name": back["name"] if back else None,
            "verbose_name": verbose,
            "verbose_name_plural": f"{verbose}s",
            "meta_model_name": model,
        }

    def _render_provider(self, kind: str, row: Json) -> Json:
        shown = {**self._provider_head(kind, row), **row}
        if kind != "oauth2":
            outposts = [outpost for outpost in self.store.rows("outposts") if row["pk"] in outpost["providers"]]
            shown["outpost_set"] = [outpost["name"] for outpost in outposts]
        if kind == "proxy":
            host = row["external_host"].rstrip("/")
            callback = "X-authentik-auth-callback=true"
            urls = (f"{host}/outpost.goauthentik.io/callback?{callback}", f"{host}?{callback}")
            shown["redirect_uris"] = _redirect_uris(self, [{"matching_mode": "strict", "url": url} for url in urls])
        return shown

    def provider(self, pk: Any) -> tuple[str, Json]:
        """Return type and row of a provider."""
        for kind in PROVIDERS:
            row = self.store.get(kind, str(pk))
            if row:
                return kind, row
        raise KeyError(pk)

    def _render_application(self, row: Json, _query: Json) -> Json:
        head = self._provider_head(*self.provider(row["provider"])) if row["provider"] is not None else None
        back = [self._provider_head(*self.provider(pk), base=True) for pk in row["backchannel_providers"]]
        return {
            **row,
            "provider_obj": head,
            "backchannel_providers_obj": back,
            "launch_url": row["meta_launch_url"] or None,
            "meta_icon_url": row["meta_icon"] or None,
            "meta_icon_themed_urls": None,
        }

    def _render_group(self, row: Json, query: Json) -> Json:
        users = [user for user in self.store.rows("users") if row["pk"] in user["groups"]]
        children = [group for group in self.store.rows("groups") if row["pk"] in group["parents"]]
        shown = {
            **row,
            "parents_obj": None,
            "users": [user["pk"] for user in users],
            "users_obj": [self._partial_user(user) for user in users],
            "roles_obj": self._roles(row),
            "inherited_roles_obj": None,
            "children": [group["pk"] for group in children],
            "children_obj": None,
        }
        if query.get("include_users") == "false":
            shown["users_obj"] = None
        return shown

    def _roles(self, row: Json) -> list[Json]:
        return [role for pk in row["roles"] if (role := self.store.get("roles", pk))]

    @staticmethod
    def _partial_user(user: Json) -> Json:
        names = ("pk", "username", "name", "is_active", "email", "attributes", "uid")
        return {**{name: user[name] for name in names}, "last_login": None}

    @staticmethod
    def _partial_group(group: Json) -> Json:
        return {name: group[name] for name in ("pk", "num_pk", "name", "is_superuser", "attributes")}

    def _render_user(self, row: Json, query: Json) -> Json:
        groups = [group for pk in row["groups"] if (group := self.store.get("groups", pk))]
        shown = {
            **row,
            "last_login": None,
            "date_joined": EARLIER,
            "is_superuser": self._is_superuser(row),
            "groups_obj": [self._partial_group(group) for group in groups],
            "roles_obj": self._roles(row),
            "avatar": "data:image/svg+xml;base64,PHN2Zy8+",
            "password_change_date": NOW,
            "last_updated": NOW,
        }
        if query.get("include_groups") == "false":
            shown["groups_obj"] = None
        if query.get("include_roles") == "false":
            shown["roles_obj"] = None
        del shown["password"]
        return shown

    def _render_token(self, row: Json, _query: Json) -> Json:
        user = self.store.get("users", str(row["user"]))
        assert user is not None
        shown = {**row, "user_obj": self._render_user(user, {})}
        del shown["key"]
        return shown

    def _render_binding(self, row: Json, _query: Json) -> Json:
        policy = self.store.get("policies", str(row["policy"]))
        group = self.store.get("groups", str(row["group"]))
        user = self.store.get("users", str(row["user"]))
        shown = {
            **row,
            "policy_obj": self._render_policy(policy, {}) if policy else None,
            "group_obj": self._partial_group(group) if group else None,
            "user_obj": self._partial_user(user) if user else None,
        }
        if self.version >= (2026, 8):
            shown.update(expires=None, expiring=False)
        return shown

    def _render_policy(self, row: Json, _query: Json) -> Json:
        bound = [binding for binding in self.store.rows("bindings") if binding["policy"] == row["pk"]]
        return {**row, "bound_to": len(bound)}

    def _render_scope(self, row: Json, _query: Json) -> Json:
        return {
            **row,
            "component": "ak-property-mapping-provider-scope-form",
            "verbose_name": "Scope Mapping",
            "verbose_name_plural": "Scope Mappings",
            "meta_model_name": "authentik_providers_oauth2.scopemapping",
        }

    def _render_outpost(self, row: Json, _query: Json) -> Json:
        return {
            **row,
            "providers_obj": [self._provider_head(*self.provider(pk), base=True) for pk in row["providers"]],
            "service_connection_obj": self.store.get("service_connections", str(row["service_connection"])),
            "refresh_interval_s": 300,
            "token_identifier": f"ak-outpost-{row['pk']}-api",
        }

    def _render_blueprint(self, row: Json, _query: Json) -> Json:
        return {**{name: value for name, value in row.items() if name != "polls"}, "managed_models": []}

    # -- single addresses --------------------------------------------------------------------------------------------

    @staticmethod
    def _root_config() -> Json:
        return {
            "error_reporting": {
                "enabled": False,
                "sentry_dsn": "",
                "environment": "customer",
                "send_pii": False,
                "traces_sample_rate": 0.1,
            },
            "capabilities": ["can_impersonate"],
            "cache_timeout": 300,
            "cache_timeout_flows": 300,
            "cache_timeout_policies": 300,
        }

    def _get_version(self, **_kwargs: Any) -> Reply:
        return Reply(
            200,
            {
                "version_current": self.version_string,
                "version_latest": "0.0.0",
                "version_latest_valid": False,
                "build_hash": "",
                "outdated": False,
                "outpost_outdated": False,
            },
        )

    def _get_settings(self, **_kwargs: Any) -> Reply:
        return Reply(
            200,
            {
                "avatars": "gravatar,initials",
                "default_user_change_name": True,
                "default_user_change_email": False,
                "default_user_change_username": False,
                "event_retention": "days=365",
                "reputation_lower_limit": -5,
                "reputation_upper_limit": 5,
                "footer_links": [],
                "gdpr_compliance": True,
                "impersonation": True,
                "impersonation_require_reason": True,
                "default_token_duration": "minutes=30",
                "default_token_length": 60,
                "pagination_default_page_size": 20,
                "pagination_max_page_size": 100,
                "flags": {},
            },
        )

    def _get_me(self, *, user: Json, **_kwargs: Any) -> Reply:
        groups = [group for pk in user["groups"] if (group := self.store.get("groups", pk))]
        names = ("pk", "username", "name", "is_active", "email", "uid", "type")
        return Reply(
            200,
            {
                "user": {
                    **{name: user[name] for name in names},
                    "is_superuser": self._is_superuser(user),
                    "groups": [{"name": group["name"], "pk": group["pk"]} for group in groups],
                    "roles": [{"name": role["name"], "pk": role["pk"]} for role in self._roles(user)],
                    "avatar": "data:image/svg+xml;base64,PHN2Zy8+",
                    "settings": {},
                    "system_permissions": ["access_admin_interface"],
                }
            },
        )

    def _get_default_settings(self, **_kwargs: Any) -> Reply:
        return Reply(200, {"config": OUTPOST_CONFIG})

    def _get_health(self, *, key: str, **_kwargs: Any) -> Reply:
        self._lookup(_kind("outposts"), key)
        return Reply(200, [])

    def _get_ldap_outposts(self, *, query: Json, **_kwargs: Any) -> Reply:
        shown = []
        for row in self.store.rows("ldap"):
            head = self._provider_head("ldap", row)
            bind, unbind = (self.store.get("flows", row[name]) for name in ("authorization_flow", "invalidation_flow"))
            assert bind
            assert unbind
            names = ("certificate", "tls_server_name", "uid_start_number", "gid_start_number", "search_mode")
            shown.append(
                {
                    **{name: row[name] for name in ("pk", "name", "base_dn")},
                    "bind_flow_slug": bind["slug"],
                    "unbind_flow_slug": unbind["slug"],
                    "application_slug": head["assigned_application_slug"],
                    **{name: row[name] for name in names},
                    "bind_mode": row["bind_mode"],
                    "mfa_support": row["mfa_support"],
                }
            )
        return self.page(shown, query)

    def _get_providers(self, *, query: Json, **_kwargs: Any) -> Reply:
        search = query.get("search", "").lower()
        rows = itertools.chain.from_iterable(((kind, row) for row in self.store.rows(kind)) for kind in PROVIDERS)
        heads = [self._provider_head(kind, row) for kind, row in rows if search in row["name"].lower()]
        return self.page(sorted(heads, key=lambda head: head["pk"]), query)

    def _get_setup_urls(self, *, key: str, **_kwargs: Any) -> Reply:
        head = self._provider_head("oauth2", self._lookup(_kind("oauth2"), key))
        slug = head["assigned_application_slug"]
        base = f"{self.base_url}application/o/"
        own = f"{base}{slug}/" if slug else None
        urls = {
            "issuer": own,
            "authorize": f"{base}authorize/",
            "token": f"{base}token/",
            "user_info": f"{base}userinfo/",
            "provider_info": f"{own}.well-known/openid-configuration" if own else None,
            "logout": f"{own}end-session/" if own else None,
        }
        return Reply(200, {**urls, "jwks": f"{own}jwks/"} if own else urls)

    def _set_password(self, *, key: str, document: Json, **_kwargs: Any) -> Reply:
        row = self._lookup(_kind("users"), key)
        if not document.get("password"):
            raise Refused(400, {"password": ["This field is required."]})
        self.store.put("users", key, {**row, "password": self.kept_password(document["password"])})
        return Reply(204)

    def kept_password(self, password: str) -> str:
        """Return the form in which a password is kept."""
        return password

    def _service_account(self, *, document: Json, **_kwargs: Any) -> Reply:
        name = document.get("name")
        if not name:
            raise Refused(400, {"name": ["This field is required."]})
        if self._taken("users", "username", name, None):
            raise Refused(400, {"name": ["This field must be unique."]})
        group = self.add("groups", name=name) if document.get("create_group") else None
        user = self.add(
            "users",
            username=name,
            name=name,
            type="service_account",
            path="goauthentik.io/service-accounts",
            groups=[group["pk"]] if group else [],
        )
        expiring = document.get("expiring", True)
        token = self.add(
            "tokens",
            identifier=f"service-account-{name}-password",
            intent="app_password",
            user=user["pk"],
            expiring=expiring,
        )
        reply = {"username": name, "user_uid": user["uid"], "user_pk": user["pk"], "token": token["key"]}
        return Reply(200, {**reply, "group_pk": group["pk"]} if group else reply)

    def _member(self, key: str, document: Json, *, member: bool) -> Reply:
        group = self._lookup(_kind("groups"), key)
        user = self.store.get("users", str(document.get("pk")))
        if user is None:
            raise Refused(404, {"detail": "Not found."})
        groups = [pk for pk in user["groups"] if pk != group["pk"]]
        user["groups"] = [*groups, group["pk"]] if member else groups
        self.store.put("users", str(user["pk"]), user)
        return Reply(204)

    def _add_user(self, *, key: str, document: Json, **_kwargs: Any) -> Reply:
        return self._member(key, document, member=True)

    def _remove_user(self, *, key: str, document: Json, **_kwargs: Any) -> Reply:
        return self._member(key, document, member=False)

    def _view_key(self, *, key: str, **_kwargs: Any) -> Reply:
        return Reply(200, {"key": self._lookup(_kind("tokens"), key)["key"]})

    def _set_key(self, *, key: str, document: Json, **_kwargs: Any) -> Reply:
        row = self._lookup(_kind("tokens"), key)
        if not document.get("key"):
            raise Refused(400, {"key": ["This field is required."]})
        self.store.put("tokens", row["pk"], {**row, "key": document["key"]})
        return Reply(204)

    def _apply_blueprint(self, *, key: str, **_kwargs: Any) -> Reply:
        row = self._lookup(_kind("blueprints"), key)
        self._enqueue(row)
        return Reply(200, self._render_blueprint(row, {}))

    def _get_available_blueprints(self, **_kwargs: Any) -> Reply:
        rows = [row for row in self.store.rows("blueprints") if row["path"]]
        meta = [{"name": row["name"], "labels": {}} for row in rows]
        shown = [
            {"path": row["path"], "version": 1, "hash": "00", "last_m": 0, "meta": entry}
            for row, entry in zip(rows, meta)
        ]
        return Reply(200, shown)

    def _get_permissions(self, *, query: Json, **_kwargs: Any) -> Reply:
        permission = {
            "id": 67,
            "name": "Search full LDAP directory",
            "codename": "search_full_directory",
            "model": "ldapprovider",
            "app_label": "authentik_providers_ldap",
            "app_label_verbose": "authentik Providers.LDAP",
            "model_verbose": "LDAP Provider",
        }
        wanted = query.get("codename", permission["codename"])
        return self.page([permission] if wanted == permission["codename"] else [], query)

    def _permission_request(self, document: Json) -> tuple[list[str], str, str]:
        permissions, model, pk = (
            document.get("permissions"),
            document.get("model", ""),
            str(document.get("object_pk", "")),
        )
        if not isinstance(permissions, list) or not permissions:
            raise Refused(400, {"permissions": ["This field is required."]})
        kind = MODEL_KINDS.get(model)
        if kind is None:
            raise Refused(400, {"model": [f'"{model}" is not a valid choice.']})
        if self.store.get(kind, pk) is None:
            raise Refused(400, {"object_pk": [f'Invalid pk "{pk}" - object does not exist.']})
        return permissions, model, pk

    def _assign(self, *, key: str, document: Json, **_kwargs: Any) -> Reply:
        role = self._lookup(_kind("roles"), key)
        permissions, model, object_pk = self._permission_request(document)
        assigned = []
        for permission in permissions:
            pk = f"{role['pk']}/{permission}/{model}/{object_pk}"
            existing = self.store.get("permissions", pk)
            number = existing["id"] if existing else self.store.next_id("permissions")
            row: Json = {"pk": pk, "id": number, "role": role["pk"], "permission": permission, "model": model}
            self.store.put("permissions", pk, {**row, "object_pk": object_pk})
            assigned.append({"id": str(number)})
        return Reply(200, assigned)

    def _unassign(self, *, key: str, document: Json, **_kwargs: Any) -> Reply:
        role = self._lookup(_kind("roles"), key)
        permissions, model, object_pk = self._permission_request(document)
        for permission in permissions:
            pk = f"{role['pk']}/{permission}/{model}/{object_pk}"
            if self.store.get("permissions", pk):
                self.store.delete("permissions", pk)
        return Reply(204)

    def _get_assigned(self, *, query: Json, **_kwargs: Any) -> Reply:
        shown = []
        for role in self.store.rows("roles"):
            rows = [
                row
                for row in self.store.rows("permissions")
                if row["role"] == role["pk"]
                and row["model"] == query.get("model")
                and row["object_pk"] == query.get("object_pk", row["object_pk"])
            ]
            if rows:
                entries = [
                    {
                        "id": row["id"],
                        "codename": row["permission"].partition(".")[2],
                        "model": row["model"].partition(".")[2],
                        "app_label": row["model"].partition(".")[0],
                        "object_pk": row["object_pk"],
                        "name": "Search full LDAP directory",
                    }
                    for row in rows
                ]
                entry = {"role_pk": role["pk"], "name": role["name"], "object_permissions": entries}
                shown.append({**entry, "model_permissions": []})
        return self.page(shown, query)


def _kind(name: str) -> Kind:
    return next(kind for kind in KINDS if kind.name == name)


class Special(NamedTuple):
    """An address that is no collection and no row of one."""

    method: str
    pattern: str
    handler: Callable[..., Reply]


SPECIAL = (
    Special("GET", r"admin/version/", AuthentikApi._get_version),
    Special("GET", r"admin/settings/", AuthentikApi._get_settings),
    Special("GET", r"core/users/me/", AuthentikApi._get_me),
    Special("POST", r"core/users/service_account/", AuthentikApi._service_account),
    Special("POST", r"core/users/(?P<key>\d+)/set_password/", AuthentikApi._set_password),
    Special("POST", r"core/groups/(?P<key>[^/]+)/add_user/", AuthentikApi._add_user),
    Special("POST", r"core/groups/(?P<key>[^/]+)/remove_user/", AuthentikApi._remove_user),
    Special("GET", r"core/tokens/(?P<key>[^/]+)/view_key/", AuthentikApi._view_key),
    Special("POST", r"core/tokens/(?P<key>[^/]+)/set_key/", AuthentikApi._set_key),
    Special("GET", r"outposts/instances/default_settings/", AuthentikApi._get_default_settings),
    Special("GET", r"outposts/instances/(?P<key>[^/]+)/health/", AuthentikApi._get_health),
    Special("GET", r"outposts/ldap/", AuthentikApi._get_ldap_outposts),
    Special("GET", r"providers/all/", AuthentikApi._get_providers),
    Special("GET", r"providers/oauth2/(?P<key>[^/]+)/setup_urls/", AuthentikApi._get_setup_urls),
    Special("GET", r"managed/blueprints/available/", AuthentikApi._get_available_blueprints),
    Special("POST", r"managed/blueprints/(?P<key>[^/]+)/apply/", AuthentikApi._apply_blueprint),
    Special("GET", r"rbac/permissions/", AuthentikApi._get_permissions),
    Special("GET", r"rbac/permissions/assigned_by_roles/", AuthentikApi._get_assigned),
    Special("POST", r"rbac/permissions/assigned_by_roles/(?P<key>[^/]+)/assign/", AuthentikApi._assign),
    Special("PATCH", r"rbac/permissions/assigned_by_roles/(?P<key>[^/]+)/unassign/", AuthentikApi._unassign),
)

RENDERERS: dict[str, Callable[[AuthentikApi, Json, Json], Json]] = {
    "applications": AuthentikApi._render_application,
    "groups": AuthentikApi._render_group,
    "users": AuthentikApi._render_user,
    "tokens": AuthentikApi._render_token,
    "bindings": AuthentikApi._render_binding,
    "policies": AuthentikApi._render_policy,
    "scope_mappings": AuthentikApi._render_scope,
    "outposts": AuthentikApi._render_outpost,
    "blueprints": AuthentikApi._render_blueprint,
}


def _completion(model: str, texts: Iterable[str], flags: Iterable[str], choices: Mapping[str, list[str]]) -> Json:
    fields: Json = {name: {"type": "str", "nullable": False, "options": None} for name in texts}
    fields.update({name: {"type": "bool", "nullable": True, "options": None} for name in flags})
    fields.update({name: {"type": "str", "nullable": False, "options": options} for name, options in choices.items()})
    relation = f"authentik_core.{model}_attributes"
    fields["attributes"] = {"type": "relation", "nullable": False, "options": None, "relation": relation}
    return {"current_model": f"authentik_core.{model}", "models": {f"authentik_core.{model}": fields}}


AUTOCOMPLETE = {
    "groups": _completion("group", ["name"], ["is_superuser"], {}),
    "users": _completion(
        "user",
        ["username", "name", "email", "path"],
        ["is_active"],
        {"type": ["internal", "external", "service_account", "internal_service_account"]},
    ),
}


class PartialContract(Contract):
    """The cut document: it leaves out some addresses that are served here, and 404 nearly everywhere."""

    def _left_out(self, path: str) -> bool:
        return bool(re.match(r"/(rbac|managed/blueprints|policies/all|admin/settings|outposts/ldap)/", path)) or bool(
            re.search(r"/(default_settings|health|setup_urls)/$", path)
        )

    def check_request(self, method: str, path: str, query: Mapping[str, str], body: Any) -> list[str]:
        return [] if self._left_out(path) else super().check_request(method, path, query, body)

    def check_response(self, method: str, path: str, status: int, body: Any) -> list[str]:
        # The document has one "400" for two shapes; error bodies are compared with the recorded ones instead.
        return [] if self._left_out(path) or status >= 400 else super().check_response(method, path, status, body)


@cache
def contract() -> PartialContract | None:
    """Return the contract, or None (said on standard error) where the vendor's document is not at hand."""
    found = Contract.load("authentik-subset.json")
    return None if found is None else PartialContract(_mended(found.document))


def _mended(node: Any) -> Any:
    """Return the document with what the recorded server contradicts put right: "" is no e-mail address, null no object.

    An object that may be null is written there as `allOf` of one reference and `nullable`; by the rules of OpenAPI 3.0
    the reference alone decides, and refuses null.
    """
    if isinstance(node, list):
        return [_mended(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    mended = {name: _mended(value) for name, value in node.items()}
    if mended.get("nullable") and len(mended.get("allOf", [])) == 1:
        null = {"type": "object", "nullable": True, "maxProperties": 0}
        mended["anyOf"] = [*mended.pop("allOf"), null]
    if mended.get("type") == "string" and mended.get("format") in ("email", "uri"):
        mended["anyOf"] = [{"format": mended.pop("format")}, {"maxLength": 0}]
    return mended


def walk(api: AuthentikApi) -> Iterator[tuple[str, Json]]:
    """Yield kind and row of everything that is stored: what a test compares."""
    for kind in (*FIELDS, "permissions"):
        for row in api.store.rows(kind):
            yield kind, row
