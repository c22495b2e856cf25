# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be true of every set module when something breaks in the middle of its writes.

A resource kind takes part as data: a file `_faults_<api>.py` in this folder with a list `CASES` of `Case`. The test in
test_faults.py finds the files by name and runs every case through `interrupted` and `cut_off`, once for each way to
fail (`FAULTS`), before and after each single write of the case's plan. A case should plan 12 objects: creations,
updates and deletions, with objects of somebody else beside them.
"""

from __future__ import annotations

import json
import typing as t
from dataclasses import dataclass, field

from ansible_collections.kitestacks.homelab.tests.fakes._contract import Contract
from ansible_collections.kitestacks.homelab.tests.fakes._server import Server, Service

from ._module import run_module

# Name: arguments of `Server.fault`.
FAULTS: dict[str, dict[str, t.Any]] = {
    "reset": {"status": None},
    "500": {"status": 500, "body": "<html><body>Internal Server Error</body></html>"},
    "429": {"status": 429, "body": {"detail": "slow down"}, "headers": {"Retry-After": "1"}},
    "502": {"status": 502, "body": "<html><head><title>502 Bad Gateway</title></head><body>proxy</body></html>"},
}


@dataclass
class Case:
    """A plan of one module, and how to look at what became of it.

    Attributes:
        name: test id.
        main: the module's `main`.
        options: the module's options but for the URL and the credential.
        service: makes the fake's state, with the objects that the plan changes and those of somebody else.
        connection: options that hold the URL of a running server and the credential.
        snapshot: everything that the fake holds, as JSON-like data; what differs from run to run (ids, dates) left out.
        foreign: objects of somebody else, with ids and dates: they must not differ at all.
        changes: how many objects the plan changes.
        contract: file of the vendor's API document.
    """

    name: str
    main: t.Callable[[], None]
    options: dict[str, t.Any]
    service: t.Callable[[], Service]
    connection: t.Callable[[Server], dict[str, t.Any]]
    snapshot: t.Callable[[t.Any], t.Any]
    foreign: t.Callable[[t.Any], t.Any]
    changes: int
    contract: str
    expected: t.Any = field(default=None, repr=False)
    writes: int = 0

    def run(self, server: Server, **options: t.Any) -> dict[str, t.Any]:
        """Run the module against a server."""
        return run_module(self.main, **{**self.options, **self.connection(server), **options})

    def start(self) -> Server:
        """Return a server with fresh state, not yet started."""
        return Server(self.service(), contract=Contract.load(self.contract))

    def measure(self) -> None:
        """Run the plan undisturbed, once for all tests, to know its writes and the state that it leads to."""
        if self.expected is not None:
            return
        with self.start() as server:
            result = self.run(server)
            assert not result.get("failed"), result
            stats = result["stats"]
            assert stats["created"] + stats["updated"] + stats["deleted"] == self.changes, result
            self.writes = len(server.writes())
            self.expected = stable(self.snapshot(server.service))
            assert not server.violations
            assert not self.run(server)["changed"]


def stable(value: t.Any) -> str:
    """Return data as text in one order, so that a duplicate or a missing object is seen in a comparison."""
    return json.dumps(value, sort_keys=True, indent=1, default=str)


def interrupted(case: Case, fault: dict[str, t.Any], when: str, write: int) -> None:
    """One write fails once: the run recovers or says what it left, and the next run brings the declared state."""
    with case.start() as server:
        before = stable(case.foreign(server.service))
        server.fault(**fault, when=when, write=write)
        first = case.run(server)
        assert server.faults[0].times == 0, "the fault hit nothing"
        check_report(case, first)
        finish(case, server, before, first)


def cut_off(case: Case, fault: dict[str, t.Any], when: str, write: int) -> None:
    """Every write from this one on fails, as when the API goes away: the run fails and tells the truth."""
    with case.start() as server:
        before = stable(case.foreign(server.service))
        # `after`: the write itself is carried out, what follows is not.
        server.fault(**fault, when=when, write=write)
        server.fault(**fault, when="before", write=write, times=10_000)
        first = case.run(server, retries=1)
        check_report(case, first)
        server.faults.clear()
        finish(case, server, before, first)


def check_report(case: Case, result: dict[str, t.Any]) -> None:
    """A failed run accounts for every change of the plan, and names what failed."""
    if not result.get("failed"):
        return
    counted = [len(result[name]) for name in ("applied", "failed_items", "pending")]
    assert sum(counted) == case.changes, result
    assert counted[1] >= 1, result
    assert result["failed_items"][0]["key"] in result["msg"], result["msg"]
    assert result["changed"] == (counted[0] > 0)


def finish(case: Case, server: Server, foreign: str, first: dict[str, t.Any]) -> None:
    """A clean run ends in exactly the declared state; one more changes nothing; nothing foreign was touched."""
    second = case.run(server)
    assert not second.get("failed"), second
    if not first.get("failed"):
        assert not second["changed"], second
    assert stable(case.snapshot(server.service)) == case.expected
    assert stable(case.foreign(server.service)) == foreign
    third = case.run(server)
    assert not third.get("failed"), third
    assert not third["changed"], third
    assert not server.violations
