"""The oracle for ``everwall.policy.match``: rules as people would apply them, with plain objects."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import cache
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Packet:
    """The first packet of a session; zones are names, None where the endpoint has none."""

    from_zone: str | None
    to_zone: str | None
    source: Address
    destination: Address
    protocol: int
    sport: int
    dport: int


def zone_of(zones: dict[str, list[int]], endpoint: int) -> str | None:
    """The zone an endpoint is in, by the policy's document."""
    if not any(zones.values()):
        return "data"
    for name, endpoints in zones.items():
        if endpoint in endpoints:
            return name
    return None


def decide(document: dict[str, Any], packet: Packet) -> str:
    """The name of the rule that decides about the packet; ``document`` is the YAML file as Python objects."""
    if packet.from_zone is not None and packet.to_zone is not None:
        for rule in document["rules"]:
            if not rule.get("disabled") and _rule_matches(document, rule, packet):
                return str(rule["name"])
        if packet.from_zone == packet.to_zone:
            return "intrazone-default"
    return "interzone-default"


def _rule_matches(document: dict[str, Any], rule: dict[str, Any], packet: Packet) -> bool:
    return (
        _type_matches(rule.get("rule-type", "universal"), packet)
        and _zone_matches(rule.get("from", "any"), packet.from_zone)
        and _zone_matches(rule.get("to", "any"), packet.to_zone)
        and _service_matches(document["services"], rule["service"], packet)
        and _side_matches(document["addresses"], rule, "source", packet.source)
        and _side_matches(document["addresses"], rule, "destination", packet.destination)
    )


def _type_matches(wanted: str, packet: Packet) -> bool:
    same = packet.from_zone == packet.to_zone
    return {"universal": True, "intrazone": same, "interzone": not same}[wanted]


def _side_matches(names: dict[str, Any], rule: dict[str, Any], side: str, address: Address) -> bool:
    listed = _address_matches(names, rule[side], address)
    return not listed if rule.get(f"negate-{side}") else listed


def _zone_matches(wanted: Any, zone: str | None) -> bool:
    return wanted == "any" or zone == wanted or (isinstance(wanted, list) and zone in wanted)


def _address_matches(names: dict[str, Any], wanted: Any, address: Address) -> bool:
    if isinstance(wanted, list):
        return any(_address_matches(names, entry, address) for entry in wanted)
    if wanted == "any":
        return True
    if wanted in names:
        return _address_matches(names, names[wanted], address)
    version, low, high = _ends(wanted)
    return version == address.version and low <= int(address) <= high


@cache
def _ends(text: str) -> tuple[int, int, int]:
    if "/" in text:
        network = ipaddress.ip_network(text)
        return network.version, int(network[0]), int(network[-1])
    first, _, last = text.partition("-")
    low, high = ipaddress.ip_address(first), ipaddress.ip_address(last or first)
    return low.version, int(low), int(high)


def _service_matches(names: dict[str, Any], wanted: Any, packet: Packet) -> bool:
    if isinstance(wanted, list):
        return any(_service_matches(names, entry, packet) for entry in wanted)
    if isinstance(wanted, dict):
        return (
            packet.protocol == {"tcp": 6, "udp": 17}[wanted["protocol"]]
            and _in_ports(wanted.get("port", "0-65535"), packet.dport)
            and _in_ports(wanted.get("source-port", "0-65535"), packet.sport)
        )
    if wanted == "any":
        return True
    if wanted in names:
        return _service_matches(names, names[wanted], packet)
    if wanted == "icmp":
        return (packet.source.version, packet.protocol) in ((4, 1), (6, 58))
    word, _, rest = wanted.partition("/")
    if word == "protocol":
        return packet.protocol == int(rest)
    return packet.protocol == {"tcp": 6, "udp": 17}[word] and _in_ports(rest, packet.dport)


def _in_ports(ports: str, port: int) -> bool:
    first, _, last = ports.partition("-")
    return int(first) <= port <= int(last or first)
