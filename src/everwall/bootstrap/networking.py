"""The networking keys: type, addresses, gateways, DNS servers.

Everwall is a program on an operating system that has its addresses already, so it does not set them. It reads
what the file says, refuses what cannot be meant, and says at the start where the machine has something else.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from everwall.bootstrap.entries import Entry, shown_value
from everwall.bootstrap.faults import NetworkingError

TYPES = ("static", "dhcp-client")
ADDRESSES_FROM_THE_CLOUD = ("aws", "azure")
"""Where ip-address and netmask are not looked at."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Warn = Callable[[Entry, str], None]


@dataclass(frozen=True)
class Networking:
    """What the file says about the management interface."""

    type: str = ""
    """``static``, ``dhcp-client``, or empty: whatever the machine has."""
    address: ipaddress.IPv4Interface | None = None
    gateway: ipaddress.IPv4Address | None = None
    address6: ipaddress.IPv6Interface | None = None
    gateway6: ipaddress.IPv6Address | None = None
    dns: tuple[Address, ...] = ()
    """Servers asked for names, in order; none: the machine's own resolver."""


def read_networking(entries: Mapping[str, Entry], platform: str, warn: Warn, file: str = "") -> Networking:
    """What the entries say; raises NetworkingError. ``platform`` as ``machine.platform`` names it."""
    reader = _Reader(entries, warn, file)
    dns = reader.dns()
    kind = reader.given("type")
    if kind is not None and kind.value not in TYPES:
        raise _error(kind, "static or dhcp-client")
    if kind is None or kind.value != "static":
        # Whoever has no type has nothing to do with addresses either; their form is looked at all the same.
        reader.static(False, platform in ADDRESSES_FROM_THE_CLOUD)
        return Networking(kind.value if kind else "", dns=dns)
    address, gateway = reader.static(True, platform in ADDRESSES_FROM_THE_CLOUD)
    return Networking("static", address, gateway, *reader.static6(), dns)


def _error(entry: Entry, expected: str) -> NetworkingError:
    return NetworkingError(
        entry.file, expected, line=entry.line or None, key=entry.key, value=shown_value(entry)
    )


class _Reader:
    def __init__(self, entries: Mapping[str, Entry], warn: Warn, file: str) -> None:
        self.entries = entries
        self.warn = warn
        self.file = file

    def given(self, key: str) -> Entry | None:
        entry = self.entries.get(key)
        return entry if entry is not None and entry.value else None

    def needed(self, key: str, why: str) -> Entry:
        entry = self.given(key)
        if entry is not None:
            return entry
        there = self.entries.get(key)
        line = there.line or None if there is not None else None
        raise NetworkingError(
            there.file if there else self.file, f"a value, because {why}", line=line, key=key
        )

    def v4(self, entry: Entry) -> ipaddress.IPv4Address:
        try:
            return ipaddress.IPv4Address(entry.value)
        except ValueError:
            raise _error(entry, "an IPv4 address, as 10.0.0.5") from None

    def static(
        self, static: bool, from_the_cloud: bool
    ) -> tuple[ipaddress.IPv4Interface | None, ipaddress.IPv4Address | None]:
        """Address with its mask, and gateway; their form is checked also where they are not used."""
        found = {key: self.given(key) for key in ("ip-address", "netmask", "default-gateway")}
        if static:
            for key in found:
                if key == "default-gateway" or not from_the_cloud:
                    found[key] = self.needed(key, "type is static")
        else:
            for entry in filter(None, found.values()):
                self.warn(entry, "not used, because type is not static")
        host, mask, gateway = found.values()
        bits = self._mask(mask)
        way = self.v4(gateway) if gateway else None
        address = None
        if host:
            address = ipaddress.IPv4Interface((self.v4(host), 32 if bits is None else bits))
        if static and from_the_cloud:
            for entry in filter(None, (host, mask)):
                self.warn(entry, "not used, because the cloud gives the address")
            return None, way
        if static and gateway and address and way not in address.network:
            raise _error(gateway, f"an address in {address.network}, where ip-address is")
        if static and gateway and address and way == address.ip:
            raise _error(gateway, "another address than ip-address")
        return (address, way) if static else (None, None)

    def _mask(self, entry: Entry | None) -> int | None:
        if entry is None:
            return None
        try:
            # A prefix length, or the inverse mask of some routers, would be taken as well.
            mask = ipaddress.IPv4Address(entry.value)
            bits = ipaddress.IPv4Network(f"0.0.0.0/{entry.value}").prefixlen
        except ValueError:
            raise _error(entry, "a netmask, as 255.255.255.0") from None
        if ipaddress.IPv4Network(f"0.0.0.0/{bits}").netmask != mask:
            raise _error(entry, "a netmask whose ones stand first, as 255.255.255.0")
        return bits

    def static6(self) -> tuple[ipaddress.IPv6Interface | None, ipaddress.IPv6Address | None]:
        host, gateway = self.given("ipv6-address"), self.given("ipv6-default-gateway")
        address = way = None
        if host:
            try:
                if "/" not in host.value:
                    raise ValueError
                address = ipaddress.IPv6Interface(host.value)
            except ValueError:
                raise _error(host, "an IPv6 address with its prefix length, as 2001:db8::5/64") from None
            gateway = self.needed("ipv6-default-gateway", "there is an ipv6-address")
        if gateway:
            try:
                way = ipaddress.IPv6Address(gateway.value)
            except ValueError:
                raise _error(gateway, "an IPv6 address, as 2001:db8::1") from None
        return address, way

    def dns(self) -> tuple[Address, ...]:
        servers: list[Address] = []
        for key in ("dns-primary", "dns-secondary"):
            entry = self.given(key)
            if entry is None:
                continue
            try:
                server = ipaddress.ip_address(entry.value)
            except ValueError:
                raise _error(entry, "the address of a DNS server, as 10.0.0.2 or 2001:db8::2") from None
            if server.is_unspecified or server.is_multicast:
                raise _error(entry, "the address of one DNS server")
            if server in servers:
                self.warn(entry, "the same as dns-primary")
            else:
                servers.append(server)
        return tuple(servers)
