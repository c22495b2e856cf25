"""The docker engine of this machine: used as it is when it answers, started by us where there is no init to do it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from lab import settings
from lab.shell import LabError, docker, run, step

_RECORD = settings.CACHE / "engine.json"
"""Process id and start time of the engine that we started: what tells `down` that it is ours to stop."""


def _answers() -> bool:
    return run("docker", "info", "--format", "{{.ServerVersion}}", check=False, timeout=30).returncode == 0


def _start_ticks(pid: int) -> str | None:
    """Return the process's start time in clock ticks since boot (field 22 of /proc/PID/stat), None if there is none.

    Together with the process id it names one process for good: ids are used again, start times are not.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None


def ensure() -> None:
    """Have a docker engine that answers."""
    if run("sh", "-c", "command -v docker && command -v dockerd", check=False).returncode != 0 and not _answers():
        run(settings.ROOT / "bin" / "setup", "packages", "docker.io", "iptables")
    if _answers():
        return
    if os.geteuid() != 0 or Path("/run/systemd/system").is_dir():
        raise LabError(
            "no docker engine answers.\n"
            "Start it (sudo systemctl start docker) and see that you may use it (docker info)."
        )
    with step("Starting a docker engine (none answers, and there is no init)"):
        settings.CACHE.mkdir(parents=True, exist_ok=True)
        log = settings.CACHE / "engine.log"
        with log.open("w") as output:
            engine = subprocess.Popen(["dockerd"], stdout=output, stderr=output, start_new_session=True)
        ticks = _start_ticks(engine.pid)
        _RECORD.write_text(json.dumps({"pid": engine.pid, "ticks": ticks}))
        deadline = time.monotonic() + 60
        while not _answers():
            if engine.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(log.read_text().splitlines()[-15:])
                raise LabError(f"the docker engine did not start; {log} ends with:\n{tail}")
            time.sleep(0.3)


def stop_ours() -> None:
    """Stop the engine that `ensure` started, and take away what it leaves: its iptables rules and its bridge."""
    if not _RECORD.exists():
        return
    record = json.loads(_RECORD.read_text())
    pid = record["pid"]
    if record["ticks"] is not None and _start_ticks(pid) == record["ticks"]:
        if docker("ps", "--quiet"):
            return  # somebody else's containers run on it by now
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 30
        while _start_ticks(pid) == record["ticks"]:
            if time.monotonic() > deadline:
                raise LabError(f"the docker engine (process {pid}) does not stop")
            time.sleep(0.2)
        _remove_rules()
        run("ip", "link", "delete", "docker0", check=False)
    _RECORD.unlink()


def _remove_rules() -> None:
    """Remove the iptables rules and chains that name docker: the engine leaves them when it stops."""
    for table in ("nat", "filter"):
        saved = run("iptables-save", "-t", table, check=False).stdout.splitlines()
        for rule in (line for line in saved if line.startswith("-A") and ("DOCKER" in line or "docker0" in line)):
            run("iptables", "-t", table, "-D", *rule.split()[1:], check=False)
        chains = [line.split()[0].removeprefix(":") for line in saved if line.startswith(":DOCKER")]
        for action in ("-F", "-X"):
            for chain in chains:
                run("iptables", "-t", table, action, chain, check=False)
    run("iptables", "-P", "FORWARD", "ACCEPT", check=False)


def cgroup_version() -> int:
    """Return 1 or 2: which control groups the engine uses (systemd in a container needs other flags for each)."""
    return int(docker("info", "--format", "{{.CgroupVersion}}"))
