# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.kitestacks.homelab.plugins.module_utils._apply import Api, Step, apply, result, steps
from ansible_collections.kitestacks.homelab.plugins.module_utils._http import ApiError, Settings
from ansible_collections.kitestacks.homelab.plugins.module_utils._reconcile import Kind, Ref, plan
from ansible_collections.kitestacks.homelab.tests.fakes._server import Reply, Request, Server

KIND = Kind("thing", "/things")


class Things:
    """A collection without any uniqueness: what is posted twice is there twice."""

    base_path = "/v1"

    def __init__(self):
        self.things = {}

    def handle(self, request: Request) -> Reply:
        if request.method == "GET":
            return Reply(200, list(self.things.values()))
        if request.method == "POST":
            number = str(len(self.things) + 1)
            self.things[number] = {**request.body, "id": number}
            return Reply(201, self.things[number])
        number = request.path.rpartition("/")[2]
        if number not in self.things:
            return Reply(404, {})
        if request.method == "DELETE":
            return Reply(200, self.things.pop(number))
        self.things[number].update(request.body)
        return Reply(200, self.things[number])


class ThingsApi(Api):
    def list(self, path, query=None):
        return self.get(path, query)


@pytest.fixture
def server():
    with Server(Things()) as running:
        yield running


def go(server, desired, **options):
    api = ThingsApi(Settings(server.url, **options))
    actions = plan(KIND, desired, api.list("/things"), purge=lambda _thing: True)
    ids = {}
    outcome = apply(api, steps(api, actions, ids), ids)
    return api, actions, outcome, ids


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize("status", [None, 429, 500])
def test_a_creation_whose_answer_got_lost_is_not_made_twice(server, status):
    server.fault(status=status, when="after", write=1)
    api, actions, outcome, ids = go(server, [{"name": name} for name in "abc"])
    assert outcome.error is None
    assert [thing["name"] for thing in server.service.things.values()] == ["a", "b", "c"]
    assert server.count("POST") == 3
    found = result(api, actions, outcome)
    assert [line["id"] for line in found["results"]] == ["1", "2", "3"]
    assert ids == {("thing", "a"): "1", ("thing", "b"): "2", ("thing", "c"): "3"}
    assert found["stats"] == {"requests": 5, "retries": 1, "created": 3, "updated": 0, "deleted": 0, "unchanged": 0}


@pytest.mark.usefixtures("waits")
def test_a_creation_that_never_arrived_is_sent_again(server):
    server.fault(status=500, when="before", write=1)
    _api, _actions, outcome, _ids = go(server, [{"name": name} for name in "abc"])
    assert outcome.error is None
    assert len(server.service.things) == 3
    assert server.count("POST") == 4


def test_a_refusal_stops_the_plan_and_says_what_is_left(server, waits):
    server.fault(status=400, when="before", write=1)
    api, actions, outcome, _ids = go(server, [{"name": name} for name in "abcd"])
    assert [[action.key for action in part] for part in (outcome.applied, outcome.failed, outcome.pending)] == [
        ["a"],
        ["b"],
        ["c", "d"],
    ]
    assert not waits
    assert [line["key"] for line in result(api, actions, outcome)["results"]] == ["a"]


@pytest.mark.usefixtures("waits")
def test_when_nobody_can_tell_what_was_done_the_error_says_so(server):
    server.fault(status=None, when="after", write=0)
    server.fault(status=500, path="things", method="GET", times=99).seen = 0
    server.faults[-1].times = 0
    api = ThingsApi(Settings(server.url, retries=1))
    actions = plan(KIND, [{"name": "a"}], [])
    server.faults[-1].times = 99
    outcome = apply(api, steps(api, actions, {}), {})
    assert outcome.error.unknown_outcome
    assert outcome.error.method == "POST"
    assert outcome.failed == actions


@pytest.mark.usefixtures("waits")
def test_references_to_what_is_created_first_are_filled_in(server):
    api = ThingsApi(Settings(server.url))
    actions = plan(KIND, [{"name": "a"}, {"name": "b", "uses": Ref("thing", "a")}], [])
    ids = {}
    assert apply(api, steps(api, actions, ids), ids).error is None
    assert server.service.things["2"]["uses"] == "1"


@pytest.mark.usefixtures("waits")
def test_an_object_that_is_gone_already_counts_as_deleted(server):
    server.service.things = {"1": {"id": "1", "name": "a"}}
    server.fault(status=None, when="after", write=0)
    _api, actions, outcome, _ids = go(server, [])
    assert outcome.error is None
    assert [action.action for action in actions] == ["delete"]
    assert server.service.things == {}


def test_not_yet_is_waited_for_but_not_for_ever(server, waits):
    api = ThingsApi(Settings(server.url))
    actions = plan(KIND, [{"name": "a"}], [])
    tries = []

    def send(batch, until=99):
        tries.append(1)
        if len(tries) < until:
            raise ApiError("POST", "/things", 400, 81053, "still there")
        return [{"id": "1", "name": "a"} for _action in batch]

    outcome = apply(api, [Step(actions, lambda batch: send(batch, 4), frozenset({81053}))])
    assert outcome.error is None
    assert len(tries) == 4
    tries.clear()
    outcome = apply(api, [Step(actions, send, frozenset({81053}))])
    assert outcome.error.code == 81053
    assert 5 < len(tries) < 20
    assert sum(waits) < 60


def test_a_batch_is_repeated_only_for_what_was_not_done(server, waits):
    api = ThingsApi(Settings(server.url))
    actions = plan(KIND, [{"name": name} for name in "abc"], [])
    sent = []

    def send(batch):
        sent.append([action.key for action in batch])
        if len(sent) == 1:
            server.service.things["1"] = {"id": "1", "name": "a"}
            raise ApiError("POST", "/things", 502, None, "gateway", unknown_outcome=True)
        return [{"id": f"id {action.key}", "name": action.key} for action in batch]

    outcome = apply(api, [Step(actions, send)])
    assert sent == [["a", "b", "c"], ["b", "c"]]
    assert outcome.error is None
    assert [outcome.ids[id(action)] for action in actions] == ["1", "id b", "id c"]
    assert len(waits) == 1
