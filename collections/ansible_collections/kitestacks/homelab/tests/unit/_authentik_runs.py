# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the Authentik modules against the stand-in: what their tests share."""

from __future__ import annotations

import importlib
import typing as t

from ansible_collections.kitestacks.homelab.tests.fakes._server import Server
from ansible_collections.kitestacks.homelab.tests.fakes.authentik import ADMIN_TOKEN, AuthentikApi, contract

from ._module import run_module

MODULES = (
    "authentik_applications",
    "authentik_blueprints",
    "authentik_groups",
    "authentik_info",
    "authentik_outposts",
    "authentik_providers",
    "authentik_scope_mappings",
    "authentik_users",
)


def module(name: str) -> t.Any:
    """Return an Authentik module by its name."""
    return importlib.import_module(f"ansible_collections.kitestacks.homelab.plugins.modules.{name}")


class Lab:
    """A stand-in that serves, and the modules against it."""

    def __init__(self, version: str = "2026.2.2") -> None:
        self.api = AuthentikApi(version_string=version)
        self.server = Server(self.api, contract=contract())

    def __enter__(self) -> Lab:
        self.server.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.server.stop()

    def run(self, name: str, *, check: bool = False, **options: t.Any) -> dict[str, t.Any]:
        """Return the result of one run; the log of calls holds this run alone."""
        self.server.calls.clear()
        self.server.connections = 0
        given = {"url": self.server.origin, "token": ADMIN_TOKEN, **options}
        return run_module(module(name).main, check=check, **given)

    def ok(self, name: str, **options: t.Any) -> dict[str, t.Any]:
        """Return the result of a run that has to succeed without breaking the contract."""
        result = self.run(name, **options)
        assert not result.get("failed"), result["msg"]
        assert self.server.violations == []
        return result

    def snapshot(self) -> dict[str, list[dict[str, t.Any]]]:
        """Return all that is stored."""
        kinds = ("oauth2", "ldap", "proxy", "applications", "groups", "users", "bindings", "outposts", "tokens")
        more = ("scope_mappings", "roles", "permissions", "blueprints", "policies")
        return {kind: self.api.store.rows(kind) for kind in (*kinds, *more)}


def actions(result: t.Mapping[str, t.Any]) -> list[tuple[str, str, str]]:
    """Return (kind, key, action) of everything that a run did."""
    lines = [(line["kind"], line["key"], line["action"]) for line in result["results"]]
    return [line for line in lines if line[2] != "unchanged"]
