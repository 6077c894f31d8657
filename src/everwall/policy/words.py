"""The words of a policy: addresses, services, endpoints and names, each with what is said when it is not one."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from everwall.limits import HOST_NAME_MAX, POLICY_NAME_MAX, WILDCARD_RANGES_MAX
from everwall.policy.model import ICMP, PORT_MAX, PROTOCOLS, AddressRange, Service, ports_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]*")
NAME_EXPECTED = (
    f"a name: a letter or digit, then letters, digits, space, '.', '_', '-', at most {POLICY_NAME_MAX}"
)
APPLICATION = re.compile(r"[a-z0-9][a-z0-9._-]*")
APPLICATION_EXPECTED = (
    f"any or the name of an application: small letters, digits, '.', '_', '-', at most {POLICY_NAME_MAX}"
)
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
HOST = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
HOST_EXPECTED = "any, a host name (www.example.com) or one with its sub-domains only (*.example.com)"
FQDN = re.compile(rf"{_LABEL}(?:\.{_LABEL})+")
FQDN_EXPECTED = f"a full host name, as api.example.com, at most {HOST_NAME_MAX} characters"
ENDPOINT = re.compile(r"vpce-0?[0-9a-f]{16}|0x[0-9a-fA-F]{1,16}|0|[1-9][0-9]{0,19}")
INTERFACE = re.compile(r"ethernet[0-9]{1,2}/[0-9]{1,2}(\.[1-9][0-9]{0,3})?")
ENDPOINT_EXPECTED = "an endpoint id: vpce- and 16 hexadecimal digits, 0x and hexadecimal digits, or a number"
WILDCARD_EXPECTED = "an IPv4 address and the bits that do not count, as 10.20.1.0/0.0.248.255"


def is_name(text: str) -> bool:
    """Whether zones, rules, addresses and services may be called so."""
    return len(text) <= POLICY_NAME_MAX and bool(NAME.fullmatch(text)) and text == text.strip()


def is_application(text: str) -> bool:
    """Whether an application may be called so."""
    return len(text) <= POLICY_NAME_MAX and bool(APPLICATION.fullmatch(text))


def is_host(text: str) -> bool:
    """A host name, or one with a star for everything below."""
    return len(text) <= HOST_NAME_MAX and bool(HOST.fullmatch(text))


def is_fqdn(text: str) -> bool:
    """A host name that can be asked for: two labels at least, the last one no number."""
    top = text.rpartition(".")[2]
    return len(text) <= HOST_NAME_MAX and bool(FQDN.fullmatch(text)) and not top.isdigit()


def parse_endpoint(text: str) -> int | None:
    """An endpoint id as the 64-bit number that GENEVE carries, or None.

    AWS writes 17 digits after ``vpce-``, of which the first is 0: the number has 64 bits.
    """
    if not ENDPOINT.fullmatch(text):
        return None
    if text.startswith("vpce-"):
        return int(text[5:], 16)
    number = int(text, 16) if text.startswith("0x") else int(text)
    return number if number < 1 << 64 else None


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


def parse_wildcard(text: str) -> tuple[AddressRange, ...] | str:
    """An IPv4 address with the bits that do not count, as the ranges that are the same; else what is wrong.

    Ones below the lowest bit that counts are the width of a range, each one above it doubles their number.
    """
    address, _, mask = text.partition("/")
    try:
        value, ignored = int(ipaddress.IPv4Address(address)), int(ipaddress.IPv4Address(mask))
    except ValueError:
        return WILDCARD_EXPECTED
    if value & ignored:
        return f"{ipaddress.IPv4Address(value & ~ignored)}/{mask} (bits that do not count are set)"
    width = 1
    while ignored & width:
        width <<= 1
    scattered = ignored & ~(width - 1)
    if 1 << scattered.bit_count() > WILDCARD_RANGES_MAX:
        return (
            f"a wildcard of at most {WILDCARD_RANGES_MAX} ranges (this one is {1 << scattered.bit_count()})"
        )
    ranges, chosen = [], 0
    while True:
        ranges.append(AddressRange(4, value | chosen, (value | chosen) + width - 1))
        chosen = (chosen - scattered) & scattered  # the next larger subset of the scattered bits
        if chosen == 0:
            return tuple(ranges)


def parse_ports(text: str) -> tuple[int, int] | str:
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
    if word in PROTOCOLS:
        ports = parse_ports(rest)
        if isinstance(ports, str):
            return ports
        return (ports_of(0, PROTOCOLS[word], *ports),)
    if word == "protocol":
        if not re.fullmatch(r"[0-9]{1,3}", rest) or int(rest) > 255:
            return "a protocol number from 0 to 255"
        return (ports_of(0, int(rest)),)
    return ""


def service_words(services: Iterable[Service]) -> list[str | dict[str, str]]:
    """Services as a policy says them; what has a source port is a mapping."""
    found: dict[Service, str | dict[str, str]] = {}
    names = {number: name for name, number in PROTOCOLS.items()}
    for entry in services:
        word: str | dict[str, str]
        if entry in ICMP:
            entry, word = ICMP[0], "icmp"
        elif entry.protocol not in names:
            word = f"protocol/{entry.protocol}"
        else:
            protocol, port = names[entry.protocol], _port_word(entry.first_port, entry.last_port)
            word = f"{protocol}/{port}"
            source = _port_word(entry.first_source_port, entry.last_source_port)
            if source != _port_word(0, PORT_MAX):
                word = {"protocol": protocol, "port": port, "source-port": source}
        found[entry] = word
    return list(found.values())


def _port_word(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
