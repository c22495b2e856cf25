"""The relying party: reads its dialect, refuses what is wrong, and signs a user in."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from lab.relying_party.__main__ import Application as RelyingParty
from lab.relying_party.__main__ import Failed
from lab.relying_party.dialects import DIALECTS, Refused

from ..conftest import ROOT, eventually
from .conftest import Application, Browser, free_port, send

AUTH = "https://auth.kitestacks.test/application/o"
GRAFANA = {
    "GF_SERVER_ROOT_URL": "https://grafana.kitestacks.test",
    "GF_AUTH_GENERIC_OAUTH_ENABLED": "true",
    "GF_AUTH_GENERIC_OAUTH_CLIENT_ID": "grafana",
    "GF_AUTH_GENERIC_OAUTH_CLIENT_SECRET": "secret",
    "GF_AUTH_GENERIC_OAUTH_SCOPES": "openid profile email",
    "GF_AUTH_GENERIC_OAUTH_AUTH_URL": f"{AUTH}/authorize/",
    "GF_AUTH_GENERIC_OAUTH_TOKEN_URL": f"{AUTH}/token/",
    "GF_AUTH_GENERIC_OAUTH_API_URL": f"{AUTH}/userinfo/",
    "GF_AUTH_GENERIC_OAUTH_USE_PKCE": "true",
    "GF_AUTH_GENERIC_OAUTH_ROLE_ATTRIBUTE_PATH": "contains(groups[*], 'authentik Admins') && 'Admin' || 'Viewer'",
}
BOOKSTACK = {
    "APP_URL": "https://wiki.kitestacks.test",
    "AUTH_METHOD": "oidc",
    "OIDC_CLIENT_ID": "wiki",
    "OIDC_CLIENT_SECRET": "secret",
    "OIDC_ISSUER": f"{AUTH}/wiki/",
    "OIDC_ISSUER_DISCOVER": "true",
}
FORGEJO = ["--name", "authentik", "--provider", "openidConnect", "--key", "gitforge", "--secret", "secret"]


def run(server, dialect: str, environment: dict[str, str], *arguments: str):
    """Start a relying party whose root URL is where it listens; return its port and process."""
    port = free_port()
    root = {"FORGEJO__server__ROOT_URL": "", "GF_SERVER_ROOT_URL": ""}
    root = dict.fromkeys(root, f"http://127.0.0.1:{port}/")
    popen = subprocess.Popen(
        [sys.executable, "-m", "lab.relying_party", dialect, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment, **root, "KITE_LISTEN": f"127.0.0.1:{port}"},
    )
    return port, popen


def reachable(port: int, path: str) -> bool:
    try:
        return send(port, "GET", path).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def address(servers):
    """How relying parties and browsers both reach the server: there is no edge here."""
    return f"127.0.0.1:{servers[0].port}"


def sign_in(servers, address: str, port: int, health: str, start: str, callback: str) -> dict:
    """Sign the administrator in, as a browser would; return whom the application sees."""
    eventually("the application listens", lambda: reachable(port, health))
    browser = Browser(servers[0], host=address)
    application = Browser(servers[0], host=f"127.0.0.1:{port}")
    application.ports = [port]
    target = application.send("GET", start).location
    assert urlsplit(target).netloc == address
    authorize = target.removeprefix(f"http://{address}")
    back = browser.authorize(authorize)
    assert back.location.startswith(f"http://127.0.0.1:{port}{callback}?code="), back
    done = application.send("GET", back.location.removeprefix(f"http://127.0.0.1:{port}"))
    assert done.status == 302, done.body
    page = application.send("GET", "/").body
    assert b"Signed in as akadmin" in page
    assert b"a stand-in for" in page
    return application.send("GET", "/stand-in.json").json()["user"]


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """Forwarded headers say https elsewhere; here everything is http."""
    from . import conftest  # noqa: PLC0415

    monkeypatch.setattr(conftest, "FORWARDED", {})


def test_grafana_signs_in_and_finds_the_role(servers, address):
    base = f"http://{address}/application/o"
    port, popen = run(
        servers[0],
        "grafana",
        {
            **GRAFANA,
            "GF_AUTH_GENERIC_OAUTH_CLIENT_SECRET": "secret-of-grafana",
            "GF_AUTH_GENERIC_OAUTH_AUTH_URL": f"{base}/authorize/",
            "GF_AUTH_GENERIC_OAUTH_TOKEN_URL": f"{base}/token/",
            "GF_AUTH_GENERIC_OAUTH_API_URL": f"{base}/userinfo/",
        },
    )
    try:
        uri = f"http://127.0.0.1:{port}/login/generic_oauth"
        Application.make(servers[0], "grafana", redirect_uris=[{"matching_mode": "strict", "url": uri}])
        user = sign_in(servers, address, port, "/api/health", "/login/generic_oauth", "/login/generic_oauth")
        assert (user["role"], user["groups"]) == ("Admin", ["authentik Admins"])
    finally:
        popen.kill()
        popen.wait()


def test_forgejo_verifies_the_id_token(servers, address):
    Application.make(servers[0], "gitforge")
    discovery = f"http://{address}/application/o/gitforge/.well-known/openid-configuration"
    flags = [*FORGEJO[:-1], "secret-of-gitforge", "--auto-discover-url", discovery, "--scopes", "email"]
    flags += ["--scopes", "profile", "--group-claim-name", "groups", "--admin-group", "authentik Admins"]
    port, popen = run(servers[0], "forgejo", {}, *flags)
    try:
        from .conftest import api, one  # noqa: PLC0415

        provider = one(servers[0], "providers/oauth2/", name="gitforge")
        uri = f"http://127.0.0.1:{port}/user/oauth2/authentik/callback"
        uris = {"redirect_uris": [{"matching_mode": "strict", "url": uri}]}
        api(servers[0], "PATCH", f"providers/oauth2/{provider['pk']}/", uris)
        start = "/user/oauth2/authentik"
        user = sign_in(servers, address, port, "/api/healthz", start, f"{start}/callback")
        assert user["role"] == "admin"
    finally:
        popen.kill()
        popen.wait()


def test_forgejo_does_not_start_without_its_provider():
    flags = [*FORGEJO, "--auto-discover-url", "http://127.0.0.1:1/.well-known/openid-configuration"]
    _port, popen = run(None, "forgejo", {}, *flags)
    assert popen.wait(20) == 1


def test_bookstack_compares_the_issuer_to_the_letter(servers, address):
    Application.make(servers[0], "book")
    issuer = f"http://{address}/application/o/book/"
    settings = replace(
        DIALECTS["bookstack"](BOOKSTACK, []), issuer=issuer, discovery=f"{issuer}.well-known/openid-configuration"
    )
    assert RelyingParty(settings).provider()["issuer"] == issuer
    with pytest.raises(Failed, match="was expected"):
        RelyingParty(replace(settings, issuer=issuer.rstrip("/"))).provider()


@pytest.mark.parametrize(
    ("dialect", "environment", "change", "message"),
    [
        ("grafana", GRAFANA, {"GF_AUTH_GENERIC_OAUTH_CLIENT_ID": ""}, "CLIENT_ID is missing"),
        ("grafana", GRAFANA, {"GF_AUTH_GENERIC_OAUTH_ENABLED": "yes"}, "true or false"),
        ("grafana", GRAFANA, {"GF_AUTH_GENERIC_OAUTH_CLIENT_SECRET__FILE": "/x"}, "are both set"),
        ("grafana", GRAFANA, {"GF_AUTH_GENERIC_OAUTH_TOKEN_URL": "auth.kitestacks.test"}, "has to be a URL"),
        ("grafana", GRAFANA, {"GF_SERVER_ROOT_URL": ""}, "GF_SERVER_ROOT_URL is missing"),
        ("bookstack", BOOKSTACK, {"AUTH_METHOD": "standard"}, "has to be oidc"),
        ("bookstack", BOOKSTACK, {"OIDC_ISSUER": "http://auth.kitestacks.test/"}, "https only"),
        ("bookstack", BOOKSTACK, {"OIDC_ISSUER_DISCOVER": "false"}, "has to be true"),
        ("bookstack", BOOKSTACK, {"OIDC_CLIENT_SECRET": "", "FILE__OIDC_CLIENT_SECRET": "/no/file"}, "No such file"),
        ("forgejo", {"FORGEJO__server__ROOT_URL": "https://git.kitestacks.test/"}, {}, "auto-discover-url"),
    ],
)
def test_a_wrong_value_is_refused(dialect, environment, change, message):
    with pytest.raises(Refused, match=message):
        DIALECTS[dialect]({**environment, **change}, FORGEJO if dialect == "forgejo" else [])
