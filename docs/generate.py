"""Write what is derived: the tables in roles' READMEs, the reference of all variables, and the service map.

Usage: python docs/generate.py [--check]. With --check nothing is written; the exit status is 1 when a file is stale.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "collections"))

from ansible_collections.kitestacks.homelab.plugins.module_utils import _catalogue  # noqa: E402

NOTE = "<!-- Made by docs/generate.py from argument_specs.yml, defaults and service.yml. -->"


def _cell(value: Any) -> str:
    """Return a value as the text of a table's cell."""
    if isinstance(value, str):
        text = f"`{value}`" if value else '`""`'
    elif isinstance(value, (dict, list)) and not value:
        text = f"`{value}`"
    else:
        text = f"`{yaml.safe_dump(value, default_flow_style=True, width=10**6).strip().removesuffix('...').strip()}`"
    return text.replace("|", "\\|").replace("\n", " ")


def _prose(text: str | list[str]) -> str:
    words = " ".join(text) if isinstance(text, list) else text
    return words.replace("C(", "`").replace(")", "`") if "C(" in words else words


def _roles() -> dict[str, dict[str, Any]]:
    """Return specification, defaults and declaration of every role by name."""
    roles = {}
    for folder in sorted((ROOT / "roles").iterdir()):
        spec = yaml.safe_load((folder / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]
        service = folder / "meta/service.yml"
        roles[folder.name] = {
            "summary": spec["short_description"],
            "options": spec.get("options", {}),
            "defaults": yaml.safe_load((folder / "defaults/main.yml").read_text()) or {},
            "service": yaml.safe_load(service.read_text()) if service.exists() else None,
        }
    return roles


def _table(role: dict[str, Any]) -> list[str]:
    lines = ["| variable | type | default | what it is |", "|---|---|---|---|"]
    for name, option in role["options"].items():
        default = _cell(role["defaults"][name]) if name in role["defaults"] else "required"
        lines.append(f"| `{name}` | {option['type']} | {default} | {_prose(option['description'])} |")
    return lines


def _readme(name: str, role: dict[str, Any]) -> str:
    lines = [f"# Role {name}", "", NOTE, "", f"{role['summary']}.", ""]
    notes = ROOT / "roles" / name / "NOTES.md"
    if notes.exists():
        lines += [notes.read_text().strip(), ""]
    if role["service"]:
        lines += ["## Service", "", "| key | value |", "|---|---|"]
        lines += [f"| {key} | {_cell(value)} |" for key, value in role["service"].items()]
        lines += [""]
    lines += ["## Variables", "", *_table(role)]
    return "\n".join(lines) + "\n"


def _variables(roles: dict[str, dict[str, Any]]) -> str:
    lines = ["# Variables", "", NOTE, "", "Every variable of every role, with its default."]
    for name, role in roles.items():
        lines += ["", f"## {name}", "", f"{role['summary']}.", "", *_table(role)]
    return "\n".join(lines) + "\n"


def _service_map(roles: dict[str, dict[str, Any]]) -> str:
    hosts = yaml.safe_load((ROOT / "inventories/production/hosts.yml").read_text())["all"]["children"]
    groups = {name: list(group.get("hosts", {})) for name, group in hosts.items()}
    declared = {name: role["service"] for name, role in roles.items() if role["service"]}
    catalogue = _catalogue.build(declared, groups, "example.org")
    lines = ["# Service map", "", NOTE, "", "As the example inventory places it.", ""]
    lines += ["| service | runs on | public name | signs in | when a host is away |", "|---|---|---|---|---|"]
    away = {"both": "the other host serves", "first": "it is away too", "writer": "the writer is switched"}
    lines += [
        f"| {service['title']} | {', '.join(service['hosts'])} | {service['hostname'] or '-'} |"
        f" {service['sign_in'] or '-'} | {away[service['failover']]} |"
        for service in catalogue
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write, or compare, every derived file."""
    roles = _roles()
    files = {ROOT / "roles" / name / "README.md": _readme(name, role) for name, role in roles.items()}
    files[ROOT / "docs/variables.md"] = _variables(roles)
    files[ROOT / "docs/service-map.md"] = _service_map(roles)
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if "--check" in sys.argv:
            print(f"{path.relative_to(ROOT)} is not current: run python docs/generate.py")
        else:
            path.write_text(files[path])
            print(f"{path.relative_to(ROOT)} written")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
