"""Images: the lab's own, and those that the roles name, pulled from upstream or built from Debian's packages.

`LAB_IMAGES=upstream` pulls what the roles name, `built` builds an image of the same reference for each, and `auto` (the
default) pulls when the registry answers. A built image is the real program from Debian in whatever version Debian has;
the label `kitestacks.lab.stands-for` names the reference it stands for.

A folder of lab/images holds a Dockerfile, and when the image is made of files of this checkout a `context.txt` that
lists them: they come into the build context below `src/`. Where no package holds the real program but a person has it,
`KITE_<NAME>=/path` puts it into the image instead of the stand-in: `given/Dockerfile`, with the program as `program`.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from lab import settings
from lab.shell import LabError, docker, run, step

_FOLDER = settings.ROOT / "lab" / "images"
_NAMESPACE = "kitestacks-lab"
_PARENTS = {"base": "rootfs"}
"""What an image starts from; `base` where nothing is said."""


@dataclass(frozen=True)
class Reference:
    """An image that a role names: `image:version`, and the folder of lab/images that can stand for it."""

    image: str
    version: str

    @property
    def upstream(self) -> str:
        """The reference as the role's compose file has it."""
        return f"{self.image}:{self.version}"

    @property
    def repository(self) -> str:
        """The path inside its registry, as a docker client asks for it."""
        host, _, path = self.image.partition("/")
        return f"library/{path}" if host == "docker.io" and "/" not in path else path

    @property
    def name(self) -> str:
        """The last part of the path: the folder below lab/images."""
        return self.image.rsplit("/", 1)[1]


def references() -> list[Reference]:
    """Return every image that a role names in its defaults, as `<x>_image` and `<x>_version`; the tests' roles too.

    What the lab's inventory says about them counts, as it does for the roles.
    """
    found = []
    inventory = yaml.safe_load((settings.ROOT / "inventories/lab/group_vars/all/main.yml").read_text())
    roles = [*settings.ROOT.glob("roles/*"), *settings.ROOT.glob("tests/site/*/roles/*")]
    for defaults in sorted(role / "defaults" / "main.yml" for role in roles):
        if not defaults.exists():
            continue
        values = yaml.safe_load(defaults.read_text()) or {}
        values |= {name: value for name, value in inventory.items() if name in values}
        found += [
            Reference(values[key], str(values[f"{key.removesuffix('_image')}_version"]))
            for key in values
            if key.endswith("_image")
        ]
    return found


def _context(name: str) -> dict[str, Path]:
    """Return the files that an image is built from, by their path in the build context."""
    folder = _FOLDER / name
    program = os.environ.get(f"KITE_{name.upper()}")
    if program and (folder / "given").is_dir():
        if not os.access(program, os.X_OK):
            raise LabError(f"KITE_{name.upper()} is {program}, which is no program")
        return {"Dockerfile": folder / "given" / "Dockerfile", "program": Path(program)}
    if not (folder / "Dockerfile").exists():
        raise LabError(f"nothing can stand for the image {name!r}: there is no lab/images/{name}/Dockerfile")
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    if "context.txt" in files:
        for line in files.pop("context.txt").read_text().split():
            source = settings.ROOT / line
            found = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
            files |= {f"src/{path.relative_to(settings.ROOT)}": path for path in found if path.suffix != ".pyc"}
    return files


def _digest(files: dict[str, Path], *more: str) -> str:
    """Return a name for everything an image is built from: its files' paths, modes and content, and its parent."""
    digest = hashlib.sha256("\0".join(more).encode())
    for name, path in sorted(files.items()):
        digest.update(f"{name}\0{path.stat().st_mode & 0o111}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _exists(tag: str) -> bool:
    return run("docker", "image", "inspect", tag, check=False).returncode == 0


def _upstream_answers() -> bool:
    return run("docker", "pull", "--quiet", "docker.io/library/debian:trixie-slim", check=False).returncode == 0


@functools.cache
def from_upstream() -> bool:
    """Tell whether the images that roles name are pulled (True) or built (False)."""
    wish = os.environ.get("LAB_IMAGES", "auto")
    if wish not in ("auto", "built", "upstream"):
        raise LabError(f"LAB_IMAGES is {wish!r}; it may be auto, built or upstream")
    return wish == "upstream" or (wish == "auto" and _upstream_answers())


def _rootfs() -> str:
    """Return an image of bare Debian 13: pulled, or bootstrapped from the packages."""
    if from_upstream():
        return "docker.io/library/debian:trixie-slim"
    tag = f"{_NAMESPACE}/rootfs:trixie"
    if not _exists(tag):
        run(settings.ROOT / "bin" / "setup", "packages", "mmdebstrap")
        archive = settings.CACHE / "rootfs.tar"
        archive.parent.mkdir(parents=True, exist_ok=True)
        with step("Bootstrapping Debian 13"):
            run(
                "mmdebstrap",
                "--variant=minbase",
                *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "locale", "doc")),
                "trixie",
                archive,
            )
            run("docker", "import", archive, tag)
            archive.unlink()
    return tag


@functools.cache
def build(name: str, version: str = "") -> str:
    """Build the image of a folder of lab/images, and its parents, unless it is there; return its tag.

    An image whose Dockerfile has `ARG VERSION` plays that version; to the others it is all the same.
    """
    if name == "rootfs":
        return _rootfs()
    files = _context(name)
    parent = build(_PARENTS.get(name, "base"))
    arguments = {"FROM": parent}
    if "\nARG VERSION" in files["Dockerfile"].read_text():
        arguments["VERSION"] = version
    tag = f"{_NAMESPACE}/{name}:{_digest(files, *arguments.values())}"
    if not _exists(tag):
        with step(f"Building the image {name}"), tempfile.TemporaryDirectory() as context:
            for path, source in files.items():
                target = Path(context, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
            given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
            docker("build", "--quiet", "--network", "host", *given, "--tag", tag, context)
    return tag


def provide() -> None:
    """Have every image that a role names in the lab's registry, under the reference the role has for it."""
    for reference in references():
        if from_upstream():
            tag = reference.upstream
            if not _exists(tag):
                with step(f"Pulling {tag}"):
                    docker("pull", "--quiet", tag)
        else:
            tag = build(reference.name, reference.version)
        target = f"localhost:{settings.PUSH_PORT}/{reference.repository}:{reference.version}"
        if _digest_in_registry(reference) != _image_id(tag):
            with step(f"Pushing {reference.upstream}"):
                docker("tag", tag, target)
                docker("push", "--quiet", target)
                docker("rmi", target)


def _image_id(tag: str) -> str:
    return docker("image", "inspect", "--format", "{{.Id}}", tag)


def _digest_in_registry(reference: Reference) -> str:
    """Return the image id that the registry holds for a reference, "" when it holds none."""
    answer = run(
        "curl",
        "--silent",
        "--header",
        "Accept: application/vnd.docker.distribution.manifest.v2+json",
        f"http://localhost:{settings.PUSH_PORT}/v2/{reference.repository}/manifests/{reference.version}",
        check=False,
    ).stdout
    manifest = yaml.safe_load(answer) if answer else {}
    return str(manifest.get("config", {}).get("digest", ""))


def remove_all() -> None:
    """Remove every image the lab built, for a build from nothing."""
    tags = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "--filter", f"reference={_NAMESPACE}/*")
    if tags:
        docker("rmi", "--force", *tags.splitlines())
