"""The database while a node, a host or the link breaks: what is lost, for how long, and that there is one primary."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from lab import faults, machines, site
from lab.shell import run

from .conftest import HOSTS, eventually

FAILOVER = "playbooks/operations/failover_postgresql.yml"
LEASE = 60
"""Seconds; the default of postgresql_lease."""

WRITER = r"""
PGPASSWORD=$(cat /password) PGCONNECT_TIMEOUT=2; export PGPASSWORD PGCONNECT_TIMEOUT
psql="psql -XAtq -v ON_ERROR_STOP=1 -h edge -U authentik authentik"
n=0
while true; do
  coproc DB { exec $psql 2>/dev/null; }
  child=$DB_PID
  exec 3<&"${DB[0]}" 4>&"${DB[1]}"
  while true; do
    n=$((n + 1))
    echo "INSERT INTO writer VALUES ('$HOST', $n) RETURNING n;" >&4 || break
    read -r -t 3 answer <&3 || break
    [ "$answer" = "$n" ] || break
    echo "$n $EPOCHREALTIME"
    sleep 0.015
  done 2>/dev/null
  exec 3<&- 4>&-
  kill $child 2>/dev/null
  wait $child
  sleep 0.05
done
"""
"""Commits one row after the other through the edge of its host; prints the number and the time of each that the
database confirmed. A commit whose answer never came is not repeated."""


@dataclass
class Written:
    """What a writer got confirmed: the numbers, and when (seconds since the epoch)."""

    numbers: list[int]
    times: list[float]

    @property
    def rate(self) -> float:
        """Commits a second, leaving out the outage."""
        return (len(self.times) - 1) / (self.times[-1] - self.times[0] - self.outage)

    @property
    def outage(self) -> float:
        """The longest time without a confirmed commit, in seconds."""
        return max(later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False))


def node(host: str, *words: str) -> str:
    """Run `node ...` on a host's node and return what it printed; "" when it failed."""
    done = run("docker", "exec", host, "docker", "exec", "postgresql", "/opt/node/bin/node", *words, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def status(host: str) -> dict[str, Any]:
    """Return what a node says of itself; its state is "away" when it says nothing."""
    answer = node(host, "status")
    return json.loads(answer) if answer else {"state": "away", "in_recovery": ""}


def states() -> dict[str, str]:
    """Return the state of every node by host."""
    return {host: status(host)["state"] for host in HOSTS}


def sql(host: str, statement: str) -> str:
    """Run a statement through the edge of a host, as the application's role."""
    command = (
        "PGPASSWORD=$(cat /run/secrets/authentik) PGCONNECT_TIMEOUT=5 psql -XAtq -h edge -U authentik authentik -c"
    )
    words = ("docker", "exec", host, "docker", "exec", "postgresql", "bash", "-c", f'{command} "$0"', statement)
    return run(*words).stdout.strip()


def writes(host: str) -> bool:
    """Tell whether a statement that writes gets through the edge of a host."""
    words = ("docker", "exec", host, "docker", "exec", "postgresql", "/opt/node/bin/node", "write")
    return run(*words, check=False).returncode == 0


def _image(host: str) -> str:
    return machines.run_on(host, "docker", "inspect", "--format", "{{.Config.Image}}", "postgresql").strip()


@contextmanager
def writer(host: str) -> Iterator[Callable[[], Written]]:
    """Write through the edge of a host, some 50 commits a second; yields what returns the confirmed ones so far."""
    sql(host, "CREATE TABLE IF NOT EXISTS writer (host text, n bigint, PRIMARY KEY (host, n))")
    sql(host, f"DELETE FROM writer WHERE host = '{host}'")
    machines.run_on(host, "docker", "rm", "--force", "writer")
    machines.run_on(
        host,
        *("docker", "run", "--detach", "--name", "writer", "--network", "kitestacks", "--user", "999"),
        *("--volume", "/opt/kitestacks/postgresql/secrets/authentik:/password:ro", "--env", f"HOST={host}"),
        *("--entrypoint", "bash", _image(host), "-c", WRITER),
    )

    def confirmed() -> Written:
        lines = [line.split() for line in machines.run_on(host, "docker", "logs", "writer").splitlines()]
        return Written([int(line[0]) for line in lines], [float(line[1]) for line in lines])

    try:
        eventually(lambda: len(confirmed().numbers) > 50, 20, f"the writer on {host} writes")
        yield confirmed
    finally:
        run("docker", "exec", host, "docker", "rm", "--force", "writer", check=False)


def lost(host: str, written: Written) -> int:
    """Return how many confirmed commits of a host's writer the database does not hold."""
    there = {int(line) for line in sql(host, f"SELECT n FROM writer WHERE host = '{host}'").split()}
    return len(set(written.numbers) - there)


@pytest.fixture
def primary_on_kscloud1(homelab: None) -> Iterator[None]:
    """The database as a first run leaves it, and again after the test."""
    settle()
    yield
    faults.heal()
    settle()


def settle() -> None:
    """Have the primary on kscloud1 and its standby on monk."""
    eventually(
        lambda: sorted(states().values()) in (["primary", "standby"], ["leaderless", "leaderless"]), 120, "settled"
    )
    if states()["kscloud1"] != "primary":
        eventually(lambda: any(status(host).get("standby_streams") for host in HOSTS), 120, "the standby follows")
        done = site.play(FAILOVER, "-e", "postgresql_primary=kscloud1", show="nothing")
        assert done.rc == 0, done.output[-4000:]
    eventually(lambda: bool(status("kscloud1").get("standby_streams")), 120, "the standby follows")


def test_a_switch_with_both_nodes_there_loses_nothing(primary_on_kscloud1: None) -> None:
    with writer("monk") as on_monk, writer("kscloud1") as on_kscloud1:
        done = site.play(FAILOVER, "-e", "postgresql_primary=monk", show="nothing")
        assert done.rc == 0, done.output[-4000:]
        count = len(on_monk().numbers)
        eventually(lambda: len(on_monk().numbers) > count + 100, 20, "the writer goes on")
        seen = {"monk": on_monk(), "kscloud1": on_kscloud1()}
    for host, written in seen.items():
        missing = lost(host, written)
        print(
            f"\nswitch, writer on {host}: {len(written.numbers)} commits at {written.rate:.0f}/s,"
            f" {missing} lost, {written.outage:.1f} s without a commit"
        )
        assert missing == 0
        assert written.outage < 15
    assert states() == {"monk": "primary", "kscloud1": "standby"}
    again = site.play(FAILOVER, "-e", "postgresql_primary=monk", show="nothing")
    assert (again.rc, again.changed()) == (0, set()), again.output[-4000:]


def test_a_primary_that_lives_is_not_declared_dead(primary_on_kscloud1: None) -> None:
    refused = site.play(FAILOVER, "-e", "postgresql_primary=monk", "-e", "postgresql_is_off=kscloud1", show="nothing")
    assert refused.rc != 0
    assert "kscloud1 answers, and is the primary" in " ".join(refused.output.split())
    assert node("monk", "promote") == ""
    assert states() == {"monk": "standby", "kscloud1": "primary"}
    faults.cut_tailnet("monk")
    cut = site.play(FAILOVER, "-e", "postgresql_primary=monk", show="nothing")
    assert cut.rc != 0
    assert states()["kscloud1"] == "primary"
    assert status("monk")["in_recovery"] == "t"


def test_a_dead_primary_is_replaced_and_comes_back_as_a_standby(primary_on_kscloud1: None) -> None:
    with writer("monk") as confirmed:
        faults.power_off("kscloud1")
        silent = site.play(FAILOVER, "-e", "postgresql_primary=monk", show="nothing")
        assert silent.rc != 0
        assert "-e postgresql_is_off=kscloud1" in " ".join(silent.output.split())
        begin = time.time()
        done = site.play(FAILOVER, "-e", "postgresql_primary=monk", "-e", "postgresql_is_off=kscloud1", show="nothing")
        assert done.rc == 0, done.output[-4000:]
        count = len(confirmed().numbers)
        eventually(lambda: len(confirmed().numbers) > count + 100, 20, "the writer goes on")
        written = confirmed()
    missing = lost("monk", written)
    print(
        f"\ncrash: {len(written.numbers)} commits at {written.rate:.0f}/s, {missing} lost, {written.outage:.0f} s"
        f" without a commit, of which {time.time() - begin:.0f} s after the command (the lease is {LEASE} s)"
    )
    assert missing <= 25
    machines.start("kscloud1")
    machines.wait_for_boot("kscloud1")
    never_two(lambda: states() == {"monk": "primary", "kscloud1": "standby"}, 60)
    seconds = eventually(lambda: writes("kscloud1"), 60, "kscloud1's edge finds the primary on monk")
    print(f"\nthe old primary is a standby, and its edge leads to the new one, {seconds:.1f} s later")
    eventually(lambda: bool(status("monk")["standby_streams"]), 60, "it follows")


def never_two(until: Callable[[], bool], seconds: float) -> float:
    """Wait until a condition holds; fail when both nodes are out of recovery at any time before, or time is up."""
    begin = time.monotonic()
    while not until():
        assert [status(host)["in_recovery"] for host in HOSTS] != ["f", "f"], "two primaries"
        if time.monotonic() - begin > seconds:
            pytest.fail(f"not so after {seconds:.0f} s: { {host: status(host) for host in HOSTS} }")
        time.sleep(0.2)
    return time.monotonic() - begin


def test_both_hosts_reboot_in_the_middle_of_a_switch(primary_on_kscloud1: None) -> None:
    """After the old primary stopped, before the new one is promoted: nobody is, until the switch is made again."""
    sql("monk", "CREATE TABLE IF NOT EXISTS writer (host text, n bigint, PRIMARY KEY (host, n))")
    sql("monk", "INSERT INTO writer VALUES ('switch', 1) ON CONFLICT DO NOTHING")
    demotion = threading.Thread(target=node, args=("kscloud1", "demote"))
    demotion.start()
    eventually(lambda: status("kscloud1")["state"] != "primary", 30, "the primary stops")
    for host in HOSTS:
        faults.power_off(host)
    demotion.join()
    for host in HOSTS:
        machines.start(host)
    for host in HOSTS:
        machines.wait_for_boot(host)
    never_two(lambda: sorted(states().values()) in (["leaderless", "leaderless"], ["primary", "standby"]), 90)
    done = site.play(FAILOVER, "-e", "postgresql_primary=monk", show="nothing")
    assert done.rc == 0, done.output[-4000:]
    assert [status(host)["in_recovery"] for host in ("monk", "kscloud1")] == ["f", "t"]
    assert sql("kscloud1", "SELECT count(*) FROM writer WHERE host = 'switch'") == "1"


def test_an_old_primary_that_cannot_ask_stays_read_only(primary_on_kscloud1: None) -> None:
    """Promoted on monk, then monk away, then kscloud1 back: it must not go on where it was."""
    faults.power_off("kscloud1")
    done = site.play(FAILOVER, "-e", "postgresql_primary=monk", "-e", "postgresql_is_off=kscloud1", show="nothing")
    assert done.rc == 0, done.output[-4000:]
    faults.power_off("monk")
    machines.start("kscloud1")
    machines.wait_for_boot("kscloud1")
    eventually(lambda: states()["kscloud1"] == "undecided", 60, "the old primary knows that it cannot know")
    assert status("kscloud1")["in_recovery"] == "t"
    assert not writes("kscloud1")
    machines.start("monk")
    machines.wait_for_boot("monk")
    never_two(lambda: states() == {"monk": "primary", "kscloud1": "standby"}, 90)


def test_two_primaries_by_force_are_one_again_as_soon_as_they_meet(primary_on_kscloud1: None) -> None:
    """The link is cut, somebody promotes monk by hand though kscloud1 lives, the link is back."""
    faults.cut_tailnet("monk")
    assert node("kscloud1", "status")
    machines.run_on("monk", "docker", "exec", "postgresql", "/opt/node/bin/node", "promote")
    assert states() == {"monk": "primary", "kscloud1": "primary"}
    faults.heal()
    seconds = eventually(lambda: states() == {"monk": "primary", "kscloud1": "standby"}, 60, "the older one gives way")
    print(f"\nthe older primary is a standby {seconds:.1f} s after the link is back")


def test_a_reboot_of_kscloud1_needs_nothing(primary_on_kscloud1: None) -> None:
    faults.stop("kscloud1")
    machines.start("kscloud1")
    machines.wait_for_boot("kscloud1")
    for host in HOSTS:
        seconds = eventually(partial(writes, host), 30, f"{host}'s edge finds the database again")
        print(f"\nreboot: written through {host}'s edge {seconds:.1f} s after kscloud1 takes ssh connections")
    assert states()["kscloud1"] == "primary"


def test_kscloud1_serves_alone_and_after_a_short_reboot_too(primary_on_kscloud1: None) -> None:
    faults.power_off("monk")
    assert eventually(lambda: writes("kscloud1"), 10, "kscloud1 writes without its standby") < 5
    faults.power_off("kscloud1")
    machines.start("kscloud1")
    machines.wait_for_boot("kscloud1")
    seconds = eventually(lambda: writes("kscloud1"), 30, "kscloud1's edge finds the database again")
    print(f"\nreboot without monk: written {seconds:.1f} s after kscloud1 takes ssh connections")


def test_both_lose_power_at_once(primary_on_kscloud1: None) -> None:
    for host in HOSTS:
        faults.power_off(host)
    for host in HOSTS:
        machines.start(host)
    for host in HOSTS:
        machines.wait_for_boot(host)
    never_two(lambda: sorted(states().values()) == ["primary", "standby"], 90)
    for host in HOSTS:
        eventually(partial(writes, host), 30, f"{host}'s edge finds the database")
