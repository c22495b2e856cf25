"""Flows: the executor API, step by step, with the plan in the session so that any server can take the next step."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from werkzeug.utils import redirect
from werkzeug.wrappers import Response

from lab.authentik import passwords
from lab.authentik.database import Json, take
from lab.authentik.visit import Visit

_HOME = "/if/user/"


class Invalid(Exception):  # noqa: N818 - the vendor's word
    """An answer that a stage does not accept: field, code and text."""

    def __init__(self, field: str, text: str, code: str = "invalid") -> None:
        super().__init__(text)
        self.errors = {field: [{"string": text, "code": code}]}


class Denied(Exception):  # noqa: N818 - an outcome, not a fault
    """The flow ends here; the text is shown."""


@dataclass
class Step:
    """A stage of a flow in progress; `plan` is kept in the session."""

    visit: Visit
    plan: Json

    @property
    def pending_user(self) -> Json | None:
        """The user that this flow is about."""
        pk = self.plan.get("pending_user")
        return None if pk is None else self.visit.api.store.get("users", str(pk))


def show(visit: Visit, slug: str) -> Response:
    """Answer GET and POST of /api/v3/flows/executor/SLUG/."""
    flow = next((row for row in visit.api.store.rows("flows") if row["slug"] == slug), None)
    if flow is None:
        return _json({"detail": "No Flow matches the given query."}, 404)
    query = dict(parse_qsl(visit.request.args.get("query", ""), keep_blank_values=True))
    try:
        plan = _plan(visit, flow, query)
        return _execute(Step(visit, plan), flow)
    except Denied as denied:
        visit.session.set("plan", None)
        return _json(
            {
                "component": "ak-stage-access-denied",
                "flow_info": _flow_info(flow),
                "pending_user": "",
                "pending_user_avatar": "",
                "error_message": str(denied),
            }
        )


def start(visit: Visit, slug: str, **context: Any) -> None:
    """Begin a flow in the session of a visitor, before he is sent to its page."""
    stages = _stages(visit, _flow(visit, slug), restored=bool(context.get("restored")))
    visit.session.set("plan", {"flow": slug, "stages": stages, "fields": _fields(visit, slug), **context})


def next_url(query: Json) -> str:
    """Return where a flow leads to at its end; never to another site."""
    wanted = str(query.get("next", ""))
    return wanted if wanted.startswith("/") and not wanted.startswith(("//", "/\\")) else _HOME


def _flow(visit: Visit, slug: str) -> Json:
    return next(row for row in visit.api.store.rows("flows") if row["slug"] == slug)


def _plan(visit: Visit, flow: Json, query: Json) -> Json:
    if "flow_token" in query:
        token = take(visit.connection, "flow_token", query["flow_token"])
        if token and token["flow"] == flow["slug"]:
            start(visit, flow["slug"], pending_user=token["user"], restored=True)
    plan: Json = visit.session.data.get("plan") or {}
    if plan.get("flow") != flow["slug"]:
        if flow["authentication"] == "require_authenticated" and visit.user is None:
            raise Denied("Flow does not apply to current user.")
        if flow["authentication"] == "require_unauthenticated" and visit.user is not None:
            raise Denied("Flow does not apply to current user.")
        start(visit, flow["slug"])
        plan = visit.session.data["plan"]
        if flow["designation"] == "recovery":
            raise Denied("This recovery link is used up or too old.")
    plan["query"] = query
    return plan


def _stages(visit: Visit, flow: Json, *, restored: bool = False) -> list[str]:
    """Return the stages of a flow: Authentik's default ones, or what a blueprint bound to it.

    A policy on a bound stage is taken for the one of Authentik's examples: leave it out when a link restored the flow.
    """
    bound = [row for row in visit.api.store.rows("flow_bindings") if row["target"] == flow["pk"]]
    if bound and restored:
        left_out = {row["target"] for row in visit.api.store.rows("bindings") if row["policy"]}
        bound = [row for row in bound if row["pk"] not in left_out]
    if bound:
        stages = {row["pk"]: row for row in visit.api.store.rows("stages")}
        models = [stages[row["stage"]]["model"] for row in sorted(bound, key=lambda row: row["order"])]
        return [_MODELS[model] for model in models if model in _MODELS]
    if flow["slug"].endswith("explicit-consent"):
        return ["consent", "grant"]
    kinds = {
        "authentication": ["identification", "password", "mfa", "login"],
        "invalidation": ["logout"],
        "authorization": ["end"],
    }
    return kinds.get(flow["designation"], [])


def _fields(visit: Visit, slug: str) -> list[Json]:
    """Return what the prompt stages of a flow ask for."""
    store = visit.api.store
    flow = _flow(visit, slug)
    bound = [row["stage"] for row in store.rows("flow_bindings") if row["target"] == flow["pk"]]
    asked = [pk for stage in store.rows("stages") if stage["pk"] in bound for pk in stage.get("fields", [])]
    rows = sorted((row for row in store.rows("prompts") if row["pk"] in asked), key=lambda row: row.get("order", 0))
    return [
        {
            "field_key": row["field_key"],
            "label": row.get("label", row["field_key"]),
            "type": row["type"],
            "required": row.get("required", True),
            "placeholder": row.get("placeholder", ""),
            "initial_value": "",
            "order": row.get("order", 0),
            "sub_text": row.get("sub_text", ""),
            "choices": None,
        }
        for row in rows
    ]


def _execute(step: Step, flow: Json) -> Response:
    visit, plan = step.visit, step.plan
    visit.session.changed = True
    here = redirect(visit.path, 302)
    stage = plan["stages"][0] if plan["stages"] else "end"
    if stage in _CHALLENGES:
        answer = visit.request.get_json(silent=True) if visit.request.method == "POST" else None
        errors: Json = {}
        if answer is not None:
            try:
                _ANSWERS[stage](step, dict(answer))
                plan["stages"].pop(0)
                return here
            except Invalid as invalid:
                errors = {"response_errors": invalid.errors}
        return _json({"flow_info": _flow_info(flow), **_CHALLENGES[stage](step), **errors})
    if stage in _ACTIONS:
        _ACTIONS[stage](step)
        plan["stages"].pop(0)
        if plan["stages"]:
            return here
    to = plan.get("to") or next_url(plan["query"])
    visit.session.set("plan", None)
    return _json({"component": "xak-flow-redirect", "to": to})


# -- stages ----------------------------------------------------------------------------------------------------------


def _identification(_step: Step) -> Json:
    return {
        "component": "ak-stage-identification",
        "user_fields": ["email", "username"],
        "password_fields": False,
        "allow_show_password": False,
        "flow_designation": "authentication",
        "primary_action": "Log in",
        "sources": [],
        "show_source_labels": False,
        "enable_remember_me": False,
    }


def _identified(step: Step, answer: Json) -> None:
    wanted = str(answer.get("uid_field", "")).lower()
    if not wanted:
        raise Invalid("uid_field", "This field may not be blank.", "blank")
    users = step.visit.api.store.rows("users")
    found = next((row for row in users if wanted in (row["username"].lower(), row["email"].lower())), None)
    # Whether somebody exists is not told here: the password of nobody is as wrong as a wrong one.
    step.plan.update(pending_user=found["pk"] if found else None, uid_field=str(answer["uid_field"]))


def _password(step: Step) -> Json:
    shown = step.pending_user["username"] if step.pending_user else step.plan["uid_field"]
    return {
        "component": "ak-stage-password",
        "pending_user": shown,
        "pending_user_avatar": "",
        "allow_show_password": False,
    }


def _authenticated(step: Step, answer: Json) -> None:
    user, password = step.pending_user, str(answer.get("password", ""))
    if user is None or not user["is_active"]:
        raise Invalid("password", "Invalid password")
    if not passwords.check(password, user["password"]) and not step.visit.api.is_app_password(user, password):
        raise Invalid("password", "Invalid password")


def _prompt(step: Step) -> Json:
    return {"component": "ak-stage-prompt", "fields": step.plan["fields"]}


def _prompted(step: Step, answer: Json) -> None:
    for entry in step.plan["fields"]:
        if entry["required"] and not answer.get(entry["field_key"]):
            raise Invalid(entry["field_key"], "This field may not be blank.", "blank")
    typed = {answer.get(entry["field_key"]) for entry in step.plan["fields"] if entry["type"] == "password"}
    if len(typed) > 1:
        raise Invalid("non_field_errors", "Passwords don't match.")
    if "password" in answer:
        step.plan["password"] = passwords.make(str(answer["password"]))


def _consent(step: Step) -> Json:
    step.plan.setdefault("token", secrets.token_hex(16))
    return {
        "component": "ak-stage-consent",
        "header_text": step.plan.get("header", "Continue?"),
        "permissions": step.plan.get("permissions", []),
        "additional_permissions": [],
        "token": step.plan["token"],
    }


def _consented(step: Step, answer: Json) -> None:
    if answer.get("token") != step.plan.get("token"):
        raise Invalid("token", "Invalid consent token, re-showing prompt")


def _write_user(step: Step) -> None:
    user = step.pending_user
    if user is None or "password" not in step.plan:
        raise Denied("No pending user.")
    step.visit.api.store.put("users", str(user["pk"]), {**user, "password": step.plan.pop("password")})


def _login(step: Step) -> None:
    user = step.pending_user
    if user is None:
        raise Denied("No pending user.")
    step.visit.login(user)


def _grant(step: Step) -> None:
    """Note for which request there is consent; that request is made again then."""
    step.visit.session.set("consented", step.plan.get("to"))


def _logout(step: Step) -> None:
    plan = step.visit.session.data["plan"]
    step.visit.session.end()
    step.visit.session.set("plan", plan)


def _nothing(_step: Step) -> None:
    """Pass: nobody in the lab has a second factor, and the stage that would ask for one answers with a redirect."""


_CHALLENGES: dict[str, Callable[[Step], Json]] = {
    "identification": _identification,
    "password": _password,
    "prompt": _prompt,
    "consent": _consent,
}
_ANSWERS: dict[str, Callable[[Step, Json], None]] = {
    "identification": _identified,
    "password": _authenticated,
    "prompt": _prompted,
    "consent": _consented,
}
_ACTIONS: dict[str, Callable[[Step], None]] = {
    "mfa": _nothing,
    "login": _login,
    "grant": _grant,
    "logout": _logout,
    "write": _write_user,
}
_MODELS = {
    "authentik_stages_identification.identificationstage": "identification",
    "authentik_stages_password.passwordstage": "password",
    "authentik_stages_prompt.promptstage": "prompt",
    "authentik_stages_consent.consentstage": "consent",
    "authentik_stages_user_write.userwritestage": "write",
    "authentik_stages_user_login.userloginstage": "login",
    "authentik_stages_user_logout.userlogoutstage": "logout",
}


def _flow_info(flow: Json) -> Json:
    return {
        "title": flow["title"],
        "background": "",
        "cancel_url": "/flows/-/cancel/",
        "layout": flow["layout"],
    }


def _json(document: Json, status: int = 200) -> Response:
    return Response(json.dumps(document), status, content_type="application/json")
