"""Passwords in Django's format: pbkdf2_sha256$ITERATIONS$SALT$HASH."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

_ITERATIONS = 100_000
"""A tenth of Django's: the lab's two cores have other things to do. The number stands in the hash."""


def make(password: str, *, salt: str = "", iterations: int = _ITERATIONS) -> str:
    """Return the hash of a password."""
    salt = salt or secrets.token_hex(11)
    digest = hashlib.pbkdf2_hmac("sha256", password.encode(), salt.encode(), iterations)
    return f"pbkdf2_sha256${iterations}${salt}${base64.b64encode(digest).decode()}"


def check(password: str, kept: str | None) -> bool:
    """Tell whether a password is the one of a hash; a user without one (None) has none that fits."""
    algorithm, _dollar, rest = (kept or "").partition("$")
    iterations, _dollar, rest = rest.partition("$")
    salt, _dollar, _digest = rest.partition("$")
    if algorithm != "pbkdf2_sha256" or not iterations.isdecimal() or not salt:
        return False
    return hmac.compare_digest(make(password, salt=salt, iterations=int(iterations)), kept or "")
