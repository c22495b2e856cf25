"""What runs of site.yml do, and what they leave alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from lab import faults, machines, settings, site, tailnet_files, traffic

from .conftest import HOSTS, WWW, eventually


def test_check_mode_on_bare_hosts_passes_and_tells_the_truth(predicted: site.Run, first: site.Run) -> None:
    assert predicted.rc == 0, predicted.output[-4000:]
    assert first.rc == 0, first.output[-4000:]
    assert predicted.changed() == first.changed()
    assert len(first.changed("monk")) > 10


def test_second_run_changes_nothing_and_stays_in_its_budget(second: site.Run) -> None:
    assert second.rc == 0, second.output[-4000:]
    assert second.changed() == set()
    for host in HOSTS:
        executed = [outcome for outcome in second.outcomes if outcome.host == host]
        assert 20 < len(executed) <= 60, f"{host}: {len(executed)} tasks"


def test_check_mode_on_finished_hosts_predicts_nothing(homelab: None) -> None:
    run = site.play("site.yml", "--check", "--diff", show="nothing")
    assert (run.rc, run.changed()) == (0, set()), run.output[-4000:]


def test_no_deprecation_warning(predicted: site.Run, first: site.Run, second: site.Run) -> None:
    assert predicted.deprecations + first.deprecations + second.deprecations == []


def _secrets() -> dict[str, str]:
    """Return every secret of the lab by name."""
    vault = subprocess.run(
        ["ansible-vault", "view", str(settings.ROOT / "inventories/lab/group_vars/all/vault.yml")],
        check=True,
        capture_output=True,
        text=True,
        cwd=settings.ROOT,
    ).stdout
    known = {name: str(value) for name, value in yaml.safe_load(vault).items()}
    known |= {name: (tailnet_files.FOLDER / f"auth-key-{name}").read_text() for name in HOSTS}
    known["Cloudflare's API token"] = machines.CLOUDFLARE_TOKEN.read_text().strip()
    known["the tunnel's token"] = machines.run_on("monk", "cat", "/opt/kitestacks/cloudflared/secrets/token").strip()
    return known


def test_no_secret_in_any_output_or_artifact(predicted: site.Run, first: site.Run) -> None:
    artifacts = [path for path in (settings.STATE / "runner").rglob("*") if path.is_file()]
    assert any(path.name == "stdout" for path in artifacts)
    for name, secret in _secrets().items():
        assert len(secret) >= 32
        for path in artifacts:
            assert secret not in path.read_text(errors="replace"), f"{name} is in {path}"


LEAKS = {
    "the journal": ["journalctl", "--no-pager"],
    "a process list": ["ps", "axeww"],
    "docker inspect": ["sh", "-c", "docker inspect $(docker ps --all --quiet)"],
    "a container's log": ["sh", "-c", "for name in $(docker ps --all --quiet); do docker logs $name 2>&1; done"],
}


# The LDAP outpost takes its token as plain environment and in no other way, so the host's root can see it there.
PLAIN = {("authentik_ldap_outpost_token", "a process list"), ("authentik_ldap_outpost_token", "docker inspect")}


@pytest.mark.parametrize("place", LEAKS)
def test_no_secret_shows_on_a_host(homelab: None, place: str) -> None:
    for host in HOSTS:
        words = ["docker", "exec", host, *LEAKS[place]]
        seen = subprocess.run(words, capture_output=True, text=True, check=True, errors="replace").stdout
        assert seen
        for name, secret in _secrets().items():
            assert (name, place) in PLAIN or secret not in seen, f"{name} is in {place} of {host}"


def test_a_run_that_is_killed_is_finished_by_the_next(homelab: None) -> None:
    """Killed with -9 in the middle, controller and all, while a change is on its way to both hosts."""
    words = [
        "ansible-playbook",
        "-i",
        "inventories/lab",
        "site.yml",
        "-e",
        "edge_check_interval=900ms",
        "-e",
        "base_journal_max_use=400M",
    ]
    with subprocess.Popen(words, cwd=settings.ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if "Units run with the configuration" in line:
                break
        run.kill()
    resumed = site.play(
        "site.yml", "-e", "edge_check_interval=900ms", "-e", "base_journal_max_use=400M", show="nothing"
    )
    assert resumed.rc == 0, resumed.output[-4000:]
    units = {task for _host, _role, task in resumed.changed()}
    assert "The edge answers" in units
    again = site.play("site.yml", "-e", "edge_check_interval=900ms", "-e", "base_journal_max_use=400M", show="nothing")
    assert again.changed() == set()
    for host in HOSTS:
        words = ["docker", "exec", host, "/etc/ansible/facts.d/kitestacks.fact"]
        assert '"stale_units": []' in subprocess.run(words, capture_output=True, text=True, check=True).stdout
    back = site.play("site.yml", show="nothing")
    assert back.rc == 0


def test_a_host_that_is_away_does_not_stop_the_other(homelab: None) -> None:
    faults.power_off("kscloud1")
    run = site.play("site.yml", "-e", "portal_title=Home", show="nothing")
    assert run.stats["kscloud1"]["dark"] == 1
    assert run.stats["monk"]["failures"] == 0
    assert "The portal serves" in {task for _host, _role, task in run.changed("monk")}
    with traffic.edge("monk") as port:
        answer = traffic.request(port, WWW)
    assert (answer.status, answer.server) == (200, "monk")
    assert "<h1>Home</h1>" in answer.body
    faults.heal()
    caught_up = site.play("site.yml", "-e", "portal_title=Home", show="nothing")
    assert caught_up.rc == 0, caught_up.output[-4000:]
    assert {host for host, _role, _task in caught_up.changed()} == {"kscloud1"}
    assert site.play("site.yml", show="nothing").rc == 0


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """A copy of the lab's inventory, to change; its links lead to the same keys and secrets."""
    copy = tmp_path / "inventories" / "lab"
    copy.parent.mkdir()
    subprocess.run(["cp", "-r", str(settings.ROOT / "inventories/lab"), str(copy)], check=True)
    (tmp_path / ".cache").symlink_to(settings.ROOT / ".cache")
    return copy


def test_a_service_that_loses_a_host_is_taken_away_there_and_answers_all_the_same(
    homelab: None, inventory: Path
) -> None:
    hosts = yaml.safe_load((inventory / "hosts.yml").read_text())
    hosts["all"]["children"]["portal"]["hosts"] = {"kscloud1": {}}
    (inventory / "hosts.yml").write_text(yaml.safe_dump(hosts))
    run = site.play("site.yml", show="nothing", inventory=inventory)
    assert run.rc == 0, run.output[-4000:]
    assert ("monk", "", "Services that are not placed here are gone") in run.changed()
    left = subprocess.run(
        ["docker", "exec", "monk", "docker", "ps", "--all"], capture_output=True, text=True, check=True
    )
    assert "portal" not in left.stdout
    for host in HOSTS:
        with traffic.edge(host) as port:
            answer = traffic.request(port, WWW)
        assert (answer.status, answer.server) == (200, "kscloud1"), host
    assert site.play("site.yml", show="nothing", inventory=inventory).changed() == set()
    assert site.play("site.yml", show="nothing").rc == 0
    with traffic.edge("monk") as port:
        eventually(lambda: traffic.request(port, WWW).server == "monk", 15, "monk serves its own copy again")


def test_mistakes_are_told_all_at_once_and_no_host_is_touched(homelab: None, inventory: Path) -> None:
    hosts = yaml.safe_load((inventory / "hosts.yml").read_text())
    hosts["all"]["children"]["portl"] = hosts["all"]["children"].pop("portal")
    hosts["all"]["hosts"]["monk"]["edge_timeot_client"] = "5s"
    hosts["all"]["hosts"]["kscloud1"]["docker_log_max_file"] = "many"
    (inventory / "hosts.yml").write_text(yaml.safe_dump(hosts))
    (inventory / "group_vars/all/main.yml").write_text("kitestacks_domain: Not A Domain\n")
    run = site.play("site.yml", show="nothing", inventory=inventory)
    assert run.rc == 2
    assert {outcome.host for outcome in run.outcomes} == {"localhost"}
    told = " ".join(run.output.split())
    for part in (
        "group portl: no role has this name; did you mean portal?",
        "monk: edge_timeot_client is not a variable of role edge; did you mean edge_timeout_client?",
        "kscloud1: argument 'docker_log_max_file' is of type",
        "kitestacks_domain is 'Not A Domain'",
    ):
        assert part in told


def test_one_role_alone_by_its_tag(homelab: None) -> None:
    run = site.play("site.yml", "--tags", "edge", show="nothing")
    assert (run.rc, run.changed()) == (0, set()), run.output[-4000:]
    # The arguments of every role are validated whatever the tags, and so is the API token (role cloudflare).
    done = {outcome.role for outcome in run.outcomes if not outcome.task.startswith("Validating arguments")}
    assert done == {"", "cloudflare", "edge"}
