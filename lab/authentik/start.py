"""Starting a server or a worker."""

from __future__ import annotations

import logging
import signal
import threading

from lab.authentik import database, web, worker
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
    database.wait(configuration)
    database.migrate(configuration)
    worker.prepare(configuration)
    MODE_FILE.write_text(mode)
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
