"""Server and worker: how they start, what they refuse, and what they answer while the database is away."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import shutil
import subprocess
import sys

import pytest
from ansible_collections.kitestacks.homelab.tests.fakes.authentik import ADMIN_TOKEN
from ansible_collections.kitestacks.homelab.tests.unit import test_authentik_fake as recorded

from lab.authentik import passwords
from lab.authentik.api import Api

from ..conftest import ROOT, eventually
from .conftest import PASSWORD, TOKEN, Application, Browser, Cluster, api, free_port, give, one, send

RECOVERY = """
version: 1
entries:
- {model: authentik_flows.flow, id: flow, identifiers: {slug: recovery},
   attrs: {name: recovery, title: Choose a password, designation: recovery, authentication: require_unauthenticated}}
- {model: authentik_stages_prompt.prompt, id: field, identifiers: {name: password},
   attrs: {field_key: password, label: Password, type: password, order: 0}}
- {model: authentik_stages_prompt.prompt, id: again, identifiers: {name: again},
   attrs: {field_key: password_repeat, label: Again, type: password, order: 1}}
- {model: authentik_stages_prompt.promptstage, id: prompt, identifiers: {name: prompt},
   attrs: {fields: [!KeyOf again, !KeyOf field]}}
- {model: authentik_stages_user_write.userwritestage, id: write, identifiers: {name: write}}
- {model: authentik_stages_user_login.userloginstage, id: login, identifiers: {name: login}}
- {model: authentik_flows.flowstagebinding, identifiers: {target: !KeyOf flow, stage: !KeyOf prompt, order: 10}}
- {model: authentik_flows.flowstagebinding, identifiers: {target: !KeyOf flow, stage: !KeyOf write, order: 20}}
- {model: authentik_flows.flowstagebinding, identifiers: {target: !KeyOf flow, stage: !KeyOf login, order: 30}}
- {model: authentik_brands.brand, identifiers: {default: true}, attrs: {flow_recovery: !KeyOf flow}}
"""


@pytest.fixture(scope="module", autouse=True)
def nowhere(lab):
    """A server without a database: it tries for half a minute, while the other tests run."""
    return lab.start("server", AUTHENTIK_POSTGRESQL__PORT="1")


def test_the_recorded_exchanges_hold_over_postgresql(own_lab):
    own_lab.version = "2026.2.2"
    server = own_lab.start("server")
    eventually("the server is ready", server.ready, 30)
    with own_lab.cluster.connect(own_lab.name) as connection:
        found = Api(connection, "2026.2.2")
        found.random = random.Random(1)
        found.install_accounts(ADMIN_TOKEN)
        found.install_defaults()
        recorded.check_recorded_exchanges(found)


def test_ready_comes_before_the_flows(own_lab):
    server = own_lab.start("server")
    eventually("the server is ready", server.ready, 30)
    assert send(server.port, "GET", "/-/health/live/").status == 200
    assert send(server.port, "GET", "/api/v3/flows/instances/", Authorization=f"Bearer {TOKEN}").status == 403
    own_lab.start("worker", AUTHENTIK_LAB_BLUEPRINT_DELAY="2")
    eventually("the token answers", lambda: api(server, "GET", "admin/version/").get("version_current"), 20)
    assert api(server, "GET", "flows/instances/")["results"] == []
    eventually("the flows are in", lambda: api(server, "GET", "flows/instances/")["results"], 20)
    metrics = send(server.metrics, "GET", "/metrics")
    assert (metrics.status, b'version="2026.8.4"' in metrics.body) == (200, True)


def test_the_first_administrator_comes_from_the_environment(own_lab):
    (server,) = own_lab.up(
        AUTHENTIK_BOOTSTRAP_PASSWORD="",
        AUTHENTIK_BOOTSTRAP_PASSWORD_HASH=passwords.make("chosen"),
        AUTHENTIK_BOOTSTRAP_EMAIL="file:///taken/literally",
    )
    assert one(server, "core/users/", username="akadmin")["email"] == "file:///taken/literally"
    page = "/if/flow/default-authentication-flow/?next=/x"
    assert Browser(server).sign_in(page, "akadmin", "chosen") == "/x"
    # It is the first start that counts.
    own_lab.programs[-1].kill()
    own_lab.start("worker", AUTHENTIK_BOOTSTRAP_TOKEN="another", AUTHENTIK_BOOTSTRAP_PASSWORD="another")
    blueprint = {"name": "b", "content": "version: 1\nentries: []\n"}
    made = api(server, "POST", "managed/blueprints/", blueprint)
    path = f"managed/blueprints/{made['pk']}/"
    eventually("the worker works", lambda: api(server, "GET", path)["status"] == "successful")
    assert Browser(server).sign_in(page, "akadmin", "chosen") == "/x"
    assert api(server, "GET", "admin/version/", token="another") == {"detail": "Token invalid/expired"}


def test_passwords_are_those_of_django():
    digest = hashlib.pbkdf2_hmac("sha256", "lètmein".encode(), b"seasalt", 1000)
    kept = f"pbkdf2_sha256$1000$seasalt${base64.b64encode(digest).decode()}"
    assert passwords.check("lètmein", kept)
    assert not passwords.check("letmein", kept)
    assert not passwords.check("", None)
    assert not passwords.check("!", "!unusable")
    command = [sys.executable, "-m", "lab.authentik", "hash_password"]
    assert passwords.check("x", subprocess.check_output(command, cwd=ROOT, input="x\n", text=True).strip())


def test_settings_may_lie_in_files(own_lab, tmp_path):
    (tmp_path / "host").write_text("127.0.0.1\n")
    key = tmp_path / "key"
    key.write_text("a-secret-key\n")
    server = own_lab.start(
        "server",
        AUTHENTIK_POSTGRESQL__HOST=f"file://{tmp_path}/host",
        AUTHENTIK_SECRET_KEY=f"file://{key}",
        AUTHENTIK_POSTGRESQL__PORT="env://THE_PORT",
        THE_PORT=str(own_lab.cluster.port),
    )
    eventually("the server is ready", server.ready, 30)
    # The address is read again for every connection.
    (tmp_path / "host").write_text("127.0.0.99\n")
    assert send(server.port, "GET", "/-/health/ready/").status == 500
    (tmp_path / "host").write_text("127.0.0.1\n")
    assert send(server.port, "GET", "/-/health/ready/").status == 200


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"AUTHENTIK_SECRET_KEY": ""}, "Secret key missing"),
        ({"AUTHENTIK_SECRET_KEY": "file:///no/such/file"}, "No such file"),
        ({"AUTHENTIK_POSTGRESQL__PORT": "5432,5432"}, "it has to be one number"),
        ({"AUTHENTIK_POSTGRESQL__CONN_OPTIONS": "{}"}, "not base64"),
        ({"AUTHENTIK_LAB_VERSION": "2025.8.4"}, "AUTHENTIK_REDIS__HOST is missing"),
        ({"AUTHENTIK_LAB_VERSION": "2031.1.0"}, "knows no Authentik 2031.1.0"),
        ({"AUTHENTIK_BOOTSTRAP_PASSWORD_HASH": "pbkdf2_sha256$1$a$b"}, "exclude each other"),
        ({"AUTHENTIK_BOOTSTRAP_PASSWORD": "", "AUTHENTIK_BOOTSTRAP_PASSWORD_HASH": "pbkdf2_sha2561ab"}, "is no hash"),
    ],
)
def test_a_wrong_environment_is_refused(own_lab, variables, message):
    code, log = own_lab.start("worker", **variables).ended()
    assert code == 1
    assert message in log


def test_a_schema_goes_forward_one_major_at_a_time(own_lab):
    def start(version: str) -> str:
        program = own_lab.start("server", AUTHENTIK_LAB_VERSION=version)
        eventually("it is ready or over", lambda: program.popen.poll() is not None or program.ready(), 30)
        log = program.log.read_text()
        program.kill()
        return log

    assert "migrated from nothing to 2026.2.2" in start("2026.2.2")
    assert "upgrade to 2026.5 first" in start("2026.8.4")
    assert "migrated from 2026.2.2 to 2026.5.6" in start("2026.5.6")
    assert "there is no way back" in start("2026.2.2")
    assert "listening" in start("2026.5.6")


def test_the_database_goes_and_comes_back_as_another_one(tmp_path, cluster, own_lab):
    """A standby on the same address takes over: read-only first, then promoted."""
    tmp_path.chmod(0o755)
    folder = cluster.folder.parent / f"own-{tmp_path.name}"
    folder.mkdir()
    give(folder)
    primary = Cluster(folder)
    primary.make()
    primary.start()
    own_lab.cluster = primary
    primary.database(own_lab.name)
    running = primary
    try:
        servers = own_lab.up(servers=2)
        application = Application.make(servers[0], "wiki")
        browser = Browser(*servers)
        reply = browser.authorize(application.authorize())
        token = application.redeem(servers[0].port, reply.query["code"]).json()["access_token"]
        standby = primary.copy(f"standby-{tmp_path.name}")
        primary.stop()
        for path in ("/-/health/live/", "/-/health/ready/", "/application/o/wiki/jwks/", application.authorize()):
            assert send(servers[0].port, "GET", path).status == 500
        refused = application.token(servers[0].port, grant_type="client_credentials")
        assert (refused.status, refused.body, refused.headers["allow"]) == (405, b"", "GET, HEAD, OPTIONS")

        standby.port = primary.port
        standby.configure()
        standby.start()
        running = standby
        # Ready says nothing about writing: a token does.
        assert send(servers[1].port, "GET", "/-/health/ready/").status == 200
        assert send(servers[1].port, "GET", "/application/o/wiki/jwks/").status == 200
        assert api(servers[1], "GET", "core/groups/")["results"]
        assert application.token(servers[1].port, grant_type="client_credentials").status == 405
        page = "/api/v3/flows/executor/default-authentication-flow/?query="
        assert send(servers[1].port, "GET", page).status == 500
        late = own_lab.start("server")
        eventually("a server starts on a standby", late.ready, 30)

        standby.run("pg_ctl", "--pgdata", str(standby.data), "--wait", "promote")
        found = send(servers[0].port, "GET", "/application/o/userinfo/", Authorization=f"Bearer {token}")
        assert found.status == 200
        assert application.token(servers[1].port, grant_type="client_credentials").status == 200
        assert browser.send("GET", application.authorize()).query["code"]
        made = api(servers[0], "POST", "managed/blueprints/", {"name": "b", "content": "version: 1\nentries: []\n"})
        path = f"managed/blueprints/{made['pk']}/"
        eventually("the worker goes on", lambda: api(servers[1], "GET", path)["status"] == "successful", 15)
    finally:
        for program in own_lab.programs:
            program.kill()
        running.stop()


@pytest.fixture
def redis(tmp_path):
    """A Redis of Debian's package with a password; the value is its port and its process."""
    if not shutil.which("redis-server"):
        subprocess.run([ROOT / "bin" / "setup", "packages", "redis-server"], check=True)
    port = free_port()
    options = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--requirepass",
        PASSWORD,
        "--save",
        "",
        "--dir",
        str(tmp_path),
    ]
    popen = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
    yield port, popen
    popen.kill()
    popen.wait()


def test_a_release_before_2025_10_keeps_its_sessions_in_redis(own_lab, redis, tmp_path):
    port, popen = redis
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    own_lab.version = "2025.8.4"
    servers = own_lab.up(
        servers=2,
        AUTHENTIK_REDIS__HOST="127.0.0.1",
        AUTHENTIK_REDIS__PORT=str(port),
        AUTHENTIK_REDIS__PASSWORD=f"file://{tmp_path}/password",
    )
    application = Application.make(servers[0], "wiki")
    browser = Browser(*servers)
    assert browser.authorize(application.authorize()).query["code"]
    with own_lab.cluster.connect(own_lab.name) as connection:
        assert connection.execute("SELECT count(*) FROM records WHERE kind = 'session'").fetchone() == (0,)
    popen.kill()
    popen.wait()
    assert send(servers[0].port, "GET", "/-/health/ready/").status == 500
    assert application.token(servers[0].port, grant_type="client_credentials").status == 405


def test_a_recovery_link_lets_a_user_choose_a_password(own_lab):
    (server,) = own_lab.up()
    user = api(server, "POST", "core/users/", {"username": "ada", "name": "Ada"})
    path = f"core/users/{user['pk']}/recovery/"
    assert api(server, "POST", path) == {"non_field_errors": ["No recovery flow set."]}
    made = api(server, "POST", "managed/blueprints/", {"name": "recovery", "content": RECOVERY})
    blueprint = f"managed/blueprints/{made['pk']}/"
    eventually("the blueprint is applied", lambda: api(server, "GET", blueprint)["status"] != "unknown")
    assert api(server, "GET", blueprint)["status"] == "successful"
    page = api(server, "POST", path)["link"].removeprefix("https://auth.kitestacks.test")
    browser = Browser(server)
    challenge = browser.executor(page)
    assert [field["field_key"] for field in challenge["fields"]] == ["password", "password_repeat"]
    answer = {"component": "ak-stage-prompt", "password": PASSWORD, "password_repeat": "another"}
    assert browser.executor(page, answer)["response_errors"]
    assert browser.executor(page, {**answer, "password_repeat": PASSWORD})["component"] == "xak-flow-redirect"
    assert b"Signed in as ada" in browser.send("GET", "/if/user/").body
    assert Browser(server).sign_in("/if/flow/default-authentication-flow/", "ada", PASSWORD)
    assert Browser(server).executor(page)["component"] == "ak-stage-access-denied"


def test_a_blueprint_with_a_mistake_leaves_nothing_behind(own_lab):
    (server,) = own_lab.up()
    entries = [
        {"model": "authentik_core.group", "identifiers": {"name": "half"}},
        {"model": "authentik_rac.endpoint", "identifiers": {"name": "unknown"}},
    ]
    content = f"version: 1\nentries: {json.dumps(entries)}\n"
    made = api(server, "POST", "managed/blueprints/", {"name": "broken", "content": content})
    path = f"managed/blueprints/{made['pk']}/"
    eventually("the blueprint is tried", lambda: api(server, "GET", path)["status"] == "error")
    assert api(server, "GET", "core/groups/?name=half")["results"] == []
    assert "does not know the model authentik_rac.endpoint" in own_lab.programs[-1].log.read_text()


def test_two_who_create_the_same_make_one(own_lab):
    servers = own_lab.up(servers=2)
    code = (
        "import json, sys, urllib.request\n"
        "for number in range(10):\n"
        "    body = json.dumps({'name': f'group-{number}'}).encode()\n"
        "    headers = {'Authorization': 'Bearer ' + sys.argv[2], 'Content-Type': 'application/json'}\n"
        "    request = urllib.request.Request(sys.argv[1] + '/api/v3/core/groups/', body, headers)\n"
        "    try: urllib.request.urlopen(request)\n"
        "    except urllib.error.HTTPError as error: assert error.code == 400, error.code\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, f"http://127.0.0.1:{server.port}", TOKEN]) for server in servers
    ]
    assert [popen.wait(30) for popen in both] == [0, 0]
    names = [row["name"] for row in api(servers[0], "GET", "core/groups/?search=group-&page_size=100")["results"]]
    assert sorted(names) == sorted(f"group-{number}" for number in range(10))


def test_a_database_that_is_away_is_waited_for_and_then_given_up(nowhere):
    code, log = nowhere.ended()
    assert code == 1
    assert "try 30 of 30" in log
