# Copyright: KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the action plugin and the module of compose_stack share: options, path rules, and the form of the transfer."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from ansible_collections.kitestacks.homelab.plugins.module_utils._files import FileError, HostFile, pack, unpack

COMPOSE_FILE = "compose.yml"
OVERRIDE_FILE = "compose.kitestacks.yml"
MANIFEST_FILE = ".kitestacks.json"
PREVIOUS_DIRECTORY = ".previous"
STAGING_DIRECTORY = ".staging"
SECRETS_DIRECTORY = "secrets"
RESERVED = (OVERRIDE_FILE, MANIFEST_FILE, PREVIOUS_DIRECTORY, STAGING_DIRECTORY)

_PROJECT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")

_OWNERSHIP: dict[str, Any] = {"owner": {"type": "str"}, "group": {"type": "str"}, "mode": {"type": "str"}}
_SOURCE: dict[str, Any] = {
    "type": "list",
    "elements": "dict",
    "default": [],
    "options": {
        "src": {"type": "str", "required": True},
        "dest": {"type": "str"},
        "secret": {"type": "bool", "default": False},
        **_OWNERSHIP,
    },
}

ARGUMENT_SPEC: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "stopped", "absent"], "default": "present"},
    "project_directory": {"type": "path", "default": "/opt/kitestacks"},
    "templates": _SOURCE,
    "files": _SOURCE,
    "exclude": {"type": "list", "elements": "str", "default": []},
    "secrets": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "no_log": False,  # the list is no secret, its contents are
        "options": {
            "name": {"type": "str", "required": True},
            "content": {"type": "str", "required": True, "no_log": True},
            **_OWNERSHIP,
            "mode": {"type": "str", "default": "0400"},
        },
    },
    "directories": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"path": {"type": "str", "required": True}, **_OWNERSHIP},
    },
    "reload": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "service": {"type": "str", "required": True},
            "files": {"type": "list", "elements": "str", "required": True},
            "check": {"type": "list", "elements": "str", "default": []},
            "signal": {"type": "str", "default": "SIGHUP"},
        },
    },
    "in_turn": {"type": "list", "elements": "str", "default": []},
    "pull": {"type": "str", "choices": ["missing", "always", "never"], "default": "missing"},
    "wait_timeout": {"type": "int", "default": 120},
    "rollback": {"type": "bool", "default": True},
    "purge_data": {"type": "bool", "default": False},
}


class StackError(FileError):
    """A failure of a stack that the user can act upon."""


@dataclasses.dataclass(frozen=True)
class StackDirectory:
    """One data directory; what is None is left as it is found."""

    path: str
    mode: int | None = None
    owner: str | None = None
    group: str | None = None


@dataclasses.dataclass(frozen=True)
class Payload:
    """All that the controller knows of a stack, its files' paths relative to the stack's folder.

    services: the names in its compose file, as far as the controller can see.
    """

    files: tuple[HostFile, ...] = ()
    directories: tuple[StackDirectory, ...] = ()
    services: tuple[str, ...] = ()

    def pack(self) -> str:
        """Return the payload as one opaque string."""
        directories = [dataclasses.asdict(directory) for directory in self.directories]
        return pack(self.files, directories=directories, services=self.services)

    @classmethod
    def unpack(cls, packed: str) -> Payload:
        """Return the payload that `pack` made `packed` of."""
        document = unpack(packed)
        return cls(
            files=document["files"],
            directories=tuple(StackDirectory(**directory) for directory in document["directories"]),
            services=tuple(document["services"]),
        )


def check_name(name: str) -> None:
    """Raise StackError unless `name` is a compose project name (it is also a folder's name)."""
    if not _PROJECT_NAME.fullmatch(name):
        raise StackError(
            f"name: '{name}' is no project name: use lower case letters, digits, '-' and '_', a letter or digit first."
        )


def clean_path(path: str, option: str) -> str:
    """Return `path` in its shortest form; raise StackError when it leaves the project directory or is ours."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or not parts:
        raise StackError(f"{option}: '{path}' must be a path below the project directory, without '..'.")
    if parts[0] in RESERVED:
        raise StackError(f"{option}: '{path}' is a name that compose_stack keeps for itself; choose another.")
    return "/".join(parts)
