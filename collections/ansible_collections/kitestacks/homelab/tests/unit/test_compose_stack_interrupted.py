# Copyright: KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""compose_stack killed before each of its steps in turn: every file operation, every command. The next run finishes."""

from __future__ import annotations

import json
import os
import signal

import pytest
from ansible_collections.kitestacks.homelab.tests.unit.compose_stack_host import EMPTY_WORLD, RELOAD, Declared, Host

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="sets owners of files: run as root")

RELOADING = {"reload": [RELOAD]}
FIRST = Declared(options=RELOADING)
SECOND = Declared(
    image="app:2",
    page="page two",
    secret="the-second-secret",
    environment="PASSWORD=second-password",
    config="config two",
    options=RELOADING,
)
RELOADED = Declared(config="config two", options=RELOADING)
SICK = Declared(image="app:sick", secret="the-second-secret", options=RELOADING)


@pytest.fixture
def host(tmp_path, monkeypatch):
    host = Host(tmp_path, monkeypatch)
    host.run_docker_inside(monkeypatch)
    return host


def assert_serves(host: Host, declared: Declared) -> None:
    """The container runs the declared image and has read the declared files, and nothing of a run is left over."""
    container = host.container()
    assert (container["state"], container["health"]) == ("running", "healthy")
    assert container["reference"] == declared.image
    assert container["sees"] == {
        str(host.root / "page.html"): declared.page,
        str(host.root / "config/app.conf"): declared.config,
        str(host.root / "secrets/token"): declared.secret,
    }
    assert container["environment"] == {"PASSWORD": declared.environment.partition("=")[2]}
    assert sorted(host.files()) == [
        ".kitestacks.json",
        "app.env",
        "compose.kitestacks.yml",
        "compose.yml",
        "config/app.conf",
        "page.html",
        "secrets/token",
    ]
    assert not (host.root / ".previous").exists()
    assert not (host.root / ".staging").exists()
    assert not host.run(declared)["changed"]


def reset(host: Host, world: dict) -> None:
    """Put the host back to where it was before the killed run."""
    os.system(f"rm -rf {host.base} && cp -a {host.base}.saved {host.base}")
    host.world_file.write_text(json.dumps(world))


def killed_everywhere(host: Host, declared: Declared, stride: int = 1):
    """Yield after each killed run, one for every `stride`-th step."""
    world = host.world
    os.system(f"cp -a {host.base} {host.base}.saved")
    step = 1
    while True:
        reset(host, world)
        if not host.run_killed(declared, step):
            break
        yield step
        step += stride
    assert step > 10, "the run had fewer steps than it can have"


@pytest.mark.parametrize("declared", [SECOND, RELOADED], ids=["update", "reload"])
def test_an_update_cut_off_anywhere_is_finished(host, declared):
    host.run(FIRST)
    for _step in killed_everywhere(host, declared, 4):
        host.run(declared)
        assert_serves(host, declared)


def test_an_update_cut_off_anywhere_can_be_given_up(host):
    """The user goes back to the old input instead."""
    host.run(FIRST)
    for _step in killed_everywhere(host, SECOND, 8):
        host.run(FIRST)
        assert_serves(host, FIRST)


def test_after_a_cut_off_anywhere_a_sick_version_still_goes_back_to_the_last_good_one(host):
    host.run(FIRST)
    for step in killed_everywhere(host, SICK, 8):
        error = host.fail(SICK)
        assert "The previous version is serving again." in str(error), step
        assert_serves(host, FIRST)


def test_a_first_run_cut_off_anywhere_is_finished(host):
    host.base.mkdir()
    for _step in killed_everywhere(host, FIRST, 4):
        host.run(FIRST)
        assert_serves(host, FIRST)


@pytest.mark.parametrize("purge", [False, True])
def test_a_removal_cut_off_anywhere_is_finished(host, purge):
    host.run(FIRST)
    gone = Declared(state="absent", options={"purge_data": purge})
    for _step in killed_everywhere(host, gone):
        host.run(gone)
        assert host.world["containers"] == []
        assert host.root.exists() != purge
        assert not host.root.exists() or host.files() == {}
        assert not host.run(gone)["changed"]


def test_killed_by_docker_after_each_command(tmp_path, monkeypatch):
    """The command has done its work, but nobody was there to see it."""
    host = Host(tmp_path, monkeypatch)
    host.run(FIRST)
    world = host.world
    os.system(f"cp -a {host.base} {host.base}.saved")
    number = 0
    while True:
        number += 1
        reset(host, {**world, "calls": [], "kill_parent_after": number})
        child = os.fork()
        if child == 0:
            host.run(SECOND)
            os._exit(0)
        _pid, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        host.change(kill_parent_after=EMPTY_WORLD["kill_parent_after"])
        host.run(SECOND)
        assert_serves(host, SECOND)
    assert number > 6


def test_a_reboot_in_the_middle(host):
    """Everything stands still, and the containers come back by themselves, on whatever files are there."""
    host.run(FIRST)
    for _step in killed_everywhere(host, SECOND, 2):
        host.change_container(state="exited", code=255)
        host.run(SECOND)
        assert_serves(host, SECOND)
