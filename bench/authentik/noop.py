# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task of each Authentik module costs when nothing has to be changed, against ansible.builtin.ping.

    python bench/authentik/noop.py [--tasks 10] [--rounds 3] [--limit 1.3]

CPU seconds (user and system) of ansible-playbook and its children, per task: a play of N such tasks less an empty play,
the least of the rounds. The stand-in serves from a process of its own and is not counted. Exit code 1 if a module costs
more than `--limit` times what ping costs. Prints the number of requests of applications at 1, 20 and 90 as well.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import typing as t
import urllib.request
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "collections"))

from ansible_collections.kitestacks.homelab.tests.fakes._server import Server  # noqa: E402
from ansible_collections.kitestacks.homelab.tests.fakes.authentik import ADMIN_TOKEN, AuthentikApi  # noqa: E402

MODULES: dict[str, dict[str, t.Any]] = {
    "authentik_info": {},
    "authentik_groups": {"groups": [{"name": f"group-{number}"} for number in range(5)]},
    "authentik_scope_mappings": {"scope_mappings": [{"name": "m", "scope_name": "m", "expression": "return {}"}]},
    "authentik_providers": {"providers": [{"name": f"provider-{number}"} for number in range(5)]},
    "authentik_users": {"users": [{"username": f"user-{number}"} for number in range(5)]},
    "authentik_outposts": {"outposts": [{"embedded": True, "config": {"log_level": "info"}}]},
    "authentik_blueprints": {"blueprints": [{"name": "b", "content": "version: 1\nentries: []\n"}]},
}


def applications(count: int) -> dict[str, t.Any]:
    """Return the options for so many applications, each with a provider and a group."""
    return {
        "applications": [
            {
                "slug": f"app-{number}",
                "name": f"App {number}",
                "groups": ["group-0"],
                "provider": {"redirect_uris": [{"url": f"https://app-{number}.example.test/cb"}]},
            }
            for number in range(count)
        ]
    }


def play(folder: Path, tasks: list[dict[str, t.Any]]) -> float:
    """Run a play of these tasks and return its CPU seconds."""
    book = folder / "play.yml"
    head = {"hosts": "localhost", "connection": "local", "gather_facts": False}
    book.write_text(yaml.safe_dump([{**head, "tasks": tasks}]))
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / "collections"),
        "ANSIBLE_CONFIG": str(folder / "none.cfg"),
        "ANSIBLE_HOME": str(folder / "home"),
        "ANSIBLE_PIPELINING": "true",
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
    }
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "localhost,", str(book)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def serve() -> None:
    """Serve the stand-in until standard input ends; the first line on standard output is its address."""
    server = Server(AuthentikApi())
    print(server.origin, flush=True)
    server.start()
    sys.stdin.read()


def log(url: str) -> list[dict[str, t.Any]]:
    """Return the calls that arrived since the last time."""
    with urllib.request.urlopen(f"{url}/_control/log") as answer:  # noqa: S310
        calls: list[dict[str, t.Any]] = json.load(answer)["calls"]
    forget = urllib.request.Request(f"{url}/_control/reset", method="POST")  # noqa: S310
    urllib.request.urlopen(forget).close()  # noqa: S310
    return calls


def measure(folder: Path, url: str, tasks: int, rounds: int) -> dict[str, tuple[float, int]]:
    """Return CPU seconds and requests per task, by module."""

    def task(name: str, options: dict[str, t.Any]) -> dict[str, t.Any]:
        return {f"kitestacks.homelab.{name}": {"url": url, "token": ADMIN_TOKEN, **options}}

    plays: dict[str, dict[str, t.Any]] = {"ansible.builtin.ping": {"ansible.builtin.ping": {}}}
    plays.update({name: task(name, options) for name, options in MODULES.items()})
    for count in (1, 20, 90):
        plays[f"authentik_applications ({count})"] = task("authentik_applications", applications(count))
    play(folder, list(plays.values()))  # makes everything, so that the rest are runs without changes
    log(url)
    spent: dict[str, list[float]] = {name: [] for name in ("", *plays)}
    requests = dict.fromkeys(plays, 0)
    # Round by round, so that a busy moment of the machine does not fall on one module alone.
    for _ in range(rounds):
        spent[""].append(play(folder, []))
        for name, entry in plays.items():
            spent[name].append(play(folder, [entry] * tasks))
            calls = log(url)
            requests[name] = len(calls) // tasks
            if any(call["method"] != "GET" for call in calls):
                sys.exit(f"{name} changed something: this was to be a run without changes")
    empty = min(spent[""])
    return {name: ((min(spent[name]) - empty) / tasks, requests[name]) for name in plays}


def main() -> int:
    """Measure, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=1.3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    command = [sys.executable, __file__, "--serve"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server,
    ):
        # The server is a child too: what it costs shows in our account only when it has ended.
        url = t.cast("t.IO[str]", server.stdout).readline().strip()
        found = measure(Path(folder), url, options.tasks, options.rounds)
        t.cast("t.IO[str]", server.stdin).close()
    ping = found["ansible.builtin.ping"][0]
    print(f"{'module':32}{'CPU s per task':>16}{'x ping':>9}{'requests':>10}")
    for name, (seconds, requests) in found.items():
        print(f"{name:32}{seconds:16.3f}{seconds / ping:9.2f}{requests:10d}")
    worst = max(seconds for seconds, _requests in found.values()) / ping
    return int(worst > options.limit)


if __name__ == "__main__":
    sys.exit(main())
