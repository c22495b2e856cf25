# Copyright: KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of compose_stack: render and check everything, then send it in one module call."""

from __future__ import annotations

import datetime
import fnmatch
import os
import platform
import pwd
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from ansible import constants
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.text.converters import to_bytes
from ansible.parsing.vault import is_encrypted_file
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template
from ansible_collections.kitestacks.homelab.plugins.module_utils._compose import (
    ARGUMENT_SPEC,
    COMPOSE_FILE,
    SECRETS_DIRECTORY,
    Payload,
    StackDirectory,
    StackError,
    StackFile,
    check_name,
    clean_path,
    parse_mode,
)

_CONTROLLER_OPTIONS = ("templates", "files", "exclude", "secrets", "directories")
_NEVER_DEPLOYED = ("*~", "*.swp", ".gitkeep", ".DS_Store")
# What ansible.builtin.template gives its environment by default.
_TEMPLATE_OVERRIDES = {"trim_blocks": True, "lstrip_blocks": False, "newline_sequence": "\n"}


class _ComposeLoader(yaml.SafeLoader):
    """Reads YAML with compose's own tags (!reset, !override), whose values don't matter here."""


_ComposeLoader.add_multi_constructor("!", lambda _loader, _suffix, _node: None)


class ActionModule(ActionBase):
    """Runs the module of the same name with the rendered stack as one opaque argument."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result; raise AnsibleActionFail for mistakes before any transfer."""
        super().run(tmp, task_vars)
        arguments = self._validated()
        try:
            payload = self._payload(arguments, task_vars or {})
        except StackError as error:
            raise AnsibleActionFail(f"{arguments['name']}: {error}") from error
        module_arguments = {key: value for key, value in arguments.items() if key not in _CONTROLLER_OPTIONS}
        result: dict[str, Any] = self._execute_module(
            module_name="kitestacks.homelab.compose_stack",
            module_args={**module_arguments, "_payload": payload.pack()},
            task_vars=task_vars,
        )
        if "invocation" in result:
            result["invocation"]["module_args"].pop("_payload", None)
        return result

    def _validated(self) -> dict[str, Any]:
        """Return the task's options, checked and with defaults."""
        found = ArgumentSpecValidator(ARGUMENT_SPEC).validate(dict(self._task.args))
        if found.error_messages:
            raise AnsibleActionFail("; ".join(found.error_messages), obj=self._task.args)
        return dict(found.validated_parameters)

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

    def _file(
        self, kind: str, entry: dict[str, Any], arguments: dict[str, Any], task_vars: dict[str, Any]
    ) -> StackFile:
        """Return one template or file as it shall be on the host."""
        source, place = entry["src"], entry["path"]
        rendered = kind == "templates" and place.suffix == ".j2"
        if entry["dest"] is None and (source.startswith("/") or ".." in Path(source).parts):
            raise StackError(f"{kind}: '{source}' is not below {kind}/, so it needs a 'dest'.")
        dest = clean_path(entry["dest"] or (source[: -len(".j2")] if rendered else source), f"{kind}: dest")
        secret = entry["secret"] or is_encrypted_file_path(place)
        if entry.get("mode") is not None:
            mode = parse_mode(entry["mode"], f"{kind}: {source}")
        elif secret:
            mode = 0o400
        else:
            mode = 0o755 if place.stat().st_mode & 0o100 else 0o644
        if rendered:
            content = self._render(
                source, place, Path(arguments["project_directory"], arguments["name"], dest), task_vars
            )
        else:
            real = self._loader.get_real_file(str(place))  # decrypted, if it must be
            content = Path(real).read_bytes()
            self._loader.cleanup_tmp_file(real)
        return StackFile(dest, content, mode, entry.get("owner"), entry.get("group"), secret)

    def _render(self, source: str, place: Path, dest: Path, task_vars: dict[str, Any]) -> bytes:
        """Render a template as ansible.builtin.template would."""
        search = [*task_vars.get("ansible_search_path", []), self._loader.get_basedir(), str(place.parent)]
        variables = {**task_vars, **_template_variables(source, place, dest, "ansible_managed" in task_vars)}
        templar = self._templar.copy_with_new_env(
            searchpath=[folder for path in search for folder in (f"{path}/templates", path)],
            available_variables=variables,
        )
        try:
            text = templar.template(
                trust_as_template(self._loader.get_text_file_contents(str(place))),
                escape_backslashes=False,
                overrides=_TEMPLATE_OVERRIDES,
            )
        except AnsibleError as error:
            raise AnsibleActionFail(f"The template '{source}' cannot be rendered.") from error
        return b"" if text is None else to_bytes(text, nonstring="simplerepr", errors="surrogate_or_strict")

    def _secret(self, entry: dict[str, Any]) -> StackFile:
        name = clean_path(entry["name"], "secrets: name")
        mode = parse_mode(entry["mode"], f"secrets: {name}")
        content = to_bytes(str(entry["content"]), errors="surrogate_or_strict")
        return StackFile(f"{SECRETS_DIRECTORY}/{name}", content, mode, entry["owner"], entry["group"], secret=True)

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


def is_encrypted_file_path(place: Path) -> bool:
    """Return whether a file is encrypted with Ansible Vault."""
    with place.open("rb") as stream:
        return bool(is_encrypted_file(stream))


def _template_variables(source: str, place: Path, dest: Path, keep_managed: bool) -> dict[str, Any]:
    """Return the variables that templates have beside the task's: template_path and so on, ansible_managed."""
    found = place.stat()
    try:
        owner: str | int = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        owner = found.st_uid
    variables: dict[str, Any] = {
        "template_host": platform.node(),
        "template_path": source,
        "template_fullpath": str(place),
        "template_destpath": str(dest),
        "template_mtime": datetime.datetime.fromtimestamp(found.st_mtime),
        "template_uid": owner,
        "template_run_date": datetime.datetime.now(),
    }
    if not keep_managed:
        variables["ansible_managed"] = str(constants.config.get_config_value("DEFAULT_MANAGED_STR"))
    return variables


def _service_names(content: bytes) -> tuple[str, ...]:
    """Return the services in a compose file, to foretell them where docker is not installed yet."""
    try:
        document = yaml.load(content, Loader=_ComposeLoader)  # noqa: S506 - it is a SafeLoader
    except yaml.YAMLError as error:
        raise StackError(f"{COMPOSE_FILE} is not valid YAML after rendering: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("services") or {}, dict):
        raise StackError(f"{COMPOSE_FILE} must be a mapping with the key 'services'.")
    return tuple(sorted(str(name) for name in document.get("services") or {}))
