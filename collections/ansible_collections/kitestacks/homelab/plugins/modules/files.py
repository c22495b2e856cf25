#!/usr/bin/python
# Copyright: KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: files
short_description: Keep a set of small files as declared, in one call
version_added: 1.0.0
description:
  - Renders templates, ships them with other files in one transfer, and replaces what differs on the host in content,
    owner or mode. A set costs what a single file costs, where a loop over M(ansible.builtin.template) makes two calls
    for each.
  - All files that differ are written and validated beside their places first. When one is refused, the task fails and
    none is replaced.
  - Each file is replaced by a rename, so a reader sees the old one or the new one. A symbolic link or a special file in
    its place is replaced too.
options:
  files:
    description: The files, in the order in which they take their places.
    type: list
    elements: dict
    required: true
    suboptions:
      dest:
        description: Absolute path on the host. Folders above it that are missing are made, with mode V(0755).
        type: str
        required: true
      src:
        description:
          - A template when it ends in C(.j2), looked for in C(templates/) as M(ansible.builtin.template) does; else a
            file that is copied as it is, looked for in C(files/).
          - Files encrypted with Ansible Vault are decrypted and treated as secret.
          - Give this or O(files[].content).
        type: str
      content:
        description: The whole content, written as it is.
        type: str
      state:
        description: With V(absent) the file is deleted, and only O(files[].dest) and O(files[].secret) matter.
        type: str
        choices: [present, absent]
        default: present
      owner:
        description: User name or number. The default is the user that the task runs as.
        type: str
      group:
        description: Group name or number. The default is the group that the task runs as.
        type: str
      mode:
        description: Quoted octal number. The default is V(0644), or V(0755) when the source is executable.
        type: str
      secret:
        description: Never show the content, in a diff or elsewhere. The default mode is then V(0400).
        type: bool
        default: false
      validate:
        description:
          - A command that returns 0 when the file is good; V(%s) in it becomes the path of the new file.
          - It is not run in check mode, and not when the file is as it should be.
        type: str
  _payload:
    description: The rendered files. The action plugin of the same name sets it; it is not for people.
    type: str
attributes:
  check_mode:
    support: full
    description: The files are compared, and nothing is written or validated.
  diff_mode:
    support: full
    description: One entry for each file, secrets redacted.
  idempotent:
    support: full
    description: A second run with the same options changes nothing.
  platform:
    support: full
    platforms: linux
    description: Needs nothing but Python's standard library on the host.
  action:
    support: full
    description: The templates are rendered on the controller.
  async:
    support: none
    description: There is nothing to wait for.
seealso:
  - module: ansible.builtin.template
  - module: ansible.builtin.copy
  - module: kitestacks.homelab.compose_stack
author:
  - KiteStacks maintainers (@kitestacks)
"""

EXAMPLES = r"""
- name: Configuration files are current
  kitestacks.homelab.files:
    files:
      - src: sshd.conf.j2
        dest: /etc/ssh/sshd_config.d/10-local.conf
        validate: sshd -t -f %s
      - src: local.fact
        dest: /etc/ansible/facts.d/local.fact
        mode: "0755"
      - dest: /etc/docker/daemon.json
        content: "{{ docker_daemon | to_nice_json }}\n"
      - dest: /etc/backup/password
        content: "{{ backup_password }}"
        secret: true
      - dest: /etc/cron.d/backup
        state: absent
  register: __files

- name: The engine takes up its settings
  ansible.builtin.systemd_service:
    name: docker.service
    state: restarted
  when: "'/etc/docker/daemon.json' in __files['files']"
"""

RETURN = r"""
files:
  description: Files that were written, changed or deleted (in check mode, that would be).
  type: list
  elements: str
  returned: success
  sample: [/etc/ssh/sshd_config.d/10-local.conf]
"""

import shlex
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kitestacks.homelab.plugins.module_utils import _file_set
from ansible_collections.kitestacks.homelab.plugins.module_utils._files import FileError, HostFile, diff_entry, unpack


def main() -> None:
    module = AnsibleModule(
        # The action plugin sends all contents in this one opaque string: nothing of it reaches syslog or the result.
        argument_spec={**_file_set.ARGUMENT_SPEC, "_payload": {"type": "str", "no_log": True}},
        supports_check_mode=True,
    )
    if not module.params["_payload"]:
        module.fail_json(msg="this module needs its action plugin: call it as kitestacks.homelab.files")
    sent = unpack(module.params["_payload"])["files"]
    entries = {entry["dest"]: entry for entry in module.params["files"]}
    files = [file for file in sent if entries[file.path]["state"] == "present"]
    absent = [file for file in sent if entries[file.path]["state"] == "absent"]

    def check(file: HostFile, place: Path) -> None:
        """Run the file's own check on `place`."""
        command = entries[file.path]["validate"]
        if command is None:
            return
        try:
            words = command.replace("%s", shlex.quote(str(place)))
            code, stdout, stderr = module.run_command(words, handle_exceptions=False)
        except OSError as error:
            raise FileError(
                f"{file.path}: '{command}' cannot be run: {error.strerror}. No file was replaced."
            ) from error
        if code != 0:
            said = "what it says is not shown" if file.secret else (stderr + stdout).strip()
            said = said.replace(str(place), file.path)
            raise FileError(f"{file.path}: '{command}' refuses the new file: {said}. No file was replaced.")

    try:
        changes = _file_set.plan(files, absent, strict=not module.check_mode)
        if changes and not module.check_mode:
            _file_set.carry_out(changes, files, check)
    except FileError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}.")
    module.exit_json(
        changed=bool(changes),
        files=[change.path for change in changes],
        diff=[diff_entry(change, change.path) for change in changes],
    )


if __name__ == "__main__":
    main()
