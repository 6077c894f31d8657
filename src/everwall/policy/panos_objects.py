"""The objects of a PAN-OS configuration in our form: addresses, services, applications and their groups.

Whatever cannot be matched as it is written has a reason instead; a group with such a member has it too. A
virtual system's objects come before shared ones of the same name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Any

from everwall.config import Node
from everwall.limits import DESCRIPTION_MAX, POLICY_NAME_MAX, SERVICE_PORTS_MAX
from everwall.policy.document import node_of
from everwall.policy.model import Service
from everwall.policy.words import (
    is_fqdn,
    is_name,
    parse_address,
    parse_ports,
    parse_service,
    parse_wildcard,
    service_words,
)
from everwall.policy.xml_tree import Element


class Unmatchable(ValueError):
    """Something that cannot be matched as it is written; the message says why."""


_ADDRESS_VALUES = ("ip-netmask", "ip-range", "ip-wildcard", "fqdn", "static", "dynamic")
PREDEFINED_SERVICES = {"service-http": ["tcp/80", "tcp/8080"], "service-https": ["tcp/443"]}
_NOT_LISTED = ("region", "external-list")
"""What a rule may name in place of an address, and nobody here knows the addresses of."""
_GROUP_DEPTH_MAX = 16


class Names:
    """Names of one kind of thing in our form, each given once."""

    def __init__(self, kind: str, known: Iterable[str], is_reserved: Callable[[str], bool]) -> None:
        """``known``: names of the file, which are theirs who have them."""
        self.kind = kind
        self._taken = set(known)
        self._is_reserved = is_reserved
        self._counts: dict[str, int] = {}

    def fits(self, theirs: str) -> bool:
        """Whether the file's name can be ours."""
        return is_name(theirs) and theirs != "any" and not self._is_reserved(theirs)

    def made(self, theirs: str, notes: list[str]) -> str:
        """A name that nobody else has, close to the file's."""
        letters = re.sub(r"[^A-Za-z0-9 ._-]", "-", theirs).strip()
        stem = f"{self.kind} {letters}"[: POLICY_NAME_MAX - 8].strip()
        ours = stem
        while ours in self._taken:
            self._counts[stem] = self._counts.get(stem, 1) + 1
            ours = f"{stem} {self._counts[stem]}"
        self._taken.add(ours)
        notes.append(f"{self.kind} {theirs} is called {ours} here")
        return ours


class Table:
    """Objects of one kind by the name that the file gives them."""

    def __init__(self, kind: str, is_literal: Callable[[str], bool], elements: dict[str, Element]) -> None:
        """``is_literal``: whether a word means something without being an object."""
        self.kind = kind
        self.is_literal = is_literal
        self.elements = elements
        self.names: dict[str, str] = {}
        """Ours for the file's."""
        self.reasons: dict[str, str] = {}
        """Why an object cannot be matched; for all others there is a node."""
        self.nodes: dict[str, Node] = {}
        """By our name."""
        self.shared: set[str] = set()
        """Objects that are not the virtual system's own."""
        self.hidden: dict[str, str] = {}
        """The name here of a shared object whose own name the virtual system has given to another one."""
        self._fresh = Names(kind, elements, is_literal)

    def name(self, theirs: str, notes: list[str]) -> str:
        """Our name for an object: theirs, unless it could not be told from a value or has letters we do not take."""
        if theirs not in self.names:
            fits = self._fresh.fits(theirs)
            self.names[theirs] = theirs if fits else self._fresh.made(theirs, notes)
        return self.names[theirs]


def is_address(text: str) -> bool:
    """Whether a word of a rule is an address, a network or a range."""
    try:
        network(text)
    except Unmatchable:
        return False
    return True


def network(text: str) -> str:
    """An ``ip-netmask`` or ``ip-range`` as we write it: bits after the prefix do not count. Or ``Unmatchable``."""
    try:
        if "/" in text:
            # A mask in dots would be read both as one of the network and as one of the host.
            if not text.rpartition("/")[2].isdecimal():
                raise ValueError
            return str(ipaddress.ip_network(text, strict=False))
        if "-" in text:
            first, _, last = text.partition("-")
            text = f"{first.strip()}-{last.strip()}"
    except ValueError:
        raise Unmatchable(f"{text!r} is no address") from None
    parsed = parse_address(text)
    if isinstance(parsed, str):
        raise Unmatchable(f"{text!r} is no address" + (f" (expected {parsed})" if parsed else ""))
    return text


class Objects:
    """All objects that the rules of one virtual system may name."""

    def __init__(self, file: str, places: list[Element]) -> None:
        """``places``: the virtual system, then what is shared."""
        self.file = file
        self.places = places
        self.notes: list[str] = []
        self.addresses = self._table("address", is_address, "address", "address-group")
        self.services = self._table("service", _is_service, "service", "service-group")
        self.ports: dict[str, tuple[Service, ...]] = {}
        """Standard ports of applications that the file defines."""
        self.application_reasons: dict[str, str] = {}
        self.application_groups: dict[str, list[str]] = {}
        self._groups_open: list[tuple[Table, str]] = []
        self._applications()
        for theirs in list(self.addresses.elements):
            self.why_not(self.addresses, theirs)
        for theirs in list(self.services.elements):
            self.why_not(self.services, theirs)

    def _table(self, kind: str, is_literal: Callable[[str], bool], *tags: str) -> Table:
        known = {entry.name for place in self.places for tag in tags for entry in place.entries(tag)}
        elements: dict[str, Element] = {}
        doubles: dict[str, str] = {}
        shared: set[str] = set()
        hidden: dict[str, str] = {}
        for number, place in enumerate(self.places):
            here: set[str] = set()
            for entry in (entry for tag in tags for entry in place.entries(tag)):
                name = entry.name
                if name in here:
                    doubles[name] = f"{name}: there are two of that name"
                elif name in elements:
                    name = hidden.setdefault(name, _unknown_name(f"{name} (shared)", known))
                here.add(entry.name)
                if elements.setdefault(name, entry) is entry and number > 0:
                    shared.add(name)
        if "address" in tags:
            for entry in (
                entry for place in self.places for tag in _NOT_LISTED for entry in place.entries(tag)
            ):
                if entry.name in elements:
                    doubles[entry.name] = f"{entry.name}: a region or an external list has that name too"
        table = Table(kind, is_literal, elements)
        table.reasons.update(doubles)
        table.shared, table.hidden = shared, hidden
        return table

    def why_not(self, table: Table, theirs: str) -> str:
        """Why a word cannot be matched, or nothing; an object that can has its node afterwards."""
        if theirs not in table.elements:
            if table is self.services and theirs in PREDEFINED_SERVICES:
                ours = table.name(theirs, self.notes)
                table.nodes.setdefault(ours, node_of(self.file, 0, theirs, PREDEFINED_SERVICES[theirs]))
                return ""
            if table.is_literal(theirs) and table is self.addresses:
                return ""
            more = " (a region or an external list cannot be matched)" if table is self.addresses else ""
            return f"{theirs} is no {table.kind} or {table.kind} group of this file{more}"
        ours = table.name(theirs, self.notes)
        if theirs in table.reasons:
            return table.reasons[theirs]
        if ours in table.nodes:
            return ""
        if (table, theirs) in self._groups_open or len(self._groups_open) > _GROUP_DEPTH_MAX:
            return f"{theirs} is a group within itself, or too deep"
        element = table.elements[theirs]
        self._groups_open.append((table, theirs))
        try:
            is_shared = theirs in table.shared
            of = self._address if table is self.addresses else self._service
            value = of(element, is_shared)
        except Unmatchable as error:
            table.reasons[theirs] = f"{theirs}: {error}"
            return table.reasons[theirs]
        finally:
            self._groups_open.pop()
        table.nodes[ours] = node_of(
            self.file, element.line, f"{table.kind} {theirs}", self._noted(element, value)
        )
        return ""

    def _noted(self, element: Element, value: Any) -> Any:
        """A value with the description and tags of its object."""
        notes: dict[str, Any] = {}
        description = element.value("description")
        if description:
            notes["description"] = shortened(description)
        tags = tag_words(element)
        if tags:
            notes["tags"] = tags
        if not notes:
            return value
        return {**(value if isinstance(value, dict) else {"members": value}), **notes}

    def word(self, table: Table, theirs: str) -> str:
        """How a rule or group names an object, a service or an address."""
        if theirs in table.elements or (table is self.services and theirs in PREDEFINED_SERVICES):
            return table.name(theirs, self.notes)
        return network(theirs)

    def _members(self, table: Table, group: Element, is_shared: bool) -> list[str]:
        if any(child.tag != "member" or child.children for child in group.children):
            raise Unmatchable("a group with something in it that is no member")
        names = [member.text for member in group.members()]
        if not names:
            raise Unmatchable("a group without members")
        if is_shared:
            names = [self._of_shared(table, name) for name in names]
        for name in names:
            reason = self.why_not(table, name)
            if reason:
                raise Unmatchable(reason)
        return [self.word(table, name) for name in names]

    def _of_shared(self, table: Table, name: str) -> str:
        """What a shared group means by a name: never an object of the virtual system."""
        if name in table.hidden:
            return table.hidden[name]
        if name in table.elements and name not in table.shared:
            raise Unmatchable(f"a shared group, and its member {name} is the virtual system's own")
        return name

    def _address(self, element: Element, is_shared: bool) -> Any:
        """The value of an address or a group; raises ``Unmatchable``."""
        values = [child for child in element.children if child.tag in _ADDRESS_VALUES]
        if len(values) != 1:
            raise Unmatchable("more than one value" if values else "neither an address nor a group")
        (value,) = values
        if value.tag == "dynamic":
            raise Unmatchable("a dynamic group, whose members come and go with tags")
        if value.tag == "static":
            return self._members(self.addresses, value, is_shared)
        if value.tag == "fqdn":
            name = value.text.rstrip(".").lower()
            if not is_fqdn(name):
                raise Unmatchable(f"{name!r} is no full host name")
            return {"fqdn": name}
        if value.tag == "ip-wildcard":
            parsed = parse_wildcard(value.text)
            if isinstance(parsed, str):
                raise Unmatchable(f"{value.text!r} (expected {parsed})")
            return {"wildcard": value.text}
        return network(value.text)

    def _service(self, element: Element, is_shared: bool) -> Any:
        """The value of a service or a group; raises ``Unmatchable``."""
        values = [child for child in element.children if child.tag in ("members", "protocol")]
        if len(values) == 1 and values[0].tag == "members":
            return self._members(self.services, values[0], is_shared)
        protocols = [child for value in values for child in value.children]
        if len(values) != 1 or len(protocols) != 1:
            raise Unmatchable(
                "more than one value" if len(protocols) > 1 else "neither a service nor a group"
            )
        (protocol,) = protocols
        if protocol.tag not in ("tcp", "udp"):
            raise Unmatchable("neither TCP nor UDP")
        ports, source_ports = (
            [child.text for child in protocol.children if child.tag == tag] for tag in ("port", "source-port")
        )
        if len(ports) != 1 or not ports[0] or len(source_ports) > 1:
            raise Unmatchable("a service has its ports once")
        if protocol.child("override", "yes") is not None:
            self.notes.append(f"service {element.name}: its own time-outs are not used")
        return _port_words(protocol.tag, ports[0], "".join(source_ports))

    # Applications ---------------------------------------------------------------------------------------

    def _applications(self) -> None:
        own = {
            entry.name
            for tag in ("application", "application-group", "application-filter")
            for entry in self.places[0].entries(tag)
        }
        for place in self.places:
            for entry in place.entries("application"):
                if entry.name in self.ports or entry.name in self.application_reasons:
                    continue
                ports = _default_ports(entry)
                if isinstance(ports, str):
                    self.application_reasons[entry.name] = ports
                else:
                    self.ports[entry.name] = ports
            for entry in place.entries("application-group"):
                members = [member.text for member in entry.members("members")]
                if place is not self.places[0] and own & {entry.name, *members}:
                    self.application_reasons.setdefault(
                        entry.name, "a shared group, and the virtual system has another one of a name in it"
                    )
                    continue
                self.application_groups.setdefault(entry.name, members)
            for entry in place.entries("application-filter"):
                self.application_reasons.setdefault(
                    entry.name, "a filter, whose applications are not known here"
                )

    def applications(self, members: Iterable[str]) -> tuple[str, ...]:
        """Applications with groups replaced by what is in them; one that is in no group is taken as it is."""
        found: dict[str, None] = {}
        seen: set[str] = set()
        ahead = list(reversed(list(members)))
        while ahead:
            name = ahead.pop()
            if name in self.application_groups:
                if name not in seen:
                    seen.add(name)
                    ahead += reversed(self.application_groups[name])
            else:
                found[name] = None
        return tuple(found)


def _unknown_name(name: str, known: set[str]) -> str:
    while name in known:
        name += " "
    return name


def _is_service(text: str) -> bool:
    return not isinstance(parse_service(text), str)


def tag_words(element: Element) -> list[str]:
    """The tags of an object or a rule that we can write."""
    words = (
        re.sub(r"[^A-Za-z0-9 ._-]", "-", member.text).lstrip(" ._-") for member in element.members("tag")
    )
    return [word for word in (word[:POLICY_NAME_MAX].strip() for word in words) if word]


def shortened(description: str) -> str:
    """A description that fits, in one line."""
    return " ".join(description.split())[:DESCRIPTION_MAX]


def _port_words(protocol: str, ports: str, source_ports: str) -> Any:
    """Lists of ports as services; raises ``Unmatchable``."""
    ranges: list[list[tuple[int, int]]] = []
    for text in (ports, source_ports or "0-65535"):
        ranges.append([])
        for part in text.split(","):
            parsed = parse_ports(part.strip())
            if isinstance(parsed, str):
                raise Unmatchable(f"{part.strip()!r} (expected {parsed})")
            ranges[-1].append(parsed)
    if len(ranges[0]) * len(ranges[1]) > SERVICE_PORTS_MAX:
        raise Unmatchable(f"more than {SERVICE_PORTS_MAX} pairs of ports")
    number = {"tcp": 6, "udp": 17}[protocol]
    words = service_words(Service(0, number, *port, *source) for port in ranges[0] for source in ranges[1])
    return words[0] if len(words) == 1 else words


def _default_ports(entry: Element) -> tuple[Service, ...] | str:
    """The standard ports of an application that the file defines; else why there are none."""
    found: list[Service] = []
    for member in entry.members("default", "port"):
        protocol, _, ports = member.text.partition("/")
        words = (f"{protocol}/{part.strip()}" for part in ports.split(","))
        for word in ["icmp"] if protocol in ("icmp", "icmp6") else words:
            parsed = parse_service(word)
            if isinstance(parsed, str):
                return f"its standard port {member.text} is none"
            found += parsed
    protocol = entry.value("default", "ident-by-ip-protocol")
    if protocol:
        parsed = parse_service(f"protocol/{protocol}")
        if isinstance(parsed, str):
            return f"its protocol {protocol} is none"
        found += parsed
    return tuple(dict.fromkeys(found)) if found else "it has no standard ports"
