"""The commands of the image ghcr.io/goauthentik/server: `server`, `worker`, and what `ak` does."""

from __future__ import annotations

import http.client
import logging
import os
import sys
from pathlib import Path

from lab.authentik import passwords
from lab.authentik.configuration import MODE_FILE, STAND_IN, Configuration, Mistake

log = logging.getLogger("authentik")


def _healthy(configuration: Configuration) -> bool:
    """Tell whether what runs in this container does: a server answers, a worker is a process."""
    if not MODE_FILE.exists():
        return False
    mode, pid = MODE_FILE.read_text().split()
    if mode == "worker":
        return Path("/proc", pid).exists()
    host, port = configuration.listen("HTTP", 9000)
    connection = http.client.HTTPConnection("127.0.0.1" if host in ("0.0.0.0", "::") else host, port, timeout=10)  # noqa: S104
    try:
        connection.request("HEAD", "/-/health/live/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def main(arguments: list[str]) -> int:
    """Run a command; return its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    configuration = Configuration(dict(os.environ))
    match arguments:
        case ["server" | "worker" as mode]:
            from lab.authentik import start  # noqa: PLC0415 - a health check has no use for all of it

            try:
                start.start(configuration, mode)
            except Mistake as mistake:
                log.error("%s", mistake)
                return 1
        case ["healthcheck"]:
            return 0 if _healthy(configuration) else 1
        case ["hash_password"]:
            print(passwords.make(sys.stdin.readline().rstrip("\n")))
        case ["version"]:
            print(f"{configuration.version} ({STAND_IN})")
        case _:
            print("usage: ak server | worker | healthcheck | hash_password | version", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
