"""Signing in to an application: step by step over two servers, and what is refused."""

from __future__ import annotations

import pytest

from .conftest import PASSWORD, Application, Browser, Program, api, one, send

VERIFIER = "a-verifier-that-is-long-enough-to-be-one-0123456789"


@pytest.fixture(scope="module")
def application(servers: list[Program]) -> Application:
    return Application.make(servers[0], "wiki")


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
