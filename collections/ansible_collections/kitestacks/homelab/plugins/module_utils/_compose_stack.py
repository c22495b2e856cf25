# Copyright: KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings one compose stack into its declared state: plan, deploy, verify, go back.

Two rules make a run safe to cut off anywhere. What is to be done is decided from what is there (files on disk, labels
and states of containers), never from what this run has just done. And every step that can't be seen on a container is
noted in the manifest before it is needed: what was ours (to delete), where the previous version lies (to go back), who
must reload.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import posixpath
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.kitestacks.homelab.plugins.module_utils._compose import (
    COMPOSE_FILE,
    OVERRIDE_FILE,
    STAGING_DIRECTORY,
    Payload,
    StackError,
)
from ansible_collections.kitestacks.homelab.plugins.module_utils._compose_docker import (
    FILES_LABEL,
    ONESHOT_LABEL,
    TIMED_OUT,
    Container,
    Docker,
    DockerUnavailableError,
    Output,
)
from ansible_collections.kitestacks.homelab.plugins.module_utils._compose_files import Manifest, Tree
from ansible_collections.kitestacks.homelab.plugins.module_utils._files import (
    REDACTED,
    Change,
    FileError,
    HostFile,
    diff_entry,
)

LOG_LINES = 20
POLL_SECONDS = 0.5
# A container without health check counts as running when it has stayed up this long (seconds): compose's own --wait is
# content with a container that it happens to see between two crashes.
STEADY_SECONDS = 3
# So many restarts by docker are no bad start but a crash loop; there is no use in waiting for the end of wait_timeout.
CRASHES = 3
# On top of wait_timeout: stopping old containers and making new ones (seconds).
GRACE_SECONDS = 120
# Shorter words of a secret file are no secrets, and redacting them would make a log unreadable.
SHORTEST_SECRET = 4
STACK_FILES = (COMPOSE_FILE, OVERRIDE_FILE)
UNTOUCHED = "Nothing was changed."
# Keys that don't fit a one-off container in the network of another one.
NOT_FOR_CHECK = [
    "container_name",
    "cpu_count",
    "depends_on",
    "deploy",
    "dns",
    "dns_opt",
    "dns_search",
    "domainname",
    "expose",
    "external_links",
    "extra_hosts",
    "healthcheck",
    "hostname",
    "links",
    "mac_address",
    "network_mode",
    "networks",
    "ports",
    "restart",
    "scale",
    "sysctls",
]


@dataclasses.dataclass(frozen=True)
class Service:
    """What we need to know of one service.

    files: the label, a hash of all that the service reads from the stack's files, and of its environment.
    definition: a hash of its resolved definition.
    mounts: path below the project directory -> path in the container.
    """

    image: str
    replicas: int
    oneshot: bool
    definition: str
    files: str
    mounts: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Action:
    """What happens to a service: created, recreated, started, restarted, reloaded, stopped or removed, and why."""

    service: str
    action: str
    reason: str


class ServiceError(StackError):
    """A service does not do what is declared: the reason to go back to the previous version."""


@dataclasses.dataclass
class Options:
    """The module's options under their own names."""

    name: str
    project_directory: str
    state: str
    reload: list[dict[str, Any]]
    in_turn: list[str]
    pull: str
    wait_timeout: int
    rollback: bool
    purge_data: bool


class Stack:
    """One stack on this host. `run` does it all and returns the module's result."""

    def __init__(self, options: Options, payload: Payload, check_mode: bool) -> None:
        self.options = options
        self.payload = payload
        self.check_mode = check_mode
        self.tree = Tree(Path(options.project_directory) / options.name, strict=not check_mode)
        self.docker = Docker(options.name, str(self.tree.root))
        self.manifest = Manifest(salt="")
        self.files: list[HostFile] = []
        self.services: dict[str, Service] = {}
        self.changes: list[Change] = []
        self.actions: list[Action] = []
        self._secret_words: set[str] = set()

    def run(self) -> dict[str, Any]:
        """Bring the stack into its state and return changed, actions, files and diff; raise StackError on failure."""
        work = self._absent if self.options.state == "absent" else self._deploy
        if self.check_mode or (self.options.state == "absent" and not self.tree.root.exists()):
            self.manifest = self.tree.load_manifest()
            return work()
        self.tree.root.mkdir(parents=True, exist_ok=True)
        with self.tree.lock(self.options.wait_timeout) as descriptor:
            self.docker.inherit = (descriptor,)
            self.manifest = self.tree.load_manifest()
            self.tree.clear_staging()
            self.tree.drop_snapshots(keep=self.manifest.previous)
            try:
                return work()
            except OSError as error:
                raise StackError(f"{error.filename or self.tree.root}: {error.strerror}.") from error
            finally:
                self.tree.clear_staging()

    def scrub(self, text: str) -> str:
        """Return `text` without this stack's secrets, old or new."""
        for word in sorted(self._secret_words, key=len, reverse=True):
            text = text.replace(word, REDACTED)
        return text

    # -- the states --------------------------------------------------------------------------------------------------

    def _absent(self) -> dict[str, Any]:
        """Remove containers and networks by the project's label (the files may be broken), then our files."""
        files = sorted(path for path in self.manifest.files if self.tree.read(path) is not None)
        purge = self.options.purge_data
        kinds = ("network", "volume") if purge else ("network",)
        try:
            containers = self.docker.containers()
            objects = [name for kind in kinds for name in self.docker.objects(kind)]
        except DockerUnavailableError as error:
            if not (self.check_mode or error.missing):
                raise
            containers, objects = [], []  # where there is no docker, there is no container
        deployed = self.manifest.status != "new"
        changed = bool(containers or objects or files or deployed or (purge and self.tree.root.exists()))
        diff = [self._diff(Change(path, b"", None, "", "", secret=True)) for path in files]
        self.actions = [Action(row.service, "removed", "state is absent") for row in containers]
        if changed and not self.check_mode:
            if containers or objects:
                options = ["--remove-orphans", "--volumes"] if purge else ["--remove-orphans"]
                output = self.docker.run(
                    "compose", "--project-name", self.options.name, "down", *options, timeout=GRACE_SECONDS
                )
                self._expect(output, "the stack cannot be taken down")
                # With the last container gone by hand, compose no longer knows the rest.
                for kind in kinds:
                    for name in self.docker.objects(kind):
                        self._expect(self.docker.run(kind, "rm", name), f"its {kind} {name} cannot be removed")
            if self.tree.root.exists():
                self.tree.remove(self.manifest, purge)
        return self._result(changed, files, diff)

    def _deploy(self) -> dict[str, Any]:
        """Plan, and unless in check mode carry the plan out."""
        self.files = list(self.payload.files)
        self._learn_secrets()
        digest = self.manifest.keyed_hash(
            [self.manifest.file_hash(file) for file in self.files],
            [file.secret for file in self.files],
            self.options.reload,
        )
        model: dict[str, Any] = {}
        if digest == self.manifest.digest:
            self.services = {name: Service(**entry) for name, entry in self.manifest.services.items()}
        else:
            model = self._resolve()
        self.files.append(_override(self.services))
        self.changes = self.tree.compare(self.files, self.manifest)
        directories = self.tree.compare_directories(self.payload.directories)
        if self.changes and not self.check_mode:
            self.tree.stage(self.files)

        wanted_up = self.options.state == "present"
        if wanted_up and self.options.pull == "always" and not self.check_mode:
            self._pull(sorted(self.services))
        containers = self._containers()
        plan = self._plan(containers) if wanted_up else _stops(containers)
        paths = [change.path for change in self.changes]
        # The labels are hashes with a salt of this host: worth showing only when somebody has edited them.
        shown = [change for change in self.changes if change.path != OVERRIDE_FILE or digest == self.manifest.digest]
        diff = [self._diff(change) for change in [*directories, *shown]]
        if self.check_mode:
            self.actions = plan
            return self._result(bool(plan or paths or directories), paths, diff)

        if wanted_up:
            self._provide_images(sorted({a.service for a in plan if a.action in ("created", "recreated")}))
            if model and paths:
                self._check_reloads(model, containers)
        if paths or any(action.action == "recreated" for action in plan):
            self._begin(containers)
        if directories:
            self.tree.make_directories(self.payload.directories)
        self.tree.replace(self.changes)
        if wanted_up:
            try:
                self._converge(containers, plan, exact=not paths)
            except ServiceError as failure:
                self._give_up(failure, containers)
            self.manifest.status = "deployed"
            self.manifest.previous = None
            self.manifest.restart = []
        elif plan:
            self._expect(
                self.docker.run("stop", *_ids(containers, "running"), timeout=GRACE_SECONDS), "cannot be stopped"
            )
            self.actions = plan
        self._note(digest)
        return self._result(bool(self.actions or paths or directories), paths, diff)

    # -- what is declared --------------------------------------------------------------------------------------------

    def _resolve(self) -> dict[str, Any]:
        """Let compose check the new files away from the running ones, and learn the services. {}: no docker there."""
        try:
            if not self.check_mode:
                return self._summarise(str(self.tree.stage(self.files)))
            memory = "/run" if os.access("/run", os.W_OK) else None  # there may be secrets in them: not onto a disk
            with tempfile.TemporaryDirectory(dir=memory, prefix="kitestacks-") as name:
                candidate = [dataclasses.replace(file, owner=None, group=None) for file in self.files]
                return self._summarise(str(Tree(Path(name)).stage(candidate)))
        except DockerUnavailableError:
            if not self.check_mode:
                raise
            self.services = {name: Service("", 1, False, "", "", {}) for name in self.payload.services}
            return {}

    def _summarise(self, place: str) -> dict[str, Any]:
        """Set the services from what compose makes of the files in `place`; return compose's own view of them."""
        model = self.docker.model(place)
        declared: dict[str, dict[str, Any]] = model.get("services") or {}
        if not declared:
            raise StackError(f"{COMPOSE_FILE} declares no service. {UNTOUCHED}")
        finishing = {
            name
            for service in declared.values()
            for name, how in (service.get("depends_on") or {}).items()
            if how.get("condition") == "service_completed_successfully"
        }
        for name, service in declared.items():
            if "build" in service:
                raise StackError(
                    f"{COMPOSE_FILE}: services.{name}.build: compose_stack deploys images and builds none. Build it "
                    f"before this task and name the result in services.{name}.image. {UNTOUCHED}"
                )
            mounts, inline = _mounts(service, model, place)
            at_run_time = self._reload_files(name)
            read = [
                self.manifest.file_hash(file)
                for file in sorted(self.files, key=lambda file: file.path)
                if file.path not in at_run_time and any(_is_below(file.path, mount) for mount in mounts)
            ]
            deploy = service.get("deploy") or {}
            replicas = service.get("scale", deploy.get("replicas"))
            # compose recreates a container for none of these
            ignored = ("depends_on", "deploy", "scale", "pull_policy", "profiles")
            definition = {key: value for key, value in service.items() if key not in ignored}
            self.services[name] = Service(
                image=service.get("image", ""),
                replicas=1 if replicas is None else int(replicas),
                oneshot=name in finishing or str((service.get("labels") or {}).get(ONESHOT_LABEL)).lower() == "true",
                definition=self.manifest.keyed_hash(json.dumps(definition, sort_keys=True).replace(place, ".")),
                files=self.manifest.keyed_hash(read, inline, service.get("environment") or {}),
                mounts=mounts,
            )
        self._refuse_useless_reloads()
        for name in self.options.in_turn:
            if name not in self.services:
                raise StackError(f"in_turn: {COMPOSE_FILE} has no service '{name}'. {UNTOUCHED}")
        return model

    def _refuse_useless_reloads(self) -> None:
        """Raise StackError for reload entries whose service would never see the new file."""
        paths = {file.path for file in self.files}
        for entry in self.options.reload:
            name = entry["service"]
            if name not in self.services:
                raise StackError(f"reload: {COMPOSE_FILE} has no service '{name}'. {UNTOUCHED}")
            mounts = self.services[name].mounts
            for path in entry["files"]:
                if path not in paths:
                    raise StackError(f"reload: '{path}' (service {name}) is no file of this stack. {UNTOUCHED}")
                if path in mounts:
                    raise StackError(
                        f"reload: service {name} mounts the single file '{path}'. Such a mount keeps showing the old "
                        "file after it is replaced, so a reload would do nothing: put the file into a folder and mount "
                        f"the folder. {UNTOUCHED}"
                    )
                if not any(_is_below(path, mount) for mount in mounts):
                    raise StackError(f"reload: service {name} does not mount the folder of '{path}'. {UNTOUCHED}")

    def _reload_files(self, service: str) -> set[str]:
        return {path for entry in self.options.reload if entry["service"] == service for path in entry["files"]}

    def _reload_hash(self, service: str) -> str:
        wanted = self._reload_files(service)
        contents = {f.path: hashlib.sha256(f.content).hexdigest() for f in self.files if f.path in wanted}
        return self.manifest.keyed_hash(contents)

    # -- what is there, and what is to be done -------------------------------------------------------------------------

    def _containers(self) -> list[Container]:
        try:
            return self.docker.containers()
        except DockerUnavailableError:
            if self.check_mode:
                return []  # the roles before this one would have brought it
            raise

    def _plan(self, containers: Sequence[Container], exact: bool | None = None) -> list[Action]:
        """Return what has to happen. `exact`: the deployed files are the wanted ones, so compose can be asked."""
        hashes: dict[str, str] | None = None
        if not self.changes if exact is None else exact:
            hashes = self.docker.config_hashes(STACK_FILES) if containers else {}
        edited = self._edited(containers) | set(self.manifest.restart)
        plan = []
        for name, service in sorted(self.services.items()):
            rows = [row for row in containers if row.service == name]
            found = self._drift(name, service, rows, hashes)
            if found is None and rows and name in edited:
                found = ("restarted", "a file that it mounts was edited on the host")
            if found is not None:
                plan.append(Action(name, *found))
        busy = {action.service for action in plan}
        plan += [action for action in self._reloads(containers) if action.service not in busy]
        orphans = sorted({row.service for row in containers} - set(self.services))
        return plan + [Action(name, "removed", "it is no longer declared") for name in orphans]

    def _edited(self, containers: Sequence[Container]) -> set[str]:
        """Return the services whose container was made for the wanted files, though one of them now differs on disk.

        A mount of a single file goes on showing the edited one after it is replaced, until the container starts anew.
        """
        return {
            row.service
            for row in containers
            for change in self.changes
            if row.service in self.services
            and row.files_label == self.services[row.service].files
            and change.path not in self._reload_files(row.service)
            and any(_is_below(change.path, mount) for mount in self.services[row.service].mounts)
        }

    def _drift(
        self, name: str, service: Service, rows: Sequence[Container], hashes: dict[str, str] | None
    ) -> tuple[str, str] | None:
        """Return (action, reason) when a service's containers are not as declared."""
        if len(rows) < service.replicas:
            return (
                "created",
                f"{len(rows)} of {service.replicas} containers are there" if rows else "it has no container",
            )
        if len(rows) > service.replicas:
            return "removed", f"{len(rows)} containers instead of {service.replicas} are there"
        for row in rows:
            reason = self._outdated(name, service, row, hashes)
            if reason:
                return "recreated", reason
        for row in rows:
            if row.state == "exited" and service.oneshot and row.exit_code == 0:
                continue
            if row.state in ("created", "exited"):
                return "started", f"it was {row.condition}"
            if row.state != "running" or row.health == "unhealthy":
                return "restarted", f"it was {row.condition}"
        return None

    def _outdated(self, name: str, service: Service, row: Container, hashes: dict[str, str] | None) -> str | None:
        """Return why compose will replace this container; without its `hashes` that is foretold from the definition."""
        wanted = hashes.get(name, "") if hashes is not None else ""
        if hashes is None:
            before = self.manifest.services.get(name)
            settled = before is not None and before["definition"] == service.definition
        else:
            settled = row.config_hash == wanted or self.manifest.accepted.get(name) == [wanted, row.config_hash]
        # Docker shows an id in the place of a reference that has come to mean another image.
        if row.image != service.image and (not settled or row.image.startswith("sha256:")):
            return f"image {_short(row.image)} -> {_short(service.image)}"
        if row.files_label != service.files:
            return "its files or environment changed" if row.files_label else "it was not made by compose_stack"
        if settled:
            return None
        return "its settings changed" if hashes is None else "its settings are not the declared ones"

    def _reloads(self, containers: Sequence[Container]) -> list[Action]:
        """Return the running services that have not been told of their present reload files."""
        replaced = {change.path for change in self.changes}
        actions = []
        for entry in self.options.reload:
            name = entry["service"]
            ids = _ids(containers, "running", name)
            noted = {} if replaced & set(entry["files"]) else self.manifest.reloaded.get(name, {})
            if ids and not (noted.get("hash") == self._reload_hash(name) and set(ids) <= set(noted["containers"])):
                actions.append(Action(name, "reloaded", f"{', '.join(entry['files'])} changed"))
        return actions

    # -- before anything is touched ------------------------------------------------------------------------------------

    def _pull(self, services: Sequence[str]) -> None:
        """Pull images while the running containers go on; raise StackError, nothing touched, when one can't be had."""
        place = str(self.tree.root / STAGING_DIRECTORY) if self.changes else None
        output = self.docker.compose("pull", "--quiet", *services, directory=place, files=[COMPOSE_FILE])
        if output.rc != 0:
            images = ", ".join(sorted({self.services[name].image for name in services}))
            raise StackError(f"{self.options.name}: cannot pull {images}: {self.scrub(output.text)}. {UNTOUCHED}")

    def _provide_images(self, services: Sequence[str]) -> None:
        """Make sure that the images of `services` are here."""
        found = {
            image: self.docker.image_id(image)
            for image in {self.services[name].image for name in services if name in self.services}
        }
        missing = sorted(image for image, identity in found.items() if identity is None)
        if not missing:
            return
        if self.options.pull == "never":
            raise StackError(
                f"{self.options.name}: not on the host and 'pull' is 'never': {', '.join(missing)}. {UNTOUCHED}"
            )
        self._pull([name for name in services if self.services[name].image in missing])

    def _check_reloads(self, model: dict[str, Any], containers: Sequence[Container]) -> None:
        """Run each `check` on the staged files: in a one-off container, with them in the place of the running ones."""
        changed = {change.path for change in self.changes}
        staging = str(self.tree.root / STAGING_DIRECTORY)
        for entry in self.options.reload:
            name = entry["service"]
            running = _ids(containers, "running", name)
            if not (entry["check"] and running and changed & set(entry["files"])):
                continue
            service = {key: value for key, value in model["services"][name].items() if key not in NOT_FOR_CHECK}
            mode = model["services"][name].get("network_mode", "")
            service["network_mode"] = mode if mode in ("host", "none") else f"container:{running[0]}"
            service["entrypoint"] = [word.replace("$", "$$") for word in entry["check"]]
            service["command"] = []
            for mount in service.get("volumes") or []:
                source = mount.get("source", "")
                if mount["type"] == "bind" and _is_below(source, staging) and not Path(source).exists():
                    mount["source"] = source.replace(staging, str(self.tree.root), 1)  # data, not one of our files
            document = {
                **{key: value for key, value in model.items() if key != "networks"},
                "services": {name: service},
            }
            self.tree.stage_more(HostFile(".check.json", json.dumps(document).encode(), 0o600))
            output = self.docker.compose(
                "run", "--rm", "--no-deps", "-T", name, directory=staging, files=[".check.json"], timeout=GRACE_SECONDS
            )
            if output.rc != 0:
                said = self.scrub(f"{output.stdout}{output.stderr}".strip())[-2000:]
                raise StackError(
                    f"{self.options.name}: service {name} would not accept {', '.join(entry['files'])}: "
                    f"'{' '.join(entry['check'])}' ended with {output.rc}. {UNTOUCHED}\n{said}",
                    service=name,
                )

    def _begin(self, containers: Sequence[Container]) -> None:
        """Note in the manifest what must survive a cut-off run, before the first file is replaced."""
        if self.manifest.status == "deployed":
            images = {row.service: row.image_id for row in containers if row.image_id}
            self.manifest.previous = self.tree.take_snapshot(self.manifest, images)
        self.manifest.status = "deploying"
        self.manifest.restart = sorted(set(self.manifest.restart) | self._edited(containers))
        replaced = {change.path for change in self.changes}
        self.manifest.reloaded = {
            name: noted
            for name, noted in self.manifest.reloaded.items()
            if self._reload_files(name) and not replaced & self._reload_files(name)
        }
        self.manifest.files.update(self._file_entries())
        self.tree.save_manifest(self.manifest)

    def _file_entries(self) -> dict[str, dict[str, Any]]:
        return {file.path: {"secret": file.secret} for file in self.files}

    # -- containers ----------------------------------------------------------------------------------------------------

    def _converge(self, before: Sequence[Container], plan: Sequence[Action], exact: bool) -> None:
        """Make the containers follow the files on disk. Raise ServiceError when one does not serve."""
        if not exact:
            plan = self._plan_deployed(before)
        work = [action for action in plan if action.action != "reloaded"]
        touched = {action.service for action in work}
        after = list(before)
        if work:
            stuck = {action.service for action in work if action.action == "restarted"}
            if stuck:
                ids = [row.id for row in before if row.service in stuck]
                self._serve(
                    self.docker.run("restart", *ids, timeout=GRACE_SECONDS), "cannot be restarted", sorted(stuck)[0]
                )
            old = {row.id for row in before if row.service not in stuck}
            output = self._up_in_turn(old, before, touched - stuck)
            after = self._await(touched, output)
            self.actions = _observed(before, after, work)
            hashes = self.docker.config_hashes(STACK_FILES)
            self.manifest.accepted = {
                row.service: [hashes[row.service], row.config_hash]
                for row in after
                if row.service in hashes and hashes[row.service] != row.config_hash
            }
        elif any(row.health == "starting" for row in before):
            after = self._await(set(), None)
        fresh = {action.service for action in self.actions}
        for action in self._reloads(after):
            if action.service not in fresh:
                self._signal(action, after)
        for entry in self.options.reload:
            name = entry["service"]
            ids = _ids(after, "running", name)
            self.manifest.reloaded[name] = {"hash": self._reload_hash(name), "containers": ids}

    def _plan_deployed(self, containers: Sequence[Container]) -> list[Action]:
        """Plan anew, now that the files are in place: what was foretold becomes exact."""
        self.changes = []
        return self._plan(containers, exact=True)

    def _signal(self, action: Action, containers: Sequence[Container]) -> None:
        """Tell a service to read its files anew, and see that it survives that."""
        signal = next(entry["signal"] for entry in self.options.reload if entry["service"] == action.service)
        ids = _ids(containers, "running", action.service)
        try:
            self.docker.signal(ids, signal)
        except ProcessLookupError as error:
            reason = f"ended before {signal} reached it"
            raise ServiceError(
                f"service {action.service} {reason}", service=action.service, reason=reason, log=[]
            ) from error
        self._await({action.service}, None)
        self.actions.append(action)

    def _up_in_turn(self, old: set[str], before: Sequence[Container], touched: set[str]) -> Output:
        """Replace the services that stand in for each other one by one, then run compose up for all of them.

        Compose alone would stop all old containers before it starts the first new one.
        """
        replaced = {row.service for row in before} & touched
        for name in self.options.in_turn:
            if name in replaced:
                output = self._up(old, "--no-deps", name)
                if output.rc != 0:
                    return output
        return self._up(old)

    def _up(self, old: set[str], *which: str) -> Output:
        """Run compose up and stop it early when a container (not one of the `old`) falls over again and again."""
        return self.docker.compose(
            "up",
            "--detach",
            "--wait",
            "--wait-timeout",
            str(self.options.wait_timeout),
            "--remove-orphans",
            "--quiet-pull",
            "--pull",
            "never" if self.options.pull == "never" else "missing",
            *which,
            files=STACK_FILES,
            timeout=self.options.wait_timeout + GRACE_SECONDS,
            stop_when=lambda: bool(self._crashing(old)),
        )

    def _crashing(self, old: set[str]) -> dict[str, str]:
        """Return the services of which a container has been restarted by docker three times or more."""
        rows = [row for row in self.docker.containers() if row.state == "restarting" and row.id not in old]
        if not rows:
            return {}
        counts = {entry["Id"]: entry.get("RestartCount", 0) for entry in self.docker.inspect([row.id for row in rows])}
        return {
            row.service: f"exits again and again (code {row.exit_code})"
            for row in rows
            if counts.get(row.id, 0) >= CRASHES
        }

    def _await(self, touched: set[str], output: Output | None) -> list[Container]:
        """Wait until all is as declared, return the containers; raise ServiceError if it fails or lasts too long."""
        started = time.monotonic()
        while True:
            rows = self.docker.containers()
            if output is not None and self._only_finished(rows, output):
                output = None
            deadline = started + (self.options.wait_timeout if output is None or output.rc == 0 else 0)
            failed, waiting = self._judge(rows)
            failed = {**failed, **self._crashing(set())} if any(row.state == "restarting" for row in rows) else failed
            if not failed and not waiting:
                waiting = self._unsteady(rows, touched)
            late = time.monotonic() >= deadline
            if failed or (waiting and late):
                if not failed and output is not None and output.rc not in (0, TIMED_OUT):
                    waiting = {name: f"{reason}: {self.scrub(output.text)}" for name, reason in waiting.items()}
                self._report(failed or waiting, rows, output)
            if not waiting:
                if output is not None and output.rc != 0:
                    self._report({}, rows, output)
                return rows
            time.sleep(POLL_SECONDS)

    def _only_finished(self, rows: Sequence[Container], output: Output) -> bool:
        """Return whether compose complains of nothing but a one-shot service that has ended well.

        It does so unless another service waits for the one to finish, and then stops waiting for all the others.
        """
        ended = [row for row in rows if row.service in self.services and self.services[row.service].oneshot]
        return any(f"{row.name} exited (0)" in output.stderr for row in ended)

    def _judge(self, rows: Sequence[Container]) -> tuple[dict[str, str], dict[str, str]]:
        """Return the services that have failed, and those that may still come, each with the reason. Culprits first."""
        failed: dict[str, str] = {}
        idle: dict[str, str] = {}
        waiting: dict[str, str] = {}
        for name, service in self.services.items():
            own = [row for row in rows if row.service == name]
            if len(own) < service.replicas:
                idle[name] = "has no container"
            for row in own:
                done = row.state == "exited" and service.oneshot and row.exit_code == 0
                if row.state == "running" and row.health == "unhealthy":
                    failed[name] = "is unhealthy"
                elif row.state in ("exited", "dead") and not done:
                    failed[name] = f"exited with code {row.exit_code}"
                elif row.state in ("created", "paused"):
                    idle[name] = f"is {row.state}, not running"
                elif row.state == "restarting":
                    waiting[name] = f"exits and is started again (code {row.exit_code})"
                elif row.health == "starting":
                    waiting[name] = f"did not become healthy within {self.options.wait_timeout} s"
                elif row.state == "running" and service.oneshot:
                    waiting[name] = f"did not finish within {self.options.wait_timeout} s"
        return {**failed, **idle}, waiting

    def _unsteady(self, rows: Sequence[Container], touched: set[str]) -> dict[str, str]:
        """Return the touched services without health check that have not yet run for a few seconds."""
        ids = {
            row.id: row.service for row in rows if row.service in touched and row.state == "running" and not row.health
        }
        if not ids:
            return {}
        now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
        return {
            ids[entry["Id"]]: "does not stay up"
            for entry in self.docker.inspect(list(ids))
            if (now - datetime.datetime.fromisoformat(entry["State"]["StartedAt"][:19])).total_seconds()
            < STEADY_SECONDS
        }

    def _report(self, reasons: dict[str, str], rows: Sequence[Container], output: Output | None) -> None:
        """Raise ServiceError with what a person needs to find the cause."""
        said = self.scrub(output.text) if output is not None and output.rc != 0 else ""
        if not reasons:
            raise ServiceError(f"compose up failed: {said}", service=None, reason=said, log=[])
        name, reason = next(iter(reasons.items()))
        lines: list[str] = []
        for row in [row for row in rows if row.service == name][:1]:
            lines = [self.scrub(line) for line in self.docker.logs(row.id, LOG_LINES)]
            state: dict[str, Any] = next((entry["State"] for entry in self.docker.inspect([row.id])), {})
            if state.get("OOMKilled"):
                reason += ", killed for want of memory"
            if state.get("Error"):
                reason += f": {self.scrub(state['Error'])}"
            probes = (state.get("Health") or {}).get("Log") or []
            if row.state == "running" and probes and probes[-1].get("ExitCode"):
                reason += (
                    f" (last check: {self.scrub(str(probes[-1].get('Output', '')).strip())[-500:] or 'no output'})"
                )
        if said and not any(row.name in said for row in rows if row.service == name):
            reason += f" ({said})"  # compose stopped at something else
        others = "; ".join(f"{other} {why}" for other, why in list(reasons.items())[1:])
        message = f"service {name} {reason}" + (f"; also: {others}" if others else "")
        raise ServiceError(message, service=name, reason=reason, log=lines)

    def _serve(self, output: Output, trouble: str, service: str) -> None:
        """Raise ServiceError when docker could not do something to a container."""
        if output.rc != 0:
            text = self.scrub(output.text)
            raise ServiceError(f"service {service} {trouble}: {text}", service=service, reason=text, log=[])

    # -- the way back --------------------------------------------------------------------------------------------------

    def _give_up(self, failure: ServiceError, before: Sequence[Container]) -> None:
        """Put the previous version back if there is one; raise StackError that tells what is serving now."""
        snapshot = self.tree.read_snapshot(self.manifest.previous) if self.manifest.previous else None
        log = "".join(f"\n  {line}" for line in failure.details["log"])
        message = f"{self.options.name}: {failure}."
        message += f"\nThe last lines of its log:{log}" if log else ""
        restored = False
        if snapshot and self.options.rollback:
            try:
                self._restore(*snapshot)
                restored = True
                message += "\nThe previous version is serving again."
            except FileError as second:
                message += f"\nThe previous version could not be brought back either: {second}"
        elif snapshot:
            message += "\nThe new version is left in place for you to look at (rollback is off)."
        elif not before:
            self.docker.run("stop", *[row.id for row in self.docker.containers()], timeout=GRACE_SECONDS)
            message += "\nIt is a first version, so there is nothing to go back to: it is stopped, its files are kept."
        else:
            message += "\nIts files are the declared ones, so there is nothing to go back to: it is left as it is."
        raise StackError(message, **failure.details, changed=True, rolled_back=restored) from failure

    def _restore(self, old: Manifest, images: dict[str, str], files: Sequence[HostFile]) -> None:
        """Put `files` back and bring the previous version up, by image id where its tag now means another image."""
        self.options.reload = old.reload
        services = {name: Service(**entry) for name, entry in old.services.items()}
        pins = {}
        for name, service in services.items():
            identity = images.get(name)
            if identity and self.docker.image_id(service.image) != identity and self.docker.image_id(identity):
                pins[name] = identity
        self.services = {n: dataclasses.replace(s, image=pins[n]) if n in pins else s for n, s in services.items()}
        self.files = [file for file in files if file.path != OVERRIDE_FILE] + [_override(services, pins)]
        self.changes = self.tree.compare(self.files, self.manifest)
        self.tree.stage(self.files)
        containers = self.docker.containers()
        self._begin(containers)
        self.tree.replace(self.changes)
        self.manifest.accepted = old.accepted
        self._converge(containers, [], exact=False)
        self.manifest = dataclasses.replace(
            old, status="deployed", previous=None, accepted=self.manifest.accepted, reloaded=self.manifest.reloaded
        )
        self.tree.save_manifest(self.manifest)
        self.tree.drop_snapshots()

    # -- the end -------------------------------------------------------------------------------------------------------

    def _note(self, digest: str) -> None:
        """Write down what is deployed now, unless that is what the manifest says already."""
        self.manifest.digest = digest
        self.manifest.files = self._file_entries()
        self.manifest.services = {name: dataclasses.asdict(service) for name, service in self.services.items()}
        self.manifest.reload = self.options.reload
        if self.manifest != self.tree.load_manifest():
            self.tree.save_manifest(self.manifest)
        self.tree.drop_snapshots(keep=self.manifest.previous)

    def _expect(self, output: Output, trouble: str) -> None:
        if output.rc != 0:
            raise StackError(f"{self.options.name}: {trouble}: {self.scrub(output.text)}")

    def _learn_secrets(self) -> None:
        """Collect what must not appear in diffs and logs: the stack's secrets, those on disk too, and their parts."""
        texts = [file.content for file in self.files if file.secret]
        texts += [self.tree.read(path) or b"" for path, entry in self.manifest.files.items() if entry.get("secret")]
        for text in texts:
            for line in [text.decode(errors="replace"), *text.decode(errors="replace").splitlines()]:
                for word in (line, line.partition("=")[2], line.partition(":")[2]):
                    if len(word.strip(" \t\r\n'\",")) >= SHORTEST_SECRET:
                        self._secret_words.add(word.strip(" \t\r\n'\","))

    def _diff(self, change: Change) -> dict[str, str]:
        """Return one entry of the diff, without secrets."""
        place = str(self.tree.root / change.path) if change.path != "/" else f"{self.tree.root}/"
        return diff_entry(change, place, self.scrub)

    def _result(self, changed: bool, files: list[str], diff: list[dict[str, str]]) -> dict[str, Any]:
        if self.actions:
            lines = "".join(f"{self.options.name}: {a.service} {a.action} ({a.reason})\n" for a in self.actions)
            diff = [*diff, {"prepared": lines}]
        return {
            "changed": changed,
            "actions": [dataclasses.asdict(action) for action in self.actions],
            "files": files,
            "project_directory": str(self.tree.root),
            "docker_commands": self.docker.commands,
            "diff": diff,
        }


def _override(services: dict[str, Service], images: dict[str, str] | None = None) -> HostFile:
    """Return the compose file of our own: labels that make compose recreate exactly the services whose files changed.

    `images` pins services to image ids: only after a failed update that had moved the tag.
    """
    document = {
        "services": {
            name: {
                "labels": {FILES_LABEL: service.files},
                **({"image": images[name], "pull_policy": "never"} if images and name in images else {}),
            }
            for name, service in sorted(services.items())
        }
    }
    text = f"# Written by compose_stack: docker compose -f {COMPOSE_FILE} -f {OVERRIDE_FILE} ...\n"
    return HostFile(OVERRIDE_FILE, (text + json.dumps(document, indent=2) + "\n").encode(), 0o644)


def _mounts(service: dict[str, Any], model: dict[str, Any], place: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Return what a service mounts of the project directory (path -> target), and configs and secrets without file."""
    mounts = {}
    inline: dict[str, Any] = {}
    for mount in service.get("volumes") or []:
        source = mount.get("source", "")
        if mount["type"] == "bind" and _is_below(source, place):
            mounts[posixpath.relpath(source, place)] = mount["target"]
    for kind in ("configs", "secrets"):
        for entry in service.get(kind) or []:
            declared = (model.get(kind) or {}).get(entry["source"], {})
            source = declared.get("file", "")
            if _is_below(source, place):
                mounts[posixpath.relpath(source, place)] = entry.get("target", "")
            elif not source:
                inline[f"{kind}.{entry['source']}"] = declared
    return mounts, inline


def _is_below(path: str, folder: str) -> bool:
    return folder in (".", path) or path.startswith(f"{folder}/")


def _short(image: str) -> str:
    return image[:19] if image.startswith("sha256:") else image


def _ids(containers: Iterable[Container], state: str, service: str | None = None) -> list[str]:
    return [row.id for row in containers if row.state == state and service in (None, row.service)]


def _stops(containers: Iterable[Container]) -> list[Action]:
    running = [row for row in containers if row.state not in ("created", "exited", "dead")]
    return [Action(row.service, "stopped", "state is stopped") for row in running]


def _observed(before: Sequence[Container], after: Sequence[Container], plan: Sequence[Action]) -> list[Action]:
    """Return what has really happened: the plan, corrected by the containers before and after."""
    reasons = {action.service: action for action in plan}
    actions = []
    for name in sorted({row.service for row in [*before, *after]}):
        old = {row.id: row for row in before if row.service == name}
        new = {row.id: row for row in after if row.service == name}
        planned = reasons.get(name)
        if set(old) - set(new) and set(new) - set(old):
            actions.append(Action(name, "recreated", planned.reason if planned else "another service required it"))
        elif set(new) - set(old):
            actions.append(Action(name, "created", planned.reason if planned else "it had no container"))
        elif set(old) - set(new):
            actions.append(Action(name, "removed", planned.reason if planned else "it is no longer declared"))
        elif planned is not None and planned.action in ("started", "restarted"):
            actions.append(planned)
        elif any(row.state in ("created", "exited") and new[row.id].state == "running" for row in old.values()):
            actions.append(Action(name, "started", planned.reason if planned else "another service required it"))
    return actions
