"""Which image is built for what a role names."""

from __future__ import annotations

import pytest

from lab import images


@pytest.fixture
def build(monkeypatch):
    """Build without docker: every image is there already."""
    monkeypatch.setattr(images, "from_upstream", lambda: False)
    monkeypatch.setattr(images, "_exists", lambda _tag: True)
    return images.build.__wrapped__


def test_the_tag_decides_which_release_a_stand_in_plays(build):
    assert build("server", "2026.5.6") != build("server", "2026.8.4")
    assert build("haproxy", "3.1") == build("haproxy", "3.2")


def test_an_image_is_another_when_its_sources_are(build, monkeypatch, tmp_path):
    before = build("ldap", "2026.8.4")
    files = images._context("ldap")
    (tmp_path / "ldap.py").write_text("changed")
    changed = {**files, "src/lab/authentik/ldap.py": tmp_path / "ldap.py"}
    assert set(changed) == set(files)
    monkeypatch.setattr(images, "_context", lambda _name: changed)
    assert build("ldap", "2026.8.4") != before
