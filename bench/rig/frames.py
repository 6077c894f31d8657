"""What the generator sends: one template for each kind of packet, completed in the kernel.

A template holds everything but what differs from flow to flow (addresses, the client's port, checksums, outer
source port, cookie); ``bpf/bench.bpf.c`` writes those. All inner packets have one size: connections are
opened by segments that carry options, as real ones do, and data is a repeated segment, which is in the
window for ever.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from everwall.limits import GENEVE_PORT
from tests import packets


class Kind(IntEnum):
    """In the order of ``enum kind`` in the program; second byte of the inner packet's identification field."""

    CLIENT_DATA = 0
    SERVER_DATA = 1
    SYN = 2
    SYN_ACK = 3
    ACK = 4
    STRAY = 5
    MALFORMED = 6


TEMPLATE_BYTES = 160
OUTER_BYTES = 82
ETHERNET_BYTES = 14
CLIENT_PORT_FIRST = 1024
SERVER_PORT = 443
ENDPOINT = 1
CLIENT_ISN, SERVER_ISN = 1_000_000, 5_000_000
WINDOW = 60_000
_SYN_OPTIONS = bytes.fromhex("020405b4 0402 080a000000010000 0000 01 030307 01010101")
"""MSS 1460, selective acknowledgements, time stamps, window scale 7, and padding to 24 bytes."""


def client(flow: int) -> str:
    """The client's address of a flow."""
    return f"10.{flow >> 16 & 127}.{flow >> 8 & 255}.{flow & 255}"


def server(flow: int) -> str:
    """The server's address of a flow."""
    return f"198.18.0.{flow & 255}"


def client_port(flow: int) -> int:
    """The client's port of a flow."""
    return CLIENT_PORT_FIRST + (flow >> 23 & 0x7FFF)


def inner(kind: Kind, size: int, src: str = "0.0.0.0", dst: str = "0.0.0.0", port: int = 0) -> bytes:
    """An inner packet of ``size`` bytes (64 at least); without addresses it is the template of its kind."""
    options, payload, flags = b"", bytes(size - 40), "PA"
    seq, ack = CLIENT_ISN + 1, SERVER_ISN + 1
    if kind == Kind.SYN:
        options, payload, flags, seq, ack = _SYN_OPTIONS, bytes(size - 64), "S", CLIENT_ISN, 0
    elif kind == Kind.SYN_ACK:
        options, payload, flags, seq, ack = _SYN_OPTIONS, bytes(size - 64), "SA", SERVER_ISN, CLIENT_ISN + 1
    elif kind == Kind.SERVER_DATA:
        seq, ack = SERVER_ISN + 1, CLIENT_ISN + 1
    ports = (SERVER_PORT, port) if kind in (Kind.SERVER_DATA, Kind.SYN_ACK) else (port, SERVER_PORT)
    return packets.tcp(
        src, dst, *ports, flags, seq, ack, WINDOW, payload, options, packet_id=int(kind), dont_fragment=True
    )


def outer(inner_bytes: int, macs: bytes, addresses: tuple[bytes, bytes]) -> bytes:
    """Ethernet to GENEVE of a packet from the generator: destination and source MAC, source and destination address."""
    geneve = packets.geneve(b"", ENDPOINT, cookie=0, protocol_type=0x0800)
    udp = struct.pack("!HHHH", 0, GENEVE_PORT, 8 + len(geneve) + inner_bytes, 0)
    length = 20 + len(udp) + len(geneve) + inner_bytes
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, length, 0, 0x4000, 64, 17, 0, *addresses)
    return macs + b"\x08\x00" + packets.fix_ipv4_checksum(header) + udp + geneve


def sums(packet: bytes) -> tuple[int, int]:
    """The program's constants of a template: sums over its IPv4 header, and over pseudo header and segment.

    Words are added as they lie in the memory of a little-endian machine (RFC 1071, section 2, B).
    """

    def words(data: bytes) -> int:
        return sum(struct.unpack(f"<{len(data) // 2}H", data))

    header = packet[:10] + bytes(2) + packet[12:20]
    segment = packet[20:36] + bytes(2) + packet[38:]
    segment += bytes(len(segment) % 2)
    pseudo = struct.pack("!HH", 6, len(packet) - 20)
    return words(header), words(pseudo + segment)
