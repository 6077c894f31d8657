"""Named addresses and services: values and lists of values and of other names, resolved once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from everwall.config import ConfigError, Node, did_you_mean
from everwall.limits import DESCRIPTION_MAX
from everwall.policy.model import PORT_MAX, PROTOCOLS, Address, HostName, Service
from everwall.policy.words import (
    FQDN_EXPECTED,
    NAME_EXPECTED,
    is_fqdn,
    is_name,
    parse_address,
    parse_ports,
    parse_service,
    parse_wildcard,
)

GROUP_DEPTH_MAX = 16
ADDRESS_EXPECTED = (
    "an address (10.0.0.1, 2001:db8::1), a prefix (10.0.0.0/8), a range (10.0.0.1-10.0.0.9), "
    "{fqdn: api.example.com} or the name of an address"
)
SERVICE_EXPECTED = (
    "a service: any, tcp/443, udp/53, tcp/8000-8100, icmp, protocol/47 or the name of a service"
)
NOTE_KEYS = ("description", "tags")
"""What an object may say beside its value."""
ADDRESS_KEYS = ("fqdn", "wildcard")
SERVICE_KEYS = ("protocol", "port", "source-port")

Item = TypeVar("Item")


class Objects(Generic[Item]):
    """Named addresses or services: each a value, or a list of values and names."""

    def __init__(
        self,
        nodes: dict[str, Node],
        parse: Callable[[Node], tuple[Item, ...] | str],
        expected: str,
    ) -> None:
        self.nodes = nodes
        self.parse = parse
        self.expected = expected
        self._resolved: dict[str, tuple[Item, ...]] = {}
        self._named_by: dict[str, list[str]] = {}
        self._used: set[str] = set()
        self._sets: dict[tuple[str, ...], tuple[Item, ...]] = {}
        for name, node in nodes.items():
            check_name(name, node)
            literal = Node(node.file, node.key_line, node.key_column, node.key, name, 0, 0)
            if name == "any" or not isinstance(parse(literal), str):
                raise literal.error("a name that is not a value itself")
        for name in nodes:
            self._named(name, ())

    def _named(self, name: str, path: tuple[str, ...]) -> tuple[Item, ...]:
        if name not in self._resolved:
            node = self.nodes[name]
            if name in path:
                circle = " -> ".join((*path[path.index(name) :], name))
                raise node.error(f"groups that do not contain themselves ({circle})")
            if len(path) == GROUP_DEPTH_MAX:
                raise node.error(f"groups at most {GROUP_DEPTH_MAX} deep in one another")
            entries = self._entries(self._value(node))
            self._named_by[name] = [
                entry.data for entry in entries if isinstance(entry.data, str) and entry.data in self.nodes
            ]
            found = (self._entry(entry, (*path, name)) for entry in entries)
            self._resolved[name] = tuple(dict.fromkeys(item for items in found for item in items))
        return self._resolved[name]

    def _value(self, node: Node) -> Node:
        """What an object stands for, without what it says for people."""
        if not isinstance(node.data, dict) or "members" not in node.data:
            return node
        entry = node.mapping(("members", *NOTE_KEYS))
        check_notes(node)
        return entry["members"]

    def _entries(self, node: Node) -> list[Node]:
        return [node] if isinstance(node.data, dict) else node.one_or_more(self.expected)

    def _entry(self, node: Node, path: tuple[str, ...]) -> tuple[Item, ...]:
        if isinstance(node.data, str) and node.data in self.nodes:
            return self._named(node.data, path)
        parsed = self.parse(node)
        if isinstance(parsed, str):
            hint = did_you_mean(node.text(), tuple(self.nodes)) if isinstance(node.data, str) else ""
            raise node.error(parsed or self.expected + hint)
        return parsed

    def resolve(self, node: Node) -> tuple[Item, ...] | None:
        """What a rule names: a value, a name or a list of both; None is ``any``."""
        entries = self._entries(node)
        if is_any(entries):
            return None
        words = tuple(entry.data for entry in entries if isinstance(entry.data, str))
        if len(words) == len(entries) and words in self._sets:
            return self._sets[words]
        self._used.update(words)
        found = (self._entry(entry, ()) for entry in entries)
        items = tuple(dict.fromkeys(item for items in found for item in items))
        if len(words) == len(entries):
            # Rules that say the same share one tuple, however long the groups behind it are.
            self._sets[words] = items
        return items

    def unused(self) -> list[str]:
        """The names that nothing ``resolve`` was asked for leads to, in the file's order."""
        reached = set()
        ahead = [name for name in self._used if name in self.nodes]
        while ahead:
            name = ahead.pop()
            if name not in reached:
                reached.add(name)
                ahead += self._named_by[name]
        return [name for name in self.nodes if name not in reached]


def is_any(entries: list[Node]) -> bool:
    """Whether a list says ``any``; raises ``ConfigError`` where it says more beside."""
    for entry in entries:
        if entry.data == "any":
            if len(entries) > 1:
                raise entry.error("any to stand alone")
            return True
    return False


def check_name(name: str, node: Node) -> None:
    """Raises ``ConfigError`` at the key of ``node`` where nothing may be called so."""
    if not is_name(name):
        raise ConfigError(
            node.file, NAME_EXPECTED, line=node.key_line, column=node.key_column, key=node.key, value=name
        )


def check_notes(node: Node) -> None:
    """The ``description`` and ``tags`` of an object, if it is a mapping that has them."""
    if isinstance(node.data, dict):
        description_of(node.data)
        tags_of(node.data)


def description_of(entry: dict[str, Node]) -> str:
    """The text for people; none where it is not there."""
    node = entry.get("description")
    if node is None or node.data is None:
        return ""
    text = node.text()
    if len(text) > DESCRIPTION_MAX:
        raise node.error(f"at most {DESCRIPTION_MAX} characters")
    return text


def tags_of(entry: dict[str, Node]) -> tuple[str, ...]:
    """A tag or a list of them; none where they are not there."""
    if "tags" not in entry:
        return ()
    nodes = entry["tags"].one_or_more(NAME_EXPECTED)
    for node in nodes:
        if not is_name(node.text(NAME_EXPECTED)):
            raise node.error(NAME_EXPECTED)
    return tuple(dict.fromkeys(node.text() for node in nodes))


def parse_address_node(node: Node) -> tuple[Address, ...] | str:
    """An address as text, or a mapping that says what kind of address it is."""
    if not isinstance(node.data, dict):
        parsed = parse_address(node.text(ADDRESS_EXPECTED))
        return parsed if isinstance(parsed, str) else (parsed,)
    entry = node.mapping((*ADDRESS_KEYS, *NOTE_KEYS))
    check_notes(node)
    kinds = [key for key in ADDRESS_KEYS if key in entry]
    if len(kinds) != 1:
        raise node.error(f"a mapping with one of the keys {', '.join(ADDRESS_KEYS)}, members")
    value = entry[kinds[0]]
    if kinds[0] == "wildcard":
        ranges = parse_wildcard(value.text())
        if isinstance(ranges, str):
            raise value.error(ranges)
        return ranges
    if not is_fqdn(value.text(FQDN_EXPECTED)):
        raise value.error(FQDN_EXPECTED)
    return (HostName(value.text().lower()),)


def parse_service_node(node: Node) -> tuple[Service, ...] | str:
    """A service as text, or a mapping of protocol and ports."""
    if not isinstance(node.data, dict):
        return parse_service(node.text(SERVICE_EXPECTED))
    entry = node.mapping((*SERVICE_KEYS, *NOTE_KEYS), required=("protocol",))
    check_notes(node)
    protocol = PROTOCOLS[entry["protocol"].one_of(*PROTOCOLS)]
    ports = []
    for key in ("port", "source-port"):
        parsed: tuple[int, int] | str = (0, PORT_MAX)
        if key in entry:
            parsed = parse_ports(entry[key].text("a port or a range of ports"))
        if isinstance(parsed, str):
            raise entry[key].error(parsed)
        ports.append(parsed)
    return (Service(0, protocol, *ports[0], *ports[1]),)
