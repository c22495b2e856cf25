"""Blueprints: the models that a homelab writes, applied as a whole or not at all."""

from __future__ import annotations

import datetime
import hashlib
import logging
from typing import Any

import psycopg
import yaml
from ansible_collections.kitestacks.homelab.tests.fakes.authentik import FIELDS, Refused

from lab.authentik.api import Api
from lab.authentik.database import Json

log = logging.getLogger(__name__)

_KINDS = {
    "authentik_flows.flow": "flows",
    "authentik_flows.flowstagebinding": "flow_bindings",
    "authentik_brands.brand": "brands",
    "authentik_core.group": "groups",
    "authentik_core.user": "users",
    "authentik_policies.policybinding": "bindings",
    "authentik_policies_expression.expressionpolicy": "policies",
    "authentik_providers_oauth2.scopemapping": "scope_mappings",
    "authentik_stages_prompt.prompt": "prompts",
}


class Mistake(Exception):  # noqa: N818 - the author's
    """What is wrong with a blueprint, or is not known here."""


class _Loader(yaml.SafeLoader):
    """YAML with the tags of blueprints; they become lists that begin with the tag."""


def _tag(loader: _Loader, suffix: str, node: Any) -> list[Any]:
    if isinstance(node, yaml.SequenceNode):
        return [f"!{suffix}", *loader.construct_sequence(node, deep=True)]
    return [f"!{suffix}", loader.construct_scalar(node)]


_Loader.add_multi_constructor("!", _tag)


def apply(api: Api, row: Json) -> None:
    """Apply a blueprint and note the outcome in its row; a mistake leaves nothing behind."""
    status, digest = "successful", hashlib.sha512(row["content"].encode()).hexdigest()
    try:
        with api.store.connection.transaction():
            _apply(api, row)
    except (Mistake, Refused, KeyError, StopIteration, yaml.YAMLError, psycopg.Error) as error:
        reason = error.reply.body if isinstance(error, Refused) else error
        log.error("blueprint %s: %s", row["name"], reason)
        status, digest = "error", row["last_applied_hash"]
    now = datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
    done = {**row, "polls": None, "status": status, "last_applied": now, "last_applied_hash": digest}
    # What was read before the mistake was rolled back may not be so any more.
    type(api.store)(api.store.connection).put("blueprints", row["pk"], done)
    log.info("blueprint %s: %s", row["name"], status)


def _apply(api: Api, row: Json) -> None:
    document = yaml.load(row["content"], _Loader) if row["content"] else {}  # noqa: S506 - it is a SafeLoader
    context = {**(document.get("context") or {}), **row["context"]}
    known: dict[str, Any] = {}
    for entry in document.get("entries") or []:
        key = _entry(api, entry, context, known)
        if entry.get("id"):
            known[entry["id"]] = key


def _entry(api: Api, entry: Json, context: Json, known: dict[str, Any]) -> Any:
    model = entry["model"]
    kind = "stages" if model.startswith("authentik_stages_") and model not in _KINDS else _KINDS.get(model)
    if kind is None:
        raise Mistake(f"the stand-in does not know the model {model}")
    identifiers = {name: _resolve(api, value, context, known) for name, value in entry.get("identifiers", {}).items()}
    attributes = {name: _resolve(api, value, context, known) for name, value in entry.get("attrs", {}).items()}
    found = next(
        (row for row in api.store.rows(kind) if all(row.get(name) == value for name, value in identifiers.items())),
        None,
    )
    state = entry.get("state", "present")
    if state == "absent":
        if found:
            api.store.delete(kind, str(found["pk"]))
        return None
    if found and state == "must_created":
        raise Mistake(f"{model} {identifiers} is there already")
    if found and state == "created":
        return found["pk"]
    return _write(api, kind, model, found, {**identifiers, **attributes})


def _write(api: Api, kind: str, model: str, found: Json | None, values: Json) -> Any:
    if kind == "brands":
        if found is None:
            raise Mistake("the stand-in makes no brands of its own")
        api.store.put(kind, found["brand_uuid"], {**found, **values})
        return found["brand_uuid"]
    if kind == "policies" and found is None:
        found = api.add_policy(values["name"])
    if kind == "flows" and found is None:
        found = api.add_flow(values["slug"], values.get("title", ""), values["designation"])
    if found is None and kind in FIELDS:
        found = api.add(kind, **values)
    if found is None:
        found = {"pk": values.get("pk") or api.uuid(), "model": model}
    row = {**found, **values}
    api.store.put(kind, str(row["pk"]), row)
    if kind in ("flows", "flow_bindings"):
        api.store.put("targets", row["pk"], {"pk": row["pk"]})
    return row["pk"]


def _resolve(api: Api, value: Any, context: Json, known: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {name: _resolve(api, entry, context, known) for name, entry in value.items()}
    if not isinstance(value, list):
        return value
    if not value or not (isinstance(value[0], str) and value[0].startswith("!")):
        return [_resolve(api, entry, context, known) for entry in value]
    tag, *arguments = value
    if tag == "!KeyOf":
        return known[arguments[0]]
    if tag == "!Context":
        return context[arguments[0]]
    if tag == "!Find":
        model, *conditions = arguments
        wanted = {name: _resolve(api, entry, context, known) for name, entry in conditions}
        rows = api.store.rows(_KINDS[model])
        row = next((row for row in rows if all(row.get(name) == entry for name, entry in wanted.items())), None)
        return row["pk"] if row else None
    raise Mistake(f"the stand-in does not know the tag {tag}")
