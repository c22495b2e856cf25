"""What is there: machines, addresses, containers and their health."""

from __future__ import annotations

import json
from typing import Any

from lab import machines, settings
from lab.shell import run


def _containers(host: str) -> list[dict[str, str]]:
    """Return name, image, state and health of every container of a host; nothing where it has no engine yet."""
    done = run("docker", "exec", host, "docker", "ps", "--all", "--format", "{{json .}}", check=False)
    if done.returncode != 0:
        return []
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return sorted(
        (
            {
                "name": row["Names"],
                "image": row["Image"],
                "state": row["State"],
                "health": row["Status"].rsplit("(", 1)[1].rstrip(")") if "(" in row["Status"] else "",
            }
            for row in rows
        ),
        key=lambda row: row["name"],
    )


def _tailnet(host: str) -> str:
    done = run("docker", "exec", host, "tailscale", "ip", "-4", check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def collect() -> dict[str, Any]:
    """Return the lab's state.

    Keys: `hosts` (name, address, tailnet address, state, services) and `outside` (the lab's own services).
    """
    hosts = []
    for host in settings.HOSTS:
        state = machines.state(host)
        runs = state == "running"
        hosts.append(
            {
                "name": host.name,
                "address": host.address,
                "tailnet": _tailnet(host.name) if runs else "",
                "state": state,
                "services": _containers(host.name) if runs else [],
            }
        )
    outside = [
        {"name": machine.name, "address": machine.address, "state": machines.state(machine), "names": machine.names}
        for machine in (*settings.SERVICES, settings.GUEST)
    ]
    return {"hosts": hosts, "outside": outside}


def render(status: dict[str, Any]) -> str:
    """Return the state as text for a person."""
    lines = []
    for host in status["hosts"]:
        lines.append(f"{host['name']:<14} {host['state']:<9} {host['address']:<13} tailnet {host['tailnet'] or '-'}")
        lines += [
            f"  {row['name']:<12} {row['state']:<9} {row['health']:<10} {row['image']}" for row in host["services"]
        ]
    lines.append("")
    lines += [
        f"{row['name']:<14} {row['state']:<9} {row['address']:<13} {', '.join(row['names'])}"
        for row in status["outside"]
    ]
    return "\n".join(lines)
