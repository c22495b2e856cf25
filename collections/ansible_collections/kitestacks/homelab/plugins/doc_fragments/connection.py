# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the HTTP connection that every API module has."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation of the options in C(_http.CONNECTION_SPEC)."""

    DOCUMENTATION = r"""
options:
  ca_path:
    description: PEM file with the authorities to trust instead of the system's.
    type: path
  retries:
    description:
      - How often a request is repeated when the server could not be reached, answered with a server error, or asked to
        wait (C(Retry-After) is respected).
      - A creation whose answer got lost is never simply repeated. The objects are read again first.
    type: int
    default: 4
  timeout:
    description: Seconds to wait for a connection, and for each part of an answer.
    type: int
    default: 30
  validate_certs:
    description: Whether the server's certificate is checked.
    type: bool
    default: true
notes:
  - One connection is kept for the whole run. Proxies are taken from the environment (C(https_proxy), C(no_proxy)).
"""
