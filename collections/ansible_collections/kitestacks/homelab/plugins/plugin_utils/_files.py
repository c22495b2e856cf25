# Copyright: KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of modules that write files: render, decrypt, and send all of it in one module call."""

from __future__ import annotations

import datetime
import platform
import pwd
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.text.converters import to_bytes
from ansible.parsing.vault import is_encrypted_file
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template
from ansible_collections.kitestacks.homelab.plugins.module_utils._files import parse_mode

# What ansible.builtin.template gives its environment by default.
_TEMPLATE_OVERRIDES = {"trim_blocks": True, "lstrip_blocks": False, "newline_sequence": "\n"}


class FilesActionBase(ActionBase):
    """Base of action plugins whose module of the same name takes the files as one opaque argument, `_payload`."""

    _supports_check_mode = True
    _supports_async = False

    def _validated(self, argument_spec: dict[str, Any]) -> dict[str, Any]:
        """Return the task's options, checked and with defaults."""
        found = ArgumentSpecValidator(argument_spec).validate(dict(self._task.args))
        if found.error_messages:
            raise AnsibleActionFail("; ".join(found.error_messages), obj=self._task.args)
        return dict(found.validated_parameters)

    def _send(
        self, module: str, arguments: dict[str, Any], payload: str, task_vars: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Run the module and return its result, without the payload."""
        result: dict[str, Any] = self._execute_module(
            module_name=module, module_args={**arguments, "_payload": payload}, task_vars=task_vars
        )
        if "invocation" in result:
            result["invocation"]["module_args"].pop("_payload", None)
        return result

    def _mode(self, mode: str | None, option: str, secret: bool, source: Path | None) -> int:
        """Return a file's mode: the one that was given, or the one that fits it and its source."""
        if mode is not None:
            return parse_mode(mode, option)
        if secret:
            return 0o400
        return 0o755 if source is not None and source.stat().st_mode & 0o100 else 0o644

    def _read(self, place: Path) -> bytes:
        """Return a file's content, decrypted if it must be."""
        real = self._loader.get_real_file(str(place))
        content = Path(real).read_bytes()
        self._loader.cleanup_tmp_file(real)
        return content

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


def is_vaulted(place: Path) -> bool:
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
