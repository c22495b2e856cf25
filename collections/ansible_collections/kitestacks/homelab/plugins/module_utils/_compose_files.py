# Copyright: KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a stack on the host: compare, stage, replace, snapshot, and the manifest that says what is ours."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ansible_collections.kitestacks.homelab.plugins.module_utils import _files
from ansible_collections.kitestacks.homelab.plugins.module_utils._compose import (
    MANIFEST_FILE,
    PREVIOUS_DIRECTORY,
    SECRETS_DIRECTORY,
    STAGING_DIRECTORY,
    StackDirectory,
    StackError,
)
from ansible_collections.kitestacks.homelab.plugins.module_utils._files import Change, HostFile

PROJECT_MODE = (
    0o750  # keeps other users of the host out; container users come in through bind mounts, which root resolves
)


@dataclasses.dataclass
class Manifest:
    """What we know of a stack between two runs (`.kitestacks.json`, mode 0600). Holds no secret, only keyed hashes.

    status: "deployed" when the last run ended well, "deploying" from the first write until then.
    files: path -> {"secret": bool}, all that we ever wrote and have not deleted yet.
    services: name -> ServiceSummary as a dict, for the stack whose fingerprint is `digest`.
    accepted: service -> [hash by `compose config`, label on the container] of the last good run; the two differ when a
    service has an env_file (compose 2.26), though nothing has changed.
    reloaded: service -> {"hash": of its reload files, "containers": ids that got the signal for them}.
    restart: services that hold a file open which was edited on the host; restarted before the run counts as done.
    previous: name of the snapshot below `.previous/` that a failed run goes back to.
    """

    salt: str
    status: str = "new"
    digest: str = ""
    files: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    services: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    reload: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    accepted: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    reloaded: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    restart: list[str] = dataclasses.field(default_factory=list)
    previous: str | None = None

    def keyed_hash(self, *parts: Any) -> str:
        """Return a hash of JSON-able `parts` that says nothing about a short secret to who has not the salt."""
        message = json.dumps(parts, sort_keys=True).encode()
        return hmac.new(bytes.fromhex(self.salt), message, hashlib.sha256).hexdigest()

    def file_hash(self, file: HostFile) -> str:
        """Return the keyed hash of a file's content and attributes."""
        digest = hashlib.sha256(file.content).hexdigest()
        return self.keyed_hash(file.path, digest, file.mode, file.owner, file.group)


class Tree:
    """The project directory of one stack."""

    def __init__(self, root: Path, strict: bool = True) -> None:
        """`strict`: an owner that does not exist is an error (not in check mode: a task before us may create it)."""
        self.root = root
        self.strict = strict

    @contextlib.contextmanager
    def lock(self, timeout: float) -> Iterator[int]:
        """Hold the stack's lock, yield its descriptor. Raise StackError when another run keeps it for `timeout` s."""
        deadline = time.monotonic() + timeout
        while True:
            descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The one who had it may have removed the folder, and a third may have made a new one.
                current = self.root.stat() if self.root.exists() else None
                if current is not None and current.st_ino == os.fstat(descriptor).st_ino:
                    break
                os.close(descriptor)
                self.root.mkdir(parents=True, exist_ok=True, mode=PROJECT_MODE)
            except BlockingIOError:
                os.close(descriptor)
                if time.monotonic() >= deadline:
                    raise StackError(
                        f"Another run works on {self.root} and did not end within {timeout:.0f} s. "
                        f"Nothing was changed. Wait for it; 'fuser -v {self.root}' on the host shows who it is."
                    ) from None
                time.sleep(0.2)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def load_manifest(self) -> Manifest:
        """Return the manifest, or a new one when there is none (or none that can be read: then all is checked anew)."""
        known = {field.name for field in dataclasses.fields(Manifest)}
        try:
            document = json.loads((self.root / MANIFEST_FILE).read_text(encoding="utf-8"))
            return Manifest(**{key: value for key, value in document.items() if key in known})
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, AttributeError):
            return Manifest(salt=secrets.token_hex(16))

    def save_manifest(self, manifest: Manifest) -> None:
        """Write the manifest atomically: this is the one moment at which a run's step counts as done."""
        text = json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True) + "\n"
        staged = self._stage(self.root / STAGING_DIRECTORY, HostFile(MANIFEST_FILE, text.encode(), 0o600))
        staged.replace(self.root / MANIFEST_FILE)
        _files.sync_directory(self.root)

    def compare(self, files: Iterable[HostFile], manifest: Manifest) -> list[Change]:
        """Return what differs on disk from `files`, and the files of earlier runs that are no longer among them."""
        wanted = {file.path: file for file in files}
        changes = []
        for path, file in sorted(wanted.items()):
            change = _files.compare(self.root / path, file, self.strict)
            if change is not None:
                secret = file.secret or manifest.files.get(path, {}).get("secret", False)
                changes.append(dataclasses.replace(change, secret=secret))
        for path in sorted(set(manifest.files) - set(wanted)):
            before = self.read(path)
            if before is not None:
                secret = manifest.files[path].get("secret", False)
                changes.append(Change(path, before, None, _files.found_attributes(self.root / path), "", secret))
        return changes

    def compare_directories(self, directories: Iterable[StackDirectory]) -> list[Change]:
        """Return the data directories that are missing or have other attributes, and the project directory itself."""
        changes = []
        for directory in (StackDirectory("", PROJECT_MODE), *directories):
            place = self.root / directory.path
            if place.exists() and not place.is_dir():
                raise StackError(f"{place} shall be a directory, but is a file. Move it away first.")
            found = place.stat() if place.is_dir() else None
            before = "" if found is None else _files.attribute_text(found.st_mode, found.st_uid, found.st_gid)
            mode = directory.mode if directory.mode is not None else (stat.S_IMODE(found.st_mode) if found else 0o755)
            owner = str(found.st_uid) if directory.owner is None and found else directory.owner
            group = str(found.st_gid) if directory.group is None and found else directory.group
            after = _files.wanted_attributes(mode, owner, group, self.strict)
            if before != after:
                changes.append(Change(f"{directory.path}/", None, None, before, after))
        return changes

    def make_directories(self, directories: Iterable[StackDirectory]) -> None:
        """Create the data directories and set what is asked for; what they hold is not touched."""
        for directory in (StackDirectory("", PROJECT_MODE), *directories):
            place = self.root / directory.path
            self._make_parents(place / "x")
            uid = _files.user_id(directory.owner) if directory.owner is not None else -1
            gid = _files.group_id(directory.group) if directory.group is not None else -1
            os.chown(place, uid, gid)
            if directory.mode is not None:
                place.chmod(directory.mode)

    def stage(self, files: Iterable[HostFile]) -> Path:
        """Write `files` with owner and mode below `.staging/`: same file system, so a rename puts them in place."""
        self.clear_staging()
        for file in files:
            self._stage(self.root / STAGING_DIRECTORY, file)
        return self.root / STAGING_DIRECTORY

    def stage_more(self, file: HostFile) -> None:
        """Write one more file below `.staging/`."""
        self._stage(self.root / STAGING_DIRECTORY, file)

    def clear_staging(self) -> None:
        """Remove what a run left below `.staging/`."""
        shutil.rmtree(self.root / STAGING_DIRECTORY, ignore_errors=True)

    def replace(self, changes: Iterable[Change]) -> None:
        """Rename the staged files of `changes` into place and delete those that are no longer wanted."""
        for change in changes:
            place = self.root / change.path
            if change.after is None:
                place.unlink(missing_ok=True)
                self._remove_empty_parents(place)
                continue
            self._make_parents(place)
            if place.is_dir() and not place.is_symlink():
                _remove_dockers_directory(place)
            (self.root / STAGING_DIRECTORY / change.path).replace(place)
        _files.sync_directory(self.root)

    def take_snapshot(self, manifest: Manifest, images: dict[str, str]) -> str:
        """Copy the deployed files below `.previous/` and return the copy's name. `images`: service -> image id."""
        name = secrets.token_hex(4)
        place = self.root / PREVIOUS_DIRECTORY / name
        place.mkdir(parents=True, mode=0o700)
        (self.root / PREVIOUS_DIRECTORY).chmod(0o700)
        saved: dict[str, dict[str, Any]] = {}
        for path, entry in manifest.files.items():
            content = self.read(path)
            if content is None:
                continue
            found = (self.root / path).stat()
            mode, owner, group = stat.S_IMODE(found.st_mode), str(found.st_uid), str(found.st_gid)
            self._stage(place / "files", HostFile(path, content, mode, owner, group))
            saved[path] = {"mode": mode, "owner": owner, "group": group, "secret": entry.get("secret", False)}
        document = {"manifest": dataclasses.asdict(manifest), "images": images, "files": saved}
        self._stage(place, HostFile("snapshot.json", json.dumps(document).encode(), 0o600))
        return name

    def read_snapshot(self, name: str) -> tuple[Manifest, dict[str, str], list[HostFile]] | None:
        """Return what `take_snapshot` kept, or None when it is gone."""
        place = self.root / PREVIOUS_DIRECTORY / name
        try:
            document = json.loads((place / "snapshot.json").read_text(encoding="utf-8"))
            files = [
                HostFile(path, (place / "files" / path).read_bytes(), **e) for path, e in document["files"].items()
            ]
        except FileNotFoundError:
            return None
        return Manifest(**document["manifest"]), document["images"], files

    def drop_snapshots(self, keep: str | None = None) -> None:
        """Remove all snapshots but `keep`: they hold secrets, and nothing goes back further than one version."""
        parent = self.root / PREVIOUS_DIRECTORY
        if parent.is_dir():
            for place in parent.iterdir():
                if place.name != keep:
                    shutil.rmtree(place)
            if keep is None:
                parent.rmdir()

    def remove(self, manifest: Manifest, purge: bool) -> None:
        """Remove our files, the manifest last (a cut-off removal goes on then); with `purge` all that there is."""
        for path in manifest.files:
            place = self.root / path
            place.unlink(missing_ok=True)
            self._remove_empty_parents(place)
        shutil.rmtree(self.root / PREVIOUS_DIRECTORY, ignore_errors=True)
        self.clear_staging()
        if purge:
            for place in self.root.iterdir():
                if place.name == MANIFEST_FILE:
                    continue
                if place.is_dir() and not place.is_symlink():
                    shutil.rmtree(place)
                else:
                    place.unlink()
        (self.root / MANIFEST_FILE).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.root.rmdir()  # data directories stay, and then so does the folder

    def read(self, path: str) -> bytes | None:
        """Return the content of the file at `path` below the project directory, or None."""
        return _files.read(self.root / path)

    def _stage(self, place: Path, file: HostFile) -> Path:
        """Write `file` below `place`, complete and on disk; return where."""
        target = place / file.path
        place.mkdir(exist_ok=True, mode=0o700)
        target.parent.mkdir(parents=True, exist_ok=True)
        _files.write(target, file)
        return target

    def _make_parents(self, place: Path) -> None:
        """Create the folders above `place`; their names below secrets/ can't be listed, only used."""
        missing = []
        parent = place.parent
        while not parent.exists():
            missing.append(parent)
            parent = parent.parent
        for folder in reversed(missing):
            folder.mkdir()
            if folder == self.root:
                folder.chmod(PROJECT_MODE)
            else:
                secret = self.root / SECRETS_DIRECTORY in (folder, *folder.parents)
                folder.chmod(0o711 if secret else 0o755)

    def _remove_empty_parents(self, place: Path) -> None:
        for parent in place.parents:
            if parent == self.root:
                return
            try:
                parent.rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                    return
                raise


def _remove_dockers_directory(place: Path) -> None:
    """Remove the empty directory that docker makes where a bind mount's file was missing."""
    try:
        place.rmdir()
    except OSError:
        raise StackError(f"{place} shall be a file, but is a directory with content. Move it away first.") from None
