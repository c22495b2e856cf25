#!/usr/bin/python
# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cloudflare_tunnel_config
short_description: Manage the ingress rules of a Cloudflare Tunnel
version_added: 1.0.0
description:
  - Sets which public name a tunnel serves from where. The list of rules is the whole of it and its order counts. The
    catch-all rule that the API demands at the end is added.
  - What is not stated (O(origin_request)) stays as it is. A rule is compared as a whole.
  - Waits until every running connector reports the version of the configuration, also when nothing changed. A rule that
    a connector cannot read would otherwise stay unnoticed until the connector is restarted, and then serve nothing.
extends_documentation_fragment:
  - kitestacks.homelab.attributes
  - kitestacks.homelab.cloudflare
  - kitestacks.homelab.cloudflare.account
  - kitestacks.homelab.connection
options:
  tunnel:
    description: Name of the tunnel. It has to exist and to have the C(config_src) V(cloudflare).
    type: str
    required: true
  ingress:
    description: The rules, in the order in which they are tried.
    type: list
    elements: dict
    required: true
    suboptions:
      hostname:
        description: Public name. A leading V(*.) stands for any name below.
        type: str
        required: true
      path:
        description: Regular expression that the path of the URL has to match.
        type: str
      service:
        description: Where requests go, for example V(http://edge:8080), V(unix:/run/app.sock) or V(http_status:404).
        type: str
        required: true
      origin_request:
        description: How the connector talks to the service.
        type: dict
        suboptions: &suboptions
          access:
            description: Requests have to carry a token of Cloudflare Access.
            type: dict
            suboptions:
              aud_tag:
                description: Audience tags of the Access applications.
                type: list
                elements: str
                required: true
              required:
                description: Whether requests without a token are refused.
                type: bool
              team_name:
                description: Name of the Zero Trust organisation.
                type: str
                required: true
          ca_pool:
            description: File with the authorities that sign the service's certificate.
            type: str
          connect_timeout:
            description: Seconds to wait for a connection.
            type: int
          disable_chunked_encoding:
            description: Whether chunked transfer encoding is off.
            type: bool
          http2_origin:
            description: Whether HTTP/2 is used.
            type: bool
          http_host_header:
            description: Host header to send.
            type: str
          keep_alive_connections:
            description: Idle connections to keep.
            type: int
          keep_alive_timeout:
            description: Seconds to keep an idle connection.
            type: int
          match_sni_to_host:
            description: Whether the TLS server name follows the Host header.
            type: bool
          no_happy_eyeballs:
            description: Whether IPv4 and IPv6 are not tried side by side.
            type: bool
          no_tls_verify:
            description: Whether the service's certificate is not checked.
            type: bool
          origin_server_name:
            description: Name expected in the service's certificate.
            type: str
          proxy_type:
            description: V(socks) for a SOCKS5 proxy, empty for an ordinary one.
            type: str
          tcp_keep_alive:
            description: Seconds between TCP keep-alive packets.
            type: int
          tls_timeout:
            description: Seconds to wait for the TLS handshake.
            type: int
  origin_request:
    description: How the connector talks to services, where a rule says nothing else.
    type: dict
    suboptions: *suboptions
  catch_all:
    description: Service of the last rule, which gets what no other rule matches.
    type: str
    default: http_status:404
  wait:
    description: Whether to wait for the connectors.
    type: bool
    default: true
  wait_timeout:
    description: Seconds to wait for the connectors.
    type: int
    default: 60
seealso:
  - module: kitestacks.homelab.cloudflare_tunnels
  - module: kitestacks.homelab.cloudflare_dns_records
    description: A public name also needs a proxied CNAME record that points to the tunnel.
author:
  - KiteStacks maintainers (@kitestacks)
"""

EXAMPLES = r"""
- name: Public names reach the edge proxy of the host that the connector runs on
  kitestacks.homelab.cloudflare_tunnel_config:
    tunnel: homelab
    ingress:
      - hostname: www.example.com
        service: http://edge:8080
      - hostname: files.example.com
        path: ^/private/
        service: http_status:403
      - hostname: "*.example.com"
        service: https://edge:8443
        origin_request:
          origin_server_name: edge.example.com
    origin_request:
      connect_timeout: 10
"""

RETURN = r"""
tunnel_id:
  description: Id of the tunnel.
  returned: success
  type: str
  sample: 00000000-0000-4000-8000-000000000001
version:
  description: Version of the configuration. Every change raises it.
  returned: success
  type: int
  sample: 7
connectors:
  description: The connectors that were running when the module ended, with the version that each reports.
  returned: when O(wait=true) and not in check mode
  type: list
  elements: dict
  sample: [{id: 00000000-0000-4000-8000-000000000002, config_version: 7}]
results:
  description: What was done, in check mode what would be done.
  returned: success
  type: list
  elements: dict
  sample:
    - kind: tunnel configuration
      key: homelab
      action: updated
      id: 00000000-0000-4000-8000-000000000001
      changes: [ingress]
stats:
  description: What it took.
  returned: success
  type: dict
  sample: {requests: 4, retries: 0, created: 0, updated: 1, deleted: 0, unchanged: 0}
"""

import re
import time
import typing as t
import urllib.parse

from ansible_collections.kitestacks.homelab.plugins.module_utils import _cloudflare
from ansible_collections.kitestacks.homelab.plugins.module_utils._apply import Step, run
from ansible_collections.kitestacks.homelab.plugins.module_utils._reconcile import (
    Action,
    Document,
    Kind,
    PlanError,
    compare,
)

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

# Option name: (name in the API, type).
ORIGIN_REQUEST = {
    "ca_pool": ("caPool", "str"),
    "connect_timeout": ("connectTimeout", "int"),
    "disable_chunked_encoding": ("disableChunkedEncoding", "bool"),
    "http2_origin": ("http2Origin", "bool"),
    "http_host_header": ("httpHostHeader", "str"),
    "keep_alive_connections": ("keepAliveConnections", "int"),
    "keep_alive_timeout": ("keepAliveTimeout", "int"),
    "match_sni_to_host": ("matchSNItoHost", "bool"),
    "no_happy_eyeballs": ("noHappyEyeballs", "bool"),
    "no_tls_verify": ("noTLSVerify", "bool"),
    "origin_server_name": ("originServerName", "str"),
    "proxy_type": ("proxyType", "str"),
    "tcp_keep_alive": ("tcpKeepAlive", "int"),
    "tls_timeout": ("tlsTimeout", "int"),
}
ORIGIN_SPEC: dict[str, t.Any] = {
    "type": "dict",
    "options": {
        **{name: {"type": kind} for name, (_wire, kind) in ORIGIN_REQUEST.items()},
        "access": {
            "type": "dict",
            "options": {
                "aud_tag": {"type": "list", "elements": "str", "required": True},
                "required": {"type": "bool"},
                "team_name": {"type": "str", "required": True},
            },
        },
    },
}
SPEC: dict[str, dict[str, t.Any]] = {
    **_cloudflare.ACCOUNT_SPEC,
    "tunnel": {"type": "str", "required": True},
    "ingress": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "hostname": {"type": "str", "required": True},
            "path": {"type": "str"},
            "service": {"type": "str", "required": True},
            "origin_request": ORIGIN_SPEC,
        },
    },
    "origin_request": ORIGIN_SPEC,
    "catch_all": {"type": "str", "default": "http_status:404"},
    "wait": {"type": "bool", "default": True},
    "wait_timeout": {"type": "int", "default": 60},
}
URL_SCHEMES = ("http", "https", "tcp", "ssh", "rdp", "smb", "ws", "wss")
WORDS = ("hello_world", "bastion", "socks-proxy")
LONGEST_POLL = 2.0


def rules(ingress: t.Sequence[Document]) -> list[Document]:
    """Return rules as they are compared and sent: only what says something."""
    made = []
    for rule in ingress:
        kept = {name: rule[name] for name in ("hostname", "path", "service", "originRequest") if rule.get(name)}
        made.append(kept)
    return made


CONFIGURATION = Kind(
    "tunnel configuration",
    key=(),
    update="PUT",
    # Deprecated and ignored by connectors, but still given back.
    read_only=frozenset({"warp-routing"}),
    exact=frozenset({"ingress"}),
    normalise={"ingress": rules},
)


def reconcile(module: AnsibleModule, api: _cloudflare.Cloudflare) -> dict[str, t.Any]:
    """Bring the configuration of the tunnel to what is declared."""
    params = module.params
    desired: Document = {"ingress": declared_rules(params["ingress"], params["catch_all"])}
    if params["origin_request"] is not None:
        desired["originRequest"] = origin_request(params["origin_request"])
    account = api.account_id(params["account_id"])
    found = api.tunnels(account, name=params["tunnel"])
    if not found and not module.check_mode:
        raise PlanError(f"tunnel: there is no tunnel {params['tunnel']}")
    if not found:
        module.warn(f"there is no tunnel {params['tunnel']} yet: it would have to be made first")
        action = compare(CONFIGURATION, desired, None)
        action.key = params["tunnel"]
        return {**run(module, api, [action], list, relist=lambda _kind: []), "tunnel_id": None, "version": 0}
    tunnel = found[0]
    if tunnel.get("config_src") == "local":
        raise PlanError(f"tunnel: {params['tunnel']} is configured locally (config_src local), the API cannot do it")
    path = f"{_cloudflare.TUNNEL.at(account_id=account).path}/{tunnel['id']}"
    live = api.get(f"{path}/configurations")
    version = {"version": int(live.get("version") or 0)}
    current = {**live["config"], "id": tunnel["id"]} if live.get("config") else None
    action = compare(CONFIGURATION, desired, current)
    action.key = params["tunnel"]

    def send(batch: list[Action]) -> list[Document | None]:
        made = api.unwrap(api.request("PUT", f"{path}/configurations", body={"config": batch[0].body}))
        version["version"] = int(made["version"])
        return [{"id": tunnel["id"]}]

    def steps() -> list[Step]:
        return [] if action.action == "unchanged" else [Step([action], send)]

    def relist(_kind: Kind) -> list[Document]:
        again = api.get(f"{path}/configurations")
        version["version"] = int(again.get("version") or 0)
        return [{**again["config"], "id": tunnel["id"]}] if again.get("config") else []

    result = {**run(module, api, [action], steps, relist=relist), "tunnel_id": tunnel["id"], **version}
    if module.check_mode or not params["wait"] or not version["version"]:
        return result
    connectors = wait_for_connectors(api, path, version["version"], params["wait_timeout"])
    result["stats"]["requests"] = api.stats.requests
    result["connectors"] = connectors
    behind = [item for item in connectors if not runs(item, version["version"])]
    if behind:
        names = ", ".join(f"{item['id']} (version {item['config_version']})" for item in behind)
        module.fail_json(
            msg=f"tunnel {params['tunnel']}: after {params['wait_timeout']} seconds these connectors do not run "
            f"version {version['version']}: {names}. Their log says why; a rule that they cannot read leaves the old "
            "configuration in force until they are restarted.",
            **result,
        )
    return result


def wait_for_connectors(api: _cloudflare.Cloudflare, path: str, version: int, timeout: float) -> list[dict[str, t.Any]]:
    """Return the running connectors once all of them run `version`, or after `timeout` seconds.

    A connector that goes away meanwhile is not waited for, and one that does not say its version neither.
    """
    deadline = time.monotonic() + timeout
    pause = 0.25
    while True:
        found = [
            {"id": connector.get("id"), "config_version": connector.get("config_version")}
            for connector in api.get(f"{path}/connections") or []
        ]
        left = deadline - time.monotonic()
        if left <= 0 or all(runs(connector, version) for connector in found):
            return found
        time.sleep(min(pause, left))
        pause = min(pause * 2, LONGEST_POLL)


def runs(connector: t.Mapping[str, t.Any], version: int) -> bool:
    """Tell whether a connector runs this version or a later one."""
    return connector["config_version"] is None or connector["config_version"] >= version


def declared_rules(items: t.Sequence[t.Mapping[str, t.Any]], catch_all: str) -> list[Document]:
    """Check the declared rules and return them as the API has them, the catch-all added.

    Raises:
        PlanError: naming the item and the option.
    """
    made: list[Document] = []
    seen: list[tuple[str, str]] = []
    for number, item in enumerate(items):
        where = f"ingress[{number}] ({item['hostname']})"
        hostname = check_hostname(item["hostname"], f"{where}.hostname")
        path = item["path"] or ""
        check_path(path, f"{where}.path")
        check_service(item["service"], f"{where}.service")
        for before, (other, other_path) in enumerate(seen):
            covered = hostname == other or (other.startswith("*.") and hostname.endswith(other[1:]))
            if covered and other_path in ("", path):
                raise PlanError(f"{where}.hostname: never gets a request, ingress[{before}] takes them all")
        seen.append((hostname, path))
        rule: Document = {"hostname": hostname, "path": path, "service": item["service"]}
        if item["origin_request"] is not None:
            rule["originRequest"] = origin_request(item["origin_request"])
        made.append(rule)
    check_service(catch_all, "catch_all")
    return rules([*made, {"service": catch_all}])


def origin_request(options: t.Mapping[str, t.Any]) -> Document:
    """Return the stated options under the names that the API has for them."""
    made = {wire: options[name] for name, (wire, _kind) in ORIGIN_REQUEST.items() if options.get(name) is not None}
    access = options.get("access")
    if access is not None:
        made["access"] = {
            wire: access[name]
            for name, wire in (("aud_tag", "audTag"), ("required", "required"), ("team_name", "teamName"))
            if access[name] is not None
        }
    return made


def check_hostname(hostname: str, where: str) -> str:
    """Return a public name in ASCII.

    Raises:
        PlanError: it is none.
    """
    try:
        found = _cloudflare.ascii_name(hostname)
    except UnicodeError:
        found = ""
    labels = found.split(".")
    if labels[0] == "*":
        labels = labels[1:]
    if len(labels) < 2 or len(found) > 253 or not all(_cloudflare.LABEL.fullmatch(label) for label in labels):
        raise PlanError(f"{where}: {hostname!r} is no public name (a wildcard may only be the first label)")
    return found


def check_path(path: str, where: str) -> None:
    """Refuse a path that is no regular expression; what only Go's syntax has is let through.

    Raises:
        PlanError: it is none.
    """
    if re.search(r"\\[pPzQC]", path):
        return
    try:
        re.compile(path)
    except re.error as error:
        raise PlanError(f"{where}: {path!r} is no regular expression ({error})") from None


def check_service(service: str, where: str) -> None:
    """Refuse a service that a connector could not read: it would stop reading the whole configuration.

    Raises:
        PlanError: saying what is allowed.
    """
    if service in WORDS or re.fullmatch(r"unix(\+tls)?:/.+", service):
        return
    status = re.fullmatch(r"http_status:(\d{3})", service)
    if status and 100 <= int(status.group(1)) <= 999:
        return
    try:
        url = urllib.parse.urlsplit(service)
        known = url.scheme in URL_SCHEMES and bool(url.hostname)
        # Reading the port checks it.
        known = known and (url.port is None or url.port > 0)
    except ValueError:
        known = False
    if not known:
        raise PlanError(
            f"{where}: {service!r} is no service (scheme://host:port with {', '.join(URL_SCHEMES)}, unix:/path, "
            f"http_status:404, {', '.join(WORDS)})"
        )
    if url.path.strip("/") or url.query or url.fragment:
        raise PlanError(f"{where}: {service!r} has a path; a connector passes the path of the request on")


def main() -> None:
    """Run the module."""
    _cloudflare.main(SPEC, reconcile)


if __name__ == "__main__":
    main()
