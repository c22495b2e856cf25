# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Input that is wrong: one message for each, that names the item and the option, before any write."""

from __future__ import annotations

import importlib
import re

import pytest
from ansible_collections.kitestacks.homelab.tests.fakes.cloudflare import TOKEN

from ._module import run_module


def record(**values):
    return ("dns_records", {"zone": "example.com", "records": [{"name": "www", "type": "A", **values}]})


def records(*items, **options):
    return ("dns_records", {"zone": "example.com", "records": list(items), **options})


def tunnel(**values):
    return ("tunnels", {"tunnels": [{"name": "homelab", **values}]})


def rule(*items, **options):
    full = [{"hostname": "www.example.com", "service": "http://edge:8080", **item} for item in items]
    return ("tunnel_config", {"tunnel": "homelab", "ingress": full, **options})


def access(**options):
    return ("access", options)


A = {"name": "www", "type": "A", "content": "192.0.2.1"}
CNAME = {"name": "www", "type": "CNAME", "content": "a.example.net"}
SRV = {"priority": 1, "weight": 1, "port": 1, "target": "a.example.net"}
OIDC = {
    "client_id": "x",
    "auth_url": "https://a.example.com",
    "token_url": "https://a.example.com",
    "certs_url": "https://a.example.com",
}
EVERYONE = [{"everyone": True}]
POLICY = {"name": "p", "decision": "allow", "include": EVERYONE}
WHERE = r"records\[0\] \(www\.example\.com "

CASES = {
    # DNS records.
    "no address": (record(content="192.0.2.300"), WHERE + r"A\)\.content: '192\.0\.2\.300' is no IPv4 address"),
    "IPv6 in A": (record(content="2001:db8::1"), r"\.content: .* is no IPv4 address"),
    "IPv4 in AAAA": (record(type="AAAA", content="192.0.2.1"), WHERE + r"AAAA\)\.content: .* is no IPv6 address"),
    "no content": (record(), WHERE + r"A\)\.content: is required for a A record"),
    "empty content": (record(type="TXT", content=" "), r"TXT\)\.content: is empty"),
    "data for A": (record(content="192.0.2.1", data={"x": 1}), r"A\)\.data: a A record is described by content"),
    "content for SRV": (record(type="SRV", content="1 1 1 x", data=SRV), r"SRV\)\.content: .* described by data"),
    "no data": (record(type="CAA"), r"CAA\)\.data: is required for a CAA record \(flags, tag, value\)"),
    "data incomplete": (record(type="SRV", data={"port": 1}), r"SRV\)\.data: priority is missing"),
    "data unknown": (record(type="SRV", data={**SRV, "wieght": 1}), r"SRV\)\.data: wieght is unknown"),
    "data out of range": (record(type="SRV", data={**SRV, "port": 70000}), r"port has to be a number from 0 to 65535"),
    "data no number": (record(type="SRV", data={**SRV, "port": "http"}), r"port has to be a number .* not 'http'"),
    "data no host": (record(type="SRV", data={**SRV, "target": "a b"}), r"SRV\)\.data: target: 'a b' is no host name"),
    "outside the zone": (
        record(name="www.example.org", content="192.0.2.1"),
        r"records\[0\]\.name: www\.example\.org is not in zone example\.com",
    ),
    "outside, final dot": (record(name="www.", content="192.0.2.1"), r"records\[0\]\.name: www\. is not in zone"),
    "no host name": (record(name="w w", content="192.0.2.1"), r"records\[0\]\.name: 'w w' is no host name"),
    "label too long": (record(name="a" * 64, content="192.0.2.1"), r"records\[0\]\.name: .* is no host name"),
    "wildcard inside": (record(name="a.*.example.com", content="192.0.2.1"), r"records\[0\]\.name: .* is no host name"),
    "proxied TXT": (record(type="TXT", content="x", proxied=True), r"TXT\)\.proxied: a TXT record cannot be proxied"),
    "proxied with ttl": (
        record(content="192.0.2.1", proxied=True, ttl=300),
        r"A\)\.ttl: a proxied record has the ttl 1",
    ),
    "ttl 30": (
        record(content="192.0.2.1", ttl=30),
        r"A\)\.ttl: has to be 1 \(automatic\) or 60 to 86400 seconds, not 30",
    ),
    "ttl 0": (record(content="192.0.2.1", ttl=0), r"A\)\.ttl: .* not 0"),
    "ttl too large": (record(content="192.0.2.1", ttl=86401), r"A\)\.ttl: .* not 86401"),
    "ttl no number": (record(content="192.0.2.1", ttl="soon"), r"'ttl' is of type .*str.*int|argument 'ttl'"),
    "CNAME to an address": (
        record(type="CNAME", content="192.0.2.1"),
        r"CNAME\)\.content: '192\.0\.2\.1' is no host name",
    ),
    "CNAME to itself": (
        record(type="CNAME", content="www.example.com"),
        r"CNAME\)\.content: the record points to itself",
    ),
    "MX without priority": (record(type="MX", content="m.example.net"), r"MX\)\.priority: is required for a MX record"),
    "MX priority": (record(type="MX", content="m.example.net", priority=70000), r"MX\)\.priority: .* not 70000"),
    "priority of A": (record(content="192.0.2.1", priority=1), r"A\)\.priority: a A record has none"),
    "tags on the free plan": (
        record(content="192.0.2.1", tags=["a:b"]),
        r"A\)\.tags: the free plan of zone example\.com",
    ),
    "comment too long": (
        record(content="192.0.2.1", comment="x" * 95),
        r"A 192\.0\.2\.1\)\.comment: has 108 characters with our marker, 100 are",
    ),
    "unknown type": (record(type="SPF", content="x"), r"value of type must be one of: A, AAAA.*got: SPF"),
    "twice": (records(A, A), r"records\[1\] .*: the record is declared twice, see records\[0\]"),
    "twice in another spelling": (records(A, {**A, "name": "WWW.example.com."}), r"records\[1\] .*declared twice"),
    "two CNAMEs": (
        records(CNAME, {**CNAME, "content": "b.example.net"}),
        r"records\[1\] .*a name has one CNAME record",
    ),
    "CNAME beside A": (
        records(A, CNAME),
        r"records\[1\] .*\.type: a CNAME record excludes A, AAAA and CNAME .*records\[0\]",
    ),
    "unknown zone": (
        ("dns_records", {"zone": "example.org", "records": []}),
        r"zone: the token sees no zone example\.org",
    ),
    "purge of nothing": (records(purge=True), r"records: none is declared, so purge=true would delete all"),
    "purge without owner": (records(A, purge=True, owner=""), r"owner: is empty, so purge=true cannot tell"),
    "batch size": (records(A, batch_size=0), r"batch_size: has to be 1 or more"),
    "unknown key": (records({**A, "proxid": True}), r"Unsupported parameters.*proxid"),
    "bad URL": (
        ("dns_records", {"zone": "example.com", "records": [], "api_url": "example.com"}),
        r"api_url: 'example\.com' is no http",
    ),
    # Tunnels.
    "empty name": (tunnel(name=" "), r"tunnels\[0\]\.name: is empty"),
    "secret too short": (
        tunnel(tunnel_secret="c2hvcnQ="),
        r"tunnels\[0\] \(homelab\)\.tunnel_secret: has 5 bytes, at least 32",
    ),
    "secret no base64": (tunnel(tunnel_secret="%%%"), r"tunnels\[0\] \(homelab\)\.tunnel_secret: is no base64"),
    "rotate to nothing": (tunnel(rotate_secret=True), r"\(homelab\)\.rotate_secret: needs the new tunnel_secret"),
    "tunnel twice": (
        ("tunnels", {"tunnels": [{"name": "a"}, {"name": "a"}]}),
        r"tunnels: tunnel a is declared twice \(items 1, 2\)",
    ),
    "purge without prefix": (
        ("tunnels", {"tunnels": [{"name": "a"}], "purge": True}),
        r"purge_name_prefix: has to be given",
    ),
    "purge of all tunnels": (
        ("tunnels", {"tunnels": [], "purge": True, "purge_name_prefix": "k"}),
        r"purge: nothing is declared",
    ),
    # The configuration of a tunnel.
    "no service": (
        rule({"service": "nonsense"}),
        r"ingress\[0\] \(www\.example\.com\)\.service: 'nonsense' is no service",
    ),
    "service with a path": (rule({"service": "http://edge:8080/app"}), r"\.service: .* has a path"),
    "service with a bad port": (rule({"service": "http://edge:99999"}), r"\.service: .* is no service"),
    "status out of range": (rule({"service": "http_status:99"}), r"\.service: .* is no service"),
    "no public name": (rule({"hostname": "www"}), r"ingress\[0\] \(www\)\.hostname: 'www' is no public name"),
    "wildcard in the middle": (
        rule({"hostname": "a.*.example.com"}),
        r"\.hostname: .*a wildcard may only be the first label",
    ),
    "path no expression": (rule({"path": "(["}), r"\.path: '\(\[' is no regular expression"),
    "rule twice": (rule({}, {}), r"ingress\[1\] .*\.hostname: never gets a request, ingress\[0\] takes them all"),
    "rule behind a wildcard": (rule({"hostname": "*.example.com"}, {}), r"ingress\[1\] .*never gets a request"),
    "catch-all no service": (rule({}, catch_all="drop"), r"catch_all: 'drop' is no service"),
    "no such tunnel": (rule({}), r"tunnel: there is no tunnel homelab"),
    # Access.
    "unknown group": (
        access(policies=[{**POLICY, "include": [{"group": "Famly"}]}]),
        r"policies \(p\), item 1: Access group Famly neither exists nor is declared",
    ),
    "unknown policy": (
        access(applications=[{"name": "a", "domain": "a.example.com", "policies": ["q"]}]),
        r"applications \(a\.example\.com\), item 1: Access policy q neither",
    ),
    "unknown provider": (
        access(policies=[{**POLICY, "require": [{"login_method": "x"}]}]),
        r"Access identity provider x neither exists",
    ),
    "policy that goes": (
        access(
            policies=[{"name": "p", "state": "absent"}],
            applications=[{"name": "a", "domain": "a.example.com", "policies": ["p"]}],
        ),
        r"Access policy p is declared absent",
    ),
    "no rule": (access(groups=[{"name": "g", "include": []}]), r"groups\[0\] \(g\)\.include: at least one rule"),
    "unknown rule": (
        access(groups=[{"name": "g", "include": [{"mail": "a@b"}]}]),
        r"groups\[0\] \(g\)\.include\[0\]: mail is no rule",
    ),
    "rule of two": (
        access(groups=[{"name": "g", "include": [{"email": "a@b", "ip": "x"}]}]),
        r"\.include\[0\]: a rule has exactly one key",
    ),
    "no e-mail": (
        access(groups=[{"name": "g", "include": [{"email": "nobody"}]}]),
        r"\.include\[0\]\.email: 'nobody' is no e-mail address",
    ),
    "rule without value": (
        access(groups=[{"name": "g", "include": [{"ip": ""}]}]),
        r"\.include\[0\]\.ip: needs a value",
    ),
    "circle": (
        access(groups=[{"name": "a", "include": [{"group": "b"}]}, {"name": "b", "include": [{"group": "a"}]}]),
        r"groups: a, b include each other",
    ),
    "no decision": (
        access(policies=[{"name": "p", "include": EVERYONE}]),
        r"policies\[0\] \(p\)\.decision: is required",
    ),
    "duration": (
        access(policies=[{**POLICY, "session_duration": "1 day"}]),
        r"\(p\)\.session_duration: '1 day' is no duration",
    ),
    "app with a scheme": (
        access(applications=[{"name": "a", "domain": "https://a.example.com"}]),
        r"applications\[0\] .*\.domain: is no public name",
    ),
    "app without a name": (
        access(applications=[{"domain": "a.example.com"}]),
        r"\(a\.example\.com\)\.name: is required",
    ),
    "app twice": (
        access(applications=[{"name": n, "domain": d} for n, d in (("a", "a.example.com"), ("b", "A.example.com/"))]),
        r"applications: .* declared twice",
    ),
    "policy named twice": (
        access(policies=[POLICY], applications=[{"name": "a", "domain": "a.example.com", "policies": ["p", "p"]}]),
        r"\.policies: a policy is named twice",
    ),
    "provider without a type": (
        access(identity_providers=[{"name": "i"}]),
        r"identity_providers\[0\] \(i\)\.type: is required",
    ),
    "provider incomplete": (
        access(identity_providers=[{"name": "i", "type": "oidc", "config": {"client_id": "x"}}]),
        r"\(i\)\.config: auth_url is missing",
    ),
    "provider with no URL": (
        access(
            identity_providers=[
                {"name": "i", "type": "oidc", "client_secret": "x", "config": {**OIDC, "auth_url": "auth"}}
            ]
        ),
        r"\(i\)\.config: auth_url is no URL",
    ),
    "secret in config": (
        access(identity_providers=[{"name": "i", "type": "oidc", "config": {**OIDC, "client_secret": "x"}}]),
        r"\(i\)\.config: client_secret is an option of its own",
    ),
    "provider without secret": (
        access(identity_providers=[{"name": "i", "type": "oidc", "config": OIDC}]),
        r"identity_providers \(i\)\.client_secret: is required to create it",
    ),
    "empty secret": (
        access(identity_providers=[{"name": "i", "type": "oidc", "config": OIDC, "client_secret": ""}]),
        r"\(i\)\.client_secret: is empty",
    ),
    # What a token can do.
    "permission without zone": (("info", {"permissions": ["dns_write"]}), r"zone: has to be given to check dns_write"),
    "unknown permission": (("info", {"permissions": ["everything"]}), r"permissions must be one or more of"),
}


@pytest.mark.parametrize("name", CASES)
def test_wrong_input_is_refused_by_name_before_any_write(cloudflare, name):
    (module, options), message = CASES[name]
    main = importlib.import_module(f"ansible_collections.kitestacks.homelab.plugins.modules.cloudflare_{module}").main
    result = run_module(main, **{"api_url": cloudflare.url, "api_token": TOKEN, **options})
    assert result.get("failed"), result
    assert re.search(message, result["msg"], re.DOTALL), result["msg"]
    assert not cloudflare.writes()
    assert len(result["msg"].splitlines()) == 1
