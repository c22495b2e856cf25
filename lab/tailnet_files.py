"""What the tailnet stand-in is given: the built programs, and one auth key for each node, made once per checkout."""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path

from lab import settings
from lab.shell import run, step

BUILT = settings.CACHE / "tailnet"
"""Output of lab/tailnet/build: the control server and the apt repository."""
FOLDER = settings.STATE / "tailnet"
AUTH_KEYS = FOLDER / "auth-keys.json"
POLICY = settings.ROOT / "roles" / "tailscale" / "files"
"""The folder, so that a policy that an editor replaces is seen inside the container."""


def build() -> None:
    """Build control server, tailscale and its repository, unless they are current."""
    if shutil.which("go") is None:
        run(settings.ROOT / "bin" / "setup", "packages", "golang-go")
    run(settings.ROOT / "bin" / "setup", "packages", "gpg", "gpg-agent")
    with step("Building tailscale (minutes, the first time)"):
        run(settings.ROOT / "lab" / "tailnet" / "build", BUILT)


def built_from() -> str:
    """Return a name for everything that the control server was built from."""
    return (BUILT / "control" / ".built-from").read_text().strip()


def ensure_auth_keys() -> None:
    """Have an auth key for each host and for a device of the owner's, in a file each, as from the admin console."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    grants: dict[str, dict[str, object]] = {}
    for name in (*(host.name for host in settings.HOSTS), settings.GUEST.name):
        file: Path = FOLDER / f"auth-key-{name}"
        if not file.exists():
            file.touch(mode=0o600)
            file.write_text(f"lab-{secrets.token_hex(16)}")
        owner = {"user": f"owner@{settings.DOMAIN}", "admin": True}
        grants[file.read_text()] = owner if name == settings.GUEST.name else {"tags": [f"tag:{name}"]}
    AUTH_KEYS.write_text(json.dumps(grants))
