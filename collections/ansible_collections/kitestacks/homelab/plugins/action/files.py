# Copyright: KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of files: render and check everything, then send it in one module call."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.common.text.converters import to_bytes
from ansible_collections.kitestacks.homelab.plugins.module_utils._file_set import ARGUMENT_SPEC
from ansible_collections.kitestacks.homelab.plugins.module_utils._files import FileError, HostFile, pack
from ansible_collections.kitestacks.homelab.plugins.plugin_utils._files import FilesActionBase, is_vaulted


class ActionModule(FilesActionBase):
    """Runs the module of the same name with the rendered files as one opaque argument."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result; raise AnsibleActionFail for mistakes before any transfer."""
        super().run(tmp, task_vars)
        entries = self._validated(ARGUMENT_SPEC)["files"]
        try:
            _refuse_mistakes(entries)
            files = [self._file(entry, task_vars or {}) for entry in entries]
        except FileError as error:
            raise AnsibleActionFail(str(error)) from error
        known = ("dest", "state", "validate")
        arguments = {"files": [{key: entry[key] for key in known} for entry in entries]}
        return self._send("kitestacks.homelab.files", arguments, pack(files), task_vars)

    def _file(self, entry: dict[str, Any], task_vars: dict[str, Any]) -> HostFile:
        """Return one file as it shall be on the host; for one that shall not be there only path and secret count."""
        dest, source, content = entry["dest"], entry["src"], entry["content"]
        place = None
        secret = entry["secret"]
        if entry["state"] == "absent":
            return HostFile(dest, b"", 0, secret=secret)
        if source is None:
            data = to_bytes(content, errors="surrogate_or_strict")
        else:
            folder = "templates" if source.endswith(".j2") else "files"
            try:
                place = Path(self._find_needle(folder, source))
            except AnsibleError as error:
                raise FileError(f"{dest}: there is no '{source}' in {folder}/.") from error
            secret = secret or is_vaulted(place)
            data = self._render(source, place, Path(dest), task_vars) if folder == "templates" else self._read(place)
        mode = self._mode(entry["mode"], dest, secret, place)
        return HostFile(dest, data, mode, entry["owner"], entry["group"], secret)


def _refuse_mistakes(entries: list[dict[str, Any]]) -> None:
    """Raise FileError for what the argument specification cannot say."""
    seen = set()
    for entry in entries:
        dest = entry["dest"]
        if not dest.startswith("/") or posixpath.normpath(dest) != dest:
            raise FileError(f"dest: '{dest}' must be an absolute path, without '..' and without a slash at its end.")
        if dest in seen:
            raise FileError(f"{dest} is declared more than once.")
        seen.add(dest)
        if entry["state"] == "present" and (entry["src"] is None) == (entry["content"] is None):
            raise FileError(f"{dest}: give either src or content.")
        if entry["validate"] is not None and "%s" not in entry["validate"]:
            raise FileError(f"{dest}: validate must have %s, for the path of the new file.")
