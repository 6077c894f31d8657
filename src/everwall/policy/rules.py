"""The policy as people write it: one YAML file, read into plain objects or refused with its line.

``docs/policy.md`` describes the form. Reading resolves every name, so that what comes out needs no
further look-up: a rule holds zones, address ranges and service entries. What is not written never
opens anything: a rule must say its source, destination, service and action, and the default rules
deny unless they are told to allow.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from everwall.config import ConfigError, Node, did_you_mean, load_yaml
from everwall.limits import (
    DESCRIPTION_MAX,
    HOST_NAME_MAX,
    POLICY_NAME_MAX,
    POLICY_RULES_MAX,
    POLICY_ZONES_MAX,
)
from everwall.modes import MODE_EXPECTED, parse_mode
from everwall.policy.match import INTERZONE_DEFAULT, INTRAZONE_DEFAULT, ZONE_DATA

ACTIONS = ("allow", "deny", "drop", "reset-client", "reset-server", "reset-both")
RULE_TYPES = ("universal", "intrazone", "interzone")
PORT_MAX = 65535
GROUP_DEPTH_MAX = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]*")
_NAME_EXPECTED = (
    f"a name: a letter or digit, then letters, digits, space, '.', '_', '-', at most {POLICY_NAME_MAX}"
)
_APPLICATION = re.compile(r"[a-z0-9][a-z0-9._-]*")
_APPLICATION_EXPECTED = (
    f"any or the name of an application: small letters, digits, '.', '_', '-', at most {POLICY_NAME_MAX}"
)
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?=.{{1,{HOST_NAME_MAX}}}$)(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_HOST_EXPECTED = "any, a host name (www.example.com) or one with its sub-domains only (*.example.com)"
_ADDRESS_EXPECTED = (
    "an address (10.0.0.1, 2001:db8::1), a prefix (10.0.0.0/8), a range (10.0.0.1-10.0.0.9) "
    "or the name of an address"
)
_SERVICE_EXPECTED = (
    "a service: any, tcp/443, udp/53, tcp/8000-8100, icmp, protocol/47 or the name of a service"
)
_ENDPOINT_EXPECTED = "an endpoint id: vpce- and 16 hexadecimal digits, 0x and hexadecimal digits, or a number"


class AddressRange(NamedTuple):
    """Addresses from ``first`` to ``last``, both included."""

    family: int
    first: int
    last: int


class Service(NamedTuple):
    """One protocol with its ports; ``family`` 0 means both, ports are 0..65535 where there are none."""

    family: int
    protocol: int
    first_port: int
    last_port: int
    first_source_port: int
    last_source_port: int


def _ports(family: int, protocol: int, first: int = 0, last: int = PORT_MAX) -> Service:
    return Service(family, protocol, first, last, 0, PORT_MAX)


ICMP = (_ports(4, 1), _ports(6, 58))
"""``icmp`` means ICMP in IPv4 and ICMPv6 in IPv6."""
_PROTOCOLS = {"tcp": 6, "udp": 17}


@dataclass(frozen=True)
class Zone:
    """A zone and the load balancer endpoints whose traffic is in it."""

    name: str
    endpoints: tuple[int, ...] = ()
    line: int = 0


@dataclass(frozen=True)
class Rule:
    """One rule with every name resolved; None stands for ``any``.

    What is matched: zones as ``rule_type`` says (universal: every pair of ``from`` and ``to``; intrazone: from a
    zone of ``from_zones`` to the same; interzone: pairs that differ), ranges, services, applications and hosts.
    """

    name: str
    action: str
    from_zones: tuple[str, ...] | None = None
    to_zones: tuple[str, ...] | None = None
    source: tuple[AddressRange, ...] | None = None
    destination: tuple[AddressRange, ...] | None = None
    service: tuple[Service, ...] | None = None
    applications: tuple[str, ...] | None = None
    hosts: tuple[str, ...] | None = None
    negate_source: bool = False
    """Every address of either family that is not in ``source``, which is not None then."""
    negate_destination: bool = False
    rule_type: str = "universal"
    tags: tuple[str, ...] = ()
    log_start: bool = False
    log_end: bool = True
    disabled: bool = False
    description: str = ""
    mode: int | None = None
    """When the store gets its sessions (``everwall.modes``); None: as the node does by default."""
    line: int = 0


@dataclass(frozen=True)
class DefaultRule:
    """What happens where no rule matches."""

    name: str
    action: str = "deny"
    log_start: bool = False
    log_end: bool = False
    mode: int | None = None


@dataclass(frozen=True)
class Policy:
    """Everything a policy file says; without one, the policy that denies everything."""

    file: str = ""
    zones: tuple[Zone, ...] = ()
    rules: tuple[Rule, ...] = ()
    intrazone_default: DefaultRule = DefaultRule(INTRAZONE_DEFAULT)
    interzone_default: DefaultRule = DefaultRule(INTERZONE_DEFAULT)
    default_zone: str = ZONE_DATA
    """What everything is in as long as no endpoint is mapped."""
    warnings: tuple[str, ...] = ()

    @property
    def mapped(self) -> bool:
        """Whether any endpoint has a zone; without, everything is in ``default_zone``."""
        return any(zone.endpoints for zone in self.zones)

    @property
    def summary(self) -> str:
        """One sentence for the start-up line."""
        if not self.file:
            return "no policy file: everything is denied"
        active = sum(not rule.disabled for rule in self.rules)
        return (
            f"policy {self.file}: {active} rule{'' if active == 1 else 's'}, "
            f"{self.intrazone_default.name} {self.intrazone_default.action}, "
            f"{self.interzone_default.name} {self.interzone_default.action}"
        )


def read_policy(path: str | Path | None, text: str | None = None) -> Policy:
    """The policy in a file (or in ``text``, which then only borrows the file's name).

    None, as well as an empty file, is the policy that denies everything. Raises ``ConfigError``.
    """
    if path is None:
        return Policy(warnings=("no policy file: everything is denied",))
    root = load_yaml(path, text)
    if root is None:
        return Policy(str(path), warnings=(f"{path}: the policy is empty: everything is denied",))
    return _Reader(str(path), root).read()


# Words -----------------------------------------------------------------------------------------------


def parse_endpoint(text: str) -> int | None:
    """An endpoint id as the 64-bit number that GENEVE carries, or None.

    AWS writes 17 digits after ``vpce-``, of which the first is 0: the number has 64 bits.
    """
    if re.fullmatch(r"vpce-0?[0-9a-f]{16}", text):
        return int(text[5:], 16)
    if re.fullmatch(r"0x[0-9a-fA-F]{1,16}", text):
        return int(text[2:], 16)
    if re.fullmatch(r"0|[1-9][0-9]{0,19}", text) and int(text) < 1 << 64:
        return int(text)
    return None


def parse_address(text: str) -> AddressRange | str:
    """An address, a prefix or a range; for anything else what is wrong with it (may be empty)."""
    if "%" in text:
        return "no zone index"
    first, dash, last = text.partition("-")
    try:
        if dash:
            low, high = ipaddress.ip_address(first.strip()), ipaddress.ip_address(last.strip())
            if low.version != high.version:
                return "a range within one family"
            if int(low) > int(high):
                return "a range whose first address is not above its last"
            return AddressRange(low.version, int(low), int(high))
        if "/" in text:
            address, _, length = text.partition("/")
            host = ipaddress.ip_address(address)
            if not re.fullmatch(r"[0-9]{1,3}", length) or int(length) > host.max_prefixlen:
                return f"a prefix length from 0 to {host.max_prefixlen}"
            network = ipaddress.ip_network(text, strict=False)
            if network.network_address != host:
                return f"{network} (bits after the prefix are set) or {host}"
            return AddressRange(network.version, int(network.network_address), int(network.broadcast_address))
        host = ipaddress.ip_address(text)
        return AddressRange(host.version, int(host), int(host))
    except ValueError:
        return ""


def _parse_ports(text: str) -> tuple[int, int] | str:
    """``443`` or ``8000-8100``; for anything else what was expected."""
    found = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text)
    if not found:
        return "a port or a range of ports, as 443 or 8000-8100"
    first, last = int(found[1]), int(found[2] or found[1])
    if last > PORT_MAX or first > PORT_MAX:
        return f"ports up to {PORT_MAX}"
    if first > last:
        return "a range whose first port is not above its last"
    return first, last


def parse_service(text: str) -> tuple[Service, ...] | str:
    """``tcp/443``, ``icmp``, ``protocol/47``; for anything else what is wrong (may be empty)."""
    if text == "icmp":
        return ICMP
    word, slash, rest = text.partition("/")
    if not slash:
        return ""
    if word in _PROTOCOLS:
        ports = _parse_ports(rest)
        if isinstance(ports, str):
            return ports
        return (_ports(0, _PROTOCOLS[word], *ports),)
    if word == "protocol":
        if not re.fullmatch(r"[0-9]{1,3}", rest) or int(rest) > 255:
            return "a protocol number from 0 to 255"
        return (_ports(0, int(rest)),)
    return ""


# Objects and groups -----------------------------------------------------------------------------------

Item = TypeVar("Item")


class _Objects(Generic[Item]):
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
        for name, node in nodes.items():
            _check_name(name, node)
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
            found = (self._entry(entry, (*path, name)) for entry in self._entries(node))
            self._resolved[name] = tuple(dict.fromkeys(item for items in found for item in items))
        return self._resolved[name]

    def _entries(self, node: Node) -> list[Node]:
        return [node] if isinstance(node.data, dict) else node.one_or_more(self.expected)

    def _entry(self, node: Node, path: tuple[str, ...]) -> tuple[Item, ...]:
        if isinstance(node.data, str) and node.data in self.nodes:
            return self._named(node.data, path)
        parsed = self.parse(node)
        if isinstance(parsed, str):
            raise node.error(parsed or self.expected + did_you_mean(node.text(), tuple(self.nodes)))
        return parsed

    def resolve(self, node: Node) -> tuple[Item, ...] | None:
        """What a rule names: a value, a name or a list of both; None is ``any``."""
        entries = self._entries(node)
        if _is_any(entries):
            return None
        found = (self._entry(entry, ()) for entry in entries)
        return tuple(dict.fromkeys(item for items in found for item in items))


def _is_any(entries: list[Node]) -> bool:
    for entry in entries:
        if entry.data == "any":
            if len(entries) > 1:
                raise entry.error("any to stand alone")
            return True
    return False


def _is_name(text: str) -> bool:
    return len(text) <= POLICY_NAME_MAX and bool(_NAME.fullmatch(text)) and text == text.strip()


def _check_name(name: str, node: Node) -> None:
    if not _is_name(name):
        raise ConfigError(
            node.file, _NAME_EXPECTED, line=node.key_line, column=node.key_column, key=node.key, value=name
        )


def _address(node: Node) -> tuple[AddressRange, ...] | str:
    parsed = parse_address(node.text(_ADDRESS_EXPECTED))
    return parsed if isinstance(parsed, str) else (parsed,)


def _service(node: Node) -> tuple[Service, ...] | str:
    if not isinstance(node.data, dict):
        return parse_service(node.text(_SERVICE_EXPECTED))
    entry = node.mapping(("protocol", "port", "source-port"), required=("protocol",))
    protocol = _PROTOCOLS[entry["protocol"].one_of(*_PROTOCOLS)]
    ports = []
    for key in ("port", "source-port"):
        parsed: tuple[int, int] | str = (0, PORT_MAX)
        if key in entry:
            parsed = _parse_ports(entry[key].text("a port or a range of ports"))
        if isinstance(parsed, str):
            raise entry[key].error(parsed)
        ports.append(parsed)
    return (Service(0, protocol, *ports[0], *ports[1]),)


# The file ---------------------------------------------------------------------------------------------


class _Reader:
    """Reads one policy file from the top; what comes later may name what came before."""

    def __init__(self, file: str, root: Node) -> None:
        self.file = file
        self.root = root.mapping(("zones", "addresses", "services", "rules", "default-rules"))
        self.zones: tuple[Zone, ...] = ()
        self.known_zones: tuple[str, ...] = ()

    def _section(self, name: str) -> dict[str, Node]:
        node = self.root.get(name)
        return {} if node is None or node.data is None else node.mapping()

    def read(self) -> Policy:
        self.zones = self._zones()
        names = [zone.name for zone in self.zones]
        mapped = any(zone.endpoints for zone in self.zones)
        if not mapped and ZONE_DATA not in names:
            names.insert(0, ZONE_DATA)
        self.known_zones = tuple(names)
        self.addresses = _Objects(self._section("addresses"), _address, _ADDRESS_EXPECTED)
        self.services = _Objects(self._section("services"), _service, _SERVICE_EXPECTED)
        rules = self._rules()
        intrazone, interzone = self._defaults()
        policy = Policy(self.file, self.zones, rules, intrazone, interzone)
        return replace(policy, warnings=tuple(_warnings(policy)))

    def _zones(self) -> tuple[Zone, ...]:
        section = self._section("zones")
        if len(section) > POLICY_ZONES_MAX:
            raise self.root["zones"].error(f"at most {POLICY_ZONES_MAX} zones")
        owners: dict[int, str] = {}
        zones = []
        for name, node in section.items():
            _check_name(name, node)
            if name == "any":
                raise node.error("a name other than any", name)
            entry = {} if node.data is None else node.mapping(("endpoints", "description"))
            _description(entry)
            endpoints = []
            for item in (
                entry["endpoints"].one_or_more("a list of endpoint ids") if "endpoints" in entry else []
            ):
                endpoint = parse_endpoint(item.text(_ENDPOINT_EXPECTED))
                if endpoint is None:
                    raise item.error(_ENDPOINT_EXPECTED)
                if endpoint in owners:
                    raise item.error(f"each endpoint once (it is in zone {owners[endpoint]} already)")
                owners[endpoint] = name
                endpoints.append(endpoint)
            zones.append(Zone(name, tuple(endpoints), node.key_line))
        return tuple(zones)

    def _zone_names(self, node: Node | None) -> tuple[str, ...] | None:
        if node is None:
            return None
        expected = "any, the name of a zone or a list of names"
        entries = node.one_or_more(expected)
        if _is_any(entries):
            return None
        for entry in entries:
            name = entry.text(expected)
            if name not in self.known_zones:
                hint = did_you_mean(name, self.known_zones)
                raise entry.error(f"any or one of the zones {', '.join(self.known_zones)}{hint}")
        return tuple(dict.fromkeys(entry.text() for entry in entries))

    def _rules(self) -> tuple[Rule, ...]:
        node = self.root.get("rules")
        if node is None or node.data is None:
            return ()
        entries = node.items("a list of rules (- name: ...)")
        if len(entries) > POLICY_RULES_MAX:
            raise node.error(f"at most {POLICY_RULES_MAX} rules")
        rules: dict[str, Rule] = {}
        for entry in entries:
            rule = self._rule(entry)
            if rule.name in rules:
                first = rules[rule.name].line
                raise entry.mapping()["name"].error(f"each name once (line {first} has it already)")
            rules[rule.name] = rule
        return tuple(rules.values())

    def _rule(self, node: Node) -> Rule:
        entry = node.mapping(_RULE_KEYS, required=("name", "source", "destination", "service", "action"))
        name = entry["name"].text(_NAME_EXPECTED)
        if not _is_name(name):
            raise entry["name"].error(_NAME_EXPECTED)
        if name in (INTRAZONE_DEFAULT, INTERZONE_DEFAULT):
            raise entry["name"].error("another name (the default rules stand under default-rules)")
        rule_type = entry["rule-type"].one_of(*RULE_TYPES) if "rule-type" in entry else "universal"
        to_zones = self._zone_names(entry.get("to"))
        if rule_type == "intrazone" and to_zones is not None:
            raise entry["to"].error("no zones: an intrazone rule ends in the zone that it begins in")
        source, destination = (self.addresses.resolve(entry[key]) for key in ("source", "destination"))
        negated = [_flag(entry, f"negate-{key}", False) for key in ("source", "destination")]
        for key, addresses, negate in zip(
            ("source", "destination"), (source, destination), negated, strict=True
        ):
            if negate and addresses is None:
                raise entry[f"negate-{key}"].error(f"a {key} other than any, or no negation")
        return Rule(
            name=name,
            action=entry["action"].one_of(*ACTIONS),
            from_zones=self._zone_names(entry.get("from")),
            to_zones=to_zones,
            source=source,
            destination=destination,
            service=self.services.resolve(entry["service"]),
            applications=_words(entry, "application", _APPLICATION, _APPLICATION_EXPECTED),
            hosts=_words(entry, "host", _HOST, _HOST_EXPECTED),
            negate_source=negated[0],
            negate_destination=negated[1],
            rule_type=rule_type,
            tags=_words(entry, "tags", _NAME, _NAME_EXPECTED) or (),
            log_start=_flag(entry, "log-start", False),
            log_end=_flag(entry, "log-end", True),
            disabled=_flag(entry, "disabled", False),
            description=_description(entry),
            mode=_mode(entry),
            line=node.line,
        )

    def _defaults(self) -> tuple[DefaultRule, DefaultRule]:
        node = self.root.get("default-rules")
        section = {} if node is None or node.data is None else node.mapping(_DEFAULTS)
        found = []
        for name in _DEFAULTS:
            entry = section[name].mapping(_DEFAULT_RULE_KEYS) if name in section else {}
            action = entry["action"].one_of(*ACTIONS) if "action" in entry else "deny"
            log_start, log_end = (_flag(entry, key, False) for key in ("log-start", "log-end"))
            found.append(DefaultRule(name, action, log_start, log_end, _mode(entry)))
        return found[0], found[1]


_DEFAULTS = (INTRAZONE_DEFAULT, INTERZONE_DEFAULT)
_DEFAULT_RULE_KEYS = ("action", "log-start", "log-end", "resiliency")
_RULE_KEYS = (
    "name",
    "rule-type",
    "from",
    "to",
    "source",
    "negate-source",
    "destination",
    "negate-destination",
    "application",
    "host",
    "service",
    "action",
    "log-start",
    "log-end",
    "disabled",
    "description",
    "tags",
    "resiliency",
)


def _flag(entry: dict[str, Node], key: str, default: bool) -> bool:
    return entry[key].boolean() if key in entry else default


def _words(
    entry: dict[str, Node], key: str, pattern: re.Pattern[str], expected: str
) -> tuple[str, ...] | None:
    """A word or a list of them; None for ``any`` and for a key that is not there."""
    if key not in entry:
        return None
    nodes = entry[key].one_or_more(expected)
    if _is_any(nodes):
        return None
    for node in nodes:
        text = node.text(expected)
        if not pattern.fullmatch(text) or (len(text) > POLICY_NAME_MAX and pattern is not _HOST):
            raise node.error(expected)
    return tuple(dict.fromkeys(node.text() for node in nodes))


def _mode(entry: dict[str, Node]) -> int | None:
    node = entry.get("resiliency")
    if node is None:
        return None
    mode = parse_mode(node.text(MODE_EXPECTED))
    if mode is None:
        raise node.error(MODE_EXPECTED)
    return mode


def _description(entry: dict[str, Node]) -> str:
    node = entry.get("description")
    if node is None or node.data is None:
        return ""
    text = node.text()
    if len(text) > DESCRIPTION_MAX:
        raise node.error(f"at most {DESCRIPTION_MAX} characters")
    return text


def _warnings(policy: Policy) -> Iterator[str]:
    for zone in policy.zones:
        if not zone.endpoints and (policy.mapped or zone.name != ZONE_DATA):
            why = "" if policy.mapped else f" (no endpoint is mapped: everything is in zone {ZONE_DATA})"
            yield f"{policy.file}:{zone.line}: zone {zone.name} has no endpoints: nothing is in it{why}"
    actions = [rule.action for rule in policy.rules if not rule.disabled]
    actions += [policy.intrazone_default.action, policy.interzone_default.action]
    if "allow" not in actions:
        yield f"{policy.file}: no rule allows anything: everything is denied"
