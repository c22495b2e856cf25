"""The LDAP outpost: bind and search, for those who may."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import ldap3
import pytest

from ..conftest import ROOT, eventually
from .conftest import PASSWORD, Lab, Program, api, free_port, one, send

BASE = "dc=ldap,dc=kitestacks,dc=test"


@dataclass
class Outpost:
    """An LDAP outpost, and how it was started."""

    port: int
    popen: subprocess.Popen[bytes]

    def bind(self, dn: str, password: str):
        """Return a bound connection, None when the bind is refused."""
        server = ldap3.Server("127.0.0.1", self.port, get_info=ldap3.NONE, connect_timeout=5)
        connection = ldap3.Connection(server, dn, password, receive_timeout=10)
        return connection if connection.bind() else None


def start(lab: Lab, program: Program, token: str, port: int, **more: str) -> subprocess.Popen[bytes]:
    environment = {
        "PATH": lab.environment()["PATH"],
        "PYTHONPATH": lab.environment()["PYTHONPATH"],
        "AUTHENTIK_HOST": f"http://127.0.0.1:{program.port}",
        "AUTHENTIK_TOKEN": token,
        "AUTHENTIK_INSECURE": "false",
        "AUTHENTIK_LISTEN__LDAP": f"127.0.0.1:{port}",
        "AUTHENTIK_LISTEN__METRICS": f"127.0.0.1:{free_port()}",
        "AUTHENTIK_LAB_VERSION": lab.version,
        **more,
    }
    command = [sys.executable, "-m", "lab.authentik.ldap"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def token(servers: list[Program]) -> str:
    """Make what a directory needs, as our modules make it; return the outpost's token."""
    program = servers[0]
    flow = one(program, "flows/instances/", slug="default-authentication-flow")["pk"]
    end = one(program, "flows/instances/", slug="default-provider-invalidation-flow")["pk"]
    provider = {"name": "ldap", "authorization_flow": flow, "invalidation_flow": end, "base_dn": BASE}
    provider = api(program, "POST", "providers/ldap/", provider)
    application = api(program, "POST", "core/applications/", {"name": "l", "slug": "l", "provider": provider["pk"]})
    role = api(program, "POST", "rbac/roles/", {"name": "search"})
    permission = {"permissions": ["authentik_providers_ldap.search_full_directory"], "object_pk": str(provider["pk"])}
    permission["model"] = "authentik_providers_ldap.ldapprovider"
    api(program, "POST", f"rbac/permissions/assigned_by_roles/{role['pk']}/assign/", permission)
    group = api(program, "POST", "core/groups/", {"name": "household"})
    for name, more in (("search", {"roles": [role["pk"]]}), ("ada", {}), ("eve", {"groups": []})):
        user = {"username": name, "name": name.title(), "groups": [group["pk"]], "email": f"{name}@kitestacks.test"}
        user = api(program, "POST", "core/users/", {**user, **more})
        api(program, "POST", f"core/users/{user['pk']}/set_password/", {"password": PASSWORD})
    api(program, "POST", "policies/bindings/", {"target": application["pk"], "group": group["pk"], "order": 0})
    outpost = {"name": "ldap", "type": "ldap", "providers": [provider["pk"]], "config": {}}
    outpost = api(program, "POST", "outposts/instances/", outpost)
    return str(api(program, "GET", f"core/tokens/{outpost['token_identifier']}/view_key/")["key"])


@pytest.fixture(scope="module")
def outpost(lab: Lab, servers: list[Program], token: str) -> Iterator[Outpost]:
    port = free_port()
    found = Outpost(port, start(lab, servers[0], token, port))
    probe = ldap3.Server("127.0.0.1", port, get_info=ldap3.NONE)
    eventually("the outpost listens", probe.check_availability, 20)
    yield found
    found.popen.kill()
    print(found.popen.communicate()[1].decode()[-3000:])


def test_the_search_account_sees_users_and_groups(outpost):
    connection = outpost.bind(f"cn=search,ou=users,{BASE}", PASSWORD)
    assert connection.search(BASE, "(&(objectClass=user)(mail=ADA@*))", attributes=["cn", "memberOf"])
    (entry,) = connection.entries
    assert entry.entry_dn == f"cn=ada,ou=users,{BASE}"
    assert entry.memberOf.value == f"cn=household,ou=groups,{BASE}"
    assert "mail" not in entry.entry_attributes_as_dict
    assert connection.search(f"ou=groups,{BASE}", "(cn=household)", ldap3.LEVEL, attributes=["member"])
    assert set(connection.entries[0].member.values) == {f"cn={name},ou=users,{BASE}" for name in ("search", "ada")}
    assert not connection.search(BASE, "(|(cn=nobody)(!(objectClass=*)))")


def test_a_user_of_the_group_binds_and_sees_himself_alone(outpost):
    connection = outpost.bind(f"cn=ada,ou=users,{BASE}", PASSWORD)
    connection.search(BASE, "(objectClass=*)")
    assert [entry.entry_dn for entry in connection.entries] == [f"cn=ada,ou=users,{BASE}"]


def test_an_app_password_binds_as_well(outpost, servers):
    user = one(servers[0], "core/users/", username="ada")
    token = {"identifier": "ada-ldap", "intent": "app_password", "user": user["pk"], "expiring": False}
    api(servers[0], "POST", "core/tokens/", token)
    api(servers[0], "POST", "core/tokens/ada-ldap/set_key/", {"key": "key-of-an-app"})
    assert outpost.bind(f"cn=ada,ou=users,{BASE}", "key-of-an-app")
    assert outpost.bind(f"cn=search,ou=users,{BASE}", "key-of-an-app") is None


@pytest.mark.parametrize(
    ("dn", "password"),
    [
        (f"cn=ada,ou=users,{BASE}", "wrong"),
        (f"cn=ada,ou=groups,{BASE}", PASSWORD),
        (f"cn=eve,ou=users,{BASE}", PASSWORD),
        (f"cn=nobody,ou=users,{BASE}", PASSWORD),
        ("cn=ada,ou=users,dc=elsewhere", PASSWORD),
    ],
    ids=["password", "not a user", "outside the group", "nobody", "another tree"],
)
def test_a_bind_is_refused(outpost, dn, password):
    assert outpost.bind(dn, password) is None


def test_nothing_is_shown_and_nothing_changed_by_strangers(outpost):
    server = ldap3.Server("127.0.0.1", outpost.port, get_info=ldap3.NONE)
    with ldap3.Connection(server, receive_timeout=5) as connection:
        assert not connection.search(BASE, "(objectClass=*)")
        assert connection.result["description"] == "insufficientAccessRights"


def test_an_outpost_of_another_release_does_not_start(lab, servers, token):
    popen = start(lab, servers[0], token, free_port(), AUTHENTIK_LAB_VERSION="2026.5.6")
    assert "the server is 2026.8.4, this outpost is 2026.5.6" in popen.communicate(timeout=20)[1].decode()
    assert popen.returncode == 1


def test_the_outposts_token_opens_nothing_else(servers, token):
    reply = send(servers[0].port, "GET", "/api/v3/core/tokens/", Authorization=f"Bearer {token}")
    assert reply.status == 403
