"""The embedded outpost."""

from __future__ import annotations

from werkzeug.wrappers import Response

from lab.authentik.visit import Visit


def answer(visit: Visit) -> Response | None:
    """Answer a request for a host that a proxy provider claims; None for every other."""
    return None
