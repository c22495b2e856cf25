"""What edge and connector agree on besides registration: header names and their serialisation, the token."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass

from lab.cloudflare.http1 import HOP_BY_HOP, Headers

EDGE_PORT = 7844
EDGE_NAME = "h2.cftunnel.com"
"""The name in the edge's certificate; connectors ask for it by SNI, and there is no ALPN."""
UPGRADE = "cf-cloudflared-proxy-connection-upgrade"
CONTROL, CONFIGURATION, WEBSOCKET = "control-stream", "update-configuration", "websocket"
RESPONSE_HEADERS = "cf-cloudflared-response-headers"
RESPONSE_META = "cf-cloudflared-response-meta"
FROM_ORIGIN, FROM_CONNECTOR = '{"src":"origin"}', '{"src":"cloudflared"}'


def _plain(text: str) -> str:
    return base64.b64encode(text.encode("latin-1")).decode().rstrip("=")


def _unplain(text: str) -> str:
    return base64.b64decode(text + "=" * (-len(text) % 4)).decode("latin-1")


def pack_headers(headers: Headers) -> str:
    """Return an origin's headers as one header value."""
    return ";".join(f"{_plain(name)}:{_plain(value)}" for name, value in headers)


def unpack_headers(text: str) -> Headers:
    """Return the headers of a value that `pack_headers` or cloudflared made.

    Raises:
        ValueError: it is none.

    """
    pairs = [pair.split(":") for pair in text.split(";") if pair]
    return [(_unplain(name), _unplain(value)) for name, value in pairs]


def from_connector(meta: str | None) -> bool:
    """Tell whether a response is the connector's own: it could not reach the origin."""
    try:
        return bool(meta) and json.loads(meta or "").get("src") == "cloudflared"
    except (ValueError, AttributeError):
        return False


def end_to_end(headers: Headers) -> Headers:
    """Return headers without those that concern one connection only."""
    named = {
        part.strip().lower() for name, value in headers if name.lower() == "connection" for part in value.split(",")
    }
    return [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP | named]


@dataclass(frozen=True)
class Token:
    """What a connector needs to register: account, tunnel and its secret (base64)."""

    account: str
    tunnel_id: str
    secret: str

    @classmethod
    def parse(cls, text: str) -> Token:
        """Read a token as the API gives it.

        Raises:
            ValueError: it is none.

        """
        try:
            document = json.loads(base64.b64decode(text.strip(), validate=True))
            return cls(str(document["a"]), str(document["t"]), str(document["s"]))
        except (binascii.Error, ValueError, KeyError, TypeError) as wrong:
            raise ValueError("the token is not valid: it must be the base64 text that the API gives") from wrong
