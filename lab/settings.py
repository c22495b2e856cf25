"""What the lab is made of: names, addresses and folders. Everything else derives from here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""
STATE = ROOT / ".cache" / "lab"
"""Keys, certificates and logs of the lab of this checkout; gone after `bin/lab down --purge`."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kitestacks"
"""Built things that any checkout may use again, each under a name made of everything it was built from."""

LABEL = "kitestacks.lab"
"""Label on every container, network and volume of the lab; its value is the checkout that made it."""
NETWORK = "lab-net"
SUBNET = "172.30.5.0/24"
GATEWAY = "172.30.5.1"
DOMAIN = "kitestacks.test"
SSH_USER = "ops"
PUSH_PORT = 5055
"""Loopback port of the lab registry for pushes from this machine."""


@dataclass(frozen=True)
class Machine:
    """A container of the lab that has an address of its own.

    `names` are the public names that the lab's name server resolves to it.
    """

    name: str
    address: str
    image: str
    names: tuple[str, ...] = ()


HOSTS = (
    Machine("monk", "172.30.5.11", "host"),
    Machine("kscloud1", "172.30.5.12", "host"),
)
"""The two bare hosts, reached over ssh like real ones."""

REGISTRY_NAMES = (
    "registry-1.docker.io",
    "ghcr.io",
    "quay.io",
    "lscr.io",
    "codeberg.org",
    "code.forgejo.org",
)
REGISTRY = Machine("lab-registry", "172.30.5.2", "registry", REGISTRY_NAMES)
"""Container registry under the upstream names."""
WEB = Machine("lab-web", "172.30.5.3", "nginx-unprivileged", ("pkgs.tailscale.com",))
"""Package repository under the upstream name."""
TAILNET = Machine("lab-tailnet", "172.30.5.4", "base")
"""Stand-in for Tailscale's control server; clients know it by its address (docs/lab.md says why)."""
CLOUDFLARE = Machine("lab-cloudflare", "172.30.5.5", "cloudflare", ("api.cloudflare.com", "h2.cftunnel.com"))
"""Stand-in for Cloudflare: the API, the edge for visitors, and the edge for connectors."""
TUNNEL_EDGE = tuple(f"172.30.5.{number}" for number in range(51, 57))
"""More addresses of the same edge: a connector takes one for each of its four connections, and needs spares."""
DNS = Machine("lab-dns", "172.30.5.6", "dns")
"""Name server of hosts and containers: the names below, and what the machine itself can resolve."""
SERVICES = (REGISTRY, WEB, TAILNET, CLOUDFLARE, DNS)

GUEST = Machine("lab-guest", "172.30.5.21", "tools")
"""A stranger on the lab's network, later a third node of the tailnet: scans are made from here."""
