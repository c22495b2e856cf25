"""The last of the site tests, by its name: taking the lab down leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

from lab import engine, machines, settings, site
from lab.shell import docker, run


def test_down_leaves_nothing_behind(second: site.Run) -> None:
    everything = (*settings.HOSTS, settings.GUEST, *settings.SERVICES)
    identities = [docker("inspect", "--format", "{{.Id}}", machine.name) for machine in everything]
    ours = engine.ours()
    machines.down()
    assert docker("ps", "--all", "--quiet", "--filter", f"label={settings.LABEL}") == ""
    assert docker("network", "ls", "--quiet", "--filter", f"label={settings.LABEL}") == ""
    volumes = docker("volume", "ls", "--format", "{{.Name}}").splitlines()
    assert [name for name in volumes if name.startswith(("lab-", "monk-", "kscloud1-"))] == []
    groups = [str(path) for path in Path("/sys/fs/cgroup").rglob("*") if path.is_dir()]
    assert [path for path in groups if any(identity in path for identity in identities)] == []
    assert settings.SUBNET.rpartition(".")[0] not in run("iptables-save").stdout
    assert "lab0" not in run("ip", "link").stdout

    engine.stop_ours()
    if ours:
        assert not engine.answers()
        assert "DOCKER" not in run("iptables-save").stdout
        assert "docker0" not in json.dumps(run("ip", "link").stdout)
