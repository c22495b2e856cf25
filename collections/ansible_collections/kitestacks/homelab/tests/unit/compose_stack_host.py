# Copyright: KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host for the tests of compose_stack: a folder, the fake docker on PATH, and runs that can be killed."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from ansible_collections.kitestacks.homelab.plugins.module_utils import _compose_stack
from ansible_collections.kitestacks.homelab.plugins.module_utils._compose import (
    Payload,
    StackDirectory,
)
from ansible_collections.kitestacks.homelab.plugins.module_utils._compose_docker import Docker, Output
from ansible_collections.kitestacks.homelab.plugins.module_utils._files import FileError, HostFile
from ansible_collections.kitestacks.homelab.tests.unit import compose_stack_fake_docker

FAKE = Path(compose_stack_fake_docker.__file__)
EMPTY_WORLD = {
    "containers": [],
    "images": {"app:1": "sha256:one", "app:2": "sha256:two", "app:sick": "sha256:sick", "app:crash": "sha256:crash"},
    "registry": {"app:3": "sha256:three"},
    "networks": [],
    "volumes": [],
    "calls": [],
    "checked": [],
    "serial": 0,
    "broken": "",
    "logs": "a last line",
    "kill_parent_after": 0,
}
# Everything that changes a file, or starts a command.
STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "subprocess.Popen"}


@dataclasses.dataclass
class Declared:
    """What a test declares: one service `web` with a secret, a mounted file, an env file and a folder to reload."""

    image: str = "app:1"
    page: str = "page one"
    secret: str = "the-first-secret"
    environment: str = "PASSWORD=first-password"
    config: str = "config one"
    extra: dict[str, Any] | None = None
    state: str = "present"
    services: dict[str, Any] | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    more_files: tuple[HostFile, ...] = ()
    directories: tuple[StackDirectory, ...] = (StackDirectory("data", 0o750, "1000", "1000"),)

    def compose(self) -> dict[str, Any]:
        web = {
            "image": self.image,
            "healthcheck": {"test": ["CMD", "true"]},
            "env_file": ["app.env"],
            "volumes": ["./page.html:/page.html", "./config:/config", "./data:/data", "vol:/vol"],
            "secrets": ["token"],
        }
        return {
            "services": self.services or {"web": {**web, **(self.extra or {})}},
            "secrets": {"token": {"file": "./secrets/token"}},
            "volumes": {"vol": {}},
        }

    def payload(self) -> Payload:
        if self.state == "absent":
            return Payload()
        files = (
            HostFile("compose.yml", json.dumps(self.compose(), indent=1).encode(), 0o644),
            HostFile("page.html", self.page.encode(), 0o644),
            HostFile("secrets/token", self.secret.encode(), 0o400, "99", secret=True),
            HostFile("app.env", self.environment.encode(), 0o400, secret=True),
            HostFile("config/app.conf", self.config.encode(), 0o644),
            *self.more_files,
        )
        return Payload(files, self.directories, tuple(self.compose()["services"]))


RELOAD = {"service": "web", "files": ["config/app.conf"], "check": ["check", "/config"], "signal": "SIGHUP"}


class Host:
    def __init__(self, folder: Path, monkeypatch: Any) -> None:
        self.base = folder / "opt"
        self.root = self.base / "portal"
        self.world_file = folder / "world.json"
        self.world_file.write_text(json.dumps(EMPTY_WORLD))
        binaries = folder / "bin"
        binaries.mkdir()
        wrapper = binaries / "docker"
        wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {FAKE} "$@"\n')
        wrapper.chmod(0o755)
        monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
        monkeypatch.setenv("DOCKER_FAKE_WORLD", str(self.world_file))
        monkeypatch.setattr(_compose_stack, "STEADY_SECONDS", 0)
        monkeypatch.setattr(_compose_stack, "POLL_SECONDS", 0.01)
        # There are no processes here: the fake engine delivers signals itself.
        monkeypatch.setattr(Docker, "signal", lambda docker, ids, name: docker.run("kill", "--signal", name, *ids))
        monkeypatch.setattr(os, "fsync", lambda _descriptor: None)  # no power is cut here, and it is slow
        self.docker = wrapper
        self.in_docker = False

    # -- the world ---------------------------------------------------------------------------------------------------

    @property
    def world(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.world_file.read_text())
        return document

    def change(self, **keys: Any) -> None:
        self.world_file.write_text(json.dumps({**self.world, **keys}))

    def container(self, service: str = "web") -> dict[str, Any]:
        found = [container for container in self.world["containers"] if container["service"] == service]
        assert len(found) == 1, found
        return found[0]

    def change_container(self, service: str = "web", **keys: Any) -> None:
        containers = self.world["containers"]
        for container in containers:
            if container["service"] == service:
                container.update(keys)
        self.change(containers=containers)

    def files(self) -> dict[str, str]:
        return {
            path.relative_to(self.root).as_posix(): path.read_text()
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
        }

    def run_docker_inside(self, monkeypatch: Any) -> None:
        """Call the fake docker as a function from now on: a hundred times faster than a process."""

        def run(docker: Docker, *arguments: str, **_options: Any) -> Output:
            docker.commands += 1
            sys.audit("subprocess.Popen", "docker", arguments, None, None)
            self.in_docker = True
            stdout, stderr, code = io.StringIO(), io.StringIO(), 0
            try:
                with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                    compose_stack_fake_docker.main(list(arguments))
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                self.in_docker = False
            return Output(code, stdout.getvalue(), stderr.getvalue())

        monkeypatch.setattr(Docker, "run", run)

    # -- runs --------------------------------------------------------------------------------------------------------

    def stack(self, declared: Declared, check: bool) -> _compose_stack.Stack:
        options = {
            "reload": [],
            "in_turn": [],
            "pull": "missing",
            "wait_timeout": 1,
            "rollback": True,
            "purge_data": False,
        }
        options.update(declared.options)
        return _compose_stack.Stack(
            _compose_stack.Options(
                name="portal", project_directory=str(self.base), state=declared.state, **json.loads(json.dumps(options))
            ),
            declared.payload(),
            check,
        )

    def run(self, declared: Declared, check: bool = False) -> dict[str, Any]:
        return self.stack(declared, check).run()

    def fail(self, declared: Declared, check: bool = False) -> FileError:
        stack = self.stack(declared, check)
        try:
            stack.run()
        except FileError as error:
            return error
        raise AssertionError("the run should have failed")

    def run_killed(self, declared: Declared, step: int) -> bool:
        """Run in a child that is killed right before its `step`-th step; return whether it got so far."""
        child = os.fork()
        if child == 0:
            count = 0

            def hook(event: str, arguments: tuple[Any, ...]) -> None:
                nonlocal count
                if event not in STEPS or self.in_docker or (event == "open" and not self._writes(arguments)):
                    return
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            try:
                self.run(declared)
            except FileError:
                os._exit(1)
            except BaseException:
                os._exit(2)
            os._exit(0)
        _pid, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            return True
        assert os.WEXITSTATUS(status) in (0, 1), "the run broke down"
        return False

    def _writes(self, arguments: tuple[Any, ...]) -> bool:
        _path, _mode, flags = arguments
        return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
