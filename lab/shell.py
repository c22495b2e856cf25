"""Running commands and telling a person what goes on."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_started = time.monotonic()


class LabError(Exception):
    """Something a person can act on: what is wrong, where, and what to do."""


def run(
    *command: str | Path,
    stdin: str | None = None,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    check: bool = True,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end with its output captured.

    Raises LabError with the command and the last 30 lines it printed when it fails and `check` is set.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, input=stdin, cwd=cwd, env=env, check=False, capture_output=True, text=True, timeout=timeout
        )
    except FileNotFoundError as error:
        raise LabError(f"{words[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(words)}: no end after {timeout:.0f} s") from error
    if check and done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-30:])
        raise LabError(f"{' '.join(words)} failed with {done.returncode}:\n{tail}")
    return done


def docker(*arguments: str | Path, stdin: str | None = None, check: bool = True, timeout: float | None = None) -> str:
    """Run a docker command on this machine's engine and return what it printed."""
    return run("docker", *arguments, stdin=stdin, check=check, timeout=timeout).stdout.strip()


@contextmanager
def step(name: str) -> Iterator[None]:
    """Print one line for a step of long work: its name, how long it took, and the time since the start."""
    begin = time.monotonic()
    if sys.stdout.isatty():
        print(f"  …  {name}", end="\r", flush=True)
    try:
        yield
    except BaseException:
        print(f"  ✗  {name}", flush=True)
        raise
    now = time.monotonic()
    print(f"  ✓  {name:<58} {now - begin:6.1f} s  (total {now - _started:.0f} s)", flush=True)


def wait_until(what: str, probe: Sequence[str], seconds: float) -> None:
    """Run `probe` until it succeeds; LabError with its last output when `seconds` have passed."""
    deadline = time.monotonic() + seconds
    while True:
        done = run(*probe, check=False)
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            tail = (done.stdout + done.stderr).strip()[-2000:]
            raise LabError(f"{what}: not so after {seconds:.0f} s; the last answer was:\n{tail}")
        time.sleep(0.2)
