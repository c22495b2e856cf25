# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every set module, every way to fail, before and after every single write. The cases are data, see _faults.py."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from ._faults import FAULTS, Case, cut_off, interrupted

pytestmark = pytest.mark.faults


def cases() -> list[Case]:
    names = sorted(file.stem for file in Path(__file__).parent.glob("_faults_*.py"))
    found = [importlib.import_module(f"{__package__}.{name}").CASES for name in names]
    return [case for part in found for case in part]


CASES = cases()


def test_there_are_cases_for_each_api():
    assert CASES


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize("scenario", [interrupted, cut_off])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_clean_run_after_a_fault_brings_exactly_the_declared_state(case, fault, when, scenario):
    case.measure()
    assert case.writes
    for write in range(case.writes):
        scenario(case, FAULTS[fault], when, write)
