"""A connector that takes cloudflared's place in the lab. It is KiteStacks' own and says so; it is not cloudflared.

It has cloudflared's commands, flags and environment as far as the role `cloudflared` uses them, speaks its HTTP/2
protocol (never QUIC) and serves /ready, /healthcheck, /config and metrics of the same names.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import http.client
import json
import logging
import os
import random
import signal
import ssl
import sys
import uuid
from collections import Counter
from pathlib import Path

from lab.cloudflare import http1, http2, protocol, rpc
from lab.cloudflare.ingress import ConfigurationError, Ingress, seconds

log = logging.getLogger("connector")
VERSION = "2026.8.2"
"""The release of cloudflared whose protocol and flags these are."""
TITLE = f"cloudflared version {VERSION} (KiteStacks' stand-in for the lab, not the real cloudflared)"
_REGIONS = ("region1.v2.argotunnel.com", "region2.v2.argotunnel.com")
_METRICS_PORTS = range(20241, 20246)
_LONGEST_GRACE = 180.0


class Exit(Exception):  # noqa: N818 - not always an error
    """The program cannot go on: what to say."""


class Connector:
    """All connections of one process to the edge."""

    def __init__(self, options: argparse.Namespace, token: protocol.Token) -> None:
        """Take parsed options, see `arguments`."""
        self.options = options
        self.token = token
        self.id = str(uuid.uuid4())
        self.ingress = Ingress(self.id)
        self.connected: dict[int, http2.Connection] = {}
        self.attempting: set[int] = set()
        self.registered = 0
        self.refused: Counter[str] = Counter()
        self.locations: dict[int, str] = {}
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        """Keep the connections up until `stopping` is set, then drain them within the grace period."""
        first = asyncio.Event()
        loops = [asyncio.ensure_future(self._keep(0, first))]
        ahead = [asyncio.ensure_future(event.wait()) for event in (first, self.stopping)]
        await asyncio.wait(ahead, return_when=asyncio.FIRST_COMPLETED)
        if not self.stopping.is_set():
            if self.options.pidfile:
                Path(self.options.pidfile).write_text(str(os.getpid()))
            loops += [
                asyncio.ensure_future(self._keep(index, first)) for index in range(1, self.options.ha_connections)
            ]
        await self.stopping.wait()
        log.info("Initiating graceful shutdown due to signal terminated ...")
        _done, late = await asyncio.wait(loops, timeout=self.options.grace_period)
        if late:
            log.warning("The grace period of %s s is over: what is in flight is cut off", self.options.grace_period)
        for task in [*late, *ahead]:
            task.cancel()
        for connection in self.connected.values():
            connection.close()

    async def _keep(self, index: int, first: asyncio.Event) -> None:
        failures = 0
        while not self.stopping.is_set():
            self.attempting.add(index)
            try:
                if await self._connection(index, failures, first):
                    failures = 0
            except rpc.Refused as refused:
                self.refused["server_error"] += 1
                log.error('Register tunnel error from server side error="%s" connIndex=%d', refused, index)
            except (OSError, EOFError, ValueError) as wrong:
                log.error('Serve tunnel error error="%s" connIndex=%d', wrong or type(wrong).__name__, index)
            finally:
                self.attempting.discard(index)
            if self.stopping.is_set():
                return
            # Like cloudflared: 1, 2, 4 ... s, as often doubled as --retries says; spread, so that hosts do not march.
            delay = min(2.0**failures, 2.0**self.options.retries) * random.uniform(0.5, 1.0)  # noqa: S311
            failures += 1
            log.info("Retrying connection in up to %.1f s connIndex=%d", delay, index)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), delay)

    async def _connection(self, index: int, failures: int, first: asyncio.Event) -> bool:
        """Hold one connection until it ends; return whether it was registered."""
        host, port = self._address(index + failures)
        context = ssl.create_default_context(cafile=self.options.cacert or os.environ.get("SSL_CERT_FILE") or None)
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(host, port, ssl=context, server_hostname=protocol.EDGE_NAME), 15
        )
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        async def handler(stream: http2.Stream) -> None:
            kind = stream.header(protocol.UPGRADE)
            if kind == protocol.CONTROL:
                try:
                    await self._control(stream, connection, index, failures, first)
                except (rpc.Refused, EOFError, OSError) as wrong:
                    if not done.done():
                        done.set_exception(wrong)
                    connection.close("the control stream ended")
            elif kind == protocol.CONFIGURATION:
                await self._configure(stream)
            else:
                await self.ingress.carry(stream)

        connection = http2.Connection(reader, writer, client=False, handler=handler)
        try:
            await connection.run()
        finally:
            registered = self.connected.pop(index, None) is not None
        if done.done() and not registered:
            done.result()
        log.info("Lost connection with the edge connIndex=%d (%s)", index, connection.failure)
        return registered

    def _address(self, number: int) -> tuple[str, int]:
        if self.options.edge:
            addresses = self.options.edge
            host, _, port = addresses[number % len(addresses)].rpartition(":")
            return host, int(port)
        return _REGIONS[number % len(_REGIONS)], protocol.EDGE_PORT

    async def _control(
        self, stream: http2.Stream, connection: http2.Connection, index: int, failures: int, first: asyncio.Event
    ) -> None:
        await stream.send_headers([(":status", "200")])
        client = rpc.Client(stream)
        wanted = rpc.Registration(
            account=self.token.account,
            secret=base64.b64decode(self.token.secret),
            tunnel_id=self.token.tunnel_id,
            index=index,
            client_id=self.id,
            version=VERSION,
            attempts=failures,
        )
        details = await asyncio.wait_for(client.register(wanted), 5)
        self.connected[index] = connection
        self.attempting.discard(index)
        self.registered += 1
        self.locations[index] = details.location
        log.info(
            "Registered tunnel connection connIndex=%d connection=%s location=%s protocol=http2",
            index, details.connection_id, details.location,
        )  # fmt: skip
        first.set()
        await self.stopping.wait()
        await asyncio.wait_for(client.unregister(), self.options.grace_period)
        log.info("Unregistered tunnel connection connIndex=%d", index)
        await stream.end()  # the edge closes the connection when nothing is in flight any more

    async def _configure(self, stream: http2.Stream) -> None:
        body = b""
        while data := await stream.read():
            body += data
        answer: dict[str, object] = {"err": None}
        try:
            document = json.loads(body)
            before = self.ingress.version
            self.ingress.update(int(document["version"]), document["config"])
            if self.ingress.version != before:
                log.info("Updated to new configuration version=%d", self.ingress.version)
        except (ConfigurationError, ValueError, KeyError, TypeError, AttributeError) as wrong:
            log.error('Failed to deserialize new configuration error="%s"', wrong)
            answer["err"] = {}
        answer["lastAppliedVersion"] = self.ingress.version
        await stream.send_headers([(":status", "200")])
        await stream.write(json.dumps(answer).encode())
        await stream.end()

    # What monitoring sees.

    async def probe(self, request: http1.Request, responder: http1.Responder) -> None:
        """Answer on the metrics port."""
        path = request.target.partition("?")[0]
        if path == "/ready":
            count = 0 if self.stopping.is_set() else len(self.connected)
            status = 200 if count else 503
            body = json.dumps({"status": status, "readyConnections": count, "connectorId": self.id})
            await responder.reply(status, body.encode())
        elif path == "/healthcheck":
            await responder.reply(200, b"OK\n")
        elif path == "/config":
            body = json.dumps({"version": self.ingress.version, "config": self.ingress.config})
            await responder.reply(200, body.encode(), "application/json")
        elif path == "/metrics":
            await responder.reply(200, self._metrics().encode(), "text/plain; version=0.0.4; charset=utf-8")
        else:
            await responder.reply(404, b"404 page not found\n")

    def _metrics(self) -> str:
        figures = self.ingress.figures
        tunnel = "cloudflared_tunnel_"
        families: list[tuple[str, str, dict[str, float]]] = [
            (
                "build_info",
                "gauge",
                {f'{{goversion="",revision="kitestacks-stand-in",type="",version="{VERSION}"}}': 1},
            ),
            (f"{tunnel}ha_connections", "gauge", {"": len(set(self.connected) | self.attempting)}),
            (f"{tunnel}total_requests", "counter", {"": figures.total}),
            (f"{tunnel}request_errors", "counter", {"": figures.errors}),
            (f"{tunnel}concurrent_requests_per_tunnel", "gauge", {"": figures.running}),
            (
                f"{tunnel}response_by_code",
                "counter",
                {f'{{status_code="{code}"}}': count for code, count in figures.by_code.items()},
            ),
            (
                f"{tunnel}server_locations",
                "gauge",
                {f'{{connection_id="{index}",edge_location="{name}"}}': 1 for index, name in self.locations.items()},
            ),
            (f"{tunnel}tunnel_register_success", "counter", {'{rpcName="registerConnection"}': self.registered}),
            (
                f"{tunnel}tunnel_register_fail",
                "counter",
                {f'{{error="{why}",rpcName="registerConnection"}}': count for why, count in self.refused.items()},
            ),
            ("cloudflared_orchestration_config_version", "gauge", {"": self.ingress.version}),
        ]
        lines = []
        for name, kind, samples in families:
            if samples:
                lines += [f"# HELP {name} See cloudflared.", f"# TYPE {name} {kind}"]
                lines += [f"{name}{labels} {value}" for labels, value in samples.items()]
        return "\n".join(lines) + "\n"


def _variable(name: str, default: str | None = None) -> str | None:
    return os.environ.get(name) or default


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cloudflared", description=TITLE, allow_abbrev=False)
    parser.add_argument("--version", "-v", action="version", version=TITLE)
    parser.add_argument("--no-autoupdate", action="store_true", help="accepted: it never updates itself")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("version", help="say what this is")
    tunnel = commands.add_parser("tunnel", allow_abbrev=False)
    tunnel.add_argument("--no-autoupdate", action="store_true", help="accepted: it never updates itself")
    tunnel.add_argument("--metrics", default=_variable("TUNNEL_METRICS"))
    tunnel.add_argument("--protocol", default=_variable("TUNNEL_TRANSPORT_PROTOCOL", "auto"))
    tunnel.add_argument("--edge", default=_variable("TUNNEL_EDGE", ""))
    tunnel.add_argument("--cacert", default=_variable("TUNNEL_CACERT"))
    tunnel.add_argument("--grace-period", default=_variable("TUNNEL_GRACE_PERIOD", "30s"))
    tunnel.add_argument("--retries", type=int, default=int(_variable("TUNNEL_RETRIES", "5") or 5))
    tunnel.add_argument("--ha-connections", type=int, default=int(_variable("TUNNEL_HA_CONNECTIONS", "4") or 4))
    tunnel.add_argument("--loglevel", default=_variable("TUNNEL_LOGLEVEL", "info"))
    tunnel.add_argument("--pidfile", default=_variable("TUNNEL_PIDFILE"))
    for name in ("--region", "--edge-ip-version", "--edge-bind-address", "--tag", "--config", "--origincert"):
        tunnel.add_argument(name, help="accepted, changes nothing")
    for name in ("--post-quantum", "--no-prechecks"):
        tunnel.add_argument(name, action="store_true", help="accepted, changes nothing")
    actions = tunnel.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run", allow_abbrev=False)
    run.add_argument("--token", default=_variable("TUNNEL_TOKEN"))
    run.add_argument("--token-file", default=_variable("TUNNEL_TOKEN_FILE"))
    run.add_argument("tunnel", nargs="?", help="accepted: the token names the tunnel")
    actions.add_parser("ready")
    return parser


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line and the environment.

    Raises:
        Exit: a value that cannot be used.

    """
    options = _parser().parse_args(argv)
    if options.command == "tunnel":
        options.edge = [address for address in options.edge.split(",") if address]
        try:
            options.grace_period = min(seconds(options.grace_period), _LONGEST_GRACE)
        except ConfigurationError as wrong:
            raise Exit(f"--grace-period: {wrong}") from None
        if options.protocol not in ("auto", "http2"):
            raise Exit(f"--protocol {options.protocol}: this stand-in speaks http2 only (auto or http2)")
    return options


def _token(options: argparse.Namespace) -> protocol.Token:
    text = options.token
    if not text and options.token_file:
        try:
            text = Path(options.token_file).read_text()
        except OSError as wrong:
            raise Exit(f"Failed to read token file: {wrong}") from None
    if not text:
        raise Exit("cloudflared tunnel run needs a token: --token-file, TUNNEL_TOKEN_FILE or TUNNEL_TOKEN")
    try:
        return protocol.Token.parse(text)
    except ValueError as wrong:
        raise Exit(f"Provided Tunnel token is not valid: {wrong}") from None


def ready(metrics: str | None) -> int:
    """Ask a running connector whether it is ready; return the exit status, as the in-image health check wants it."""
    host, _, port = (metrics or "").rpartition(":")
    if not port:
        raise Exit("--metrics is required to be set: the address of the running connector's metrics")
    try:
        connection = http.client.HTTPConnection(host or "127.0.0.1", int(port), timeout=5)
        connection.request("GET", "/ready")
        answer = connection.getresponse()
        text = answer.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as wrong:
        raise Exit(f"no connector answers on {metrics}: {wrong}") from None
    if answer.status != http.HTTPStatus.OK:
        raise Exit(f"/ready endpoint returned status code {answer.status}\n{text}")
    return 0


async def _listen(connector: Connector, metrics: str | None) -> asyncio.Server:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await http1.serve(reader, writer, connector.probe)

    if metrics:
        host, _, port = metrics.rpartition(":")
        return await asyncio.start_server(accept, host or None, int(port))
    for number in _METRICS_PORTS:
        with contextlib.suppress(OSError):
            return await asyncio.start_server(accept, "127.0.0.1", number)
    raise Exit("no port is free for the metrics: give one with --metrics")


async def _run(options: argparse.Namespace, token: protocol.Token) -> None:
    connector = Connector(options, token)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if connector.stopping.is_set():
            os._exit(0)  # a second signal: now
        connector.stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        listener = await _listen(connector, options.metrics)
    except OSError as wrong:
        raise Exit(f"Error opening metrics server listener: {wrong}") from None
    log.info("%s", TITLE)
    log.info("Starting tunnel tunnelID=%s connector=%s", token.tunnel_id, connector.id)
    log.info("Starting metrics server on %s", listener.sockets[0].getsockname())
    await connector.run()
    listener.close()
    log.info("Tunnel server stopped")


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    try:
        options = arguments(sys.argv[1:] if argv is None else argv)
        if options.command == "version":
            print(TITLE)
            return 0
        if options.action == "ready":
            return ready(options.metrics)
        level = {"warn": "WARNING", "fatal": "CRITICAL"}.get(options.loglevel, options.loglevel.upper())
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
        asyncio.run(_run(options, _token(options)))
    except Exit as wrong:
        print(wrong, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
