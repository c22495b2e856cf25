# Copyright: KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A set of files on the host that are written together: all are good, or none is replaced."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Callable

from ansible_collections.kitestacks.homelab.plugins.module_utils import _files
from ansible_collections.kitestacks.homelab.plugins.module_utils._files import Change, FileError, HostFile

ARGUMENT_SPEC: dict[str, Any] = {
    "files": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "dest": {"type": "str", "required": True},
            "src": {"type": "str"},
            "content": {"type": "str", "no_log": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "owner": {"type": "str"},
            "group": {"type": "str"},
            "mode": {"type": "str"},
            "secret": {"type": "bool", "default": False},
            "validate": {"type": "str"},
        },
    },
}


def plan(files: Iterable[HostFile], absent: Iterable[HostFile], strict: bool) -> list[Change]:
    """Return what differs on the host: files that shall be as they are given, and files that shall not be there.

    `strict`: an owner that does not exist is an error (not in check mode: a task before us may create it).
    """
    changes = [_files.compare(_not_a_directory(file), file, strict) for file in files]
    for file in absent:
        before = _files.read(_not_a_directory(file))
        if before is not None:
            attributes = _files.found_attributes(Path(file.path))
            changes.append(Change(file.path, before, None, attributes, "", file.secret))
    return [change for change in changes if change is not None]


def carry_out(changes: Sequence[Change], files: Iterable[HostFile], check: Callable[[HostFile, Path], None]) -> None:
    """Write all that changes beside its place, let `check` raise FileError over it, and only then replace and delete.

    Folders that are missing are made. A run that was cut off leaves whole files only, old or new, and perhaps one
    beside its place (`.NAME.new`), which the next change of that file takes away.
    """
    changed = {change.path for change in changes}
    folders = sorted({Path(path).parent for path in changed})
    for folder in folders:
        _make(folder)
    with _locked(folders):
        staged = {file.path: _beside(file.path) for file in files if file.path in changed}
        try:
            for file in files:
                if file.path in staged:
                    _files.write(staged[file.path], file)
            for file in files:
                if file.path in staged:
                    check(file, staged[file.path])
            for change in changes:
                if change.path in staged:
                    staged[change.path].replace(change.path)
                else:
                    Path(change.path).unlink(missing_ok=True)
        finally:
            for place in staged.values():
                place.unlink(missing_ok=True)
        for folder in folders:
            _files.sync_directory(folder)


def _beside(path: str) -> Path:
    """Return where a file is written before it takes its place: hidden, and not what a reader of *.conf looks for."""
    return Path(path).with_name(f".{Path(path).name}.new")


def _not_a_directory(file: HostFile) -> Path:
    place = Path(file.path)
    if place.is_dir() and not place.is_symlink():
        raise FileError(f"{place} is declared as a file, but is a directory. Nothing was changed.")
    return place


def _make(folder: Path) -> None:
    """Create a folder, and those above it, for everybody to read."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)


@contextlib.contextmanager
def _locked(folders: Iterable[Path]) -> Iterator[None]:
    """Hold a lock on the folders, which are in order: another run of ours that writes into them is waited for."""
    with contextlib.ExitStack() as held:
        for folder in folders:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            held.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
