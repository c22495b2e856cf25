# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in answers as the recorded Authentik did: same statuses, same keys, same types, same error bodies."""

from __future__ import annotations

import json
import re
import typing as t
import urllib.parse

import pytest
from ansible_collections.kitestacks.homelab.tests.fakes._contract import folder
from ansible_collections.kitestacks.homelab.tests.fakes._server import Reply, Request
from ansible_collections.kitestacks.homelab.tests.fakes.authentik import ADMIN_TOKEN, AuthentikApi, contract

RECORDED = folder() / "authentik-2026.2.2-exchanges.jsonl"
# What the modules do not use and the stand-in does not serve.
NOT_SERVED = re.compile(
    r"/(admin/system|events|providers/saml|core/transactional|core/brands/current|crypto/certificatekeypairs/[^?]"
    r"|no/such|core/groups$)|/(preview_user|check_access|used_by)/|policies/expression"
)
CASES_THAT_DIFFER = {
    "126-blueprints-available": "the worker was slow; the stand-in has none",
    "230-outpost-delete": "a race of the server with its worker; test_authentik_traps plays it",
    "136-delete-transactional-app": "made by a request that is not served",
    "137-tx-provider-left": "made by a request that is not served",
    "138-tx-provider-delete": "made by a request that is not served",
}
HEADERS = {"authorization": f"Bearer {ADMIN_TOKEN}", "content-type": "application/json"}


def call(api: AuthentikApi, method: str, path: str, body: t.Any = None, **headers: str) -> Reply:
    path, _mark, query = path.partition("?")
    found = dict(urllib.parse.parse_qsl(query))
    return api.handle(Request(method, path, found, {**HEADERS, **headers}, body))


def exchanges() -> list[dict[str, t.Any]]:
    if not RECORDED.is_file():
        print("no recorded exchanges in KITE_CONTRACTS or ../shared/contracts: the replay is off")
        return []
    return [json.loads(line) for line in RECORDED.read_text().splitlines()]


class Replay:
    """Sends recorded requests to the stand-in, its own ids in place of the recorded ones."""

    def __init__(self, api: AuthentikApi) -> None:
        self.api = api
        self.api.add_policy("yard-expr")
        self.api.add("users", username="yard-plain", name="plain")
        plain = self.api.user("yard-plain")
        self.api.add("tokens", identifier="plain", user=plain["pk"], key="plain-key", expiring=False)
        self.texts: dict[str, str] = {}
        self.numbers: dict[tuple[str, int], int] = {}

    def send(self, recorded: dict[str, t.Any]) -> Reply:
        request = recorded["request"]
        path = request["path"].removeprefix("/api/v3")
        for old, new in self.texts.items():
            path = path.replace(old, new)
        path = re.sub(r"(/providers/\w+/)(\d+)/", lambda m: f"{m[1]}{self.number('provider', m[2])}/", path)
        path = re.sub(r"(/core/users/)(\d+)/", lambda m: f"{m[1]}{self.number('user', m[2])}/", path)
        path = re.sub(r"(object_pk=)(\d+)", lambda m: f"{m[1]}{self.number('provider', m[2])}", path)
        headers = {name.lower(): value for name, value in request["headers"].items()}
        token = ADMIN_TOKEN if "unprivileged" not in recorded["name"] else "plain-key"
        if headers.get("authorization") == "Bearer <token>":
            headers["authorization"] = f"Bearer {token}"
        path, _mark, query = path.partition("?")
        found = dict(urllib.parse.parse_qsl(query))
        reply = self.api.handle(Request(request["method"], path, found, headers, self.body(request["body"], path)))
        self.learn(recorded["response"]["body"], reply.body, path)
        return reply

    def number(self, space: str, old: str | int) -> int:
        return self.numbers.get((space, int(old)), int(old))

    def body(self, value: t.Any, path: str, key: str = "") -> t.Any:
        if isinstance(value, dict):
            return {name: self.body(entry, path, name) for name, entry in value.items()}
        if isinstance(value, list):
            return [self.body(entry, path, key) for entry in value]
        if isinstance(value, str):
            if key == "object_pk":
                return str(self.number("provider", value))
            return self.texts.get(value, value)
        if isinstance(value, int) and not isinstance(value, bool):
            if key in ("provider", "providers"):
                return self.number("provider", value)
            if key == "user" or (key == "pk" and path.endswith("_user/")):
                return self.number("user", value)
        return value

    def learn(self, old: t.Any, new: t.Any, path: str, key: str = "") -> None:
        """Note which of our ids stands for which recorded one."""
        if isinstance(old, dict) and isinstance(new, dict):
            for name in old.keys() & new.keys():
                self.learn(old[name], new[name], path, name)
        elif isinstance(old, list) and isinstance(new, list):
            for one, other in pairs(old, new):
                self.learn(one, other, path, key)
        elif isinstance(old, str) and isinstance(new, str):
            if re.fullmatch(r"(ak-outpost-)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(-api)?", old):
                self.texts[old] = new
        elif isinstance(old, int) and not isinstance(old, bool) and key in ("pk", "user_pk"):
            space = "provider" if "/providers/" in path else "user"
            self.numbers[space, old] = new


def pairs(old: list[t.Any], new: list[t.Any]) -> t.Iterator[tuple[t.Any, t.Any]]:
    """Yield entries that are the same object: by a name of theirs, or because there is only one."""
    if len(old) == len(new) == 1:
        yield old[0], new[0]
        return
    for name in ("managed", "slug", "username", "name"):
        ours = {entry[name]: entry for entry in new if isinstance(entry, dict) and entry.get(name)}
        known = [entry for entry in old if isinstance(entry, dict) and entry.get(name) in ours]
        if known:
            yield from ((entry, ours[entry[name]]) for entry in known)
            return


def shape(value: t.Any) -> t.Any:
    """Return keys and types; lists by their first entry; null and text are the same where either was seen."""
    if isinstance(value, dict):
        return {name: shape(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def differences(old: t.Any, new: t.Any, path: str = "") -> t.Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        if path.endswith((".attributes", ".context", ".config", ".metadata", ".labels")):
            return
        for name in sorted(old.keys() ^ new.keys()):
            yield f"{path}.{name}: {'missing' if name in old else 'not in the recording'}"
        for name in old.keys() & new.keys():
            yield from differences(old[name], new[name], f"{path}.{name}")
    elif isinstance(old, list) and isinstance(new, list):
        if old and new:
            for one, other in list(pairs(old, new)) or [(old[0], new[0])]:
                yield from differences(one, other, f"{path}[]")
    elif shape(old) != shape(new) and None not in (old, new):
        yield f"{path}: {shape(new)} instead of {shape(old)}"


def check_recorded_exchanges(api: AuthentikApi) -> None:
    """Send every recorded request and compare the answers; skip where there are none."""
    recorded = exchanges()
    if not recorded:
        pytest.skip("no recorded exchanges at hand; set KITE_CONTRACTS to the folder that holds them")
    replay, wrong, compared = Replay(api), [], 0
    for exchange in recorded:
        name, answer = exchange["name"], exchange["response"]
        if NOT_SERVED.search(exchange["request"]["path"]) or CASES_THAT_DIFFER.get(name):
            continue
        reply = replay.send(exchange)
        compared += 1
        if reply.status != answer["status"]:
            wrong.append(f"{name}: status {reply.status} instead of {answer['status']}: {reply.body}")
            continue
        if isinstance(answer["body"], dict) and "_non_json" in answer["body"]:
            continue
        if answer["status"] >= 400 and answer["body"] is not None and "parse" not in str(answer["body"]):
            mine, theirs = (json.dumps(body, sort_keys=True) for body in (reply.body, answer["body"]))
            if re.sub(r'\\"[^"]+\\"|\(.*?\)', "", mine) != re.sub(r'\\"[^"]+\\"|\(.*?\)', "", theirs):
                wrong.append(f"{name}: {mine} instead of {theirs}")
        wrong += [f"{name}: {line}" for line in differences(answer["body"], reply.body)]
    assert not wrong, "\n".join(wrong)
    assert compared >= 180
    print(f"{compared} of {len(recorded)} recorded exchanges compared")


def test_recorded_exchanges_have_the_same_shape():
    check_recorded_exchanges(AuthentikApi())


@pytest.fixture
def api() -> AuthentikApi:
    return AuthentikApi()


def test_every_answer_of_a_fresh_server_keeps_the_contract(api):
    document = contract()
    if document is None:
        print("contract check off")
    for path in (
        "/admin/version/",
        "/core/applications/",
        "/core/brands/",
        "/core/groups/",
        "/core/tokens/",
        "/core/users/",
        "/core/users/me/",
        "/crypto/certificatekeypairs/",
        "/flows/instances/",
        "/outposts/instances/",
        "/policies/bindings/",
        "/propertymappings/provider/scope/",
        "/providers/all/",
        "/root/config/",
    ):
        reply = call(api, "GET", path)
        assert reply.status == 200
        assert document is None or document.check_response("GET", path, reply.status, reply.body) == []


def test_pages_have_numbers_and_hold_a_hundred_at_most(api):
    for number in range(250):
        api.add("groups", name=f"group-{number}")
    first = call(api, "GET", "/core/groups/?page_size=500").body
    assert (len(first["results"]), first["pagination"]["next"], first["pagination"]["total_pages"]) == (100, 2, 3)
    assert len(call(api, "GET", "/core/groups/?page_size=0").body["results"]) == 20
    assert call(api, "GET", "/core/groups/?page_size=100&page=4").body == {"detail": "Invalid page."}


def test_an_unknown_field_is_ignored_without_a_word(api):
    reply = call(api, "POST", "/core/groups/", {"name": "g", "parent": "x", "colour": "red"})
    assert reply.status == 201
    assert "parent" not in reply.body


@pytest.mark.parametrize(("version", "known"), [("2026.2.2", False), ("2026.5.6", True), ("2026.8.4", True)])
def test_grant_types_exist_from_2026_5_on(version, known):
    api = AuthentikApi(version_string=version)
    flow = api.find("flows", slug="default-provider-invalidation-flow")["pk"]
    body = {"name": "p", "authorization_flow": flow, "invalidation_flow": flow, "redirect_uris": []}
    reply = call(api, "POST", "/providers/oauth2/", {**body, "grant_types": ["authorization_code"]})
    assert reply.body.get("grant_types") == (["authorization_code"] if known else None)


def test_a_blueprint_is_applied_later(api):
    api.quirks.blueprint_polls = 2
    body = {"name": "b", "content": "version: 1\nentries: []\n"}
    made = call(api, "POST", "/managed/blueprints/", body).body
    path = f"/managed/blueprints/{made['pk']}/"
    call(api, "POST", f"{path}apply/")
    states = [call(api, "GET", path).body["status"] for _number in range(3)]
    assert states == ["unknown", "unknown", "successful"]
