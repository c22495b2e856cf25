"""The embedded outpost: an application without a sign-in of its own, behind the server."""

from __future__ import annotations

import base64
import http.client
import socket
import time

import pytest

from .conftest import HOST, PASSWORD, Browser, api, one, send

STATUS = "status.kitestacks.test"


def provider(server, name: str, host: str, origin: int) -> dict:
    """Make a proxy provider and its application, and give it to the embedded outpost."""
    flow = one(server, "flows/instances/", slug="default-provider-authorization-implicit-consent")["pk"]
    end = one(server, "flows/instances/", slug="default-provider-invalidation-flow")["pk"]
    made = api(
        server,
        "POST",
        "providers/proxy/",
        {
            "name": name,
            "authorization_flow": flow,
            "invalidation_flow": end,
            "external_host": f"https://{host}",
            "internal_host": f"http://127.0.0.1:{origin}",
            "skip_path_regex": "^/public/.*\n^/icon.svg$",
        },
    )
    application = api(server, "POST", "core/applications/", {"name": name, "slug": name, "provider": made["pk"]})
    outpost = one(server, "outposts/instances/", managed__iexact="goauthentik.io/outposts/embedded")
    providers = [*outpost["providers"], made["pk"]]
    api(server, "PATCH", f"outposts/instances/{outpost['pk']}/", {"providers": providers})
    return application


@pytest.fixture(scope="module")
def status(servers, origin):
    """An application `status` for the administrators only; where browsers find Authentik is configured."""
    application = provider(servers[0], "status", STATUS, origin)
    group = one(servers[0], "core/groups/", name="authentik Admins", include_users="false")
    api(servers[0], "POST", "policies/bindings/", {"target": application["pk"], "group": group["pk"], "order": 0})
    user = api(servers[0], "POST", "core/users/", {"username": "eve", "name": "Eve"})
    api(servers[0], "POST", f"core/users/{user['pk']}/set_password/", {"password": PASSWORD})
    outpost = one(servers[0], "outposts/instances/", managed__iexact="goauthentik.io/outposts/embedded")
    config = {**outpost["config"], "authentik_host": f"https://{HOST}/"}
    api(servers[0], "PATCH", f"outposts/instances/{outpost['pk']}/", {"config": config})
    return application


def sign_in(browser: Browser, target: str, username: str = "akadmin"):
    """Walk from the application to Authentik and back; return the answer to the code."""
    start = browser.send("GET", target, host=STATUS).location
    authorize = browser.send("GET", start, host=STATUS).location
    assert authorize.startswith(f"https://{HOST}/application/o/authorize/?client_id=")
    back = browser.authorize(authorize.removeprefix(f"https://{HOST}"), username)
    if back.status != 302:
        return back
    return browser.send("GET", back.location.removeprefix(f"https://{STATUS}"), host=STATUS)


def test_a_visitor_signs_in_and_the_application_learns_who_it_is(servers, status):
    browser = Browser(*servers)
    reply = sign_in(browser, "/deep%2Flink?a=1&b=%2F")
    assert reply.location == f"https://{STATUS}/deep%2Flink?a=1&b=%2F"
    reply = browser.send("GET", "/deep%2Flink?a=1&b=%2F", host=STATUS, X_authentik_username="forged")
    seen = reply.json()
    assert reply.cookies == ["a=1", "b=2"]
    headers = {name.lower(): value for name, value in seen["headers"].items()}
    assert seen["path"] == "/deep%2Flink?a=1&b=%2F"
    assert headers["host"] == STATUS
    assert (headers["x-forwarded-host"], headers["x-forwarded-proto"]) == (STATUS, "https")
    assert headers["x-authentik-username"] == "akadmin"
    assert headers["x-authentik-groups"] == "authentik Admins"
    assert headers["x-authentik-email"] == "root@example.com"
    posted = browser.send("POST", "/form", b"x" * 70000, host=STATUS)
    assert posted.json()["size"] == 70000


def test_listed_paths_need_no_sign_in_and_carry_no_name(servers, status):
    reply = send(servers[0].port, "GET", "/public/x", host=STATUS, X_authentik_username="forged")
    assert reply.status == 200
    assert "x-authentik-username" not in {name.lower() for name in reply.json()["headers"]}
    assert send(servers[0].port, "GET", "/private?next=/public/x", host=STATUS).status == 302
    assert send(servers[0].port, "GET", "/icon.svgx", host=STATUS).status == 302


def test_who_is_outside_the_group_stays_outside(servers, status):
    browser = Browser(*servers)
    assert b"Permission denied" in sign_in(browser, "/", "eve").body
    assert browser.send("GET", "/", host=STATUS).status == 302


def test_a_code_in_another_browser_is_worth_nothing(servers, status):
    browser = Browser(*servers)
    start = browser.send("GET", browser.send("GET", "/", host=STATUS).location, host=STATUS).location
    code = browser.authorize(start.removeprefix(f"https://{HOST}")).location.removeprefix(f"https://{STATUS}")
    assert Browser(*servers).send("GET", code, host=STATUS).cookies == []
    assert browser.send("GET", code.replace("state=", "state=x"), host=STATUS).status == 400


def test_sign_out_ends_it(servers, status):
    browser = Browser(*servers)
    sign_in(browser, "/")
    assert browser.send("GET", "/", host=STATUS).status == 200
    leave = browser.send("GET", "/outpost.goauthentik.io/sign_out", host=STATUS).location
    assert leave == f"https://{HOST}/application/o/status/end-session/"
    assert browser.send("GET", "/", host=STATUS).status == 302


def test_a_stream_comes_as_it_is_made(servers, status):
    browser = Browser(*servers)
    sign_in(browser, "/")
    cookies = "; ".join(f"{name}={value}" for (site, name), value in browser.cookies.items() if site == STATUS)
    connection = http.client.HTTPConnection("127.0.0.1", servers[0].port, timeout=10)
    try:
        begun = time.monotonic()
        headers = {"Host": STATUS, "X-Forwarded-Proto": "https", "Cookie": cookies}
        connection.request("GET", "/stream?n=3&gap=0.5", headers=headers)
        answer = connection.getresponse()
        assert answer.readline() == b"data: 0\n"
        assert time.monotonic() - begun < 1.0  # all three take a second and a half
        assert answer.read().count(b"data:") == 2
    finally:
        connection.close()


def test_a_websocket_passes(servers, origin):
    provider(servers[0], "socket", "socket.kitestacks.test", origin)
    key = base64.b64encode(b"0123456789abcdef").decode()
    lines = ["GET /public/echo HTTP/1.1", "Host: socket.kitestacks.test", "X-Forwarded-Proto: https"]
    lines += ["Connection: Upgrade", "Upgrade: websocket", f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13"]
    with socket.create_connection(("127.0.0.1", servers[0].port), timeout=10) as client:
        client.sendall("\r\n".join([*lines, "", ""]).encode())
        stream = client.makefile("rb")
        assert stream.readline().startswith(b"HTTP/1.1 101")
        while stream.readline().strip():
            pass
        client.sendall(b"hello")
        assert stream.read(5) == b"hello"


def test_an_application_that_is_down_is_a_bad_gateway(servers):
    provider(servers[0], "down", "down.kitestacks.test", 1)
    assert send(servers[0].port, "GET", "/public/x", host="down.kitestacks.test").status == 502


def test_without_authentik_host_browsers_are_sent_to_localhost(servers, status, origin):
    outpost = one(servers[0], "outposts/instances/", managed__iexact="goauthentik.io/outposts/embedded")
    path = f"outposts/instances/{outpost['pk']}/"
    api(servers[0], "PATCH", path, {"config": {**outpost["config"], "authentik_host": ""}})
    reply = send(servers[0].port, "GET", "/outpost.goauthentik.io/start", host=STATUS)
    assert reply.location.startswith("http://localhost:9000/application/o/authorize/")
    api(servers[0], "PATCH", path, {"config": outpost["config"]})
