"""One request: where it came from, its connection to the database, its session."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from functools import cached_property

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey
from werkzeug.wrappers import Request, Response

from lab.authentik import sessions
from lab.authentik.api import Api
from lab.authentik.configuration import Configuration
from lab.authentik.database import Connection, Json
from lab.authentik.sessions import Session

SESSION_COOKIE = "authentik_session"


@dataclass
class Visit:
    """A request with everything that answering it needs."""

    request: Request
    configuration: Configuration
    connection: Connection

    @cached_property
    def base_url(self) -> str:
        """How the client got here: scheme and name, with a slash at the end."""
        request = self.request
        scheme, host = request.scheme, request.headers.get("Host", "localhost")
        if self.configuration.trusts(request.remote_addr or "127.0.0.1"):
            scheme = request.headers.get("X-Forwarded-Proto", scheme).partition(",")[0].strip()
            host = request.headers.get("X-Forwarded-Host", host).partition(",")[0].strip()
        return f"{scheme}://{host}/"

    @property
    def path(self) -> str:
        """Path and query, as the client sent them."""
        return str(self.request.environ["REQUEST_URI"])

    @cached_property
    def api(self) -> Api:
        """The API, which is also how the objects are read."""
        return Api(self.connection, self.configuration.version, self.base_url)

    @cached_property
    def session(self) -> Session:
        """The session of the browser; a new one when it has none."""
        store = sessions.store(self.configuration, self.connection)
        cookie = self.request.cookies.get(SESSION_COOKIE, "")
        try:
            key = str(jwt.decode(cookie, self._key, algorithms=["HS256"]).claims.get("sid", ""))
        except (JoseError, ValueError):
            return Session(store)
        data = store.get(key)
        return Session(store) if data is None else Session(store, key, data)

    @cached_property
    def user(self) -> Json | None:
        """Who is signed in."""
        row = self.api.store.get("users", str(self.session.data.get("user", "")))
        return row if row and row["is_active"] else None

    def login(self, user: Json) -> None:
        """Sign a user in."""
        self.session.renew()
        self.session.set("user", user["pk"])
        self.session.set("auth_time", int(time.time()))
        self.session.set("login", secrets.token_hex(8))
        self.user = user

    def store_session(self, response: Response) -> None:
        """Write the session, when it was changed, and tell the browser."""
        if "session" not in self.__dict__ or not self.session.changed:
            return
        self.session.store.put(self.session.key, self.session.data)
        secure = self.base_url.startswith("https")
        claims = {"sid": self.session.key, "iss": "authentik", "authenticated": "user" in self.session.data}
        value = jwt.encode({"alg": "HS256"}, claims, self._key)
        response.set_cookie(SESSION_COOKIE, value, httponly=True, secure=secure, samesite="None" if secure else "Lax")

    @property
    def _key(self) -> OctKey:
        # Another SECRET_KEY makes every session void, as with Authentik.
        return OctKey.import_key(hashlib.sha256(self.configuration.value("SECRET_KEY").encode()).digest())
