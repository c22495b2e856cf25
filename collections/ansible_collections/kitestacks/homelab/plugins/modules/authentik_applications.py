#!/usr/bin/python
# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: authentik_applications
short_description: Applications of Authentik, each with its provider and who may use it
version_added: 1.0.0
description:
  - Creates, updates and deletes applications, their providers and the bindings that say who may use them.
  - A set module. One task declares many objects; what is not declared is left alone unless O(purge=true).
  - Only the options that are given are compared and sent.
  - A run without changes lists each type of object once, however many applications there are.
  - With O(purge_name_prefix) a provider whose name begins like that, and that no application uses, is ours too.
author:
  - KiteStacks maintainers (@kitestacks)
extends_documentation_fragment:
  - kitestacks.homelab.attributes
  - kitestacks.homelab.connection
  - kitestacks.homelab.authentik
  - kitestacks.homelab.authentik.purge
  - kitestacks.homelab.authentik.owner
options:
  applications:
    description:
      - The applications.
    type: list
    elements: dict
    required: true
    suboptions:
      slug:
        description:
          - Short name, unique; part of the issuer's URL.
        type: str
        required: true
      state:
        description:
          - Whether it shall exist. An application that goes takes its provider with it.
        type: str
        choices: [absent, present]
        default: present
      name:
        description:
          - Name that users see. Needed for a new application.
        type: str
      provider:
        description:
          - The application's provider, as in M(kitestacks.homelab.authentik_providers).
        type: dict
        suboptions:
          name:
            description:
              - Name of the provider. Defaults to the application's slug.
            type: str
          type:
            description:
              - Type of the provider. A provider that exists with another type is deleted and made anew.
            type: str
            choices: [ldap, oauth2, proxy]
            default: oauth2
          authorization_flow:
            description:
              - Slug of the flow that asks for consent; for type V(ldap), of the flow that a bind runs through.
              - Defaults to V(default-provider-authorization-implicit-consent), for type V(ldap) to
                V(default-authentication-flow).
            type: str
          invalidation_flow:
            description:
              - Slug of the flow that ends a session.
              - Defaults to V(default-provider-invalidation-flow).
            type: str
          authentication_flow:
            description:
              - Slug of the flow that signs in a user who is not signed in; empty for the brand's.
            type: str
          property_mappings:
            description:
              - Scope mappings, by name, managed id, or scope for the default ones (V(openid)). Not for type V(ldap).
              - For type V(oauth2) defaults to V([openid, email, profile]); Authentik's own default is none.
            type: list
            elements: str
          client_type:
            description:
              - Whether the application can keep a secret. Type V(oauth2).
            type: str
            choices: [confidential, public]
          client_id:
            description:
              - Client id; Authentik makes one up if it is not given. Type V(oauth2).
            type: str
          client_secret:
            description:
              - Client secret; Authentik makes one up if it is not given. Type V(oauth2).
            type: str
          grant_types:
            description:
              - Grants that are served; sent to Authentik 2026.5 and newer, older ones serve all. Type V(oauth2).
              - Defaults to V([authorization_code, refresh_token]); a newer Authentik's own default is none.
            type: list
            elements: str
            choices:
              - authorization_code
              - implicit
              - hybrid
              - refresh_token
              - client_credentials
              - password
              - urn:ietf:params:oauth:grant-type:device_code
          redirect_uris:
            description:
              - Addresses that a sign-in may return to; the whole list. Type V(oauth2).
            type: list
            elements: dict
            suboptions:
              url:
                description:
                  - The URL, or the pattern that it has to match.
                type: str
                required: true
              matching_mode:
                description:
                  - How an address is compared.
                type: str
                choices: [strict, regex]
                default: strict
              redirect_uri_type:
                description:
                  - What the address is for. V(logout) needs Authentik 2026.5.
                type: str
                choices: [authorization, logout]
                default: authorization
          signing_key:
            description:
              - Name of the certificate that signs tokens; empty for HS256 with the client secret. Type V(oauth2).
              - Defaults to V(authentik Self-signed Certificate), which every installation has.
            type: str
          encryption_key:
            description:
              - Name of the certificate that encrypts tokens; empty for none. Type V(oauth2).
            type: str
          include_claims_in_id_token:
            description:
              - Put the claims of the scopes into the id token. Type V(oauth2).
            type: bool
          issuer_mode:
            description:
              - One issuer for each application, or one for all. Type V(oauth2).
            type: str
            choices: [global, per_provider]
          sub_mode:
            description:
              - What the claim C(sub) holds. Type V(oauth2).
            type: str
            choices: [hashed_user_id, user_id, user_uuid, user_username, user_email, user_upn]
          logout_uri:
            description:
              - Address that is told of a sign-out. Type V(oauth2).
            type: str
          logout_method:
            description:
              - How it is told. Type V(oauth2).
            type: str
            choices: [backchannel, frontchannel]
          access_code_validity:
            description:
              - Life of a code, such as V(minutes=1). Type V(oauth2).
            type: str
          access_token_validity:
            description:
              - Life of an access token, such as V(hours=1;minutes=30). Types V(oauth2) and V(proxy).
            type: str
          refresh_token_validity:
            description:
              - Life of a refresh token, such as V(days=30). Types V(oauth2) and V(proxy).
            type: str
          refresh_token_threshold:
            description:
              - A refresh token is renewed when less of its life than this is left. Type V(oauth2).
            type: str
          base_dn:
            description:
              - Base of the directory, such as V(dc=ldap,dc=example,dc=org). Type V(ldap).
            type: str
          search_mode:
            description:
              - Ask the server at each search, or answer from memory. Type V(ldap).
            type: str
            choices: [direct, cached]
          bind_mode:
            description:
              - Ask the server at each bind, or answer from memory. Type V(ldap).
            type: str
            choices: [direct, cached]
          mfa_support:
            description:
              - Accept a one-time code after the password, C(password;123456). Type V(ldap).
            type: bool
          uid_start_number:
            description:
              - First uidNumber. Type V(ldap).
            type: int
          gid_start_number:
            description:
              - First gidNumber. Type V(ldap).
            type: int
          certificate:
            description:
              - Name of the certificate that the outpost serves; empty for none. Types V(ldap) and V(proxy).
            type: str
          tls_server_name:
            description:
              - Server name that O(applications[].provider.certificate) is served for. Type V(ldap).
            type: str
          mode:
            description:
              - Whether the outpost forwards requests itself, or is asked by another proxy. Type V(proxy).
            type: str
            choices: [proxy, forward_single, forward_domain]
          external_host:
            description:
              - URL at which users reach the application; needed for a new provider of type V(proxy).
            type: str
          internal_host:
            description:
              - URL to which requests are forwarded; needed with O(applications[].provider.mode=proxy). Type V(proxy).
            type: str
          internal_host_ssl_validation:
            description:
              - Check the certificate of O(applications[].provider.internal_host). Type V(proxy).
            type: bool
          skip_path_regex:
            description:
              - Paths that need no sign-in, one pattern a line. Type V(proxy).
            type: str
          intercept_header_auth:
            description:
              - Let requests with an C(Authorization) header sign in to Authentik with it. Type V(proxy).
            type: bool
          cookie_domain:
            description:
              - Domain of the cookie with O(applications[].provider.mode=forward_domain). Type V(proxy).
            type: str
          basic_auth_enabled:
            description:
              - Send the application an C(Authorization) header made of user attributes. Type V(proxy).
            type: bool
          basic_auth_user_attribute:
            description:
              - Attribute that holds the user name. Type V(proxy).
            type: str
          basic_auth_password_attribute:
            description:
              - Attribute that holds the password. Type V(proxy).
            type: str
      provider_name:
        description:
          - Name of a provider that exists; empty for none. Excludes O(applications[].provider).
          - With O(purge=true) the provider that an application of ours had before goes when it is to have none.
        type: str
      backchannel_providers:
        description:
          - Names of further providers, such as one for LDAP; the whole list.
        type: list
        elements: str
      groups:
        description:
          - Names of the groups whose members may use it; all group bindings. With none of any kind, everybody may.
        type: list
        elements: str
      users:
        description:
          - User names of people who may use it; all user bindings.
        type: list
        elements: str
      policies:
        description:
          - Policies that decide; all policy bindings.
        type: list
        elements: dict
        suboptions:
          name:
            description:
              - Name of the policy.
            type: str
            required: true
          order:
            description:
              - Place among the bindings.
            type: int
            default: 0
          enabled:
            description:
              - Whether the binding counts.
            type: bool
            default: true
          negate:
            description:
              - Whether the policy's answer is turned round.
            type: bool
            default: false
          timeout:
            description:
              - Seconds after which the policy counts as failed.
            type: int
            default: 30
          failure_result:
            description:
              - What a policy that failed counts as.
            type: bool
            default: false
      policy_engine_mode:
        description:
          - Whether one binding that lets a user in is enough, or all have to.
        type: str
        choices: [all, any]
      group:
        description:
          - Heading under which users find it.
        type: str
      meta_launch_url:
        description:
          - URL that opens it.
        type: str
      meta_icon:
        description:
          - URL or file name of its icon.
        type: str
      meta_description:
        description:
          - Line of text that users see.
        type: str
      meta_publisher:
        description:
          - Who made it. O(owner) is stored here.
        type: str
      meta_hide:
        description:
          - Whether users do not see it. Needs Authentik 2026.5.
        type: bool
      open_in_new_tab:
        description:
          - Whether it opens in a new tab.
        type: bool
"""

EXAMPLES = r"""
- name: Every service with a sign-in has its application, and none that was removed is left
  kitestacks.homelab.authentik_applications:
    url: "{{ authentik_url }}"
    token: "{{ authentik_token }}"
    applications:
      - slug: grafana
        name: Grafana
        group: Observability
        meta_launch_url: https://grafana.example.org/
        groups:
          - authentik Admins
        provider:
          client_id: grafana
          client_secret: "{{ grafana_client_secret }}"
          redirect_uris:
            - url: https://grafana.example.org/login/generic_oauth
      - slug: status
        name: Uptime Kuma
        provider:
          type: proxy
          mode: forward_single
          external_host: https://status.example.org
    owner: kitestacks
    purge: true
"""

RETURN = r"""
results:
  description: One entry for each object of the plan.
  returned: success
  type: list
  elements: dict
  contains:
    kind:
      description: Type of the object.
      type: str
      sample: application
    key:
      description: Name of the object.
      type: str
      sample: grafana
    action:
      description: What was done, or would be done in check mode.
      type: str
      sample: updated
    id:
      description: Id of the object, V(null) in check mode for one that does not exist yet.
      type: raw
      sample: 6cadfe9a-642d-4774-9c92-63d533485768
    changes:
      description: Fields that changed, by dotted path.
      type: list
      elements: str
      sample: [meta_launch_url]
stats:
  description: Requests sent, retries among them, and the number of objects by action.
  returned: success
  type: dict
  sample: {requests: 5, retries: 0, created: 0, updated: 1, deleted: 0, unchanged: 3}
applied:
  description: After a failure midway, what was done before it. The next run finishes the work.
  returned: failure midway
  type: list
  elements: dict
failed_items:
  description: After a failure midway, the objects that failed, with the error.
  returned: failure midway
  type: list
  elements: dict
pending:
  description: After a failure midway, what was not tried.
  returned: failure midway
  type: list
  elements: dict
"""

import re
import typing as t
from dataclasses import dataclass, field, replace

from ansible_collections.kitestacks.homelab.plugins.module_utils import _authentik
from ansible_collections.kitestacks.homelab.plugins.module_utils._authentik import (
    APPLICATION,
    BINDING,
    PROVIDER,
    Resource,
    Session,
    stated,
)
from ansible_collections.kitestacks.homelab.plugins.module_utils._authentik_providers import (
    PROVIDER_SPEC,
    Plans,
    deletion,
    is_http,
    ours_to_delete,
    plan_providers,
)
from ansible_collections.kitestacks.homelab.plugins.module_utils._reconcile import Action, Document, PlanError, compare

OPTION = "applications"
SPEC: dict[str, dict[str, t.Any]] = {
    OPTION: {
        "type": "list",
        "elements": "dict",
        "required": True,
        "mutually_exclusive": [("provider", "provider_name")],
        "options": {
            "backchannel_providers": {"type": "list", "elements": "str"},
            "group": {"type": "str"},
            "groups": {"type": "list", "elements": "str"},
            "meta_description": {"type": "str"},
            "meta_hide": {"type": "bool"},
            "meta_icon": {"type": "str"},
            "meta_launch_url": {"type": "str"},
            "meta_publisher": {"type": "str"},
            "name": {"type": "str"},
            "open_in_new_tab": {"type": "bool"},
            "policies": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "enabled": {"type": "bool", "default": True},
                    "failure_result": {"type": "bool", "default": False},
                    "name": {"type": "str", "required": True},
                    "negate": {"type": "bool", "default": False},
                    "order": {"type": "int", "default": 0},
                    "timeout": {"type": "int", "default": 30},
                },
            },
            "policy_engine_mode": {"type": "str", "choices": ["all", "any"]},
            "provider": {"type": "dict", "options": PROVIDER_SPEC},
            "provider_name": {"type": "str"},
            "slug": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["absent", "present"], "default": "present"},
            "users": {"type": "list", "elements": "str"},
        },
    },
    **_authentik.purge_spec(owner=True),
}
# Option of an item, field of a binding.
SUBJECTS = {"groups": "group", "users": "user", "policies": "policy"}


@dataclass
class Plan:
    """The plan in the order in which it is carried out.

    Attributes:
        freed: applications that give up a provider which another one gets.
        providers: see there.
        kept: applications to create and update.
        bindings: who may use them.
        gone: applications to delete.

    """

    providers: Plans
    freed: list[Action] = field(default_factory=list)
    kept: list[Action] = field(default_factory=list)
    bindings: list[Action] = field(default_factory=list)
    gone: list[Action] = field(default_factory=list)

    def actions(self) -> list[Action]:
        """Return all actions. Providers go before applications: those keep the marker that says that they are ours."""
        providers = self.providers
        first = [*self.freed, *providers.replaced, *providers.kept, *self.kept]
        return [*first, *self.bindings, *providers.gone, *self.gone]


def make_plan(session: Session) -> list[Action]:
    """Return what has to be done."""
    items = session.module.params[OPTION]
    _authentik.named_twice(OPTION, APPLICATION, [item["slug"] for item in items])
    present = [item for item in items if item["state"] == "present"]
    providers = []
    for item in present:
        if item["provider"] is not None:
            named = {**item["provider"], "name": item["provider"]["name"] or item["slug"]}
            providers.append((f"{OPTION}: {item['slug']}: provider", named))
    plan = Plan(plan_providers(session, OPTION, providers))
    made = {named["name"] for _where, named in providers}
    session.load("provider")
    live = {document["slug"]: document for document in session.live(APPLICATION)}
    desired = [_declared(session, item, made, live.get(item["slug"])) for item in present]
    _plan_deletions(session, plan, items, desired, live)
    plan.providers.settle()
    _give_providers(plan, desired, live)
    plan.kept = [compare(APPLICATION, document, live.get(document["slug"])) for document in desired]
    plan.bindings = plan_bindings(session, present, live)
    return plan.actions()


def _declared(
    session: Session, item: t.Mapping[str, t.Any], made: t.Collection[str], found: Document | None
) -> Document:
    where = f"{OPTION}: {item['slug']}"
    if not re.fullmatch(r"[-a-zA-Z0-9_]+", item["slug"]):
        raise PlanError(f"{where}: slug: may hold letters, digits, hyphens and underscores only")
    if (found is None or item["name"] is not None) and not (item["name"] or "").strip():
        raise PlanError(f"{where}: name: is empty" if found else f"{where}: name: a new application needs it")
    launch = item["meta_launch_url"]
    # blank://blank hides an application from users of releases that have no meta_hide.
    if launch and launch != "blank://blank" and not is_http(launch):
        raise PlanError(f"{where}: meta_launch_url: {launch!r} is no http:// or https:// URL")
    document = stated(item, "state", "provider", "provider_name", *SUBJECTS)
    if item["provider"] is not None:
        document["provider"] = item["provider"]["name"] or item["slug"]
    elif item["provider_name"] is not None:
        document["provider"] = item["provider_name"]
    try:
        checked = session.check(APPLICATION, where, document, {"provider": made})
    except PlanError as error:
        # The field is called provider; the option in which the name stands may be the other one.
        text = str(error)
        if item["provider_name"] is not None:
            text = text.replace(f"{where}: provider:", f"{where}: provider_name:")
        raise PlanError(text) from None
    return session.own(APPLICATION, where, checked)


def _plan_deletions(
    session: Session,
    plan: Plan,
    items: t.Sequence[t.Mapping[str, t.Any]],
    desired: t.Sequence[Document],
    live: t.Mapping[str, Document],
) -> None:
    absent = {item["slug"] for item in items if item["state"] == "absent"}
    kept = {document["slug"] for document in desired}
    used = {document.get("provider") for document in desired}
    ours = session.purge(APPLICATION, OPTION, desired)
    by_name = {document["name"]: document for document in session.rows(PROVIDER)}
    for slug, document in live.items():
        if slug not in absent and (slug in kept or ours is None or not ours(document)):
            continue
        plan.gone.append(Action(APPLICATION, "delete", slug, current=document))
        provider = by_name.get(document["provider"])
        if provider is not None and provider["name"] not in used and ours_to_delete(provider):
            plan.providers.gone.append(deletion(session, provider))
    for document in desired:
        found = live.get(document["slug"])
        if document.get("provider", "") is not None or found is None or ours is None or not ours(found):
            continue
        provider = by_name.get(found["provider"])
        if provider is not None and provider["name"] not in used and ours_to_delete(provider):
            # First: the server takes it from the application, and a run that is cut off leaves nothing to look for.
            plan.providers.replaced.append(deletion(session, provider))
    # What a run that was cut off before the application left of one that is no longer declared.
    prefix = session.module.params["purge_name_prefix"] if ours is not None else None
    taken = used | {document["provider"] for document in live.values()}
    for name, provider in by_name.items():
        unused = not (provider["assigned_application_slug"] or provider["assigned_backchannel_application_slug"])
        if prefix and name.startswith(prefix) and name not in taken and unused and ours_to_delete(provider):
            plan.providers.gone.append(deletion(session, provider))


def _give_providers(plan: Plan, desired: t.Sequence[Document], live: t.Mapping[str, Document]) -> None:
    """Check that each provider has one application at most, and free those that move from one to another."""
    takers: dict[str, str] = {}
    for document in desired:
        name = document.get("provider")
        if name is None:
            continue
        if name in takers:
            raise PlanError(
                f"{OPTION}: {document['slug']}: provider: {name!r} is the provider of {takers[name]} too; "
                "an application has one of its own"
            )
        takers[name] = document["slug"]
    leaving = {action.key for action in plan.gone}
    stated_now = {document["slug"]: document for document in desired}
    for slug, document in live.items():
        name = document["provider"]
        taker = takers.get(name)
        if taker in (None, slug):
            continue
        if slug in leaving:
            plan.freed.extend(action for action in plan.gone if action.key == slug)
            plan.gone = [action for action in plan.gone if action.key != slug]
        elif "provider" in stated_now.get(slug, {}):
            freed = {"slug": slug, "provider": None}
            plan.freed.append(Action(APPLICATION, "update", slug, freed, document, ("provider",)))
        else:
            raise PlanError(
                f"{OPTION}: {taker}: provider: {name!r} is the provider of the application {slug!r} already"
            )


def plan_bindings(
    session: Session, items: t.Sequence[t.Mapping[str, t.Any]], live: t.Mapping[str, Document]
) -> list[Action]:
    """Plan the bindings of all applications. The server accepts the same one twice: one is kept, the rest go."""
    kind: Resource = BINDING
    if not any(item["policies"] is not None for item in items):
        # Stages of flows are bound to policies in the same list; it need not be read for groups and users.
        kind = replace(BINDING, query={"policy__isnull": True})
    wanted = {
        (item["slug"], subject): [_binding(session, item["slug"], option, entry) for entry in item[option]]
        for item in items
        for option, subject in SUBJECTS.items()
        if item[option] is not None
    }
    if not wanted:
        return []
    for _slug, subject in wanted:
        session.load(subject)
    # Applications were listed, so their names cost nothing; other targets stay ids and match nothing.
    session.load("application")
    found: dict[tuple[str, str], list[Document]] = {}
    for binding in session.live(kind) if live else []:
        for subject in SUBJECTS.values():
            if binding[subject] is not None:
                found.setdefault((binding["target"], subject), []).append(binding)
    kept: list[Action] = []
    gone: list[Action] = []
    for (slug, subject), entries in wanted.items():
        rest = found.get((slug, subject), [])
        names = [entry[subject] for entry in entries]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            option = next(option for option, name in SUBJECTS.items() if name == subject)
            raise PlanError(f"{OPTION}: {slug}: {option}: {twice!r} is listed twice")
        for entry in entries:
            same = [binding for binding in rest if binding[subject] == entry[subject]]
            if not same:
                entry.setdefault("order", 0)
            kept.append(compare(kind, entry, same[0] if same else None))
            rest = [binding for binding in rest if not same or binding["pk"] != same[0]["pk"]]
        gone.extend(Action(kind, "delete", kind.label(binding), current=binding) for binding in rest)
    return [*kept, *gone]


def _binding(session: Session, slug: str, option: str, entry: t.Any) -> Document:
    subject = SUBJECTS[option]
    values = dict(entry) if isinstance(entry, dict) else {"name": entry, "enabled": True, "negate": False}
    document = {"target": slug, subject: values.pop("name"), **values}
    if not document[subject]:
        raise PlanError(f"{OPTION}: {slug}: {option}: a name is empty")
    try:
        return session.check(BINDING, f"{OPTION}: {slug}", document, {"application": {slug}})
    except PlanError as error:
        prefix = f"{OPTION}: {slug}: "
        raise PlanError(str(error).replace(f"{prefix}{subject}:", f"{prefix}{option}:")) from None


def main() -> None:
    _authentik.main(SPEC, make_plan)


if __name__ == "__main__":
    main()
