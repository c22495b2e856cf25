"""OpenID Connect: discovery per application, authorize, token, userinfo, keys, end of session."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import secrets
import time
import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey, RSAKey
from werkzeug.utils import redirect
from werkzeug.wrappers import Response

from lab.authentik import expressions, flows, pages
from lab.authentik.database import Json, forget, keep, kept, take
from lab.authentik.visit import Visit

log = logging.getLogger(__name__)

_ACR = "goauthentik.io/providers/oauth2/default"
_AUTHORIZE = {
    "request_not_supported": "Request objects are not supported.",
    "unsupported_response_type": "This response type is not supported.",
    "invalid_request": "The request is malformed, or asks for what the provider does not allow.",
    "login_required": "The visitor has to sign in.",
    "consent_required": "The visitor has to consent.",
}
_TOKEN = {
    "invalid_client": "Client, secret or redirect URI is wrong.",
    "invalid_grant": "The code, token or grant is invalid, expired, used up, or not allowed for this provider.",
    "invalid_scope": "The scope is more than what was granted.",
    "unsupported_grant_type": "The provider does not know this grant type.",
}


class TokenError(Exception):
    """A request for a token that is refused; the argument is OAuth's code for it."""


@dataclass
class Provider:
    """An OAuth2 provider with the application in front of it."""

    visit: Visit
    row: Json
    application: Json | None

    @classmethod
    def of_client(cls, visit: Visit, client_id: str) -> Provider | None:
        """Find a provider by its client id: OAuth2 providers, and the proxy providers that are one underneath."""
        for kind in ("oauth2", "proxy"):
            for row in visit.api.store.rows(kind):
                if row["client_id"] == client_id:
                    return cls(visit, _as_oauth2(row) if kind == "proxy" else row, visit.api.application_of(row["pk"]))
        return None

    @classmethod
    def of_application(cls, visit: Visit, slug: str) -> Provider | None:
        """Find the provider of an application."""
        application = next((row for row in visit.api.store.rows("applications") if row["slug"] == slug), None)
        if application is None or application["provider"] is None:
            return None
        kind, row = visit.api.provider(application["provider"])
        if kind == "ldap":
            return None
        return cls(visit, _as_oauth2(row) if kind == "proxy" else row, application)

    @property
    def issuer(self) -> str:
        """What `iss` is: the application's address, or the server's."""
        if self.row["issuer_mode"] == "global" or self.application is None:
            return self.visit.base_url
        return f"{self.visit.base_url}application/o/{self.application['slug']}/"

    @property
    def key(self) -> RSAKey | OctKey:
        """The signing key; without one, tokens are signed with the client's secret."""
        if self.row["signing_key"] is None:
            return OctKey.import_key(self.row["client_secret"])
        return signing_key(self.visit, self.row["signing_key"])

    @property
    def algorithm(self) -> str:
        """HS256 or RS256."""
        return "HS256" if self.row["signing_key"] is None else "RS256"

    @property
    def mappings(self) -> list[Json]:
        """The scope mappings that this provider knows."""
        store = self.visit.api.store
        return [found for pk in self.row["property_mappings"] if (found := store.get("scope_mappings", pk))]

    def allows(self, grant: str) -> bool:
        """Tell whether a grant type is allowed: since 2026.5 only those that the provider lists."""
        return self.visit.api.version < (2026, 5) or grant in self.row["grant_types"]

    def redirects_to(self, uri: str) -> bool:
        """Tell whether a redirect URI is one of the provider's, to the letter."""
        for entry in self.row["redirect_uris"]:
            if entry.get("redirect_uri_type", "authorization") != "authorization":
                continue
            if entry["matching_mode"] == "strict" and entry["url"] == uri:
                return True
            if entry["matching_mode"] == "regex" and re.fullmatch(entry["url"], uri):
                return True
        return False

    def subject(self, user: Json) -> str:
        """Return what `sub` is for a user."""
        columns = {"user_id": "pk", "user_uuid": "uuid", "user_username": "username", "user_email": "email"}
        if self.row["sub_mode"] == "user_upn":
            return str(user["attributes"].get("upn", user["uid"]))
        return str(user[columns.get(self.row["sub_mode"], "uid")])

    def claims(self, user: Json, scopes: list[str]) -> Json:
        """Return what the scope mappings say about a user."""
        api = self.visit.api
        shown = expressions.User.of(user, api.groups(user), api.groups(user, inherited=True))
        found: Json = {}
        for mapping in self.mappings:
            if mapping["scope_name"] in scopes:
                try:
                    found.update(expressions.evaluate(mapping["expression"], shown))
                except (expressions.Unknown, KeyError, TypeError) as error:
                    log.error("scope mapping %s: the stand-in cannot evaluate %s", mapping["name"], error)
        return found

    def tokens(self, user: Json, scopes: list[str], auth_time: int, nonce: str | None, *, refresh: bool) -> Json:
        """Make and store tokens; return the answer of the token endpoint."""
        seconds = duration(self.row["access_token_validity"])
        now = int(time.time())
        claims: Json = {
            "iss": self.issuer,
            "sub": self.subject(user),
            "aud": self.row["client_id"],
            "exp": now + seconds,
            "iat": now,
            "auth_time": auth_time,
            "acr": _ACR,
        }
        more = self.claims(user, scopes)
        access = self.sign(
            {**claims, "azp": self.row["client_id"], "uid": secrets.token_hex(20), "scope": " ".join(scopes)}
        )
        shown = more if self.row["include_claims_in_id_token"] else {}
        data = {
            "provider": self.row["pk"],
            "user": user["pk"],
            "scopes": scopes,
            "auth_time": auth_time,
            "nonce": nonce,
        }
        keep(self.visit.connection, "access_token", access, data, seconds)
        answer = {
            "access_token": access,
            "token_type": "Bearer",
            "scope": " ".join(scopes),
            "expires_in": seconds,
            "id_token": self.sign({**claims, **({"nonce": nonce} if nonce else {}), **shown}),
        }
        if refresh:
            token = secrets.token_urlsafe(48)
            keep(self.visit.connection, "refresh_token", token, data, duration(self.row["refresh_token_validity"]))
            answer["refresh_token"] = token
        return answer

    def sign(self, claims: Json) -> str:
        """Return a JWT."""
        header = {"alg": self.algorithm, "typ": "JWT"}
        if self.algorithm == "RS256":
            header["kid"] = self.key.thumbprint()
        return jwt.encode(header, claims, self.key)


def duration(text: str) -> int:
    """Return the seconds of a duration like `hours=1;minutes=5`."""
    units = {"weeks": 604800, "days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}
    parts = (part.partition("=") for part in text.split(";") if part)
    return int(sum(units.get(unit, 0) * float(value.replace(",", ".")) for unit, _equals, value in parts))


def signing_key(visit: Visit, certificate: str) -> RSAKey:
    """Return the private key of a certificate."""
    row = visit.connection.execute("SELECT value FROM secrets WHERE name = %s", [f"key {certificate}"]).fetchone()
    if row is None:
        raise LookupError(f"no key of certificate {certificate}")
    return RSAKey.import_key(row[0])


def _as_oauth2(row: Json) -> Json:
    host = row["external_host"].rstrip("/")
    uri = f"{host}/outpost.goauthentik.io/callback?X-authentik-auth-callback=true"
    return {
        **row,
        "redirect_uris": [{"matching_mode": "strict", "url": uri}],
        "client_secret": "",
        "client_type": "confidential",
        "grant_types": ["authorization_code"],
        "access_code_validity": "minutes=1",
        "issuer_mode": "per_provider",
        "signing_key": None,
    }


# -- what applications ask before anybody signs in -------------------------------------------------------------------


def discovery(visit: Visit, slug: str) -> Response:
    """Answer /application/o/SLUG/.well-known/openid-configuration."""
    provider = Provider.of_application(visit, slug)
    if provider is None:
        return pages.message("Not Found", "There is no such application.", 404)
    base = f"{visit.base_url}application/o/"
    scopes = [mapping["scope_name"] for mapping in provider.mappings]
    return _json(
        {
            "issuer": provider.issuer,
            "authorization_endpoint": f"{base}authorize/",
            "token_endpoint": f"{base}token/",
            "userinfo_endpoint": f"{base}userinfo/",
            "end_session_endpoint": f"{base}{slug}/end-session/",
            "introspection_endpoint": f"{base}introspect/",
            "revocation_endpoint": f"{base}revoke/",
            "jwks_uri": f"{base}{slug}/jwks/",
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": ["authorization_code", "refresh_token", "client_credentials", "password"],
            "id_token_signing_alg_values_supported": [provider.algorithm],
            "subject_types_supported": ["public"],
            "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
            "acr_values_supported": [_ACR],
            "scopes_supported": scopes if "openid" in scopes else [*scopes, "openid"],
            "request_parameter_supported": False,
            "claims_supported": ["sub", "iss", "aud", "exp", "iat", "auth_time", "acr", "nonce"],
            "claims_parameter_supported": False,
            "code_challenge_methods_supported": ["plain", "S256"],
        }
    )


def jwks(visit: Visit, slug: str) -> Response:
    """Answer /application/o/SLUG/jwks/; a provider without a signing key has none to show."""
    provider = Provider.of_application(visit, slug)
    if provider is None:
        return pages.message("Not Found", "There is no such application.", 404)
    if provider.algorithm == "HS256":
        return _json({})
    key = {**provider.key.as_dict(private=False), "kid": provider.key.thumbprint(), "alg": "RS256", "use": "sig"}
    return _json({"keys": [key]})


# -- authorize -------------------------------------------------------------------------------------------------------


def authorize(visit: Visit) -> Response:  # noqa: PLR0911 - a table of cases
    """Answer /application/o/authorize/."""
    query = visit.request.args
    if not query:
        return pages.message("Not Found", "Nothing was asked for.", 404)
    provider = Provider.of_client(visit, query.get("client_id", ""))
    if provider is None:
        return pages.message("Client ID Error", "The client identifier (client_id) is missing or unknown.", 400)
    uri = query.get("redirect_uri", "")
    if not provider.redirects_to(uri):
        log.warning("redirect URI %s is none of %s", uri, [entry["url"] for entry in provider.row["redirect_uris"]])
        return pages.message("Redirect URI Error", "The redirect URI is missing or is not one of this provider.", 400)
    prompts = query.get("prompt", "").split()
    if "offline_access" in _scopes(visit, provider):
        prompts.append("consent")  # to be signed in for a month is asked for, whatever the flow
    wrong = _wrong_request(provider, prompts)
    if wrong:
        return _back(uri, {"error": wrong, "error_description": _AUTHORIZE[wrong], "state": query.get("state", "")})
    if _has_to_sign_in_again(visit, prompts) or visit.user is None:
        return _to_sign_in(visit)
    if provider.application is None or not visit.api.may_use(provider.application, visit.user):
        log.info("user %s may not use %s", visit.user["username"], provider.row["name"])
        return pages.denied()
    if "asked_at" in visit.session.data:
        visit.session.set("asked_at", None)
    flow = visit.api.row("flows", provider.row["authorization_flow"])
    if flow["slug"].endswith("explicit-consent") or ("consent" in prompts and "none" not in prompts):
        if visit.session.data.get("consented") != visit.path:
            return _to_consent(visit, provider, provider.application, flow["slug"])
        visit.session.set("consented", None)
    return redirect(_answer(visit, provider, visit.user))


def _wrong_request(provider: Provider, prompts: list[str]) -> str:
    query = provider.visit.request.args
    if query.get("response_type") != "code":
        return "unsupported_response_type"
    if not provider.allows("authorization_code"):
        return "invalid_request"
    if query.get("code_challenge") and query.get("code_challenge_method", "plain") not in ("plain", "S256"):
        return "invalid_request"
    if "request" in query:
        return "request_not_supported"
    if "none" in prompts and provider.visit.user is None:
        return "login_required"
    return ""


def _has_to_sign_in_again(visit: Visit, prompts: list[str]) -> bool:
    session = visit.session
    oldest = visit.request.args.get("max_age", "")
    if oldest.isdecimal() and time.time() - session.data.get("auth_time", 0) > int(oldest):
        return True
    if "login" in prompts and session.data.get("asked_at", session.data.get("login")) == session.data.get("login"):
        # Nobody, or somebody who signed in before this request: the next sign-in is another one, and is enough.
        session.set("asked_at", session.data.get("login", ""))
        return True
    return False


def _to_sign_in(visit: Visit) -> Response:
    brand = next((row for row in visit.api.store.rows("brands") if row["default"]), None)
    flow = visit.api.store.get("flows", brand["flow_authentication"]) if brand else None
    if flow is None:
        return pages.message("Not Found", "There is no authentication flow yet.", 404)
    return redirect(f"/if/flow/{flow['slug']}/?{urlencode({'next': visit.path})}")


def _to_consent(visit: Visit, provider: Provider, application: Json, slug: str) -> Response:
    flows.start(
        visit,
        slug,
        stages=["consent", "grant"],
        to=visit.path,
        header=f"You're about to sign into {application['name']}.",
        permissions=[
            {"id": mapping["scope_name"], "name": mapping["description"] or mapping["scope_name"]}
            for mapping in provider.mappings
            if mapping["scope_name"] in _scopes(visit, provider)
        ],
    )
    return redirect(f"/if/flow/{slug}/?{visit.request.query_string.decode()}")


def _scopes(visit: Visit, provider: Provider) -> list[str]:
    known = [mapping["scope_name"] for mapping in provider.mappings]
    asked = visit.request.args.get("scope", "").split()
    return [scope for scope in asked if scope in known] if asked else known


def _answer(visit: Visit, provider: Provider, user: Json) -> str:
    query = visit.request.args
    code = uuid.uuid4().hex
    data = {
        "provider": provider.row["pk"],
        "user": user["pk"],
        "scopes": _scopes(visit, provider),
        "auth_time": visit.session.data["auth_time"],
        "nonce": query.get("nonce"),
        "challenge": query.get("code_challenge"),
        "method": query.get("code_challenge_method", "plain"),
    }
    keep(visit.connection, "code", code, data, duration(provider.row["access_code_validity"]))
    return _with(query["redirect_uri"], {"code": code, "state": query.get("state", "")})


def _back(uri: str, values: dict[str, str]) -> Response:
    return redirect(_with(uri, values))


def _with(uri: str, values: dict[str, str]) -> str:
    url = urlsplit(uri)
    return urlunsplit(url._replace(query=urlencode([*parse_qsl(url.query), *values.items()])))


# -- token -----------------------------------------------------------------------------------------------------------


def token(visit: Visit) -> Response:
    """Answer /application/o/token/."""
    try:
        form = visit.request.form
        client_id, client_secret = _client(visit)
        provider = Provider.of_client(visit, client_id)
        if provider is None:
            raise TokenError("invalid_client")
        grant = form.get("grant_type", "")
        answers = {
            "authorization_code": _redeem_code,
            "refresh_token": _refresh,
            "client_credentials": _client_credentials,
            "password": _client_credentials,
        }
        if not provider.allows(grant):
            raise TokenError("invalid_grant")
        if grant not in answers:
            raise TokenError("unsupported_grant_type")
        return _json(answers[grant](provider, form, client_secret), headers=_NO_STORE)
    except TokenError as error:
        code = str(error)
        log.warning("token refused: %s (client %s)", code, visit.request.form.get("client_id", ""))
        return _json({"error": code, "error_description": _TOKEN[code]}, 400, headers=_NO_STORE)


_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}


def _client(visit: Visit) -> tuple[str, str]:
    header = visit.request.headers.get("Authorization", "")
    if header.startswith("Basic "):
        try:
            client_id, _colon, secret = base64.b64decode(header[6:]).decode().partition(":")
        except ValueError:
            raise TokenError("invalid_client") from None
        return client_id, secret
    return visit.request.form.get("client_id", ""), visit.request.form.get("client_secret", "")


def _check_secret(provider: Provider, secret: str) -> None:
    if provider.row["client_type"] == "confidential" and not secrets.compare_digest(
        provider.row["client_secret"].encode(), secret.encode()
    ):
        raise TokenError("invalid_client")


def _redeem_code(provider: Provider, form: Any, secret: str) -> Json:
    _check_secret(provider, secret)
    if not form.get("code"):
        raise TokenError("invalid_grant")
    if not provider.redirects_to(form.get("redirect_uri", "")):
        raise TokenError("invalid_client")
    data = take(provider.visit.connection, "code", form["code"])
    if data is None or data["provider"] != provider.row["pk"]:
        raise TokenError("invalid_grant")
    verifier = form.get("code_verifier", "")
    if bool(verifier) != bool(data["challenge"]) or (verifier and _challenge(verifier, data) != data["challenge"]):
        raise TokenError("invalid_grant")
    return _issue(provider, data, refresh="offline_access" in data["scopes"])


def _challenge(verifier: str, data: Json) -> str:
    if data["method"] == "plain":
        return verifier
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def _refresh(provider: Provider, form: Any, secret: str) -> Json:
    _check_secret(provider, secret)
    data = take(provider.visit.connection, "refresh_token", form.get("refresh_token", ""))
    if data is None or data["provider"] != provider.row["pk"]:
        raise TokenError("invalid_grant")
    scopes = form.get("scope", "").split() or data["scopes"]
    if not set(scopes) <= set(data["scopes"]) or "offline_access" not in scopes:
        raise TokenError("invalid_scope")
    return _issue(provider, {**data, "scopes": scopes}, refresh=True)


def _issue(provider: Provider, data: Json, *, refresh: bool) -> Json:
    user = provider.visit.api.store.get("users", str(data["user"]))
    if user is None or not user["is_active"]:
        raise TokenError("invalid_grant")
    return provider.tokens(user, data["scopes"], data["auth_time"], data["nonce"], refresh=refresh)


def _client_credentials(provider: Provider, form: Any, secret: str) -> Json:
    if provider.application is None:
        raise TokenError("invalid_grant")
    provider.visit.api.store.lock()
    if form.get("username"):
        user = _by_app_password(provider, form["username"], form.get("password", ""))
    elif secrets.compare_digest(provider.row["client_secret"].encode(), secret.encode()):
        user = _generated_user(provider, provider.application)
    else:
        try:
            name, _colon, password = base64.b64decode(secret, validate=True).decode().partition(":")
        except ValueError:
            raise TokenError("invalid_grant") from None
        user = _by_app_password(provider, name, password)
    if not provider.visit.api.may_use(provider.application, user):
        raise TokenError("invalid_grant")
    known = [mapping["scope_name"] for mapping in provider.mappings]
    scopes = [scope for scope in form.get("scope", "").split() if scope in known]
    return provider.tokens(user, scopes, int(time.time()), None, refresh=False)


def _by_app_password(provider: Provider, name: str, password: str) -> Json:
    api = provider.visit.api
    user = next((row for row in api.store.rows("users") if row["username"] == name), None)
    if user is None or not api.is_app_password(user, password):
        raise TokenError("invalid_grant")
    return user


def _generated_user(provider: Provider, application: Json) -> Json:
    """Return the service account that an application signs in as itself, made at the first time."""
    api = provider.visit.api
    name = f"ak-{provider.row['name'][:128]}-client_credentials"
    found = next((row for row in api.store.rows("users") if row["username"] == name), None)
    return found or api.add(
        "users",
        username=name,
        name=f"Autogenerated user from application {application['name']} (client credentials)",
        path=f"goauthentik.io/apps/{application['slug']}",
        type="service_account",
        attributes={"goauthentik.io/user/generated": True},
    )


# -- afterwards ------------------------------------------------------------------------------------------------------


def userinfo(visit: Visit) -> Response:
    """Answer /application/o/userinfo/."""
    scheme, _blank, key = visit.request.headers.get("Authorization", "").partition(" ")
    data = kept(visit.connection, "access_token", key) if scheme.lower() == "bearer" else None
    row = visit.api.store.get("oauth2", str(data["provider"])) if data else None
    user = visit.api.store.get("users", str(data["user"])) if data else None
    if data is None or row is None or user is None or not user["is_active"]:
        return _json({}, 401, headers={"WWW-Authenticate": 'error="invalid_token"'})
    provider = Provider(visit, row, visit.api.application_of(row["pk"]))
    return _json({"sub": provider.subject(user), **provider.claims(user, data["scopes"])})


def introspect(visit: Visit) -> Response:
    """Answer /application/o/introspect/: what a token of this client is worth."""
    found = _token_of_client(visit)
    if found is None:
        return _json({"active": False})
    provider, _kind, data = found
    user = visit.api.row("users", data["user"])
    scope = " ".join(data["scopes"])
    return _json(
        {"active": True, "scope": scope, "client_id": provider.row["client_id"], "sub": provider.subject(user)}
    )


def revoke(visit: Visit) -> Response:
    """Answer /application/o/revoke/; a token that is not there is as good as revoked."""
    found = _token_of_client(visit)
    if found is not None:
        take(visit.connection, found[1], visit.request.form["token"])
    return _json({})


def _token_of_client(visit: Visit) -> tuple[Provider, str, Json] | None:
    try:
        client_id, secret = _client(visit)
        provider = Provider.of_client(visit, client_id)
        if provider is None:
            return None
        _check_secret(provider, secret)
    except TokenError:
        return None
    for kind in ("access_token", "refresh_token"):
        data = kept(visit.connection, kind, visit.request.form.get("token", ""))
        if data is not None and data["provider"] == provider.row["pk"]:
            return provider, kind, data
    return None


def end_session(visit: Visit, slug: str) -> Response:
    """Answer /application/o/SLUG/end-session/: walk through the invalidation flow, then back if that is allowed."""
    provider = Provider.of_application(visit, slug)
    if provider is None:
        return pages.message("Not Found", "There is no such application.", 404)
    values = visit.request.values
    hint, wanted = values.get("id_token_hint", ""), values.get("post_logout_redirect_uri", "")
    if hint:
        try:
            jwt.decode(hint, provider.key, algorithms=[provider.algorithm])
        except (JoseError, ValueError):
            return pages.message("Bad Request", "The id_token_hint is not one of this provider.", 400)
    allowed = [entry["url"] for entry in provider.row["redirect_uris"] if entry.get("redirect_uri_type") == "logout"]
    to = "/"
    if wanted and allowed:
        if not hint or wanted not in allowed:
            return pages.message("Bad Request", "The post_logout_redirect_uri is not one of this provider.", 400)
        state = values.get("state", "")
        to = wanted + (f"{'&' if '?' in wanted else '?'}state={quote(state, safe='')}" if state else "")
    if visit.user is not None:
        forget(visit.connection, "access_token", user=visit.user["pk"], provider=provider.row["pk"])
    flow = visit.api.row("flows", provider.row["invalidation_flow"])
    flows.start(visit, flow["slug"], stages=["logout"], to=to)
    return redirect(f"/if/flow/{flow['slug']}/")


def _json(document: Json, status: int = 200, *, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(document), status, headers=headers, content_type="application/json")
