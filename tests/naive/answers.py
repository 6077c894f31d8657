"""What the ends of a refused packet are told, in plain Python: the oracle for ``everwall.answering``.

Written from RFC 9293 (3.10.7.1), RFC 1812 (4.3.2, 5.2.7.1) and RFC 4443 (2.4, 3.1), over whole packets.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

ICMP, TCP, ICMPV6 = 1, 6, 58
FIN, SYN, RST, ACK = 1, 2, 4, 16

RESET_CLIENT, RESET_SERVER, UNREACHABLE, UNREACHABLE_TCP = "client", "server", "unreachable", "tcp too"


def summed(data: bytes) -> int:
    """The Internet checksum."""
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2))
    total = sum(words)
    return ~(total % 0xFFFF or (0xFFFF if total else 0)) & 0xFFFF


def _is_one_host(address: IPv4Address | IPv6Address) -> bool:
    if address.version == 4:
        return IPv4Address("1.0.0.0") <= address <= IPv4Address("223.255.255.255") and not address.is_loopback
    return not (address.is_multicast or address.is_loopback or address.is_unspecified)


class Seen:
    """A whole packet without extension headers, cut into its fields."""

    def __init__(self, packet: bytes) -> None:
        self.packet = packet
        if packet[0] >> 4 == 4:
            self.protocol, (source, destination), at = packet[9], struct.unpack_from("!4s4s", packet, 12), 0
            at = packet[0] % 16 * 4
            self.whole = struct.unpack_from("!H", packet, 6)[0] & 0x3FFF == 0
        else:
            self.protocol, (source, destination), at = packet[6], struct.unpack_from("!16s16s", packet, 8), 40
            self.whole = self.protocol != 44
        self.source, self.destination = ip_address(source), ip_address(destination)
        self.rest = packet[at:]

    def may_be_answered(self) -> bool:
        if not self.whole or not _is_one_host(self.source) or not _is_one_host(self.destination):
            return False
        if self.protocol == TCP:
            return not self.rest[13] & RST
        if self.protocol in (ICMP, ICMPV6):
            return self.rest[0] == (8 if self.source.version == 4 else 128)
        return True

    def ip(self, onward: bool, protocol: int, payload: bytes, service: int = 0) -> bytes:
        """A packet of one end to the other, as the firewall writes it."""
        source, destination = self.source.packed, self.destination.packed
        if not onward:
            source, destination = destination, source
        if len(source) == 16:
            return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + source + destination + payload
        head = struct.pack("!BBHHHBB", 0x45, service, 20 + len(payload), 0, 0x4000, 64, protocol)
        check = struct.pack("!H", summed(head + b"\0\0" + source + destination))
        return head + check + source + destination + payload

    def pseudo(self, protocol: int, length: int) -> bytes:
        return self.source.packed + self.destination.packed + struct.pack("!IHH", length, 0, protocol)


def reset(seen: Seen, onward: bool) -> bytes:
    """The RST about a segment, to its sender or ``onward``."""
    sport, dport, seq, ack, offset, flags = struct.unpack_from("!HHIIBB", seen.rest)
    length = len(seen.rest) - (offset >> 4) * 4 + bool(flags & SYN) + bool(flags & FIN)
    if onward:
        ports, numbers = (sport, dport), (seq, ack if flags & ACK else 0)
        control = RST | (flags & ACK)
    elif flags & ACK:
        ports, numbers, control = (dport, sport), (ack, 0), RST
    else:
        ports, numbers, control = (dport, sport), (0, (seq + length) % 2**32), RST | ACK
    head = struct.pack("!HHIIBBH", *ports, *numbers, 5 << 4, control, 0)
    check = summed(seen.pseudo(TCP, 20) + head + bytes(4))
    return seen.ip(onward, TCP, head + struct.pack("!HH", check, 0))


def unreachable(seen: Seen) -> bytes:
    """The unreachable about a packet, to its sender."""
    if seen.source.version == 4:
        body = struct.pack("!I", 0) + seen.packet[: 576 - 28]
        check = summed(struct.pack("!BBH", 3, 13, 0) + body)
        return seen.ip(False, ICMP, struct.pack("!BBH", 3, 13, check) + body, 0xC0)
    body = struct.pack("!I", 0) + seen.packet[: 1280 - 48]
    check = summed(seen.pseudo(ICMPV6, len(body) + 4) + struct.pack("!BBH", 1, 1, 0) + body)
    return seen.ip(False, ICMPV6, struct.pack("!BBH", 1, 1, check) + body)


def answers(packet: bytes, wanted: set[str], from_client: bool, known: bool) -> list[bytes]:
    """All that is sent about a refused packet; ``known``: both ends have the connection."""
    seen = Seen(packet)
    if not seen.may_be_answered():
        return []
    if seen.protocol != TCP:
        return [unreachable(seen)] if UNREACHABLE in wanted and from_client else []
    sender, receiver = (RESET_CLIENT, RESET_SERVER) if from_client else (RESET_SERVER, RESET_CLIENT)
    found = []
    if sender in wanted:
        found.append(reset(seen, onward=False))
    if receiver in wanted and known:
        found.append(reset(seen, onward=True))
    if UNREACHABLE_TCP in wanted and from_client:
        found.append(unreachable(seen))
    return found
