"""The account that the lab's edge serves: the fake API's state, kept in a file so that the edge can be restarted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ansible_collections.kitestacks.homelab.tests.fakes._server import WRITES, Reply, Request
from ansible_collections.kitestacks.homelab.tests.fakes.cloudflare import CloudflareApi, Tunnel


class Account(CloudflareApi):
    """A `CloudflareApi` that writes its state after every change and begins with what it finds."""

    def __init__(self, zones: Iterable[str], *, tokens: Mapping[str, Iterable[str]], file: Path | None) -> None:
        """Load the state.

        Args:
            zones: names of zones; those that the file lacks are added.
            tokens: permissions by API token.
            file: where the state is kept (with the tunnels' secrets, so mode 0600); None keeps nothing.

        """
        super().__init__((), tokens=tokens)
        self._file = file
        if file is not None and file.exists():
            self._load(json.loads(file.read_text()))
        known = {zone["name"] for zone in self.zones.values()}
        for name in zones:
            if name not in known:
                self.add_zone(name)
        self._save()

    def handle(self, request: Request) -> Reply:
        """Answer a request; what it changed is on disk before the answer is sent."""
        reply = super().handle(request)
        if request.method in WRITES and reply.status < 300:
            self._save()
        return reply

    def _load(self, kept: dict[str, object]) -> None:
        tunnels = kept.pop("tunnels")
        if not isinstance(tunnels, dict):
            raise TypeError(f"{self._file} is no state of the edge")
        self.tunnels = {name: Tunnel(**tunnel) for name, tunnel in tunnels.items()}
        for name, value in kept.items():
            setattr(self, name, value)

    def _save(self) -> None:
        if self._file is None:
            return
        state = {name: getattr(self, name) for name in ("account", "zones", "records", "access", "_serial")}
        state["tunnels"] = {
            name: {part: getattr(tunnel, part) for part in ("document", "secret", "configuration", "version")}
            for name, tunnel in self.tunnels.items()
        }
        new = self._file.with_name(f"{self._file.name}.new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as handle:
            json.dump(state, handle)
        new.replace(self._file)
