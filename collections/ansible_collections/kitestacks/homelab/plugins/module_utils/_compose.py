# Copyright: KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the action plugin and the module of compose_stack share: options, path rules, and the form of the transfer."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import zlib
from typing import Any

COMPOSE_FILE = "compose.yml"
OVERRIDE_FILE = "compose.kitestacks.yml"
MANIFEST_FILE = ".kitestacks.json"
PREVIOUS_DIRECTORY = ".previous"
STAGING_DIRECTORY = ".staging"
SECRETS_DIRECTORY = "secrets"
RESERVED = (OVERRIDE_FILE, MANIFEST_FILE, PREVIOUS_DIRECTORY, STAGING_DIRECTORY)

_PROJECT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_MODE = re.compile(r"0[0-7]{3,4}")

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
    "pull": {"type": "str", "choices": ["missing", "always", "never"], "default": "missing"},
    "wait_timeout": {"type": "int", "default": 120},
    "rollback": {"type": "bool", "default": True},
    "purge_data": {"type": "bool", "default": False},
}


class StackError(Exception):
    """A failure that the user can act upon; `details` are further keys of the task's result."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


@dataclasses.dataclass(frozen=True)
class StackFile:
    """One file as it shall be on the host. `path` is relative to the project directory; owner None: who runs us."""

    path: str
    content: bytes
    mode: int
    owner: str | None = None
    group: str | None = None
    secret: bool = False


@dataclasses.dataclass(frozen=True)
class StackDirectory:
    """One data directory; what is None is left as it is found."""

    path: str
    mode: int | None = None
    owner: str | None = None
    group: str | None = None


@dataclasses.dataclass(frozen=True)
class Payload:
    """All that the controller knows of a stack. `services` are the names in its compose file, as far as it can see."""

    files: tuple[StackFile, ...] = ()
    directories: tuple[StackDirectory, ...] = ()
    services: tuple[str, ...] = ()

    def pack(self) -> str:
        """Return the payload as ASCII: one opaque string, so that no_log hides it without masking other output."""
        document = dataclasses.asdict(self)
        for file in document["files"]:
            file["content"] = base64.b64encode(file["content"]).decode("ascii")
        return base64.b64encode(zlib.compress(json.dumps(document).encode())).decode("ascii")

    @classmethod
    def unpack(cls, packed: str) -> Payload:
        """Return the payload that `pack` made `packed` of."""
        document = json.loads(zlib.decompress(base64.b64decode(packed)))
        for file in document["files"]:
            file["content"] = base64.b64decode(file["content"])
        return cls(
            files=tuple(StackFile(**file) for file in document["files"]),
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


def parse_mode(mode: str, option: str) -> int:
    """Return `mode` as a number; raise StackError unless it is octal with a leading zero."""
    if not _MODE.fullmatch(mode):
        raise StackError(
            f"{option}: mode '{mode}' must be a quoted octal string with a leading zero, such as \"0640\"."
        )
    return int(mode, 8)
