"""Sign-in as people meet it: in a browser, through Cloudflare, either connector, either edge and either Authentik."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ldap3
import pytest
import yaml

from lab import faults, machines, settings, site, traffic

from .browser import Browser, browser
from .conftest import HOSTS, eventually

MORE = Path(__file__).parent / "identity"
AUTH, NOTES, BOARD = (f"https://{name}.{settings.DOMAIN}" for name in ("auth", "notes", "board"))
RECOVERY = "playbooks/operations/recovery_link.yml"
UPGRADE = "playbooks/operations/upgrade_authentik.yml"
ONLY_SIGN_IN = ("--tags", "sso")


def vault(name: str) -> str:
    """Return a secret of the lab."""
    words = ["ansible-vault", "view", str(settings.ROOT / "inventories/lab/group_vars/all/vault.yml")]
    text = subprocess.run(words, check=True, capture_output=True, text=True, cwd=settings.ROOT).stdout
    return str(yaml.safe_load(text)[name])


def api(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Ask the Authentik of the first host, as its own host may."""
    answer = machines.run_on(
        *(HOSTS[0], "curl", "-sS", "-X", method, f"http://127.0.0.1:9000/api/v3/{path}"),
        *("-H", f"Authorization: Bearer {vault('authentik_api_token')}", "-H", "Content-Type: application/json"),
        *(() if body is None else ("-d", json.dumps(body))),
    )
    return json.loads(answer) if answer.strip() else None


def held() -> dict[str, set[str]]:
    """Return the names of all that Authentik holds, by kind."""
    lists = {
        "applications": ("core/applications/?superuser_full_list=true&page_size=100", "slug"),
        "providers": ("providers/all/?page_size=100", "name"),
        "groups": ("core/groups/?include_users=false&page_size=100", "name"),
        "users": ("core/users/?include_groups=false&page_size=100", "username"),
    }
    return {kind: {row[key] for row in api("GET", path)["results"]} for kind, (path, key) in lists.items()}


@pytest.fixture(scope="module")
def identity(second: site.Run) -> Iterator[None]:
    """The homelab with a household and two services more; taken away again at the end."""
    made = site.play("playbooks/operations/secrets.yml", show="nothing", more=MORE)
    assert made.rc == 0, made.output
    with site.services_more(MORE):
        yield


@pytest.fixture(autouse=True)
def healthy(identity: None) -> Iterator[None]:
    """Each test begins with everything well, and is mended after."""
    wanted = {"authentik": 2, "notes": 1, "board": 1}
    eventually(lambda: all(wanted.items() <= machines.edge_services(host).items() for host in HOSTS), 90, "all is well")
    yield
    faults.heal()


def link(username: str) -> str:
    """Return the link with which a person sets a password."""
    run = site.play(RECOVERY, "-e", f"username={username}", show="nothing", more=MORE)
    assert run.rc == 0, run.output
    found = re.search(rf"{AUTH}/[\w/?=%-]+", run.output)
    assert found, run.output
    return found[0]


def sign_in(page: Browser, username: str, password: str) -> None:
    """Go through the pages that ask who somebody is."""
    page.fill("uidField", username)
    page.enter()
    page.fill("password", password)
    page.enter()


def set_password(page: Browser, username: str) -> str:
    """Set a new password by a recovery link, and return it."""
    password = secrets.token_urlsafe(18)
    page.open(link(username))
    page.fill("password", password)
    page.fill("password_repeat", password)
    page.enter()
    page.wait("document.body.innerText.includes('Signed in as') || location.pathname.startsWith('/if/user')")
    return password


@pytest.fixture(scope="module")
def passwords(identity: None) -> dict[str, str]:
    """Passwords that people of the household set, each in a browser of its own."""
    found = {}
    for name in ("kim", "alex", "robin"):
        with browser() as page:
            found[name] = set_password(page, name)
            page.screenshot(f"password-set-{name}")
    return found


def test_the_first_administrator_signs_in() -> None:
    with browser() as page:
        page.open(f"{AUTH}/if/flow/default-authentication-flow/")
        sign_in(page, "akadmin", vault("authentik_bootstrap_password"))
        page.wait("!location.pathname.startsWith('/if/flow')")
        page.screenshot("administrator")
        assert "akadmin" in page.text


def test_a_person_signs_in_to_a_service(passwords: dict[str, str]) -> None:
    """The whole authorization-code flow, from the service and back to it."""
    with browser() as page:
        page.open(f"{NOTES}/login/generic_oauth")
        page.wait("location.pathname.startsWith('/if/flow/')")
        page.screenshot("sign-in")
        sign_in(page, "kim", passwords["kim"])
        page.wait(f"location.origin === '{NOTES}' && document.body.innerText.includes('Signed in as')")
        page.screenshot("signed-in")
        assert "Signed in as kim" in page.text
        # What the group mapping and the mapping of verified addresses say.
        assert "writers" in page.text
        assert "Role: Writer" in page.text


def test_a_wrong_password_opens_nothing(passwords: dict[str, str]) -> None:
    with browser() as page:
        page.open(f"{NOTES}/login/generic_oauth")
        sign_in(page, "kim", f"{passwords['kim']}x")
        page.wait("!!document.querySelector('.error')")
        assert page.url.startswith(AUTH)


@pytest.mark.parametrize("address", [f"{NOTES}/login/generic_oauth", f"{BOARD}/"])
def test_a_user_outside_the_group_is_refused(passwords: dict[str, str], address: str) -> None:
    with browser() as page:
        page.open(address)
        sign_in(page, "alex", passwords["alex"])
        page.wait("document.body.innerText.toLowerCase().includes('denied')")
        page.screenshot(f"refused-{urllib.parse.urlsplit(address).hostname}")


def test_an_administrator_may_use_every_service(passwords: dict[str, str]) -> None:
    with browser() as page:
        page.open(f"{NOTES}/login/generic_oauth")
        sign_in(page, "robin", passwords["robin"])
        page.wait(f"location.origin === '{NOTES}' && document.body.innerText.includes('Signed in as robin')")


def test_a_service_that_asks_nobody_stands_behind_the_sign_in(passwords: dict[str, str]) -> None:
    with browser() as page:
        page.open(f"{BOARD}/public/status")
        page.wait("document.body.innerText.includes('/public/status')")
    with browser() as page:
        page.open(f"{BOARD}/inside")
        page.wait("location.pathname.startsWith('/if/flow/')")
        sign_in(page, "kim", passwords["kim"])
        page.wait(f"location.href === '{BOARD}/inside' && document.body.innerText.includes('headers')")
        page.screenshot("behind-the-sign-in")
        headers = {name.lower(): value for name, value in json.loads(page.text)["headers"].items()}
        assert headers["x-authentik-username"] == "kim"


@pytest.mark.parametrize("host", HOSTS)
def test_there_is_no_way_round_the_sign_in(host: str) -> None:
    """Not with a forged header, not by the inner port, and not while the local Authentik is away."""

    def ask(*options: str, port: int = 8080) -> str:
        words = ("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", f"Host: board.{settings.DOMAIN}")
        return machines.run_on(host, *words, *options, f"http://127.0.0.1:{port}/inside").strip()

    assert ask("-H", "X-authentik-username: kim", "-H", "X-Edge-Check: 1") == "302"
    inner = machines.run_on(
        *(host, "docker", "run", "--rm", "--network", "kitestacks", "--entrypoint", "busybox"),
        *(machines.run_on(host, "docker", "inspect", "--format", "{{.Config.Image}}", "portal").strip(), "sh", "-c"),
        f"wget -S -q -O /dev/null --header 'Host: board.{settings.DOMAIN}' http://edge:8082/inside 2>&1 || true",
    )
    assert "403" in inner
    faults.stop_container(host, "authentik")
    eventually(lambda: machines.edge_services(host)["authentik"] == 1, 20, "the edge has noticed")
    assert ask() == "302"


def test_a_forged_header_does_not_reach_a_service() -> None:
    said = machines.run_on(
        *(HOSTS[0], "curl", "-s", "-H", f"Host: board.{settings.DOMAIN}", "-H", "X-authentik-username: kim"),
        "http://127.0.0.1:8080/public/status",
    )
    assert "x-authentik" not in said.lower()


def test_sign_in_goes_on_with_a_host_away(passwords: dict[str, str]) -> None:
    """With monk off: kscloud1 has a server, and the database."""
    faults.power_off("monk")
    with browser() as page:
        page.open(f"{NOTES}/login/generic_oauth")
        page.wait("location.pathname.startsWith('/if/flow/')", 60)
        sign_in(page, "kim", passwords["kim"])
        page.wait(f"location.origin === '{NOTES}' && document.body.innerText.includes('Signed in as')", 60)


def test_the_directory_knows_the_household(passwords: dict[str, str]) -> None:
    """As a service uses it: the search account finds people and their groups, people bind with their own passwords."""
    base = ",".join(f"dc={part}" for part in settings.DOMAIN.split("."))
    account = f"cn=kitestacks-ldap-search,ou=users,{base}"
    with _directory() as server:
        search = ldap3.Connection(server, account, vault("authentik_ldap_search_password"))
        assert search.bind()
        members = f"(&(objectClass=user)(memberOf=cn=writers,ou=groups,{base}))"
        assert search.search(base, members, attributes=["cn", "mail"])
        assert [(str(entry.cn), str(entry.mail)) for entry in search.entries] == [("kim", "kim@kitestacks.test")]
        assert not ldap3.Connection(server, account, "x" * 40).bind()
        assert ldap3.Connection(server, f"cn=kim,ou=users,{base}", passwords["kim"]).bind()
        assert not ldap3.Connection(server, f"cn=kim,ou=users,{base}", passwords["alex"]).bind()


@contextmanager
def _directory() -> Iterator[ldap3.Server]:
    """Yield the outpost, over ssh to its host: it is in the network of the containers only."""
    address = machines.run_on(HOSTS[0], "docker", "inspect", "--format", _ADDRESS, "authentik-ldap").strip()
    with traffic.forwarded(HOSTS[0], f"{address}:3389") as port:
        yield ldap3.Server("127.0.0.1", port, get_info=ldap3.NONE, connect_timeout=5)


_ADDRESS = "{{.NetworkSettings.Networks.kitestacks.IPAddress}}"


def test_a_service_brings_and_takes_exactly_its_own() -> None:
    made = api("POST", "core/applications/", {"name": "By hand", "slug": "by-hand"})
    assert made["slug"] == "by-hand"
    everything = held()
    went = site.play("site.yml", *ONLY_SIGN_IN, show="nothing")
    assert went.rc == 0, went.output
    without = held()
    assert everything["applications"] - without["applications"] == {"notes", "board"}
    assert everything["providers"] - without["providers"] == {"kitestacks-notes", "kitestacks-board"}
    assert everything["users"] - without["users"] == {"robin", "kim", "alex"}
    assert everything["groups"] - without["groups"] == {"writers"}
    assert all(without[kind] <= everything[kind] for kind in everything)
    back = site.play("tests/site/identity/site.yml", *ONLY_SIGN_IN, show="nothing", more=MORE)
    assert back.rc == 0, back.output
    assert held() == everything
    again = site.play("tests/site/identity/site.yml", *ONLY_SIGN_IN, show="nothing", more=MORE)
    assert again.changed() == set()
    api("DELETE", "core/applications/by-hand/")


@pytest.mark.parametrize(
    ("version", "part"),
    [("2026.5.6", "does not go back"), ("2027.2.0", "does not know")],
)
def test_an_upgrade_that_cannot_be_is_refused_before_anything_is_touched(version: str, part: str) -> None:
    run = site.play(UPGRADE, "-e", f"authentik_version={version}", show="nothing", more=MORE)
    assert run.rc == 2
    assert part in " ".join(run.output.split())
    assert run.changed() == set()


def test_nothing_of_the_first_start_is_left() -> None:
    password = vault("authentik_bootstrap_password")
    for host in HOSTS:
        assert "BOOTSTRAP" not in machines.run_on(host, "docker", "inspect", "authentik", "authentik-worker")
        found = machines.run_on(host, "sh", "-c", f"grep -rlF {password} /opt/kitestacks /etc || true")
        assert found.strip() == ""
