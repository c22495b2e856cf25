# Copyright: KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module files: what differs is replaced, all or nothing, and a run may be cut off anywhere."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from ansible_collections.kitestacks.homelab.plugins.module_utils import _file_set
from ansible_collections.kitestacks.homelab.plugins.module_utils._files import HostFile, pack
from ansible_collections.kitestacks.homelab.plugins.modules import files
from ansible_collections.kitestacks.homelab.tests.unit._module import run_module
from ansible_collections.kitestacks.homelab.tests.unit._playbook import play

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="sets owners of files: run as root")

# Everything that changes a file or a folder.
STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "os.chown"}


def run(*wanted, check=False, absent=(), validate=None):
    """Run the module as its action plugin does. `validate` is the check of every file that is wanted."""
    sent = [*wanted, *(HostFile(str(path), b"", 0) for path in absent)]
    entries = [{"dest": file.path, "validate": validate} for file in wanted]
    entries += [{"dest": str(path), "state": "absent"} for path in absent]
    result = run_module(files.main, check=check, files=entries, _payload=pack(sent))
    return {name: value for name, value in result.items() if name != "invocation"}  # which ansible-core 2.20 adds


def tree(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_set_is_written_once_and_check_mode_says_so_before(tmp_path):
    wanted = (
        HostFile(f"{tmp_path}/etc/new/a.conf", b"a\n", 0o644),
        HostFile(f"{tmp_path}/b.fact", b"b\n", 0o755, "1", "2"),
    )
    gone = tmp_path / "gone"
    gone.write_text("old\n")
    predicted = run(*wanted, absent=[gone], check=True)
    assert tree(tmp_path) == {"gone": "old\n"}
    done = run(*wanted, absent=[gone])
    assert done == predicted
    assert done["files"] == [wanted[0].path, wanted[1].path, str(gone)]
    assert [(entry["before"], entry["after"]) for entry in done["diff"]] == [("", "a\n"), ("", "b\n"), ("old\n", "")]
    assert tree(tmp_path) == {"etc/new/a.conf": "a\n", "b.fact": "b\n"}
    found = (tmp_path / "b.fact").stat()
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o755, 1, 2)
    assert (tmp_path / "etc/new").stat().st_mode & 0o7777 == 0o755
    assert run(*wanted, absent=[gone]) == {"changed": False, "files": [], "diff": []}


@pytest.mark.parametrize(
    ("spoil", "before"),
    [
        (lambda place: place.write_text("by hand\n"), "by hand\n"),
        (lambda place: place.chmod(0o666), "mode 0666, owner 0, group 0\n"),
        (lambda place: os.chown(place, 7, 8), "mode 0644, owner 7, group 8\n"),
        (lambda place: (place.rename(place.with_name("moved")), place.symlink_to("moved")), ""),
    ],
    ids=["content", "mode", "owner", "symlink"],
)
def test_drift_is_predicted_and_mended_and_nothing_else_is_touched(tmp_path, spoil, before):
    wanted = (HostFile(f"{tmp_path}/a", b"a\n", 0o644), HostFile(f"{tmp_path}/b", b"b\n", 0o644))
    run(*wanted)
    untouched = (tmp_path / "b").stat()
    spoil(tmp_path / "a")
    predicted = run(*wanted, check=True)
    done = run(*wanted)
    assert predicted == done
    assert done["files"] == [wanted[0].path]
    assert done["diff"][0]["before"] == before
    found = (tmp_path / "a").lstat()
    assert ((tmp_path / "a").read_text(), found.st_mode, found.st_uid) == ("a\n", 0o100644, 0)
    assert (tmp_path / "b").stat() == untouched
    assert not run(*wanted)["changed"]


def test_when_one_file_is_refused_none_is_replaced(tmp_path):
    run(HostFile(f"{tmp_path}/a", b"good\n", 0o644), HostFile(f"{tmp_path}/b", b"good\n", 0o644))
    wanted = (HostFile(f"{tmp_path}/a", b"good, too\n", 0o644), HostFile(f"{tmp_path}/b", b"bad\n", 0o644))
    failed = run(*wanted, absent=[f"{tmp_path}/a-"], validate="grep good %s")
    assert failed["failed"]
    assert failed["msg"] == f"{tmp_path}/b: 'grep good %s' refuses the new file: . No file was replaced."
    assert tree(tmp_path) == {"a": "good\n", "b": "good\n"}
    missing = run(*wanted, validate="no-such-command %s")
    assert "'no-such-command %s' cannot be run: No such file or directory" in missing["msg"]
    assert tree(tmp_path) == {"a": "good\n", "b": "good\n"}
    assert run(*wanted, validate="grep good %s", check=True)["changed"]  # as the builtin modules: nothing to validate


def test_what_a_check_says_of_a_secret_is_not_shown(tmp_path):
    secret = HostFile(f"{tmp_path}/a", b"hidden-word\n", 0o400, secret=True)
    (tmp_path / "refuse").write_text("cat $1\nexit 1\n")
    failed = run(secret, validate=f"sh {tmp_path}/refuse %s")
    assert "what it says is not shown" in failed["msg"]
    assert "hidden-word" not in str(failed)
    shown = run(HostFile(f"{tmp_path}/b", b"line one\n", 0o644), validate=f"sh {tmp_path}/refuse %s")
    assert "refuses the new file: line one. No file was replaced." in shown["msg"]


def test_a_secret_is_in_no_diff(tmp_path):
    run(HostFile(f"{tmp_path}/a", b"first-secret\n", 0o400, secret=True))
    done = run(HostFile(f"{tmp_path}/a", b"second-secret\n", 0o400, secret=True))
    assert done["changed"]
    assert "secret\n" not in str(done)
    assert done["diff"][0]["after"] == "<redacted, changed>\n"


def test_a_directory_and_an_unknown_owner_are_told(tmp_path):
    (tmp_path / "a").mkdir()
    failed = run(HostFile(f"{tmp_path}/a", b"", 0o644))
    assert "is declared as a file, but is a directory" in failed["msg"]
    stranger = HostFile(f"{tmp_path}/b", b"", 0o644, "nobody_here")
    assert "there is no user 'nobody_here'" in run(stranger)["msg"]
    assert run(stranger, check=True)["changed"]  # a task before this one may make the user
    assert tree(tmp_path) == {}


def killed_at(step: int, wanted, absent) -> bool:
    """Run in a child that is killed right before its `step`-th step on the disk; return whether it got so far."""
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event, arguments):
            nonlocal count
            writes = event in STEPS and (event != "open" or bool(arguments[2] & (os.O_WRONLY | os.O_RDWR)))
            count += writes
            if writes and count == step:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        changes = _file_set.plan(wanted, absent, strict=True)
        _file_set.carry_out(changes, wanted, lambda _file, _place: None)
        os._exit(0)
    _pid, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_a_run_that_is_killed_anywhere_is_finished_by_the_next(tmp_path):
    old = {name: f"old {name}\n" for name in ("a", "b", "gone")}
    new = {name: f"new {name}\n" for name in ("a", "b", "sub/c")}
    step = 0
    killed = True
    while killed:
        step += 1
        place = tmp_path / str(step)
        place.mkdir()
        for name, text in old.items():
            (place / name).write_text(text)
        wanted = [HostFile(f"{place}/{name}", text.encode(), 0o640, "1") for name, text in new.items()]
        absent = [HostFile(f"{place}/gone", b"", 0)]
        killed = killed_at(step, wanted, absent)
        left = tree(place)
        for name, text in new.items():
            assert left.get(name) in (old.get(name), text), (step, left)
        _file_set.carry_out(_file_set.plan(wanted, absent, strict=True), wanted, lambda _file, _place: None)
        assert tree(place) == new, step
        assert _file_set.plan(wanted, absent, strict=True) == []
    assert step > 10


TEMPLATE = "{% for n in [1, 2] %}\n{{ n }} {{ word }}\n{% endfor %}\n# {{ ansible_managed }} {{ template_path }}\n"


def test_through_a_playbook_templates_are_rendered_and_no_secret_is_seen(tmp_path):
    for folder in ("templates", "files"):
        (tmp_path / folder).mkdir()
    (tmp_path / "templates/a.conf.j2").write_text(TEMPLATE)
    (tmp_path / "files/tool").write_text("#!/bin/sh\n{{ as it is }}\n")
    (tmp_path / "files/tool").chmod(0o755)
    out = tmp_path / "out"
    task = {
        "name": "Files are current",
        "kitestacks.homelab.files": {
            "files": [
                {"src": "a.conf.j2", "dest": f"{out}/a.conf", "validate": "grep word %s"},
                {"src": "tool", "dest": f"{out}/tool"},
                {"dest": f"{out}/token", "content": "{{ token }}", "secret": True},
                {"dest": f"{out}/gone", "state": "absent"},
            ]
        },
    }
    builtin = {
        "name": "For comparison",
        "ansible.builtin.template": {"src": "a.conf.j2", "dest": f"{tmp_path}/builtin", "mode": "0644"},
    }
    extra = ("-e", '{"word": "word", "token": "a-hidden-token"}', "--diff", "-vvv")
    predicted = play(tmp_path, [builtin, task], *extra, "--check")
    assert not out.exists()
    first = play(tmp_path, [builtin, task], *extra)
    second = play(tmp_path, [builtin, task], *extra)
    results = [played.records[1]["result"] for played in (predicted, first, second)]
    assert [(result["changed"], result["files"]) for result in results] == [
        (True, [f"{out}/a.conf", f"{out}/tool", f"{out}/token"]),
        (True, [f"{out}/a.conf", f"{out}/tool", f"{out}/token"]),
        (False, []),
    ]
    assert (out / "a.conf").read_text() == (tmp_path / "builtin").read_text()
    assert (out / "tool").read_text() == "#!/bin/sh\n{{ as it is }}\n"
    modes = {path.name: f"{path.stat().st_mode & 0o7777:o}" for path in out.iterdir()}
    assert modes == {"a.conf": "644", "tool": "755", "token": "400"}
    assert (out / "token").read_text() == "a-hidden-token"
    for played in (predicted, first, second):
        text = played.everything.replace('"token": "a-hidden-token"', "")  # -vvv shows the command line itself
        assert "a-hidden-token" not in text
        assert "DEPRECATION" not in text


def test_mistakes_are_refused_before_anything_is_sent(tmp_path):
    cases = {
        "must be an absolute path": [{"dest": "etc/x", "content": ""}],
        "without '..'": [{"dest": "/etc/../x", "content": ""}],
        "is declared more than once": [{"dest": "/x", "content": ""}, {"dest": "/x", "state": "absent"}],
        "give either src or content": [{"dest": "/x"}],
        "give either src or content ": [{"dest": "/x", "src": "y", "content": "z"}],
        "there is no 'y.j2' in templates/": [{"dest": "/x", "src": "y.j2"}],
        "there is no 'y' in files/": [{"dest": "/x", "src": "y"}],
        "quoted octal string": [{"dest": "/x", "content": "", "mode": 420}],
        "validate must have %s": [{"dest": "/x", "content": "", "validate": "true"}],
        "Supported parameters include": [{"dest": "/x", "content": "", "unit": "y"}],
        "value of state must be one of": [{"dest": "/x", "state": "touch"}],
    }
    tasks = [
        {"name": words, "kitestacks.homelab.files": {"files": entries}, "ignore_errors": True}
        for words, entries in cases.items()
    ]
    played = play(tmp_path, tasks)
    messages = [record["result"]["msg"] for record in played.records]
    assert [words for words, message in zip(cases, messages) if words.strip() not in message] == [], messages
    assert not Path("/x").exists()
