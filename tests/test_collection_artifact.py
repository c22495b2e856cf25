"""The collection as its users get it: built, installed into an empty folder, used from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from ansible_collections.kitestacks.homelab.tests.fakes._server import Server
from ansible_collections.kitestacks.homelab.tests.fakes.cloudflare import TOKEN, CloudflareApi
from ansible_collections.kitestacks.homelab.tests.unit._playbook import play

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "collections/ansible_collections/kitestacks/homelab"
BIN = Path(sys.executable).parent


def environment(folder: Path, collections: Path) -> dict[str, str]:
    config = folder / "ansible.cfg"
    config.touch()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    paths = {"ANSIBLE_CONFIG": str(config), "ANSIBLE_HOME": str(folder / "home")}
    return {**kept, **paths, "ANSIBLE_COLLECTIONS_PATH": str(collections)}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """Return the built archive."""
    folder = tmp_path_factory.mktemp("built")
    command = [BIN / "ansible-galaxy", "collection", "build", SOURCE, "--output-path", folder]
    subprocess.run(command, check=True, capture_output=True, env=environment(folder, folder))
    return next(folder.glob("kitestacks-homelab-*.tar.gz"))


@pytest.fixture(scope="module")
def installed(artifact, tmp_path_factory):
    """Return a folder that holds nothing but the installed collection."""
    folder = tmp_path_factory.mktemp("installed")
    command = [BIN / "ansible-galaxy", "collection", "install", artifact, "--offline", "-p", folder / "collections"]
    subprocess.run(command, check=True, capture_output=True, env=environment(folder, folder / "collections"))
    return folder / "collections"


def modules():
    return sorted(file.stem for file in (SOURCE / "plugins/modules").glob("*.py"))


def test_the_archive_has_what_belongs_into_it(artifact):
    with tarfile.open(artifact) as archive:
        names = set(archive.getnames())
    assert {"MANIFEST.json", "LICENSE", "README.md", "meta/runtime.yml"} <= names
    assert {f"plugins/modules/{name}.py" for name in modules()} <= names
    stray = [name for name in names if "__pycache__" in name or name.startswith((".", "tests/output"))]
    assert stray == []


def test_every_module_is_documented_and_in_its_action_group(installed, tmp_path):
    names = [f"kitestacks.homelab.{name}" for name in modules()]
    command = [BIN / "ansible-doc", "--json", *names]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment(tmp_path, installed))
    documents = json.loads(done.stdout)
    assert sorted(documents) == names
    for name, document in documents.items():
        group = name.rpartition(".")[2].partition("_")[0]
        assert document["examples"].strip(), name
        assert document["return"], name
        if group in ("authentik", "cloudflare"):
            membership = document["doc"]["attributes"]["action_group"]["membership"]
            assert membership == [f"kitestacks.homelab.{group}"], name
    runtime = (SOURCE / "meta/runtime.yml").read_text()
    for name in modules():
        assert (f"    - {name}\n" in runtime) is name.startswith(("authentik_", "cloudflare_"))


def test_a_playbook_uses_it_from_there(installed, tmp_path):
    api = CloudflareApi(["example.com"])
    with Server(api) as server:
        record = {"name": "www", "type": "A", "content": "192.0.2.1"}
        task = {
            "name": "The zone has its record",
            "kitestacks.homelab.cloudflare_dns_records": {"zone": "example.com", "records": [record]},
        }
        defaults = {"group/kitestacks.homelab.cloudflare": {"api_url": server.url, "api_token": TOKEN}}
        played = play(tmp_path, [task], defaults=defaults, collections=installed)
    assert played.code == 0, played.stdout + played.stderr
    assert [record["name"] for record in api.zone_records("example.com")] == ["www.example.com"]
    assert "[WARNING]" not in played.stdout + played.stderr
