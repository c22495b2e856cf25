"""The site tests: two bare hosts, the whole of site.yml, and what a visitor, a stranger and a fault meet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from lab import engine, faults, machines, settings, site


def eventually(probe: Callable[[], bool], seconds: float, what: str, seen: Callable[[], object] = lambda: "") -> float:
    """Wait until `probe` is true; return the seconds that took. Fails after `seconds`, and tells what was `seen`."""
    begin = time.monotonic()
    while not probe():
        if time.monotonic() - begin > seconds:
            pytest.fail(f"{what}: not so after {seconds:.0f} s {seen()}")
        time.sleep(0.2)
    return time.monotonic() - begin


@pytest.fixture(scope="session")
def bare() -> None:
    """Two hosts that nothing has touched."""
    engine.ensure()
    machines.renew_hosts()


@pytest.fixture(scope="session")
def predicted(bare: None) -> site.Run:
    """What `site.yml --check --diff` says on bare hosts."""
    secrets = site.play("playbooks/operations/secrets.yml", show="nothing")
    assert secrets.rc == 0, secrets.output
    return site.play("site.yml", "--check", "--diff")


@pytest.fixture(scope="session")
def first(predicted: site.Run) -> site.Run:
    """The first real run, after the one in check mode."""
    return site.play("site.yml", "--diff", "-vvv", show="tasks")


@pytest.fixture(scope="session")
def second(first: site.Run) -> site.Run:
    """A run that has nothing to do."""
    return site.play("site.yml")


@pytest.fixture
def homelab(second: site.Run) -> Iterator[None]:
    """The homelab as site.yml leaves it, mended again after the test."""
    yield
    faults.heal()


HOSTS = [host.name for host in settings.HOSTS]
WWW = f"www.{settings.DOMAIN}"
