# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A callback that writes each task's result to the file that KITE_RECORD names, one JSON document a line."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: record
type: aggregate
short_description: Write results to a file
description: For tests only.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "record"
    CALLBACK_NEEDS_ENABLED = True

    def _record(self, outcome, result):
        # ansible-core 2.20 renamed the private attributes of a task result.
        task, values = getattr(result, "task", None), getattr(result, "result", None)
        line = {"outcome": outcome, "task": task.get_name(), "result": values}
        with Path(os.environ["KITE_RECORD"]).open("a") as file:
            file.write(json.dumps(line, default=str) + "\n")

    def v2_runner_on_ok(self, result):
        self._record("ok", result)

    def v2_runner_on_failed(self, result, ignore_errors=False):  # noqa: ARG002
        self._record("failed", result)
