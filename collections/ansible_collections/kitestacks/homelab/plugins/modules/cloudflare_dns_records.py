#!/usr/bin/python
# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cloudflare_dns_records
short_description: Manage a set of DNS records of a Cloudflare zone in one pass
version_added: 1.0.0
description:
  - Brings the records of a zone to what is declared. The zone is listed once, the difference is sent in batches that
    the API carries out as a whole, so the number of requests does not depend on how many records are unchanged.
  - Only what is declared is compared and sent. What an option does not state stays as it is.
  - Everything is checked before the first write. Names and contents are compared in the form that the API gives back
    (punycode, lower case, no final dot, TXT joined and unquoted).
  - A record is the same record when name, type and content agree. For V(CNAME) name and type suffice. Of V(SRV),
    V(CAA), V(HTTPS), V(SVCB) and V(URI) the weight, priority, flags or value may change in place. The address of an
    V(A) or V(AAAA) record changes in place when it is the only one at its name and carries our marker.
  - A V(CNAME) that takes the place of an V(A) or V(AAAA) record (or the reverse) is made in the same batch in which the
    old record is deleted.
extends_documentation_fragment:
  - kitestacks.homelab.attributes
  - kitestacks.homelab.cloudflare
  - kitestacks.homelab.connection
options:
  zone:
    description: Name of the zone.
    type: str
    required: true
  records:
    description: The records.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - V(@) for the zone itself, one label, or the full name. A name with several labels has to be written in full,
            unless its last label starts with an underscore (V(_sip._tcp)).
        type: str
        required: true
      type:
        description: Type of the record.
        type: str
        required: true
        choices:
          - A
          - AAAA
          - CAA
          - CERT
          - CNAME
          - DNSKEY
          - DS
          - HTTPS
          - LOC
          - MX
          - NAPTR
          - NS
          - OPENPGPKEY
          - PTR
          - SMIMEA
          - SRV
          - SSHFP
          - SVCB
          - TLSA
          - TXT
          - URI
      content:
        description:
          - Content of an V(A), V(AAAA), V(CNAME), V(MX), V(NS), V(OPENPGPKEY), V(PTR) or V(TXT) record.
          - Text of a V(TXT) record may be given with or without quotes.
          - Not needed for O(records[].state=absent). Without it all records of this name and type are deleted.
        type: str
      data:
        description:
          - Content of a record of any other type, with the keys that the API has for it, for example C(priority),
            C(weight), C(port), C(target) for V(SRV) and C(flags), C(tag), C(value) for V(CAA).
        type: dict
      ttl:
        description: Seconds to live, V(1) for automatic. A new record gets V(1) when this is not stated.
        type: int
      proxied:
        description: Whether requests go through Cloudflare. For V(A), V(AAAA) and V(CNAME) only. Implies a ttl of V(1).
        type: bool
      priority:
        description: Priority. Required for V(MX) and V(URI).
        type: int
      comment:
        description: Comment of the record. Our marker is added to it, see O(owner).
        type: str
      tags:
        description: Tags of the record, V(name:value). Not on the free plan.
        type: list
        elements: str
      settings:
        description: Settings of the record.
        type: dict
        suboptions:
          flatten_cname:
            description: Whether a V(CNAME) is flattened. On paid plans only.
            type: bool
          ipv4_only:
            description: Whether a proxied name is answered with IPv4 addresses only.
            type: bool
          ipv6_only:
            description: Whether a proxied name is answered with IPv6 addresses only.
            type: bool
      state:
        description: Whether the record shall exist.
        type: str
        choices:
          - present
          - absent
        default: present
  owner:
    description:
      - Whose records these are. Declared records get V([owner]) at the end of their comment, which is how O(purge) and
        changes of addresses know them again. Empty for no marker.
    type: str
    default: kitestacks
  purge:
    description:
      - Whether to delete the records that carry our marker and are not declared. Never C(NS) and C(SOA) records, never
        ACME challenges, never what Cloudflare manages itself.
      - Check mode lists what would be deleted.
    type: bool
    default: false
  purge_allow_empty:
    description: Whether O(purge=true) may be used when no record is declared.
    type: bool
    default: false
  purge_filter:
    description: Narrows O(purge).
    type: dict
    suboptions:
      names:
        description: Only records with one of these full names. V(*) and V(?) are wildcards.
        type: list
        elements: str
      types:
        description: Only records of these types.
        type: list
        elements: str
  replace_conflicting:
    description:
      - Whether a record that does not carry our marker may be deleted when a declared record excludes it (V(CNAME)
        against V(A) and V(AAAA)). Otherwise the module fails before it writes.
    type: bool
    default: false
  batch_size:
    description: Changes in one request. The API takes V(200) on the free plan and 3500 on paid ones.
    type: int
    default: 200
author:
  - KiteStacks maintainers (@kitestacks)
"""

EXAMPLES = r"""
- name: The zone has the records of the homelab
  kitestacks.homelab.cloudflare_dns_records:
    zone: example.com
    records:
      - name: "@"
        type: CNAME
        content: 00000000-0000-4000-8000-000000000001.cfargotunnel.com
        proxied: true
      - name: www
        type: CNAME
        content: 00000000-0000-4000-8000-000000000001.cfargotunnel.com
        proxied: true
        comment: Portal
      - name: "@"
        type: MX
        content: mail.example.net
        priority: 10
      - name: "@"
        type: TXT
        content: v=spf1 mx -all
      - name: _sip._tcp
        type: SRV
        data:
          priority: 10
          weight: 5
          port: 5060
          target: sip.example.com

- name: Records that were declared once and are not any more are gone
  kitestacks.homelab.cloudflare_dns_records:
    zone: example.com
    records:
      - name: www
        type: CNAME
        content: 00000000-0000-4000-8000-000000000001.cfargotunnel.com
        proxied: true
    purge: true
    purge_filter:
      types:
        - CNAME
        - MX

- name: An old name is gone
  kitestacks.homelab.cloudflare_dns_records:
    zone: example.com
    records:
      - name: old
        type: A
        state: absent
"""

RETURN = r"""
results:
  description: What was done to each declared record and each that was deleted, in check mode what would be done.
  returned: success
  type: list
  elements: dict
  contains:
    kind:
      description: Kind of the object.
      type: str
      sample: DNS record
    key:
      description: Name, type and content.
      type: str
      sample: www.example.com CNAME
    action:
      description: V(created), V(updated), V(deleted) or V(unchanged).
      type: str
      sample: updated
    id:
      description: Id of the record. Null for one that check mode would create.
      type: str
      sample: 0000000000000000000000000000006f
    changes:
      description: Fields that an update changed.
      type: list
      elements: str
      sample: [content]
stats:
  description: What it took.
  returned: success
  type: dict
  sample: {requests: 3, retries: 0, created: 1, updated: 0, deleted: 0, unchanged: 4}
zone_id:
  description: Id of the zone.
  returned: success
  type: str
  sample: 00000000000000000000000000000065
applied:
  description: On failure, what was done before it, as in RV(results).
  returned: failure while writing
  type: list
  elements: dict
failed_items:
  description: On failure, the changes of the request that failed, each with C(error).
  returned: failure while writing
  type: list
  elements: dict
pending:
  description: On failure, what was not tried.
  returned: failure while writing
  type: list
  elements: dict
"""

import typing as t

from ansible_collections.kitestacks.homelab.plugins.module_utils import _cloudflare
from ansible_collections.kitestacks.homelab.plugins.module_utils import _cloudflare_dns as dns
from ansible_collections.kitestacks.homelab.plugins.module_utils._apply import Step, run
from ansible_collections.kitestacks.homelab.plugins.module_utils._reconcile import Action, Document, Kind, PlanError

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

SPEC: dict[str, dict[str, t.Any]] = {
    **_cloudflare.SPEC,
    "zone": {"type": "str", "required": True},
    "records": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "type": {"type": "str", "required": True, "choices": list(dns.TYPES)},
            "content": {"type": "str"},
            "data": {"type": "dict"},
            "ttl": {"type": "int"},
            "proxied": {"type": "bool"},
            "priority": {"type": "int"},
            "comment": {"type": "str"},
            "tags": {"type": "list", "elements": "str"},
            "settings": {
                "type": "dict",
                "options": {
                    "flatten_cname": {"type": "bool"},
                    "ipv4_only": {"type": "bool"},
                    "ipv6_only": {"type": "bool"},
                },
            },
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
    },
    "owner": {"type": "str", "default": "kitestacks"},
    "purge": {"type": "bool", "default": False},
    "purge_allow_empty": {"type": "bool", "default": False},
    "purge_filter": {
        "type": "dict",
        "options": {"names": {"type": "list", "elements": "str"}, "types": {"type": "list", "elements": "str"}},
    },
    "replace_conflicting": {"type": "bool", "default": False},
    "batch_size": {"type": "int", "default": dns.BATCH},
}
# A deleted record may be seen for some seconds by the checks of the API: these mean "not yet".
GHOST = frozenset({81053, 81054, 81057})


def reconcile(module: AnsibleModule, api: _cloudflare.Cloudflare) -> dict[str, t.Any]:
    """Bring the zone to what is declared."""
    params = module.params
    items = list(enumerate(params["records"]))
    present = [(f"records[{number}]", item) for number, item in items if item["state"] == "present"]
    gone = [(f"records[{number}]", item) for number, item in items if item["state"] == "absent"]
    purge = None
    if params["purge"]:
        if not params["owner"]:
            raise PlanError("owner: is empty, so purge=true cannot tell which records are ours")
        if not present and not params["purge_allow_empty"]:
            raise PlanError("records: none is declared, so purge=true would delete all; set purge_allow_empty=true")
        limits = params["purge_filter"] or {}
        purge = dns.purgeable(limits.get("types"), limits.get("names"))
    if params["batch_size"] < 1:
        raise PlanError(f"batch_size: has to be 1 or more, not {params['batch_size']}")
    # What can be checked without the zone is checked before the first request.
    for where, item in [*present, *gone]:
        dns.declared(item, where, dns.Zone(params["zone"], enterprise=True))
    document = api.zone(_cloudflare.ascii_name(params["zone"]))
    zone = dns.Zone.of(document)
    desired = [dns.declared(item, where, zone) for where, item in present]
    absent = [dns.declared(item, where, zone) for where, item in gone]
    kind = t.cast("dns.RecordKind", dns.RECORD.at(zone_id=document["id"]))
    actions = dns.plan(
        desired,
        absent,
        listed(api, kind),
        kind=kind,
        owner=params["owner"],
        purge=purge,
        replace_conflicting=params["replace_conflicting"],
        where=[where for where, _item in present],
    )
    dns.check_comments(actions, zone)

    def plan() -> list[Step]:
        return [
            Step(part, lambda batch: send(api, kind, batch), GHOST)
            for part in dns.chunks(actions, params["batch_size"])
        ]

    found = run(module, api, actions, plan, relist=lambda _kind: listed(api, kind))
    return {**found, "zone_id": document["id"]}


def listed(api: _cloudflare.Cloudflare, kind: Kind) -> list[Document]:
    """Return all records of the zone in canonical form."""
    return [dns.canonical(record) for record in api.list(kind.path, kind.query) if record["type"] != "SOA"]


def send(api: _cloudflare.Cloudflare, kind: Kind, actions: list[Action]) -> list[Document | None]:
    """Send changes as one batch, which the API carries out as a whole: deletions, changes, creations."""
    gone = [action for action in actions if action.action == "delete"]
    changed = [action for action in actions if action.action == "update"]
    new = [action for action in actions if action.action == "create"]
    body = {
        "deletes": [{"id": action.id} for action in gone],
        "patches": [{"id": action.id, **dns.wire(action.body)} for action in changed],
        "posts": [dns.wire(action.body) for action in new],
    }
    answer = api.unwrap(
        api.request("POST", f"{kind.path}/batch", body={name: items for name, items in body.items() if items})
    )
    made = {
        **dict(zip(map(id, changed), answer.get("patches") or [])),
        **dict(zip(map(id, new), answer.get("posts") or [])),
    }
    return [made.get(id(action)) for action in actions]


def main() -> None:
    """Run the module."""
    _cloudflare.main(SPEC, reconcile)


if __name__ == "__main__":
    main()
