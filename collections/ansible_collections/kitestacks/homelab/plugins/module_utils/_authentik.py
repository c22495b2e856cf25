# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Authentik's API v3: its resource types as tables, and what a module run knows about the server.

Objects refer to each other by id; people declare names. A `Session` reads each collection once, compares and shows
everything by name, and puts ids in place only when a request is sent. Fields that nobody declared are neither compared
nor sent, so that a field of a newer server cannot disturb.
"""

from __future__ import annotations

import re
import typing as t
import urllib.parse
from dataclasses import dataclass, field

from ansible.module_utils.basic import AnsibleModule, env_fallback

from ._apply import Api, Step, delete, run
from ._http import CONNECTION_SPEC, ApiError, Response, Settings
from ._reconcile import Action, Document, Documents, Kind, PlanError, get

PAGE_SIZE = 100  # the server's own limit; more is cut down to it silently
EMBEDDED = "goauthentik.io/outposts/embedded"
OWNER_ATTRIBUTE = "managed_by"
# What a marker in `attributes` or `context` says while the writes that follow a first one are not done yet.
PENDING = "kitestacks_pending"

# -- resource types --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resource(Kind):
    """A resource type of Authentik.

    Attributes:
        address: field that stands in the object's URL.
        refs: fields that hold ids of other objects (one or a list), with the name space of those.
        space: name space of its own names, where several types share one.
        merged: mappings of which only the declared keys are ours; a PATCH replaces the whole, so it sends both.
        optional: fields that a server may lack (see `since`) without harm: dropped silently for an older one.
        to_wire: functions that bring a field to the form that a server of a version takes.
        marker: path of the field that holds the owner's name.

    """

    id: str = "pk"
    address: str = "pk"
    refs: t.Mapping[str, str] = field(default_factory=dict)
    space: str = ""
    merged: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    to_wire: t.Mapping[str, t.Callable[[t.Any, tuple[int, ...]], t.Any]] = field(default_factory=dict)
    marker: str = ""

    def label(self, document: t.Mapping[str, t.Any]) -> str:
        """Return the key's values that are set; a binding has one subject of three."""
        return " ".join(str(get(document, name)) for name in self.key if get(document, name) is not None)

    def url(self, document: t.Mapping[str, t.Any]) -> str:
        """Return the path of a live object."""
        return f"{self.path}{urllib.parse.quote(str(document[self.address]), safe='')}/"


def strip(value: t.Any) -> t.Any:
    """Return a text as Authentik stores it: without blanks and line ends around it."""
    return value.strip() if isinstance(value, str) else value


_UNITS = {"microseconds": 1, "milliseconds": 10**3, "seconds": 10**6, "minutes": 60 * 10**6, "hours": 3600 * 10**6}
_UNITS.update(days=24 * _UNITS["hours"], weeks=7 * 24 * _UNITS["hours"])
DURATION = re.compile(rf"(?:(?:{'|'.join(_UNITS)})=\d+(?:;|$))+")


def duration(value: t.Any) -> t.Any:
    """Return a duration such as `hours=1;minutes=30` in its canonical form; other values come back as they are."""
    if not isinstance(value, str) or not DURATION.fullmatch(value):
        return value
    parts = [part.partition("=") for part in value.split(";") if part]
    rest = sum(_UNITS[unit] * int(number) for unit, _equals, number in parts)
    found = []
    for unit in ("days", "hours", "minutes", "seconds", "microseconds"):
        number, rest = divmod(rest, _UNITS[unit])
        if number:
            found.append(f"{unit}={number}")
    return ";".join(found) or "seconds=0"


def redirect_uris(value: t.Any) -> t.Any:
    """Return redirect URIs, or one of them, with the type that servers before 2026.5 do not state."""
    if isinstance(value, list):
        return [redirect_uris(entry) for entry in value]
    return {"redirect_uri_type": "authorization", **value} if isinstance(value, dict) else value


def _redirect_uris_to_wire(value: t.Any, version: tuple[int, ...]) -> t.Any:
    names = ("matching_mode", "url", *(("redirect_uri_type",) if version >= (2026, 5) else ()))
    return [{name: entry[name] for name in names} for entry in redirect_uris(value)]


_SHOWN_BY_SERVER = frozenset({
    "pk", "component", "verbose_name", "verbose_name_plural", "meta_model_name", "assigned_application_slug",
    "assigned_application_name", "assigned_backchannel_application_slug", "assigned_backchannel_application_name",
    "outpost_set", "provider_obj", "backchannel_providers_obj", "launch_url", "meta_icon_url", "meta_icon_themed_urls",
    "pbm_uuid", "num_pk", "parents_obj", "users_obj", "roles_obj", "inherited_roles_obj", "children", "children_obj",
    "groups_obj", "avatar", "uid", "uuid", "last_login", "date_joined", "last_updated", "password_change_date",
    "policy_obj", "group_obj", "user_obj", "providers_obj", "service_connection_obj", "refresh_interval_s",
    "token_identifier", "managed_models", "metadata", "last_applied", "last_applied_hash", "status", "managed",
})  # fmt: skip

FLOW = Resource(name="flow", path="/flows/instances/", key=("slug",))
CERTIFICATE = Resource(name="certificate", path="/crypto/certificatekeypairs/")
POLICY = Resource(name="policy", path="/policies/all/")
ROLE = Resource(name="role", path="/rbac/roles/")
SERVICE_CONNECTION = Resource(name="service connection", path="/outposts/service_connections/all/")
PROVIDER = Resource(name="provider", path="/providers/all/")

SCOPE_MAPPING = Resource(
    name="scope mapping",
    path="/propertymappings/provider/scope/",
    read_only=_SHOWN_BY_SERVER,
    normalise={"expression": strip, "description": strip},
)
GROUP = Resource(
    name="group",
    path="/core/groups/",
    query={"include_users": False},
    read_only=_SHOWN_BY_SERVER,
    unordered=frozenset({"parents", "roles", "users"}),
    refs={"parents": "group", "roles": "role", "users": "user"},
    merged=frozenset({"attributes"}),
    since={"parents": (2025, 12)},
    marker=f"attributes.{OWNER_ATTRIBUTE}",
)
USER = Resource(
    name="user",
    path="/core/users/",
    key=("username",),
    query={"include_groups": False},
    read_only=_SHOWN_BY_SERVER | {"is_superuser"},
    unordered=frozenset({"groups", "roles"}),
    refs={"groups": "group", "roles": "role"},
    merged=frozenset({"attributes"}),
    since={"roles": (2025, 12)},
    marker=f"attributes.{OWNER_ATTRIBUTE}",
)
TOKEN = Resource(
    name="token",
    path="/core/tokens/",
    key=("identifier",),
    address="identifier",
    read_only=_SHOWN_BY_SERVER | {"expires"},
    refs={"user": "user"},
    normalise={"description": strip},
)
APPLICATION = Resource(
    name="application",
    path="/core/applications/",
    key=("slug",),
    address="slug",
    # Without it the list holds only what the token's own user may open, and missing ones would be created again.
    query={"superuser_full_list": True},
    read_only=_SHOWN_BY_SERVER,
    unordered=frozenset({"backchannel_providers"}),
    refs={"provider": "provider", "backchannel_providers": "provider"},
    since={"meta_hide": (2026, 5)},
    marker="meta_publisher",
    normalise=dict.fromkeys(("name", "group", "meta_description", "meta_publisher"), strip),
)
# The key of a token is read and written by addresses of its own.
TOKEN_KEY = Resource(name="token key", key=("identifier",), id="identifier", secret=frozenset({"key"}))
BINDING = Resource(
    name="binding",
    path="/policies/bindings/",
    key=("target", "group", "user", "policy"),
    read_only=_SHOWN_BY_SERVER,
    # A PATCH without the target is an exception in the server, one without the subject is refused.
    always=frozenset({"target", "group", "user", "policy"}),
    refs={"target": "application", "group": "group", "user": "user", "policy": "policy"},
)
OUTPOST = Resource(
    name="outpost",
    path="/outposts/instances/",
    read_only=_SHOWN_BY_SERVER,
    unordered=frozenset({"providers"}),
    refs={"providers": "provider", "service_connection": "service connection"},
    merged=frozenset({"config"}),
)
BLUEPRINT = Resource(
    name="blueprint",
    path="/managed/blueprints/",
    read_only=_SHOWN_BY_SERVER,
    normalise={"content": strip},
)

_LIFETIMES = ("access_code_validity", "access_token_validity", "refresh_token_validity", "refresh_token_threshold")
_FLOWS = dict.fromkeys(("authentication_flow", "authorization_flow", "invalidation_flow"), "flow")

OAUTH2 = Resource(
    name="OAuth2 provider",
    path="/providers/oauth2/",
    space="provider",
    read_only=_SHOWN_BY_SERVER,
    secret=frozenset({"client_secret"}),
    unordered=frozenset({"property_mappings", "redirect_uris", "grant_types"}),
    refs={
        **_FLOWS,
        "property_mappings": "scope mapping",
        "signing_key": "certificate",
        "encryption_key": "certificate",
    },
    normalise={"redirect_uris": redirect_uris, **dict.fromkeys(_LIFETIMES, duration)},
    since={"grant_types": (2026, 5)},
    optional=frozenset({"grant_types"}),
    to_wire={"redirect_uris": _redirect_uris_to_wire},
)
LDAP = Resource(
    name="LDAP provider",
    path="/providers/ldap/",
    space="provider",
    read_only=_SHOWN_BY_SERVER,
    refs={**_FLOWS, "certificate": "certificate"},
)
PROXY = Resource(
    name="proxy provider",
    path="/providers/proxy/",
    space="provider",
    read_only=_SHOWN_BY_SERVER | {"redirect_uris", "client_id"},
    secret=frozenset({"client_secret"}),
    unordered=frozenset({"property_mappings"}),
    refs={**_FLOWS, "property_mappings": "scope mapping", "certificate": "certificate"},
    normalise=dict.fromkeys(_LIFETIMES, duration),
)

PROVIDERS = {"oauth2": OAUTH2, "ldap": LDAP, "proxy": PROXY}
PROVIDER_MODELS = {
    "authentik_providers_oauth2.oauth2provider": "oauth2",
    "authentik_providers_ldap.ldapprovider": "ldap",
    "authentik_providers_proxy.proxyprovider": "proxy",
}
SPACES: dict[str, Resource] = {
    kind.name: kind
    for kind in (
        FLOW,
        CERTIFICATE,
        POLICY,
        ROLE,
        SERVICE_CONNECTION,
        PROVIDER,
        SCOPE_MAPPING,
        GROUP,
        USER,
        APPLICATION,
        OUTPOST,
        BLUEPRINT,
    )
}
# What the modules of this collection can make.
_MADE_BY_US = frozenset({"application", "group", "outpost", "provider", "role", "scope mapping", "user"})
_SCOPE_PREFIX = "goauthentik.io/providers/oauth2/scope-"


def names_of(space: str, document: Document) -> list[str]:
    """Return the names that an object may be called by, the one that is shown first.

    A default scope mapping is called by its scope (`openid`), by its managed id and by its full name.
    """
    name = SPACES[space].label(document)
    managed = document.get("managed") or ""
    if space != "scope mapping" or not managed:
        return [name]
    short = managed[len(_SCOPE_PREFIX) :] if managed.startswith(_SCOPE_PREFIX) else name
    return [short, name, managed]


# -- options ---------------------------------------------------------------------------------------------------------

AUTHENTIK_SPEC: dict[str, dict[str, t.Any]] = {
    **CONNECTION_SPEC,
    "token": {"type": "str", "required": True, "no_log": True, "fallback": (env_fallback, ["AUTHENTIK_TOKEN"])},
    "url": {"type": "str", "required": True, "fallback": (env_fallback, ["AUTHENTIK_URL"])},
}


def purge_spec(*, owner: bool) -> dict[str, dict[str, t.Any]]:
    """Return the options that say what is ours; `owner` for types with a field that can hold the owner's name."""
    spec: dict[str, dict[str, t.Any]] = {
        "purge_allow_empty": {"type": "bool", "default": False},
        "purge_name_prefix": {"type": "str"},
        "purge": {"type": "bool", "default": False},
    }
    if owner:
        spec["owner"] = {"type": "str"}
    return spec


# -- the connection --------------------------------------------------------------------------------------------------


class Authentik(Api):
    """Authentik's way to say errors and to page lists."""

    def describe_error(self, response: Response) -> tuple[int | str | None, str]:
        """Return the messages of an error body, each with the path of the field it is about."""
        if isinstance(response.data, (dict, list)):
            return None, "; ".join(_messages(response.data)) or "no message"
        if response.status == 405 and not response.body:
            return None, "Authentik failed while it handled the request; its own log says why"
        if response.status == 404:
            return None, "nothing is served at this address; the option url has to be the base URL of Authentik"
        return super().describe_error(response)

    def is_server_error(self, response: Response) -> bool:
        """Tell whether Authentik failed in the middle: an exception on a write is an empty 405, a real 405 is JSON."""
        return response.status >= 500 or (response.status == 405 and not response.body)

    def list(self, path: str, query: t.Mapping[str, t.Any] | None = None) -> Documents:
        """Return all objects of a collection, all pages of it."""
        found: Documents = []
        page = 1
        while page:
            # A page is asked for by number from the second on only: the first is what most lists are.
            more = {} if page == 1 else {"page": page}
            try:
                data = self.get(path, {**(query or {}), "page_size": PAGE_SIZE, **more})
            except ApiError as error:
                if page > 1 and error.status == 404:  # objects went away while we read
                    return found
                raise
            if not isinstance(data, dict) or not isinstance(data.get("results"), list):
                raise ApiError("GET", path, 200, None, "the answer is no list of Authentik's API; check the option url")
            found.extend(data["results"])
            page = int(get(data, "pagination.next") or 0)
        return found


def _messages(data: t.Any, path: str = "") -> t.Iterator[str]:
    if isinstance(data, dict):
        for name, value in data.items():
            quiet = name in ("detail", "non_field_errors", "code")
            yield from _messages(value, path if quiet else f"{path}.{name}" if path else str(name))
    elif isinstance(data, list):
        for number, value in enumerate(data):
            yield from _messages(value, f"{path}.{number}" if isinstance(value, (dict, list)) else path)
    else:
        yield f"{path}: {data}" if path else str(data)


def connect(module: AnsibleModule) -> Authentik:
    """Return a client for the server that the module's options name; no request is sent.

    Raises:
        PlanError: the option url is no URL.

    """
    params = module.params
    base = params["url"].rstrip("/")
    if base.endswith("/api/v3"):
        base = base[: -len("/api/v3")]
    try:
        return Authentik(
            Settings(
                base + "/api/v3",
                headers={"Authorization": f"Bearer {params['token']}"},
                secrets=(params["token"],),
                timeout=params["timeout"],
                retries=params["retries"],
                ca_path=params["ca_path"],
                validate_certs=params["validate_certs"],
            )
        )
    except ValueError as error:
        raise PlanError(f"url: {error}") from None


def version_of(text: str) -> tuple[int, int]:
    """Return year and month of a release such as `2026.2.2` or `2026.5.0-rc1`.

    Raises:
        PlanError: it is no such text.

    """
    found = re.match(r"(\d+)\.(\d+)", text)
    if not found:
        raise PlanError(f"Authentik says it is version {text!r}; that is no version this collection knows")
    return int(found[1]), int(found[2])


# -- one module run --------------------------------------------------------------------------------------------------

Sender = t.Callable[[Action], t.Optional[Document]]
Reader = t.Callable[[], Documents]


class Session:
    """What one module run knows: the server's version, each collection read once, names for ids.

    Attributes:
        api: the connection.
        version: (year, month) of the server's release.
        senders: how an action of a kind is sent, by the kind's name, where plain REST is not enough.
        readers: how the live objects of a kind are read again, by its name, where a list is not enough.

    """

    def __init__(self, module: AnsibleModule) -> None:
        """Connect and ask for the version: a wrong address or token shows here, not as missing objects."""
        self.module = module
        self.api = connect(module)
        found = self.api.get("/admin/version/")
        if not isinstance(found, dict) or "version_current" not in found:
            raise PlanError("url: what answers there is not Authentik's API")
        self.version_text = str(found["version_current"])
        self.version = version_of(self.version_text)
        self.senders: dict[str, Sender] = {}
        self.readers: dict[str, Reader] = {}
        self._rows: dict[str, Documents] = {}
        self._ids: dict[str, dict[str, t.Any]] = {}
        self._names: dict[str, dict[t.Any, str]] = {}

    # Reading.

    def rows(self, kind: Resource, *, fresh: bool = False) -> Documents:
        """Return the live objects of a kind as the server shows them; listed once unless `fresh`."""
        if fresh or kind.path not in self._rows:
            self._rows[kind.path] = self.api.list(kind.path, kind.query)
            if fresh:
                # Among them may be an object that we made and whose answer got lost.
                for document in self._rows[kind.path]:
                    self.know(kind.space or kind.name, document)
        return self._rows[kind.path]

    def live(self, kind: Resource, *, fresh: bool = False) -> Documents:
        """Return the live objects of a kind with names in place of ids."""
        return [self.named(kind, document) for document in self.rows(kind, fresh=fresh)]

    def named(self, kind: Resource, document: Document) -> Document:
        """Return a live object with names in place of the ids of all name spaces that were read."""
        shown = dict(document)
        for name, space in kind.refs.items():
            value = shown.get(name)
            if space not in self._names or value is None:
                continue
            if isinstance(value, list):
                shown[name] = [self.name_of(space, entry) for entry in value]
            else:
                shown[name] = self.name_of(space, value)
        return shown

    def load(self, space: str) -> None:
        """Read the names of a name space, if that has not been done."""
        if space in self._ids:
            return
        self._ids[space], self._names[space] = {}, {}
        for document in self.rows(SPACES[space]):
            self.know(space, document)

    def know(self, space: str, document: Document) -> None:
        """Remember the names of an object, of a space that was read."""
        if space not in self._ids:
            return
        names = names_of(space, document)
        self._names[space][document["pk"]] = names[0]
        for name in names:
            self._ids[space].setdefault(name, document["pk"])

    def forget(self, space: str, identifier: t.Any) -> None:
        """Forget an object that will be deleted: references to it are shown by their id and count as changed."""
        self.load(space)
        self._names[space].pop(identifier, None)
        self._ids[space] = {name: pk for name, pk in self._ids[space].items() if pk != identifier}

    def id_of(self, space: str, name: str) -> t.Any:
        """Return the id of a named object, or None."""
        self.load(space)
        return self._ids[space].get(name)

    def name_of(self, space: str, identifier: t.Any) -> str:
        """Return the name that an object is shown by; one that is not known is shown by its id."""
        self.load(space)
        return self._names[space].get(identifier, str(identifier))

    # Checking what was declared.

    def check(
        self, kind: Resource, where: str, desired: Document, declared: t.Mapping[str, t.Collection[str]] | None = None
    ) -> Document:
        """Return a declared object as the server's version takes it, references by the name that they are shown by.

        Args:
            kind: its type.
            where: option and item, for messages.
            desired: the declared fields.
            declared: names by space that do not exist yet but will when this object is written.

        Raises:
            PlanError: a field is unknown to this version, a reference leads nowhere, a duration is none.

        """
        checked: Document = {}
        for name, value in desired.items():
            since = kind.since.get(name, ())
            if self.version < since:
                if name in kind.optional:
                    continue
                release = ".".join(str(number) for number in since)
                raise PlanError(f"{where}: {name}: needs Authentik {release}, the server is {self.version_text}")
            if kind.normalise.get(name) is duration and not DURATION.fullmatch(value):
                raise PlanError(f"{where}: {name}: {value!r} is no duration such as 'hours=1;minutes=30'")
            if name in kind.refs:
                value = self.reference(f"{where}: {name}", kind.refs[name], value, declared or {})  # noqa: PLW2901
            checked[name] = value
        return checked

    def reference(self, where: str, space: str, value: t.Any, declared: t.Mapping[str, t.Collection[str]]) -> t.Any:
        """Return the name, or the list of names, that a reference is shown by.

        Raises:
            PlanError: nothing is called that. In check mode a warning, if an earlier task could be about to make it.

        """
        if isinstance(value, list):
            found = [self.reference(where, space, entry, declared) for entry in value]
            twice = next((name for name in found if found.count(name) > 1), None)
            if twice is not None:
                raise PlanError(f"{where}: {space} {twice!r} is listed twice")
            return found
        if value in (None, ""):
            return None
        identifier = self.id_of(space, value)
        if identifier is not None:
            return self.name_of(space, identifier)
        if value in declared.get(space, ()):
            return value
        message = f"{where}: there is no {space} {value!r} in Authentik"
        if self.module.check_mode and space in _MADE_BY_US:
            # An earlier task may be about to make it: on a blank server every reference leads nowhere yet.
            self.module.warn(f"{message}; a real run needs it to be made before")
            return value
        raise PlanError(message + self._hint(space, value))

    def _hint(self, space: str, name: str) -> str:
        import difflib

        near = difflib.get_close_matches(name, self._ids[space], n=1)
        return f"; did you mean {near[0]!r}?" if near else ""

    # Ownership.

    def purge(self, kind: Resource, option: str, present: t.Sequence[Document]) -> t.Callable[[Document], bool] | None:
        """Return what tells an object of ours from others, or None when nothing is to be purged.

        Raises:
            PlanError: nothing says what is ours, or the declared set is empty and that was not allowed.

        """
        params = self.module.params
        if not params["purge"]:
            return None
        prefix, owner = params["purge_name_prefix"] or "", params.get("owner") or ""
        if not prefix and not owner:
            means = "owner or purge_name_prefix" if kind.marker else "purge_name_prefix"
            raise PlanError(f"purge: needs {means}: without it nothing tells our objects from others")
        if not present and not params["purge_allow_empty"]:
            raise PlanError(
                f"{option}: the set is empty and purge would delete all of ours; purge_allow_empty=true permits it"
            )
        for document in present:
            label = kind.label(document)
            if not owner and not label.startswith(prefix):
                raise PlanError(
                    f"{option}: {label}: does not begin with purge_name_prefix {prefix!r}; purge would lose it"
                )

        def ours(document: Document) -> bool:
            if protected(kind, document):
                return False
            marked = bool(owner) and get(document, kind.marker) == owner
            return marked or (bool(prefix) and kind.label(document).startswith(prefix))

        return ours

    def own(self, kind: Resource, where: str, desired: Document) -> Document:
        """Return a declared object with the owner's name in its marker field, if one is given.

        Raises:
            PlanError: the field was declared with another value.

        """
        owner = self.module.params.get("owner")
        if not owner:
            return desired
        top, _dot, inner = kind.marker.partition(".")
        before = get(desired, kind.marker)
        if before not in (None, owner):
            raise PlanError(f"{where}: {kind.marker}: is {before!r}, but owner={owner} is stored there")
        return {**desired, top: {**desired.get(top, {}), inner: owner} if inner else owner}

    # Writing.

    def write(self, action: Action) -> Document | None:
        """Send one action as Authentik's REST has it, and remember the name of what was made."""
        kind = t.cast("Resource", action.kind)
        if action.action == "delete":
            delete(self.api, kind.url(action.current or {}))
            return None
        body = self.wire(kind, action.body, action.current)
        if action.action == "create":
            made = self.api.request("POST", kind.path, body=body).data
        else:
            made = self.api.request("PATCH", kind.url(action.current or {}), body=body).data
        self.know(kind.space or kind.name, made)
        return self.named(kind, made)

    def wire(self, kind: Resource, body: Document, current: Document | None) -> Document:
        """Return a body with ids in place of names, whole mappings, and in the form of the server's version."""
        sent: Document = {}
        for name, value in body.items():
            if name in kind.merged:
                value = merge(get(current, name) or {}, value)  # noqa: PLW2901
            if name in kind.refs and value is not None:
                space = kind.refs[name]
                value = [self._id(space, one) for one in value] if isinstance(value, list) else self._id(space, value)  # noqa: PLW2901
            function = kind.to_wire.get(name)
            sent[name] = value if function is None else function(value, self.version)
        return sent

    def _id(self, space: str, name: str) -> t.Any:
        identifier = self.id_of(space, name)
        return name if identifier is None else identifier

    def run(self, actions: t.Sequence[Action]) -> dict[str, t.Any]:
        """Carry out a plan, or show it in check mode; return the module's result."""

        def send(batch: list[Action]) -> list[Document | None]:
            return [self.senders.get(action.kind.name, self.write)(action) for action in batch]

        def steps() -> list[Step]:
            return [Step([action], send) for action in actions if action.action != "unchanged"]

        def relist(kind: Kind) -> Documents:
            reader = self.readers.get(kind.name)
            return reader() if reader else self.live(t.cast("Resource", kind), fresh=True)

        return run(self.module, self.api, actions, steps, relist=relist)


def merge(current: t.Any, desired: t.Any) -> t.Any:
    """Return `current` with the values of `desired` laid over it, mapping by mapping."""
    if not isinstance(current, dict) or not isinstance(desired, dict):
        return desired
    merged = dict(current)
    for name, value in desired.items():
        merged[name] = merge(current.get(name), value)
    return merged


def protected(kind: Resource, document: Document) -> bool:
    """Tell whether Authentik itself made an object, or would be locked up without it: it is never deleted."""
    if document.get("managed"):
        return True
    if kind.name == GROUP.name:
        return document["name"] in ("authentik Admins", "authentik Read-only")
    if kind.name == USER.name:
        return document["username"] in ("akadmin", "AnonymousUser") or document["type"] == "internal_service_account"
    if kind.name == BLUEPRINT.name:
        return bool(document.get("path"))
    return False


def refuse_protected(kind: Resource, option: str, documents: t.Iterable[Document], labels: t.Collection[str]) -> None:
    """Refuse to delete what Authentik itself made.

    Raises:
        PlanError: one of `labels` is such an object.

    """
    for document in documents:
        if kind.label(document) in labels and protected(kind, document):
            raise PlanError(f"{option}: {kind.label(document)}: state: Authentik made this {kind.name}; it stays")


def stated(item: t.Mapping[str, t.Any], *without: str) -> Document:
    """Return the options of an item that were given."""
    return {name: value for name, value in item.items() if value is not None and name not in without}


def named_twice(option: str, kind: Resource, labels: t.Iterable[str]) -> None:
    """Refuse a name that is declared twice.

    Raises:
        PlanError: one is.

    """
    seen: dict[str, int] = {}
    for position, label in enumerate(labels, 1):
        if not label.strip():
            raise PlanError(f"{option}: item {position}: {kind.key[0]}: is empty")
        if label in seen:
            raise PlanError(f"{option}: {kind.name} {label} is declared twice (items {seen[label]}, {position})")
        seen[label] = position


# -- keys of tokens --------------------------------------------------------------------------------------------------


def view_key(session: Session, identifier: str) -> str | None:
    """Return the key of a token, or None if there is no such token."""
    try:
        found = session.api.get(f"/core/tokens/{urllib.parse.quote(identifier, safe='')}/view_key/")
    except ApiError as error:
        if error.status == 404:
            return None
        raise
    return str(found["key"])


def set_key(session: Session, identifier: str, key: str) -> None:
    """Give a token its key; to do that twice is to do it once."""
    path = f"/core/tokens/{urllib.parse.quote(identifier, safe='')}/set_key/"
    session.api.request("POST", path, body={"key": key}, repeatable=True)


def plan_token_key(session: Session, identifier: str, key: str, *, exists: bool) -> Action:
    """Return what has to be done to the key of a token that exists, or will when this is carried out."""
    current = {"identifier": identifier}
    found = view_key(session, identifier) if exists else None
    if found is not None:
        current["key"] = found
    changed = () if found == key else ("key",)
    desired = {"identifier": identifier, "key": key}
    return Action(TOKEN_KEY, "update" if changed else "unchanged", identifier, desired, current, changed)


def send_token_key(session: Session) -> Sender:
    """Return what sends a `TOKEN_KEY`."""

    def send(action: Action) -> Document:
        set_key(session, action.key, (action.desired or {})["key"])
        return {"identifier": action.key}

    return send


def read_token_keys(session: Session, actions: t.Iterable[Action]) -> Reader:
    """Return what reads the keys that a plan is about again."""
    names = [action.key for action in actions if action.kind is TOKEN_KEY]

    def read() -> Documents:
        keys = {name: view_key(session, name) for name in names}
        return [{"identifier": name, "key": key} for name, key in keys.items() if key is not None]

    return read


def nothing_listens(url: str) -> bool:
    """Tell whether the server's address refuses connections, as it does where Authentik is not installed yet."""
    import socket

    parts = urllib.parse.urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def foretold(module: AnsibleModule, option: str) -> dict[str, t.Any]:
    """Return the result of a run in check mode where Authentik is not installed yet: everything will be new."""
    module.warn(f"Nothing answers at {module.params['url']} yet: all that is declared is taken for new")
    items = [item for item in module.params[option] if item["state"] == "present"]
    stats = {"requests": 0, "retries": 0, "created": len(items), "updated": 0, "deleted": 0, "unchanged": 0}
    return {"changed": bool(items), "results": [], "stats": stats}


def main(spec: t.Mapping[str, t.Any], plan: t.Callable[[Session], t.Sequence[Action]]) -> None:
    """Run a set module: make the plan, carry it out, end.

    Args:
        spec: the module's own options, the declared set first.
        plan: reads what it needs and returns the whole plan; it may set `senders` and `readers`.

    """
    module = AnsibleModule(argument_spec={**AUTHENTIK_SPEC, **spec}, supports_check_mode=True)
    try:
        if module.check_mode and nothing_listens(module.params["url"]):
            module.exit_json(**foretold(module, next(iter(spec))))
        session = Session(module)
        actions = plan(session)
        result = session.run(actions)
        session.api.close()
    except PlanError as error:
        module.fail_json(msg=str(error))
    except ApiError as error:
        module.fail_json(msg=str(error), error=error.as_dict())
    module.exit_json(**result)
