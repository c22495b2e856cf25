"""Unpack the collections that requirements.yml names out of PyPI's `ansible` package.

That package carries a fixed set of collections in known versions. It is used when Galaxy cannot be reached; only the
folders that are named are unpacked (a few MB instead of several hundred).

Usage: collections_from_pypi.py REQUIREMENTS_YML TARGET_FOLDER
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import yaml

# The release whose collections are those of requirements.yml; Renovate raises both together.
# renovate: datasource=pypi depName=ansible
ANSIBLE_PACKAGE = "ansible==14.5.0"


def main(requirements: Path, target: Path) -> None:
    """Unpack every collection of the requirements file and compare its version with the one that is asked for."""
    wanted = {entry["name"]: entry["version"] for entry in yaml.safe_load(requirements.read_text())["collections"]}
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--dest", folder, ANSIBLE_PACKAGE], check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            for name, version in wanted.items():
                prefix = f"ansible_collections/{name.replace('.', '/')}/"
                members = [
                    member
                    for member in wheel.namelist()
                    if member.startswith(prefix) and not member.startswith((f"{prefix}tests/", f"{prefix}changelogs/"))
                ]
                if not members:
                    sys.exit(f"{name} is not in {ANSIBLE_PACKAGE}")
                found = json.loads(wheel.read(f"{prefix}MANIFEST.json"))["collection_info"]["version"]
                if found != version:
                    sys.exit(f"{name}: {requirements} asks for {version}, {ANSIBLE_PACKAGE} has {found}")
                wheel.extractall(target, members)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
