# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules through a real ansible-playbook: the examples of their documentation, and that no secret gets out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible.module_utils import basic
from ansible_collections.kitestacks.homelab.plugins.module_utils import _http
from ansible_collections.kitestacks.homelab.tests.fakes._contract import REPOSITORY
from ansible_collections.kitestacks.homelab.tests.fakes.authentik import ADMIN_TOKEN

from ._authentik_runs import MODULES, Lab, module

# Each before those that refer to what it makes.
ORDER = ("info", "groups", "scope_mappings", "providers", "users", "outposts", "applications", "blueprints")
SECRETS = {
    "authentik_token": ADMIN_TOKEN,
    "grafana_client_secret": "secret-of-grafana-1f0c",
    "ldap_search_password": "secret-of-searcher-2e1d",
    "ldap_outpost_token": "secret-of-outpost-3d2e",
    "robins_password": "secret-of-robin-4c3f",
}


@pytest.fixture
def lab():
    with Lab() as running:
        yield running


class Played(t.NamedTuple):
    """What a run of ansible-playbook printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def changed(self) -> int:
        return int(re.search(r"changed=(\d+)", self.out)[1])


def play(
    folder: Path, tasks: list[dict[str, t.Any]], variables: dict[str, str], *options: str, **keywords: t.Any
) -> Played:
    """Run tasks on this machine; the secrets come from a file, as a vault would give them."""
    book, values = folder / "play.yml", folder / "values.json"
    head = {"hosts": "localhost", "connection": "local", "gather_facts": False, **keywords}
    book.write_text(yaml.safe_dump([{**head, "tasks": tasks}], sort_keys=False))
    values.write_text(json.dumps({**variables, "ansible_python_interpreter": sys.executable}))
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "localhost,", "-e", f"@{values}"]
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / "collections"),
        "ANSIBLE_CONFIG": str(folder / "none.cfg"),
        "ANSIBLE_HOME": str(folder / "home"),
        "ANSIBLE_INJECT_FACT_VARS": "false",
        "ANSIBLE_NOCOLOR": "true",
        "_ANSIBLE_TEMPLAR_UNTRUSTED_TEMPLATE_BEHAVIOR": "error",
    }
    done = subprocess.run(
        [*command, *options, str(book)], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    return Played(done.returncode, done.stdout, done.stderr)


def examples() -> list[dict[str, t.Any]]:
    return [task for name in ORDER for task in yaml.safe_load(module(f"authentik_{name}").EXAMPLES)]


def test_every_module_has_its_place_in_the_order():
    assert sorted(f"authentik_{name}" for name in ORDER) == sorted(MODULES)


def test_the_examples_run_in_check_mode_for_real_and_then_change_nothing(lab, tmp_path):
    variables = {**SECRETS, "authentik_url": lab.server.origin}
    checked = play(tmp_path, examples(), variables, "--check", "--diff")
    assert checked.code == 0, checked.out + checked.err
    assert lab.server.writes() == []
    first = play(tmp_path, examples(), variables, "--diff")
    assert first.code == 0, first.out + first.err
    assert first.changed == checked.changed == len(MODULES) - 1
    lab.server.calls.clear()
    second = play(tmp_path, examples(), variables, "--diff")
    assert (second.code, second.changed) == (0, 0), second.out
    assert lab.server.writes() == []
    assert lab.server.violations == []
    for run in (checked, first, second):
        assert "DEPRECATION" not in run.out + run.err
        assert not [secret for secret in SECRETS.values() if secret in run.out + run.err]


def secret_tasks(generation: str) -> list[dict[str, t.Any]]:
    """Return a task for each module that is given secrets, with keys that differ by generation."""

    def secret(name: str) -> str:
        return f"{{{{ {name} ~ '{generation}' }}}}"

    provider = {"client_id": "g", "client_secret": secret("grafana_client_secret"), "redirect_uris": []}
    options: dict[str, dict[str, t.Any]] = {
        "info": {},
        "groups": {"groups": [{"name": f"group{generation}"}]},
        "scope_mappings": {
            "scope_mappings": [{"name": "m", "scope_name": "m", "expression": f"return {{'a': '{generation}'}}"}]
        },
        "providers": {"providers": [{"name": "p", **provider}, {"name": "l", "type": "ldap"}]},
        "users": {
            "users": [
                {
                    "username": "robin",
                    "password": secret("robins_password"),
                    "update_password": "always",
                    "tokens": [{"identifier": "t", "key": secret("ldap_search_password")}],
                }
            ]
        },
        "outposts": {
            "outposts": [{"name": "o", "type": "ldap", "providers": ["l"], "token": secret("ldap_outpost_token")}]
        },
        "applications": {
            "applications": [
                {"slug": "kept", "name": "K", "provider": {**provider, "client_id": "k"}},
                {"slug": f"app{generation}", "name": "A", "provider": {**provider, "client_id": f"a{generation}"}},
            ],
            "owner": "kitestacks",
            "purge": True,
        },
        "blueprints": {"blueprints": [{"name": "b", "content": f"version: 1\nentries: []\n# {generation}\n"}]},
    }
    tasks = []
    for name in ORDER:
        tasks.append({f"kitestacks.homelab.authentik_{name}": options[name], "register": "result"})
        tasks.append({"ansible.builtin.debug": {"var": "result"}})
    return tasks


def leaks(text: str, generations: str) -> list[str]:
    found = [name for name, value in SECRETS.items() if value in text]
    return found + [f"{name} {n}" for n in generations for name, value in SECRETS.items() if f"{value}{n}" in text]


def test_no_secret_is_printed_at_vvv_with_diff_when_made_changed_deleted_or_failed(lab, tmp_path):
    variables = {**SECRETS, "authentik_url": lab.server.origin}
    defaults = {"group/kitestacks.homelab.authentik": {"url": "{{ authentik_url }}", "token": "{{ authentik_token }}"}}
    for generation in "12":
        run = play(tmp_path, secret_tasks(generation), variables, "-vvv", "--diff", module_defaults=[defaults])
        assert run.code == 0, run.out + run.err
        assert run.changed == len(MODULES) - 1
        assert leaks(run.out + run.err, generation) == []
        assert "********" in run.out
    # The server keeps secrets that nobody declared; their deletion is shown too.
    kept = lab.api.find("oauth2", name="kept")["client_secret"]
    assert kept.startswith(SECRETS["grafana_client_secret"])
    lab.server.fault(status=500, body="<html>broken</html>", method="POST", times=10_000)
    lab.server.fault(status=400, body={"client_secret": ["no"]}, method="PATCH", times=10_000)
    tasks = [{**task, "ignore_errors": True} for task in secret_tasks("3")]
    quick = {"group/kitestacks.homelab.authentik": {**defaults["group/kitestacks.homelab.authentik"], "retries": 0}}
    run = play(tmp_path, tasks, variables, "-vvv", "--diff", module_defaults=[quick])
    assert re.search(r"ignored=[5-9]", run.out), run.out[-2000:]
    assert leaks(run.out + run.err, "3") == []


def test_no_secret_is_logged(lab, monkeypatch):
    """The line that every module writes to syslog says its options, not their secrets."""
    lines: list[str] = []
    monkeypatch.setattr(basic, "has_journal", False)
    monkeypatch.setattr(basic.AnsibleModule, "_log_to_syslog", lambda _self, line: lines.append(str(line)))
    monkeypatch.setattr(_http, "_sleep", lambda _seconds: None)
    for task in secret_tasks("1"):
        ((name, options), *_rest) = task.items()
        if not name.startswith("kitestacks"):
            continue
        text = json.dumps(options)
        for variable, value in SECRETS.items():
            text = text.replace(f"{{{{ {variable} ~ '1' }}}}", f"{value}1")
        result = lab.ok(name.rpartition(".")[2], **json.loads(text))
        assert leaks(json.dumps(result), "1") == []
    assert len(lines) >= len(MODULES)
    assert leaks("\n".join(lines), "1") == []
    assert any("slug" in line for line in lines)
