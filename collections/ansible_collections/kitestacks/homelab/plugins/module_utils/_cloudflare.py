# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Cloudflare API: its envelope, pages and errors, and what every Cloudflare module does alike.

Source of the shapes: Cloudflare's OpenAPI document and developers.cloudflare.com/api.
"""

from __future__ import annotations

import re
import typing as t

from ansible.module_utils.basic import AnsibleModule, env_fallback

from ._apply import Api
from ._http import CONNECTION_SPEC, ApiError, Response, Settings
from ._reconcile import Document, Documents, Kind, PlanError

SPEC: dict[str, dict[str, t.Any]] = {
    **CONNECTION_SPEC,
    "api_token": {
        "type": "str",
        "required": True,
        "no_log": True,
        "fallback": (env_fallback, ["CLOUDFLARE_API_TOKEN"]),
    },
    "api_url": {
        "type": "str",
        "default": "https://api.cloudflare.com/client/v4",
        "fallback": (env_fallback, ["CLOUDFLARE_API_URL"]),
    },
}
ACCOUNT_SPEC: dict[str, dict[str, t.Any]] = {**SPEC, "account_id": {"type": "str"}}
PURGE_SPEC: dict[str, dict[str, t.Any]] = {
    "purge": {"type": "bool", "default": False},
    "purge_allow_empty": {"type": "bool", "default": False},
    "purge_name_prefix": {"type": "str"},
}

# One label of a host name, in ASCII and lower case. Names of services and keys start with an underscore.
LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")

TUNNEL = Kind(
    "tunnel",
    "/accounts/{account_id}/cfd_tunnel",
    query={"is_deleted": False, "per_page": 1000},
    create_only=frozenset({"config_src"}),
    write_only=frozenset({"tunnel_secret"}),
    secret=frozenset({"tunnel_secret"}),
    read_only=frozenset(
        {
            "account_tag",
            "connections",
            "conns_active_at",
            "conns_inactive_at",
            "created_at",
            "deleted_at",
            "metadata",
            "remote_config",
            "status",
            "tun_type",
        }
    ),
)


class Cloudflare(Api):
    """A connection to the Cloudflare API."""

    def describe_error(self, response: Response) -> tuple[int | str | None, str]:
        """Return code and message of the first error, with the reasons that its chain gives."""
        errors = response.data.get("errors") if isinstance(response.data, dict) else None
        if not isinstance(errors, list) or not errors or not isinstance(errors[0], dict):
            return super().describe_error(response)
        messages = []
        for error in errors:
            chain = error.get("error_chain") or []
            messages += [f"{item.get('message')}" for item in (error, *chain) if isinstance(item, dict)]
        return errors[0].get("code"), "; ".join(messages)

    def unwrap(self, response: Response) -> t.Any:
        """Return `result`.

        Raises:
            ApiError: the answer is no document of this API: the base URL is wrong, or something in between answered.

        """
        if not isinstance(response.data, dict) or "result" not in response.data:
            message = "the answer is no document of the Cloudflare API"
            raise ApiError(response.method, response.path, response.status, None, message)
        return response.data["result"]

    def list(self, path: str, query: t.Mapping[str, t.Any] | None = None) -> Documents:
        """Return all pages of a collection. Some collections tell their page count, others must be read to the end."""
        asked = dict(query or {})
        found: Documents = []
        page = 1
        while True:
            response = self.request("GET", path, query={**asked, "page": page} if page > 1 else asked)
            part = self.unwrap(response) or []
            found += part
            info = response.data.get("result_info") or {}
            if not part or _last(info, page, len(part), len(found), asked.get("per_page")):
                return found
            page += 1

    def zone(self, name: str) -> Document:
        """Return the zone with this name.

        Raises:
            PlanError: the token sees no such zone, or it is active in several accounts.

        """
        found = self.list("/zones", {"name": name})
        if len(found) > 1:
            # Whoever claims a zone in another account has it pending there until its name servers say otherwise.
            found = [zone for zone in found if zone.get("status") == "active"] or found
        if len(found) > 1:
            raise PlanError(f"zone: the token sees {name} in several accounts; use a token for one of them")
        if not found:
            raise PlanError(
                f"zone: the token sees no zone {name}; check the name, and that the token has Zone:Read for it"
            )
        return found[0]

    def account_id(self, given: str | None) -> str:
        """Return the account to work on: the given one, else the only one that the token sees.

        Raises:
            PlanError: it sees none or several.

        """
        if given:
            return given
        found = self.list("/accounts", {"per_page": 50})
        if len(found) == 1:
            return str(found[0]["id"])
        names = ", ".join(f"{account['name']} ({account['id']})" for account in found) or "none"
        raise PlanError(f"account_id: has to be given, as the token does not see exactly one account (it sees {names})")

    def tunnels(self, account_id: str, **query: t.Any) -> Documents:
        """Return the live tunnels of an account; deleted ones stay in the API for months and are left out."""
        kind = TUNNEL.at(account_id=account_id)
        found = self.list(kind.path, {**kind.query, **query})
        return [tunnel for tunnel in found if not tunnel.get("deleted_at")]


def _last(info: Document, page: int, count: int, total: int, asked: int | None) -> bool:
    """Tell whether this was the last page; servers give fewer than asked when the size is above their limit."""
    if info.get("total_pages") is not None:
        return page >= int(info["total_pages"])
    if info.get("total_count") is not None:
        return total >= int(info["total_count"])
    size = info.get("per_page") or asked
    return size is None or count < int(size)


def main(
    spec: dict[str, dict[str, t.Any]],
    run: t.Callable[[AnsibleModule, Cloudflare], dict[str, t.Any]],
    **rules: t.Any,
) -> None:
    """Run a module: parse its options, open the connection, and turn every error into one message.

    Args:
        spec: argument spec, with `SPEC` in it.
        run: does the work and returns the result.
        rules: further arguments of AnsibleModule, such as `required_if`.

    """
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True, **rules)
    params = module.params
    try:
        api = Cloudflare(
            Settings(
                params["api_url"].rstrip("/"),
                headers={"Authorization": f"Bearer {params['api_token']}", "User-Agent": "kitestacks.homelab"},
                secrets=(params["api_token"],),
                timeout=params["timeout"],
                retries=params["retries"],
                ca_path=params["ca_path"],
                validate_certs=params["validate_certs"],
            )
        )
    except ValueError as error:
        module.fail_json(msg=f"api_url: {error}")
    try:
        found = run(module, api)
    except PlanError as error:
        module.fail_json(msg=str(error))
    except ApiError as error:
        module.fail_json(msg=f"{error}{hint(error)}", error=error.as_dict())
    finally:
        api.close()
    module.exit_json(**found)


def ascii_name(name: str) -> str:
    """Return a host name in lower case and punycode, without the final dot."""
    labels = name.strip().rstrip(".").lower().split(".")
    return ".".join(label if label.isascii() else label.encode("idna").decode() for label in labels)


def hint(error: ApiError) -> str:
    """Return what to do about an error that says it badly itself."""
    if error.status == 401 or error.code in (1000, 9109):
        return ". The API token is not valid: check api_token"
    if error.status == 403:
        return ". The API token lacks a permission for this: kitestacks.homelab.cloudflare_info tells which"
    return ""


def owned_by_prefix(module: AnsibleModule, declared: t.Sequence[t.Any]) -> t.Callable[[Document], bool] | None:
    """Return the test for objects that `purge` may delete, or None when it is off.

    Raises:
        PlanError: purge without a prefix, or of everything.

    """
    if not module.params["purge"]:
        return None
    prefix = module.params["purge_name_prefix"]
    if not prefix:
        raise PlanError("purge_name_prefix: has to be given with purge=true: only objects whose name has it are ours")
    if not declared and not module.params["purge_allow_empty"]:
        raise PlanError("purge: nothing is declared, so it would delete all; set purge_allow_empty=true to mean that")
    return lambda document: str(document.get("name", "")).startswith(prefix)
