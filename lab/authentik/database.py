"""State in PostgreSQL: connections, the schema and who may change it, and the `Store` of the API.

Nothing is kept in the process and no connection outlives its request, so a server follows its database wherever a TCP
proxy sends it.
"""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from lab.authentik.configuration import MAJORS, Configuration, Mistake

log = logging.getLogger(__name__)

Json = dict[str, Any]
Connection = psycopg.Connection[tuple[Any, ...]]

_MIGRATIONS = 1000
_WRITES = 1001
_TRIES = 30
_SCHEMA = """
CREATE TABLE IF NOT EXISTS authentik_version_history (
    id bigserial PRIMARY KEY, timestamp timestamptz NOT NULL DEFAULT now(), version text NOT NULL);
CREATE TABLE IF NOT EXISTS objects (
    kind text NOT NULL, pk text NOT NULL, number bigserial, row jsonb NOT NULL, PRIMARY KEY (kind, pk));
CREATE TABLE IF NOT EXISTS sequences (name text PRIMARY KEY, value bigint NOT NULL);
CREATE TABLE IF NOT EXISTS secrets (name text PRIMARY KEY, value text NOT NULL);
CREATE TABLE IF NOT EXISTS records (
    kind text NOT NULL, key text NOT NULL, data jsonb NOT NULL, expires timestamptz NOT NULL, PRIMARY KEY (kind, key));
"""


def connect(configuration: Configuration) -> Connection:
    """Open a connection; leaving its `with` block commits and closes it."""
    return psycopg.connect(**configuration.database(), application_name="authentik")


def wait(configuration: Configuration) -> None:
    """Wait until the database answers.

    Raises:
        Mistake: it did not, in 30 tries a second apart.
    """
    for number in range(1, _TRIES + 1):
        try:
            with connect(configuration):
                return
        except psycopg.OperationalError as error:
            log.warning("PostgreSQL connection failed, try %d of %d: %s", number, _TRIES, str(error).strip())
        time.sleep(1)
    raise Mistake(f"PostgreSQL did not answer in {_TRIES} tries")


def migrate(configuration: Configuration) -> None:
    """Bring the schema to this release, one process at a time.

    Raises:
        Mistake: the schema is newer than this release, or a major lies between them.
    """
    with connect(configuration) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [_MIGRATIONS])
        here = _version(connection)
        if here is None:
            log.info("the database is empty: making the schema of %s", configuration.version)
            connection.execute(_SCHEMA)
        else:
            _check_step(here, configuration.version)
        if here != configuration.version:
            connection.execute("INSERT INTO authentik_version_history (version) VALUES (%s)", [configuration.version])
            log.info("migrated from %s to %s", here or "nothing", configuration.version)


def _version(connection: Connection) -> str | None:
    if connection.execute("SELECT to_regclass('authentik_version_history')").fetchone() == (None,):
        return None
    row = connection.execute("SELECT version FROM authentik_version_history ORDER BY id DESC LIMIT 1").fetchone()
    return row[0] if row else None


def _check_step(here: str, wanted: str) -> None:
    majors = [".".join(version.split(".")[:2]) for version in (here, wanted)]
    if majors[0] not in MAJORS or MAJORS.index(majors[0]) > MAJORS.index(majors[1]):
        raise Mistake(f"the database was migrated by {here}, this is {wanted}: there is no way back, restore a backup")
    step = MAJORS.index(majors[1]) - MAJORS.index(majors[0])
    if step > 1:
        first = MAJORS[MAJORS.index(majors[0]) + 1]
        raise Mistake(f"the database is of {here}, this is {wanted}: upgrade to {first} first, one major at a time")


@contextmanager
def exclusive(connection: Connection, number: int) -> Iterator[bool]:
    """Hold an advisory lock, unless somebody else does: then the value is False."""
    held = connection.execute("SELECT pg_try_advisory_lock(%s)", [number]).fetchone() == (True,)
    try:
        yield held
    finally:
        if held:
            connection.execute("SELECT pg_advisory_unlock(%s)", [number])


class PostgresStore:
    """The `Store` of the collection's fake, over one connection: what was read once is not read again."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._kinds: dict[str, dict[str, Json]] = {}

    def lock(self) -> None:
        """Let no other process write until this transaction ends: checks of uniqueness then hold."""
        self.connection.execute("SELECT pg_advisory_xact_lock(%s)", [_WRITES])

    def next_id(self, sequence: str) -> int:
        """Return the next number of a sequence, beginning with 1."""
        row = self.connection.execute(
            "INSERT INTO sequences VALUES (%s, 1) ON CONFLICT (name) DO UPDATE SET value = sequences.value + 1"
            " RETURNING value",
            [sequence],
        ).fetchone()
        return int(row[0]) if row else 0

    def put(self, kind: str, pk: str, row: Json) -> None:
        """Insert or replace a row."""
        self.connection.execute(
            "INSERT INTO objects (kind, pk, row) VALUES (%s, %s, %s)"
            " ON CONFLICT (kind, pk) DO UPDATE SET row = EXCLUDED.row",
            [kind, pk, json.dumps(row)],
        )
        self._kind(kind)[pk] = copy.deepcopy(row)

    def get(self, kind: str, pk: str) -> Json | None:
        """Return a copy of a row."""
        return copy.deepcopy(self._kind(kind).get(pk))

    def delete(self, kind: str, pk: str) -> None:
        """Remove a row that exists."""
        del self._kind(kind)[pk]
        self.connection.execute("DELETE FROM objects WHERE kind = %s AND pk = %s", [kind, pk])

    def rows(self, kind: str) -> list[Json]:
        """Return copies of all rows of a kind, the oldest first."""
        return copy.deepcopy(list(self._kind(kind).values()))

    def _kind(self, kind: str) -> dict[str, Json]:
        if kind not in self._kinds:
            found = self.connection.execute("SELECT pk, row FROM objects WHERE kind = %s ORDER BY number", [kind])
            self._kinds[kind] = dict(found.fetchall())
        return self._kinds[kind]


def keep(connection: Connection, kind: str, key: str, data: Json, seconds: float) -> None:
    """Store a session, code or token until it expires."""
    connection.execute(
        "INSERT INTO records VALUES (%s, %s, %s, now() + make_interval(secs => %s))"
        " ON CONFLICT (kind, key) DO UPDATE SET data = EXCLUDED.data, expires = EXCLUDED.expires",
        [kind, key, json.dumps(data), seconds],
    )


def kept(connection: Connection, kind: str, key: str) -> Json | None:
    """Return what `keep` stored and is not expired."""
    row = connection.execute(
        "SELECT data FROM records WHERE kind = %s AND key = %s AND expires > now()", [kind, key]
    ).fetchone()
    return row[0] if row else None


def take(connection: Connection, kind: str, key: str) -> Json | None:
    """Return and remove what `keep` stored and is not expired: of two who take it, one gets it."""
    row = connection.execute(
        "DELETE FROM records WHERE kind = %s AND key = %s RETURNING data, expires > now()", [kind, key]
    ).fetchone()
    return row[0] if row and row[1] else None


def forget(connection: Connection, kind: str, **data: Any) -> None:
    """Remove the records of a kind that hold these values."""
    connection.execute("DELETE FROM records WHERE kind = %s AND data @> %s", [kind, json.dumps(data)])
