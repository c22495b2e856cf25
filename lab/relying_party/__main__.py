"""An application's sign-in without the application: `python -m lab.relying_party DIALECT [the dialect's flags]`.

It listens where the application does (KITE_LISTEN=ADDRESS:PORT moves it), answers its health path, and shows who is
signed in with which groups: as a page under `/`, as JSON under `/stand-in.json`.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import logging
import os
import secrets
import signal
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import jmespath
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from werkzeug.serving import make_server
from werkzeug.utils import redirect
from werkzeug.wrappers import Request, Response

from lab.relying_party.dialects import DIALECTS, Refused, Settings

log = logging.getLogger("relying-party")

Json = dict[str, Any]

_COOKIE = "stand_in_session"
_STAND_IN = "KiteStacks lab: a stand-in for {}, not {}. It signs people in and does nothing else."


class Failed(Exception):  # noqa: N818 - of a sign-in
    """A sign-in that failed; the text is shown."""


@dataclass
class Application:
    """The application: sessions are kept in memory, by the cookie's value."""

    settings: Settings
    sessions: dict[str, Json] = field(default_factory=dict)

    def __call__(self, environ: Json, start_response: Any) -> Any:
        """Answer one request."""
        request = Request(environ)
        try:
            response = self._answer(request)
        except Failed as failed:
            log.error("%s", failed)
            response = self._page(f"<h1>Sign-in failed</h1><p>{html.escape(str(failed))}</p>", 400)
        return response(environ, start_response)

    def provider(self) -> Json:
        """Return the provider's document, or the endpoints that were given instead.

        Raises:
            Failed: it cannot be had, or the provider calls itself something else.
        """
        settings = self.settings
        if not settings.discovery:
            return {
                "authorization_endpoint": settings.authorize_url,
                "token_endpoint": settings.token_url,
                "userinfo_endpoint": settings.userinfo_url,
            }
        document = _ask(settings.discovery)
        if settings.issuer and document.get("issuer") != settings.issuer:
            raise Failed(f"the issuer is {document.get('issuer')!r}; {settings.issuer!r} was expected")
        return document

    def _answer(self, request: Request) -> Response:  # noqa: PLR0911 - a table of addresses
        settings = self.settings
        if request.path == settings.health:
            return Response("{}", content_type="application/json")
        if request.path == settings.callback and ("code" in request.args or "error" in request.args):
            return self._back(request)
        if request.path == settings.start:
            return self._start()
        session = self.sessions.get(request.cookies.get(_COOKIE, ""), {})
        if request.path == "/stand-in.json":
            return Response(json.dumps({"stands_for": settings.application, "user": session.get("user")}))
        if request.path != "/":
            return self._page("<h1>Not found</h1>", 404)
        if "user" not in session:
            if settings.automatic:
                return redirect(settings.start)
            return self._page(f'<h1>{settings.application}</h1><p><a href="{settings.start}">Sign in</a></p>')
        user = session["user"]
        groups = "".join(f"<li>{html.escape(group)}</li>" for group in user["groups"])
        role = f"<p>Role: {html.escape(user['role'])}</p>" if user["role"] else ""
        return self._page(f"<h1>Signed in as {html.escape(user['name'])}</h1>{role}<ul>{groups}</ul>")

    def _start(self) -> Response:
        settings = self.settings
        key, verifier = secrets.token_urlsafe(24), secrets.token_urlsafe(48)
        session = {"state": secrets.token_urlsafe(24), "nonce": secrets.token_urlsafe(24), "verifier": verifier}
        self.sessions[key] = session
        query = {
            "client_id": settings.client_id,
            "response_type": "code",
            "redirect_uri": settings.root_url + settings.callback,
            "scope": settings.scopes,
            "state": session["state"],
            "nonce": session["nonce"],
        }
        if settings.pkce:
            digest = hashlib.sha256(verifier.encode()).digest()
            query["code_challenge"] = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            query["code_challenge_method"] = "S256"
        response = redirect(f"{self.provider()['authorization_endpoint']}?{urlencode(query)}")
        secure = settings.root_url.startswith("https")
        response.set_cookie(_COOKIE, key, httponly=True, secure=secure, samesite="Lax")
        return response

    def _back(self, request: Request) -> Response:
        settings, args = self.settings, request.args
        session = self.sessions.pop(request.cookies.get(_COOKIE, ""), {})
        if "error" in args:
            raise Failed(f"{args['error']}: {args.get('error_description', '')}")
        if not session.get("state") or args.get("state") != session["state"]:
            raise Failed("the state is not the one of this browser")
        provider = self.provider()
        form = {
            "grant_type": "authorization_code",
            "client_id": settings.client_id,
            "client_secret": settings.client_secret,
            "code": args["code"],
            "redirect_uri": settings.root_url + settings.callback,
        }
        if settings.pkce:
            form["code_verifier"] = session["verifier"]
        tokens = _ask(provider["token_endpoint"], form)
        claims = _ask(provider["userinfo_endpoint"], token=tokens["access_token"])
        if settings.discovery:
            claims = {**self._verified(provider, tokens.get("id_token", ""), session["nonce"]), **claims}
        key = secrets.token_urlsafe(24)
        self.sessions[key] = {"user": self._user(claims)}
        response = redirect("/")
        response.set_cookie(_COOKIE, key, httponly=True, secure=settings.root_url.startswith("https"), samesite="Lax")
        return response

    def _verified(self, provider: Json, token: str, nonce: str) -> Json:
        rules = jwt.JWTClaimsRegistry(
            iss={"essential": True, "value": provider["issuer"]},
            aud={"essential": True, "value": self.settings.client_id},
            nonce={"essential": True, "value": nonce},
            exp={"essential": True},
        )
        try:
            keys: Any = _ask(provider["jwks_uri"])
            found = jwt.decode(token, KeySet.import_key_set(keys), algorithms=["RS256"])
            rules.validate(found.claims)
        except (JoseError, ValueError, KeyError) as error:
            raise Failed(f"the id_token is not good: {error}") from None
        return dict(found.claims)

    def _user(self, claims: Json) -> Json:
        settings = self.settings
        groups = [str(group) for group in claims.get(settings.groups_claim, [])]
        role = "admin" if settings.admins and settings.admins in groups else ""
        if settings.role:
            role = str(jmespath.search(settings.role, claims) or "")
        name = claims.get("preferred_username") or claims.get("email") or claims["sub"]
        subject = str(claims[settings.subject_claim])
        return {"name": name, "email": claims.get("email", ""), "id": subject, "groups": groups, "role": role}

    def _page(self, body: str, status: int = 200) -> Response:
        name = self.settings.application
        foot = f"<footer>{_STAND_IN.format(name, name)}</footer>"
        head = f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{name}</title>'
        return Response(f"{head}{body}{foot}</html>", status, content_type="text/html; charset=utf-8")


def _ask(url: str, form: dict[str, str] | None = None, token: str = "") -> Json:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, urlencode(form).encode() if form else None, headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - http(s) only, see dialects
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        raise Failed(f"{url} answers {error.code}: {error.read().decode(errors='replace')[:300]}") from None
    except (OSError, ValueError) as error:
        raise Failed(f"{url}: {error}") from None


def main(arguments: list[str]) -> int:
    """Run the program; return its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    dialect = DIALECTS.get(arguments[0] if arguments else "")
    if dialect is None:
        log.error("usage: lab.relying_party %s ...", "|".join(DIALECTS))
        return 2
    try:
        application = Application(dialect(os.environ, arguments[1:]))
        if arguments[0] == "forgejo":
            application.provider()  # Forgejo reads the document when the provider is added, and at every start.
    except (Refused, Failed) as refused:
        log.error("%s", refused)
        return 1
    name = application.settings.application
    log.warning(_STAND_IN.format(name, name))
    # In a container this is process 1, which no signal ends that it does not handle.
    signal.signal(signal.SIGTERM, lambda *_arguments: sys.exit(0))
    host, _colon, port = os.environ.get("KITE_LISTEN", f"0.0.0.0:{application.settings.port}").rpartition(":")
    make_server(host, int(port), application, threaded=True).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
