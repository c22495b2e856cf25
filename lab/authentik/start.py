"""Starting a server or a worker."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

from lab.authentik import database, sessions, web, worker
from lab.authentik.configuration import MODE_FILE, STAND_IN, Configuration

log = logging.getLogger(__name__)


def start(configuration: Configuration, mode: str) -> None:
    """Run a `server` or `worker` until it is told to stop.

    Raises:
        Mistake: it cannot start like this.
    """
    log.warning("%s %s, %s", STAND_IN, configuration.version, mode)
    configuration.check()
    if mode == "worker":
        configuration.bootstrap()
    # In a container this is process 1, which no signal ends that it does not handle.
    signal.signal(signal.SIGTERM, lambda *_arguments: sys.exit(0))
    database.wait(configuration)
    sessions.wait(configuration)
    database.migrate(configuration)
    worker.prepare(configuration)
    MODE_FILE.write_text(f"{mode} {os.getpid()}")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_arguments: stop.set())
    if mode == "server":
        site = web.Site(configuration)
        servers = [
            web.serve(site, configuration.listen("HTTP", 9000)),
            web.serve(web.Metrics(site), configuration.listen("METRICS", 9300)),
        ]
        log.info("listening on %s", [server.server_address for server in servers])
        stop.wait()
    else:
        servers = [web.serve(worker.Health(configuration), configuration.listen("HTTP", 9000))]
        worker.run(configuration, stop)
    for server in servers:
        server.shutdown()
