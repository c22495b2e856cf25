# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import copy

import pytest
import yaml
from ansible_collections.kitestacks.homelab.plugins.module_utils._reconcile import (
    REDACTED,
    REDACTED_CHANGED,
    Action,
    Kind,
    PlanError,
    Ref,
    changes,
    compare,
    diff,
    fixed_changes,
    gate,
    ids_of,
    plan,
    resolve,
    sequence,
    to_yaml,
    writable,
)
from hypothesis import given, settings
from hypothesis import strategies as st

KIND = Kind(
    "thing",
    "/things",
    read_only=frozenset({"created", "config.url"}),
    write_only=frozenset({"password"}),
    create_only=frozenset({"source"}),
    secret=frozenset({"password", "config.secret"}),
    unordered=frozenset({"tags", "rules"}),
    exact=frozenset({"rules", "steps"}),
    defaults={"color": "red", "config.size": 3},
    normalise={"host": str.lower},
    since={"grants": (2026, 5)},
)


@pytest.mark.parametrize(
    ("desired", "current", "expected"),
    [
        ({}, {"a": 1}, []),
        ({"a": 1}, {"a": 1, "b": 2}, []),
        ({"a": 1}, {"a": 2}, ["a"]),
        ({"a": 1}, {"a": 1.0}, []),
        ({"a": 1}, {"a": True}, ["a"]),
        ({"a": False}, {"a": 0}, ["a"]),
        ({"a": False}, {}, ["a"]),
        ({"a": None}, {"a": ""}, []),
        ({"a": None}, {"a": "x"}, ["a"]),
        ({"a": ""}, {}, []),
        ({"a": []}, {"a": None}, []),
        ({"a": {}}, {"a": None}, []),
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, []),
        ({"a": {"b": 1, "c": 3}}, {"a": {"b": 1, "c": 2}}, ["a.c"]),
        ({"a": {"b": 1}}, {"a": "text"}, ["a"]),
        ({"a": [1, 2]}, {"a": [2, 1]}, ["a"]),
        ({"a": [1, 2]}, {"a": [1, 2, 3]}, ["a"]),
        ({"a": [{"x": 1}]}, {"a": [{"x": 1, "filled": True}]}, []),
        ({"tags": ["a", "b"]}, {"tags": ["b", "a"]}, []),
        ({"tags": ["a", "a"]}, {"tags": ["a", "b"]}, ["tags"]),
        ({"rules": [{"e": {}}]}, {"rules": [{"m": {"x": 1}}]}, ["rules"]),
        ({"rules": [{"a": 1}, {"b": 2}]}, {"rules": [{"b": 2}, {"a": 1}]}, []),
        ({"steps": [{"a": 1}]}, {"steps": [{"a": 1, "b": 2}]}, ["steps"]),
        ({"color": "red"}, {}, []),
        ({"color": "blue"}, {}, ["color"]),
        ({"config": {"size": 3}}, {"config": {}}, []),
        ({"host": "A.Example"}, {"host": "a.example"}, []),
        ({"password": "new"}, {}, []),
        ({"source": "x"}, {"source": "y"}, []),
        ({"created": "x"}, {"created": "y"}, []),
        ({"config": {"url": "x"}}, {"config": {"url": "y"}}, []),
        ({"a": Ref("other", "n")}, {"a": "id"}, ["a"]),
    ],
)
def test_only_what_is_declared_is_compared(desired, current, expected):
    assert changes(KIND, desired, current) == expected


def test_a_plan_has_one_action_for_each_object():
    live = [{"id": 1, "name": "same", "a": 1}, {"id": 2, "name": "changed", "a": 1}, {"id": 3, "name": "gone"}]
    live += [{"id": 4, "name": "ours"}, {"id": 5, "name": "theirs"}]
    desired = [{"name": "same", "a": 1}, {"name": "changed", "a": 2}, {"name": "new", "a": 3}]
    actions = plan(
        KIND, desired, live, absent=[{"name": "gone"}, {"name": "never"}], purge=lambda o: o["name"] == "ours"
    )
    assert [(action.key, action.action, action.id) for action in actions] == [
        ("same", "unchanged", 1),
        ("changed", "update", 2),
        ("new", "create", None),
        ("gone", "delete", 3),
        ("ours", "delete", 4),
    ]
    assert actions[1].body == {"a": 2}


@pytest.mark.parametrize(
    ("desired", "absent", "live", "message"),
    [
        ([{"name": "a"}, {"name": "b"}, {"name": "a"}], [], [], r"things: thing a is declared twice \(items 1, 3\)"),
        ([{"name": "a"}], [{"name": "a"}], [], r"declared twice \(items 1, 2\)"),
        ([{"name": "a"}], [], [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], r"more than once \(1, 2\)"),
    ],
)
def test_a_plan_that_is_not_clear_is_refused(desired, absent, live, message):
    with pytest.raises(PlanError, match=message):
        plan(KIND, desired, live, absent=absent, option="things")


def test_put_sends_the_whole_object_and_patch_what_changed():
    current = {"id": 1, "name": "n", "a": 1, "b": None, "keep": "x", "created": "then", "source": "s", "host": "H"}
    desired = {"name": "n", "a": 2, "source": "s"}
    assert compare(KIND, desired, current).body == {"a": 2}
    put = Kind(**{**vars_of(KIND), "update": "PUT"})
    assert compare(put, desired, current).body == {"name": "n", "a": 2, "keep": "x", "source": "s", "host": "h"}
    always = Kind(**{**vars_of(KIND), "always": frozenset({"name"})})
    assert compare(always, desired, current).body == {"name": "n", "a": 2}
    assert compare(KIND, desired, None).body == desired


def vars_of(kind):
    return {name: getattr(kind, name) for name in kind.__dataclass_fields__}


def test_what_is_fixed_at_creation_is_told():
    assert fixed_changes(KIND, {"source": "x"}, {"source": "y"}) == ["source"]
    assert fixed_changes(KIND, {"source": "x"}, {"source": "x"}) == []
    assert fixed_changes(KIND, {}, {"source": "x"}) == []


def test_references_become_ids_as_soon_as_they_are_known():
    document = {"flow": Ref("flow", "login"), "list": [Ref("flow", "new")], "n": {"x": Ref("flow", "login")}}
    ids = ids_of(Kind("flow"), [{"name": "login", "id": "uuid"}])
    found = resolve(document, ids)
    assert found == {"flow": "uuid", "list": [Ref("flow", "new")], "n": {"x": "uuid"}}
    assert resolve(found, {("flow", "new"): 7})["list"] == [7]
    assert str(Ref("flow", "new")) == "<id of flow new>"


def test_deletions_come_last_and_users_before_what_they_use():
    first = [Action(KIND, "create", "a"), Action(KIND, "delete", "b")]
    second = [Action(KIND, "delete", "c"), Action(KIND, "update", "d")]
    assert [action.key for action in sequence(first, second)] == ["a", "d", "c", "b"]


def test_fields_of_later_versions_are_left_out():
    assert gate(KIND, {"grants": [1], "a": 1}, (2026, 2)) == {"a": 1}
    assert gate(KIND, {"grants": [1], "a": 1}, (2026, 5)) == {"grants": [1], "a": 1}


def test_a_kind_has_its_path_filled_in():
    assert Kind("x", "/zones/{zone}/x").at(zone="z").path == "/zones/z/x"


def test_the_diff_shows_what_changes_and_no_secret():
    live = [{"id": 1, "name": "n", "a": 1, "password": "hidden", "config": {"secret": "old", "size": 5}, "x": 1}]
    live += [{"id": 2, "name": "same", "a": 1}, {"id": 3, "name": "gone", "created": "then", "color": "", "a": 4}]
    desired = [
        {"name": "n", "a": 2, "password": "sesame", "config": {"secret": "new", "size": 5}},
        {"name": "same", "a": 1},
        {"name": "fresh", "ref": Ref("flow", "login"), "config": {"secret": "s"}, "tags": ["b", "a"]},
    ]
    shown = diff(plan(KIND, desired, live, absent=[{"name": "gone"}]))
    before, after = yaml.safe_load(shown["before"]), yaml.safe_load(shown["after"])
    assert before == {
        "thing": {
            "n": {"name": "n", "a": 1, "config": {"secret": REDACTED, "size": 5}},
            "gone": {"name": "gone", "a": 4},
        }
    }
    assert after["thing"]["n"]["config"] == {"secret": REDACTED_CHANGED, "size": 5}
    assert after["thing"]["fresh"] == {
        "name": "fresh",
        "ref": "<id of flow login>",
        "config": {"secret": REDACTED},
        "tags": ["a", "b"],
    }
    assert "same" not in before["thing"]
    for secret in ("sesame", "hidden", "old", "new"):
        assert secret not in shown["before"] + shown["after"]


def test_writable_leaves_out_what_the_server_sets():
    assert writable(KIND, {"id": 1, "created": "x", "password": "y", "a": None, "host": "H"}) == {"host": "h"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from("abcdefgh")},
        optional={
            "a": JSON,
            "tags": st.lists(st.text(max_size=3), max_size=3),
            "config": st.dictionaries(st.text(max_size=3), JSON, max_size=3),
        },
    ),
    max_size=8,
    unique_by=lambda item: item["name"],
)


@given(JSON)
@settings(max_examples=100, deadline=None)
def test_yaml_is_yaml(value):
    document = {"x": value}
    assert yaml.safe_load(to_yaml(document)) == document


@given(OBJECTS, OBJECTS)
@settings(max_examples=100, deadline=None)
def test_applying_a_plan_leaves_nothing_to_plan(desired, live):
    live = [{**item, "id": number} for number, item in enumerate(live)]
    before = copy.deepcopy((desired, live))
    actions = plan(KIND, desired, live, purge=lambda _item: True)
    assert (desired, live) == before
    store = {item["name"]: dict(item) for item in live}
    for action in actions:
        if action.action == "delete":
            del store[action.key]
        elif action.action == "create":
            store[action.key] = {"id": f"new {action.key}", **action.body}
        elif action.action == "update":
            merge(store[action.key], action.body)
    assert {action.action for action in plan(KIND, desired, list(store.values()), purge=lambda _item: True)} <= {
        "unchanged"
    }
    assert set(store) == {item["name"] for item in desired}


def merge(live, body):
    """Do as a server does: objects are merged, everything else is replaced."""
    for name, value in body.items():
        if isinstance(value, dict) and isinstance(live.get(name), dict):
            merge(live[name], value)
        else:
            live[name] = value


@given(OBJECTS, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_the_live_objects_does_not_matter(desired, random):
    live = [{**item, "id": item["name"], "a": 1} for item in desired]
    mixed = list(live)
    random.shuffle(mixed)
    assert plan(KIND, desired, live) == plan(KIND, desired, mixed)
