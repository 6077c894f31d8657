"""Ethernet frames around GENEVE, as they come from a wire; every field a test may want wrong is an argument."""

from __future__ import annotations

import struct

from everwall.limits import GENEVE_PORT
from tests import packets

GATEWAY_MAC = bytes.fromhex("02000000aa01")
FIREWALL_MAC = bytes.fromhex("02000000bb02")
GATEWAY, FIREWALL = packets.GATEWAY[0], packets.FIREWALL[0]
SOURCE_PORT = packets.GATEWAY[1]
GENEVE_AT = 42


def frame(
    payload: bytes,
    *,
    source: str = GATEWAY,
    destination: str = FIREWALL,
    sport: int = SOURCE_PORT,
    dport: int = GENEVE_PORT,
    udp_length: int | None = None,
    udp_checksum: int = 0x1234,
    macs: bytes = FIREWALL_MAC + GATEWAY_MAC,
    ether_type: int = 0x0800,
    **fields: object,
) -> bytes:
    """``payload`` (GENEVE) in UDP, IPv4 and Ethernet; ``fields`` as for ``packets.ipv4``."""
    length = 8 + len(payload) if udp_length is None else udp_length
    datagram = struct.pack("!HHHH", sport, dport, length, udp_checksum) + payload
    outer = packets.ipv4(source, destination, packets.UDP, datagram, **fields)  # type: ignore[arg-type]
    return macs + struct.pack("!H", ether_type) + outer


def sealed(damaged: bytes) -> bytes:
    """A frame whose outer lengths and header checksum say what it is, whatever was done to it."""
    length = len(damaged) - 14
    outer = bytearray(damaged)
    outer[16:18] = struct.pack("!H", length)
    outer[38:40] = struct.pack("!H", length - 20)
    return bytes(outer[:14]) + packets.fix_ipv4_checksum(bytes(outer[14:34])) + bytes(outer[34:])
