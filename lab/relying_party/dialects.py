"""How an application is told about its identity provider, and what it refuses: one function per application."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit


class Refused(Exception):  # noqa: N818 - the reader's word
    """A setting that is missing or cannot be right."""


@dataclass(frozen=True)
class Settings:
    """What an application was told.

    `discovery` is the address of the provider's document; where it is empty the three endpoints are given. `issuer` is
    what the provider has to call itself, to the letter; empty: whatever the document says. `admins` and `role` decide
    what is shown as the user's role: the name of a group, or a JMESPath expression over the claims.
    """

    application: str
    client_id: str
    client_secret: str
    root_url: str
    start: str
    callback: str
    health: str
    port: int
    scopes: str
    discovery: str = ""
    issuer: str = ""
    authorize_url: str = ""
    token_url: str = ""
    userinfo_url: str = ""
    pkce: bool = True
    automatic: bool = False
    groups_claim: str = "groups"
    subject_claim: str = "sub"
    admins: str = ""
    role: str = ""


class Reader:
    """Reads variables, with the file form that the application knows (`{}` stands for the name)."""

    def __init__(self, environment: Mapping[str, str], file_form: str) -> None:
        self.environment = environment
        self.file_form = file_form

    def text(self, name: str, default: str | None = None) -> str:
        """Return a variable; without a default it has to be there.

        Raises:
            Refused: it is not, or it is there twice, or its file is not.
        """
        in_file = self.file_form.format(name)
        value, path = self.environment.get(name, ""), self.environment.get(in_file, "")
        if value and path:
            raise Refused(f"{name} and {in_file} are both set")
        if path:
            try:
                # A newline at the end of the file is part of the value, as for the applications.
                value = Path(path).read_text()
            except OSError as error:
                raise Refused(f"{in_file}: {error}") from None
        if not value and default is None:
            raise Refused(f"{name} is missing")
        return value or default or ""

    def url(self, name: str) -> str:
        """Return a variable that has to be an address.

        Raises:
            Refused: it is none.
        """
        value = self.text(name)
        if urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).netloc or value != value.strip():
            raise Refused(f"{name} is {value!r}; it has to be a URL")
        return value

    def flag(self, name: str, default: str = "false") -> bool:
        """Return a variable that has to be true or false.

        Raises:
            Refused: it is neither.
        """
        value = self.text(name, default).lower()
        if value not in ("true", "false"):
            raise Refused(f"{name} is {value!r}; it has to be true or false")
        return value == "true"


def grafana(environment: Mapping[str, str], _arguments: list[str]) -> Settings:
    """Read Grafana's GF_AUTH_GENERIC_OAUTH_*."""
    read = Reader(environment, "{}__FILE")
    prefix = "GF_AUTH_GENERIC_OAUTH_"
    if not read.flag(f"{prefix}ENABLED"):
        raise Refused(f"{prefix}ENABLED has to be true")
    return Settings(
        application="Grafana",
        client_id=read.text(f"{prefix}CLIENT_ID"),
        client_secret=read.text(f"{prefix}CLIENT_SECRET"),
        root_url=read.url("GF_SERVER_ROOT_URL").rstrip("/"),
        start="/login/generic_oauth",
        callback="/login/generic_oauth",
        health="/api/health",
        port=3000,
        scopes=read.text(f"{prefix}SCOPES"),
        authorize_url=read.url(f"{prefix}AUTH_URL"),
        token_url=read.url(f"{prefix}TOKEN_URL"),
        userinfo_url=read.url(f"{prefix}API_URL"),
        pkce=read.flag(f"{prefix}USE_PKCE"),
        automatic=read.flag("GF_AUTH_OAUTH_AUTO_LOGIN"),
        role=read.text(f"{prefix}ROLE_ATTRIBUTE_PATH", ""),
    )


def bookstack(environment: Mapping[str, str], _arguments: list[str]) -> Settings:
    """Read BookStack's OIDC_*: only discovery, only https, and an issuer that is compared to the letter."""
    read = Reader(environment, "FILE__{}")
    if read.text("AUTH_METHOD") != "oidc":
        raise Refused("AUTH_METHOD has to be oidc")
    if not read.flag("OIDC_ISSUER_DISCOVER"):
        raise Refused("OIDC_ISSUER_DISCOVER has to be true: this stand-in knows no endpoints of its own")
    issuer = read.url("OIDC_ISSUER")
    if not issuer.startswith("https://"):
        raise Refused(f"OIDC_ISSUER is {issuer}; discovery is done over https only")
    return Settings(
        application="BookStack",
        client_id=read.text("OIDC_CLIENT_ID"),
        client_secret=read.text("OIDC_CLIENT_SECRET"),
        root_url=read.url("APP_URL").rstrip("/"),
        start="/oidc/login",
        callback="/oidc/callback",
        health="/status",
        port=80,
        scopes=f"openid profile email {read.text('OIDC_ADDITIONAL_SCOPES', '').replace(',', ' ')}".strip(),
        discovery=f"{issuer.rstrip('/')}/.well-known/openid-configuration",
        issuer=issuer,
        automatic=read.flag("AUTH_AUTO_INITIATE"),
        groups_claim=read.text("OIDC_GROUPS_CLAIM", "groups"),
        subject_claim=read.text("OIDC_EXTERNAL_ID_CLAIM", "sub"),
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise Refused(message)


def forgejo(environment: Mapping[str, str], arguments: list[str]) -> Settings:
    """Read the flags of `forgejo admin auth add-oauth`, and the root URL from Forgejo's environment."""
    parser = _Parser(prog="forgejo admin auth add-oauth")
    for name in ("name", "provider", "key", "secret", "auto-discover-url"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("group-claim-name", "admin-group", "restricted-group", "required-claim-name", "required-claim-value"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--scopes", action="append", default=[])
    parser.add_argument("--skip-local-2fa", action="store_true")
    given = parser.parse_args(arguments)
    if given.provider != "openidConnect":
        raise Refused(f"--provider is {given.provider!r}; this stand-in knows openidConnect")
    read = Reader(environment, "{}__FILE")
    return Settings(
        application="Forgejo",
        client_id=given.key,
        client_secret=given.secret,
        root_url=read.url("FORGEJO__server__ROOT_URL").rstrip("/"),
        start=f"/user/oauth2/{given.name}",
        callback=f"/user/oauth2/{given.name}/callback",
        health="/api/healthz",
        port=3000,
        scopes=" ".join(["openid", *given.scopes]),
        discovery=given.auto_discover_url,
        pkce=False,
        groups_claim=given.group_claim_name or "groups",
        admins=given.admin_group,
    )


DIALECTS: dict[str, Callable[[Mapping[str, str], list[str]], Settings]] = {
    "grafana": grafana,
    "bookstack": bookstack,
    "forgejo": forgejo,
}
