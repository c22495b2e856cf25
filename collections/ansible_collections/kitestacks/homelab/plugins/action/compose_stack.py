# Copyright: KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of compose_stack: render and check everything, then send it in one module call."""

from __future__ import annotations

import fnmatch
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.common.text.converters import to_bytes
from ansible_collections.kitestacks.homelab.plugins.module_utils._compose import (
    ARGUMENT_SPEC,
    COMPOSE_FILE,
    SECRETS_DIRECTORY,
    Payload,
    StackDirectory,
    StackError,
    check_name,
    clean_path,
)
from ansible_collections.kitestacks.homelab.plugins.module_utils._files import FileError, HostFile, parse_mode
from ansible_collections.kitestacks.homelab.plugins.plugin_utils._files import FilesActionBase, is_vaulted

_CONTROLLER_OPTIONS = ("templates", "files", "exclude", "secrets", "directories")
_NEVER_DEPLOYED = ("*~", "*.swp", ".gitkeep", ".DS_Store")


class _ComposeLoader(yaml.SafeLoader):
    """Reads YAML with compose's own tags (!reset, !override), whose values don't matter here."""


_ComposeLoader.add_multi_constructor("!", lambda _loader, _suffix, _node: None)


class ActionModule(FilesActionBase):
    """Runs the module of the same name with the rendered stack as one opaque argument."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result; raise AnsibleActionFail for mistakes before any transfer."""
        super().run(tmp, task_vars)
        arguments = self._validated(ARGUMENT_SPEC)
        try:
            payload = self._payload(arguments, task_vars or {})
        except FileError as error:
            raise AnsibleActionFail(f"{arguments['name']}: {error}") from error
        module_arguments = {key: value for key, value in arguments.items() if key not in _CONTROLLER_OPTIONS}
        return self._send("kitestacks.homelab.compose_stack", module_arguments, payload.pack(), task_vars)

    def _payload(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> Payload:
        """Collect, check and render all that the stack consists of."""
        check_name(arguments["name"])
        if arguments["state"] == "absent":
            return Payload()
        if arguments["wait_timeout"] < 1:
            raise StackError("wait_timeout: give at least one second.")
        self._check_reload(arguments["reload"])
        files = [self._secret(entry) for entry in arguments["secrets"]]
        for kind in ("templates", "files"):
            for entry in self._sources(kind, arguments[kind], arguments["exclude"]):
                files.append(self._file(kind, entry, arguments, task_vars))
        paths = [file.path for file in files]
        twice = sorted({path for path in paths if paths.count(path) > 1})
        if twice:
            raise StackError(f"more than one source for {', '.join(twice)} among templates, files and secrets.")
        for path in paths:
            inside = next((other for other in paths if other.startswith(f"{path}/")), None)
            if inside:
                raise StackError(f"'{path}' is a file and also the folder of '{inside}'.")
        compose = next((file for file in files if file.path == COMPOSE_FILE), None)
        if compose is None:
            where = self._base() / "templates"
            raise StackError(f"no {COMPOSE_FILE}: there must be a {COMPOSE_FILE}.j2 in {where}.")
        return Payload(
            files=tuple(sorted(files, key=lambda file: file.path)),
            directories=tuple(self._directory(entry) for entry in arguments["directories"]),
            services=_service_names(compose.content),
        )

    def _base(self) -> Path:
        """Return the folder above templates/ and files/: the role, or where the playbook is."""
        role = self._task._role
        return Path(role._role_path if role else self._loader.get_basedir())

    def _sources(self, kind: str, entries: list[dict[str, Any]], exclude: list[str]) -> Iterator[dict[str, Any]]:
        """Yield the files found below the folder `kind` and those in `entries`, each once, as entries with `path`."""
        folder = self._base() / kind
        named = {os.path.normpath(entry["src"]) for entry in entries}
        for place in sorted(folder.rglob("*")):
            source = place.relative_to(folder).as_posix()
            hidden = any(fnmatch.fnmatch(place.name, pattern) for pattern in _NEVER_DEPLOYED)
            unwanted = source in named or any(fnmatch.fnmatch(source, pattern) for pattern in exclude)
            if place.is_file() and not hidden and not unwanted:
                yield {"src": source, "path": place, "dest": None, "secret": False}
        for entry in entries:
            try:
                yield {**entry, "path": Path(self._find_needle(kind, entry["src"]))}
            except AnsibleError as error:
                raise StackError(f"{kind}: there is no '{entry['src']}' in {folder}.") from error

    def _file(self, kind: str, entry: dict[str, Any], arguments: dict[str, Any], task_vars: dict[str, Any]) -> HostFile:
        """Return one template or file as it shall be on the host."""
        source, place = entry["src"], entry["path"]
        rendered = kind == "templates" and place.suffix == ".j2"
        if entry["dest"] is None and (source.startswith("/") or ".." in Path(source).parts):
            raise StackError(f"{kind}: '{source}' is not below {kind}/, so it needs a 'dest'.")
        dest = clean_path(entry["dest"] or (source[: -len(".j2")] if rendered else source), f"{kind}: dest")
        secret = entry["secret"] or is_vaulted(place)
        mode = self._mode(entry.get("mode"), f"{kind}: {source}", secret, place)
        if rendered:
            target = Path(arguments["project_directory"], arguments["name"], dest)
            content = self._render(source, place, target, task_vars)
        else:
            content = self._read(place)
        return HostFile(dest, content, mode, entry.get("owner"), entry.get("group"), secret)

    def _secret(self, entry: dict[str, Any]) -> HostFile:
        name = clean_path(entry["name"], "secrets: name")
        mode = parse_mode(entry["mode"], f"secrets: {name}")
        content = to_bytes(str(entry["content"]), errors="surrogate_or_strict")
        return HostFile(f"{SECRETS_DIRECTORY}/{name}", content, mode, entry["owner"], entry["group"], secret=True)

    def _directory(self, entry: dict[str, Any]) -> StackDirectory:
        path = clean_path(entry["path"], "directories: path")
        mode = None if entry["mode"] is None else parse_mode(entry["mode"], f"directories: {path}")
        return StackDirectory(path, mode, entry["owner"], entry["group"])

    def _check_reload(self, entries: list[dict[str, Any]]) -> None:
        services = [entry["service"] for entry in entries]
        for name in services:
            if services.count(name) > 1:
                raise StackError(f"reload: service '{name}' has more than one entry; put all its files into one.")
        for entry in entries:
            if entry["signal"] not in signal.Signals.__members__:
                raise StackError(f"reload: {entry['signal']!r} is no signal; it must be one like SIGHUP.")
            entry["files"] = sorted(clean_path(path, f"reload: {entry['service']}") for path in entry["files"])


def _service_names(content: bytes) -> tuple[str, ...]:
    """Return the services in a compose file, to foretell them where docker is not installed yet."""
    try:
        document = yaml.load(content, Loader=_ComposeLoader)  # noqa: S506 - it is a SafeLoader
    except yaml.YAMLError as error:
        raise StackError(f"{COMPOSE_FILE} is not valid YAML after rendering: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("services") or {}, dict):
        raise StackError(f"{COMPOSE_FILE} must be a mapping with the key 'services'.")
    return tuple(sorted(str(name) for name in document.get("services") or {}))
