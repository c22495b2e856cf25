# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.kitestacks.homelab.plugins.module_utils import _cloudflare_dns as dns
from ansible_collections.kitestacks.homelab.plugins.modules import cloudflare_dns_records
from ansible_collections.kitestacks.homelab.tests.fakes._server import Server
from ansible_collections.kitestacks.homelab.tests.fakes.cloudflare import TOKEN, CloudflareApi
from hypothesis import given, settings
from hypothesis import strategies as st

from ._module import run_module

ZONE = "example.com"
OURS = "[kitestacks]"


def go(server, records, **options):
    return run_module(
        cloudflare_dns_records.main,
        **{"api_url": server.url, "api_token": TOKEN, "zone": ZONE, "records": records, **options},
    )


def numbered(count):
    return [{"name": f"host{n}", "type": "A", "content": f"192.0.{n // 250}.{n % 250 + 1}"} for n in range(count)]


def actions(result):
    return {line["key"]: line["action"] for line in result["results"]}


# How many requests.


def test_a_first_run_of_100_records_takes_3_requests_and_the_next_2(cloudflare):
    first = go(cloudflare, numbered(100))
    assert first["stats"] == {"requests": 3, "retries": 0, "created": 100, "updated": 0, "deleted": 0, "unchanged": 0}
    assert (len(cloudflare.calls), cloudflare.connections) == (3, 1)
    cloudflare.reset()
    second = go(cloudflare, numbered(100))
    assert not second["changed"]
    assert (len(cloudflare.calls), cloudflare.connections, cloudflare.writes()) == (2, 1, [])


def test_3000_records_take_less_than_20_requests(cloudflare):
    cloudflare.contract = None  # checking 3,000 records takes longer than the rest
    result = go(cloudflare, numbered(3000))
    assert result["stats"]["created"] == 3000
    assert len(cloudflare.calls) == 17
    assert all(len(call.body["posts"]) <= 200 for call in cloudflare.writes())


@pytest.mark.parametrize(("count", "requests"), [(4999, 2), (5000, 2), (5001, 3), (10001, 4)])
def test_a_run_without_changes_takes_one_request_for_each_5000_records(count, requests):
    api = CloudflareApi([ZONE])
    template = api.add_record(ZONE, name="x", type="A", content="192.0.2.1")
    store = api.records[api.zone_id(ZONE)]
    store.clear()
    for number in range(count):
        store[str(number)] = {**template, "id": str(number), "name": f"h{number}.{ZONE}"}
    with Server(api) as server:
        result = go(server, [{"name": "h7", "type": "A", "content": "192.0.2.1"}], owner="")
        assert not result["changed"]
        assert len(server.calls) == requests


def test_pages_are_read_to_the_end_although_the_server_gives_fewer_than_asked(cloudflare, monkeypatch):
    for number in range(7):
        cloudflare.service.add_record(ZONE, name=f"h{number}", type="A", content="192.0.2.1")
    monkeypatch.setattr(dns, "RECORD", dns.RecordKind(**{**vars(dns.RECORD), "query": {"per_page": 2}}))
    result = go(
        cloudflare, [{"name": f"h{number}", "type": "A", "content": "192.0.2.1"} for number in range(7)], owner=""
    )
    assert not result["changed"]
    assert [call.query.get("page") for call in cloudflare.calls if "dns_records" in call.path] == [None, "2", "3", "4"]


# What is the same record.


EVERY_TYPE = [
    {"name": "a", "type": "A", "content": "192.0.2.1", "ttl": 300, "comment": "Home"},
    {"name": "aaaa", "type": "AAAA", "content": "2001:DB8:0:0::1", "proxied": True},
    {"name": "@", "type": "CNAME", "content": "Tunnel.Example.NET.", "proxied": True},
    {"name": "Bücher", "type": "CNAME", "content": "bücher.example.net"},
    {"name": "*", "type": "CNAME", "content": "wild.example.net"},
    {"name": "@", "type": "MX", "content": "Mail.example.net.", "priority": 10},
    {"name": "sub.example.com.", "type": "NS", "content": "ns1.example.net"},
    {"name": "ptr", "type": "PTR", "content": "host.example.net"},
    {"name": "@", "type": "TXT", "content": "v=spf1 mx -all"},
    {"name": "quoted", "type": "TXT", "content": '"one" "two"'},
    {"name": "long._domainkey", "type": "TXT", "content": "k=rsa; p=" + "A" * 400},
    {"name": "odd", "type": "TXT", "content": 'say "hi" \\ and ü'},
    {"name": "@", "type": "CAA", "data": {"flags": 0, "tag": "issue", "value": "ca.example.net"}},
    {
        "name": "_sip._tcp",
        "type": "SRV",
        "data": {"priority": "1", "weight": 2, "port": 5060, "target": "Sip.example.com."},
    },
    {
        "name": "_443._tcp.www.example.com",
        "type": "TLSA",
        "data": {"usage": 3, "selector": 1, "matching_type": 1, "certificate": "ABCD EF"},
    },
    {"name": "ssh", "type": "SSHFP", "data": {"algorithm": 4, "type": 2, "fingerprint": "AB12"}},
    {"name": "ds", "type": "DS", "data": {"key_tag": 1, "algorithm": 13, "digest_type": 2, "digest": "AB"}},
    {"name": "svc", "type": "HTTPS", "data": {"priority": 1, "target": ".", "value": 'alpn="h2"'}},
    {"name": "uri", "type": "URI", "priority": 5, "data": {"weight": 1, "target": "https://example.com/"}},
    {
        "name": "naptr",
        "type": "NAPTR",
        "data": {
            "order": 1,
            "preference": 2,
            "flags": "U",
            "service": "E2U+sip",
            "regex": "!^.*$!sip:a@b!",
            "replacement": ".",
        },
    },
]


@pytest.mark.parametrize("quote_txt", [True, False])
def test_every_type_is_created_once_and_then_unchanged(quote_txt):
    with Server(CloudflareApi([ZONE], quote_txt=quote_txt)) as server:
        first = go(server, EVERY_TYPE)
        assert first["stats"]["created"] == len(EVERY_TYPE)
        second = go(server, EVERY_TYPE)
        assert not second["changed"], second["diff"]


def test_every_type_is_sent_as_the_contract_has_it(cloudflare):
    assert go(cloudflare, EVERY_TYPE)["stats"]["created"] == len(EVERY_TYPE)
    names = {record["name"] for record in cloudflare.service.zone_records(ZONE)}
    assert {"xn--bcher-kva.example.com", "*.example.com", "sub.example.com", "_sip._tcp.example.com"} <= names


def test_extra_keys_that_older_records_have_in_their_data_do_not_matter(cloudflare):
    data = {"priority": 1, "weight": 2, "port": 5060, "target": "sip.example.com"}
    cloudflare.service.add_record(
        ZONE,
        name="_sip._tcp",
        type="SRV",
        data={**data, "name": ZONE, "proto": "_tcp", "service": "_sip"},
        comment=OURS,
    )
    assert not go(cloudflare, [{"name": "_sip._tcp", "type": "SRV", "data": data}])["changed"]


def test_a_weight_changes_in_place(cloudflare):
    data = {"priority": 1, "weight": 2, "port": 5060, "target": "sip.example.com"}
    go(cloudflare, [{"name": "_sip._tcp", "type": "SRV", "data": data}])
    result = go(cloudflare, [{"name": "_sip._tcp", "type": "SRV", "data": {**data, "weight": 9}}])
    assert [(line["action"], line["changes"]) for line in result["results"]] == [("updated", ["data.weight"])]
    assert len(cloudflare.service.zone_records(ZONE)) == 1


def test_what_is_not_stated_stays(cloudflare):
    cloudflare.service.add_record(ZONE, name="www", type="CNAME", content="a.example.net", ttl=600, comment="by hand")
    result = go(cloudflare, [{"name": "www", "type": "CNAME", "content": "b.example.net"}])
    record = cloudflare.service.zone_records(ZONE)[0]
    assert (record["content"], record["ttl"], record["comment"]) == ("b.example.net", 600, f"by hand {OURS}")
    assert result["results"][0]["changes"] == ["content", "comment"]


def test_proxied_means_ttl_1_and_back(cloudflare):
    go(cloudflare, [{"name": "www", "type": "A", "content": "192.0.2.1", "ttl": 300}])
    go(cloudflare, [{"name": "www", "type": "A", "content": "192.0.2.1", "proxied": True}])
    record = cloudflare.service.zone_records(ZONE)[0]
    assert (record["proxied"], record["ttl"]) == (True, 1)
    assert not go(cloudflare, [{"name": "www", "type": "A", "content": "192.0.2.1", "proxied": True}])["changed"]
    go(cloudflare, [{"name": "www", "type": "A", "content": "192.0.2.1", "proxied": False, "ttl": 120}])
    record = cloudflare.service.zone_records(ZONE)[0]
    assert (record["proxied"], record["ttl"]) == (False, 120)


def test_a_ttl_does_not_take_the_proxy_away(cloudflare):
    go(cloudflare, [{"name": "www", "type": "A", "content": "192.0.2.1", "proxied": True}])
    refused = go(cloudflare, [{"name": "www", "type": "A", "content": "192.0.2.1", "ttl": 300}])
    assert "records (www.example.com A 192.0.2.1).ttl: the record is proxied" in refused["msg"]


def test_an_address_of_ours_changes_in_place_and_a_foreign_one_stays(cloudflare):
    go(cloudflare, [{"name": "ours", "type": "A", "content": "192.0.2.1"}])
    cloudflare.service.add_record(ZONE, name="theirs", type="A", content="192.0.2.1")
    result = go(cloudflare, [{"name": name, "type": "A", "content": "192.0.2.2"} for name in ("ours", "theirs")])
    assert actions(result) == {"ours.example.com A 192.0.2.2": "updated", "theirs.example.com A 192.0.2.2": "created"}


def test_texts_of_other_tasks_are_left_alone(cloudflare):
    go(cloudflare, [{"name": "@", "type": "TXT", "content": "v=spf1 -all"}])
    result = go(cloudflare, [{"name": "@", "type": "TXT", "content": "verification=1"}])
    assert result["stats"]["created"] == 1
    assert len(cloudflare.service.zone_records(ZONE)) == 2


# Changes of type, and what cannot stand beside each other.


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"type": "A", "content": "192.0.2.1"}, {"type": "CNAME", "content": "x.example.net"}),
        ({"type": "CNAME", "content": "x.example.net"}, {"type": "AAAA", "content": "2001:db8::1"}),
    ],
)
def test_a_change_of_type_is_deletion_and_creation_in_one_batch(cloudflare, old, new):
    go(cloudflare, [{"name": "www", **old}])
    cloudflare.reset()
    result = go(cloudflare, [{"name": "www", **new}])
    assert (result["stats"]["deleted"], result["stats"]["created"]) == (1, 1)
    assert [sorted(call.body) for call in cloudflare.writes()] == [["deletes", "posts"]]
    assert [record["type"] for record in cloudflare.service.zone_records(ZONE)] == [new["type"]]


def test_changes_of_one_name_stay_in_one_batch(cloudflare):
    go(cloudflare, [{"name": f"n{n}", "type": "A", "content": "192.0.2.1"} for n in range(5)])
    cloudflare.reset()
    records = [{"name": f"n{n}", "type": "CNAME", "content": "x.example.net"} for n in range(5)]
    result = go(cloudflare, records, batch_size=3)
    assert not result.get("failed"), result
    assert [(len(call.body["deletes"]), len(call.body["posts"])) for call in cloudflare.writes()] == [(1, 1)] * 5


def test_a_foreign_record_in_the_way_is_named_and_only_replaced_when_that_is_said(cloudflare):
    cloudflare.service.add_record(ZONE, name="www", type="A", content="192.0.2.7")
    records = [{"name": "www", "type": "CNAME", "content": "x.example.net"}]
    refused = go(cloudflare, records)
    assert refused["failed"]
    assert "records[0] (www.example.com CNAME)" in refused["msg"]
    assert "www.example.com A 192.0.2.7" in refused["msg"]
    assert not cloudflare.writes()
    assert go(cloudflare, records, replace_conflicting=True)["stats"]["deleted"] == 1


@pytest.mark.usefixtures("waits")
def test_a_ghost_of_a_deleted_record_is_waited_for(cloudflare):
    cloudflare.service.haunt("www.example.com", 3)
    result = go(cloudflare, [{"name": "www", "type": "CNAME", "content": "x.example.net"}])
    assert result["changed"]
    assert result["stats"]["retries"] == 3


@pytest.mark.usefixtures("waits")
def test_a_clash_that_stays_fails_with_the_vendors_words(cloudflare):
    cloudflare.service.haunt("www.example.com", 1000)
    result = go(cloudflare, [{"name": "www", "type": "CNAME", "content": "x.example.net"}])
    assert result["failed"]
    assert "code 81053: An A, AAAA, or CNAME record with that host already exists." in result["msg"]
    assert result["failed_items"][0]["key"] == "www.example.com CNAME"
    assert result["failed_items"][0]["error"]["status"] == 400


# Deleting.


def test_absent_deletes_by_content_or_all_of_a_type(cloudflare):
    for content in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
        cloudflare.service.add_record(ZONE, name="www", type="A", content=content)
    gone = go(cloudflare, [{"name": "www", "type": "A", "content": "192.0.2.2", "state": "absent"}])
    assert gone["stats"]["deleted"] == 1
    gone = go(cloudflare, [{"name": "www", "type": "A", "state": "absent"}])
    assert gone["stats"]["deleted"] == 2
    assert not go(cloudflare, [{"name": "www", "type": "A", "state": "absent"}])["changed"]


def test_an_absent_caa_record_is_found(cloudflare):
    data = {"flags": 128, "tag": "issue", "value": "ca.example.net"}
    go(cloudflare, [{"name": "@", "type": "CAA", "data": data}])
    assert go(cloudflare, [{"name": "@", "type": "CAA", "data": data, "state": "absent"}])["stats"]["deleted"] == 1


def fill(api):
    add = api.add_record
    add(ZONE, name="ours", type="A", content="192.0.2.1", comment=f"Home {OURS}")
    add(ZONE, name="kept", type="TXT", content="x", comment=OURS)
    add(ZONE, name="foreign", type="A", content="192.0.2.1", comment="kitestacks is great")
    add(ZONE, name="other", type="A", content="192.0.2.1", comment="[somebody]")
    add(ZONE, name="sub", type="NS", content="ns.example.net", comment=OURS)
    add(ZONE, name="_acme-challenge", type="TXT", content="x", comment=OURS)
    add(ZONE, name="argo", type="A", content="192.0.2.1", comment=OURS)["meta"] = {"managed_by_argo_tunnel": True}


WWW = [{"name": "www", "type": "A", "content": "192.0.2.1"}]


def test_purge_deletes_what_carries_our_marker_and_nothing_else(cloudflare):
    fill(cloudflare.service)
    planned = go(cloudflare, WWW, purge=True, check=True)
    assert not cloudflare.writes()
    deleted = {key for key, action in actions(planned).items() if action == "deleted"}
    assert deleted == {"ours.example.com A 192.0.2.1", "kept.example.com TXT x"}
    assert "ours.example.com" in planned["diff"]["before"]
    done = go(cloudflare, WWW, purge=True)
    assert actions(done) == actions(planned)
    names = {record["name"].split(".")[0] for record in cloudflare.service.zone_records(ZONE)}
    assert names == {"foreign", "other", "sub", "_acme-challenge", "argo", "www"}


@pytest.mark.parametrize(
    ("limits", "deleted"),
    [({"types": ["TXT"]}, {"kept"}), ({"names": ["o*.example.com"]}, {"ours"}), ({"types": ["MX"]}, set())],
)
def test_purge_can_be_narrowed(cloudflare, limits, deleted):
    fill(cloudflare.service)
    done = go(cloudflare, WWW, purge=True, purge_filter=limits)
    assert {key.split(".")[0] for key, action in actions(done).items() if action == "deleted"} == deleted


def test_purge_of_everything_has_to_be_meant(cloudflare):
    fill(cloudflare.service)
    refused = go(cloudflare, [], purge=True)
    assert refused["failed"]
    assert "purge_allow_empty" in refused["msg"]
    assert not cloudflare.calls
    assert go(cloudflare, [], purge=True, purge_allow_empty=True)["stats"]["deleted"] == 2


# Check mode, results, failures.


def test_check_mode_makes_the_same_plan_and_writes_nothing(cloudflare):
    fill(cloudflare.service)
    records = [
        *WWW,
        {"name": "ours", "type": "CNAME", "content": "x.example.net"},
        {"name": "kept", "type": "TXT", "content": "x", "ttl": 60},
    ]
    planned = go(cloudflare, records, purge=True, check=True)
    assert not cloudflare.writes()
    done = go(cloudflare, records, purge=True)
    assert planned["diff"] == done["diff"]
    assert planned["changed"]
    assert actions(planned) == actions(done)
    without = ("requests", "retries")
    assert {k: v for k, v in planned["stats"].items() if k not in without} == {
        k: v for k, v in done["stats"].items() if k not in without
    }
    assert all(line["id"] for line in done["results"])


def test_a_marker_of_its_own_for_each_owner(cloudflare):
    go(cloudflare, WWW, owner="blue")
    go(cloudflare, [{"name": "x", "type": "A", "content": "192.0.2.1"}], owner="green", purge=True)
    assert {record["comment"] for record in cloudflare.service.zone_records(ZONE)} == {"[blue]", "[green]"}


def test_without_a_marker_comments_are_left_alone(cloudflare):
    go(cloudflare, WWW, owner="")
    assert cloudflare.service.zone_records(ZONE)[0]["comment"] is None


def test_a_missing_permission_and_a_wrong_token_are_said(cloudflare):
    cloudflare.service.tokens["reader"] = {"Zone Read", "DNS Read"}
    refused = go(cloudflare, WWW, api_token="reader")
    assert refused["failed_items"][0]["error"]["status"] == 403
    wrong = go(cloudflare, WWW, api_token="wrong")
    assert "The API token is not valid: check api_token" in wrong["msg"]
    assert "wrong" not in wrong["msg"].replace("wrong token", "")


def test_a_wrong_base_url_is_no_empty_zone(cloudflare):
    result = go(cloudflare, WWW, api_url=cloudflare.origin + "/somewhere")
    assert result["failed"]
    assert "HTTP 404" in result["msg"]


def test_an_answer_that_is_no_cloudflare_document_is_refused(cloudflare):
    cloudflare.fault(status=200, body="<html>captive portal</html>")
    result = go(cloudflare, WWW)
    assert "GET /zones: HTTP 200: the answer is no document of the Cloudflare API" in result["msg"]


def test_a_zone_that_is_only_claimed_in_another_account_is_not_taken(cloudflare):
    other = cloudflare.service.add_zone(ZONE)
    assert "in several accounts" in go(cloudflare, WWW)["msg"]
    cloudflare.service.zones[other]["status"] = "pending"
    assert go(cloudflare, WWW)["zone_id"] != other


# Pure parts.


@given(st.text(min_size=1, max_size=700))
@settings(max_examples=100, deadline=None)
def test_text_survives_quoting(text):
    quoted = dns.quote(text)
    assert dns.unquote(quoted) == text
    assert dns.canonical_content("TXT", quoted) == text
    parts = quoted[1:-1].split('" "')
    assert all(len(part.replace("\\\\", "\\").replace('\\"', '"').encode()) <= 255 for part in parts)


def test_octal_escapes_are_read():
    assert dns.unquote(r'"caf\195"') == "caf\xc3"
    assert dns.unquote('"half') == '"half'


RECORDS = st.lists(
    st.builds(
        lambda name, number, ttl: {"name": name, "type": "A", "content": f"192.0.2.{number}", **ttl},
        st.sampled_from(["a", "b", "c", "@"]),
        st.integers(1, 4),
        st.sampled_from([{}, {"ttl": 300, "proxied": False}, {"proxied": True}, {"comment": "x"}]),
    ),
    max_size=8,
    unique_by=lambda record: (record["name"], record["content"]),
)


@given(RECORDS, RECORDS)
@settings(max_examples=40, deadline=None)
def test_from_any_set_to_any_set_in_one_run(first, second):
    with Server(CloudflareApi([ZONE])) as server:
        go(server, first, purge=True, purge_allow_empty=True)
        done = go(server, second, purge=True, purge_allow_empty=True)
        assert not done.get("failed"), done
        again = go(server, list(reversed(second)), purge=True, purge_allow_empty=True)
        assert not again["changed"]
        assert len(server.service.zone_records(ZONE)) == len(second)
