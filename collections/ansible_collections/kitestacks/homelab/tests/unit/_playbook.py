# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run tasks through the real ansible-playbook, on this machine, and keep what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t
from dataclasses import dataclass
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
COLLECTIONS = HERE.parents[4]


@dataclass
class Played:
    """What a run of ansible-playbook left: `records` has outcome, task and result of each task."""

    code: int
    stdout: str
    stderr: str
    records: list[dict[str, t.Any]]

    @property
    def everything(self) -> str:
        """All of it as one text, to look for secrets in."""
        return "\n".join([self.stdout, self.stderr, json.dumps(self.records)])


def play(
    folder: Path,
    tasks: list[dict[str, t.Any]],
    *arguments: str,
    defaults: dict[str, dict[str, t.Any]] | None = None,
    collections: Path = COLLECTIONS,
    environment: dict[str, str] | None = None,
) -> Played:
    """Run tasks against localhost.

    Args:
        folder: an empty folder for the playbook, Ansible's own files and the record.
        tasks: tasks as in a playbook.
        arguments: options of ansible-playbook.
        defaults: `module_defaults`.
        collections: folder that holds `ansible_collections`.
        environment: variables to set.
    """
    book = folder / "play.yml"
    header = {"hosts": "localhost", "connection": "local", "gather_facts": False, "module_defaults": defaults or {}}
    book.write_text(yaml.safe_dump([{**header, "tasks": tasks}], sort_keys=False))
    record = folder / "record.jsonl"
    record.unlink(missing_ok=True)
    config = folder / "ansible.cfg"
    config.touch()  # an empty one, so that no other is found
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "CLOUDFLARE_"))},
        "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback"),
        "ANSIBLE_CALLBACKS_ENABLED": "record",
        "ANSIBLE_COLLECTIONS_PATH": str(collections),
        "ANSIBLE_CONFIG": str(config),
        "ANSIBLE_DEPRECATION_WARNINGS": "true",
        "ANSIBLE_HOME": str(folder / "home"),
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
        "ANSIBLE_NOCOLOR": "true",
        "KITE_RECORD": str(record),
        **(environment or {}),
    }
    program = Path(sys.executable).with_name("ansible-playbook")
    command = [str(program), "-e", f"ansible_python_interpreter={sys.executable}", *arguments, str(book)]
    done = subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    records = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    return Played(done.returncode, done.stdout, done.stderr, records)


def three_times(tasks: list[dict[str, t.Any]]) -> list[dict[str, t.Any]]:
    """Return each task in check mode, for real, and once more."""
    rounds = (("check", True), ("real", False), ("again", False))
    return [
        {**task, "name": f"{word}: {task['name']}", "check_mode": check} for task in tasks for word, check in rounds
    ]


def check_rounds(played: Played) -> None:
    """Assert that check mode told what then happened, and that the second real run changed nothing."""
    assert played.code == 0, played.stdout + played.stderr
    assert "[WARNING]" not in played.stderr + played.stdout
    assert "DEPRECATION" not in played.stderr + played.stdout
    by_task = {record["task"]: record["result"] for record in played.records}
    seen = 0
    for name, result in by_task.items():
        word, _colon, task = name.partition(": ")
        if word != "check" or "results" not in result:
            continue
        seen += 1
        real, again = by_task[f"real: {task}"], by_task[f"again: {task}"]
        assert result["changed"] == real["changed"], task
        assert result.get("diff") == real.get("diff"), task
        lines = [[(line["kind"], line["key"], line["action"]) for line in part["results"]] for part in (result, real)]
        assert lines[0] == lines[1], task
        assert not again["changed"], task
    assert seen or all(record["result"].get("changed") is not True for record in played.records)
