"""Inner IPv4 packets of the packet-level traffic: TCP and UDP, with all checksums right."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
WINDOW = 65_000

_IP = struct.Struct("!BBHHHBBH4s4s")
_TCP = struct.Struct("!HHIIBBHHH")
_UDP = struct.Struct("!HHHH")


@dataclass(frozen=True, slots=True)
class Segment:
    """What a packet says; TCP fields are 0 for UDP."""

    protocol: int
    source: str
    destination: str
    source_port: int
    destination_port: int
    flags: int
    sequence: int
    acknowledgement: int
    payload: bytes


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _ipv4(source: bytes, destination: bytes, protocol: int, transport: bytes) -> bytes:
    length = _IP.size + len(transport)
    head = _IP.pack(0x45, 0, length, 0, 0x4000, 64, protocol, 0, source, destination)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return head + transport


def _pseudo(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    return source + destination + struct.pack("!BBH", 0, protocol, length)


def tcp(
    source: str, destination: str, sport: int, dport: int, flags: int, seq: int, ack: int, payload: bytes
) -> bytes:
    """An IPv4 packet with a TCP segment (RFC 9293) without options."""
    here, there = socket.inet_aton(source), socket.inet_aton(destination)
    head = _TCP.pack(sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, 5 << 4, flags, WINDOW, 0, 0)
    total = checksum(_pseudo(here, there, 6, len(head) + len(payload)) + head + payload)
    return _ipv4(here, there, 6, head[:16] + struct.pack("!H", total) + head[18:] + payload)


def udp(source: str, destination: str, sport: int, dport: int, payload: bytes) -> bytes:
    """An IPv4 packet with a UDP datagram (RFC 768)."""
    here, there = socket.inet_aton(source), socket.inet_aton(destination)
    length = _UDP.size + len(payload)
    head = _UDP.pack(sport, dport, length, 0)
    total = checksum(_pseudo(here, there, 17, length) + head + payload) or 0xFFFF
    return _ipv4(here, there, 17, head[:6] + struct.pack("!H", total) + payload)


def parse(packet: bytes) -> Segment:
    """Read a packet of our own making; raises ValueError or struct.error for anything else."""
    (version, _, length, _, _, _, protocol, _, source, destination) = _IP.unpack_from(packet)
    if version != 0x45 or length != len(packet) or checksum(packet[: _IP.size]):
        raise ValueError("not an IPv4 packet of this program")
    here, there = socket.inet_ntoa(source), socket.inet_ntoa(destination)
    body = packet[_IP.size :]
    if protocol == 17:
        sport, dport, _, _ = _UDP.unpack_from(body)
        return Segment(protocol, here, there, sport, dport, 0, 0, 0, body[_UDP.size :])
    if protocol != 6:
        raise ValueError("neither TCP nor UDP")
    sport, dport, seq, ack, offset, flags, _, _, _ = _TCP.unpack_from(body)
    return Segment(protocol, here, there, sport, dport, flags, seq, ack, body[(offset >> 4) * 4 :])
