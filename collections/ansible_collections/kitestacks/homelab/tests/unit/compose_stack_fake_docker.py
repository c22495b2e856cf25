# Copyright: KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A docker for the tests of compose_stack: keeps its world in a JSON file, understands what the module says to it.

Compose files must be JSON (which is YAML): without a YAML parser it starts in a few milliseconds. An image's id decides
how its containers behave: one with `crash` in its id exits, one with `sick` is unhealthy, one with `once` ends well.
"""

# A process for each docker command must start quickly: without pathlib.
# ruff: noqa: PTH103, PTH105, PTH110, PTH112, PTH118, PTH123, PTH208
from __future__ import annotations

import hashlib
import json
import os
import signal
import sys


def load():
    with open(os.environ["DOCKER_FAKE_WORLD"], encoding="utf-8") as stream:
        return json.load(stream)


def save(world):
    temporary = f"{os.environ['DOCKER_FAKE_WORLD']}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump(world, stream)
    os.replace(temporary, os.environ["DOCKER_FAKE_WORLD"])


def die(message, code=1):
    print(message, file=sys.stderr)
    raise SystemExit(code)


def read_json(path):
    with open(path, encoding="utf-8") as stream:
        return json.loads("".join(line for line in stream if not line.startswith("#")))


def compose_model(files, directory):
    """Return the merged and resolved model, as `docker compose config --format json` does."""
    model = {"services": {}}
    for name in files:
        try:
            document = read_json(name)
        except ValueError as error:
            die(f"yaml: {name}: {error}", 15)
        if set(document) - {"services", "secrets", "configs", "volumes", "name"}:
            die(f"validating {name}: Additional property {sorted(document)[0]} is not allowed", 15)
        for service, definition in document.pop("services").items():
            target = model["services"].setdefault(service, {})
            target.setdefault("labels", {}).update(definition.pop("labels", {}))
            target.update(definition)
        model.update(document)
    for service in model["services"].values():
        for path in service.pop("env_file", []):
            with open(os.path.join(directory, path), encoding="utf-8") as stream:
                service.setdefault("environment", {}).update(line.strip().split("=", 1) for line in stream)
        service["volumes"] = [mount(entry, directory) for entry in service.get("volumes", [])]
        for kind in ("secrets", "configs"):
            service[kind] = [{"source": entry, "target": f"/run/{entry}"} for entry in service.get(kind, [])]
    for kind in ("secrets", "configs"):
        for entry in model.get(kind, {}).values():
            entry["file"] = os.path.normpath(os.path.join(directory, entry["file"]))
    return model


def mount(entry, directory):
    if isinstance(entry, dict):
        return entry
    source, target = entry.split(":")[:2]
    if source.startswith("."):
        return {"type": "bind", "source": os.path.normpath(os.path.join(directory, source)), "target": target}
    return {"type": "volume", "source": source, "target": target}


def config_hash(service):
    kept = {key: value for key, value in service.items() if key not in ("depends_on", "deploy", "pull_policy")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def resolve(world, reference):
    """Return the id of a local image, by name or id."""
    return world["images"].get(reference, reference if reference in world["images"].values() else None)


def start(container):
    """Let the program in a container begin: what it reads, and how it goes on, follows from its image."""
    image = container["image_id"]
    container["state"], container["health"], container["code"] = "running", "", 0
    if "crash" in image:
        container["state"], container["code"] = "exited", 3
    elif "once" in image:
        container["state"] = "exited"
    elif "sick" in image:
        container["health"] = "unhealthy"
    elif container["checked"]:
        container["health"] = "healthy"
    container["sees"] = {}
    for source in container["mounts"]:
        read_mount(source, container["sees"])
    container["starts"] += 1


def read_mount(source, sees):
    if os.path.isdir(source):
        for name in sorted(os.listdir(source)):
            read_mount(os.path.join(source, name), sees)
    elif os.path.exists(source):
        with open(source, encoding="utf-8", errors="replace") as stream:
            sees[source] = stream.read()
    else:
        os.makedirs(source)  # as docker does for a missing bind source


def up(world, project, model, arguments):
    services = model["services"]
    for service in services.values():
        if resolve(world, service["image"]) is None:
            if "never" in arguments or service["image"] not in world["registry"]:
                die(f"Error response from daemon: No such image: {service['image']}")
            world["images"][service["image"]] = world["registry"][service["image"]]
    kept = []
    for container in world["containers"]:
        if container["project"] == project and container["service"] not in services and "--remove-orphans" in arguments:
            continue
        kept.append(container)
    world["containers"] = kept
    bad = []
    chosen = [word for word in arguments if word in services] or list(services)
    waits = {n for s in services.values() for n, c in s.get("depends_on", {}).items() if "completed" in c["condition"]}
    for name, service in sorted(services.items(), key=lambda item: bool(item[1].get("depends_on"))):
        if name not in chosen:
            continue
        wanted, image = config_hash(service), resolve(world, service["image"])
        found = next((c for c in world["containers"] if (c["project"], c["service"]) == (project, name)), None)
        if found is None or found["config_hash"] != wanted or found["image_id"] != image:
            if found is not None:
                world["containers"].remove(found)
            world["serial"] += 1
            mounts = [entry["source"] for entry in service["volumes"] if entry["type"] == "bind"]
            for kind in ("secrets", "configs"):
                mounts += [model[kind][entry["source"]]["file"] for entry in service[kind]]
            found = {
                "id": f"c{world['serial']:04}", "project": project, "service": name, "reference": service["image"],
                "image_id": image, "config_hash": wanted, "labels": service["labels"], "mounts": mounts, "starts": 0,
                "checked": "healthcheck" in service, "environment": service.get("environment", {}), "signals": [],
            }  # fmt: skip
            world["containers"].append(found)
            start(found)
        elif found["state"] in ("exited", "created"):
            start(found)
        if found["health"] == "unhealthy" or (found["state"] == "exited" and (found["code"] or name not in waits)):
            bad.append(found)
    if bad:
        save(world)
        how = "is unhealthy" if bad[0]["health"] else f"exited ({bad[0]['code']})"
        die(f"container {project}-{bad[0]['service']}-1 {how}")


def compose(world, words):
    options = {"--ansi": "", "--progress": "", "--project-name": "", "--project-directory": ""}
    files = []
    while words[0].startswith("-"):
        if words[0] == "--file":
            files.append(words[1])
        else:
            options[words[0]] = words[1]
        words = words[2:]
    project, directory = options["--project-name"], options["--project-directory"]
    command, arguments = words[0], words[1:]
    if command == "down":
        world["containers"] = [c for c in world["containers"] if c["project"] != project]
        world["networks"] = []
        if "--volumes" in arguments:
            world["volumes"] = []
        return
    model = compose_model(files, directory)
    if command == "config" and "--hash" in arguments:
        for name, service in model["services"].items():
            print(name, config_hash(service))
    elif command == "config":
        print(json.dumps(model))
    elif command == "up":
        world["networks"], world["volumes"] = [f"{project}_default"], sorted(model.get("volumes", {}))
        up(world, project, model, arguments)
    elif command == "pull":
        for name in [word for word in arguments if not word.startswith("-")]:
            image = model["services"][name]["image"]
            if image not in world["registry"]:
                die(f"Error response from daemon: manifest for {image} not found: manifest unknown")
            world["images"][image] = world["registry"][image]
    elif command == "run":
        sees = {}
        for entry in model["services"][arguments[-1]]["volumes"]:
            if entry["type"] == "bind" and os.path.exists(entry["source"]):
                read_mount(entry["source"], sees)
        world["checked"].append(sorted(sees))
        if any("bad" in text for text in sees.values()):
            save(world)
            die("config: 1 error found", 1)
    else:
        die(f"unknown docker command: compose {command}")


def status(container):
    if container["state"] == "exited":
        return f"Exited ({container['code']}) 1 second ago"
    return "Up 5 seconds" + (f" ({container['health']})" if container["health"] else "")


def ps(world, words):
    project = next(word for word in words if word.startswith("label=")).rsplit("=", 1)[1]
    for container in world["containers"]:
        if container["project"] != project:
            continue
        same = resolve(world, container["reference"]) == container["image_id"]
        print(json.dumps([
            container["id"], f"{project}-{container['service']}-1",
            container["reference"] if same else container["image_id"], container["state"], status(container),
            container["service"], container["config_hash"], container["image_id"], "False",
            container["labels"].get("kitestacks.files", ""),
        ]))  # fmt: skip


def main(words):
    world = load()
    if world["broken"]:
        die(world["broken"])
    world["calls"].append(words)
    number = len(world["calls"])
    containers = {container["id"]: container for container in world["containers"]}
    if words[0] == "compose":
        compose(world, words[1:])
    elif words[0] == "ps":
        ps(world, words)
    elif words[:2] == ["image", "inspect"]:
        identity = resolve(world, words[-1])
        if identity is None:
            save(world)
            die(f"Error response from daemon: No such image: {words[-1]}")
        print(identity)
    elif words[:2] == ["container", "inspect"]:
        print(json.dumps([
            {"Id": i, "RestartCount": 0, "State": {"StartedAt": "2020-01-01T00:00:00.1Z", "Health": {
                "Log": [{"ExitCode": 1, "Output": "connection refused"}]}}}
            for i in words[2:] if i in containers
        ]))  # fmt: skip
    elif words[0] == "logs":
        print(world["logs"])
    elif words[0] == "stop":
        for name in words[1:]:
            containers[name].update(state="exited", code=0, health="")
    elif words[0] == "restart":
        for name in words[1:]:
            start(containers[name])
    elif words[0] == "kill":
        for name in words[3:]:
            containers[name]["signals"].append(words[2])
            for source in containers[name]["mounts"]:
                if os.path.isdir(source):
                    read_mount(source, containers[name]["sees"])
    elif words[1] == "ls":
        print("\n".join(world[f"{words[0]}s"]))
    elif words[1] == "rm":
        world[f"{words[0]}s"].remove(words[2])
    else:
        die(f"unknown docker command: {words}")
    save(world)
    if number == world["kill_parent_after"]:
        os.kill(os.getppid(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
