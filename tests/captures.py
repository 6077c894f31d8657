"""Capture files for tests, written with dpkt and plain struct, and the link layers they may have."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import dpkt

from tests import packets

ETHERNET, RAW, COOKED, COOKED_V2 = 1, 101, 113, 276
MAC_ADDRESSES = bytes.fromhex("020000000002020000000001")


def ether_type(inner: bytes) -> bytes:
    return b"\x86\xdd" if inner[0] >> 4 == 6 else b"\x08\x00"


def ethernet(inner: bytes, *tags: int) -> bytes:
    """An Ethernet frame; ``tags`` are VLAN ids, outermost first, the outer of two an 802.1ad one."""
    joined = b""
    for place, tag in enumerate(tags):
        kind = 0x88A8 if place < len(tags) - 1 else 0x8100
        joined += struct.pack("!HH", kind, tag)
    return MAC_ADDRESSES + joined + ether_type(inner) + inner


def cooked(inner: bytes) -> bytes:
    """A Linux cooked capture header, version 1."""
    return struct.pack("!HHH8s", 0, 1, 6, b"\2\0\0\0\0\1\0\0") + ether_type(inner) + inner


def cooked_v2(inner: bytes) -> bytes:
    return ether_type(inner) + struct.pack("!HIHBB8s", 0, 2, 1, 0, 6, b"\2\0\0\0\0\1\0\0") + inner


def encapsulated(inner: bytes, endpoint: int = 7) -> bytes:
    """What a load balancer sends on the wire: IPv4, UDP to port 6081, GENEVE, the packet."""
    (gateway, port), (firewall, geneve_port) = packets.GATEWAY, packets.FIREWALL
    return packets.udp(gateway, firewall, port, geneve_port, packets.geneve(inner, endpoint))


def pcap(
    path: Path,
    frames: Iterable[tuple[float, bytes]],
    link: int = ETHERNET,
    *,
    nano: bool = False,
    snap: int | None = None,
    order: str = "<",
) -> Path:
    """A pcap file of (seconds, frame); ``snap`` cuts the frames as ``tcpdump -s`` does."""
    unit = 10**9 if nano else 10**6
    magic = 0xA1B23C4D if nano else 0xA1B2C3D4
    content = struct.pack(order + "IHHIIII", magic, 2, 4, 0, 0, snap or 262144, link)
    for time, frame in frames:
        kept = frame[:snap]
        whole, part = divmod(round(time * unit), unit)
        content += struct.pack(order + "IIII", whole, part, len(kept), len(frame)) + kept
    path.write_bytes(content)
    return path


def pcapng(path: Path, frames: Iterable[tuple[float, bytes]], link: int = ETHERNET) -> Path:
    """A pcapng file of one interface, as dpkt writes it."""
    with path.open("wb") as file:
        interface = dpkt.pcapng.InterfaceDescriptionBlockLE(linktype=link, snaplen=0)
        writer = dpkt.pcapng.Writer(file, idb=interface)
        for time, frame in frames:
            writer.writepkt_time(frame, time)
        writer.close()
    return path


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    """One pcapng block, its length twice around the padded body."""
    body += b"\0" * (-len(body) % 4)
    length = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + length + body + length


def spaced(
    inners: Iterable[bytes], start: float = 1_700_000_000.0, step: float = 0.001
) -> list[tuple[float, bytes]]:
    """The packets in Ethernet frames, ``step`` seconds apart."""
    return [(start + k * step, ethernet(inner)) for k, inner in enumerate(inners)]
