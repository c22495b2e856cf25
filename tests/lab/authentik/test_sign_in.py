"""Signing in to an application: step by step over two servers, and what is refused."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from ..conftest import eventually
from .conftest import HOST, PASSWORD, Application, Browser, api, one, send

VERIFIER = "a-verifier-that-is-long-enough-to-be-one-0123456789"


@pytest.fixture(scope="module")
def application(servers):
    return Application.make(servers[0], "wiki")


@pytest.fixture(scope="module")
def ada(servers):
    """A user without groups."""
    user = {"username": "ada", "name": "Ada L", "email": "ada@kitestacks.test"}
    made = api(servers[0], "POST", "core/users/", user)
    api(servers[0], "POST", f"core/users/{made['pk']}/set_password/", {"password": PASSWORD})
    return made


def test_a_code_becomes_tokens_while_two_servers_take_turns(servers, application):
    browser = Browser(*servers)
    reply = browser.authorize(application.authorize(VERIFIER))
    assert reply.status == 302
    assert reply.location.startswith(application.redirect_uri + "?")
    assert reply.query["state"] == "the-state"
    answer = application.redeem(servers[1].port, reply.query["code"], code_verifier=VERIFIER)
    assert answer.status == 200
    tokens = answer.json()
    assert (tokens["token_type"], tokens["expires_in"]) == ("Bearer", 3600)
    found = send(servers[0].port, "GET", "/application/o/userinfo/", Authorization=f"Bearer {tokens['access_token']}")
    assert found.status == 200
    assert found.json()["preferred_username"] == "akadmin"
    assert found.json()["groups"] == ["authentik Admins"]
    again = application.redeem(servers[0].port, reply.query["code"], code_verifier=VERIFIER)
    assert (again.status, again.json()["error"]) == (400, "invalid_grant")
    # Signed in once, the next code needs no password.
    assert browser.send("GET", application.authorize()).query["code"]


def test_a_session_is_void_for_a_server_with_another_secret_key(servers, application, lab):
    browser = Browser(servers[0])
    assert browser.authorize(application.authorize()).query["code"]
    other = lab.start("server", AUTHENTIK_SECRET_KEY="another")
    eventually("the server is ready", other.ready, 30)
    browser.ports = [other.port]
    assert browser.send("GET", application.authorize()).location.startswith("/if/flow/")


@pytest.mark.parametrize("mode", ["per_provider", "global"])
def test_the_id_token_is_what_discovery_promises(servers, mode):
    application = Application.make(servers[0], f"issuer-{mode.replace('_', '-')}", issuer_mode=mode)
    document = send(
        servers[0].port, "GET", f"/application/o/{application.slug}/.well-known/openid-configuration"
    ).json()
    issuer = f"https://{HOST}/" + (f"application/o/{application.slug}/" if mode == "per_provider" else "")
    assert document["issuer"] == issuer
    assert document["token_endpoint"] == f"https://{HOST}/application/o/token/"
    code = Browser(*servers).authorize(application.authorize(VERIFIER)).query["code"]
    token = application.redeem(servers[0].port, code, code_verifier=VERIFIER).json()["id_token"]
    keys = send(servers[1].port, "GET", urlsplit(document["jwks_uri"]).path).json()
    found = jwt.decode(token, KeySet.import_key_set(keys), algorithms=["RS256"]).claims
    assert (found["iss"], found["aud"], found["nonce"]) == (issuer, application.slug, "the-nonce")
    assert found["email_verified"] is False
    assert found["exp"] - found["iat"] == 3600


@pytest.mark.parametrize("verifier", ["", "another-verifier"])
def test_a_code_is_no_good_without_its_verifier(servers, application, verifier):
    code = Browser(*servers).authorize(application.authorize(VERIFIER)).query["code"]
    answer = application.redeem(servers[0].port, code, code_verifier=verifier)
    assert (answer.status, answer.json()["error"]) == (400, "invalid_grant")


def test_a_verifier_without_a_challenge_is_refused(servers, application):
    code = Browser(*servers).authorize(application.authorize()).query["code"]
    answer = application.redeem(servers[0].port, code, code_verifier=VERIFIER)
    assert (answer.status, answer.json()["error"]) == (400, "invalid_grant")


@pytest.mark.parametrize("change", ["/", "?x=1", "x"])
def test_a_redirect_uri_is_compared_to_the_letter(servers, application, change):
    target = application.authorize(redirect_uri=application.redirect_uri + change)
    reply = send(servers[0].port, "GET", target)
    assert reply.status == 400
    assert b"Redirect URI Error" in reply.body


def test_an_unknown_client_and_a_wrong_secret_are_refused(servers, application):
    reply = send(servers[0].port, "GET", application.authorize(client_id="nobody"))
    assert reply.status == 400
    assert b"Client ID Error" in reply.body
    code = Browser(*servers).authorize(application.authorize()).query["code"]
    answer = application.redeem(servers[0].port, code, client_secret="wrong")
    assert (answer.status, answer.json()["error"]) == (400, "invalid_client")


def test_a_provider_without_grant_types_is_dead_since_2026_5(servers):
    application = Application.make(servers[0], "dead", grant_types=[])
    reply = send(servers[0].port, "GET", application.authorize())
    assert reply.status == 302
    assert reply.location.startswith(application.redirect_uri)
    assert reply.query["error"] == "invalid_request"
    answer = application.token(servers[0].port, grant_type="client_credentials")
    assert (answer.status, answer.json()["error"]) == (400, "invalid_grant")


def test_a_wrong_password_is_told_and_nobody_is_as_wrong(servers, application):
    for name in ("akadmin", "nobody"):
        browser = Browser(*servers)
        page = browser.send("GET", application.authorize()).location
        browser.executor(page, {"component": "ak-stage-identification", "uid_field": name})
        found = browser.executor(page, {"component": "ak-stage-password", "password": "wrong"})
        assert found["component"] == "ak-stage-password"
        assert found["response_errors"] == {"password": [{"string": "Invalid password", "code": "invalid"}]}


def test_who_is_outside_the_group_gets_no_code(servers, ada):
    application = Application.make(servers[0], "private")
    group = api(servers[0], "POST", "core/groups/", {"name": "household"})
    inner = api(servers[0], "POST", "core/groups/", {"name": "children", "parents": [group["pk"]]})
    api(servers[0], "POST", "policies/bindings/", {"target": application.pk, "group": group["pk"], "order": 0})
    browser = Browser(*servers)
    reply = browser.authorize(application.authorize(), "ada")
    assert reply.status == 200
    assert b"Permission denied" in reply.body
    assert "location" not in reply.headers
    api(servers[0], "POST", f"core/groups/{inner['pk']}/add_user/", {"pk": ada["pk"]})
    assert browser.send("GET", application.authorize()).query["code"]


def test_a_user_who_is_switched_off_is_out_at_once(servers, application):
    user = api(servers[0], "POST", "core/users/", {"username": "gone", "name": "gone"})
    api(servers[0], "POST", f"core/users/{user['pk']}/set_password/", {"password": PASSWORD})
    browser = Browser(*servers)
    assert browser.authorize(application.authorize(), "gone").query["code"]
    api(servers[0], "PATCH", f"core/users/{user['pk']}/", {"is_active": False})
    assert browser.send("GET", application.authorize()).location.startswith("/if/flow/")


@pytest.mark.parametrize(
    ("kind", "scope"), [("explicit", "openid"), ("implicit", "openid offline_access")], ids=["flow", "offline access"]
)
def test_consent_is_asked_for(servers, kind, scope):
    slug = f"default-provider-authorization-{kind}-consent"
    flow = one(servers[0], "flows/instances/", slug=slug)["pk"]
    application = Application.make(servers[0], f"consent-{kind}", authorization_flow=flow)
    browser = Browser(*servers)
    page = browser.authorize(application.authorize(scope=scope)).location
    assert page.startswith(f"/if/flow/{slug}/")
    challenge = browser.executor(page)
    assert challenge["component"] == "ak-stage-consent"
    assert browser.executor(page, {"component": "ak-stage-consent", "token": "guessed"})["response_errors"]
    found = browser.executor(page, {"component": "ak-stage-consent", "token": challenge["token"]})
    code = browser.send("GET", found["to"]).query["code"]
    tokens = application.redeem(servers[0].port, code).json()
    assert ("refresh_token" in tokens) == ("offline_access" in scope)
    # It was given for one request.
    assert browser.send("GET", application.authorize(scope=scope)).location.startswith(f"/if/flow/{slug}/")


def test_a_refresh_token_is_good_once_and_can_be_revoked(servers, application):
    browser = Browser(*servers)
    page = browser.authorize(application.authorize(scope="openid offline_access")).location
    answer = {"component": "ak-stage-consent", "token": browser.executor(page)["token"]}
    code = browser.send("GET", browser.executor(page, answer)["to"]).query["code"]
    first = application.redeem(servers[0].port, code).json()
    second = application.token(servers[1].port, grant_type="refresh_token", refresh_token=first["refresh_token"]).json()
    assert second["access_token"] != first["access_token"]
    again = application.token(servers[0].port, grant_type="refresh_token", refresh_token=first["refresh_token"])
    assert (again.status, again.json()["error"]) == (400, "invalid_grant")
    ask = {"token": second["access_token"]}
    assert application.token(servers[0].port, "introspect", **ask).json()["active"] is True
    assert application.token(servers[0].port, "introspect", **ask, client_secret="wrong").json() == {"active": False}
    assert application.token(servers[0].port, "revoke", **ask).status == 200
    assert application.token(servers[0].port, "introspect", **ask).json() == {"active": False}


def test_client_credentials_write_a_row(servers, application, lab):
    count = "SELECT count(*) FROM records WHERE kind = 'access_token'"
    with lab.cluster.connect(lab.name) as connection:
        (before,) = connection.execute(count).fetchone()
    assert application.token(servers[0].port, grant_type="client_credentials", scope="openid").status == 200
    with lab.cluster.connect(lab.name) as connection:
        assert connection.execute(count).fetchone() == (before + 1,)
    assert one(servers[0], "core/users/", username="ak-wiki-client_credentials")["type"] == "service_account"


def test_an_app_password_signs_a_service_account_in(servers, application):
    made = api(servers[0], "POST", "core/users/service_account/", {"name": "robot", "expiring": False})
    values = {"grant_type": "client_credentials", "username": "robot", "client_secret": ""}
    assert application.token(servers[0].port, **values, password=made["token"]).status == 200
    assert application.token(servers[0].port, **values, password="wrong").json()["error"] == "invalid_grant"


@pytest.mark.parametrize(
    ("expression", "claims"),
    [
        ('return {"email": request.user.email, "email_verified": True}', {"email_verified": True}),
        ('return {"x": ak_is_group_member(request.user, name="authentik Admins")}', {"x": True}),
        ('# why\nreturn {"x": request.user.attributes.get("x", "y")}', {"x": "y"}),
        ('import os\nreturn {"x": os.getcwd()}', {}),
        ('return {"x": request.user.set_password("x")}', {}),
    ],
    ids=["verified", "member", "attribute", "import", "method"],
)
def test_a_scope_mapping_is_evaluated_or_refused(servers, lab, expression, claims, request):
    name = f"mapping-{request.node.callspec.id}"
    mapping = {"name": name, "scope_name": "email", "expression": expression}
    mapping = api(servers[0], "POST", "propertymappings/provider/scope/", mapping)
    application = Application.make(servers[0], name, property_mappings=[mapping["pk"]])
    code = Browser(servers[0]).authorize(application.authorize(scope="openid email")).query["code"]
    token = application.redeem(servers[0].port, code).json()["access_token"]
    found = send(servers[0].port, "GET", "/application/o/userinfo/", Authorization=f"Bearer {token}").json()
    assert found.items() >= claims.items()
    assert ("x" in found) == ("x" in claims)
    assert (f"scope mapping {name}: the stand-in cannot evaluate" in servers[0].log.read_text()) == (not claims)


def test_prompt_none_and_prompt_login(servers, application):
    silent = send(servers[0].port, "GET", application.authorize(prompt="none"))
    assert silent.query["error"] == "login_required"
    browser = Browser(*servers)
    assert browser.authorize(application.authorize(prompt="login")).query["code"]
    assert browser.send("GET", application.authorize(prompt="login")).location.startswith("/if/flow/")


def test_the_session_ends_with_end_session(servers):
    browser = Browser(*servers)
    back = "https://out.kitestacks.test/bye"
    uris = [{"matching_mode": "strict", "url": "https://out.kitestacks.test/oidc/callback"}]
    uris.append({"matching_mode": "strict", "url": back, "redirect_uri_type": "logout"})
    application = Application.make(servers[0], "out", redirect_uris=uris)
    code = browser.authorize(application.authorize()).query["code"]
    tokens = application.redeem(servers[0].port, code).json()
    refused = f"/application/o/out/end-session/?post_logout_redirect_uri={quote(back, safe='')}x"
    assert browser.send("GET", f"{refused}&id_token_hint={tokens['id_token']}").status == 400
    target = f"/application/o/out/end-session/?post_logout_redirect_uri={quote(back, safe='')}&state=s"
    page = browser.send("GET", f"{target}&id_token_hint={tokens['id_token']}").location
    assert browser.executor(page) == {"component": "xak-flow-redirect", "to": f"{back}?state=s"}
    assert browser.send("GET", application.authorize()).location.startswith("/if/flow/")
    found = send(servers[0].port, "GET", "/application/o/userinfo/", Authorization=f"Bearer {tokens['access_token']}")
    assert found.status == 401


def test_a_flow_leads_to_no_other_site(servers):
    for wanted in ("https://evil.test/", "//evil.test/", "/\\evil.test"):
        page = f"/if/flow/default-authentication-flow/?next={quote(wanted, safe='')}"
        assert Browser(*servers).sign_in(page, "akadmin", PASSWORD) == "/if/user/"


def test_the_page_says_what_it_is(servers):
    reply = send(servers[0].port, "GET", "/if/flow/default-authentication-flow/")
    assert b"a stand-in for Authentik, not Authentik" in reply.body
    assert "not Authentik" in reply.headers["x-powered-by"]
