"""Packets as hosts write and read them; the firewall's own parsers are not used here."""

from __future__ import annotations

import struct
from typing import NamedTuple

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10

GENEVE_FIXED = 8


class Packet(NamedTuple):
    """An inner packet as its receiver sees it; what a protocol does not have is 0."""

    protocol: int
    source: bytes
    sport: int
    """ICMP echo: the identifier, in both ports."""
    destination: bytes
    dport: int
    flags: int
    sequence: int
    acknowledgement: int
    window: int
    scale: int
    """Window scale option of a SYN, -1 without."""
    request: bool
    """An ICMP echo request."""
    payload: bytes


def _ip(source: bytes, destination: bytes, protocol: int, payload: bytes) -> bytes:
    if len(source) == 16:
        return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + source + destination + payload
    start = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol)
    total = sum(struct.unpack("!10H", start + b"\0\0" + source + destination))
    total = (total >> 16) + (total & 0xFFFF)
    total += total >> 16
    return start + struct.pack("!H", ~total & 0xFFFF) + source + destination + payload


def tcp(
    source: bytes,
    sport: int,
    destination: bytes,
    dport: int,
    flags: int,
    sequence: int,
    acknowledgement: int,
    window: int,
    payload: bytes = b"",
    scale: int = -1,
) -> bytes:
    """A TCP segment; nothing here corrupts packets, so the transport checksum stays 0."""
    options = b"" if scale < 0 else bytes((1, 3, 3, scale))
    header = struct.pack(
        "!HHIIBBHHH",
        sport,
        dport,
        sequence & 0xFFFFFFFF,
        acknowledgement & 0xFFFFFFFF,
        (20 + len(options)) << 2,
        flags,
        window,
        0,
        0,
    )
    return _ip(source, destination, TCP, header + options + payload)


def udp(source: bytes, sport: int, destination: bytes, dport: int, payload: bytes) -> bytes:
    """A UDP datagram."""
    header = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0)
    return _ip(source, destination, UDP, header + payload)


def echo(source: bytes, destination: bytes, identifier: int, request: bool, payload: bytes) -> bytes:
    """An ICMP or ICMPv6 echo request or reply."""
    if len(source) == 16:
        kind, protocol = (128 if request else 129), ICMPV6
    else:
        kind, protocol = (8 if request else 0), ICMP
    return _ip(source, destination, protocol, struct.pack("!BBHHH", kind, 0, 0, identifier, 0) + payload)


def read(packet: bytes) -> Packet:
    """What a host reads in a packet that ``tcp``, ``udp`` or ``echo`` wrote."""
    if packet[0] >> 4 == 6:
        protocol, source, destination, at = packet[6], packet[8:24], packet[24:40], 40
    else:
        protocol, source, destination, at = packet[9], packet[12:16], packet[16:20], 20
    if protocol == TCP:
        sport, dport, sequence, acknowledgement, words, flags, window = struct.unpack_from(
            "!HHIIBBH", packet, at
        )
        end = at + (words >> 4) * 4
        scale = packet[at + 23] if end == at + 24 else -1
        return Packet(
            protocol,
            source,
            sport,
            destination,
            dport,
            flags,
            sequence,
            acknowledgement,
            window,
            scale,
            False,
            packet[end:],
        )
    if protocol == UDP:
        sport, dport = struct.unpack_from("!HH", packet, at)
        return Packet(protocol, source, sport, destination, dport, 0, 0, 0, 0, -1, False, packet[at + 8 :])
    kind, identifier = packet[at], int.from_bytes(packet[at + 4 : at + 6], "big")
    return Packet(
        protocol,
        source,
        identifier,
        destination,
        identifier,
        0,
        0,
        0,
        0,
        -1,
        kind in (8, 128),
        packet[at + 8 :],
    )


def quoted(packet: bytes) -> bytes | None:
    """The packet that an unreachable is about; None of any other packet."""
    at = 40 if packet[0] >> 4 == 6 else 20
    protocol, kind = packet[6 if at == 40 else 9], packet[at]
    return packet[at + 8 :] if (protocol, kind) in ((ICMP, 3), (ICMPV6, 1)) else None


def inner_of(outer: bytes) -> bytes:
    """The packet inside a GENEVE packet (RFC 8926 section 3.4: option length in 4 bytes)."""
    return outer[GENEVE_FIXED + (outer[0] & 0x3F) * 4 :]
