# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carry out a plan and end the module: the writing half of `_reconcile`.

A write whose answer got lost is never simply repeated. The objects are read again, what was done is counted as done,
and only the rest is sent once more. A run that is cut off reports what was applied, what failed and what is pending;
the next run makes a new plan from what it finds and finishes the work.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from . import _http
from ._http import ApiError, Client, Response
from ._reconcile import Action, Document, Documents, Kind, changes, diff, resolve

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

DONE = {"create": "created", "update": "updated", "delete": "deleted", "unchanged": "unchanged"}

# Ids of objects by (kind name, label), for `Ref`.
Ids = t.Dict[t.Tuple[str, str], t.Any]  # noqa: UP006 (evaluated on Python 3.9)


class Api(Client):
    """A REST API of collections of JSON documents. Subclasses say how a document and a list are wrapped."""

    def unwrap(self, response: Response) -> t.Any:
        """Return the document that an answer carries."""
        return response.data

    def list(self, path: str, query: t.Mapping[str, t.Any] | None = None) -> Documents:
        """Return all objects of a collection, all pages of it."""
        raise NotImplementedError

    def get(self, path: str, query: t.Mapping[str, t.Any] | None = None) -> t.Any:
        """Return one document."""
        return self.unwrap(self.request("GET", path, query=query))


@dataclass
class Step:
    """Actions that are sent together: one request, all or nothing.

    Attributes:
        actions: what it does; all of one kind.
        send: sends the given ones of them and returns the live objects that result (None for a deletion), in order.
        transient: vendor codes that mean "not yet": the step is tried again for `patience` seconds.
        patience: see `transient`.

    """

    actions: list[Action]
    send: t.Callable[[list[Action]], list[Document | None]]
    transient: frozenset[int | str] = frozenset()
    patience: float = 30.0


@dataclass
class Outcome:
    """What became of a plan: ids of the objects touched, and where it stopped, if it did."""

    applied: list[Action] = field(default_factory=list)
    failed: list[Action] = field(default_factory=list)
    pending: list[Action] = field(default_factory=list)
    ids: dict[int, t.Any] = field(default_factory=dict)  # by id() of the action
    error: ApiError | None = None


def write(api: Api, action: Action, ids: Ids) -> Document | None:
    """Send one action as REST has it: POST to the collection, PATCH or PUT or DELETE on the object.

    Args:
        api: the connection.
        action: what to do; its `Ref` values are looked up in `ids`.
        ids: ids known so far.

    Returns:
        The live object, or None after a deletion.

    """
    kind = action.kind
    if action.action == "delete":
        delete(api, f"{kind.path}/{action.id}")
        return None
    body = resolve(action.body, ids)
    if action.action == "create":
        made: Document = api.unwrap(api.request("POST", kind.path, body=body))
        return made
    changed: Document = api.unwrap(api.request(kind.update, f"{kind.path}/{action.id}", body=body))
    return changed


def delete(api: Api, path: str) -> None:
    """Delete an object; one that is gone already counts as deleted."""
    try:
        api.request("DELETE", path)
    except ApiError as error:
        if error.status != 404:
            raise


def steps(api: Api, actions: t.Iterable[Action], ids: Ids) -> list[Step]:
    """Return one step for each action that is not `unchanged`, and fill `ids` while they are carried out."""

    def send(batch: list[Action]) -> list[Document | None]:
        return [write(api, action, ids) for action in batch]

    return [Step([action], send) for action in actions if action.action != "unchanged"]


def apply(
    api: Api,
    plan: t.Sequence[Step],
    ids: Ids | None = None,
    relist: t.Callable[[Kind], list[Document]] | None = None,
) -> Outcome:
    """Carry out the steps in order and stop at the first that fails.

    Args:
        api: the connection.
        plan: steps, see `steps`.
        ids: gets the id of each object that is created.
        relist: reads all live objects of a kind again; by default the kind's collection is listed.

    """
    ids = {} if ids is None else ids
    read = relist or (lambda kind: api.list(kind.path, kind.query))
    outcome = Outcome()
    for number, step in enumerate(plan):
        rest, started, attempt = list(step.actions), _http._clock(), 0
        while rest:
            failure = _attempt(outcome, ids, step, rest)
            if failure is None:
                break
            more = attempt < api.settings.retries
            if failure.unknown_outcome or failure.status == 429:
                # What a rate limit refused was hardly carried out, but looking costs little and a duplicate much.
                more = more and api.pause(attempt, failure)
                try:
                    rest = _still_to_do(outcome, ids, rest, read)
                except ApiError:
                    more = False  # nobody can tell what was done: report the write's own error
            elif failure.code in step.transient:
                more = _http._clock() - started < step.patience and api.pause(attempt, failure)
            else:
                more = False
            if rest and not more:
                outcome.error = failure
                outcome.failed = rest
                outcome.pending = [action for later in plan[number + 1 :] for action in later.actions]
                return outcome
            attempt += 1
    return outcome


def result(api: Api, actions: t.Sequence[Action], outcome: Outcome | None = None) -> dict[str, t.Any]:
    """Return what every set module returns: `changed`, `diff`, `results`, `stats`.

    Args:
        api: the connection, for its counts.
        actions: the whole plan.
        outcome: what became of it; None in check mode.

    """
    made = {} if outcome is None else outcome.ids
    stats = dict.fromkeys(DONE.values(), 0)
    undone = [] if outcome is None else [*outcome.failed, *outcome.pending]
    finished = [action for action in actions if not any(action is other for other in undone)]
    for action in finished:
        stats[DONE[action.action]] += 1
    return {
        "changed": any(action.action != "unchanged" for action in finished),
        "diff": diff(finished),
        "results": [_line(action, made) for action in finished],
        "stats": {"requests": api.stats.requests, "retries": api.stats.retries, **stats},
    }


def run(
    module: AnsibleModule,
    api: Api,
    actions: t.Sequence[Action],
    plan: t.Callable[[], t.Sequence[Step]],
    *,
    ids: Ids | None = None,
    relist: t.Callable[[Kind], list[Document]] | None = None,
) -> dict[str, t.Any]:
    """Carry out a plan unless in check mode; return the module's result, or fail with what was and was not done.

    Args:
        module: the running module.
        api: the connection.
        actions: the whole plan, in the order of `results`.
        plan: makes the steps; not called in check mode.
        ids: see `apply`.
        relist: see `apply`.

    """
    if module.check_mode:
        return shown(module, result(api, actions))
    outcome = apply(api, plan(), ids, relist)
    found = shown(module, result(api, actions, outcome))
    if outcome.error is None:
        return found
    first = outcome.failed[0]
    total = sum(action.action != "unchanged" for action in actions)
    doubt = " Whether the server carried it out is unknown." if outcome.error.unknown_outcome else ""
    module.fail_json(
        msg=f"{first.action} of {first.kind.name} {first.key}: {outcome.error}.{doubt} "
        f"{len(outcome.applied)} of {total} changes were made; run it again to finish.",
        applied=[_line(action, outcome.ids) for action in outcome.applied],
        failed_items=[{**_line(action, {}), "error": outcome.error.as_dict()} for action in outcome.failed],
        pending=[_line(action, {}) for action in outcome.pending],
        **found,
    )
    raise AssertionError  # fail_json does not return


def shown(module: AnsibleModule, found: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return the result without its diff when nobody asked for one."""
    return found if module._diff else {name: value for name, value in found.items() if name != "diff"}


# Private from here on.


def _line(action: Action, ids: t.Mapping[int, t.Any]) -> dict[str, t.Any]:
    return {
        "kind": action.kind.name,
        "key": action.key,
        "action": DONE[action.action],
        "id": ids.get(id(action), action.id),
        "changes": list(action.changes),
    }


def _attempt(outcome: Outcome, ids: Ids, step: Step, actions: list[Action]) -> ApiError | None:
    try:
        for action, document in zip(list(actions), step.send(actions)):
            _note(outcome, ids, action, document)
    except ApiError as error:
        return error
    return None


def _note(outcome: Outcome, ids: Ids, action: Action, document: Document | None) -> None:
    outcome.applied.append(action)
    made = None if document is None else document.get(action.kind.id)
    outcome.ids[id(action)] = action.id if made is None else made
    if made is not None:
        ids[(action.kind.name, action.key)] = made


def _still_to_do(
    outcome: Outcome, ids: Ids, actions: list[Action], read: t.Callable[[Kind], list[Document]]
) -> list[Action]:
    """Read the objects again after a write of unknown outcome; note what was done and return the rest."""
    live = read(actions[0].kind)
    rest = []
    for action in actions:
        found = _carried_out(action, live, ids)
        if found is None:
            rest.append(action)
        else:
            _note(outcome, ids, action, found)
    return rest


def _carried_out(action: Action, live: list[Document], ids: Ids) -> Document | None:
    """Return the object that shows that the action was done (the old one for a deletion), or None."""
    kind = action.kind
    if action.action == "delete":
        gone = all(document.get(kind.id) != action.id for document in live)
        return action.current if gone else None
    wanted = resolve(action.desired or {}, ids)
    if action.action == "update":
        mine = (document for document in live if document.get(kind.id) == action.id)
        return next((document for document in mine if not changes(kind, wanted, document)), None)
    # It was not there when the plan was made, so whoever has this identity now was made by the lost request.
    return next((document for document in live if kind.identity(document) == kind.identity(wanted)), None)
