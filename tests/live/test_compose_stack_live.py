# SPDX-License-Identifier: GPL-3.0-or-later
"""compose_stack against a real docker on a real host.

    KITE_LIVE_INVENTORY=inventories/lab KITE_LIVE_HOST=monk pytest tests/live/test_compose_stack_live.py

The host needs docker, the compose plugin and /bin/busybox (Debian: busybox-static): the images are made from that, no
registry is used. All it leaves behind is gone at the end: project `kite-live`, images `kite-live:*`.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

INVENTORY = os.environ.get("KITE_LIVE_INVENTORY", "")
HOST = os.environ.get("KITE_LIVE_HOST", "")
ROOT = Path(__file__).resolve().parents[2]
PROJECT = "/opt/kitestacks/kite-live"
ENVIRONMENT = {
    **os.environ,
    "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
    "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
}
KILLS = int(os.environ.get("KITE_LIVE_KILLS", "10"))

pytestmark = pytest.mark.skipif(
    not (INVENTORY and HOST), reason="needs a host with docker: set KITE_LIVE_INVENTORY and KITE_LIVE_HOST"
)

COMPOSE = """
services:
  web:
    image: kite-live:{{ version }}
    restart: unless-stopped
    init: true
    stop_grace_period: 2s
    env_file: [app.env]
    volumes: ["./config:/config:ro", "./page.txt:/page.txt:ro", "./data:/data"]
    ports: ["127.0.0.1:18080:8080"]
    secrets: [token]
    healthcheck: {test: [CMD, wget, -q, -O, /dev/null, "http://127.0.0.1:8080/version"], interval: 1s, retries: 2}
    depends_on: {prepare: {condition: service_completed_successfully}}
  prepare:
    image: kite-live:1
    command: [/bin/busybox, "true"]
    restart: "no"
secrets: {token: {file: ./secrets/token}}
"""
TASK = """
- name: The stack serves
  kitestacks.homelab.compose_stack:
    name: kite-live
    state: "{{ state }}"
    purge_data: true
    wait_timeout: 30
    templates: [{src: app.env.j2, secret: true}]
    secrets: [{name: token, content: "{{ token }}"}]
    directories: [{path: data, owner: "1000", mode: "0750"}]
    reload: [{service: web, files: [config/app.conf], check: [/bin/grep, -q, good, /config/app.conf]}]
"""
IMAGES = r"""
set -e
d=$(mktemp -d); mkdir -p $d/bin $d/www $d/tmp; cp /bin/busybox $d/bin/
for a in sh httpd wget sleep cat grep; do ln -s busybox $d/bin/$a; done
for v in 1 2 3; do
  echo v$v > $d/www/version
  tar -C $d -c . | docker import -c 'CMD ["/bin/httpd","-f","-p","8080","-h","/www"]' - kite-live:$v
done
tar -C $d -c . |
  docker import -c 'CMD ["/bin/sh","-c","cat /run/secrets/token; echo no database; exit 3"]' - kite-live:crash
tar -C $d -c . | docker import -c 'CMD ["/bin/sleep","100000"]' - kite-live:mute
rm -rf $d
"""


class Live:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        role = folder / "roles/stack"
        for name in ("tasks", "templates/config"):
            (role / name).mkdir(parents=True)
        (role / "tasks/main.yml").write_text(TASK)
        (role / "templates/compose.yml.j2").write_text(COMPOSE)
        (role / "templates/app.env.j2").write_text("PASSWORD={{ password }}\n")
        (role / "templates/config/app.conf.j2").write_text("{{ conf }}\n")
        (role / "templates/page.txt.j2").write_text("{{ page }}\n")
        (folder / "play.yml").write_text(f"- hosts: {HOST}\n  gather_facts: false\n  become: true\n  roles: [stack]\n")

    def start(self, *options: str, **variables: str) -> subprocess.Popen[str]:
        values = {"version": "1", "token": "live-token-1", "password": "live-pass-1", "conf": "good 1", "page": "p1"}
        values.update({"state": "present", **variables})
        (self.folder / "vars.yml").write_text(yaml.safe_dump(values))
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(Path(INVENTORY).resolve())]
        return subprocess.Popen(
            [*command, "play.yml", "-e", "@vars.yml", "-v", *options],
            cwd=self.folder,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
            },
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *options: str, **variables: str) -> tuple[int, str]:
        process = self.start(*options, **variables)
        text = process.communicate(timeout=300)[0]
        return process.returncode, text

    def changes(self, *options: str, **variables: str) -> tuple[int, list[str]]:
        """Return the number of changed tasks and the actions of a run that must end well."""
        code, text = self.run(*options, **variables)
        assert code == 0, text
        return sum(map(int, re.findall(r"changed=(\d+) ", text))), re.findall(r"action: (\w+)", text)

    def shell(self, script: str) -> str:
        done = subprocess.run(
            [Path(sys.executable).with_name("ansible"), "-i", str(Path(INVENTORY).resolve()), HOST, "-b", "-o",
             "-m", "ansible.builtin.shell", "-a", script],
            capture_output=True, check=False, text=True, env=ENVIRONMENT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.partition("(stdout)")[2].strip()

    def serves(self, version: str, token: str) -> None:
        found = self.shell(
            "curl -s http://127.0.0.1:18080/version; docker exec kite-live-web-1 cat /run/secrets/token; "
            f"ls -A {PROJECT} | grep -cE 'staging|previous' || true"
        ).split("\\n")
        assert found[0] == f"v{version}"
        assert found[1] == f"{token}0", "secret as declared, nothing left over"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    live = Live(tmp_path_factory.mktemp("live"))
    live.shell(IMAGES)
    yield live
    live.run(state="absent")
    live.shell("docker image rm --force $(docker image ls --quiet kite-live)")
    assert live.shell(f"ls {PROJECT} 2>&1 | tail -1").count("No such file") == 1


def test_deploy_then_nothing_to_do(live: Live) -> None:
    assert live.changes("--check")[0] == 1
    assert live.changes() == (1, ["created", "created"])
    code, text = live.run()
    assert code == 0
    assert "changed=0" in text
    assert "docker_commands: 2" in text
    live.serves("1", "live-token-1")


def test_a_version_that_does_not_serve_goes_back(live: Live) -> None:
    for version in ("mute", "crash"):
        code, text = live.run("--diff", "-vvv", version=version, token="live-token-bad")
        assert code == 2
        assert "The previous version is serving again" in text
        assert "live-token" not in text
        live.serves("1", "live-token-1")
    assert "no database" in text
    assert live.changes()[0] == 0


@pytest.mark.parametrize(
    ("drift", "action"),
    [
        ("docker rm -f kite-live-web-1", "created"),
        ("docker stop kite-live-web-1", "started"),
        ("docker pause kite-live-web-1", "restarted"),
        ("docker tag kite-live:2 kite-live:1", "recreated"),
        ("docker tag kite-live:3 kite-live:1", "recreated"),
        (f"cd {PROJECT} && sed s/good/x/ -i compose.yml && echo edited > page.txt", "restarted"),
        (f"echo edited > {PROJECT}/config/app.conf", "reloaded"),
        (f"cd {PROJECT} && printf 'services: {{web: {{environment: {{X: 1}}}}}}' > /tmp/x.yml && docker compose "
         "-f compose.yml -f compose.kitestacks.yml -f /tmp/x.yml up -d web", "recreated"),
        (f"cd {PROJECT} && printf 'services: {{other: {{image: kite-live:2}}}}' > /tmp/x.yml && docker compose "
         "-f compose.yml -f compose.kitestacks.yml -f /tmp/x.yml up -d other", "removed"),
    ],
    ids=["gone", "stopped", "paused", "tag", "tag back", "file", "reload file", "settings", "orphan"],
)  # fmt: skip
def test_drift_made_by_hand(live: Live, drift: str, action: str) -> None:
    live.changes()
    live.shell(drift)
    foretold = live.changes("--check")
    done = live.changes()
    assert foretold[0] == done[0] == 1
    assert action in foretold[1]
    assert action in done[1]
    assert live.changes()[0] == 0


def test_reload(live: Live) -> None:
    live.changes()
    before = live.shell("docker ps --quiet --no-trunc --filter name=kite-live-web-1")
    assert live.run(conf="wrong")[0] == 2
    assert live.changes(conf="good 2") == (1, ["reloaded"])
    assert live.shell("docker ps --quiet --no-trunc --filter name=kite-live-web-1") == before
    assert live.shell("docker exec kite-live-web-1 cat /config/app.conf") == "good 2"


def test_killed_controller(live: Live) -> None:
    live.shell(IMAGES)  # the tags, after what was done to them above
    for number in range(KILLS):
        wanted = {"version": str(number % 3 + 1), "token": f"live-token-{number}", "conf": f"good {number}"}
        process = live.start(**wanted)
        time.sleep(random.uniform(0.8, 5))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        live.changes(**wanted)
        assert live.changes(**wanted)[0] == 0
        live.serves(wanted["version"], wanted["token"])
