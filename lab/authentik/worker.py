"""The worker: the first administrator, the default blueprints some moments later, and blueprints on demand."""

from __future__ import annotations

import logging
import threading
import time

import psycopg
from joserfc.jwk import RSAKey
from werkzeug.wrappers import Request, Response

from lab.authentik import blueprints, database, passwords
from lab.authentik.api import Api
from lab.authentik.configuration import Configuration

log = logging.getLogger(__name__)

_TASKS = 1002


def prepare(configuration: Configuration) -> None:
    """Make what a server or worker makes itself: the certificate, its key, and the embedded outpost."""
    with database.connect(configuration) as connection:
        if connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,):
            log.warning("the database is a read-only standby: nothing can be written")
            return
        api = Api(connection, configuration.version)
        api.store.lock()
        if not api.store.rows("certificates"):
            api.install_certificate()
        for certificate in api.store.rows("certificates"):
            key = RSAKey.generate_key(2048, private=True).as_pem(private=True).decode()
            connection.execute(
                "INSERT INTO secrets VALUES (%s, %s) ON CONFLICT DO NOTHING", [f"key {certificate['pk']}", key]
            )


def run(configuration: Configuration, stop: threading.Event) -> None:
    """Work until told to stop; a database that goes away is waited for."""
    delay = float(configuration.value("LAB_BLUEPRINT_DELAY", "3"))
    started = time.monotonic()
    installed = False
    while not stop.wait(1 if installed else 0.2):
        try:
            with database.connect(configuration) as connection, database.exclusive(connection, _TASKS) as mine:
                api = Api(connection, configuration.version)
                if mine and not installed:
                    installed = _install(configuration, api, late=time.monotonic() - started >= delay)
                if mine:
                    _tend(api)
                # The lock outlives a transaction: what was done has to be seen before the next one gets it.
                connection.commit()
        except psycopg.Error as error:
            log.warning("the database does not answer: %s", str(error).strip())
            stop.wait(1)


def _install(configuration: Configuration, api: Api, *, late: bool) -> bool:
    """Make what is not there yet; tell whether everything is."""
    if not any(user["username"] == "akadmin" for user in api.store.rows("users")):
        _bootstrap(configuration, api)
    if late and not api.store.rows("flows"):
        api.store.lock()
        api.install_defaults()
        log.info("default blueprints applied")
    return bool(api.store.rows("flows"))


def _tend(api: Api) -> None:
    api.store.connection.execute("DELETE FROM records WHERE expires < now()")
    for row in api.store.rows("blueprints"):
        if row.get("polls") is not None:
            api.store.lock()
            blueprints.apply(api, row)


def _bootstrap(configuration: Configuration, api: Api) -> None:
    given = configuration.bootstrap()
    api.store.lock()
    api.install_accounts(given["token"], given["email"] or "root@example.com")
    admin = api.user("akadmin")
    kept = given["password_hash"] or (passwords.make(given["password"]) if given["password"] else None)
    api.store.put("users", str(admin["pk"]), {**admin, "password": kept})
    log.info("first start: akadmin made, %s token", "with its" if given["token"] else "without a")


class Health:
    """The worker's own health check: 503 without a database, where the server says 500."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration

    def __call__(self, environ: dict[str, object], start_response: object) -> object:
        """Answer one request."""
        request = Request(environ)
        if request.path not in ("/-/health/live/", "/-/health/ready/"):
            return Response(status=404)(environ, start_response)  # type: ignore[arg-type]
        status = 200
        if request.path == "/-/health/ready/":
            try:
                with database.connect(self.configuration):
                    pass
            except psycopg.Error:
                status = 503
        return Response(status=status)(environ, start_response)  # type: ignore[arg-type]
