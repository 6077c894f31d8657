"""The policy as people write it: one YAML file, read into plain objects or refused with its line.

``docs/policy.md`` describes the form, ``docs/policy.schema.json`` is it for editors. Reading resolves every name,
so that what comes out needs no further look-up: a rule holds zones, address ranges and service entries. What is
not written never opens anything: a rule must say its source, destination, service and action, and the default
rules deny unless they are told to allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from everwall.config import Node, did_you_mean, load_yaml
from everwall.limits import POLICY_HOST_NAMES_MAX, POLICY_RULES_MAX, POLICY_WARNINGS_SHOWN, POLICY_ZONES_MAX
from everwall.modes import MODE_EXPECTED, parse_mode
from everwall.policy import settings
from everwall.policy.applications import APPLICATION_DEFAULT, STANDARD_PORTS, by_ports, standard_ports
from everwall.policy.findings import findings
from everwall.policy.match import INTERZONE_DEFAULT, INTRAZONE_DEFAULT, ZONE_DATA
from everwall.policy.model import (
    ACTIONS,
    ICMP,
    RULE_TYPES,
    Address,
    AddressRange,
    DefaultRule,
    HostName,
    Policy,
    Rule,
    Service,
    Zone,
)
from everwall.policy.objects import (
    ADDRESS_EXPECTED,
    SERVICE_EXPECTED,
    Objects,
    check_name,
    description_of,
    is_any,
    parse_address_node,
    parse_service_node,
    tags_of,
)
from everwall.policy.settings import REJECT_NON_SYN, SETTING_KEYS, TIMEOUTS, SessionSettings
from everwall.policy.words import (
    APPLICATION_EXPECTED,
    ENDPOINT_EXPECTED,
    HOST_EXPECTED,
    INTERFACE,
    NAME_EXPECTED,
    is_application,
    is_host,
    is_name,
    parse_address,
    parse_endpoint,
    parse_service,
)

# What other rooms take from here.
__all__ = [
    "ACTIONS",
    "ICMP",
    "AddressRange",
    "DefaultRule",
    "Policy",
    "Rule",
    "Service",
    "Zone",
    "parse_address",
    "parse_endpoint",
    "parse_service",
    "read_document",
    "read_policy",
]

SECTIONS = ("zones", "addresses", "services", "applications", "rules", "default-rules", "sessions")
ZONE_KEYS = ("endpoints", "interfaces", "description")
RULE_KEYS = (
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
    "icmp-unreachable",
    "log-start",
    "log-end",
    "disabled",
    "description",
    "tags",
    "resiliency",
)
RULE_KEYS_REQUIRED = ("name", "source", "destination", "service", "action")
DEFAULT_RULES = (INTRAZONE_DEFAULT, INTERZONE_DEFAULT)
DEFAULT_RULE_KEYS = ("action", "icmp-unreachable", "log-start", "log-end", "resiliency")


def read_policy(
    path: str | Path | None,
    text: str | None = None,
    accept_ports_for_applications: bool = False,
    endpoints: Mapping[str, Sequence[int]] | None = None,
) -> Policy:
    """The policy in a YAML file (or in ``text``, which then only borrows the file's name).

    None, as well as an empty file, is the policy that denies everything. As long as only ports can be matched, a
    rule that names applications cannot be run; ``accept_ports_for_applications`` turns them into their standard
    ports, with a warning each. ``endpoints`` maps an interface to the endpoints that are associated with it: they are
    in the zone that names it. Raises ``ConfigError``.
    """
    if path is None:
        return Policy(warnings=("no policy file: everything is denied",))
    root = load_yaml(path, text)
    if root is None:
        return Policy(str(path), warnings=(f"{path}: the policy is empty: everything is denied",))
    return read_document(root, accept_ports_for_applications, endpoints)


def read_document(
    root: Node,
    accept_ports_for_applications: bool = False,
    endpoints: Mapping[str, Sequence[int]] | None = None,
) -> Policy:
    """The policy in a document of the form that ``read_policy`` reads, wherever it comes from."""
    return _Reader(root, accept_ports_for_applications, endpoints or {}).read()


class _Reader:
    """Reads one policy from the top; what comes later may name what came before."""

    def __init__(self, root: Node, accept_ports: bool, associated: Mapping[str, Sequence[int]]) -> None:
        self.file = root.file
        self.root = root.mapping(SECTIONS)
        self.accept_ports = accept_ports
        self.associated = associated
        self.default_zone = ZONE_DATA
        self.known_zones: tuple[str, ...] = ()
        self.warnings: list[str] = []
        # By identity; the first of each three keeps what it is the identity of.
        self._halves: dict[int, tuple[tuple[Address, ...], tuple[AddressRange, ...], tuple[str, ...]]] = {}

    def _section(self, name: str) -> dict[str, Node]:
        node = self.root.get(name)
        return {} if node is None or node.data is None else node.mapping()

    def read(self) -> Policy:
        zones = self._zones()
        names = [zone.name for zone in zones]
        if not any(zone.endpoints for zone in zones) and self.default_zone not in names:
            names.insert(0, self.default_zone)
        self.known_zones = tuple(names)
        self.addresses = Objects(self._section("addresses"), parse_address_node, ADDRESS_EXPECTED)
        self.services = Objects(self._section("services"), parse_service_node, SERVICE_EXPECTED)
        self.applications = {**STANDARD_PORTS, **self._applications()}
        rules = self._rules()
        intrazone, interzone = self._defaults()
        policy = Policy(self.file, zones, rules, intrazone, interzone, self.default_zone, self._settings())
        if len(policy.host_names) > POLICY_HOST_NAMES_MAX:
            raise self.root["rules"].error(f"at most {POLICY_HOST_NAMES_MAX} host names in all addresses")
        self.warnings += findings(policy)
        self.warnings += settings.findings(self.file, policy.settings)
        self.warnings += _unused(self.file, "addresses", self.addresses.unused())
        self.warnings += _unused(self.file, "services", self.services.unused())
        return replace(policy, warnings=tuple(self.warnings))

    def _zones(self) -> tuple[Zone, ...]:
        section = self._section("zones")
        if len(section) > POLICY_ZONES_MAX:
            raise self.root["zones"].error(f"at most {POLICY_ZONES_MAX} zones")
        owners: dict[int, str] = {}
        carriers: dict[str, str] = {}
        whole: Node | None = None
        zones = []
        for name, node in section.items():
            check_name(name, node)
            if name == "any":
                raise node.error("a name other than any", name)
            entry = {} if node.data is None else node.mapping(ZONE_KEYS)
            description_of(entry)
            items = entry["endpoints"].one_or_more("a list of endpoint ids") if "endpoints" in entry else []
            if is_any(items):
                if whole is not None:
                    raise items[0].error("any for one zone only")
                whole, items, self.default_zone = items[0], [], name
            endpoints = []
            for item in items:
                endpoint = parse_endpoint(item.text(ENDPOINT_EXPECTED))
                if endpoint is None:
                    raise item.error(ENDPOINT_EXPECTED)
                if endpoint in owners:
                    raise item.error(f"each endpoint once (it is in zone {owners[endpoint]} already)")
                owners[endpoint] = name
                endpoints.append(endpoint)
            interfaces = _interfaces(entry, carriers, name)
            for interface in interfaces:
                for endpoint in self.associated.get(interface, ()):
                    if owners.setdefault(endpoint, name) != name:
                        raise entry["interfaces"].error(
                            f"no interface of vpce-{endpoint:017x}, which is in zone {owners[endpoint]}",
                            interface,
                        )
                    if endpoint not in endpoints:
                        endpoints.append(endpoint)
            zones.append(Zone(name, tuple(endpoints), node.key_line, interfaces))
        if whole is not None and owners:
            raise whole.error("endpoint ids: any is for a policy that names no endpoint")
        return tuple(zones)

    def _applications(self) -> dict[str, tuple[Service, ...]]:
        """Standard ports of applications that are not known here, or are others here."""
        section = self._section("applications")
        found = {}
        for name, node in section.items():
            check_name(name, node)
            if not is_application(name) or name == "any":
                raise node.error(APPLICATION_EXPECTED, name)
            items = Objects({}, parse_service_node, SERVICE_EXPECTED).resolve(node)
            if items is None:
                raise node.error("its standard ports, not any")
            found[name] = items
        return found

    def _zone_names(self, node: Node | None) -> tuple[str, ...] | None:
        if node is None:
            return None
        expected = "any, the name of a zone or a list of names"
        entries = node.one_or_more(expected)
        if is_any(entries):
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
        entry = node.mapping(RULE_KEYS, required=RULE_KEYS_REQUIRED)
        name = entry["name"].text(NAME_EXPECTED)
        if not is_name(name):
            raise entry["name"].error(NAME_EXPECTED)
        if name in DEFAULT_RULES:
            raise entry["name"].error("another name (the default rules stand under default-rules)")
        rule_type = entry["rule-type"].one_of(*RULE_TYPES) if "rule-type" in entry else "universal"
        to_zones = self._zone_names(entry.get("to"))
        if rule_type == "intrazone" and to_zones is not None:
            raise entry["to"].error("no zones: an intrazone rule ends in the zone that it begins in")
        action = entry["action"].one_of(*ACTIONS)
        negate_source, source, source_names = self._addresses(entry, "source")
        negate_destination, destination, destination_names = self._addresses(entry, "destination")
        applications = _words(entry, "application", is_application, APPLICATION_EXPECTED)
        applications, service = self._service(node.line, name, entry, applications, action)
        return Rule(
            name=name,
            action=action,
            from_zones=self._zone_names(entry.get("from")),
            to_zones=to_zones,
            source=source,
            destination=destination,
            service=service,
            applications=applications,
            hosts=_words(entry, "host", is_host, HOST_EXPECTED),
            negate_source=negate_source,
            negate_destination=negate_destination,
            rule_type=rule_type,
            tags=tags_of(entry),
            source_names=source_names,
            destination_names=destination_names,
            log_start=_flag(entry, "log-start", False),
            log_end=_flag(entry, "log-end", True),
            icmp_unreachable=_unreachable(entry, action),
            disabled=_flag(entry, "disabled", False),
            description=description_of(entry),
            mode=_mode(entry),
            line=node.line,
        )

    def _addresses(
        self, entry: dict[str, Node], key: str
    ) -> tuple[bool, tuple[AddressRange, ...] | None, tuple[str, ...]]:
        """Whether negated, the ranges and the names of a rule's source or destination."""
        negate = _flag(entry, f"negate-{key}", False)
        found = self.addresses.resolve(entry[key])
        if found is None:
            if negate:
                raise entry[f"negate-{key}"].error(f"a {key} other than any, or no negation")
            return negate, None, ()
        ranges, names = self._split(found)
        if negate and names:
            # Until the name is known the rule would match every address.
            raise entry[f"negate-{key}"].error(
                f"no negation: {names[0]} has no addresses until it is resolved"
            )
        return negate, ranges, names

    def _split(self, found: tuple[Address, ...]) -> tuple[tuple[AddressRange, ...], tuple[str, ...]]:
        """Ranges and names apart; what several rules share is shared afterwards too."""
        if id(found) not in self._halves:
            ranges = tuple(item for item in found if isinstance(item, AddressRange))
            names = tuple(item.name for item in found if isinstance(item, HostName))
            self._halves[id(found)] = found, ranges, names
        return self._halves[id(found)][1:]

    def _service(
        self,
        line: int,
        name: str,
        entry: dict[str, Node],
        applications: tuple[str, ...] | None,
        action: str,
    ) -> tuple[tuple[str, ...] | None, tuple[Service, ...] | None]:
        """The applications and services of a rule; applications may become ports here."""
        node = entry["service"]
        default = node.data == APPLICATION_DEFAULT
        if applications is None and not default:
            return None, self.services.resolve(node)
        service = None if default else self.services.resolve(node)
        if not self.accept_ports:
            if default:
                if applications is None:
                    raise node.error(
                        f"a service: {APPLICATION_DEFAULT} without applications stands for every application at its "
                        "own ports, and only ports can be matched so far"
                    )
                ports = standard_ports(applications, self.applications)
                if isinstance(ports, str):
                    raise entry["application"].error(ports)
                service = ports
            return applications, service
        found = by_ports(applications, APPLICATION_DEFAULT if default else service, action, self.applications)
        if isinstance(found, str):
            raise entry["application" if applications else "service"].error(found)
        what = "every application" if applications is None else ", ".join(applications)
        self.warnings.append(
            f"{self.file}:{line}: rule {name} is matched by ports, not by what it names ({what}): "
            f"it {'allows' if action == 'allow' else 'refuses'} whatever uses {found.said}"
        )
        return None, found.service

    def _defaults(self) -> tuple[DefaultRule, DefaultRule]:
        node = self.root.get("default-rules")
        section = {} if node is None or node.data is None else node.mapping(DEFAULT_RULES)
        found = []
        for name in DEFAULT_RULES:
            entry = section[name].mapping(DEFAULT_RULE_KEYS) if name in section else {}
            action = entry["action"].one_of(*ACTIONS) if "action" in entry else "deny"
            log_start, log_end = (_flag(entry, key, False) for key in ("log-start", "log-end"))
            unreachable = _unreachable(entry, action)
            found.append(DefaultRule(name, action, log_start, log_end, unreachable, _mode(entry)))
        return found[0], found[1]

    def _settings(self) -> SessionSettings:
        node = self.root.get("sessions")
        entry = {} if node is None or node.data is None else node.mapping(SETTING_KEYS)
        found: dict[str, Any] = {
            name: entry[key].integer(1, most_s, f"seconds from 1 to {most_s}")
            for name, (key, most_s) in TIMEOUTS.items()
            if key in entry
        }
        if REJECT_NON_SYN in entry:
            found["reject_non_syn"] = entry[REJECT_NON_SYN].boolean()
        return SessionSettings(**found)


def _unused(file: str, what: str, names: list[str]) -> Iterator[str]:
    if names:
        more = len(names) - POLICY_WARNINGS_SHOWN
        shown = ", ".join(names[:POLICY_WARNINGS_SHOWN]) + (f" and {more} more" if more > 0 else "")
        yield f"{file}: {what} that no rule names: {shown}"


def _flag(entry: dict[str, Node], key: str, default: bool) -> bool:
    return entry[key].boolean() if key in entry else default


def _unreachable(entry: dict[str, Node], action: str) -> bool:
    """Whether what is refused is answered by ICMP; a rule that allows refuses nothing."""
    asked = _flag(entry, "icmp-unreachable", False)
    if asked and action == "allow":
        raise entry["icmp-unreachable"].error("an action that refuses, or no icmp-unreachable")
    return asked


def _words(
    entry: dict[str, Node], key: str, fits: Callable[[str], bool], expected: str
) -> tuple[str, ...] | None:
    """A word or a list of them; None for ``any`` and for a key that is not there."""
    if key not in entry:
        return None
    nodes = entry[key].one_or_more(expected)
    if is_any(nodes):
        return None
    for node in nodes:
        if not fits(node.text(expected)):
            raise node.error(expected)
    return tuple(dict.fromkeys(node.text() for node in nodes))


def _interfaces(entry: dict[str, Node], owners: dict[str, str], zone: str) -> tuple[str, ...]:
    """The subinterfaces of a zone; ``owners`` are those of the zones before."""
    if "interfaces" not in entry:
        return ()
    nodes = entry["interfaces"].one_or_more("a list of interfaces, as ethernet1/1.10")
    for node in nodes:
        name = node.text()
        if not INTERFACE.fullmatch(name):
            raise node.error("an interface as bootstrap words have it, as ethernet1/1.10")
        if owners.setdefault(name, zone) != zone:
            raise node.error(f"each interface once (it is in zone {owners[name]} already)")
    return tuple(node.text() for node in nodes)


def _mode(entry: dict[str, Node]) -> int | None:
    node = entry.get("resiliency")
    if node is None:
        return None
    mode = parse_mode(node.text(MODE_EXPECTED))
    if mode is None:
        raise node.error(MODE_EXPECTED)
    return mode
