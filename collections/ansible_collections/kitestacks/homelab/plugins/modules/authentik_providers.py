#!/usr/bin/python
# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: authentik_providers
short_description: OAuth2, LDAP and proxy providers of Authentik
version_added: 1.0.0
description:
  - Creates, updates and deletes providers.
  - A set module. One task declares many objects; what is not declared is left alone unless O(purge=true).
  - Only the options that are given are compared and sent.
  - Flows, certificates and scope mappings are named; their ids are looked up.
  - A client secret is compared with the stored one and never shown.
author:
  - KiteStacks maintainers (@kitestacks)
extends_documentation_fragment:
  - kitestacks.homelab.attributes
  - kitestacks.homelab.connection
  - kitestacks.homelab.authentik
  - kitestacks.homelab.authentik.purge
options:
  providers:
    description:
      - The providers.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - Name, unique over the providers of all types.
        type: str
        required: true
      state:
        description:
          - Whether it shall exist.
        type: str
        choices: [absent, present]
        default: present
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
          - Server name that O(providers[].certificate) is served for. Type V(ldap).
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
          - URL to which requests are forwarded; needed with O(providers[].mode=proxy). Type V(proxy).
        type: str
      internal_host_ssl_validation:
        description:
          - Check the certificate of O(providers[].internal_host). Type V(proxy).
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
          - Domain of the cookie with O(providers[].mode=forward_domain). Type V(proxy).
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
"""

EXAMPLES = r"""
- name: The providers exist
  kitestacks.homelab.authentik_providers:
    url: "{{ authentik_url }}"
    token: "{{ authentik_token }}"
    providers:
      - name: grafana
        client_id: grafana
        client_secret: "{{ grafana_client_secret }}"
        redirect_uris:
          - url: https://grafana.example.org/login/generic_oauth
      - name: directory
        type: ldap
        base_dn: dc=ldap,dc=example,dc=org
        search_mode: cached
      - name: uptime
        type: proxy
        mode: forward_single
        external_host: https://status.example.org
        skip_path_regex: ^/api/push/
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
      sample: OAuth2 provider
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
      sample: 1
    changes:
      description: Fields that changed, by dotted path.
      type: list
      elements: str
      sample: [redirect_uris]
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

import typing as t

from ansible_collections.kitestacks.homelab.plugins.module_utils import _authentik
from ansible_collections.kitestacks.homelab.plugins.module_utils._authentik import PROVIDER, Session
from ansible_collections.kitestacks.homelab.plugins.module_utils._authentik_providers import (
    PROVIDER_SPEC,
    deletion,
    ours_to_delete,
    plan_providers,
)
from ansible_collections.kitestacks.homelab.plugins.module_utils._reconcile import Action

OPTION = "providers"
SPEC: dict[str, dict[str, t.Any]] = {
    OPTION: {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            **PROVIDER_SPEC,
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["absent", "present"], "default": "present"},
        },
    },
    **_authentik.purge_spec(owner=False),
}


def make_plan(session: Session) -> list[Action]:
    """Return what has to be done."""
    items = session.module.params[OPTION]
    _authentik.named_twice(OPTION, PROVIDER, [item["name"] for item in items])
    present = [item for item in items if item["state"] == "present"]
    plans = plan_providers(session, OPTION, [(f"{OPTION}: {item['name']}", item) for item in present])
    absent = {item["name"] for item in items if item["state"] == "absent"}
    kept = {item["name"] for item in present}
    ours = session.purge(PROVIDER, OPTION, present)
    for document in session.rows(PROVIDER):
        name = document["name"]
        if name in absent or (name not in kept and ours is not None and ours_to_delete(document) and ours(document)):
            plans.gone.append(deletion(session, document))
    plans.settle()
    return [*plans.replaced, *plans.kept, *plans.gone]


def main() -> None:
    _authentik.main(SPEC, make_plan)


if __name__ == "__main__":
    main()
