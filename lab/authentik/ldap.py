"""The LDAP outpost: a read-only directory of the server's users and groups, for bind and search.

It knows what the server's API tells it and nothing else. A bind signs in through the bind flow, as a browser would;
a search is answered from the users and groups of that moment. The protocol's messages are those of ldap3.
"""

from __future__ import annotations

import http.client
import http.server
import json
import logging
import os
import signal
import socket
import socketserver
import ssl
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ldap3.protocol import rfc4511
from ldap3.utils.dn import escape_rdn, parse_dn
from pyasn1.codec.ber import decoder, encoder
from pyasn1.error import PyAsn1Error, SubstrateUnderrunError
from pyasn1.type.namedtype import NamedType, NamedTypes

from lab.authentik.configuration import STAND_IN, Configuration, Mistake

log = logging.getLogger(__name__)

Json = dict[str, Any]
Entry = tuple[str, dict[str, list[str]]]

_OK, _INVALID_CREDENTIALS, _NO_ACCESS, _NO_SUCH_OBJECT, _UNAVAILABLE, _UNWILLING = 0, 49, 50, 32, 52, 53
_OWN_USER = "goauthentik.io/ldap/user"
_LONGEST = 1 << 20


def _complete_filters() -> None:
    """Make ldap3's filters recursive: it only encodes requests, and leaves out what decoding a nested filter needs."""
    kinds = dict(rfc4511.Filter.componentType.items())
    kinds["notFilter"] = rfc4511.Not()
    rfc4511.Filter.componentType = NamedTypes(*(NamedType(name, kind) for name, kind in kinds.items()))
    for name in ("and", "or"):
        kinds[name].__dict__["componentType"] = rfc4511.Filter()
    kinds["notFilter"].__dict__["componentType"] = NamedTypes(NamedType("innerNotFilter", rfc4511.Filter()))
    parts = {**dict(rfc4511.SearchRequest.componentType.items()), "filter": rfc4511.Filter()}
    rfc4511.SearchRequest.componentType = NamedTypes(*(NamedType(name, part) for name, part in parts.items()))
    request = rfc4511.ProtocolOp.componentType["searchRequest"].asn1Object
    request.__dict__["componentType"] = rfc4511.SearchRequest.componentType


_complete_filters()


@dataclass
class Server:
    """The Authentik server behind this outpost."""

    url: str
    token: str
    insecure: bool

    @classmethod
    def of(cls, environment: dict[str, str]) -> Server:
        """Read AUTHENTIK_HOST, AUTHENTIK_TOKEN and AUTHENTIK_INSECURE.

        Raises:
            Mistake: one is missing or wrong.
        """
        url, token = environment.get("AUTHENTIK_HOST", ""), environment.get("AUTHENTIK_TOKEN", "")
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise Mistake(f"AUTHENTIK_HOST is {url!r}; it has to be the server's URL")
        if not token:
            raise Mistake("AUTHENTIK_TOKEN is missing")
        return cls(url.rstrip("/"), token, environment.get("AUTHENTIK_INSECURE", "false").lower() == "true")

    def send(
        self, method: str, path: str, body: Json | None = None, **headers: str
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """Send a request; return status, JSON document and headers.

        Raises:
            OSError: the server does not answer.
        """
        url = urllib.parse.urlsplit(self.url)
        if url.scheme == "https":
            context = ssl.create_default_context()
            if self.insecure:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            made: http.client.HTTPConnection = http.client.HTTPSConnection(url.netloc, timeout=20, context=context)
        else:
            made = http.client.HTTPConnection(url.netloc, timeout=20)
        try:
            sent = {"Content-Type": "application/json", **headers} if body else headers
            made.request(method, url.path + path, json.dumps(body) if body else None, sent)
            answer = made.getresponse()
            content = answer.read()
            kind = answer.headers.get_content_type()
            return answer.status, json.loads(content) if kind == "application/json" else None, answer.headers
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(str(error)) from None
        finally:
            made.close()

    def all(self, path: str) -> list[Json]:
        """Return every object of a list.

        Raises:
            OSError: the server does not answer, or does not let this outpost in.
        """
        found: list[Json] = []
        page = 1
        while page:
            status, document, _headers = self.send(
                "GET", f"/api/v3/{path}?page_size=100&page={page}", Authorization=f"Bearer {self.token}"
            )
            if status != 200 or not isinstance(document, dict):
                raise OSError(f"{path}: the server answers {status} {document}")
            found += document["results"]
            page = int(document["pagination"]["next"])
        return found

    def version(self) -> str:
        """Return the release of the server.

        Raises:
            OSError: the server does not answer, or does not let this outpost in.
        """
        status, document, _headers = self.send("GET", "/api/v3/admin/version/", Authorization=f"Bearer {self.token}")
        if status != 200:
            raise OSError(f"the server answers {status} {document}")
        return str(document["version_current"])

    def sign_in(self, flow: str, username: str, password: str) -> str:
        """Walk through a bind flow; return the session's cookie, "" when it is refused.

        Raises:
            OSError: the server does not answer as a flow does.
        """
        cookie, path = "", f"/api/v3/flows/executor/{flow}/?query="
        answers = {
            "ak-stage-identification": {"uid_field": username},
            "ak-stage-password": {"password": password},
        }
        body: Json | None = None
        for _number in range(20):
            status, document, headers = self.send(
                "POST" if body else "GET", path, body, **({"Cookie": cookie} if cookie else {})
            )
            for line in headers.get_all("Set-Cookie") or []:
                cookie = line.partition(";")[0]
            if status == 302:
                body = None
                continue
            if status != 200:
                raise OSError(f"the bind flow answers {status}")
            component = document["component"]
            if component == "xak-flow-redirect":
                return cookie
            if component not in answers or document.get("response_errors"):
                return ""
            body = {"component": component, **answers[component]}
        raise OSError("the bind flow does not end")

    def access(self, provider: int, cookie: str) -> tuple[bool, bool]:
        """Tell whether a signed-in user may use the application, and whether he may search the whole directory."""
        _status, document, _headers = self.send("GET", f"/api/v3/outposts/ldap/{provider}/check_access/", Cookie=cookie)
        document = document or {}
        return bool(document.get("access", {}).get("passing")), bool(document.get("has_search_permission"))


@dataclass
class Bound:
    """Who is bound on a connection, and how much of the directory he sees."""

    dn: str = ""
    everything: bool = False


@dataclass
class Directory:
    """The directory of one LDAP provider."""

    server: Server
    provider: Json

    @property
    def base(self) -> str:
        """The base DN."""
        return str(self.provider["base_dn"])

    def bind(self, dn: str, password: str) -> Bound | None:
        """Return who is bound with these credentials, None when they are wrong or the application is not his."""
        name = parts[0][1] if (parts := parse_dn(dn)) and parts[0][0].lower() == "cn" else ""
        if not name or not password or _normal(dn) != _normal(self.user_dn(name)):
            return None
        cookie = self.server.sign_in(self.provider["bind_flow_slug"], name, password)
        if not cookie:
            return None
        passing, everything = self.server.access(self.provider["pk"], cookie)
        return Bound(dn, everything) if passing else None

    def user_dn(self, name: str) -> str:
        """Return the DN of a user."""
        return f"cn={escape_rdn(name)},ou=users,{self.base}"

    def group_dn(self, name: str) -> str:
        """Return the DN of a group."""
        return f"cn={escape_rdn(name)},ou=groups,{self.base}"

    def entries(self) -> Iterator[Entry]:
        """Yield every entry."""
        yield self.base, {"objectClass": ["top", "domain"], "namingContexts": [self.base]}
        for name in ("users", "groups"):
            yield f"ou={name},{self.base}", {"objectClass": ["top", "organizationalUnit"], "ou": [name]}
        users = self.server.all("core/users/")
        groups = self.server.all("core/groups/")
        for user in users:
            yield self.user_dn(user["username"]), self._user(user)
        for group in groups:
            yield self.group_dn(group["name"]), self._group(group, users)

    def _user(self, user: Json) -> dict[str, list[str]]:
        number = str(self.provider["uid_start_number"] + user["pk"])
        groups = user["groups_obj"] or []
        return {
            "objectClass": [
                "top",
                "person",
                "organizationalPerson",
                "inetOrgPerson",
                "user",
                "posixAccount",
                _OWN_USER,
            ],
            "cn": [user["username"]],
            "sAMAccountName": [user["username"]],
            "uid": [user["uid"]],
            "name": [user["name"]],
            "displayName": [user["name"]],
            "sn": [user["name"]],
            "mail": [user["email"]] if user["email"] else [],
            "memberOf": [self.group_dn(group["name"]) for group in groups],
            "uidNumber": [number],
            "gidNumber": [number],
            "homeDirectory": [f"/home/{user['username']}"],
            "ak-active": [str(user["is_active"]).lower()],
            "ak-superuser": [str(user["is_superuser"]).lower()],
            **{name: [str(value)] for name, value in user["attributes"].items() if isinstance(value, str | int)},
        }

    def _group(self, group: Json, users: list[Json]) -> dict[str, list[str]]:
        members = [self.user_dn(user["username"]) for user in users if group["pk"] in user["groups"]]
        return {
            "objectClass": ["top", "group", "groupOfNames", "goauthentik.io/ldap/group"],
            "cn": [group["name"]],
            "sAMAccountName": [group["name"]],
            "uid": [group["pk"]],
            "gidNumber": [str(self.provider["gid_start_number"] + group["num_pk"])],
            "member": members,
        }


def _normal(dn: str) -> list[tuple[str, str]]:
    return [(name.lower(), value.lower()) for name, value, _separator in parse_dn(dn, strip=True)]


def _below(dn: str, base: str, scope: str) -> bool:
    """Tell whether an entry is in a scope of a search."""
    mine, root = _normal(dn), _normal(base) if base else []
    deeper = len(mine) - len(root)
    if deeper < 0 or mine[deeper:] != root:
        return False
    return {"baseObject": deeper == 0, "singleLevel": deeper == 1}.get(scope, True)


def _text(value: Any) -> str:
    return bytes(value).decode("utf-8", "replace")


def matches(entry: Entry, condition: Any) -> bool:  # noqa: PLR0911 - a table of kinds
    """Tell whether an entry fits a filter, compared without regard to case."""
    kind, value = condition.getName(), condition.getComponent()
    if kind == "and":
        return all(matches(entry, each) for each in value)
    if kind == "or":
        return any(matches(entry, each) for each in value)
    if kind == "notFilter":
        return not matches(entry, value["innerNotFilter"])
    have = {name.lower(): [text.lower() for text in texts] for name, texts in entry[1].items()}
    if kind == "present":
        return bool(have.get(_text(value).lower()))
    if kind == "substringFilter":
        return any(_fits(text, value["substrings"]) for text in have.get(_text(value["type"]).lower(), []))
    if kind in ("equalityMatch", "approxMatch"):
        wanted = _text(value["assertionValue"]).lower()
        return wanted in have.get(_text(value["attributeDesc"]).lower(), [])
    return False


def _fits(text: str, parts: Any) -> bool:
    for part in parts:
        kind, piece = part.getName(), _text(part.getComponent()).lower()
        at = text.find(piece)
        if at < 0 or (kind == "initial" and at > 0) or (kind == "final" and not text.endswith(piece)):
            return False
        text = text[at + len(piece) :] if kind != "final" else ""
    return True


@dataclass
class Conversation:
    """The requests of one connection."""

    directories: list[Directory]
    send: Callable[[Any, str, Any], None]
    bound: Bound = field(default_factory=Bound)

    def handle(self, message: Any) -> bool:
        """Answer a message; False ends the connection."""
        number, operation = message["messageID"], message["protocolOp"]
        kind, request = operation.getName(), operation.getComponent()
        if kind == "bindRequest":
            self.send(number, "bindResponse", _result(rfc4511.BindResponse(), self._outcome(self._bind, request)))
        elif kind == "searchRequest":
            code = self._outcome(self._search, number, request)
            self.send(number, "searchResDone", _result(rfc4511.SearchResultDone(), code))
        elif kind == "extendedReq":
            self.send(number, "extendedResp", _result(rfc4511.ExtendedResponse(), _UNWILLING))
        elif kind != "abandonRequest":
            # Unbind; and whatever writes has no place here.
            return False
        return True

    @staticmethod
    def _outcome(handler: Callable[..., int], *arguments: Any) -> int:
        try:
            return handler(*arguments)
        except OSError as error:
            log.error("the server does not answer: %s", error)
            return _UNAVAILABLE

    def _bind(self, request: Any) -> int:
        dn = _text(request["name"])
        self.bound = Bound()
        if request["authentication"].getName() != "simple":
            return 7
        password = _text(request["authentication"].getComponent())
        if not dn and not password:
            return _OK
        for directory in self.directories:
            if _below(dn, directory.base, "wholeSubtree"):
                found = directory.bind(dn, password)
                if found:
                    self.bound = found
                    log.info("bound: %s", dn)
                    return _OK
        log.info("not bound: %s", dn)
        return _INVALID_CREDENTIALS

    def _search(self, number: Any, request: Any) -> int:
        base, scope = _text(request["baseObject"]), request["scope"].prettyPrint()
        wanted = [_text(name) for name in request["attributes"]]
        if not base and scope == "baseObject":
            root = {"objectClass": ["top"], "namingContexts": [each.base for each in self.directories]}
            root |= {"supportedLDAPVersion": ["3"], "vendorName": [STAND_IN]}
            self._entry(number, ("", root), wanted)
            return _OK
        if not self.bound.dn:
            return _NO_ACCESS
        for directory in self.directories:
            if not _below(base, directory.base, "wholeSubtree"):
                continue
            for entry in directory.entries():
                mine = _normal(entry[0]) == _normal(self.bound.dn)
                if (
                    (mine or self.bound.everything)
                    and _below(entry[0], base, scope)
                    and matches(entry, request["filter"])
                ):
                    self._entry(number, entry, wanted)
            return _OK
        return _NO_SUCH_OBJECT

    def _entry(self, number: Any, entry: Entry, wanted: list[str]) -> None:
        names = {name.lower() for name in wanted} - {"+", "1.1"}
        response = rfc4511.SearchResultEntry()
        response["object"] = entry[0].encode()
        attributes = rfc4511.PartialAttributeList()
        for name, texts in entry[1].items():
            if not texts or not (not names or "*" in names or name.lower() in names) or wanted == ["1.1"]:
                continue
            attribute = rfc4511.PartialAttribute()
            attribute["type"] = name
            values = rfc4511.Vals()
            for text in texts:
                values[len(values)] = text.encode()
            attribute["vals"] = values
            attributes[len(attributes)] = attribute
        response["attributes"] = attributes
        self.send(number, "searchResEntry", response)


def _result(response: Any, code: int) -> Any:
    response["resultCode"] = code
    response["matchedDN"] = ""
    response["diagnosticMessage"] = ""
    return response


class Handler(socketserver.BaseRequestHandler):
    """Reads messages and writes answers."""

    server: Listener

    def handle(self) -> None:
        """Serve one connection."""
        conversation = Conversation(self.server.directories, self._send)
        waiting = b""
        while len(waiting) < _LONGEST:
            try:
                message, waiting = decoder.decode(waiting, asn1Spec=rfc4511.LDAPMessage())
            except SubstrateUnderrunError:
                more = self.request.recv(1 << 16)
                if not more:
                    return
                waiting += more
                continue
            except PyAsn1Error as error:
                log.warning("hung up: a message cannot be read: %.200s", error)
                return
            if not conversation.handle(message):
                return

    def _send(self, number: Any, name: str, response: Any) -> None:
        message = rfc4511.LDAPMessage()
        message["messageID"] = int(number)
        operation = rfc4511.ProtocolOp()
        operation[name] = response
        message["protocolOp"] = operation
        self.request.sendall(encoder.encode(message))


class Listener(socketserver.ThreadingTCPServer):
    """Listens for LDAP."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], directories: list[Directory]) -> None:
        self.directories = directories
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Handler)


class Health(http.server.BaseHTTPRequestHandler):
    """Answers the health check, and with metrics."""

    def do_GET(self) -> None:
        """Answer one request."""
        if self.path == "/outpost.goauthentik.io/ping":
            self.send_response(204)
            self.end_headers()
            return
        content = b"authentik_outpost_info 1\n" if self.path == "/metrics" else b""
        self.send_response(200 if content else 404)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815 - the base class wants this name

    def log_message(self, format: str, *_arguments: object) -> None:  # noqa: A002 - the base class's name
        """Keep quiet."""


def connect(server: Server, version: str) -> list[Directory]:
    """Wait for the server; return the directories of this outpost.

    Raises:
        Mistake: the server is of another release.
    """
    while True:
        try:
            theirs = server.version()
            if theirs != version:
                raise Mistake(f"the server is {theirs}, this outpost is {version}: both have to be the same")
            outposts = [row for row in server.all("outposts/instances/") if row["type"] == "ldap"]
            mine = {pk for row in outposts for pk in row["providers"]}
            found = [Directory(server, row) for row in server.all("outposts/ldap/") if row["pk"] in mine]
            if found:
                return found
            log.warning("this outpost has no provider yet")
        except OSError as error:
            log.warning("waiting for the server: %s", error)
        time.sleep(1)


def main(arguments: list[str]) -> int:
    """Run the outpost, or ask it for its health; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    configuration = Configuration(dict(os.environ))
    try:
        metrics = configuration.listen("METRICS", 9300)
        if arguments == ["healthcheck"]:
            return _health(metrics[1])
        log.warning("%s %s, LDAP outpost", STAND_IN, configuration.version)
        # In a container this is process 1, which no signal ends that it does not handle.
        signal.signal(signal.SIGTERM, lambda *_arguments: sys.exit(0))
        directories = connect(Server.of(dict(os.environ)), configuration.version)
        listener = Listener(configuration.listen("LDAP", 3389), directories)
    except Mistake as mistake:
        log.error("%s", mistake)
        return 1
    health = http.server.ThreadingHTTPServer((metrics[0].replace("::", "0.0.0.0"), metrics[1]), Health)  # noqa: S104
    threading.Thread(target=health.serve_forever, daemon=True).start()
    log.info("listening on %s for %s", listener.server_address, [directory.base for directory in directories])
    listener.serve_forever()
    return 0


def _health(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
    try:
        connection.request("HEAD", "/outpost.goauthentik.io/ping")
        return 0 if connection.getresponse().status == 204 else 1
    except OSError:
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
