"""The environment of Authentik's images, read as Authentik reads it.

Every AUTHENTIK_* may be `file:///path` or `env://NAME`, with `?default` for one that is not there;
AUTHENTIK_BOOTSTRAP_* are taken literally. The settings of PostgreSQL are read anew for every connection, so a changed
file counts at once.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

STAND_IN = "KiteStacks lab: a stand-in for Authentik, not Authentik"
MAJORS = ("2025.8", "2025.10", "2025.12", "2026.2", "2026.5", "2026.8", "2026.11")
"""The releases whose schemas follow each other: an upgrade may not skip one."""

MODE_FILE = Path(tempfile.gettempdir()) / "authentik-mode"
"""Says what runs in this container, for its health check."""

_TRUSTED = "127.0.0.0/8,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fe80::/10,::1/128"


class Mistake(Exception):  # noqa: N818 - it is the reader's, not ours
    """A setting that is missing or cannot be right; the message is for the log."""


@dataclass(frozen=True)
class Configuration:
    """What a server or worker was told; `environment` is kept for what is read again later."""

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def value(self, name: str, default: str = "") -> str:
        """Return AUTHENTIK_<name>, with file:// and env:// followed.

        Raises:
            Mistake: what a value points to is not there, and the value has no `?default`.
        """
        raw = self.environment.get(f"AUTHENTIK_{name}", default)
        url = urlsplit(raw)
        if url.scheme == "file":
            try:
                return Path(url.path).read_text().strip()
            except OSError as error:
                if url.query:
                    return url.query
                raise Mistake(f"AUTHENTIK_{name}: {error}") from None
        if url.scheme == "env":
            found = self.environment.get(url.netloc, url.query)
            if not found:
                raise Mistake(f"AUTHENTIK_{name}: the variable {url.netloc} is not set")
            return found
        return raw

    def check(self) -> None:
        """Refuse what Authentik refuses before it asks the database.

        Raises:
            Mistake: a setting is missing or wrong.
        """
        if not self.value("SECRET_KEY"):
            raise Mistake("Secret key missing: set AUTHENTIK_SECRET_KEY")
        if self.major not in MAJORS:
            raise Mistake(f"the lab knows no Authentik {self.version}: it plays {', '.join(MAJORS)}")
        if len(self.value("POSTGRESQL__PASSWORD")) > 99:
            raise Mistake("AUTHENTIK_POSTGRESQL__PASSWORD is longer than 99 characters")
        if self.needs_redis and not self.value("REDIS__HOST"):
            raise Mistake(f"AUTHENTIK_REDIS__HOST is missing: Authentik {self.version} keeps its cache in Redis")
        for name, port in (("HTTP", 9000), ("METRICS", 9300)):
            self.listen(name, port)
        self.database()

    @property
    def version(self) -> str:
        """The release that is played: the image's tag."""
        return self.environment.get("AUTHENTIK_LAB_VERSION", "2026.8.4")

    @property
    def major(self) -> str:
        """Year and month of the release."""
        return ".".join(self.version.split(".")[:2])

    @property
    def needs_redis(self) -> bool:
        """Whether this release still keeps cache and sessions in Redis."""
        return not self.at_least("2025.10")

    def at_least(self, major: str) -> bool:
        """Tell whether this release is that one or a later one."""
        return self.major not in MAJORS or MAJORS.index(self.major) >= MAJORS.index(major)

    def database(self) -> dict[str, Any]:
        """Return the arguments for psycopg.connect as they are now.

        Raises:
            Mistake: the port is not one number, or the options are not base64 of a JSON object.
        """
        port = self.value("POSTGRESQL__PORT", "5432")
        if not port.isdecimal():
            raise Mistake(f"AUTHENTIK_POSTGRESQL__PORT is {port!r}; it has to be one number")
        options: dict[str, Any] = {}
        encoded = self.value("POSTGRESQL__CONN_OPTIONS")
        if encoded:
            try:
                options = dict(json.loads(base64.b64decode(encoded)))
            except ValueError:
                raise Mistake("AUTHENTIK_POSTGRESQL__CONN_OPTIONS is not base64 of a JSON object") from None
        root = self.value("POSTGRESQL__SSLROOTCERT")
        return {
            "host": self.value("POSTGRESQL__HOST", "localhost"),
            "port": port,
            "dbname": self.value("POSTGRESQL__NAME", "authentik"),
            "user": self.value("POSTGRESQL__USER", "authentik"),
            "password": self.value("POSTGRESQL__PASSWORD"),
            "sslmode": self.value("POSTGRESQL__SSLMODE", "verify-ca"),
            **({"sslrootcert": root} if root else {}),
            **options,
        }

    def redis(self) -> dict[str, Any]:
        """Return the arguments for redis.Redis."""
        return {
            "host": self.value("REDIS__HOST"),
            "port": int(self.value("REDIS__PORT", "6379")),
            "password": self.value("REDIS__PASSWORD") or None,
            "socket_timeout": 5,
        }

    def listen(self, name: str, port: int) -> tuple[str, int]:
        """Return address and port of AUTHENTIK_LISTEN__<name>.

        Raises:
            Mistake: it is not ADDRESS:PORT.
        """
        everywhere = "[::]" if self.at_least("2026.5") else "0.0.0.0"  # noqa: S104 - as upstream
        raw = self.value(f"LISTEN__{name}", f"{everywhere}:{port}")
        host, _colon, number = raw.rpartition(":")
        if not number.isdecimal():
            raise Mistake(f"AUTHENTIK_LISTEN__{name} is {raw!r}; it has to be ADDRESS:PORT")
        return host.strip("[]") or everywhere.strip("[]"), int(number)

    def trusts(self, address: str) -> bool:
        """Tell whether X-Forwarded-* of a peer count."""
        peer = ipaddress.ip_address(address.removeprefix("::ffff:"))
        cidrs = self.value("LISTEN__TRUSTED_PROXY_CIDRS", _TRUSTED)
        networks = [ipaddress.ip_network(cidr.strip(), strict=False) for cidr in cidrs.split(",") if cidr.strip()]
        return any(peer in network for network in networks)

    def bootstrap(self) -> dict[str, str]:
        """Return token, email, password and password_hash for the first administrator, "" where none is given.

        Raises:
            Mistake: two forms of the password, or a hash that is none.
        """
        names = ("TOKEN", "EMAIL", "PASSWORD", "PASSWORD_HASH")
        found = {name.lower(): self.environment.get(f"AUTHENTIK_BOOTSTRAP_{name}", "") for name in names}
        if found["password"] and found["password_hash"]:
            raise Mistake("AUTHENTIK_BOOTSTRAP_PASSWORD and AUTHENTIK_BOOTSTRAP_PASSWORD_HASH exclude each other")
        if found["password_hash"] and not self.at_least("2026.5"):
            raise Mistake(
                f"Authentik {self.version} does not know AUTHENTIK_BOOTSTRAP_PASSWORD_HASH: it came with 2026.5"
            )
        if found["password_hash"] and found["password_hash"].count("$") != 3:
            raise Mistake("AUTHENTIK_BOOTSTRAP_PASSWORD_HASH is no hash (in a compose file a $ is written $$)")
        return found
