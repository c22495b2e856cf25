"""What a run of site.yml costs when there is nothing to do, beside a floor: a play of one no-op task on both hosts.

Needs a lab that `bin/lab up` has brought up. Prints a table; the ratios are what to quote, since machines are noisy.
After it, the slowest tasks of one more run, as ansible-runner's events tell them.

Usage: python bench/no_change/run.py [--runs 5] [--check]
--check: exit with 1 when the budget is exceeded (12 times the floor's wall time, 60 executed tasks per host).
"""

from __future__ import annotations

import argparse
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLOOR = """
- hosts: homelab
  gather_facts: false
  tasks:
    - name: Nothing
      ansible.builtin.ping:
"""
MOST_TIMES_THE_FLOOR = 12
MOST_TASKS = 60


@dataclass(frozen=True)
class Cost:
    """One run. `wall` and `cpu` in seconds, of the controller with all its children; `tasks` executed, per host."""

    wall: float
    cpu: float
    tasks: int
    changed: int


def measure(playbook: Path) -> Cost:
    """Run a playbook against the lab once."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.monotonic()
    words = [Path(sys.executable).parent / "ansible-playbook", "-i", ROOT / "inventories/lab", playbook]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    wall = time.monotonic() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        sys.exit(f"{playbook} failed:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    recap = re.findall(r"^(?!localhost)\S+\s*: ok=(\d+)\s+changed=(\d+)", done.stdout, re.MULTILINE)
    cpu = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return Cost(wall, cpu, max(int(ok) for ok, _changed in recap), sum(int(changed) for _ok, changed in recap))


def slowest(count: int) -> list[tuple[str, float]]:
    """Return the tasks that took longest in a run, each with its seconds on the slower host."""
    sys.path.insert(0, str(ROOT))
    from lab import site  # noqa: PLC0415 - below the path it needs

    seconds: dict[str, float] = {}
    for outcome in site.play("site.yml", show="nothing").outcomes:
        name = " : ".join(part for part in (outcome.role, outcome.task) if part)
        seconds[name] = max(seconds.get(name, 0.0), outcome.seconds)
    return sorted(seconds.items(), key=lambda row: -row[1])[:count]


def main() -> int:
    """Measure both in turn, print the medians, and compare them with the budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        floor_playbook = Path(folder) / "floor.yml"
        floor_playbook.write_text(FLOOR)
        pairs = []
        for number in range(arguments.runs + 1):
            pair = (measure(floor_playbook), measure(ROOT / "site.yml"))
            if number:  # the first is a warm-up: ssh connections are opened in it
                pairs.append(pair)
    floor_wall, wall = (statistics.median(pair[index].wall for pair in pairs) for index in (0, 1))
    floor_cpu, cpu = (statistics.median(pair[index].cpu for pair in pairs) for index in (0, 1))
    ratio = statistics.median(site.wall / floor.wall for floor, site in pairs)
    tasks = max(site.tasks for _floor, site in pairs)
    changed = sum(site.changed for _floor, site in pairs)
    print(f"| {arguments.runs} runs, medians | wall s | controller CPU s | executed tasks per host | changed |")
    print("|---|---|---|---|---|")
    print(f"| floor: one no-op task | {floor_wall:.2f} | {floor_cpu:.2f} | 1 | 0 |")
    print(f"| site.yml, nothing to do | {wall:.2f} | {cpu:.2f} | {tasks} | {changed} |")
    print(f"| ratio, run by run | {ratio:.1f} | {cpu / floor_cpu:.1f} | | |")
    print("\n| slowest tasks | s |\n|---|---|")
    print("\n".join(f"| {name} | {spent:.1f} |" for name, spent in slowest(8)))
    within = ratio <= MOST_TIMES_THE_FLOOR and tasks <= MOST_TASKS and changed == 0
    verdict = "kept" if within else "EXCEEDED"
    print(f"\nbudget: {MOST_TIMES_THE_FLOOR} times the floor's wall time, {MOST_TASKS} tasks: {verdict}")
    return 0 if within or not arguments.check else 1


if __name__ == "__main__":
    sys.exit(main())
