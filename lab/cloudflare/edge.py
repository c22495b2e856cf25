"""The lab's Cloudflare: API and edge in one program.

`python -m lab.cloudflare.edge --certificate server.pem --zone kitestacks.test` listens for visitors and the API's
clients (https, HTTP/1.1 and HTTP/2; requests for api.cloudflare.com are the API's) and for connectors (7844).

What Cloudflare does and documents nowhere is a setting, see `tunnels.Settings`: GET https://api.cloudflare.com/_edge/state
shows them, POST /_edge/settings changes them. The account is kept in the file `--state`; without it, only in memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import ssl
from pathlib import Path

from ansible_collections.kitestacks.homelab.tests.fakes._contract import Contract
from ansible_collections.kitestacks.homelab.tests.fakes._server import Server
from ansible_collections.kitestacks.homelab.tests.fakes.cloudflare import CONTRACT, PERMISSIONS, TOKEN

from lab.cloudflare import protocol
from lab.cloudflare.account import Account
from lab.cloudflare.public import Front
from lab.cloudflare.tunnels import Settings, Tunnels

log = logging.getLogger("edge")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="lab.cloudflare.edge", description="The lab's stand-in for Cloudflare.")
    parser.add_argument("--certificate", type=Path, required=True, help="PEM file: certificate, and key unless --key")
    parser.add_argument("--key", type=Path, help="PEM file with the certificate's key")
    parser.add_argument("--address", default="0.0.0.0", help="address to listen on")  # noqa: S104 - it is a server
    parser.add_argument("--public-port", type=int, default=443, help="https for visitors and the API; 0: any")
    parser.add_argument("--tunnel-port", type=int, default=protocol.EDGE_PORT, help="connectors; 0: any")
    parser.add_argument("--api-port", type=int, default=0, help="the API without TLS, on loopback only; 0: any")
    parser.add_argument("--api-name", action="append", default=[], help="one more host name, or address, of the API")
    parser.add_argument("--zone", action="append", required=True, help="name of a zone of the account; repeatable")
    parser.add_argument("--token-file", type=Path, help=f"file with the API token that may do everything; else {TOKEN}")
    parser.add_argument("--ports-file", type=Path, help="where to write the ports as JSON once they are open")
    parser.add_argument("--state", type=Path, help="file that keeps the account over restarts")
    parser.add_argument(
        "--contract", action="store_true", help="check the API's exchanges against the vendor's document"
    )
    parser.add_argument("--ping-interval", type=float, default=Settings.ping_interval)
    parser.add_argument("--ping-timeout", type=float, default=Settings.ping_timeout)
    parser.add_argument(
        "--retry", action="store_true", help="send requests without a body again when a connection breaks"
    )
    return parser.parse_args(argv)


def _context(options: argparse.Namespace, *protocols: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.certificate, options.key)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


async def run(options: argparse.Namespace, stop: asyncio.Event) -> None:
    """Serve until `stop` is set."""
    token = options.token_file.read_text().strip() if options.token_file else TOKEN
    api = Account(options.zone, tokens={token: PERMISSIONS}, file=options.state)
    contract = Contract.load(CONTRACT) if options.contract else None
    with Server(api, port=options.api_port, contract=contract) as server:
        settings = Settings(retry=options.retry, ping_interval=options.ping_interval, ping_timeout=options.ping_timeout)
        tunnels = Tunnels(server, api, settings)
        front = Front(tunnels, server, options.api_name)
        listeners = [
            await asyncio.start_server(
                front.accept, options.address, options.public_port, ssl=_context(options, "h2", "http/1.1"), backlog=512
            ),
            await asyncio.start_server(tunnels.accept, options.address, options.tunnel_port, ssl=_context(options)),
        ]
        ports = dict(zip(("public", "tunnel"), (each.sockets[0].getsockname()[1] for each in listeners), strict=True))
        ports["api"] = int(server.origin.rsplit(":", 1)[1])
        log.info("KiteStacks' stand-in for Cloudflare: %s, zones %s", ports, ", ".join(options.zone))
        if options.ports_file:
            made = options.ports_file.with_suffix(".new")
            made.write_text(json.dumps(ports))
            made.replace(options.ports_file)
        await stop.wait()
        for listener in listeners:
            listener.close()
        for session in list(tunnels.sessions):
            session.connection.close("the edge stops")


async def _main(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await run(options, stop)


def main() -> None:
    """Run the program."""
    options = arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(options))


if __name__ == "__main__":
    main()
