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
        subprocess.run([sys.executable, str(program), str(wanted), str(unpacked)], check=True)  # noqa: S603
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
    done = subprocess.run(  # noqa: S603
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
    runs = []
    with Server(CloudflareApi([ZONE])) as server:
        record = {"zone": ZONE, "record": "{{ item }}", "type": "A", "value": "192.0.2.1", "api_token": TOKEN}
        loop = [{"name": "records", THEIRS: record, "loop": names}]
        theirs = [their_collection(folder, server.url)]
        runs.append(measure("loop, first run", server, folder, theirs, loop))
        runs.append(measure("loop, no change", server, folder, theirs, loop))
    with Server(CloudflareApi([ZONE])) as server:
        records = [{"name": name, "type": "A", "content": "192.0.2.1"} for name in names]
        options = {"api_url": server.url, "api_token": TOKEN, "zone": ZONE, "records": records}
        runs.append(measure("set, first run", server, folder, [COLLECTIONS], [{"name": "records", OURS: options}]))
        runs.append(measure("set, no change", server, folder, [COLLECTIONS], [{"name": "records", OURS: options}]))
    return runs


def compare_with_ping(folder: Path) -> list[Run]:
    """Measure tasks that change nothing against as many tasks of ansible.builtin.ping."""
    runs = []
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
        for name, options in modules.items():
            task = {"name": name, name: options}
            play(folder, [COLLECTIONS], [task])  # makes the objects, so that what is measured changes nothing
            runs.append(measure(name, server, folder, [COLLECTIONS], [task] * TASKS))
    return runs


def report(count: int, sets: list[Run], pings: list[Run]) -> str:
    """Return the result as Markdown."""
    lines = [
        f"Python {platform.python_version()}, ansible-core {version()}, {os.cpu_count()} cores, {count} records.",
        "",
        "| run | CPU s | wall s | requests | connections |",
        "|---|---|---|---|---|",
        *(f"| {run.name} | {run.cpu} | {run.wall} | {run.requests} | {run.connections} |" for run in sets),
        "",
        f"First run: {sets[0].cpu / sets[2].cpu:.0f} times less CPU, {sets[0].requests / sets[2].requests:.0f} times "
        f"fewer requests. No change: {sets[1].cpu / sets[3].cpu:.0f} times less CPU, "
        f"{sets[1].requests / sets[3].requests:.0f} times fewer requests.",
        "",
        f"{TASKS} tasks that change nothing:",
        "",
        "| module | CPU s | of ping |",
        "|---|---|---|",
        *(f"| {run.name} | {run.cpu} | {run.cpu / pings[0].cpu:.2f} |" for run in pings),
    ]
    return "\n".join(lines) + "\n"


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
