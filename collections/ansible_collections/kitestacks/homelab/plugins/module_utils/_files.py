# Copyright: KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are rendered on the controller and written on a host: their transfer, comparison, writing and diff."""

from __future__ import annotations

import base64
import dataclasses
import grp
import hashlib
import json
import os
import pwd
import re
import stat
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable

REDACTED = "<redacted>"
REDACTED_CHANGED = "<redacted, changed>"
_MODE = re.compile(r"0[0-7]{3,4}")


class FileError(Exception):
    """A failure that the user can act upon; `details` are further keys of the task's result."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


@dataclasses.dataclass(frozen=True)
class HostFile:
    """One file as it shall be on the host. Owner and group None: who runs us."""

    path: str
    content: bytes
    mode: int
    owner: str | None = None
    group: str | None = None
    secret: bool = False


@dataclasses.dataclass(frozen=True)
class Change:
    """How one path differs from what it shall be. `before`: None when absent; `after`: None when to be deleted."""

    path: str
    before: bytes | None
    after: bytes | None
    before_attributes: str = ""
    after_attributes: str = ""
    secret: bool = False


def pack(files: Iterable[HostFile], **more: Any) -> str:
    """Return files, and `more` that JSON can tell, as ASCII: one opaque string that no_log hides, and nothing else."""
    entries = [
        {**dataclasses.asdict(file), "content": base64.b64encode(file.content).decode("ascii")} for file in files
    ]
    return base64.b64encode(zlib.compress(json.dumps({**more, "files": entries}).encode())).decode("ascii")


def unpack(packed: str) -> dict[str, Any]:
    """Return what `pack` was given, as a dict; `files` in it is a tuple of HostFile."""
    document: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    document["files"] = tuple(
        HostFile(**{**entry, "content": base64.b64decode(entry["content"])}) for entry in document["files"]
    )
    return document


def parse_mode(mode: str, option: str) -> int:
    """Return `mode` as a number; raise FileError unless it is octal with a leading zero."""
    if not _MODE.fullmatch(mode):
        raise FileError(f"{option}: mode '{mode}' must be a quoted octal string with a leading zero, such as \"0640\".")
    return int(mode, 8)


def user_id(owner: str | None) -> int:
    """Return the numeric id of a user name or number (None: who runs us); raise FileError when there is none."""
    if owner is None:
        return os.geteuid()
    if owner.isdigit():
        return int(owner)
    try:
        return pwd.getpwnam(owner).pw_uid
    except KeyError:
        raise FileError(
            f"owner: there is no user '{owner}' on the host; give a number for a user of a container."
        ) from None


def group_id(group: str | None) -> int:
    """Return the numeric id of a group name or number (None: who runs us); raise FileError when there is none."""
    if group is None:
        return os.getegid()
    if group.isdigit():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise FileError(
            f"group: there is no group '{group}' on the host; give a number for a group of a container."
        ) from None


def attribute_text(mode: int, uid: int, gid: int) -> str:
    """Return mode, owner and group in the words of the diff."""
    return f"mode 0{stat.S_IMODE(mode):03o}, owner {uid}, group {gid}"


def wanted_attributes(mode: int, owner: str | None, group: str | None, strict: bool) -> str:
    """Return what `attribute_text` shall tell. `strict`: an owner or group that does not exist is an error."""
    try:
        return attribute_text(mode, user_id(owner), group_id(group))
    except FileError:
        if strict:
            raise
        return f"mode 0{mode:03o}, owner {owner}, group {group}"


def found_attributes(place: Path) -> str:
    """Return what `attribute_text` tells of a file that is there."""
    found = place.lstat()
    kind = "" if stat.S_ISREG(found.st_mode) else "not a regular file, "
    return kind + attribute_text(found.st_mode, found.st_uid, found.st_gid)


def read(place: Path) -> bytes | None:
    """Return a file's content, or None. A symlink or a special file reads as empty, so that it is replaced."""
    try:
        mode = place.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(mode):
        return None
    return place.read_bytes() if stat.S_ISREG(mode) else b""


def compare(place: Path, file: HostFile, strict: bool) -> Change | None:
    """Return how the file at `place` differs from `file`, or None when it does not; `strict` as above."""
    before = read(place)
    attributes = found_attributes(place) if before is not None else ""
    expected = wanted_attributes(file.mode, file.owner, file.group, strict)
    if before == file.content and attributes == expected:
        return None
    return Change(file.path, before, file.content, attributes, expected, file.secret)


def write(target: Path, file: HostFile) -> None:
    """Write a new file at `target`, complete and on disk, nobody else's before it has its owner and mode."""
    target.unlink(missing_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(file.content)
        stream.flush()
        os.fchown(descriptor, user_id(file.owner), group_id(file.group))
        os.fchmod(descriptor, file.mode)
        os.fsync(descriptor)


def sync_directory(place: Path) -> None:
    """Have the names in a folder on disk."""
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def diff_entry(change: Change, place: str, scrub: Callable[[str], str] = str) -> dict[str, str]:
    """Return one entry of the task's diff, without secrets. `scrub` removes other files' secrets from a text."""
    entry = {"before_header": place, "after_header": place, "before": "", "after": ""}
    if change.before is not None or change.after is not None:
        redacted = REDACTED_CHANGED if change.before != change.after else REDACTED
        entry["before"] = _shown(change.before, change.secret, REDACTED, scrub)
        entry["after"] = _shown(change.after, change.secret, redacted, scrub)
    if change.before_attributes != change.after_attributes and change.before == change.after:
        entry["before"], entry["after"] = f"{change.before_attributes}\n", f"{change.after_attributes}\n"
    return entry


def _shown(content: bytes | None, secret: bool, redacted: str, scrub: Callable[[str], str]) -> str:
    if content is None:
        return ""
    if secret:
        return f"{redacted}\n"
    try:
        return scrub(content.decode())
    except UnicodeDecodeError:
        return f"<{len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}>\n"
