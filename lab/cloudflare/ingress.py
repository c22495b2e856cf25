"""The connector's rules: which origin a request goes to, and carrying it there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
import urllib.parse
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from lab.cloudflare import http1, http2, protocol

log = logging.getLogger("connector")
_PORTS = {"http": 80, "https": 443}
_DURATION = re.compile(r"([0-9.]+)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_UNDERSTOOD = frozenset(
    {
        "caPool", "connectTimeout", "disableChunkedEncoding", "http2Origin", "httpHostHeader", "keepAliveConnections",
        "keepAliveTimeout", "matchSNItoHost", "noHappyEyeballs", "noTLSVerify", "originServerName",
        "tcpKeepAlive", "tlsTimeout",
    }
)  # fmt: skip
"""Keys of originRequest. Those that concern kept connections change nothing here: every request has its own."""


class ConfigurationError(ValueError):
    """A configuration that cannot be applied."""


def seconds(value: str | float) -> float:
    """Return seconds of a duration: a number, or text such as 1m30s.

    Raises:
        ConfigurationError: it is none.

    """
    if isinstance(value, (int, float)):
        return float(value)
    parts = _DURATION.findall(value)
    if "".join(number + unit for number, unit in parts) != value or not parts:
        raise ConfigurationError(f"{value!r} is no duration, such as 30s")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


@dataclass
class Rule:
    """One ingress rule. `status` is set for http_status:N, the other fields describe an http(s) origin."""

    hostname: str = ""
    path: re.Pattern[str] | None = None
    status: int = 0
    scheme: str = "http"
    host: str = ""
    port: int = 0
    connect_timeout: float = 30.0
    host_header: str = ""
    server_name: str = ""
    server_name_from_host: bool = False
    tls: ssl.SSLContext | None = None

    def matches(self, hostname: str, path: str) -> bool:
        """Tell whether a request is this rule's."""
        wanted = self.hostname
        named = wanted in ("", "*", hostname) or (wanted.startswith("*.") and hostname.endswith(wanted[1:]))
        return named and (self.path is None or self.path.search(path) is not None)


def _tls(options: dict[str, Any]) -> ssl.SSLContext:
    pool = options.get("caPool") or None
    try:
        context = ssl.create_default_context(cafile=pool)
    except OSError as wrong:
        raise ConfigurationError(f"caPool {pool}: {wrong}") from None
    if options.get("noTLSVerify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def parse(config: dict[str, Any]) -> list[Rule]:
    """Read a configuration as the edge pushes it.

    Raises:
        ConfigurationError: it cannot be applied; the message names the rule.

    """
    rules = []
    common = config.get("originRequest") or {}
    for number, item in enumerate(config.get("ingress") or [], 1):
        try:
            rules.append(_rule(item, {**common, **(item.get("originRequest") or {})}))
        except (ConfigurationError, re.error, ValueError) as wrong:
            raise ConfigurationError(f"rule #{number}: {wrong}") from None
    if not rules or rules[-1].hostname not in ("", "*") or rules[-1].path is not None:
        raise ConfigurationError("the last ingress rule must match all URLs")
    return rules


def _rule(item: dict[str, Any], options: dict[str, Any]) -> Rule:
    unknown = sorted(name for name in options if name not in _UNDERSTOOD)
    if unknown:
        raise ConfigurationError(f"this connector does not know originRequest {', '.join(unknown)}")
    service = str(item.get("service", ""))
    rule = Rule(
        hostname=str(item.get("hostname") or "").lower(),
        path=re.compile(item["path"]) if item.get("path") else None,
        connect_timeout=seconds(options.get("connectTimeout", 30)),
        host_header=options.get("httpHostHeader", ""),
        server_name=options.get("originServerName", ""),
        server_name_from_host=bool(options.get("matchSNItoHost")),
    )
    if service.startswith("http_status:"):
        rule.status = int(service.removeprefix("http_status:"))
        if not 100 <= rule.status <= 999:
            raise ConfigurationError(f"{rule.status} is no status")
        return rule
    url = urllib.parse.urlsplit(service)
    context = _tls(options) if url.scheme == "https" or options.get("caPool") else None
    if url.scheme not in _PORTS or not url.hostname:
        raise ConfigurationError(f"{service!r} is no service: http://host:port, https://host:port or http_status:N")
    if url.path not in ("", "/"):
        raise ConfigurationError(f"{service!r}: a service has no path")
    rule.scheme, rule.host, rule.port = url.scheme, url.hostname, url.port or _PORTS[url.scheme]
    rule.tls = context if url.scheme == "https" else None
    return rule


@dataclass
class Figures:
    """What the metrics say about requests."""

    total: int = 0
    errors: int = 0
    running: int = 0
    by_code: Counter[int] = field(default_factory=Counter)


class Ingress:
    """The configuration that is applied, and the requests that follow it."""

    def __init__(self, tag: str) -> None:
        """Begin without rules: every request gets 503. `tag` is the connector's id, which origins are told."""
        self.version = -1
        self.config: dict[str, Any] = {}
        self.figures = Figures()
        self._rules: list[Rule] = []
        self._tag = tag

    def update(self, version: int, config: dict[str, Any]) -> None:
        """Apply a configuration if it is newer.

        Raises:
            ConfigurationError: it cannot be applied; the one before stays.

        """
        if version <= self.version:
            return
        self._rules = parse(config)
        self.version, self.config = version, config

    async def carry(self, stream: http2.Stream) -> None:
        """Answer a request that came through the tunnel."""
        self.figures.total += 1
        self.figures.running += 1
        try:
            await self._carry(stream)
        finally:
            self.figures.running -= 1

    async def _carry(self, stream: http2.Stream) -> None:
        hostname = (stream.header(":authority") or "").rsplit(":", 1)[0].lower()
        path = urllib.parse.urlsplit(stream.header(":path") or "/").path
        rule = next((rule for rule in self._rules if rule.matches(hostname, path)), None)
        if rule is None or rule.status:
            status = rule.status if rule else 503
            self.figures.by_code[status] += 1
            await _answer(stream, status, [("content-length", "0")])
            await stream.end()
            return
        try:
            name = (hostname if rule.server_name_from_host else "") or rule.server_name or rule.host
            origin = await http1.Origin.open(rule.host, rule.port, rule.connect_timeout, rule.tls, name)
        except (OSError, ValueError) as wrong:
            await self._unreachable(stream, rule, wrong)
            return
        upload = None
        try:
            websocket = stream.header(protocol.UPGRADE) == protocol.WEBSOCKET
            await origin.send(
                stream.header(":method") or "GET", stream.header(":path") or "/", self._headers(stream, rule, websocket)
            )
            if not websocket:
                upload = asyncio.ensure_future(_upload(stream, origin))
            try:
                await origin.response()
            except OSError as wrong:
                await self._unreachable(stream, rule, wrong)
                return
            self.figures.by_code[origin.status] += 1
            await _answer(stream, origin.status, origin.headers)
            if origin.status == 101:  # raw bytes follow it only
                upload = asyncio.ensure_future(_upload(stream, origin))
            async for data in origin.body():
                await stream.write(data)
            await stream.end()
        except OSError:  # either end broke off: the other one is told
            stream.reset()
        finally:
            if upload is not None:
                upload.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await upload
            origin.close()

    def _headers(self, stream: http2.Stream, rule: Rule, websocket: bool) -> http2.Headers:
        kept = [
            (name, value)
            for name, value in protocol.end_to_end(stream.headers or [])
            if not name.startswith((":", "cf-cloudflared-")) and name not in ("host", "cookie")
        ]
        cookies = [value for name, value in stream.headers or [] if name == "cookie"]  # HTTP/2 may split them
        sized = any(name == "content-length" for name, _value in kept)
        headers = [
            ("Host", rule.host_header or stream.header(":authority") or ""),
            *kept,
            ("Cf-Warp-Tag-Id", self._tag),
        ]
        if cookies:
            headers.append(("Cookie", "; ".join(cookies)))
        if websocket:
            headers = [(name, value) for name, value in headers if name != "content-length"]
            return [*headers, ("Connection", "Upgrade"), ("Upgrade", "websocket")]
        if not sized and stream.has_body:
            headers.append(("Transfer-Encoding", "chunked"))
        return [*headers, ("Connection", "close")]

    async def _unreachable(self, stream: http2.Stream, rule: Rule, wrong: Exception) -> None:
        self.figures.errors += 1
        log.error(
            "Unable to reach the origin service: %s://%s:%s: %s",
            rule.scheme, rule.host, rule.port, wrong or type(wrong).__name__,
        )  # fmt: skip
        await stream.send_headers([(":status", "502"), (protocol.RESPONSE_META, protocol.FROM_CONNECTOR)], end=True)


async def _upload(stream: http2.Stream, origin: http1.Origin) -> None:
    """Send the body; where either end breaks off, whoever waits for the response finds out."""
    try:
        while data := await stream.read():
            await origin.write(data)
        if origin.status == 101:
            origin.close()  # the visitor is gone
        else:
            await origin.end()
    except http2.StreamError:
        origin.close()
    except OSError:
        pass


async def _answer(stream: http2.Stream, status: int, headers: http2.Headers) -> None:
    length = [(name, value) for name, value in headers if name.lower() == "content-length"]
    shown = [pair for pair in headers if not pair[0].lower().startswith(("cf-int-", "cf-cloudflared-", "cf-proxy-"))]
    await stream.send_headers(
        [
            (":status", "200" if status == 101 else str(status)),
            *length,
            (protocol.RESPONSE_HEADERS, protocol.pack_headers(shown)),
            (protocol.RESPONSE_META, protocol.FROM_ORIGIN),
        ]
    )
