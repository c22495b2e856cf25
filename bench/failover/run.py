"""What a fault costs the visitors of a service that runs on both hosts, and of one that runs on monk only.

`bin/lab up` first. Asks through the lab's Cloudflare, which does not retry, 20 times a second for 15 seconds around
each fault, both services at the same time; "nothing" is the same without a fault. `--check` fails on a missed goal.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lab import faults, settings, site, traffic  # noqa: E402

MORE = ROOT / "tests" / "site" / "whoami"
NAMES = {"both hosts": f"www.{settings.DOMAIN}", "monk only": f"whoami.{settings.DOMAIN}"}
COPIES = {"portal": 2, "whoami": 1}
RATE = 20
SECONDS = 15


FAULTS: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "connector of monk killed": partial(faults.kill_container, "monk", "cloudflared"),
    "connector of monk stopped": partial(faults.stop_container, "monk", "cloudflared"),
    "edge of monk killed": partial(faults.kill_container, "monk", "edge"),
    "edge of monk stopped": partial(faults.stop_container, "monk", "edge"),
    "service of monk stopped": lambda: [faults.stop_container("monk", name) for name in ("portal", "whoami")] and None,
    "service of monk wedged": lambda: [faults.freeze_container("monk", name) for name in ("portal", "whoami")] and None,
    "tailnet cut": partial(faults.cut_tailnet, "monk"),
    "monk shut down": partial(faults.stop, "monk"),
    "monk without power": partial(faults.power_off, "monk"),
    "kscloud1 shut down": partial(faults.stop, "kscloud1"),
    "kscloud1 without power": partial(faults.power_off, "kscloud1"),
}
GOALS: dict[tuple[str, str], Callable[[traffic.Loss], bool]] = {
    ("connector of monk killed", "both hosts"): lambda cost: cost.failed <= 1,
    ("connector of monk killed", "monk only"): lambda cost: cost.failed <= 1,
    ("connector of monk stopped", "both hosts"): lambda cost: cost.failed == 0,
    ("connector of monk stopped", "monk only"): lambda cost: cost.failed == 0,
    ("edge of monk stopped", "both hosts"): lambda cost: cost.failed == 0,
    ("edge of monk stopped", "monk only"): lambda cost: cost.failed == 0,
    ("monk without power", "both hosts"): lambda cost: cost.until < 6,
    ("kscloud1 without power", "both hosts"): lambda cost: cost.until < 6,
    ("monk shut down", "both hosts"): lambda cost: cost.failed == 0,
    ("kscloud1 shut down", "both hosts"): lambda cost: cost.failed == 0,
}


def measure(fault: Callable[[], None]) -> dict[str, traffic.Loss]:
    """Ask for both services around a fault; return what it cost each."""
    while not traffic.all_is_well(COPIES):
        time.sleep(0.5)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        quiet = pool.submit(traffic.steady, partial(traffic.visit, NAMES["monk only"]), RATE * SECONDS, RATE)
        answers, moment = traffic.during(partial(traffic.visit, NAMES["both hosts"]), fault, count=RATE * SECONDS)
        return {"both hosts": traffic.loss(answers, moment), "monk only": traffic.loss(quiet.result(), moment)}


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where a goal is missed")
    check = parser.parse_args().check
    missed = []
    with site.services_more(MORE):
        print(f"| fault | {' | '.join(NAMES)} |\n|---|---|---|")
        for name, fault in FAULTS.items():
            costs = measure(fault)
            faults.heal()
            print(f"| {name} | {' | '.join(str(cost) for cost in costs.values())} |", flush=True)
            missed += [
                f"{name}, {kind}"
                for kind, cost in costs.items()
                if (name, kind) in GOALS and not GOALS[name, kind](cost)
            ]
    reached = len(GOALS) - len(missed)
    print(f"\n{reached} of {len(GOALS)} goals reached" + "".join(f"\nmissed: {line}" for line in missed))
    return int(check and bool(missed))


if __name__ == "__main__":
    sys.exit(main())
