"""What every role promises: its defaults, its argument specification and its tasks say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())


def _load(path: Path) -> dict[str, object]:
    return yaml.safe_load(path.read_text()) or {} if path.exists() else {}


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_argument_specs_name_the_same_variables(role: str) -> None:
    folder = ROOT / "roles" / role
    defaults = _load(folder / "defaults/main.yml")
    options = _load(folder / "meta/argument_specs.yml")["argument_specs"]["main"].get("options", {})
    required = {name for name, option in options.items() if option.get("required")}
    assert set(defaults) == set(options) - required
    assert not required & set(defaults)
    for name, option in options.items():
        assert name.startswith(f"{role}_")
        assert option["description"]
        if "default" in option:
            assert option["default"] == defaults[name], name


@pytest.mark.parametrize("role", ROLES)
def test_internal_variables_say_so(role: str) -> None:
    for name in _load(ROOT / "roles" / role / "vars/main.yml"):
        assert name.startswith(f"_{role}_"), name


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_is_used(role: str) -> None:
    folder = ROOT / "roles" / role
    text = "\n".join(
        path.read_text()
        for part in ("defaults", "vars", "tasks", "templates", "handlers", "files")
        for path in (folder / part).rglob("*")
        if path.is_file()
    )
    for name in (*_load(folder / "defaults/main.yml"), *_load(folder / "vars/main.yml")):
        uses = len(re.findall(rf"\b{name}\b", text))
        assert uses > 1, f"{name} is set and never read"


@pytest.mark.parametrize("role", ROLES)
def test_no_role_knows_of_the_lab_or_swallows_errors(role: str) -> None:
    for path in (ROOT / "roles" / role).rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert not re.search(r"\bwhen:.*\blab\b", text), path
            assert "ignore_errors" not in text, path
            assert ":latest" not in text, path


def test_every_version_has_a_renovate_comment() -> None:
    for path in ROOT.glob("roles/*/defaults/main.yml"):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if re.match(r"\w+_version:", line):
                assert lines[number - 1].startswith("# renovate: datasource="), f"{path}: {line}"


def test_no_commit_names_a_registry_or_a_path_of_a_machine() -> None:
    """Lock files carry hashes, and no addresses to download from."""
    assert "http" not in (ROOT / "requirements.lock").read_text()
