# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.kitestacks.homelab.plugins.modules import cloudflare_info
from ansible_collections.kitestacks.homelab.tests.fakes.cloudflare import PERMISSIONS, TOKEN

from ._module import run_module

# Option: (the permission in the API, its name in the dashboard).
NAMES = {
    "zone_read": ("Zone Read", "Zone > Zone > Read"),
    "dns_read": ("DNS Read", "Zone > DNS > Read"),
    "dns_write": ("DNS Write", "Zone > DNS > Edit"),
    "tunnel_read": ("Cloudflare Tunnel Read", "Account > Cloudflare Tunnel > Read"),
    "tunnel_write": ("Cloudflare Tunnel Write", "Account > Cloudflare Tunnel > Edit"),
    "access_apps_read": ("Access: Apps and Policies Read", "Account > Access: Apps and Policies > Read"),
    "access_apps_write": ("Access: Apps and Policies Write", "Account > Access: Apps and Policies > Edit"),
    "access_organizations_read": (
        "Access: Organizations, Identity Providers, and Groups Read",
        "Account > Access: Organizations, Identity Providers, and Groups > Read",
    ),
    "access_organizations_write": (
        "Access: Organizations, Identity Providers, and Groups Write",
        "Account > Access: Organizations, Identity Providers, and Groups > Edit",
    ),
}


def go(server, **options):
    return run_module(cloudflare_info.main, **{"api_url": server.url, "api_token": TOKEN, **options})


def test_it_tells_zone_account_and_token(cloudflare):
    result = go(cloudflare, zone="Example.com")
    assert not result["changed"]
    assert result["token"] == {"id": "0" * 31 + "3", "status": "active", "expires_on": None}
    assert result["account"] == {"id": cloudflare.service.account["id"], "name": "Home"}
    assert result["zone"]["id"] == cloudflare.service.zone_id("example.com")
    assert result["zone"]["plan"] == "free"
    assert len(cloudflare.calls) == 2


def test_a_token_with_all_permissions_lacks_none_and_nothing_is_changed(cloudflare):
    before = str(cloudflare.service.records), str(cloudflare.service.tunnels), str(cloudflare.service.access)
    result = go(cloudflare, zone="example.com", permissions=list(NAMES))
    assert result["missing_permissions"] == []
    assert result["permissions"] == dict.fromkeys(NAMES, True)
    after = str(cloudflare.service.records), str(cloudflare.service.tunnels), str(cloudflare.service.access)
    assert before == after


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_permission_is_named_as_the_dashboard_names_it(cloudflare, name):
    wanted, label = NAMES[name]
    cloudflare.service.tokens["poor"] = PERMISSIONS - {wanted, wanted.replace(" Read", " Write")}
    result = go(
        cloudflare,
        api_token="poor",
        zone="example.com",
        permissions=[name],
        account_id=cloudflare.service.account["id"],
    )
    assert result["missing_permissions"] == [label]
    assert result["permissions"] == {name: False}


def test_a_zone_that_the_token_does_not_see_is_null(cloudflare):
    result = go(cloudflare, zone="example.org", permissions=["dns_write"])
    assert result["zone"] is None
    assert result["missing_permissions"] == ["Zone > DNS > Edit"]


def test_a_token_that_is_none_is_told(cloudflare):
    assert "The API token is not valid" in go(cloudflare, api_token="nonsense")["msg"]


def test_a_token_of_an_account_is_verified_there(cloudflare):
    cloudflare.fault(
        status=401, path="^/user/tokens", body={"success": False, "errors": [{"code": 1000, "message": "no"}]}
    )
    assert go(cloudflare, account_id=cloudflare.service.account["id"])["token"]["status"] == "active"


@pytest.mark.usefixtures("waits")
def test_a_server_error_is_no_missing_permission(cloudflare):
    cloudflare.fault(status=500, method="PATCH", times=99)
    result = go(cloudflare, permissions=["tunnel_write"])
    assert result["failed"]
    assert "HTTP 500" in result["msg"]
