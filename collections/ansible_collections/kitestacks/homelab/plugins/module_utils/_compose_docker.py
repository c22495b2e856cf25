# Copyright: KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The docker command line, as far as compose_stack needs it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ansible_collections.kitestacks.homelab.plugins.module_utils._compose import StackError

FILES_LABEL = "kitestacks.files"
ONESHOT_LABEL = "kitestacks.oneshot"

_PS_FIELDS = (
    "{{json .ID}}",
    "{{json .Names}}",
    "{{json .Image}}",
    "{{json .State}}",
    "{{json .Status}}",
    '{{json (.Label "com.docker.compose.service")}}',
    '{{json (.Label "com.docker.compose.config-hash")}}',
    '{{json (.Label "com.docker.compose.image")}}',
    '{{json (.Label "com.docker.compose.oneoff")}}',
    f'{{{{json (.Label "{FILES_LABEL}")}}}}',
)
# Nothing else of the caller's environment reaches compose: it would decide what is deployed without being part of it.
_ENVIRONMENT = re.compile(r"PATH|HOME|DOCKER_.*|XDG_.*|SSH_AUTH_SOCK|(?i:https?_proxy|no_proxy)")
_EXIT_CODE = re.compile(r"\((\d+)\)")


STOP_SECONDS = 10
TIMED_OUT = 124  # as of timeout(1)


class DockerUnavailableError(StackError):
    """No docker, no compose plugin, or no daemon: on a blank host this is how things are before the first real run.

    missing: docker is not even installed.
    """

    def __init__(self, message: str, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


@dataclasses.dataclass(frozen=True)
class Container:
    """One row of `docker ps --all`. `image` is the reference, or an id when the reference now means another image."""

    id: str
    name: str
    image: str
    state: str
    status: str
    service: str
    config_hash: str
    image_id: str
    oneoff: str
    files_label: str

    @property
    def exit_code(self) -> int | None:
        """The code in 'Exited (3) 2 minutes ago'."""
        match = _EXIT_CODE.search(self.status)
        return int(match.group(1)) if match and self.state in ("exited", "restarting", "dead") else None

    @property
    def condition(self) -> str:
        """State in a word: `exited (3)`, `unhealthy`, `paused`."""
        if self.state == "running":
            return self.health or self.state
        return self.state if self.exit_code is None else f"{self.state} ({self.exit_code})"

    @property
    def health(self) -> str | None:
        """`healthy`, `unhealthy`, `starting`, or None for a container without health check or one that stands still."""
        if "(unhealthy)" in self.status:
            return "unhealthy"
        if "(healthy)" in self.status:
            return "healthy"
        return "starting" if "(health: starting)" in self.status else None


@dataclasses.dataclass(frozen=True)
class Output:
    """How a command ended."""

    rc: int
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        """What the command had to say about its failure."""
        return (self.stderr.strip() or self.stdout.strip())[-2000:]


class Docker:
    """Runs docker for one project; `commands` counts the calls."""

    def __init__(self, project: str, directory: str, inherit: Sequence[int] = ()) -> None:
        """`inherit`: file descriptors that the commands keep open (the lock: it must outlive us when we are killed)."""
        self.project = project
        self.directory = directory
        self.inherit = inherit
        self.commands = 0

    def run(self, *arguments: str, timeout: float | None = None, stop_when: Callable[[], bool] | None = None) -> Output:
        """Run `docker ARGUMENTS`. Raise StackError when docker as such cannot work.

        After `timeout` seconds, or as soon as `stop_when` (asked every second) says so, it is ended: return code 124.
        """
        self.commands += 1
        environment = {key: value for key, value in os.environ.items() if _ENVIRONMENT.fullmatch(key)}
        environment.update(LC_ALL="C", DOCKER_CLI_HINTS="false")
        if "--remove-orphans" not in arguments:  # compose refuses both at once
            environment["COMPOSE_IGNORE_ORPHANS"] = "true"
        deadline = None if timeout is None else time.monotonic() + timeout
        # Files, not pipes: what a killed compose leaves running must not keep us waiting for the end of a pipe.
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            try:
                # run_command cannot end a command early, nor hand the lock on to it.
                # pylint: disable-next=ansible-bad-function
                process = subprocess.Popen(  # noqa: S603 - a list of words, no shell
                    ["docker", *arguments],  # noqa: S607 - from PATH, wherever the host has it
                    cwd="/",  # else compose looks for a compose file from here upwards
                    env=environment,
                    pass_fds=self.inherit,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                )
            except FileNotFoundError as error:
                raise DockerUnavailableError(
                    "docker is not installed on the host: install the engine, its command line and the compose plugin "
                    "(Debian: docker.io, docker-cli, docker-compose) before this task.",
                    missing=True,
                ) from error
            ended = False
            while not ended:
                try:
                    process.wait(1 if stop_when else timeout)
                    break
                except subprocess.TimeoutExpired:
                    ended = (deadline is not None and time.monotonic() >= deadline) or bool(stop_when and stop_when())
            if ended:
                process.terminate()
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            texts = []
            for stream in (stdout, stderr):
                stream.seek(0)
                texts.append(stream.read().decode(errors="replace"))
        output = Output(TIMED_OUT if ended else process.returncode, texts[0], texts[1])
        if output.rc != 0:
            _raise_if_unavailable(output)
        return output

    def compose(
        self,
        *arguments: str,
        files: Iterable[str],
        directory: str | None = None,
        timeout: float | None = None,
        stop_when: Callable[[], bool] | None = None,
    ) -> Output:
        """Run `docker compose ARGUMENTS` on `files` (relative to `directory`, default: the project directory)."""
        place = directory or self.directory
        options = ["--ansi", "never", "--progress", "quiet", "--project-name", self.project]
        options += ["--project-directory", place]
        for name in files:
            options += ["--file", f"{place}/{name}"]
        return self.run("compose", *options, *arguments, timeout=timeout, stop_when=stop_when)

    def containers(self) -> list[Container]:
        """Return the project's containers, without those of `docker compose run`."""
        output = self.run(
            "ps",
            "--all",
            "--no-trunc",
            "--filter",
            f"label=com.docker.compose.project={self.project}",
            "--format",
            f"[{','.join(_PS_FIELDS)}]",
        )
        if output.rc != 0:
            raise StackError(f"docker cannot list the containers of {self.project}: {output.text}")
        rows = (Container(*json.loads(line)) for line in output.stdout.splitlines() if line)
        return sorted((row for row in rows if row.oneoff != "True"), key=lambda row: row.name)

    def objects(self, kind: str) -> list[str]:
        """Return the ids of the project's networks or volumes (`kind`)."""
        output = self.run(kind, "ls", "--quiet", "--filter", f"label=com.docker.compose.project={self.project}")
        return output.stdout.split()

    def model(self, directory: str) -> dict[str, Any]:
        """Return compose's own resolved view of the compose file in `directory`; raise StackError if it is refused."""
        output = self.compose("config", "--format", "json", directory=directory, files=["compose.yml"])
        if output.rc != 0:
            reason = output.text.replace(f"{directory}/", "").replace(directory, ".")
            raise StackError(f"compose.yml is not valid: {reason}. Nothing was changed.")
        document: dict[str, Any] = json.loads(output.stdout)
        return document

    def config_hashes(self, files: Iterable[str]) -> dict[str, str]:
        """Return what compose thinks each service's `config-hash` label should be."""
        output = self.compose("config", "--hash", "*", files=files)
        if output.rc != 0:
            raise StackError(f"compose refuses the deployed files: {output.text}")
        return dict(line.split(maxsplit=1) for line in output.stdout.splitlines() if line.strip())

    def image_id(self, reference: str) -> str | None:
        """Return the local image that `reference` means now."""
        output = self.run("image", "inspect", "--format", "{{.Id}}", reference)
        return output.stdout.strip() if output.rc == 0 else None

    def inspect(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the full state of those containers that still exist."""
        output = self.run("container", "inspect", *ids)
        rows: list[dict[str, Any]] = json.loads(output.stdout or "[]")
        return rows

    def signal(self, ids: Sequence[str], name: str) -> None:
        """Send a signal to the first process of each container; raise ProcessLookupError for one that has none.

        Not by `docker kill`: whatever the signal, docker then takes the container for stopped by hand, and with
        `unless-stopped` leaves it down after the next reboot (moby issue 41302).
        """
        for row in self.inspect(ids):
            if not row["State"]["Pid"]:
                raise ProcessLookupError
            os.kill(row["State"]["Pid"], signal.Signals[name])

    def logs(self, container: str, lines: int) -> list[str]:
        """Return the last lines that a container printed, both streams."""
        output = self.run("logs", "--tail", str(lines), container, timeout=30)
        return (output.stdout + output.stderr).splitlines()[-lines:]


def _raise_if_unavailable(output: Output) -> None:
    """Raise DockerUnavailableError when `output` says that docker as such does not work."""
    text = output.stderr
    if "Cannot connect to the Docker daemon" in text or "error during connect" in text:
        raise DockerUnavailableError(
            "The docker daemon does not answer on the host: see 'systemctl status docker' and 'journalctl -u docker'."
        )
    if "permission denied while trying to connect" in text:
        raise DockerUnavailableError("This user may not talk to docker: run the task with 'become: true'.")
    if "'compose' is not a docker command" in text or "unknown flag: --project-name" in text or "flag: --ansi" in text:
        raise DockerUnavailableError(
            "docker has no compose plugin on the host: install it "
            "(Debian: docker-compose, elsewhere docker-compose-plugin)."
        )
