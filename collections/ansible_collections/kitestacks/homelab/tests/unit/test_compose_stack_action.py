# Copyright: KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole of compose_stack through ansible-playbook: role, action plugin, module, and a docker with a memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.kitestacks.homelab.tests.unit.compose_stack_host import Host

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="sets owners of files: run as root")

COLLECTIONS = Path(__file__).resolve().parents[5]
COMPOSE = json.dumps({"services": {"web": {"image": "app:{{ version | default(1) }}", "healthcheck": {}}}})
# All that the Jinja settings decide: trimmed blocks, kept newlines and backslashes, include, template_* variables.
TRICKY = r"""# {{ ansible_managed }} {{ template_path }} {{ template_destpath | basename }}
{% for n in [1, 2] %}
  {% if n == 2 %}
  two \n {{ '\t' | length }} {{ n }}
  {% endif %}
{% endfor %}
{% include 'part.txt' %}

{{ mapping }}


"""


class Controller:
    def __init__(self, folder: Path, host: Host) -> None:
        self.folder = folder
        self.host = host
        self.role = folder / "roles" / "portal"
        for name in ("tasks", "templates/conf", "files"):
            (self.role / name).mkdir(parents=True)
        (self.role / "templates/compose.yml.j2").write_text(COMPOSE)
        (folder / "play.yml").write_text("- hosts: localhost\n  gather_facts: false\n  roles: [portal]\n")

    def run(self, tasks: list[dict], *options: str) -> tuple[int, str]:
        (self.role / "tasks/main.yml").write_text(yaml.safe_dump(tasks, sort_keys=False))
        done = subprocess.run(
            [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", "play.yml", *options],
            capture_output=True,
            check=False,
            cwd=self.folder,
            env={
                **{key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")},
                "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
                "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml",
                "ANSIBLE_DEPRECATION_WARNINGS": "true",
                "ANSIBLE_LOCALHOST_WARNING": "false",
                "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
                "ANSIBLE_PIPELINING": "true",
                "ANSIBLE_VAULT_PASSWORD_FILE": str(self.folder / "vault-password"),
                "ANSIBLE_CONNECTION": "local",
                "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
            },
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    def stack(self, **options) -> dict:
        return {
            "name": "The portal serves",
            "vars": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable},
            "kitestacks.homelab.compose_stack": {"name": "portal", "project_directory": str(self.host.base), **options},
        }


@pytest.fixture
def controller(tmp_path, monkeypatch):
    (tmp_path / "vault-password").write_text("a password for this test only")
    return Controller(tmp_path, Host(tmp_path, monkeypatch))


def test_a_role_becomes_a_stack_and_no_secret_is_seen(controller):
    role = controller.role
    (role / "templates/tricky.j2").write_text(TRICKY)
    (role / "templates/part.txt").write_text("included\n")
    (role / "templates/conf/app.env.j2").write_text("PASSWORD={{ password }}\n")
    (role / "templates/unit.service.j2").write_text("{{ not_defined_here }}")
    (role / "files/blob").write_bytes(bytes(range(256)))
    (role / "files/tool.sh").write_text("#!/bin/sh\n")
    (role / "files/tool.sh").chmod(0o755)
    vaulted = role / "files/vaulted"
    vaulted.write_text("vaulted-secret")
    subprocess.run(
        [Path(sys.executable).with_name("ansible-vault"), "encrypt", vaulted],
        check=True,
        capture_output=True,
        env={**os.environ, "ANSIBLE_VAULT_PASSWORD_FILE": str(controller.folder / "vault-password")},
    )
    stack = controller.stack(
        exclude=["*.service.j2"],
        templates=[{"src": "conf/app.env.j2", "secret": True, "owner": 99}],
        secrets=[{"name": "peer.map", "content": "{{ secret }}", "owner": "99"}],
    )
    builtin = {
        "name": "For comparison",
        "vars": stack["vars"],
        "ansible.builtin.template": {"src": "tricky.j2", "dest": str(controller.folder / "tricky"), "mode": "0644"},
    }
    (controller.folder / "vars.yml").write_text(
        yaml.safe_dump({"secret": "listed-secret", "password": "a-pass-word", "mapping": {"a": [1, None, True]}})
    )
    options = ("-e", "@vars.yml", "-vvvv", "--diff")
    outputs = [controller.run([builtin, stack], *options, "--check"), controller.run([builtin, stack], *options)]
    assert [code for code, _text in outputs] == [0, 0], outputs[-1][1]
    root = controller.host.root
    assert (root / "tricky").read_text() == (controller.folder / "tricky").read_text()
    assert (root / "blob").read_bytes() == bytes(range(256))
    assert (root / "vaulted").read_text() == "vaulted-secret"
    assert (root / "secrets/peer.map").read_text() == "listed-secret"
    assert (root / "conf/app.env").read_text() == "PASSWORD=a-pass-word\n"
    modes = {
        name: f"{(root / name).stat().st_mode & 0o777:o}" for name in ("blob", "tool.sh", "vaulted", "conf/app.env")
    }
    assert modes == {"blob": "644", "tool.sh": "755", "vaulted": "400", "conf/app.env": "400"}
    assert (root / "conf/app.env").stat().st_uid == 99
    assert not (root / "unit.service").exists()

    controller.host.change(calls=[])
    outputs.append(controller.run([stack], *options))
    assert "changed=0" in outputs[-1][1]
    assert len(controller.host.world["calls"]) == 2
    outputs.append(controller.run([stack], *options, "-e", "version=sick"))
    assert outputs[-1][0] == 2
    assert "serving again" in outputs[-1][1]
    text = "".join(text for _code, text in outputs)
    assert [word for word in ("listed-secret", "vaulted-secret", "a-pass-word") if word in text] == []
    assert "_payload" not in text.replace("_payload: VALUE_SPECIFIED", "")
    assert "DEPRECATION" not in text


def test_mistakes_are_refused_before_anything_is_sent(controller):
    cases = {
        "Supported parameters include": {"color": "red"},
        "no project name": {"name": "Portal!"},
        "without '..'": {"secrets": [{"name": "../x", "content": "y"}]},
        "must be a path below": {"directories": [{"path": "/var/lib/x"}]},
        "keeps for itself": {"templates": [{"src": "compose.yml.j2", "dest": ".previous/x"}]},
        "quoted octal string": {"secrets": [{"name": "x", "content": "y", "mode": 288}]},
        "more than one source for compose.yml": {"files": [{"src": "other.yml", "dest": "compose.yml"}]},
        "there is no 'nothing.j2'": {"templates": [{"src": "nothing.j2"}]},
        "no compose.yml": {"exclude": ["compose.yml.j2", "broken.j2"]},
        "is not valid YAML": {
            "templates": [{"src": "compose.yml.j2", "dest": "x"}, {"src": "broken.j2", "dest": "compose.yml"}]
        },
        "'broken.j2' cannot be rendered": {},
        "more than one entry": {"reload": [{"service": "web", "files": ["x"]}, {"service": "web", "files": ["y"]}]},
        "'HUPP' is no signal": {"reload": [{"service": "web", "files": ["x"], "signal": "HUPP"}]},
        "is a file and also the folder of": {"files": [{"src": "other.yml", "dest": "a"}, {"src": "z", "dest": "a/b"}]},
        "must be one of": {"state": "running"},
        "at least one second": {"wait_timeout": 0},
    }
    (controller.role / "files/other.yml").write_text("x: 1\n")
    (controller.role / "files/z").write_text("z")
    (controller.role / "templates/broken.j2").write_text(
        "{{ broken | default('a: [') if allowed else undefined_thing }}"
    )
    tasks = []
    for number, (words, options) in enumerate(cases.items()):
        exclude = {} if words.startswith("'broken") else {"exclude": ["broken.j2"]}
        task = {**controller.stack(**{**exclude, **options}), "ignore_errors": True, "register": f"r{number}"}
        tasks.append({**task, "vars": {**task["vars"], "allowed": words == "is not valid YAML"}})
    results = ", ".join(f"r{number}.msg | default('')" for number in range(len(cases)))
    content = {
        "content": f"{{{{ [{results}] | to_json }}}}",
        "dest": str(controller.folder / "results"),
        "mode": "0600",
    }
    tasks.append({"name": "Results", "vars": task["vars"], "ansible.builtin.copy": content})
    code, text = controller.run(tasks)
    assert code == 0, text
    messages = json.loads((controller.folder / "results").read_text())
    assert [words for words, message in zip(cases, messages) if words not in message] == [], messages
    assert not controller.host.base.exists()
