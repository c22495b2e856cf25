# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""DNS records at Cloudflare: canonical forms, checks, and the plan for a set of them. No request is made here.

A name may hold several records of a type, so a record has no key of its own: it is matched by name, type and content.
What counts as content differs by type: priority and weight of an SRV record may change while it stays the same record.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
import typing as t
from dataclasses import dataclass

from ._cloudflare import LABEL, ascii_name
from ._reconcile import Action, Document, Kind, PlanError, compare

ADDRESS_TYPES = ("A", "AAAA", "CNAME")
HOST_TYPES = ("CNAME", "MX", "NS", "PTR")
# The fields of `data`: name, type, largest number. All of them are required.
_U8, _U16, _U32 = 255, 65535, 4294967295
DATA_FIELDS: dict[str, dict[str, int | str]] = {
    "CAA": {"flags": _U8, "tag": "str", "value": "str"},
    "CERT": {"type": _U16, "key_tag": _U16, "algorithm": _U8, "certificate": "str"},
    "DNSKEY": {"flags": _U16, "protocol": _U8, "algorithm": _U8, "public_key": "str"},
    "DS": {"key_tag": _U16, "algorithm": _U8, "digest_type": _U8, "digest": "hex"},
    "HTTPS": {"priority": _U16, "target": "host", "value": "str"},
    "LOC": {
        "lat_degrees": 90,
        "lat_minutes": 59,
        "lat_seconds": 60,
        "lat_direction": "str",
        "long_degrees": 180,
        "long_minutes": 59,
        "long_seconds": 60,
        "long_direction": "str",
        "altitude": 42849672,
        "size": 90000000,
        "precision_horz": 90000000,
        "precision_vert": 90000000,
    },
    "NAPTR": {
        "order": _U16,
        "preference": _U16,
        "flags": "str",
        "service": "str",
        "regex": "str",
        "replacement": "str",
    },
    "SMIMEA": {"usage": _U8, "selector": _U8, "matching_type": _U8, "certificate": "hex"},
    "SRV": {"priority": _U16, "weight": _U16, "port": _U16, "target": "host"},
    "SSHFP": {"algorithm": _U8, "type": _U8, "fingerprint": "hex"},
    "SVCB": {"priority": _U16, "target": "host", "value": "str"},
    "TLSA": {"usage": _U8, "selector": _U8, "matching_type": _U8, "certificate": "hex"},
    "URI": {"target": "str", "weight": _U16},
}
# The part of `data` that tells records of one name and type apart; all of it where nothing is said.
DATA_IDENTITY = {
    "CAA": ("tag", "value"),
    "HTTPS": ("priority", "target"),
    "SRV": ("port", "target"),
    "SVCB": ("priority", "target"),
    "URI": ("target",),
}
PLAIN_TYPES = ("A", "AAAA", "CNAME", "MX", "NS", "OPENPGPKEY", "PTR", "TXT")
TYPES = tuple(sorted((*PLAIN_TYPES, *DATA_FIELDS)))
PRIORITY_TYPES = ("MX", "URI")
BATCH = 200


@dataclass(frozen=True)
class RecordKind(Kind):
    """The resource type of DNS records: their identity depends on their type."""

    def identity(self, document: t.Mapping[str, t.Any]) -> tuple[t.Any, ...]:
        """Return name, type and the part of the content that tells records of them apart."""
        return (document["name"], document["type"], *_content_identity(document))

    def label(self, document: t.Mapping[str, t.Any]) -> str:
        """Return name, type and, where a name may have several, the content."""
        content = document.get("content")
        if document["type"] in DATA_FIELDS:
            content = " ".join(str(value) for value in (document.get("data") or {}).values())
        shown = "" if document["type"] == "CNAME" or content is None else f" {content}"
        return f"{document['name']} {document['type']}{shown if len(shown) <= 70 else shown[:69] + '…'}"


RECORD = RecordKind(
    "DNS record",
    "/zones/{zone_id}/dns_records",
    query={"per_page": 5000},
    unordered=frozenset({"tags"}),
    # The API wants these in every change.
    always=frozenset({"name", "type", "ttl"}),
    read_only=frozenset(
        {
            "comment_modified_on",
            "created_on",
            "meta",
            "modified_on",
            "proxiable",
            "tags_modified_on",
            "zone_id",
            "zone_name",
        }
    ),
)


@dataclass(frozen=True)
class Zone:
    """What the checks have to know of a zone: its name, and whether its plan is the free one or the enterprise one."""

    name: str
    free: bool = False
    enterprise: bool = False

    @classmethod
    def of(cls, document: Document) -> Zone:
        """Read a zone as the API shows it."""
        plan = (document.get("plan") or {}).get("legacy_id")
        return cls(str(document["name"]), plan == "free", plan == "enterprise")


def canonical(record: t.Mapping[str, t.Any]) -> Document:
    """Return a live record in the form that both sides are compared in."""
    found = dict(record)
    kind = record["type"]
    found["name"] = ascii_name(record["name"])
    if kind in DATA_FIELDS:
        # The content is derived from the data; older answers have more keys in there.
        found.pop("content", None)
        found["data"] = _canonical_data(kind, record.get("data") or {})
        if kind == "SRV":
            found.pop("priority", None)
    elif record.get("content") is not None:
        found["content"] = canonical_content(kind, record["content"])
    return found


def canonical_content(kind: str, content: str) -> str:
    """Return the content of a record of this type as it is compared: TXT joined and unquoted, hosts in ASCII."""
    if kind == "TXT":
        return unquote(content)
    if kind in HOST_TYPES:
        return ascii_name(content)
    if kind in ("A", "AAAA"):
        return str(ipaddress.ip_address(content.strip()))
    return content.strip()


def unquote(content: str) -> str:
    r"""Return the text of a TXT record: `"a" "b\"c"` is `ab"c`; text that is not all quoted is returned as it is."""
    text = content.strip()
    if not re.fullmatch(r'"(?:[^"\\]|\\.)*"(?:\s*"(?:[^"\\]|\\.)*")*', text, re.DOTALL):
        return content
    parts = re.findall(r'"((?:[^"\\]|\\.)*)"', text, re.DOTALL)
    return re.sub(r"\\(\d{3}|.)", _unescape, "".join(parts), flags=re.DOTALL)


def quote(text: str) -> str:
    """Return the text of a TXT record as the API wants it: quoted strings of 255 bytes at the most."""
    parts, part, size = [], "", 0
    for character in text:
        length = len(character.encode())
        if size + length > 255:
            parts.append(part)
            part, size = "", 0
        part += character
        size += length
    parts.append(part)
    return " ".join('"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"' for item in parts)


def declared(item: t.Mapping[str, t.Any], where: str, zone: Zone) -> Document:
    """Check one declared record and return it in canonical form, with the stated fields only.

    Args:
        item: the module's option values; None means not stated.
        where: what messages call the item, for example `records[3]`.
        zone: the zone it belongs to.

    Raises:
        PlanError: naming the item and the option.

    """
    kind = item["type"]
    name = full_name(str(item["name"]), f"{where}.name", zone.name)
    label = f"{where} ({name} {kind})"
    found: Document = {"name": name, "type": kind}
    absent = item.get("state") == "absent"
    found.update(_declared_value(item, kind, label, absent))
    if kind == "CNAME" and found.get("content") == name:
        raise PlanError(f"{label}.content: the record points to itself")
    if absent:
        return found
    _declare_proxied(item, found, label, zone)
    _declare_priority(item, found, label)
    if item.get("comment") is not None:
        found["comment"] = item["comment"]
    if item.get("tags") is not None:
        if item["tags"] and zone.free:
            raise PlanError(f"{label}.tags: the free plan of zone {zone.name} has no tags")
        found["tags"] = item["tags"]
    if item.get("settings") is not None:
        found["settings"] = {key: value for key, value in item["settings"].items() if value is not None}
    return found


def full_name(name: str, where: str, zone: str) -> str:
    """Return the full ASCII name of a declared record.

    `@` is the zone itself, a name without a dot and one whose last label starts with an underscore are below it. Any
    other name has to be written in full: `www.example.org` in the zone `example.com` is a mistake, not
    `www.example.org.example.com`.

    Raises:
        PlanError: it is no host name, or not in the zone.

    """
    try:
        found = ascii_name(name)
    except UnicodeError:
        raise PlanError(f"{where}: {name!r} is no host name") from None
    zone = ascii_name(zone)
    if found in ("@", zone):
        return zone
    if not found.endswith(f".{zone}"):
        last = found.rpartition(".")[2]
        if name.rstrip().endswith(".") or ("." in found and not last.startswith("_")):
            raise PlanError(f"{where}: {name} is not in zone {zone} (write the full name, or one label)")
        found = f"{found}.{zone}"
    labels = found.split(".")
    if labels[0] == "*":
        labels = labels[1:]
    if len(found) > 253 or not all(LABEL.fullmatch(label) for label in labels):
        raise PlanError(f"{where}: {name!r} is no host name")
    return found


def plan(
    desired: t.Sequence[Document],
    absent: t.Sequence[Document],
    current: t.Sequence[Document],
    *,
    kind: RecordKind = RECORD,
    owner: str = "",
    purge: t.Callable[[Document], bool] | None = None,
    replace_conflicting: bool = False,
    where: t.Sequence[str] = (),
) -> list[Action]:
    """Say what has to be done to the records of a zone.

    Args:
        desired: canonical declared records.
        absent: canonical declared records that shall be gone; without content, all of their name and type.
        current: canonical live records.
        kind: the kind with its path filled in.
        owner: marker that declared records get in their comment; empty for none.
        purge: tells whether an owned record that is not declared may go; None deletes none.
        replace_conflicting: whether a record without our marker may be deleted when a declared one excludes it.
        where: what messages call each of `desired`.

    Raises:
        PlanError: records that exclude each other, or a foreign record in the way.

    """
    names = list(where) or [f"records[{number}]" for number in range(len(desired))]
    _check_together(desired, names)
    pairs, rest = _paired(kind, desired, current, owner)
    removed = [record for record in rest.values() if any(_is_named(kind, record, gone) for gone in absent)]
    conflicts = _conflicts(desired, names, rest, owner, replace_conflicting)
    going = {id(record): record for record in [*removed, *conflicts]}
    if purge is not None and owner:
        going.update({key: record for key, record in rest.items() if is_owned(record, owner) and purge(record)})
    deletions = [Action(kind, "delete", kind.label(record), current=record) for record in going.values()]
    return deletions + [compare(kind, _completed(record, live, owner), live) for record, live in pairs]


def check_comments(actions: t.Iterable[Action], zone: Zone) -> None:
    """Refuse comments that are too long for the zone's plan, our marker included.

    Raises:
        PlanError: naming the record.

    """
    limit = 100 if zone.free else 500
    for action in actions:
        comment = (action.desired or {}).get("comment") or ""
        if len(comment) > limit and action.action != "unchanged":
            raise PlanError(
                f"records ({action.key}).comment: has {len(comment)} characters with our marker, {limit} are allowed"
            )


def purgeable(types: t.Sequence[str] | None, names: t.Sequence[str] | None) -> t.Callable[[Document], bool]:
    """Return the test for records that purge may delete.

    Never NS and SOA records, never ACME challenges, never what Cloudflare manages itself.

    Args:
        types: only these types; None for all.
        names: only names that match one of these patterns (`*` and `?`); None for all.

    """

    def test(record: Document) -> bool:
        if record["type"] in ("NS", "SOA") or record["name"].startswith("_acme-challenge."):
            return False
        if any(value is True for key, value in (record.get("meta") or {}).items() if key.startswith("managed_by")):
            return False
        if types is not None and record["type"] not in types:
            return False
        return names is None or any(fnmatch.fnmatchcase(record["name"], pattern.lower()) for pattern in names)

    return test


def marker(owner: str) -> str:
    """Return how a comment says whose the record is."""
    return f"[{owner}]"


def is_owned(record: t.Mapping[str, t.Any], owner: str) -> bool:
    """Tell whether a live record carries our marker."""
    return str(record.get("comment") or "").endswith(marker(owner))


def wire(body: Document) -> Document:
    """Return a canonical document as it is sent."""
    sent = dict(body)
    if sent["type"] == "TXT" and "content" in sent:
        sent["content"] = quote(sent["content"])
    return sent


def chunks(actions: t.Sequence[Action], size: int) -> list[list[Action]]:
    """Return batches of at most `size` changes; those of one name stay together, as they may depend on each other."""
    groups: dict[str, list[Action]] = {}
    for action in actions:
        if action.action != "unchanged":
            document = action.desired if action.desired is not None else action.current
            groups.setdefault((document or {})["name"], []).append(action)
    made: list[list[Action]] = []
    for group in groups.values():
        for start in range(0, len(group), size):
            part = group[start : start + size]
            if made and len(made[-1]) + len(part) <= size:
                made[-1].extend(part)
            else:
                made.append(part)
    return made


# Private from here on.


def _unescape(hit: re.Match[str]) -> str:
    escaped = hit.group(1)
    return chr(int(escaped)) if len(escaped) == 3 else escaped


def _canonical_data(kind: str, data: t.Mapping[str, t.Any]) -> Document:
    found = {}
    for name, form in DATA_FIELDS[kind].items():
        if data.get(name) is None:
            continue
        value = data[name]
        if form == "host":
            value = str(value) if value == "." else ascii_name(str(value))
        elif form == "hex":
            value = str(value).lower().replace(" ", "")
        elif form == "str":
            value = str(value)
        elif isinstance(value, float) and value.is_integer():
            value = int(value)
        found[name] = value
    return found


def _declared_data(kind: str, data: t.Mapping[str, t.Any], label: str) -> Document:
    fields = DATA_FIELDS[kind]
    for name in data:
        if name not in fields:
            raise PlanError(f"{label}.data: {name} is unknown; a {kind} record has {', '.join(fields)}")
    typed: Document = {}
    for name, form in fields.items():
        if data.get(name) is None:
            raise PlanError(f"{label}.data: {name} is missing")
        value = data[name]
        if isinstance(form, int):
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = -1.0
            if not 0 <= number <= form and not (name == "altitude" and -100000 <= number <= form):
                raise PlanError(f"{label}.data: {name} has to be a number from 0 to {form}, not {value!r}")
            typed[name] = int(number) if number.is_integer() else number
        else:
            if form == "host" and value != ".":
                _check_host(str(value), f"{label}.data: {name}")
            typed[name] = value
    return _canonical_data(kind, typed)


def _declared_content(kind: str, content: str, label: str) -> str:
    if not content.strip():
        raise PlanError(f"{label}.content: is empty")
    if kind in ("A", "AAAA"):
        wanted = ipaddress.IPv4Address if kind == "A" else ipaddress.IPv6Address
        try:
            return str(wanted(content.strip()))
        except ValueError:
            version = "IPv4" if kind == "A" else "IPv6"
            raise PlanError(f"{label}.content: {content!r} is no {version} address") from None
    if kind in HOST_TYPES:
        return _check_host(content, f"{label}.content")
    return canonical_content(kind, content)


def _check_host(name: str, where: str) -> str:
    try:
        found = ascii_name(name)
    except UnicodeError:
        found = ""
    labels = found.split(".")
    numeric = labels[-1].isdigit()
    if not found or numeric or len(found) > 253 or not all(LABEL.fullmatch(label) for label in labels):
        raise PlanError(f"{where}: {name!r} is no host name")
    return found


def _declared_value(item: t.Mapping[str, t.Any], kind: str, label: str, absent: bool) -> Document:
    """Return `{content: …}` or `{data: …}`, whichever this type has; a record that shall go may do without."""
    option, other = ("data", "content") if kind in DATA_FIELDS else ("content", "data")
    if item.get(other) is not None:
        raise PlanError(f"{label}.{other}: a {kind} record is described by {option}, not by {other}")
    if item.get(option) is None:
        if absent:
            return {}
        names = f" ({', '.join(DATA_FIELDS[kind])})" if option == "data" else ""
        raise PlanError(f"{label}.{option}: is required for a {kind} record{names}")
    if option == "data":
        return {"data": _declared_data(kind, item["data"], label)}
    return {"content": _declared_content(kind, str(item["content"]), label)}


def _declare_proxied(item: t.Mapping[str, t.Any], found: Document, label: str, zone: Zone) -> None:
    ttl, proxied = item.get("ttl"), item.get("proxied")
    if proxied is not None:
        if proxied and found["type"] not in ADDRESS_TYPES:
            raise PlanError(f"{label}.proxied: a {found['type']} record cannot be proxied, only A, AAAA and CNAME")
        if proxied and ttl not in (None, 1):
            raise PlanError(f"{label}.ttl: a proxied record has the ttl 1 (automatic), not {ttl}")
        found["proxied"] = proxied
    if proxied:
        found["ttl"] = 1
    elif ttl is not None:
        least = 30 if zone.enterprise else 60
        if ttl != 1 and not least <= ttl <= 86400:
            raise PlanError(f"{label}.ttl: has to be 1 (automatic) or {least} to 86400 seconds, not {ttl}")
        found["ttl"] = ttl


def _declare_priority(item: t.Mapping[str, t.Any], found: Document, label: str) -> None:
    kind, priority = found["type"], item.get("priority")
    if kind in PRIORITY_TYPES:
        if priority is None:
            raise PlanError(f"{label}.priority: is required for a {kind} record")
        if not 0 <= priority <= _U16:
            raise PlanError(f"{label}.priority: has to be a number from 0 to {_U16}, not {priority}")
        found["priority"] = priority
    elif priority is not None:
        raise PlanError(f"{label}.priority: a {kind} record has none (SRV, HTTPS and SVCB have it in data)")


def _content_identity(document: t.Mapping[str, t.Any]) -> tuple[t.Any, ...]:
    kind = document["type"]
    if kind == "CNAME":
        return ()
    if kind in DATA_FIELDS:
        data = document.get("data") or {}
        return tuple(data.get(name) for name in DATA_IDENTITY.get(kind, tuple(DATA_FIELDS[kind])))
    return (document.get("content"),)


def _is_named(kind: RecordKind, record: Document, gone: Document) -> bool:
    if (record["name"], record["type"]) != (gone["name"], gone["type"]):
        return False
    if "content" not in gone and "data" not in gone:
        return True
    if "content" in gone:
        return bool(record.get("content") == gone["content"])
    return kind.identity(record) == kind.identity(gone)


def _check_together(desired: t.Sequence[Document], names: t.Sequence[str]) -> None:
    """Refuse what DNS does not allow side by side, and what is said twice."""
    seen: dict[tuple[t.Any, ...], str] = {}
    addresses: dict[str, list[tuple[str, str]]] = {}
    for record, name in zip(desired, names):
        label = f"{name} ({record['name']} {record['type']})"
        identity = RECORD.identity(record)
        if identity in seen:
            what = "a name has one CNAME record" if record["type"] == "CNAME" else "the record is declared twice"
            raise PlanError(f"{label}: {what}, see {seen[identity]}")
        seen[identity] = name
        if record["type"] in ADDRESS_TYPES:
            for kind, other in addresses.get(record["name"], []):
                if "CNAME" in (kind, record["type"]):
                    raise PlanError(f"{label}.type: a CNAME record excludes A, AAAA and CNAME records, see {other}")
            addresses.setdefault(record["name"], []).append((record["type"], name))


def _paired(
    kind: RecordKind, desired: t.Sequence[Document], current: t.Sequence[Document], owner: str
) -> tuple[list[tuple[Document, Document | None]], dict[int, Document]]:
    """Return each declared record with its live one (or None), and the live ones that are left, by id()."""
    live: dict[tuple[t.Any, ...], list[Document]] = {}
    slots: dict[tuple[str, str], list[Document]] = {}
    wanted: dict[tuple[str, str], int] = {}
    for record in current:
        live.setdefault(kind.identity(record), []).append(record)
        slots.setdefault((record["name"], record["type"]), []).append(record)
    for record in desired:
        slot = (record["name"], record["type"])
        wanted[slot] = wanted.get(slot, 0) + 1
    rest = {id(record): record for record in current}
    pairs: list[tuple[Document, Document | None]] = []
    for record in desired:
        slot = (record["name"], record["type"])
        same = live.get(kind.identity(record), [])
        if not same and record["type"] in ("A", "AAAA") and wanted[slot] == 1:
            # An address that changed: the one record of ours at this name is the one to change.
            others = slots.get(slot, [])
            same = others if len(others) == 1 and owner and is_owned(others[0], owner) else []
        if same:
            del rest[id(same[0])]
        pairs.append((record, same[0] if same else None))
    return pairs, rest


def _conflicts(
    desired: t.Sequence[Document],
    names: t.Sequence[str],
    rest: t.Mapping[int, Document],
    owner: str,
    allowed: bool,
) -> list[Document]:
    """Return the live records that cannot stay beside a declared one: a CNAME is alone at its name."""
    wanted: dict[str, list[tuple[Document, str]]] = {}
    for record, name in zip(desired, names):
        if record["type"] in ADDRESS_TYPES:
            wanted.setdefault(record["name"], []).append((record, name))
    found = []
    for live in rest.values():
        if live["type"] not in ADDRESS_TYPES:
            continue
        for record, name in wanted.get(live["name"], []):
            if "CNAME" not in (live["type"], record["type"]):
                continue
            if not allowed and not (owner and is_owned(live, owner)):
                raise PlanError(
                    f"{name} ({record['name']} {record['type']}): the zone has {RECORD.label(live)}, which excludes it "
                    f"and does not carry our marker; delete that record or set replace_conflicting=true"
                )
            found.append(live)
            break
    return found


def _completed(record: Document, live: Document | None, owner: str) -> Document:
    """Add what a change has to carry: the ttl that the API requires, and our marker."""
    found = dict(record)
    if live is not None and live.get("proxied") and "proxied" not in found and found.get("ttl", 1) != 1:
        # To take it as "not proxied" would show the world the address behind it.
        raise PlanError(
            f"records ({RECORD.label(record)}).ttl: the record is proxied, which makes its ttl 1; state proxied=false "
            "as well, or no ttl"
        )
    if "ttl" not in found:
        found["ttl"] = 1 if live is None else live.get("ttl", 1)
        if live is not None and live.get("proxied") and found.get("proxied") is False:
            found["ttl"] = 1
    if owner:
        words = found.get("comment")
        if words is None:
            words = str((live or {}).get("comment") or "")
        bare = words[: -len(marker(owner))].rstrip() if words.endswith(marker(owner)) else words
        found["comment"] = f"{bare} {marker(owner)}".strip()
    return found
