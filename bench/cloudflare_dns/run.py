"""Measure kitestacks.homelab.cloudflare_dns_records against community.general.cloudflare_dns in a loop.

Both run through ansible-playbook against the same fake API in the same run. CPU seconds are those of ansible-playbook
and everything that it starts; the fake lives in this process and is not counted. See README.md beside this file.

Usage: .venv/bin/python bench/cloudflare_dns/run.py [--records 100] [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import typing as t
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COLLECTIONS = ROOT / "collections"
sys.path.insert(0, str(COLLECTIONS))

from ansible_collections.kitestacks.homelab.tests.fakes._server import Server  # noqa: E402
from ansible_collections.kitestacks.homelab.tests.fakes.cloudflare import TOKEN, CloudflareApi  # noqa: E402

ZONE = "example.com"
THEIRS = "community.general.cloudflare_dns"
OURS = "kitestacks.homelab.cloudflare_dns_records"
# Their module has its base URL as a constant.
BASE_URL = "https://api.cloudflare.com/client/v4"
ROUNDS = 5  # of a run that takes a second; the one that took least counts
TASKS = 10  # of each module, when one no-op task is compared with ansible.builtin.ping


@dataclass
class Run:
    """What one run of ansible-playbook took: seconds, and what arrived at the fake."""

    name: str
    wall: float
    cpu: float
    requests: int
    connections: int


def their_collection(folder: Path, url: str) -> Path:
    """Return a folder with community.general in which the one constant of the module names the fake."""
    unpacked = ROOT / ".cache/bench/collections"
    if not (unpacked / "ansible_collections/community/general").is_dir():
        program, wanted = ROOT / "bin/collections_from_pypi.py", ROOT / "bench/requirements.yml"
        subprocess.run([sys.executable, str(program), str(wanted), str(unpacked)], check=True)
    target = folder / "collections"
    shutil.copytree(unpacked, target)
    module = target / "ansible_collections/community/general/plugins/modules/cloudflare_dns.py"
    text = module.read_text()
    if text.count(BASE_URL) != 1:
        sys.exit(f"bench: {module.name} does not name {BASE_URL} exactly once any more")
    module.write_text(text.replace(BASE_URL, url))
    return target


def play(folder: Path, collections: list[Path], tasks: list[dict[str, t.Any]]) -> tuple[float, float]:
    """Run tasks on localhost and return wall clock and CPU seconds."""
    book = folder / "play.yml"
    header = {"hosts": "localhost", "connection": "local", "gather_facts": False}
    book.write_text(yaml.safe_dump([{**header, "tasks": tasks}], sort_keys=False))
    config = folder / "ansible.cfg"
    config.touch()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
        "ANSIBLE_COLLECTIONS_PATH": os.pathsep.join(map(str, collections)),
        "ANSIBLE_CONFIG": str(config),
        "ANSIBLE_HOME": str(folder / "home"),
        "ANSIBLE_LOCALHOST_WARNING": "false",
    }
    program = Path(sys.executable).with_name("ansible-playbook")
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [program, "-e", f"ansible_python_interpreter={sys.executable}", book],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(name: str, server: Server, folder: Path, collections: list[Path], tasks: list[dict[str, t.Any]]) -> Run:
    """Run tasks once and count what arrived."""
    server.reset()
    wall, cpu = play(folder, collections, tasks)
    print(f"{name}: {cpu:.2f} CPU s, {len(server.calls)} requests", flush=True)
    return Run(name, round(wall, 2), round(cpu, 2), len(server.calls), server.connections)


def compare_sets(count: int, folder: Path) -> list[Run]:
    """Measure both modules over the same records, first run and run without changes."""
    names = [f"host{number}" for number in range(count)]
    runs = [least(lambda server: measure("no task at all", server, folder, [COLLECTIONS], []))]
    with Server(CloudflareApi([ZONE])) as server:
        record = {"zone": ZONE, "record": "{{ item }}", "type": "A", "value": "192.0.2.1", "api_token": TOKEN}
        loop = [{"name": "records", THEIRS: record, "loop": names}]
        theirs = [their_collection(folder, server.url)]
        runs.append(measure("loop, first run", server, folder, theirs, loop))
        runs.append(measure("loop, no change", server, folder, theirs, loop))
    records = [{"name": name, "type": "A", "content": "192.0.2.1"} for name in names]

    def ours(name: str, server: Server) -> Run:
        options = {"api_url": server.url, "api_token": TOKEN, "zone": ZONE, "records": records}
        return measure(name, server, folder, [COLLECTIONS], [{"name": "records", OURS: options}])

    runs.append(least(lambda server: ours("set, first run", server)))
    with Server(CloudflareApi([ZONE])) as server:
        ours("set, to fill the zone", server)
        runs.append(min((ours("set, no change", server) for _round in range(ROUNDS)), key=lambda run: run.cpu))
    return runs


def least(run: t.Callable[[Server], Run]) -> Run:
    """Return the cheapest of some runs, each against a fake with an empty zone: a short run is easily disturbed."""
    found = []
    for _round in range(ROUNDS):
        with Server(CloudflareApi([ZONE])) as server:
            found.append(run(server))
    return min(found, key=lambda item: item.cpu)


def compare_with_ping(folder: Path) -> list[Run]:
    """Measure tasks that change nothing against as many tasks of ansible.builtin.ping."""
    api = CloudflareApi([ZONE])
    with Server(api) as server:
        access = {"api_url": server.url, "api_token": TOKEN, "account_id": api.account["id"]}
        record = {"name": "www", "type": "A", "content": "192.0.2.1"}
        modules: dict[str, dict[str, t.Any]] = {
            "ansible.builtin.ping": {},
            "kitestacks.homelab.cloudflare_tunnels": {**access, "tunnels": [{"name": "homelab"}]},
            "kitestacks.homelab.cloudflare_tunnel_config": {
                **access,
                "tunnel": "homelab",
                "ingress": [{"hostname": "www.example.com", "service": "http://edge:8080"}],
            },
            "kitestacks.homelab.cloudflare_access": {
                **access,
                "groups": [{"name": "family", "include": [{"email_domain": "example.com"}]}],
            },
            OURS: {"api_url": access["api_url"], "api_token": TOKEN, "zone": ZONE, "records": [record]},
            "kitestacks.homelab.cloudflare_info": access,
        }
        tasks = {name: {"name": name, name: options} for name, options in modules.items()}
        for task in tasks.values():
            play(folder, [COLLECTIONS], [task])  # makes the objects, so that what is measured changes nothing
        # Round by round, so that what else the machine does hits all of them alike.
        rounds = [
            {name: measure(name, server, folder, [COLLECTIONS], [task] * TASKS) for name, task in tasks.items()}
            for _round in range(ROUNDS)
        ]
    return [min((found[name] for found in rounds), key=lambda run: run.cpu) for name in modules]


def report(count: int, sets: list[Run], pings: list[Run]) -> str:
    """Return the result as Markdown."""
    lines = [
        f"Python {platform.python_version()}, ansible-core {version()}, {os.cpu_count()} cores, {count} records.",
        "",
        "| run | CPU s | wall s | requests | connections |",
        "|---|---|---|---|---|",
        *(f"| {run.name} | {run.cpu} | {run.wall} | {run.requests} | {run.connections} |" for run in sets),
        "",
        f"First run: {ratio(sets, 1)}. No change: {ratio(sets, 2)}.",
        "",
        f"{TASKS} tasks that change nothing:",
        "",
        "| module | CPU s | of ping |",
        "|---|---|---|",
        *(f"| {run.name} | {run.cpu} | {run.cpu / pings[0].cpu:.2f} |" for run in pings),
    ]
    return "\n".join(lines) + "\n"


def ratio(sets: list[Run], loop: int) -> str:
    """Say how a loop and the set compare, with and without what ansible-playbook takes for nothing."""
    empty, slow, fast = sets[0].cpu, sets[loop], sets[loop + 2]
    beyond = (slow.cpu - empty) / (fast.cpu - empty)
    return (
        f"{slow.cpu / fast.cpu:.0f} times less CPU ({beyond:.0f} times beyond a playbook without tasks), "
        f"{slow.requests / fast.requests:.0f} times fewer requests"
    )


def version() -> str:
    """Return the version of ansible-core."""
    from ansible.release import __version__  # noqa: PLC0415

    return str(__version__)


def main() -> None:
    """Measure, print, and with --write keep the result beside this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--write", action="store_true", help="write result.md and result.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sets = compare_sets(options.records, folder)
        pings = compare_with_ping(folder)
    text = report(options.records, sets, pings)
    print(text)
    if options.write:
        (HERE / "result.md").write_text(text)
        document = {
            "records": options.records,
            "sets": [asdict(run) for run in sets],
            "ping": [asdict(r) for r in pings],
        }
        (HERE / "result.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
