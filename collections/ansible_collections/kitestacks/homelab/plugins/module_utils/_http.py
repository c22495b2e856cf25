# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One keep-alive connection to a JSON API.

`ansible.module_utils.urls` opens a connection for every request; a reconciler that lists, then writes, would pay the
TCP and TLS handshake for each. This client keeps one connection for the life of a module run, retries what may be
repeated, and raises errors that say method, path, status and the vendor's own words, never a credential.
"""

from __future__ import annotations

import base64
import email.utils
import http.client
import json
import random
import ssl
import time
import typing as t
import urllib.parse
import urllib.request
from dataclasses import dataclass, field

# What the API may do twice without harm. PATCH is in it because the bodies this collection sends hold absolute values.
REPEATABLE = frozenset({"GET", "HEAD", "PUT", "PATCH", "DELETE"})
# Cloudflare blocks for five minutes after its rate limit; whoever asks for more than this is not worth waiting for.
MAX_WAIT = 330.0
FIRST_WAIT = 0.5
LAST_WAIT = 8.0

_sleep = time.sleep  # the tests replace both
_clock = time.monotonic

# The options that every module of an API has; doc_fragments/http.py documents them.
CONNECTION_SPEC: dict[str, dict[str, t.Any]] = {
    "ca_path": {"type": "path"},
    "retries": {"type": "int", "default": 4},
    "timeout": {"type": "int", "default": 30},
    "validate_certs": {"type": "bool", "default": True},
}


class ApiError(Exception):
    """A request that failed for good.

    Attributes:
        method: HTTP method, upper case.
        path: path below the API's base URL, without the query.
        status: HTTP status, or None when no answer came.
        code: the vendor's error code, or None.
        message: the vendor's message, or what the transport said.
        unknown_outcome: True when the server may or may not have carried out the request. Such a write must not be
            repeated before the object was looked for.
        retry_after: seconds that the server asked to wait, or None.

    """

    def __init__(
        self,
        method: str,
        path: str,
        status: int | None,
        code: int | str | None,
        message: str,
        *,
        unknown_outcome: bool = False,
        retry_after: float | None = None,
    ) -> None:
        self.method = method
        self.path = path
        self.status = status
        self.code = code
        self.message = message
        self.unknown_outcome = unknown_outcome
        self.retry_after = retry_after
        super().__init__(str(self))

    def __str__(self) -> str:
        answer = "no answer" if self.status is None else f"HTTP {self.status}"
        if self.code is not None:
            answer += f", code {self.code}"
        return f"{self.method} {self.path}: {answer}: {self.message}"

    def as_dict(self) -> dict[str, t.Any]:
        """Return the error as a module's result shows it."""
        return {
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "code": self.code,
            "message": self.message,
        }


@dataclass
class Response:
    """An answer: `data` is the decoded JSON document, or None when the body was empty or no JSON."""

    status: int
    headers: dict[str, str]
    body: bytes
    data: t.Any = None
    method: str = ""
    path: str = ""


@dataclass
class Stats:
    """What a client did: `requests` counts every request sent, `retries` those of them that repeated another."""

    requests: int = 0
    retries: int = 0
    connections: int = 0


@dataclass
class Settings:
    """How to reach an API.

    Attributes:
        base_url: `https://host[:port]/prefix`, without a final slash.
        headers: sent with every request (the credential is one of them).
        secrets: strings that are cut out of every error message.
        timeout: seconds to connect, and to wait for each part of an answer.
        retries: how often a request is repeated, at most.
        ca_path: PEM file of the authorities to trust instead of the system's.
        validate_certs: False accepts any certificate.

    """

    base_url: str
    headers: dict[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    timeout: float = 30.0
    retries: int = 4
    ca_path: str | None = None
    validate_certs: bool = True


class Client:
    """A JSON API behind one connection. Subclasses say how its errors look: `describe_error`, `is_server_error`."""

    def __init__(self, settings: Settings) -> None:
        """Check the base URL; no connection is made before the first request.

        Raises:
            ValueError: the base URL is no http or https URL.

        """
        self.settings = settings
        self.stats = Stats()
        self._url = urllib.parse.urlsplit(settings.base_url)
        if self._url.scheme not in ("http", "https") or not self._url.hostname:
            raise ValueError(f"{settings.base_url!r} is no http:// or https:// URL")
        self._base_path = self._url.path.rstrip("/")
        self._connection: http.client.HTTPConnection | None = None
        # For plain http through a proxy: scheme and host before the path, and what signs in to the proxy.
        self._absolute = ""
        self._proxy_headers: dict[str, str] = {}

    # What an API may say differently.

    def describe_error(self, response: Response) -> tuple[int | str | None, str]:
        """Return the vendor's code and message of a failed answer. The body need not be JSON: proxies answer too."""
        return None, plain_text(response.body) or http.client.responses.get(response.status, "no message")

    def is_server_error(self, response: Response) -> bool:
        """Tell whether the server failed in the middle of its work, so that the outcome of a write is unknown."""
        return response.status >= 500

    # Requests.

    def request(
        self,
        method: str,
        path: str,
        *,
        query: t.Mapping[str, t.Any] | None = None,
        body: t.Any = None,
        repeatable: bool | None = None,
    ) -> Response:
        """Send a request, repeat it where that is safe, and return the successful answer.

        Args:
            method: HTTP method, upper case.
            path: path below the base URL, starting with a slash, already quoted.
            query: parameters; None values are left out, booleans become `true` and `false`.
            body: a JSON document, or None for no body.
            repeatable: whether the server may carry it out twice; by default all but POST are.

        Raises:
            ApiError: the answer was an error, or none came.

        """
        again = method in REPEATABLE if repeatable is None else repeatable
        target = path
        if query:
            target += "?" + encode_query(query)
        payload = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        attempt = 0
        while True:
            sent = False
            response: Response | None = None
            try:
                connection = self._connect()
                sent = True
                response = self._exchange(connection, method, target, payload)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                failure = ApiError(method, path, None, None, self._clean(describe(error)), unknown_outcome=sent)
                if isinstance(error, ssl.SSLCertVerificationError):
                    raise failure from None
            if response is not None:
                response.method, response.path = method, path
                if response.status < 300:
                    return response
                failure = self._failure(response)
            # Without a connection nothing was asked for yet, so even a POST may be sent again.
            repeat = not sent or (again and (failure.unknown_outcome or failure.status == 429))
            if not repeat or attempt >= self.settings.retries or not self.pause(attempt, failure):
                raise failure
            attempt += 1

    def pause(self, attempt: int, failure: ApiError) -> bool:
        """Wait before the next try of a failed request, and count the retry.

        Args:
            attempt: how many tries failed before this one.
            failure: what went wrong; the server may have asked for a certain wait.

        Returns:
            False, without waiting, when the server asks for a wait that is too long.

        """
        if failure.retry_after is not None:
            # A little more than asked: several runs that were stopped together must not come back together.
            seconds = failure.retry_after + random.uniform(0, min(failure.retry_after, 1.0))  # noqa: S311
        else:
            seconds = min(LAST_WAIT, FIRST_WAIT * float(2**attempt)) * random.uniform(0.5, 1.0)  # noqa: S311
        if seconds > MAX_WAIT:
            return False
        self.stats.retries += 1
        _sleep(seconds)
        return True

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _failure(self, response: Response) -> ApiError:
        code, message = self.describe_error(response)
        return ApiError(
            response.method,
            response.path,
            response.status,
            code,
            self._clean(message),
            unknown_outcome=self.is_server_error(response),
            retry_after=retry_after(response.headers),
        )

    def _clean(self, message: str) -> str:
        for secret in self.settings.secrets:
            if secret:
                message = message.replace(secret, "********")
        return message

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, target: str, payload: bytes | None
    ) -> Response:
        headers = {"Accept": "application/json", **self.settings.headers, **self._proxy_headers}
        if payload is not None:
            headers["Content-Type"] = "application/json"
        self.stats.requests += 1
        connection.request(method, f"{self._absolute}{self._base_path}{target}", body=payload, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.will_close:
            self.close()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Response(answer.status, found, body, decode(body))

    def _connect(self) -> http.client.HTTPConnection:
        if self._connection is not None:
            return self._connection
        host, port = str(self._url.hostname), self._url.port
        timeout = self.settings.timeout
        tls = self._url.scheme == "https"
        proxy = proxy_for(self._url.scheme, host)
        self._absolute, self._proxy_headers = "", {}
        made: http.client.HTTPConnection
        if proxy is None:
            if tls:
                made = http.client.HTTPSConnection(host, port, timeout=timeout, context=self._tls())
            else:
                made = http.client.HTTPConnection(host, port, timeout=timeout)
        else:
            headers = proxy_headers(proxy)
            proxy_port = proxy.port or 3128
            if tls:
                made = http.client.HTTPSConnection(
                    str(proxy.hostname), proxy_port, timeout=timeout, context=self._tls()
                )
                made.set_tunnel(host, port or 443, headers)
            else:
                made = http.client.HTTPConnection(str(proxy.hostname), proxy_port, timeout=timeout)
                self._absolute = f"http://{self._url.netloc.rpartition('@')[2]}"
                self._proxy_headers = headers
        made.connect()
        self.stats.connections += 1
        self._connection = made
        return made

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.settings.ca_path)
        if not self.settings.validate_certs:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def encode_query(query: t.Mapping[str, t.Any]) -> str:
    """Encode parameters for a URL: None is left out, booleans are written the JSON way."""
    pairs = []
    for name, value in query.items():
        if value is not None:
            pairs.append((name, ("true" if value else "false") if isinstance(value, bool) else str(value)))
    return urllib.parse.urlencode(pairs)


def decode(body: bytes) -> t.Any:
    """Return the JSON document in `body`, or None: error pages of proxies are HTML."""
    try:
        return json.loads(body) if body else None
    except ValueError:
        return None


def plain_text(body: bytes, limit: int = 200) -> str:
    """Return the readable words of an HTML or text body on one line, `limit` characters at most."""
    text = body.decode("utf-8", "replace")
    words, inside = [], False
    for character in text:
        if character == "<":
            inside = True
            words.append(" ")
        elif character == ">" and inside:
            inside = False
        elif not inside:
            words.append(character)
    line = " ".join("".join(words).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def describe(error: Exception) -> str:
    """Say what went wrong on the wire; some exceptions have no text of their own."""
    if isinstance(error, http.client.RemoteDisconnected):
        return "the server closed the connection without an answer"
    if isinstance(error, TimeoutError):
        return "timed out"
    return f"{error}" or type(error).__name__


def retry_after(headers: t.Mapping[str, str]) -> float | None:
    """Return the seconds that a Retry-After header asks for (a number or a date), or None."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    return max(0.0, when.timestamp() - time.time())


def proxy_for(scheme: str, host: str) -> urllib.parse.SplitResult | None:
    """Return the proxy that the environment names for this host, or None (`no_proxy` is respected)."""
    found = urllib.request.getproxies().get(scheme)
    if not found or urllib.request.proxy_bypass(host):
        return None
    return urllib.parse.urlsplit(found if "://" in found else f"http://{found}")


def proxy_headers(proxy: urllib.parse.SplitResult) -> dict[str, str]:
    """Return the headers that sign in to the proxy, if its URL carries a user."""
    if not proxy.username:
        return {}
    user = f"{urllib.parse.unquote(proxy.username)}:{urllib.parse.unquote(proxy.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(user.encode()).decode()}
