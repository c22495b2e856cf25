#!/usr/bin/python
# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cloudflare_access
short_description: Manage Cloudflare Access applications, policies, groups and identity providers in one pass
version_added: 1.0.0
description:
  - Brings the Access objects of an account to what is declared, in the order in which they depend on each other. Groups
    and identity providers are referred to by name.
  - Applications are told apart by O(applications[].domain), all other objects by name. Policies are the reusable ones
    of the account.
  - Only what is declared is compared. Lists of rules are compared as sets.
extends_documentation_fragment:
  - kitestacks.homelab.attributes
  - kitestacks.homelab.cloudflare
  - kitestacks.homelab.cloudflare.account
  - kitestacks.homelab.cloudflare.purge
  - kitestacks.homelab.connection
attributes:
  idempotent:
    support: partial
    description: An identity provider with O(identity_providers[].rotate_secret=true) is changed by every run.
options:
  groups:
    description: The groups. Without this option no group is read or purged.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the group.
        type: str
        required: true
      include:
        description:
          - Rules of which one has to match. A rule is a dictionary with one key. C(email), C(email_domain), C(ip),
            C(geo), C(group), C(login_method), C(service_token) and others have one value. C(everyone) and
            C(any_valid_service_token) need none, write V(true).
          - Groups and login methods are given by name or id. Any other rule of the API may be given as the API has it.
        type: list
        elements: dict
      exclude:
        description: Rules of which none may match.
        type: list
        elements: dict
      require:
        description: Rules of which all have to match.
        type: list
        elements: dict
      state:
        description: Whether the group shall exist.
        type: str
        choices: [present, absent]
        default: present
  identity_providers:
    description: The identity providers. Without this option none is purged.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the identity provider.
        type: str
        required: true
      type:
        description: Its type, which is fixed when it is created. Required unless O(identity_providers[].state=absent).
        type: str
        choices:
          - azureAD
          - centrify
          - cloudflare
          - facebook
          - github
          - google
          - google-apps
          - linkedin
          - oidc
          - okta
          - onelogin
          - onetimepin
          - pingone
          - saml
          - yandex
      config:
        description:
          - Settings of this type under the API's own names, for example C(client_id), C(auth_url), C(token_url),
            C(certs_url), C(scopes), C(claims) and C(pkce_enabled) for V(oidc). Secrets do not belong here.
        type: dict
      client_secret:
        description:
          - Secret of the OAuth client. The API does not give it back, so it is not compared.
          - It has to be given whenever something of a provider that has one changes, as the API replaces the whole.
        type: str
      rotate_secret:
        description: Whether to send O(identity_providers[].client_secret) although nothing else differs.
        type: bool
        default: false
      state:
        description: Whether the identity provider shall exist.
        type: str
        choices: [present, absent]
        default: present
  policies:
    description: The reusable policies. Without this option none is purged.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the policy.
        type: str
        required: true
      decision:
        description: What happens to who matches. Required unless O(policies[].state=absent).
        type: str
        choices: [allow, deny, non_identity, bypass]
      include:
        description: Rules of which one has to match, see O(groups[].include).
        type: list
        elements: dict
      exclude:
        description: Rules of which none may match.
        type: list
        elements: dict
      require:
        description: Rules of which all have to match.
        type: list
        elements: dict
      session_duration:
        description: How long a session lasts, for example V(24h) or V(1h30m).
        type: str
      approval_required:
        description: Whether an administrator has to approve.
        type: bool
      isolation_required:
        description: Whether the application is only shown in an isolated browser.
        type: bool
      purpose_justification_prompt:
        description: Question to who signs in.
        type: str
      purpose_justification_required:
        description: Whether the question has to be answered.
        type: bool
      state:
        description: Whether the policy shall exist.
        type: str
        choices: [present, absent]
        default: present
  applications:
    description: The applications. Without this option none is purged.
    type: list
    elements: dict
    suboptions:
      domain:
        description: Public name, with a path if only a part of it is meant, for example V(www.example.com/admin).
        type: str
        required: true
      name:
        description: Name to show. Required unless O(applications[].state=absent).
        type: str
      type:
        description: Its type, which is fixed when it is created.
        type: str
        choices: [self_hosted, ssh, vnc, bookmark]
        default: self_hosted
      policies:
        description: Names of the policies that decide, first match wins.
        type: list
        elements: str
      allowed_identity_providers:
        description: Names of the identity providers to offer. All of the account when empty.
        type: list
        elements: str
      session_duration:
        description: How long a session lasts, for example V(24h).
        type: str
      auto_redirect_to_identity:
        description: Whether the choice is skipped when there is one identity provider.
        type: bool
      app_launcher_visible:
        description: Whether the App Launcher shows it.
        type: bool
      logo_url:
        description: URL of its logo.
        type: str
      custom_deny_message:
        description: What is said to who is refused.
        type: str
      custom_deny_url:
        description: Where who is refused is sent.
        type: str
      enable_binding_cookie:
        description: Whether the session is bound to the browser.
        type: bool
      http_only_cookie_attribute:
        description: Whether scripts cannot read the cookie.
        type: bool
      same_site_cookie_attribute:
        description: SameSite attribute of the cookie.
        type: str
        choices: [none, lax, strict]
      options_preflight_bypass:
        description: Whether preflight requests are passed on.
        type: bool
      service_auth_401_redirect:
        description: Whether a service without a token gets 401 instead of the sign-in page.
        type: bool
      skip_interstitial:
        description: Whether the page after a sign-in by the browser is skipped.
        type: bool
      state:
        description: Whether the application shall exist.
        type: str
        choices: [present, absent]
        default: present
author:
  - KiteStacks maintainers (@kitestacks)
"""

EXAMPLES = r"""
- name: Only the family reaches the wiki, and it signs in with Authentik
  kitestacks.homelab.cloudflare_access:
    groups:
      - name: KiteStacks family
        include:
          - email_domain: example.com
          - email: guest@example.org
    identity_providers:
      - name: KiteStacks Authentik
        type: oidc
        client_secret: "{{ lookup('ansible.builtin.env', 'AUTHENTIK_CLIENT_SECRET') }}"
        config:
          client_id: cloudflare-access
          auth_url: https://auth.example.com/application/o/authorize/
          token_url: https://auth.example.com/application/o/token/
          certs_url: https://auth.example.com/application/o/cloudflare/jwks/
    policies:
      - name: KiteStacks family may
        decision: allow
        include:
          - group: KiteStacks family
        require:
          - login_method: KiteStacks Authentik
    applications:
      - name: KiteStacks wiki
        domain: wiki.example.com
        policies:
          - KiteStacks family may
        allowed_identity_providers:
          - KiteStacks Authentik
        auto_redirect_to_identity: true
        session_duration: 24h
    purge: true
    purge_name_prefix: "KiteStacks "
"""

RETURN = r"""
results:
  description: What was done to each declared object and each that was deleted, in check mode what would be done.
  returned: success
  type: list
  elements: dict
  sample:
    - kind: Access application
      key: wiki.example.com
      action: created
      id: 00000000-0000-4000-8000-000000000003
      changes: []
stats:
  description: What it took.
  returned: success
  type: dict
  sample: {requests: 8, retries: 0, created: 4, updated: 0, deleted: 0, unchanged: 0}
applied:
  description: On failure, what was done before it, as in RV(results).
  returned: failure while writing
  type: list
  elements: dict
failed_items:
  description: On failure, the change that failed, with C(error).
  returned: failure while writing
  type: list
  elements: dict
pending:
  description: On failure, what was not tried.
  returned: failure while writing
  type: list
  elements: dict
"""

import re
import typing as t
import uuid

from ansible_collections.kitestacks.homelab.plugins.module_utils import _cloudflare
from ansible_collections.kitestacks.homelab.plugins.module_utils._apply import Ids, run, steps
from ansible_collections.kitestacks.homelab.plugins.module_utils._reconcile import (
    Action,
    Document,
    Documents,
    Kind,
    PlanError,
    Ref,
    fixed_changes,
    ids_of,
    plan,
    resolve,
    sequence,
)

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

STATE: dict[str, t.Any] = {"type": "str", "choices": ["present", "absent"], "default": "present"}
RULES_OPTION: dict[str, t.Any] = {"type": "list", "elements": "dict"}
IDP_TYPES = [
    "azureAD", "centrify", "cloudflare", "facebook", "github", "google", "google-apps", "linkedin", "oidc", "okta",
    "onelogin", "onetimepin", "pingone", "saml", "yandex",
]  # fmt: skip
SPEC: dict[str, dict[str, t.Any]] = {
    **_cloudflare.ACCOUNT_SPEC,
    **_cloudflare.PURGE_SPEC,
    "groups": {
        "type": "list",
        "elements": "dict",
        "options": {
            "name": {"type": "str", "required": True},
            "include": RULES_OPTION,
            "exclude": RULES_OPTION,
            "require": RULES_OPTION,
            "state": STATE,
        },
    },
    "identity_providers": {
        "type": "list",
        "elements": "dict",
        "options": {
            "name": {"type": "str", "required": True},
            "type": {"type": "str", "choices": IDP_TYPES},
            "config": {"type": "dict"},
            "client_secret": {"type": "str", "no_log": True},
            "rotate_secret": {"type": "bool", "default": False, "no_log": False},
            "state": STATE,
        },
    },
    "policies": {
        "type": "list",
        "elements": "dict",
        "options": {
            "name": {"type": "str", "required": True},
            "decision": {"type": "str", "choices": ["allow", "deny", "non_identity", "bypass"]},
            "include": RULES_OPTION,
            "exclude": RULES_OPTION,
            "require": RULES_OPTION,
            "session_duration": {"type": "str"},
            "approval_required": {"type": "bool"},
            "isolation_required": {"type": "bool"},
            "purpose_justification_prompt": {"type": "str"},
            "purpose_justification_required": {"type": "bool"},
            "state": STATE,
        },
    },
    "applications": {
        "type": "list",
        "elements": "dict",
        "options": {
            "domain": {"type": "str", "required": True},
            "name": {"type": "str"},
            "type": {"type": "str", "choices": ["self_hosted", "ssh", "vnc", "bookmark"], "default": "self_hosted"},
            "policies": {"type": "list", "elements": "str"},
            "allowed_identity_providers": {"type": "list", "elements": "str"},
            "session_duration": {"type": "str"},
            "auto_redirect_to_identity": {"type": "bool"},
            "app_launcher_visible": {"type": "bool"},
            "logo_url": {"type": "str"},
            "custom_deny_message": {"type": "str"},
            "custom_deny_url": {"type": "str"},
            "enable_binding_cookie": {"type": "bool"},
            "http_only_cookie_attribute": {"type": "bool"},
            "same_site_cookie_attribute": {"type": "str", "choices": ["none", "lax", "strict"]},
            "options_preflight_bypass": {"type": "bool"},
            "service_auth_401_redirect": {"type": "bool"},
            "skip_interstitial": {"type": "bool"},
            "state": STATE,
        },
    },
}

# Rules that are given by one value: the key of that value in the API.
RULE_VALUES = {
    "auth_context": "id",
    "auth_method": "auth_method",
    "common_name": "common_name",
    "device_posture": "integration_uid",
    "email": "email",
    "email_domain": "domain",
    "email_list": "id",
    "geo": "country_code",
    "group": "id",
    "ip": "ip",
    "ip_list": "id",
    "linked_app_token": "app_uid",
    "login_method": "id",
    "service_token": "token_id",
}
# Rules that need no value, and those that the API describes by several.
RULE_WORDS = ("any_valid_service_token", "certificate", "everyone")
RULE_DICTS = (
    "azureAD", "cloudflare_account_member", "external_evaluation", "github-organization", "gsuite", "oidc", "okta",
    "saml", "user_risk_score",
)  # fmt: skip
RULE_LISTS = ("include", "exclude", "require")
# What a provider of this type cannot do without in its config.
NEEDED = {
    "github": ("client_id",),
    "google": ("client_id",),
    "oidc": ("client_id", "auth_url", "token_url", "certs_url"),
    "saml": ("sso_target_url", "issuer_url"),
}
DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+")
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}


def duration(value: str) -> str:
    """Return a duration in one form: `1h30m` for `90m`."""
    if not DURATION.fullmatch(value):
        return value
    seconds = sum(float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+)(ns|us|µs|ms|s|m|h)", value))
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    parts = [f"{int(hours)}h" if hours else "", f"{int(minutes)}m" if minutes else "", f"{rest:g}s" if rest else ""]
    return "".join(parts) or "0s"


def domain(value: str) -> str:
    """Return the domain of an application in one form: host in lower case and punycode, no final slash."""
    host, slash, path = value.strip().partition("/")
    return _cloudflare.ascii_name(host) + (f"{slash}{path}".rstrip("/"))


def links(policies: t.Sequence[t.Any]) -> list[Document]:
    """Return the policies of an application in order, each as id and precedence, however the API gives them."""
    given: Documents = [{"id": link} if isinstance(link, (str, Ref)) else link for link in policies]
    given.sort(key=lambda link: link.get("precedence") or 0)
    return [{"id": link["id"], "precedence": number} for number, link in enumerate(given, 1)]


_DATES = frozenset({"created_at", "updated_at"})
GROUP = Kind(
    "Access group",
    "/accounts/{account_id}/access/groups",
    query={"per_page": 1000},
    update="PUT",
    read_only=_DATES,
    exact=frozenset(RULE_LISTS),
    unordered=frozenset(RULE_LISTS),
)
PROVIDER = Kind(
    "Access identity provider",
    "/accounts/{account_id}/access/identity_providers",
    query={"per_page": 200},
    update="PUT",
    read_only=_DATES | {"read_only", "saml_certificate_set", "config.redirect_url"},
    create_only=frozenset({"type"}),
    write_only=frozenset({"config.client_secret"}),
    secret=frozenset({"config.client_secret"}),
    unordered=frozenset({"config.scopes", "config.claims"}),
)
POLICY = Kind(
    "Access policy",
    "/accounts/{account_id}/access/policies",
    query={"per_page": 1000},
    update="PUT",
    read_only=_DATES | {"app_count", "reusable"},
    exact=frozenset(RULE_LISTS),
    unordered=frozenset(RULE_LISTS),
    normalise={"session_duration": duration},
)
APPLICATION = Kind(
    "Access application",
    "/accounts/{account_id}/access/apps",
    key=("domain",),
    query={"per_page": 1000},
    update="PUT",
    read_only=_DATES | {"aud", "uid"},
    create_only=frozenset({"type"}),
    exact=frozenset({"policies"}),
    unordered=frozenset({"allowed_idps"}),
    normalise={"domain": domain, "policies": links, "session_duration": duration},
)
KINDS = {"groups": GROUP, "identity_providers": PROVIDER, "policies": POLICY, "applications": APPLICATION}


def reconcile(module: AnsibleModule, api: _cloudflare.Cloudflare) -> dict[str, t.Any]:
    """Bring the Access objects to what is declared."""
    params = module.params
    declared: dict[str, Documents] = {option: [] for option in KINDS}
    absent: dict[str, Documents] = {option: [] for option in KINDS}
    for option, make in (
        ("groups", group),
        ("identity_providers", provider),
        ("policies", policy),
        ("applications", application),
    ):
        for number, item in enumerate(params[option] or []):
            made = make(item, f"{option}[{number}]")
            (declared if item["state"] == "present" else absent)[option].append(made)
    purge = _cloudflare.owned_by_prefix(module, [item for items in declared.values() for item in items])
    account = api.account_id(params["account_id"])
    kinds = {option: kind.at(account_id=account) for option, kind in KINDS.items()}
    used = referred(declared)
    live: dict[str, Documents] = {
        option: api.list(kind.path, kind.query) if params[option] is not None or kind.name in used else []
        for option, kind in kinds.items()
    }
    ids: Ids = {}
    for option, kind in kinds.items():
        ids.update(ids_of(kind, live[option]))
    check_references(declared, absent, kinds, ids)
    plans = []
    for option, kind in kinds.items():
        desired = [resolve(item, ids) for item in declared[option]]
        if option == "identity_providers":
            desired = [with_config(item, live[option]) for item in desired]
        may_go = purge if params[option] is not None else None
        actions = plan(kind, desired, live[option], absent=absent[option], purge=may_go, option=option)
        for action in actions:
            check_fixed(action, option)
        plans.append(by_reference(actions) if option == "groups" else actions)
    check_secrets(plans[list(kinds).index("identity_providers")], params["identity_providers"] or [])
    actions = sequence(*plans)
    return run(module, api, actions, lambda: steps(api, actions, ids), ids=ids)


def group(item: t.Mapping[str, t.Any], where: str) -> Document:
    """Return a declared group as the API has it."""
    label = f"{where} ({item['name']})"
    if item["state"] == "present" and not item["include"]:
        raise PlanError(f"{label}.include: at least one rule is needed")
    return {"name": item["name"], **rule_lists(item, label)}


def policy(item: t.Mapping[str, t.Any], where: str) -> Document:
    """Return a declared policy as the API has it."""
    label = f"{where} ({item['name']})"
    if item["state"] == "present":
        if item["decision"] is None:
            raise PlanError(f"{label}.decision: is required")
        if not item["include"]:
            raise PlanError(f"{label}.include: at least one rule is needed")
    check_duration(item["session_duration"], f"{label}.session_duration")
    plain = {name: value for name, value in item.items() if value is not None and name not in (*RULE_LISTS, "state")}
    return {**plain, **rule_lists(item, label)}


def provider(item: t.Mapping[str, t.Any], where: str) -> Document:
    """Return a declared identity provider as the API has it."""
    label = f"{where} ({item['name']})"
    config = dict(item["config"] or {})
    if "client_secret" in config:
        raise PlanError(f"{label}.config: client_secret is an option of its own, so that it is not logged")
    if item["state"] == "absent":
        return {"name": item["name"]}
    if item["type"] is None:
        raise PlanError(f"{label}.type: is required")
    for name in NEEDED.get(item["type"], ()):
        if not config.get(name):
            raise PlanError(f"{label}.config: {name} is missing, a provider of type {item['type']} needs it")
    for name, value in config.items():
        if name.endswith("_url") and not re.match(r"https?://[^/]+", str(value)):
            raise PlanError(f"{label}.config: {name} is no URL: {value!r}")
    if item["rotate_secret"] and item["client_secret"] is None:
        raise PlanError(f"{label}.rotate_secret: needs the new client_secret")
    if item["client_secret"] == "":
        raise PlanError(f"{label}.client_secret: is empty")
    if item["client_secret"] is not None:
        config["client_secret"] = item["client_secret"]
    return {"name": item["name"], "type": item["type"], "config": config}


def application(item: t.Mapping[str, t.Any], where: str) -> Document:
    """Return a declared application as the API has it."""
    label = f"{where} ({item['domain']})"
    host = item["domain"].partition("/")[0]
    try:
        labels = _cloudflare.ascii_name(host).split(".")
    except UnicodeError:
        labels = []
    names = labels[1:] if labels[:1] == ["*"] else labels
    if len(labels) < 2 or not all(_cloudflare.LABEL.fullmatch(name) for name in names):
        raise PlanError(f"{label}.domain: is no public name (without https://, a path may follow)")
    if item["state"] == "absent":
        return {"domain": domain(item["domain"])}
    if not item["name"]:
        raise PlanError(f"{label}.name: is required")
    check_duration(item["session_duration"], f"{label}.session_duration")
    own = ("state", "policies", "allowed_identity_providers", "domain")
    made = {name: value for name, value in item.items() if value is not None and name not in own}
    made["domain"] = domain(item["domain"])
    if item["policies"] is not None:
        if len(set(item["policies"])) < len(item["policies"]):
            raise PlanError(f"{label}.policies: a policy is named twice")
        made["policies"] = links([reference(POLICY, name) for name in item["policies"]])
    if item["allowed_identity_providers"] is not None:
        made["allowed_idps"] = [reference(PROVIDER, name) for name in item["allowed_identity_providers"]]
    return made


def rule_lists(item: t.Mapping[str, t.Any], label: str) -> Document:
    """Return the stated lists of rules as the API has them."""
    return {
        part: [rule(given, f"{label}.{part}[{number}]") for number, given in enumerate(item[part])]
        for part in RULE_LISTS
        if item[part] is not None
    }


def rule(given: t.Mapping[str, t.Any], where: str) -> Document:
    """Return one rule as the API has it.

    Raises:
        PlanError: it is none.
    """
    known = sorted((*RULE_VALUES, *RULE_WORDS, *RULE_DICTS))
    if len(given) != 1:
        raise PlanError(f"{where}: a rule has exactly one key, not {', '.join(given) or 'none'}")
    name, value = next(iter(given.items()))
    if name not in known:
        raise PlanError(f"{where}: {name} is no rule; there are {', '.join(known)}")
    if name in RULE_WORDS:
        return {name: {}}
    if isinstance(value, t.Mapping) and value:
        return {name: dict(value)}
    if name in RULE_DICTS:
        raise PlanError(f"{where}.{name}: needs a dictionary as the API has it")
    if not isinstance(value, str) or not value.strip():
        raise PlanError(f"{where}.{name}: needs a value")
    if name == "email" and not re.fullmatch(r"[^@\s]+@[^@\s]+", value):
        raise PlanError(f"{where}.email: {value!r} is no e-mail address")
    if name in ("group", "login_method"):
        return {name: {"id": reference(GROUP if name == "group" else PROVIDER, value)}}
    return {name: {RULE_VALUES[name]: value}}


def reference(kind: Kind, value: str) -> Ref | str:
    """Return an id as it is, and a name as a reference."""
    try:
        return str(uuid.UUID(value))
    except ValueError:
        return Ref(kind.name, value)


def references(value: t.Any) -> t.Iterator[Ref]:
    """Return all references in a document."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def referred(declared: t.Mapping[str, Documents]) -> set[str]:
    """Return the names of the kinds that declared objects refer to."""
    return {ref.kind for items in declared.values() for ref in references(items)}


def check_references(
    declared: t.Mapping[str, Documents], absent: t.Mapping[str, Documents], kinds: t.Mapping[str, Kind], ids: Ids
) -> None:
    """Refuse a reference to what is neither there nor declared, or is to be deleted.

    Raises:
        PlanError: naming the object and what it refers to.
    """
    made = {(kind.name, kind.label(item)) for option, kind in kinds.items() for item in declared[option]}
    gone = {(kind.name, kind.label(item)) for option, kind in kinds.items() for item in absent[option]}
    for option, kind in kinds.items():
        for number, item in enumerate(declared[option]):
            for ref in references(item):
                key = (ref.kind, ref.key)
                if key in gone or (key not in made and key not in ids):
                    what = "is declared absent" if key in gone else "neither exists nor is declared"
                    raise PlanError(f"{option} ({kind.label(item)}), item {number + 1}: {ref.kind} {ref.key} {what}")


def with_config(item: Document, live: Documents) -> Document:
    """Return a declared provider with the settings that only the live one has: PUT replaces the whole config."""
    current = next((other for other in live if other.get("name") == item["name"]), None)
    if current is None:
        return item
    kept = {
        name: value
        for name, value in (current.get("config") or {}).items()
        if name not in ("client_secret", "redirect_url") and value is not None
    }
    return {**item, "config": {**kept, **item["config"]}}


def check_secrets(actions: t.Iterable[Action], items: t.Sequence[t.Mapping[str, t.Any]]) -> None:
    """Send the secret where that is asked for, and refuse to write a provider without the secret that it has.

    Raises:
        PlanError: naming the provider.
    """
    rotate = {item["name"] for item in items if item["rotate_secret"]}
    for action in actions:
        if action.desired is None:
            continue
        if action.action == "unchanged" and action.key in rotate:
            action.action, action.changes = "update", ("config.client_secret",)
        if action.action == "unchanged" or "client_secret" in action.desired["config"]:
            continue
        live = action.current or {"config": {"client_secret": "client_id" in NEEDED.get(action.desired["type"], ())}}
        if (live.get("config") or {}).get("client_secret"):
            raise PlanError(
                f"identity_providers ({action.key}).client_secret: is required to {action.action} it, as the API takes "
                "the whole object and does not give the secret back"
            )


def check_fixed(action: Action, option: str) -> None:
    """Refuse what cannot be changed.

    Raises:
        PlanError: naming the object and the option.
    """
    if action.desired is not None and action.current is not None:
        for name in fixed_changes(action.kind, action.desired, action.current):
            raise PlanError(
                f"{option} ({action.key}).{name}: is {action.current.get(name)} and cannot become "
                f"{action.desired[name]}; delete the object first"
            )


def check_duration(value: str | None, where: str) -> None:
    """Refuse a duration that is none.

    Raises:
        PlanError: saying how one looks.
    """
    if value is not None and not DURATION.fullmatch(value):
        raise PlanError(f"{where}: {value!r} is no duration such as 24h or 1h30m")


def by_reference(actions: list[Action]) -> list[Action]:
    """Order groups so that those that others include are made first and deleted last.

    Raises:
        PlanError: they include each other in a circle.
    """
    made: list[Action] = []
    rest = [action for action in actions if action.action != "delete"]
    while rest:
        waiting = {action.key for action in rest if action.action == "create"}
        ready = [action for action in rest if not {ref.key for ref in references(action.desired)} & waiting]
        if not ready:
            raise PlanError(f"groups: {', '.join(sorted(waiting))} include each other")
        made += ready
        rest = [action for action in rest if action not in ready]
    rest = [action for action in actions if action.action == "delete"]
    while rest:
        used = [action for action in rest if any(str(action.id) in _text(other.current) for other in rest)]
        free = [action for action in rest if action not in used] or rest
        made += free
        rest = [action for action in rest if action not in free]
    return made


def _text(document: Document | None) -> str:
    """Return the rules of a live group as text in which ids can be looked for."""
    return str([(document or {}).get(part) for part in RULE_LISTS])


def main() -> None:
    """Run the module."""
    _cloudflare.main(SPEC, reconcile)


if __name__ == "__main__":
    main()
