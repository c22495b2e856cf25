"""What browsers are remembered by: in PostgreSQL, in Redis for the releases before 2025.10."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from lab.authentik import database
from lab.authentik.configuration import Configuration, Mistake
from lab.authentik.database import Connection, Json

_SECONDS = 14 * 24 * 3600
_TRIES = 30


class Store(Protocol):
    """Where sessions lie."""

    def get(self, key: str) -> Json | None:
        """Return the data of a session that is not over."""

    def put(self, key: str, data: Json) -> None:
        """Store the data of a session."""

    def delete(self, key: str) -> None:
        """Forget a session."""


class DatabaseStore:
    """Sessions in PostgreSQL."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, key: str) -> Json | None:
        """Return the data of a session that is not over."""
        return database.kept(self._connection, "session", key)

    def put(self, key: str, data: Json) -> None:
        """Store the data of a session."""
        database.keep(self._connection, "session", key, data, _SECONDS)

    def delete(self, key: str) -> None:
        """Forget a session."""
        database.take(self._connection, "session", key)


class RedisStore:
    """Sessions in Redis."""

    def __init__(self, configuration: Configuration) -> None:
        import redis  # noqa: PLC0415 - only releases before 2025.10 need it

        self._redis = redis.Redis(**configuration.redis())

    def get(self, key: str) -> Json | None:
        """Return the data of a session that is not over."""
        found: Any = self._redis.get(f"session {key}")
        return json.loads(found) if found else None

    def put(self, key: str, data: Json) -> None:
        """Store the data of a session."""
        self._redis.set(f"session {key}", json.dumps(data), ex=_SECONDS)

    def delete(self, key: str) -> None:
        """Forget a session."""
        self._redis.delete(f"session {key}")

    def ping(self) -> None:
        """Ask whether Redis is there, and lets us in."""
        self._redis.ping()


def store(configuration: Configuration, connection: Connection) -> Store:
    """Return where the sessions of this release lie."""
    return RedisStore(configuration) if configuration.needs_redis else DatabaseStore(connection)


def wait(configuration: Configuration) -> None:
    """Wait until Redis answers, where this release needs it.

    Raises:
        Mistake: it did not, in 30 tries a second apart.
    """
    if not configuration.needs_redis:
        return None
    for _number in range(_TRIES):
        try:
            return RedisStore(configuration).ping()
        except Exception as error:  # redis is imported late, and so are its exceptions
            last = error
        time.sleep(1)
    raise Mistake(f"Redis did not answer in {_TRIES} tries: {last}")


@dataclass
class Session:
    """The session of a browser; stored when it was changed."""

    store: Store
    key: str = field(default_factory=lambda: secrets.token_hex(16))
    data: Json = field(default_factory=dict)
    changed: bool = False

    def set(self, name: str, value: Any) -> None:
        """Remember something; None forgets it."""
        self.changed = True
        if value is None:
            self.data.pop(name, None)
        else:
            self.data[name] = value

    def renew(self) -> None:
        """Go on under another key: whoever knew the old one does not know this one."""
        self.store.delete(self.key)
        self.key, self.changed = secrets.token_hex(16), True

    def end(self) -> None:
        """Forget everything."""
        self.data = {}
        self.renew()
