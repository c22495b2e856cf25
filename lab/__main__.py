"""The command behind bin/lab."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from lab import engine, faults, images, machines, settings, status, traffic
from lab.shell import LabError


def _up(arguments: argparse.Namespace, _rest: Sequence[str]) -> int:
    engine.ensure()
    if arguments.fresh:
        machines.refuse_other_checkouts()
        machines.down()
        images.remove_all()
        shutil.rmtree(settings.CACHE / "tailnet", ignore_errors=True)
    machines.up()
    return 0 if arguments.no_site else _site(arguments, ())


def _renew(_arguments: argparse.Namespace, _rest: Sequence[str]) -> int:
    engine.ensure()
    machines.renew_hosts()
    return 0


def _down(arguments: argparse.Namespace, _rest: Sequence[str]) -> int:
    engine.ensure()
    machines.down()
    if arguments.purge:
        images.remove_all()
        shutil.rmtree(settings.STATE, ignore_errors=True)
        shutil.rmtree(settings.CACHE / "tailnet", ignore_errors=True)
    engine.stop_ours()
    return 0


def _status(arguments: argparse.Namespace, _rest: Sequence[str]) -> int:
    found = status.collect()
    print(json.dumps(found, indent=2) if arguments.json else status.render(found))
    return 0


def _site(_arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from lab import site  # noqa: PLC0415 - takes half a second: only where it is needed

    secrets = site.play("playbooks/operations/secrets.yml", show="nothing")
    if secrets.rc != 0:
        raise LabError(f"the lab's secrets could not be made:\n{secrets.output}")
    wants_output = any(option.startswith(("-v", "--diff", "-D", "--list", "--check", "-C")) for option in rest)
    done = site.play("site.yml", *rest, show="output" if wants_output else "tasks")
    print("\n".join(site.report(done)))
    for line in done.deprecations:
        print(f"  deprecated: {line}")
    if done.rc == 0 and not rest:
        print("\n".join(_addresses()))
    return done.rc


def _addresses() -> list[str]:
    return [
        "",
        f"  https://www.{settings.DOMAIN}   bin/lab curl https://www.{settings.DOMAIN}",
        "  bin/lab status, bin/lab ssh monk, bin/lab fault, bin/lab heal, bin/lab down",
    ]


def _ssh(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    words = [*machines.ssh_command(arguments.host), *rest]
    os.execvp(words[0], words)  # noqa: S606


def _fault(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    faults.fault(arguments.name, *rest)
    return 0


def _heal(_arguments: argparse.Namespace, _rest: Sequence[str]) -> int:
    faults.heal()
    return 0


def _curl(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    url = arguments.url if "//" in arguments.url else f"https://{arguments.url}"
    return subprocess.run([*traffic.curl(arguments.via), *rest, url], check=False).returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bin/lab", description="Two bare hosts and what they meet outside, on this machine."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="build, boot, run site.yml, print the addresses")
    up.add_argument("--no-site", action="store_true", help="leave the hosts bare")
    up.add_argument("--fresh", action="store_true", help="build everything again, from nothing")
    up.set_defaults(run=_up)

    renew = commands.add_parser("renew", help="bare hosts again, everything else stays")
    renew.set_defaults(run=_renew)

    down = commands.add_parser("down", help="remove every container, network and volume of the lab")
    down.add_argument("--purge", action="store_true", help="its images, keys and built programs too")
    down.set_defaults(run=_down)

    state = commands.add_parser("status", help="hosts, addresses, services, health")
    state.add_argument("--json", action="store_true", help="for programs")
    state.set_defaults(run=_status)

    site = commands.add_parser("site", help="run site.yml with any options of ansible-playbook")
    site.set_defaults(run=_site)

    ssh = commands.add_parser("ssh", help="a shell on a host, or a command there")
    ssh.add_argument("host")
    ssh.set_defaults(run=_ssh)

    fault = commands.add_parser("fault", help=f"break something: {', '.join(faults.FAULTS)}")
    fault.add_argument("name")
    fault.set_defaults(run=_fault)

    heal = commands.add_parser("heal", help="mend every fault")
    heal.set_defaults(run=_heal)

    curl = commands.add_parser("curl", help="a request to a public name, as a visitor makes it, with options of curl")
    curl.add_argument("--via", default="", metavar="HOST", help="whose connector takes it (default: any)")
    curl.add_argument("url")
    curl.set_defaults(run=_curl)
    return parser


def main() -> int:
    """Run one command; return its exit status."""
    arguments, rest = _parser().parse_known_args()
    if rest and arguments.command in ("up", "renew", "down", "status", "heal"):
        _parser().error(f"{arguments.command} does not know {' '.join(rest)}")
    try:
        return int(arguments.run(arguments, rest))
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
