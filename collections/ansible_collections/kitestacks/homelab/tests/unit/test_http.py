# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import datetime
import email.utils
import socket
import ssl
import threading

import pytest
from ansible_collections.kitestacks.homelab.plugins.module_utils import _http
from ansible_collections.kitestacks.homelab.plugins.module_utils._http import ApiError, Client, Settings
from ansible_collections.kitestacks.homelab.tests.fakes._server import Reply, Request, Server


class Echo:
    base_path = "/v1"

    def handle(self, request: Request) -> Reply:
        if request.path == "/refused":
            return Reply(400, {"error": f"not with {request.headers.get('authorization')}"})
        if request.path == "/moved":
            return Reply(301, "<html>elsewhere</html>", {"Location": "/"})
        return Reply(200, {"path": request.path, "query": request.query, "body": request.body})


@pytest.fixture
def server():
    with Server(Echo()) as running:
        yield running


def client(server, **values):
    return Client(Settings(server.url, **values))


def test_one_connection_serves_many_requests(server):
    api = client(server)
    for number in range(20):
        assert api.request("GET", f"/{number}").data["path"] == f"/{number}"
    assert (api.stats.requests, api.stats.retries, api.stats.connections, server.connections) == (20, 0, 1, 1)


def test_query_leaves_out_none_and_writes_booleans_as_json(server):
    found = client(server).request("GET", "/x", query={"a": None, "b": False, "c": "d e&f", "g": 5})
    assert found.data["query"] == {"b": "false", "c": "d e&f", "g": "5"}


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("status", [None, 429, 500, 502, 503])
def test_repeatable_methods_are_repeated(server, waits, method, status):
    server.fault(status=status, body="<h1>Bad gateway</h1>")
    api = client(server)
    assert api.request(method, "/x").status == 200
    assert (api.stats.requests, api.stats.retries, len(waits)) == (2, 1, 1)


@pytest.mark.parametrize("status", [None, 500, 502])
def test_post_is_not_repeated_when_its_outcome_is_unknown(server, waits, status):
    server.fault(status=status, when="after")
    with pytest.raises(ApiError) as caught:
        client(server).request("POST", "/x", body={})
    assert caught.value.unknown_outcome
    assert not waits
    assert len(server.calls) == 1


def test_a_rate_limit_is_waited_for_as_long_as_asked(server, waits):
    server.fault(status=429, headers={"Retry-After": "7"})
    assert client(server).request("PUT", "/x", body={}).status == 200
    assert 7 <= waits[0] <= 8


def test_post_leaves_a_rate_limit_to_the_caller(server, waits):
    server.fault(status=429, headers={"Retry-After": "7"})
    with pytest.raises(ApiError) as caught:
        client(server).request("POST", "/x", body={})
    assert (caught.value.retry_after, waits) == (7, [])


def test_post_is_repeated_when_no_connection_came_about(waits):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    api = Client(Settings(f"http://127.0.0.1:{port}", retries=2))
    with pytest.raises(ApiError, match=r"POST /x: no answer: .*refused") as caught:
        api.request("POST", "/x", body={})
    assert not caught.value.unknown_outcome
    assert len(waits) == 2


def test_a_wait_of_hours_is_not_waited(server, waits):
    server.fault(status=429, headers={"Retry-After": "7200"})
    with pytest.raises(ApiError, match="HTTP 429"):
        client(server).request("GET", "/x")
    assert not waits


def test_retries_end(server, waits):
    server.fault(status=500, times=99)
    with pytest.raises(ApiError, match="HTTP 500"):
        client(server, retries=3).request("GET", "/x")
    assert len(server.calls) == 4
    assert all(0.25 <= wait <= _http.LAST_WAIT for wait in waits)
    assert waits == sorted(waits) or len(set(waits)) == 3  # jitter may swap neighbours


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409])
def test_a_refusal_is_not_repeated(server, waits, status):
    server.fault(status=status, body={"x": 1})
    with pytest.raises(ApiError) as caught:
        client(server).request("GET", "/x")
    assert (caught.value.status, caught.value.unknown_outcome, waits) == (status, False, [])


def test_a_redirect_is_an_error(server):
    with pytest.raises(ApiError, match="HTTP 301: elsewhere"):
        client(server).request("GET", "/moved")


def test_errors_say_where_and_never_the_token(server):
    api = client(server, headers={"Authorization": "Bearer sesame"}, secrets=("sesame",))
    api.describe_error = lambda response: (17, response.data["error"])
    with pytest.raises(ApiError) as caught:
        api.request("GET", "/refused")
    assert str(caught.value) == "GET /refused: HTTP 400, code 17: not with Bearer ********"
    assert caught.value.as_dict() == {
        "method": "GET",
        "path": "/refused",
        "status": 400,
        "code": 17,
        "message": "not with Bearer ********",
    }


def test_an_html_error_is_read_as_text(server):
    server.fault(status=404, body="<html><head><title>502</title></head>\n<body><h1>Bad  gateway</h1></body></html>")
    with pytest.raises(ApiError, match=r"HTTP 404: 502 Bad gateway$"):
        client(server).request("GET", "/x")


def test_a_slow_answer_times_out_and_says_so(server, waits):
    server.fault(status=0, delay=1.5)
    with pytest.raises(ApiError, match="no answer: timed out"):
        client(server, timeout=0.2, retries=0).request("GET", "/x")
    assert not waits


@pytest.mark.usefixtures("waits")
def test_a_connection_that_the_server_closed_is_opened_again(server):
    api = client(server)
    api.request("GET", "/1")
    api._connection.sock.shutdown(socket.SHUT_RDWR)
    assert api.request("GET", "/2").status == 200
    assert api.stats.connections == 2


@pytest.mark.parametrize("url", ["", "example.com", "ftp://example.com", "http://", "/v1"])
def test_a_base_url_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="no http"):
        Client(Settings(url))


def test_retry_after_is_a_number_or_a_date():
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=30)
    assert _http.retry_after({"retry-after": "12"}) == 12
    assert 28 < _http.retry_after({"retry-after": email.utils.format_datetime(soon)}) <= 30
    assert _http.retry_after({"retry-after": "soon"}) is None
    assert _http.retry_after({}) is None


def test_tls_trusts_the_given_authority_only(certificate, waits):
    with Server(Echo(), certificate=str(certificate)) as running:
        trusted = Client(Settings(running.url, ca_path=str(certificate)))
        assert trusted.request("GET", "/x").status == 200
        with pytest.raises(ApiError, match="certificate verify failed"):
            Client(Settings(running.url)).request("GET", "/x")
        assert not waits  # a wrong certificate does not get better by waiting
        anyone = Client(Settings(running.url, validate_certs=False))
        assert anyone.request("GET", "/x").status == 200


def test_plain_requests_go_through_the_proxy_that_the_environment_names(server, monkeypatch):
    host = server.origin.removeprefix("http://")
    seen: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("http_proxy", f"http://me:pass@127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "")

        def proxy():
            connection, _address = listener.accept()
            with connection:
                seen.append(connection.recv(65536).decode())
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        thread = threading.Thread(target=proxy, daemon=True)
        thread.start()
        assert client(server).request("GET", "/x").data == {}
        thread.join(5)
    assert seen[0].startswith(f"GET http://{host}/v1/x HTTP/1.1")
    assert "Proxy-Authorization: Basic bWU6cGFzcw==" in seen[0]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert client(server).request("GET", "/x").data["path"] == "/x"


def test_tls_requests_use_a_tunnel_through_the_proxy(monkeypatch):
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "")

        def proxy():
            connection, _address = listener.accept()
            with connection:
                asked.append(connection.recv(65536).decode())
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

        thread = threading.Thread(target=proxy, daemon=True)
        thread.start()
        with pytest.raises(ApiError, match="403 Forbidden"):
            Client(Settings("https://api.example.com/v4", retries=0)).request("GET", "/x")
        thread.join(5)
    assert asked[0].startswith("CONNECT api.example.com:443 ")


def test_the_default_context_checks_host_names():
    context = Client(Settings("https://api.example.com"))._tls()
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED
