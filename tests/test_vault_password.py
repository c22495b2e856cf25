"""bin/vault-password: one password for all who ask, and none that would hide that the real one is gone."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bin" / "vault-password"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A copy of the script in a checkout that has nothing else."""
    (tmp_path / "bin").mkdir()
    return Path(shutil.copy(SCRIPT, tmp_path / "bin"))


def test_all_who_ask_at_once_get_the_same(script: Path) -> None:
    asking = [subprocess.Popen([script], stdout=subprocess.PIPE) for _ in range(16)]
    answers = {process.communicate()[0] for process in asking}
    assert [process.returncode for process in asking] == [0] * 16
    assert len(answers) == 1
    assert len(answers.pop()) > 40
    kept = script.parents[1] / ".vault_password"
    assert kept.stat().st_mode & 0o7777 == 0o600
    assert sorted(path.name for path in script.parents[1].iterdir()) == [".vault_password", "bin"]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (".vault_password", ".vault_password is empty"),
        ("inventories/home/group_vars/all/vault.yml", "is encrypted, and there is no .vault_password"),
    ],
)
def test_none_is_made_where_there_should_be_one(script: Path, file: str, message: str) -> None:
    place = script.parents[1] / file
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch()
    done = subprocess.run([script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
