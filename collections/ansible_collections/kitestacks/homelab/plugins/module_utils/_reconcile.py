# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to change so that an API holds what was declared: pure functions, no request is made here.

A resource type is data, a `Kind`. `plan` matches declared objects with live ones and returns one `Action` for each;
`diff` shows them. Only what was declared is compared: servers add fields of their own in every release.
"""

from __future__ import annotations

import json
import re
import typing as t
from dataclasses import dataclass, field, replace

REDACTED = "********"
REDACTED_CHANGED = "******** (changed)"

# An object of an API, as its JSON document says it.
Document = t.Dict[str, t.Any]  # noqa: UP006 (evaluated on Python 3.9)
Documents = t.List[Document]  # noqa: UP006


class PlanError(Exception):
    """What was declared cannot be carried out; the message names the item and the option. Nothing was written."""


@dataclass(frozen=True)
class Ref:
    """A reference to another declared object, by name, in a declared document.

    It becomes the object's id as soon as that is known: when the plan is made if the object exists, else after it was
    created.
    """

    kind: str
    key: str

    def __str__(self) -> str:
        return f"<id of {self.kind} {self.key}>"


@dataclass(frozen=True)
class Kind:
    """A resource type.

    Fields are named by dotted path; list positions are left out (`redirect_uris.url`).

    Attributes:
        name: what messages and results call it, singular: `DNS record`.
        path: collection path below the API's base URL; `{name}` is filled by `at`.
        key: fields that identify an object among those of its kind.
        id: field that addresses an object below `path`.
        query: parameters to send when the collection is listed.
        update: `PATCH` sends what changed; `PUT` sends the whole object.
        read_only: set by the server: never compared, never sent, not shown.
        write_only: sent and never returned: not compared.
        create_only: fixed when the object is made: compared by `fixed_changes` only.
        secret: shown as asterisks.
        unordered: lists whose order means nothing.
        exact: compared as they are: a key that only the live object has is a difference.
        defaults: what a field is worth when the live object does not have it.
        normalise: functions that bring a field of either side to one form.
        since: first version of the server (major, minor) that knows a field.
        always: fields that an update has to repeat although they did not change.

    """

    name: str
    path: str = ""
    key: tuple[str, ...] = ("name",)
    id: str = "id"
    query: t.Mapping[str, t.Any] = field(default_factory=dict)
    update: str = "PATCH"
    read_only: frozenset[str] = frozenset()
    write_only: frozenset[str] = frozenset()
    create_only: frozenset[str] = frozenset()
    secret: frozenset[str] = frozenset()
    unordered: frozenset[str] = frozenset()
    exact: frozenset[str] = frozenset()
    defaults: t.Mapping[str, t.Any] = field(default_factory=dict)
    normalise: t.Mapping[str, t.Callable[[t.Any], t.Any]] = field(default_factory=dict)
    since: t.Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    always: frozenset[str] = frozenset()

    def at(self, **names: str) -> Kind:
        """Return this kind with its path filled in, for example `DNS.at(zone_id=...)`."""
        return replace(self, path=self.path.format(**names))

    def identity(self, document: t.Mapping[str, t.Any]) -> tuple[t.Any, ...]:
        """Return the normalised values of the key fields, hashable."""
        return tuple(_hashable(self.normal(name, get(document, name))) for name in self.key)

    def label(self, document: t.Mapping[str, t.Any]) -> str:
        """Return the name that messages, results and diffs give the object."""
        return " ".join(str(self.normal(name, get(document, name))) for name in self.key)

    def normal(self, path: str, value: t.Any) -> t.Any:
        """Return `value` in the form that both sides are compared in."""
        function = self.normalise.get(path)
        return value if function is None or value is None or isinstance(value, Ref) else function(value)


@dataclass
class Action:
    """One object of the plan.

    Attributes:
        kind: its resource type.
        action: `create`, `update`, `delete` or `unchanged`.
        key: its label.
        desired: the declared document; None for a deletion.
        current: the live document; None for a creation.
        changes: dotted paths of the declared fields that differ; empty but for an update.

    """

    kind: Kind
    action: str
    key: str
    desired: Document | None = None
    current: Document | None = None
    changes: tuple[str, ...] = ()

    @property
    def id(self) -> t.Any:
        """The id of the live object, or None."""
        return None if self.current is None else self.current.get(self.kind.id)

    @property
    def body(self) -> Document:
        """The document to send: all of it at creation and for PUT, else the top-level fields that changed."""
        desired = self.desired or {}
        if self.action == "create":
            return desired
        kept = {name: value for name, value in desired.items() if name not in self.kind.create_only}
        if self.kind.update == "PUT":
            return {**writable(self.kind, self.current or {}), **kept}
        changed = {path.partition(".")[0] for path in self.changes} | self.kind.always
        return {name: value for name, value in kept.items() if name in changed}


def plan(
    kind: Kind,
    desired: t.Sequence[Document],
    current: t.Sequence[Document],
    *,
    absent: t.Sequence[Document] = (),
    purge: t.Callable[[Document], bool] | None = None,
    option: str = "",
) -> list[Action]:
    """Match declared with live objects and say what has to be done to each.

    Args:
        kind: the resource type of all of them.
        desired: objects that shall exist. Ids of other objects may be given as `Ref`.
        current: all live objects of the kind.
        absent: objects that shall not exist; only the key fields are read.
        purge: tells whether a live object that nobody declared is ours to delete; None deletes none.
        option: the module option that holds the declaration, for messages.

    Returns:
        Actions in the order of `desired`, then of `absent`, then purged ones in the order of `current`.

    Raises:
        PlanError: an object is declared twice, or matches more than one live object.

    """
    live: dict[tuple[t.Any, ...], list[Document]] = {}
    for document in current:
        live.setdefault(kind.identity(document), []).append(document)
    declared: dict[tuple[t.Any, ...], int] = {}
    actions: list[Action] = []
    for position, document in enumerate([*desired, *absent], 1):
        identity = kind.identity(document)
        label = kind.label(document)
        if identity in declared:
            raise PlanError(f"{option}: {kind.name} {label} is declared twice (items {declared[identity]}, {position})")
        declared[identity] = position
        found = live.get(identity, [])
        if position > len(desired):
            actions.extend(Action(kind, "delete", label, current=document) for document in found)
        elif len(found) > 1:
            ids = ", ".join(str(document.get(kind.id)) for document in found)
            raise PlanError(f"{option}: {kind.name} {label} exists more than once ({ids}); delete all but one")
        else:
            actions.append(compare(kind, document, found[0] if found else None))
    if purge is not None:
        for document in current:
            if kind.identity(document) not in declared and purge(document):
                actions.append(Action(kind, "delete", kind.label(document), current=document))
    return actions


def compare(kind: Kind, desired: Document, current: Document | None) -> Action:
    """Return what has to be done to one object whose live counterpart is known (None: it does not exist)."""
    label = kind.label(desired)
    if current is None:
        return Action(kind, "create", label, desired=desired)
    changed = tuple(changes(kind, desired, current))
    return Action(kind, "update" if changed else "unchanged", label, desired, current, changed)


def changes(kind: Kind, desired: Document, current: Document) -> list[str]:
    """Return the dotted paths of declared fields that differ from the live object's."""
    return list(_changes(kind, desired, current, ""))


def fixed_changes(kind: Kind, desired: Document, current: Document) -> list[str]:
    """Return the `create_only` fields whose declared value differs: no update can bring them about."""
    return [
        name for name in sorted(kind.create_only - kind.write_only)
        if name in desired and not _same(kind, desired[name], current.get(name), name)
    ]  # fmt: skip


def sequence(*plans: t.Iterable[Action]) -> list[Action]:
    """Return one order for the plans of several kinds, given with those that others depend on first.

    Creations and updates follow the order of the kinds, deletions the reverse one and come last.
    """
    lists = [list(actions) for actions in plans]
    kept = [action for actions in lists for action in actions if action.action != "delete"]
    gone = [action for actions in reversed(lists) for action in actions if action.action == "delete"]
    return kept + gone


def ids_of(kind: Kind, documents: t.Iterable[Document]) -> dict[tuple[str, str], t.Any]:
    """Return the ids of live objects by (kind name, label), as `resolve` wants them."""
    return {(kind.name, kind.label(document)): document.get(kind.id) for document in documents}


def resolve(value: t.Any, ids: t.Mapping[tuple[str, str], t.Any]) -> t.Any:
    """Return `value` with each `Ref` replaced by its id, where `ids[(kind name, key)]` has one."""
    if isinstance(value, Ref):
        return ids.get((value.kind, value.key), value)
    if isinstance(value, dict):
        return {name: resolve(item, ids) for name, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, ids) for item in value]
    return value


def gate(kind: Kind, desired: Document, version: tuple[int, ...]) -> Document:
    """Return `desired` without the top-level fields that a server of this version does not know."""
    return {name: value for name, value in desired.items() if version >= kind.since.get(name, ())}


def writable(kind: Kind, current: Document) -> Document:
    """Return the live object as it may be sent back: normalised, without what the server sets or what is unset."""
    without = kind.read_only | {kind.id}
    return {
        name: kind.normal(name, value)
        for name, value in current.items()
        if name not in without and name not in kind.write_only and value is not None
    }


def diff(actions: t.Iterable[Action]) -> dict[str, str]:
    """Return `before` and `after` as YAML of the objects that change, secrets as asterisks.

    An updated object is shown with its declared fields, a deleted one with all that can be written.
    """
    before: dict[str, Document] = {}
    after: dict[str, Document] = {}
    for action in actions:
        kind = action.kind
        if action.action == "unchanged":
            continue
        if action.action == "delete":
            stated = {name: value for name, value in writable(kind, action.current or {}).items() if not _unset(value)}
            shown = _show(kind, stated, None, "")
            before.setdefault(kind.name, {})[_free(before.get(kind.name, {}), action.key)] = shown
            continue
        label = _free(after.get(kind.name, {}), action.key)
        after.setdefault(kind.name, {})[label] = _show(kind, action.desired, action.current, "")
        if action.current is not None:
            stated = _project(action.desired, action.current, kind, "")
            before.setdefault(kind.name, {})[label] = _show(kind, stated, None, "")
    return {"before": to_yaml(before), "after": to_yaml(after)}


def to_yaml(value: t.Any) -> str:
    """Write a JSON-like value as YAML, keys in their order. PyYAML is not there on every target."""
    if value in ({}, []):
        return ""
    return "\n".join(_yaml_lines(value)) + "\n"


def get(document: t.Any, path: str) -> t.Any:
    """Return the value at a dotted path, or None."""
    for name in path.split("."):
        document = document.get(name) if isinstance(document, t.Mapping) else None
    return document


# Private from here on.


def _hashable(value: t.Any) -> t.Any:
    return json.dumps(value, sort_keys=True, default=str) if isinstance(value, (dict, list)) else value


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _skipped(kind: Kind, path: str) -> bool:
    return path in kind.write_only or path in kind.create_only or path in kind.read_only


def _changes(kind: Kind, desired: Document, current: t.Any, path: str) -> t.Iterator[str]:
    for name, value in desired.items():
        here = _join(path, name)
        if _skipped(kind, here):
            continue
        live = _live(kind, current, name, here)
        if isinstance(value, dict) and isinstance(live, t.Mapping) and here not in {*kind.normalise, *kind.exact}:
            yield from _changes(kind, value, live, here)
        elif not _same(kind, value, live, here):
            yield here


def _live(kind: Kind, current: t.Any, name: str, path: str) -> t.Any:
    found = current.get(name) if isinstance(current, t.Mapping) else None
    return kind.defaults.get(path) if found is None else found


def _same(kind: Kind, desired: t.Any, current: t.Any, path: str) -> bool:
    desired, current = kind.normal(path, desired), kind.normal(path, current)
    if current is None or desired is None:
        # An empty value is what most servers store for "not set".
        return _unset(desired) and _unset(current)
    if path in kind.exact:
        loose = path in kind.unordered and isinstance(desired, list) and isinstance(current, list)
        return bool(_in_order(desired) == _in_order(current) if loose else desired == current)
    if isinstance(desired, list) and isinstance(current, list):
        return _same_list(kind, desired, current, path)
    return _same_item(kind, desired, current, path)


def _in_order(items: list[t.Any]) -> list[t.Any]:
    return sorted(items, key=lambda item: json.dumps(item, sort_keys=True, default=str))


def _unset(value: t.Any) -> bool:
    return value is None or value in ("", [], {})


def _same_list(kind: Kind, desired: list[t.Any], current: list[t.Any], path: str) -> bool:
    if len(desired) != len(current):
        return False
    if path not in kind.unordered:
        return all(_same_item(kind, mine, theirs, path) for mine, theirs in zip(desired, current))
    rest = list(current)
    for mine in desired:
        hit = next((n for n, theirs in enumerate(rest) if _same_item(kind, mine, theirs, path)), None)
        if hit is None:
            return False
        del rest[hit]
    return True


def _same_item(kind: Kind, desired: t.Any, current: t.Any, path: str) -> bool:
    if isinstance(desired, dict) and isinstance(current, t.Mapping):
        return not list(_changes(kind, desired, current, path))
    if isinstance(desired, bool) or isinstance(current, bool):
        return desired is current
    return bool(desired == current)


def _project(desired: t.Any, current: t.Any, kind: Kind, path: str) -> t.Any:
    """Return the part of `current` that `desired` speaks about."""
    if isinstance(desired, dict) and isinstance(current, t.Mapping):
        shown = {}
        for name, value in desired.items():
            here = _join(path, name)
            live = _live(kind, current, name, here)
            if here in kind.write_only or live is None:
                continue
            shown[name] = _project(value, kind.normal(here, live), kind, here)
        return shown
    if isinstance(desired, list) and isinstance(current, list) and path not in kind.unordered | kind.exact:
        paired = [_project(mine, theirs, kind, path) for mine, theirs in zip(desired, current)]
        return paired + current[len(paired) :]
    return current


def _show(kind: Kind, value: t.Any, current: t.Any, path: str) -> t.Any:
    """Return `value` for the eye: normalised, unordered lists sorted, secrets hidden (`current` tells if changed)."""
    if path in kind.secret:
        changed = current is not None and current != value
        return REDACTED_CHANGED if changed else REDACTED
    return _shown(kind, kind.normal(path, value), current, path)


def _shown(kind: Kind, value: t.Any, current: t.Any, path: str) -> t.Any:
    if isinstance(value, Ref):
        return str(value)
    if isinstance(value, t.Mapping):
        live = current if isinstance(current, t.Mapping) else {}
        return {
            name: _show(kind, item, live.get(name), _join(path, name))
            for name, item in value.items()
            if not (current is not None and _join(path, name) in kind.create_only)
        }
    if isinstance(value, list):
        shown = [_shown(kind, item, None, path) for item in value]
        return _in_order(shown) if path in kind.unordered else shown
    return value


def _free(taken: t.Mapping[str, t.Any], label: str) -> str:
    """Two live objects may have one label (DNS allows it): number the second."""
    number, name = 1, label
    while name in taken:
        number += 1
        name = f"{label} ({number})"
    return name


_PLAIN = re.compile(r"[A-Za-z_/*][A-Za-z0-9_./@*+-]*( [A-Za-z0-9_./@*+()-]+)*")
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def _scalar(value: t.Any) -> str:
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS and not value.startswith("*")
        return value if plain else "".join(map(_printable, json.dumps(value, ensure_ascii=False)))
    return json.dumps(value, ensure_ascii=False, default=str)


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


def _yaml_lines(value: t.Any) -> t.Iterator[str]:
    if isinstance(value, t.Mapping):
        for name, item in value.items():
            if isinstance(item, (dict, list)) and item:
                yield f"{_scalar(str(name))}:"
                yield from ("  " + line for line in _yaml_lines(item))
            else:
                yield f"{_scalar(str(name))}: {_scalar(item)}"
        return
    for item in value:
        if isinstance(item, (dict, list)) and item:
            lines = list(_yaml_lines(item))
            yield f"- {lines[0]}"
            yield from ("  " + line for line in lines[1:])
        else:
            yield f"- {_scalar(item)}"
