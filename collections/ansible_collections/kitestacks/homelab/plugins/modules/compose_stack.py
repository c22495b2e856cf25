#!/usr/bin/python
# Copyright: KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: compose_stack
short_description: Deploy a compose stack in one task, with rollback
version_added: 1.0.0
description:
  - Renders the calling role's templates, ships them with its files and secrets in one transfer, and brings the compose
    project up when, and only when, something on the host is not as declared.
  - What counts as different are the files (content, owner, mode), containers that are gone, stopped, unhealthy, of
    another image or of other settings than declared, and services that are no longer declared.
  - When the new version does not become healthy, the previous one (files, secrets and images) is put back, and the task
    fails with the reason and the last lines of the container's log.
  - A run that was cut off at any point is finished by the next one.
  - A file that a service mounts, reads as C(env_file), C(configs) or C(secrets) is part of the service. When such a
    file changes, this service is recreated, and no other. To that end a second compose file,
    C(compose.kitestacks.yml), gives each service a label. Use both files when you call C(docker compose) by hand.
  - What the stack deployed earlier and no longer contains is deleted. Other files in the project directory are left
    alone.
options:
  name:
    description: Name of the compose project and of its folder below O(project_directory).
    type: str
    required: true
  state:
    description:
      - V(present), the stack is deployed and all its services run and are healthy.
      - V(stopped), the stack is deployed and nothing of it runs. Use C(restart=unless-stopped) in the compose file;
        docker starts containers with C(restart=always) again at the next boot.
      - V(absent), containers, networks and deployed files are removed. Volumes and data directories stay, see
        O(purge_data).
    type: str
    choices: [present, stopped, absent]
    default: present
  project_directory:
    description: The folder on the host that holds the stacks.
    type: path
    default: /opt/kitestacks
  templates:
    description:
      - Every file below C(templates/) of the calling role is a template of the stack. Names that end in C(.j2) are
        rendered and lose that ending, others are copied. In a play without role it is C(templates/) beside the
        playbook.
      - One of the results must be C(compose.yml).
      - An entry here says more about one of them, or adds one from elsewhere.
    type: list
    elements: dict
    default: []
    suboptions:
      src:
        description: Path below the folder, or any path that the builtin modules would find.
        type: str
        required: true
      dest:
        description: Path below the project directory. The default is O(templates[].src) without C(.j2).
        type: str
      secret:
        description: Never show the content, in a diff or elsewhere. The default mode is then V(0400).
        type: bool
        default: false
      owner: &owner
        description: User name, or number for a user of a container. The default is the user that the task runs as.
        type: str
      group: &group
        description: Group name or number. The default is the group that the task runs as.
        type: str
      mode:
        description: Quoted octal number. The default is V(0644), or V(0755) when the source is executable.
        type: str
  files:
    description:
      - Every file below C(files/) of the calling role is copied as it is, if there is such a folder.
      - An entry here says more about one of them, or adds one from elsewhere. Files encrypted with Ansible Vault are
        decrypted and treated as secret.
    type: list
    elements: dict
    default: []
    suboptions:
      src:
        description: Path below the folder, or any path that the builtin modules would find.
        type: str
        required: true
      dest:
        description: Path below the project directory. The default is O(files[].src).
        type: str
      secret:
        description: Never show the content, in a diff or elsewhere. The default mode is then V(0400).
        type: bool
        default: false
      owner: *owner
      group: *group
      mode:
        description: Quoted octal number. The default is V(0644), or V(0755) when the source is executable.
        type: str
  _payload:
    description: The rendered stack. The action plugin of the same name sets it; it is not for people.
    type: str
  exclude:
    description: Patterns (as of a shell) of paths below C(templates/) and C(files/) that are no part of the stack.
    type: list
    elements: str
    default: []
  secrets:
    description: Files below C(secrets/). Their content is never shown.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Path below C(secrets/).
        type: str
        required: true
      content:
        description: The whole content, written as it is.
        type: str
        required: true
      owner: *owner
      group: *group
      mode:
        description: Quoted octal number.
        type: str
        default: "0400"
  directories:
    description: Data directories. They are created before the containers; what they hold is never touched.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Path below the project directory.
        type: str
        required: true
      owner:
        description: User name or number. An existing directory keeps its owner when this is not given.
        type: str
      group:
        description: Group name or number. An existing directory keeps its group when this is not given.
        type: str
      mode:
        description: Quoted octal number. The default is V(0755) for a new directory.
        type: str
  reload:
    description:
      - Services that can read some of their files anew without a restart. When only these files change, the service
        is sent a signal instead of being recreated.
      - Such a file must lie in a folder that the service mounts as a folder. A mount of the single file would go on
        showing the old content; it is refused.
    type: list
    elements: dict
    default: []
    suboptions:
      service:
        description: Name of the service. One entry for each service at the most.
        type: str
        required: true
      files:
        description: Paths below the project directory.
        type: list
        elements: str
        required: true
      check:
        description:
          - A command that returns 0 when the new files are good. It runs before they replace the old ones, in a
            container of its own with the service's image, mounts and environment, in the network of the running one.
        type: list
        elements: str
        default: []
      signal:
        description: The signal that makes the service read its files.
        type: str
        default: SIGHUP
  in_turn:
    description:
      - Services that stand in for each other. They are replaced in this order, and each is healthy before the next is
        touched. Compose by itself stops all old containers first.
    type: list
    elements: str
    default: []
  pull:
    description:
      - V(missing) pulls images that are not on the host, V(always) asks the registry in each run, V(never) fails when
        an image is not on the host.
      - In any case images are pulled before anything is touched. V(always) is not carried out in check mode.
    type: str
    choices: [missing, always, never]
    default: missing
  wait_timeout:
    description:
      - How long to wait until all services are healthy, in seconds. A container that exits or becomes unhealthy ends
        the wait at once. So long, too, a run waits for another one that works on the same stack.
    type: int
    default: 120
  rollback:
    description: Put the previous version back when the new one does not become healthy.
    type: bool
    default: true
  purge_data:
    description: With O(state=absent), also remove the project's volumes and its folder with all that it holds.
    type: bool
    default: false
requirements:
  - docker with the compose plugin, version 2.26 or newer, on the host
attributes:
  check_mode:
    support: full
    description: Works on a host without docker too, and then foretells that everything is created.
  diff_mode:
    support: full
    description: One entry for each file, secrets redacted, and one for what happens to the containers.
  idempotent:
    support: full
    description: A run without change costs one module call and two docker commands.
  platform:
    support: full
    platforms: linux
    description: Needs nothing but Python's standard library on the host.
  action:
    support: full
    description: The templates are rendered on the controller.
  async:
    support: none
    description: The wait is part of the task.
notes:
  - A service that ends by itself, such as a migration, is as declared when another service depends on it with
    C(condition=service_completed_successfully) or when it has the label C(kitestacks.oneshot=true).
  - The compose file may read (C(env_file), C(include), C(extends)) only files of the stack, and must not C(build).
  - A container without health check counts as running when it has stayed up for three seconds.
author:
  - KiteStacks maintainers (@kitestacks)
"""

EXAMPLES = r"""
- name: The portal serves
  kitestacks.homelab.compose_stack:
    name: portal

- name: The wiki serves
  kitestacks.homelab.compose_stack:
    name: bookstack
    templates:
      - src: app.env.j2
        secret: true
    secrets:
      - name: database_password
        content: "{{ bookstack_database_password }}"
        owner: "1000"
    directories:
      - path: data
        owner: "1000"
        group: "1000"
        mode: "0750"

- name: The edge takes a new configuration without dropping a connection
  kitestacks.homelab.compose_stack:
    name: edge
    reload:
      - service: edge
        files: [config/haproxy.cfg, config/hosts.map]
        check: [haproxy, -c, -f, /usr/local/etc/haproxy/haproxy.cfg]
        signal: SIGUSR2

- name: The wiki is gone, its data is kept
  kitestacks.homelab.compose_stack:
    name: bookstack
    state: absent
"""

RETURN = r"""
actions:
  description: What happened to the services (in check mode, what would happen).
  type: list
  elements: dict
  returned: success
  contains:
    service:
      description: Name of the service.
      type: str
    action:
      description: One of V(created), V(recreated), V(started), V(restarted), V(reloaded), V(stopped), V(removed).
      type: str
    reason:
      description: Why.
      type: str
  sample:
    - service: web
      action: recreated
      reason: image nginx:1.27 -> nginx:1.28
files:
  description: Files that were written, changed or deleted, as paths below the project directory.
  type: list
  elements: str
  returned: success
  sample: [compose.yml, secrets/peer.map]
project_directory:
  description: The folder of this stack on the host.
  type: str
  returned: success
  sample: /opt/kitestacks/portal
docker_commands:
  description: How many docker commands were run.
  type: int
  returned: success
  sample: 2
service:
  description: The service that is the cause of the failure.
  type: str
  returned: when a service did not become healthy
reason:
  description: What is wrong with it.
  type: str
  returned: when a service did not become healthy
log:
  description: The last lines of its log, without this stack's secrets.
  type: list
  elements: str
  returned: when a service did not become healthy
rolled_back:
  description: Whether the previous version is serving again.
  type: bool
  returned: when a service did not become healthy
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kitestacks.homelab.plugins.module_utils._compose import ARGUMENT_SPEC, Payload
from ansible_collections.kitestacks.homelab.plugins.module_utils._compose_stack import Options, Stack
from ansible_collections.kitestacks.homelab.plugins.module_utils._files import FileError


def main() -> None:
    module = AnsibleModule(
        # The action plugin sends all contents in this one opaque string: nothing of it reaches syslog or the result.
        argument_spec={**ARGUMENT_SPEC, "_payload": {"type": "str", "no_log": True}},
        supports_check_mode=True,
    )
    if not module.params["_payload"]:
        module.fail_json(msg="this module needs its action plugin: call it as kitestacks.homelab.compose_stack")
    names = (
        "name",
        "project_directory",
        "state",
        "reload",
        "in_turn",
        "pull",
        "wait_timeout",
        "rollback",
        "purge_data",
    )
    stack = Stack(
        Options(**{name: module.params[name] for name in names}),
        Payload.unpack(module.params["_payload"]),
        module.check_mode,
    )
    try:
        result = stack.run()
    except FileError as error:
        module.fail_json(msg=stack.scrub(str(error)), docker_commands=stack.docker.commands, **error.details)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
