"""The server: what answers on port 9000."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import psycopg
from ansible_collections.kitestacks.homelab.tests.fakes._server import Request as ApiRequest
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server
from werkzeug.utils import redirect
from werkzeug.wrappers import Request, Response

from lab.authentik import database, flows, oidc, pages, proxy, sessions
from lab.authentik.configuration import STAND_IN, Configuration
from lab.authentik.visit import Visit

log = logging.getLogger(__name__)

_NOT_FOUND = "<!DOCTYPE html>\n<html><head><title>authentik</title></head><body>Not Found</body></html>"
_RULES = Map(
    [
        Rule("/-/health/live/", endpoint="healthy"),
        Rule("/-/health/ready/", endpoint="healthy"),
        Rule("/outpost.goauthentik.io/ping", endpoint="ping"),
        Rule("/api/v3/flows/executor/<slug>/", endpoint="executor"),
        Rule("/api/v3/outposts/ldap/<int:pk>/check_access/", endpoint="check_access"),
        Rule("/api/v3/<path:path>", endpoint="api"),
        Rule("/if/flow/<slug>/", endpoint="flow"),
        Rule("/if/user/", endpoint="home"),
        Rule("/", endpoint="home"),
        Rule("/application/o/authorize/", endpoint="authorize"),
        Rule("/application/o/token/", endpoint="token", methods=["POST"]),
        Rule("/application/o/userinfo/", endpoint="userinfo"),
        Rule("/application/o/introspect/", endpoint="introspect", methods=["POST"]),
        Rule("/application/o/revoke/", endpoint="revoke", methods=["POST"]),
        Rule("/application/o/<slug>/.well-known/openid-configuration", endpoint="discovery"),
        Rule("/application/o/<slug>/jwks/", endpoint="jwks"),
        Rule("/application/o/<slug>/end-session/", endpoint="end_session"),
    ],
    strict_slashes=False,
    redirect_defaults=False,
    merge_slashes=False,
)


def _healthy(_visit: Visit) -> Response:
    # The connection is made by then: that is all that Authentik's check asks for, too. It says nothing of flows,
    # nor of whether the database can be written to.
    return Response(status=200)


def _ping(_visit: Visit) -> Response:
    return Response(status=204)


def _api(visit: Visit, path: str) -> Response:
    request = visit.request
    raw = request.get_data()
    try:
        body = json.loads(raw) if raw else None
    except ValueError:
        body = raw.decode("utf-8", "replace")
    headers = {name.lower(): value for name, value in request.headers.items()}
    slash = "/" if request.path.endswith("/") and not path.endswith("/") else ""
    reply = visit.api.handle(
        ApiRequest(request.method, f"/{path}{slash}", request.args.to_dict(), headers, body),
    )
    if reply.status >= 400:
        # What was written before the refusal does not stay, as in a transaction of Django.
        visit.connection.rollback()
    content, kind = reply.encode()
    return Response(content, reply.status, headers=reply.headers, content_type=kind)


def _flow(visit: Visit, slug: str) -> Response:
    found = next((row for row in visit.api.store.rows("flows") if row["slug"] == slug), None)
    return pages.flow(found["title"]) if found else Response(_NOT_FOUND, 404, content_type="text/html")


def _home(visit: Visit) -> Response:
    if visit.user is None:
        return redirect("/if/flow/default-authentication-flow/?next=/if/user/")
    return pages.home(visit.user["username"])


def _check_access(visit: Visit, pk: int) -> Response:
    """Tell an LDAP outpost what the user whose session it holds may do."""
    application = visit.api.application_of(pk)
    if visit.user is None or application is None:
        return Response(
            '{"detail": "Authentication credentials were not provided."}', 403, content_type="application/json"
        )
    roles = {pk for group in [visit.user, *visit.api.groups(visit.user, inherited=True)] for pk in group["roles"]}
    granted = any(
        row["role"] in roles and row["permission"].endswith(".search_full_directory") and row["object_pk"] == str(pk)
        for row in visit.api.store.rows("permissions")
    )
    superuser = any(group["is_superuser"] for group in visit.api.groups(visit.user, inherited=True))
    document = {
        "access": {"passing": visit.api.may_use(application, visit.user), "messages": []},
        "has_search_permission": granted or superuser,
    }
    return Response(json.dumps(document), content_type="application/json")


_ENDPOINTS: dict[str, Callable[..., Response]] = {
    "healthy": _healthy,
    "ping": _ping,
    "executor": flows.show,
    "check_access": _check_access,
    "api": _api,
    "flow": _flow,
    "home": _home,
    "authorize": oidc.authorize,
    "token": oidc.token,
    "userinfo": oidc.userinfo,
    "introspect": oidc.introspect,
    "revoke": oidc.revoke,
    "discovery": oidc.discovery,
    "jwks": oidc.jwks,
    "end_session": oidc.end_session,
}


class Site:
    """The WSGI application."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.requests = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Answer one request."""
        self.requests += 1
        request = Request(environ)
        response = self.answer(request)
        response.headers.setdefault("X-Powered-By", STAND_IN)  # a proxied application has its own word
        return response(environ, start_response)

    def answer(self, request: Request) -> Response:
        """Answer one request; what Authentik's own code raises is 500 for a GET, and an empty 405 for a write."""
        try:
            if self.configuration.needs_redis:
                sessions.RedisStore(self.configuration).ping()
            with database.connect(self.configuration) as connection:
                visit = Visit(request, self.configuration, connection)
                found = proxy.answer(visit) or self._route(visit)
                if isinstance(found, Response):
                    visit.store_session(found)
            return found if isinstance(found, Response) else found.send()
        except ConnectionAbortedError:
            raise
        except Exception as error:  # as Django does, and with its answers
            level = logging.WARNING if isinstance(error, psycopg.Error) else logging.ERROR
            log.log(level, "%s %s: %s", request.method, request.path, str(error).strip(), exc_info=level > 30)
            if request.method in ("GET", "HEAD"):
                page = "<!DOCTYPE html>\n<html><body>Server Error</body></html>"
                return Response(page, 500, content_type="text/html; charset=utf-8")
            return Response(b"", 405, headers={"Allow": "GET, HEAD, OPTIONS"}, content_type="text/html; charset=utf-8")

    def _route(self, visit: Visit) -> Response:
        adapter = _RULES.bind_to_environ(visit.request.environ)
        try:
            endpoint, values = adapter.match()
        except HTTPException as error:
            if (error.code or 404) == 405:
                return Response(b"", 405, content_type="text/html; charset=utf-8")
            return Response(_NOT_FOUND, 404, content_type="text/html; charset=utf-8")
        return _ENDPOINTS[endpoint](visit, **values)


class Metrics:
    """The WSGI application on port 9300."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Answer with the metrics, whoever asks."""
        request = Request(environ)
        if request.path != "/metrics":
            return Response(status=404)(environ, start_response)
        text = (
            "# HELP authentik_lab_info The stand-in and the release that it plays.\n# TYPE authentik_lab_info gauge\n"
            f'authentik_lab_info{{version="{self.site.configuration.version}"}} 1\n'
            "# HELP authentik_lab_requests_total Requests answered.\n# TYPE authentik_lab_requests_total counter\n"
            f"authentik_lab_requests_total {self.site.requests}\n"
        )
        return Response(text, content_type="text/plain; version=0.0.4")(environ, start_response)


class Handler(WSGIRequestHandler):
    """Speaks HTTP/1.1, and logs a line a request like the rest of the program."""

    protocol_version = "HTTP/1.1"

    def log_request(self, code: int | str = "-", _size: int | str = "-") -> None:
        """Log one request, without its query: there are codes and tokens in it."""
        path = self.path.partition("?")[0] if hasattr(self, "path") else "-"
        if not path.startswith("/-/health/"):
            log.info("%s %s %s %s", self.address_string(), self.command, path, code)

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Log what the server itself has to say."""
        log.log(getattr(logging, type.upper(), logging.INFO), message, *args)


def serve(application: Any, address: tuple[str, int]) -> BaseWSGIServer:
    """Serve an application in a thread of its own; return the server."""
    server = make_server(*address, application, threaded=True, request_handler=Handler)
    server.daemon_threads = True  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
