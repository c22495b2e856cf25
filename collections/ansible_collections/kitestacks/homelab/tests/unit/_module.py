# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a module in this process, with its options as ansible-core hands them over."""

from __future__ import annotations

import contextlib
import io
import json
import typing as t
from unittest import mock

import pytest
from ansible.module_utils.common import warnings
from ansible.module_utils.testing import patch_module_args


def run_module(main: t.Callable[[], None], *, check: bool = False, **options: t.Any) -> dict[str, t.Any]:
    """Return a module's result, diff included; a failed one has `failed`."""
    out = io.StringIO()
    arguments = {**options, "_ansible_check_mode": check, "_ansible_diff": True}
    # A module has a process of its own; here the warnings of one would be in the results of all that follow.
    own = mock.patch.object(warnings, "_global_warnings", {})
    with patch_module_args(arguments), own, contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        main()
    result: dict[str, t.Any] = json.loads(out.getvalue())
    return result
