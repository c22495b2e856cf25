"""Running the playbooks against the lab, through ansible-runner: progress, durations, and what a run did."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ansible_runner

from lab import settings
from lab.shell import LabError

INVENTORY = settings.ROOT / "inventories" / "lab"
_RUNNER = settings.STATE / "runner"
_OUTCOMES = {"runner_on_ok": "ok", "runner_on_failed": "failed", "runner_on_unreachable": "unreachable"}


@dataclass(frozen=True)
class Outcome:
    """What one task did on one host. `seconds` is wall time, a loop's items together."""

    host: str
    role: str
    task: str
    result: str
    changed: bool
    seconds: float


@dataclass
class Run:
    """What a run of a playbook did."""

    rc: int
    seconds: float
    outcomes: list[Outcome]
    stats: dict[str, dict[str, int]]
    output: str
    deprecations: list[str] = field(default_factory=list)

    def changed(self, *hosts: str) -> set[tuple[str, str, str]]:
        """Return host, role and task of everything that changed, on all hosts or on those named."""
        return {
            (outcome.host, outcome.role, outcome.task)
            for outcome in self.outcomes
            if outcome.changed and (not hosts or outcome.host in hosts)
        }


class _Progress:
    """Prints one line per task when it ends, with the hosts it changed and its time."""

    def __init__(self, *, show: str) -> None:
        self.show = show
        self.outcomes: list[Outcome] = []
        self.stats: dict[str, dict[str, int]] = {}
        self._task: dict[str, Any] = {}
        self._lines: list[Outcome] = []
        self._begin = time.monotonic()

    def __call__(self, event: dict[str, Any]) -> bool:
        """Take one event of ansible-runner."""
        data = event.get("event_data", {})
        kind = event["event"]
        if kind in ("playbook_on_task_start", "playbook_on_play_start", "playbook_on_stats"):
            self._end_of_task()
            if kind == "playbook_on_task_start":
                self._task = data
        if kind == "playbook_on_stats":
            self.stats = {host: dict.fromkeys(("ok", "changed", "failures", "dark"), 0) for host in data["processed"]}
            for word in ("ok", "changed", "failures", "dark"):
                for host, count in data.get(word, {}).items():
                    self.stats[host][word] = count
        if kind in _OUTCOMES:
            outcome = Outcome(
                data.get("host", ""),
                data.get("role", "") or "",
                data.get("task", ""),
                _OUTCOMES[kind],
                # A task with no_log has no result here, only the word that Ansible prints.
                bool(data.get("res", {}).get("changed")) or "changed: [" in event.get("stdout", ""),
                float(data.get("duration", 0)),
            )
            self.outcomes.append(outcome)
            self._lines.append(outcome)
            if outcome.result != "ok" and self.show == "tasks":
                print(event.get("stdout", ""), flush=True)
        if self.show == "output" and event.get("stdout"):
            print(event["stdout"], flush=True)
        return False  # the event itself need not be kept

    def _end_of_task(self) -> None:
        if self._lines and self.show == "tasks":
            changed = " ".join(sorted(line.host for line in self._lines if line.changed))
            failed = " ".join(sorted(line.host for line in self._lines if line.result != "ok"))
            seconds = max(line.seconds for line in self._lines)
            mark = "✗" if failed else ("~" if changed else "·")
            name = " : ".join(part for part in (self._lines[0].role, self._lines[0].task) if part)
            word = f"  failed: {failed}" if failed else (f"  changed: {changed}" if changed else "")
            print(f"  {mark}  {name[:88]:<88} {seconds:6.1f} s{word}", flush=True)
        self._lines = []


def play(
    playbook: str, *options: str, show: str = "tasks", inventory: Path = INVENTORY, more: Path | None = None
) -> Run:
    """Run a playbook (a path below the checkout) against the lab.

    `show`: "tasks" prints a line per task, "output" what ansible-playbook prints, "nothing" nothing. `more` is a folder
    with roles and an inventory.yml that are used besides the project's own.
    """
    extra = {} if more is None else {"ANSIBLE_ROLES_PATH": f"{settings.ROOT}/roles:{more}/roles"}
    _RUNNER.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(
        _RUNNER / "env", ignore_errors=True
    )  # the runner keeps an earlier run's settings there, and prefers them
    identity = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{time.monotonic_ns()}"
    progress = _Progress(show=show)
    binaries = str(Path(shutil.which("ansible-playbook") or settings.ROOT / ".venv/bin/ansible-playbook").parent)
    begin = time.monotonic()
    runner = ansible_runner.run(
        private_data_dir=str(_RUNNER),
        project_dir=str(settings.ROOT),
        playbook=playbook,
        inventory=[str(inventory), *([] if more is None else [str(more / "inventory.yml")])],
        cmdline=" ".join(options) or None,
        ident=identity,
        quiet=True,
        rotate_artifacts=20,
        event_handler=progress,
        envvars={
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "ANSIBLE_DEPRECATION_WARNINGS": "true",
            "_ANSIBLE_TEMPLAR_UNTRUSTED_TEMPLATE_BEHAVIOR": "error",
            **extra,
        },
    )
    output = (_RUNNER / "artifacts" / identity / "stdout").read_text()
    return Run(
        rc=runner.rc,
        seconds=time.monotonic() - begin,
        outcomes=progress.outcomes,
        stats=progress.stats,
        output=output,
        deprecations=[line for line in output.splitlines() if "DEPRECAT" in line.upper() and "WARNING" in line.upper()],
    )


@contextmanager
def services_more(more: Path) -> Iterator[None]:
    """Have the services of a folder (site.yml, inventory.yml, roles) beside the homelab; take them away again."""
    quick = ("--skip-tags", "base,docker,tailscale")
    _play_well(str((more / "site.yml").relative_to(settings.ROOT)), *quick, more=more)
    try:
        yield
    finally:
        _play_well("site.yml", *quick)


def _play_well(playbook: str, *options: str, more: Path | None = None) -> None:
    """Run a playbook as `play` does, without a word; LabError, with all that it said, when it fails."""
    run = play(playbook, *options, show="nothing", more=more)
    if run.rc != 0:
        raise LabError(f"{playbook} failed\n{run.output}")


def report(run: Run) -> Sequence[str]:
    """Return the lines that sum a run up: per host what it did, and how long it took."""
    lines = [
        f"  {host:<10} " + "  ".join(f"{word} {counts.get(word, 0)}" for word in ("ok", "changed", "failures", "dark"))
        for host, counts in sorted(run.stats.items())
    ]
    return [*lines, f"  {run.seconds:.0f} s"]
