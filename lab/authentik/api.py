"""The API v3: the collection's fake, with its state in PostgreSQL and with what a fake does not need to know."""

from __future__ import annotations

import random
import secrets
from typing import Any
from urllib.parse import urlencode

from ansible_collections.kitestacks.homelab.tests.fakes._server import Reply, Request
from ansible_collections.kitestacks.homelab.tests.fakes.authentik import AuthentikApi, Refused

from lab.authentik import passwords
from lab.authentik.database import Connection, Json, PostgresStore, forget, keep

_RECOVERY_SECONDS = 30 * 60
_OUTPOST_READS = ("admin/version/", "outposts/instances/", "outposts/ldap/", "core/users/", "core/groups/")


class Api(AuthentikApi):
    """The API over one connection: made for a request, and gone with it."""

    store: PostgresStore

    def __init__(self, connection: Connection, version: str, base_url: str = "http://localhost:9000/") -> None:
        """Speak as this release; `base_url` is how the client got here."""
        super().__init__(
            store=PostgresStore(connection),
            version_string=version,
            random=random.SystemRandom(),
            base_url=base_url,
        )

    def __post_init__(self) -> None:
        """Install nothing: that is the worker's."""

    def handle(self, request: Request) -> Reply:
        """Answer a request."""
        if request.method != "GET":
            self.store.lock()
        return super().handle(request)

    def _route(self, request: Request, path: str) -> Reply:
        parts = path.rstrip("/").split("/")
        if request.method == "POST" and parts[:2] == ["core", "users"] and parts[3:] == ["recovery"]:
            return self._recovery(request, parts[2])
        if request.method == "POST" and parts[:2] == ["core", "users"] and parts[3:] == ["set_password_hash"]:
            return self._set_password_hash(request, parts[2])
        return super()._route(request, path)

    def kept_password(self, password: str) -> str:
        """Return the form in which a password is kept."""
        return passwords.make(password)

    def _may(self, user: Json, method: str, path: str) -> bool:
        outpost = user["type"] == "internal_service_account" and method == "GET" and path in _OUTPOST_READS
        return outpost or super()._may(user, method, path)

    def _may_use(self, application: Json, user: Json) -> bool:
        """Tell whether the bindings of an application let a user in; expression policies count as passed."""
        results = []
        groups = {group["pk"] for group in self.groups(user, inherited=True)}
        for row in self.store.rows("bindings"):
            if row["target"] == application["pk"] and row["enabled"]:
                passed = row["policy"] is not None or row["group"] in groups or row["user"] == user["pk"]
                results.append(passed != row["negate"])
        return not results or (all if application["policy_engine_mode"] == "all" else any)(results)

    def may_use(self, application: Json, user: Json) -> bool:
        """Tell whether a user may sign in to an application."""
        return bool(user["is_active"]) and self._may_use(application, user)

    def is_app_password(self, user: Json, key: str) -> bool:
        """Tell whether a key is an app password of a user: with one he signs in as with his own."""
        tokens = self.store.rows("tokens")
        mine = [row["key"] for row in tokens if row["intent"] == "app_password" and row["user"] == user["pk"]]
        return any(secrets.compare_digest(own.encode(), key.encode()) for own in mine)

    def groups(self, user: Json, *, inherited: bool = False) -> list[Json]:
        """Return the groups of a user, with the parents of them and theirs if wanted."""
        found: dict[str, Json] = {}
        wanted = list(user["groups"])
        while wanted:
            group = self.store.get("groups", wanted.pop(0))
            if group and group["pk"] not in found:
                found[group["pk"]] = group
                wanted += group["parents"] if inherited else []
        return list(found.values())

    def _recovery(self, request: Request, key: str) -> Reply:
        self._administrator(request)
        user = self._found_user(key)
        brand = next((row for row in self.store.rows("brands") if row["default"]), None)
        flow = self.store.get("flows", str(brand["flow_recovery"])) if brand else None
        if flow is None:
            raise Refused(400, {"non_field_errors": ["No recovery flow set."]})
        token = secrets.token_urlsafe(45)
        forget(self.store.connection, "flow_token", user=user["pk"])
        keep(self.store.connection, "flow_token", token, {"user": user["pk"], "flow": flow["slug"]}, _RECOVERY_SECONDS)
        return Reply(200, {"link": f"{self.base_url}if/flow/{flow['slug']}/?{urlencode({'flow_token': token})}"})

    def _set_password_hash(self, request: Request, key: str) -> Reply:
        self._administrator(request)
        user = self._found_user(key)
        value = str((request.body or {}).get("password", ""))
        if value.count("$") != 3:
            raise Refused(400, {"password": ["Invalid password hash."]})
        self.store.put("users", key, {**user, "password": value})
        return Reply(204)

    def _administrator(self, request: Request) -> None:
        if not self._is_superuser(self._authenticate(request.headers)):
            raise Refused(403, {"detail": "You do not have permission to perform this action."})

    def _found_user(self, key: str) -> Json:
        user = self.store.get("users", key)
        if user is None:
            raise Refused(404, {"detail": "No User matches the given query."})
        return user

    def _enqueue(self, row: Json) -> None:
        """Mark a blueprint for the worker."""
        if row["enabled"]:
            self.store.put("blueprints", row["pk"], {**row, "polls": 1})

    def _tick(self, kind: str, row: Json) -> None:
        """Do nothing: there is a real worker."""

    def row(self, kind: str, pk: Any) -> Json:
        """Return a row that another one refers to.

        Raises:
            LookupError: it is not there, which no request should be able to bring about.
        """
        found = self.store.get(kind, str(pk))
        if found is None:
            raise LookupError(f"no {kind} {pk}")
        return found

    def application_of(self, provider: Any) -> Json | None:
        """Return the application of a provider, by the provider's pk."""
        return next((row for row in self.store.rows("applications") if row["provider"] == provider), None)
