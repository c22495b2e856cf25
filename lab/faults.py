"""Breaking the lab on purpose, and mending it."""

from __future__ import annotations

from collections.abc import Callable

from lab import machines, settings
from lab.shell import LabError, docker, run, step

_TABLE = "lab_fault"


def _on(host: str, *command: str, check: bool = True) -> str:
    return run("docker", "exec", host, *command, check=check).stdout


def power_off(host: str) -> None:
    """Power off a host, as when its plug is pulled."""
    docker("kill", host)


def stop(host: str) -> None:
    """Shut a host down cleanly."""
    docker("stop", "--time", "30", host)


def freeze(host: str) -> None:
    """Freeze a host: nothing of it answers, no connection is refused."""
    docker("pause", host)


def reboot(host: str) -> None:
    """Shut a host down cleanly and boot it again; back when it takes ssh connections."""
    stop(host)
    docker("start", host)
    machines.wait_for_boot(host)


def cut_tailnet(host: str) -> None:
    """Lose every packet that a host sends or receives over the tailnet."""
    rules = (
        f"table inet {_TABLE} {{\n"
        '  chain in { type filter hook prerouting priority -300; iifname "tailscale0" drop; }\n'
        '  chain out { type filter hook postrouting priority 300; oifname "tailscale0" drop; }\n'
        "}\n"
    )
    run("docker", "exec", "-i", host, "nft", "-f", "-", stdin=rules)


def stop_container(host: str, container: str) -> None:
    """Stop a container of a host, as an operator would."""
    _on(host, "docker", "stop", container)


def kill_container(host: str, container: str) -> None:
    """Kill a container's main process; docker starts it again only where the process, not a person, ended it."""
    pid = _on(host, "docker", "inspect", "--format", "{{.State.Pid}}", container).strip()
    _on(host, "kill", "-9", pid)


def freeze_container(host: str, container: str) -> None:
    """Freeze a container: it takes connections and does not answer."""
    _on(host, "docker", "pause", container)


FAULTS: dict[str, Callable[..., None]] = {
    "power-off": power_off,
    "stop": stop,
    "freeze": freeze,
    "reboot": reboot,
    "cut-tailnet": cut_tailnet,
    "stop-container": stop_container,
    "kill-container": kill_container,
    "freeze-container": freeze_container,
}


def fault(name: str, *arguments: str) -> None:
    """Bring about a fault by its name. LabError for an unknown name or a wrong number of arguments."""
    if name not in FAULTS:
        raise LabError(f"there is no fault {name!r}; there are: {', '.join(FAULTS)}")
    wanted = FAULTS[name].__code__.co_varnames[: FAULTS[name].__code__.co_argcount]
    if len(arguments) != len(wanted):
        raise LabError(f"{name} takes {' and '.join(wanted)}, for example: bin/lab fault {name} monk")
    FAULTS[name](*arguments)


def heal() -> None:
    """Mend every fault: hosts run, nothing is cut, every container of a stack runs."""
    with step("Mending the lab"):
        for host in settings.HOSTS:
            if machines.state(host) == "paused":
                docker("unpause", host.name)
        machines.ensure_hosts()
        for host in settings.HOSTS:
            _on(host.name, "nft", "delete", "table", "inet", _TABLE, check=False)
            frozen = _on(host.name, "docker", "ps", "--quiet", "--filter", "status=paused", check=False).split()
            if frozen:
                _on(host.name, "docker", "unpause", *frozen)
            stopped = _on(host.name, "docker", "ps", "--quiet", "--filter", "status=exited", check=False).split()
            if stopped:
                _on(host.name, "docker", "start", *stopped)
