# Copyright: KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What compose_stack does on a host, against a docker that is a script with a memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.kitestacks.homelab.plugins.module_utils._compose import Payload, StackDirectory
from ansible_collections.kitestacks.homelab.plugins.module_utils._compose_docker import Docker
from ansible_collections.kitestacks.homelab.plugins.module_utils._files import HostFile
from ansible_collections.kitestacks.homelab.plugins.modules import compose_stack
from ansible_collections.kitestacks.homelab.tests.unit.compose_stack_host import RELOAD, Declared, Host

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="sets owners of files: run as root")


@pytest.fixture
def host(tmp_path, monkeypatch):
    return Host(tmp_path, monkeypatch)


@pytest.fixture
def deployed(host):
    host.run(Declared())
    return host


def actions(result):
    return [(action["service"], action["action"]) for action in result["actions"]]


def test_first_run_deploys_and_second_finds_nothing_to_do(host):
    first = host.run(Declared())
    assert actions(first) == [("web", "created")]
    assert first["changed"]
    assert host.container()["sees"] == {
        str(host.root / "page.html"): "page one",
        str(host.root / "config/app.conf"): "config one",
        str(host.root / "secrets/token"): "the-first-secret",
    }
    second = host.run(Declared())
    assert (second["changed"], second["actions"], second["files"], second["diff"]) == (False, [], [], [])


def test_owners_and_modes(deployed):
    def of(path):
        found = (deployed.root / path).stat()
        return f"{found.st_mode & 0o7777:o} {found.st_uid}:{found.st_gid}"

    assert of("secrets/token") == "400 99:0"
    assert of("secrets") == "711 0:0"
    assert of("data") == "750 1000:1000"
    assert of(".kitestacks.json") == "600 0:0"
    assert of("") == "750 0:0"
    assert of("config/app.conf") == "644 0:0"


def test_no_change_costs_two_docker_commands_and_no_write(deployed):
    deployed.change(calls=[])
    before = {path: path.stat().st_mtime_ns for path in deployed.root.rglob("*")}
    assert deployed.run(Declared())["docker_commands"] == 2
    assert len(deployed.world["calls"]) == 2
    assert {path: path.stat().st_mtime_ns for path in deployed.root.rglob("*")} == before


@pytest.mark.parametrize(
    "change",
    [
        {"image": "app:2"},
        {"page": "page two"},
        {"secret": "the-second-secret"},
        {"environment": "PASSWORD=second-password"},
        {"config": "config two"},
        {"extra": {"command": ["x"]}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_change_recreates_the_service_and_check_mode_foretells_it(deployed, change):
    wanted = Declared(**change)
    old = deployed.container()
    files = deployed.files()
    foretold = deployed.run(wanted, check=True)
    assert (deployed.files(), deployed.container()) == (files, old)
    done = deployed.run(wanted)
    assert actions(foretold) == actions(done) == [("web", "recreated")]
    assert foretold["files"] == done["files"]
    assert deployed.container()["id"] != old["id"]
    assert not deployed.run(wanted)["changed"]


def test_only_the_service_that_mounts_a_changed_file_is_recreated(host):
    services = {name: {"image": "app:1", "volumes": [f"./{name}.txt:/x"], "healthcheck": {}} for name in ("one", "two")}

    def declared(text):
        return Declared(
            services=services,
            more_files=(HostFile("one.txt", text, 0o644), HostFile("two.txt", b"same", 0o644)),
        )

    host.run(declared(b"first"))
    assert actions(host.run(declared(b"second"))) == [("one", "recreated")]


def test_a_file_that_no_service_reads_changes_without_any_container(deployed):
    wanted = Declared(more_files=(HostFile("README.md", b"hello", 0o644),))
    result = deployed.run(wanted)
    assert (result["changed"], result["actions"], result["files"]) == (True, [], ["README.md"])
    gone = deployed.run(Declared())
    assert (gone["actions"], gone["files"]) == ([], ["README.md"])
    assert not (deployed.root / "README.md").exists()


def test_files_of_others_are_left_alone(deployed):
    (deployed.root / "data" / "base.db").write_text("precious")
    (deployed.root / "note.txt").write_text("mine")
    deployed.run(Declared(page="page two"))
    assert (deployed.root / "note.txt").read_text() == "mine"
    assert (deployed.root / "data" / "base.db").read_text() == "precious"


# -- drift made by hand ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drift", "action"),
    [
        (lambda host: host.change(containers=[]), "created"),
        (lambda host: host.change_container(state="exited", code=137), "started"),
        (lambda host: host.change_container(state="exited", code=0), "started"),
        (lambda host: host.change_container(state="paused"), "restarted"),
        (lambda host: host.change_container(health="unhealthy"), "restarted"),
        (lambda host: host.change_container(config_hash="made by hand"), "recreated"),
        (lambda host: host.change(images={**host.world["images"], "app:1": "sha256:new"}), "recreated"),
        (lambda host: host.change_container(labels={}), "recreated"),
    ],
    ids=["gone", "killed", "stopped", "paused", "unhealthy", "other settings", "other image", "without our file"],
)
def test_drift_is_found_foretold_and_repaired(deployed, drift, action):
    drift(deployed)
    assert actions(deployed.run(Declared(), check=True)) == [("web", action)]
    if action == "recreated" and deployed.container()["labels"] == {}:
        deployed.change_container(config_hash="other")  # labels are part of compose's own hash
    result = deployed.run(Declared())
    assert actions(result) == [("web", action)]
    assert result["changed"]
    assert deployed.container()["state"] == "running"
    assert not deployed.run(Declared())["changed"]


def test_an_orphan_is_removed(deployed):
    orphan = {**deployed.container(), "id": "c9", "service": "old"}
    deployed.change(containers=[*deployed.world["containers"], orphan])
    assert actions(deployed.run(Declared())) == [("old", "removed")]
    assert [container["service"] for container in deployed.world["containers"]] == ["web"]


@pytest.mark.parametrize(
    "path", ["page.html", "secrets/token", "config/app.conf", "compose.yml", "compose.kitestacks.yml"]
)
def test_a_file_edited_on_the_host_is_put_back(deployed, path):
    good = (deployed.root / path).read_text()
    (deployed.root / path).write_text(good + "\n")
    result = deployed.run(Declared())
    assert result["files"] == [path]
    assert (deployed.root / path).read_text() == good
    assert not deployed.run(Declared())["changed"]


def test_a_service_that_mounts_an_edited_file_starts_anew(deployed):
    """A mount of a single file keeps the edited one open, though the file on disk is right again."""
    (deployed.root / "page.html").write_text("edited")
    deployed.change_container(sees={str(deployed.root / "page.html"): "edited"})
    assert actions(deployed.run(Declared())) == [("web", "restarted")]
    assert deployed.container()["sees"][str(deployed.root / "page.html")] == "page one"


def test_mode_and_owner_drift(deployed):
    (deployed.root / "secrets/token").chmod(0o644)
    os.chown(deployed.root / "data", 5, 5)
    result = deployed.run(Declared())
    assert result["files"] == ["secrets/token"]
    assert "mode 0644, owner 99" in json.dumps(result["diff"])
    assert "owner 5, group 5" in json.dumps(result["diff"])
    assert not deployed.run(Declared())["changed"]


def test_an_empty_directory_that_docker_made_in_the_place_of_a_file_is_replaced(host):
    (host.root / "page.html").mkdir(parents=True)
    host.run(Declared())
    assert (host.root / "page.html").read_text() == "page one"


# -- rollback ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", ["app:sick", "app:crash"])
def test_a_version_that_does_not_serve_is_taken_back(deployed, image):
    bad = Declared(image=image, secret="the-second-secret", page="page two", more_files=(HostFile("new", b"", 0o600),))
    before = deployed.files()
    deployed.change(logs="\n".join([*(f"line {n}" for n in range(30)), "cannot use the-second-secret"]))
    error = deployed.fail(bad)
    assert "The previous version is serving again." in str(error)
    assert error.details["service"] == "web"
    assert error.details["rolled_back"]
    assert len(error.details["log"]) == 20
    assert error.details["log"][-1] == "cannot use <redacted>"
    assert "second-secret" not in str(error)
    assert deployed.container()["reference"] == "app:1"
    assert deployed.container()["sees"][str(deployed.root / "secrets/token")] == "the-first-secret"
    after = deployed.files()
    assert {**after, ".kitestacks.json": ""} == {**before, ".kitestacks.json": ""}
    assert (deployed.root / "secrets/token").stat().st_uid == 99

    assert deployed.run(bad, check=True)["changed"]
    assert "serving again" in str(deployed.fail(bad)), "the same bad input is tried again"
    assert not deployed.run(Declared())["changed"], "the old input finds the old version"
    assert actions(deployed.run(Declared(image="app:2"))) == [("web", "recreated")]


def _pair(image: str) -> Declared:
    services = {name: {"image": image, "healthcheck": {"test": ["CMD", "true"]}} for name in ("one", "two")}
    return Declared(services=services, options={"in_turn": ["one", "two"]})


def test_services_that_stand_in_for_each_other_are_replaced_one_by_one(host):
    host.run(_pair("app:1"))
    old = {name: host.container(name)["id"] for name in ("one", "two")}
    error = host.fail(_pair("app:sick"))
    assert "one" in str(error)
    assert host.container("one")["id"] != old["one"]
    assert host.container("two")["id"] == old["two"], "the second was touched although the first never got well"
    assert host.run(_pair("app:2"))["changed"]
    assert {host.container(name)["reference"] for name in ("one", "two")} == {"app:2"}
    assert not host.run(_pair("app:2"))["changed"]


def test_a_service_that_takes_no_turn_is_named(host):
    declared = _pair("app:1")
    declared.options["in_turn"] = ["three"]
    assert "in_turn: compose.yml has no service 'three'" in str(host.fail(declared))


def test_a_moved_tag_is_rolled_back_by_image_id(deployed):
    deployed.change(images={**deployed.world["images"], "app:1": "sha256:sick"})
    deployed.change(images={**deployed.world["images"], "old": "sha256:one"})
    assert "serving again" in str(deployed.fail(Declared()))
    assert deployed.container()["image_id"] == "sha256:one"
    assert deployed.run(Declared(), check=True)["changed"]
    assert "serving again" in str(deployed.fail(Declared())), "still the declared image is tried, not the pinned one"
    assert deployed.container()["image_id"] == "sha256:one"
    deployed.change(images={**deployed.world["images"], "app:1": "sha256:good"})
    assert actions(deployed.run(Declared())) == [("web", "recreated")]
    assert deployed.container()["image_id"] == "sha256:good"
    assert "sha256" not in (deployed.root / "compose.kitestacks.yml").read_text()


def test_a_first_version_that_does_not_serve_is_stopped_and_tried_again(host):
    error = host.fail(Declared(image="app:sick"))
    assert "first version" in str(error)
    assert host.container()["state"] == "exited"
    assert (host.root / "compose.yml").exists()
    assert host.run(Declared(image="app:sick"), check=True)["changed"]
    assert "unhealthy" in str(host.fail(Declared(image="app:sick")))
    assert host.run(Declared())["changed"]
    assert not host.run(Declared())["changed"]


def test_without_rollback_the_new_version_stays_for_inspection(deployed):
    error = deployed.fail(Declared(image="app:sick", options={"rollback": False}))
    assert "rollback is off" in str(error)
    assert deployed.container()["reference"] == "app:sick"
    assert "serving again" in str(deployed.fail(Declared(image="app:crash"))), "the last good version is not forgotten"
    assert deployed.container()["reference"] == "app:1"


def test_an_image_that_cannot_be_pulled_leaves_everything_untouched(deployed):
    before, container = deployed.files(), deployed.container()
    error = deployed.fail(Declared(image="app:9", page="page two"))
    assert "cannot pull app:9" in str(error)
    assert "Nothing was changed" in str(error)
    assert (deployed.files(), deployed.container()) == (before, container)


def test_pull_policies(deployed):
    assert "'never'" in str(deployed.fail(Declared(image="app:3", options={"pull": "never"})))
    assert deployed.run(Declared(image="app:3"))["changed"]
    always = Declared(image="app:3", options={"pull": "always"})
    assert not deployed.run(always)["changed"]
    deployed.change(registry={"app:3": "sha256:newer"})
    assert actions(deployed.run(always)) == [("web", "recreated")]
    assert deployed.container()["image_id"] == "sha256:newer"


# -- reload ------------------------------------------------------------------------------------------------------------


def reloading(**keys):
    return Declared(**keys, options={"reload": [RELOAD]})


def test_a_reload_file_is_checked_first_and_then_signalled(host):
    host.run(reloading())
    container = host.container()
    assert not host.run(reloading())["changed"]
    result = host.run(reloading(config="config two"))
    assert actions(result) == [("web", "reloaded")]
    now = host.container()
    assert (now["id"], now["signals"], now["starts"]) == (container["id"], ["SIGHUP"], 1)
    assert now["sees"][str(host.root / "config/app.conf")] == "config two"
    assert host.world["checked"] == [
        [str(host.root / ".staging/config/app.conf"), str(host.root / ".staging/page.html")]
    ]
    assert not host.run(reloading(config="config two"))["changed"]


def test_a_reload_file_that_fails_its_check_replaces_nothing(host):
    host.run(reloading())
    before = host.files()
    error = host.fail(reloading(config="bad"))
    assert "would not accept config/app.conf" in str(error)
    assert "1 error found" in str(error)
    assert host.files() == before
    assert host.container()["signals"] == []


def test_a_reload_file_edited_on_the_host_is_put_back_and_signalled(host):
    host.run(reloading())
    (host.root / "config/app.conf").write_text("edited")
    assert actions(host.run(reloading())) == [("web", "reloaded")]
    assert host.container()["signals"] == ["SIGHUP"]


def test_a_rollback_needs_no_reload_afterwards(host):
    host.run(reloading())
    host.fail(reloading(image="app:sick", config="config two"))
    assert not host.run(reloading())["changed"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["page.html"], "mounts the single file"),
        (["app.env"], "does not mount the folder"),
        (["nothing.conf"], "is no file of this stack"),
    ],
)
def test_reload_entries_that_cannot_work_are_refused(host, files, words):
    error = host.fail(Declared(options={"reload": [{**RELOAD, "files": files}]}))
    assert words in str(error)
    assert host.world["containers"] == []


# -- one-shot services -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_label", [True, False])
def test_a_service_that_ends_by_itself_is_no_drift(host, by_label):
    host.change(images={**host.world["images"], "once:1": "sha256:once"})
    once = {"image": "once:1", "restart": "no", "labels": {"kitestacks.oneshot": "true"} if by_label else {}}
    needs = {} if by_label else {"depends_on": {"init": {"condition": "service_completed_successfully"}}}
    wanted = Declared(services={"init": once, "web": {"image": "app:1", "healthcheck": {}, **needs}})
    assert host.run(wanted)["changed"]
    assert not host.run(wanted)["changed"]
    host.change_container("init", code=1)
    assert actions(host.run(wanted)) == [("init", "started")]


def test_a_service_that_ends_by_itself_without_saying_so_fails(host):
    host.change(images={**host.world["images"], "once:1": "sha256:once"})
    error = host.fail(Declared(services={"web": {"image": "once:1", "restart": "no"}}))
    assert "web exited with code 0" in str(error)


# -- stopped and absent ------------------------------------------------------------------------------------------------


def test_stopped(host):
    stopped = Declared(state="stopped")
    assert host.run(stopped)["changed"], "files are deployed"
    assert host.world["containers"] == []
    assert not host.run(stopped)["changed"]
    assert actions(host.run(Declared())) == [("web", "created")]
    assert actions(host.run(stopped, check=True)) == actions(host.run(stopped)) == [("web", "stopped")]
    assert not host.run(stopped)["changed"]
    assert actions(host.run(Declared())) == [("web", "started")]


def test_absent_keeps_data_and_needs_no_valid_compose_file(deployed):
    (deployed.root / "data" / "base.db").write_text("precious")
    (deployed.root / "compose.yml").write_text("{broken")
    gone = Declared(state="absent")
    foretold = deployed.run(gone, check=True)
    done = deployed.run(gone)
    assert (foretold["changed"], actions(foretold)) == (done["changed"], actions(done)) == (True, [("web", "removed")])
    assert deployed.files() == {"data/base.db": "precious"}
    assert deployed.world["volumes"] == ["vol"]
    assert deployed.world["networks"] == []
    assert not deployed.run(gone)["changed"]


def test_absent_with_purge_removes_volumes_and_folder(deployed):
    gone = Declared(state="absent", options={"purge_data": True})
    assert deployed.run(gone)["changed"]
    assert not deployed.root.exists()
    assert deployed.world["volumes"] == []
    assert not deployed.run(gone)["changed"]


@pytest.mark.parametrize("purge", [False, True])
def test_absent_where_nothing_ever_was(host, purge):
    host.docker.unlink()
    os.environ["PATH"] = str(host.docker.parent)
    result = host.run(Declared(state="absent", options={"purge_data": purge}))
    assert not result["changed"]
    assert not host.root.exists()


# -- a blank host, and docker that does not work -----------------------------------------------------------------------


def test_check_mode_on_a_blank_host(host, monkeypatch):
    monkeypatch.setenv("PATH", str(host.root))
    wanted = Declared(more_files=(HostFile("x", b"", 0o644, "user_of_a_later_role"),))
    result = host.run(wanted, check=True)
    assert result["changed"]
    assert actions(result) == [("web", "created")]
    assert "compose.yml" in result["files"]
    assert not host.base.exists()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("Cannot connect to the Docker daemon at unix:///var/run/docker.sock.", "daemon does not answer"),
        ("docker: 'compose' is not a docker command.", "no compose plugin"),
        ("permission denied while trying to connect to the Docker daemon socket", "become: true"),
    ],
)
def test_docker_that_does_not_work(host, said, words):
    host.change(broken=said)
    assert words in str(host.fail(Declared()))
    assert host.run(Declared(), check=True)["changed"]


def test_docker_that_is_not_there(host, monkeypatch):
    monkeypatch.setenv("PATH", str(host.root))
    assert "docker is not installed" in str(host.fail(Declared()))


@pytest.mark.parametrize("check", [False, True])
def test_a_compose_file_that_compose_refuses_replaces_nothing(deployed, check):
    before = deployed.files()
    bad = Declared(more_files=())
    bad.compose = lambda: {"services": {"web": {"image": "app:1"}}, "bogus": 1}  # type: ignore[method-assign]
    error = deployed.fail(bad, check=check)
    assert "compose.yml is not valid" in str(error)
    assert "bogus" in str(error)
    assert deployed.files() == before


def test_build_is_refused(host):
    assert "builds none" in str(host.fail(Declared(extra={"build": {"context": "."}})))


def test_an_unknown_owner_is_named_before_anything_is_written(host):
    error = host.fail(Declared(more_files=(HostFile("x", b"", 0o644, "nobody_here"),)))
    assert "no user 'nobody_here'" in str(error)
    assert host.world["containers"] == []
    assert "compose.yml" not in host.files()


def test_a_second_run_at_the_same_time_waits_and_then_says_so(deployed):
    holder = subprocess.Popen(
        f"exec 9<{deployed.root}; flock 9; echo locked; read line",
        shell=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout.readline() == b"locked\n"
    try:
        assert "Another run works on" in str(deployed.fail(Declared(page="page two")))
        assert deployed.run(Declared(), check=True)["changed"] is False
    finally:
        holder.communicate(b"\n")
    assert deployed.run(Declared(page="page two"))["changed"]


# -- secrets and the module itself -------------------------------------------------------------------------------------


def test_diff_shows_files_and_hides_secrets(deployed):
    wanted = Declared(
        page="page two", secret="the-second-secret", environment="PASSWORD=second-password", image="app:2"
    )
    diff = {entry.get("after_header", "actions"): entry for entry in deployed.run(wanted)["diff"]}
    assert diff[str(deployed.root / "page.html")]["before"] == "page one"
    assert diff[str(deployed.root / "page.html")]["after"] == "page two"
    token = diff[str(deployed.root / "secrets/token")]
    assert (token["before"], token["after"]) == ("<redacted>\n", "<redacted, changed>\n")
    assert diff["actions"]["prepared"] == "portal: web recreated (image app:1 -> app:2)\n"


def module(host, capsys, declared, **flags):
    payload = declared.payload().pack()
    arguments = {"name": "portal", "project_directory": str(host.base), "state": declared.state, "wait_timeout": 1}
    arguments.update(declared.options, _payload=payload, **{f"_ansible_{key}": value for key, value in flags.items()})
    with patch_module_args(arguments), pytest.raises(SystemExit):
        compose_stack.main()
    return capsys.readouterr().out


def test_no_secret_in_any_output_of_the_module(host, capsys):
    secrets = ["the-first-secret", "first-password", "the-second-secret", "second-password"]
    leaky = {"command": ["serve", "--password=first-password"]}  # a secret in a file that is none
    texts = []
    for declared in (
        Declared(extra=leaky),
        Declared(secret=secrets[2], environment="PASSWORD=second-password"),
        Declared(image="app:sick"),
        Declared(state="absent"),
    ):
        host.change(logs=" ".join(secrets))
        for check in (True, False):
            texts.append(module(host, capsys, declared, check_mode=check, diff=True, verbosity=5))
    found = [secret for secret in secrets for text in texts if secret in text]
    assert found == []
    assert '"changed": true' in texts[0]
    assert "is unhealthy" in texts[5]


def test_no_secret_in_a_docker_argument_or_label(host):
    host.run(Declared())
    host.run(Declared(secret="the-second-secret"))
    host.fail(Declared(secret="the-third-secret", image="app:crash"))
    world = host.world
    assert "-secret" not in json.dumps(world["calls"])
    assert "-secret" not in json.dumps([container["labels"] for container in world["containers"]])
    manifest = (host.root / ".kitestacks.json").read_text()
    assert "-secret" not in manifest
    assert "password" not in manifest


def test_old_secrets_do_not_stay_in_the_snapshot(deployed):
    deployed.run(Declared(secret="the-second-secret"))
    left = {path.name for path in deployed.root.iterdir()}
    assert not left & {".previous", ".staging"}


def test_payload_survives_its_transfer():
    payload = Payload(
        (HostFile("a", bytes(range(256)), 0o600, "1", None, True),), (StackDirectory("d", None, "x", None),), ("web",)
    )
    assert Payload.unpack(payload.pack()) == payload


def test_a_manifest_that_cannot_be_read_is_made_anew(deployed):
    (deployed.root / ".kitestacks.json").write_text("{")
    assert deployed.run(Declared())["changed"]
    assert not deployed.run(Declared())["changed"]


def test_a_signal_reaches_the_first_process_and_docker_does_not_hear_of_it(monkeypatch):
    """After `docker kill`, whatever the signal, `unless-stopped` would leave the container down after a reboot."""
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        monkeypatch.setattr(Docker, "inspect", lambda _docker, _ids: [{"State": {"Pid": process.pid}}])
        monkeypatch.setattr(Docker, "run", lambda *_arguments, **_options: pytest.fail("docker was asked to send it"))
        Docker.signal(Docker.__new__(Docker), ["id"], "SIGUSR1")
        assert process.wait(10) == -signal.SIGUSR1


def test_a_signal_for_a_container_that_has_ended(monkeypatch):
    monkeypatch.setattr(Docker, "inspect", lambda _docker, _ids: [{"State": {"Pid": 0}}])
    with pytest.raises(ProcessLookupError):
        Docker.signal(Docker.__new__(Docker), ["id"], "SIGUSR1")
