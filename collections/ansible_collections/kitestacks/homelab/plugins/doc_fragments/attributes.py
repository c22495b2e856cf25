# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The attributes that all set modules share."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation of the C(attributes) block."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    support: full
    description: The same plan is made and nothing is written.
  diff_mode:
    support: full
    description: Shows the objects that change, secrets as asterisks.
  idempotent:
    support: full
    description: A second run with the same options changes nothing.
"""

    INFO = r"""
options: {}
attributes:
  check_mode:
    support: full
    description: Nothing is ever changed.
  diff_mode:
    support: none
    description: There is nothing that could differ.
  idempotent:
    support: full
    description: Nothing is ever changed.
"""
