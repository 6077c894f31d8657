"""Packets for tests, built from plain struct: what a sender would write, and nothing of what a reader knows.

Inner packets are bytes from the IP header on; whether IPv4 or IPv6 follows from the form of the addresses.
``geneve`` wraps one as a gateway load balancer does, ``load`` puts the result into a batch as a port does.
Every field that a test may want to be wrong is an argument.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import ip_address

import numpy as np

from everwall.limits import GENEVE_PORT, HEADROOM_BYTES
from everwall.wire import meta
from everwall.wire.meta import Batch, make_batch

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58

FLAG_BITS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16, "U": 32, "E": 64, "C": 128}

GATEWAY = ("10.9.0.1", 40_001)
FIREWALL = ("10.9.0.2", GENEVE_PORT)


def checksum(data: bytes) -> int:
    """The Internet checksum of ``data``."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return total ^ 0xFFFF


def flag_bits(flags: str | int) -> int:
    """``"SA"`` as bits; a number is taken as it is."""
    return flags if isinstance(flags, int) else sum(FLAG_BITS[letter] for letter in flags)


# IP -----------------------------------------------------------------------------------------------


def ip(src: str, dst: str, protocol: int, payload: bytes, **fields: object) -> bytes:
    """An IPv4 or IPv6 packet around ``payload``; ``fields`` as for ``ipv4`` or ``ipv6``."""
    build = ipv4 if ip_address(src).version == 4 else ipv6
    return build(src, dst, protocol, payload, **fields)  # type: ignore[arg-type]


def ipv4(
    src: str,
    dst: str,
    protocol: int,
    payload: bytes,
    *,
    packet_id: int = 0x1D1D,
    dont_fragment: bool = False,
    more: bool = False,
    offset: int = 0,
    ttl: int = 64,
    ip_options: bytes = b"",
    total_length: int | None = None,
) -> bytes:
    """An IPv4 packet; ``offset`` in bytes, ``ip_options`` a multiple of 4 bytes."""
    header_length = 20 + len(ip_options)
    flags = dont_fragment << 14 | more << 13 | offset // 8
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | header_length // 4,
        0,
        header_length + len(payload) if total_length is None else total_length,
        packet_id,
        flags,
        ttl,
        protocol,
        0,
        ip_address(src).packed,
        ip_address(dst).packed,
    )
    return fix_ipv4_checksum(header + ip_options) + payload


def fix_ipv4_checksum(packet: bytes) -> bytes:
    """The packet with its IPv4 header checksum made right, as far as its header goes."""
    length = (packet[0] & 15) * 4
    header = packet[:10] + b"\0\0" + packet[12:length]
    return packet[:10] + struct.pack("!H", checksum(header)) + packet[12:]


def ipv6(
    src: str,
    dst: str,
    protocol: int,
    payload: bytes,
    *,
    extensions: Sequence[tuple[int, bytes]] = (),
    hop_limit: int = 64,
    payload_length: int | None = None,
) -> bytes:
    """An IPv6 packet; ``extensions`` are (header number, bytes whose first is set to what comes next)."""
    chain = b""
    following = protocol
    for number, body in reversed(extensions):
        chain = bytes([following]) + body[1:] + chain
        following = number
    length = len(chain) + len(payload) if payload_length is None else payload_length
    addresses = ip_address(src).packed + ip_address(dst).packed
    return struct.pack("!IHBB", 0x60000000, length, following, hop_limit) + addresses + chain + payload


def ipv6_options(number: int = 60, units: int = 1) -> tuple[int, bytes]:
    """A hop-by-hop (0), routing (43) or destination options (60) header of ``units`` times 8 bytes."""
    return number, bytes([0, units - 1, 1, units * 8 - 4]) + bytes(units * 8 - 4)


def ipv6_authentication(integrity_bytes: int = 12) -> tuple[int, bytes]:
    """An authentication header (RFC 4302), whose length counts in 4 bytes less 2."""
    return 51, bytes([0, (12 + integrity_bytes) // 4 - 2]) + bytes(10 + integrity_bytes)


def ipv6_fragment(ident: int, offset: int = 0, more: bool = False) -> tuple[int, bytes]:
    """A fragment header; ``offset`` in bytes."""
    return 44, struct.pack("!BBHI", 0, 0, offset | more, ident)


def fragments(packet: bytes, size: int, ident: int = 0x1D1D) -> list[bytes]:
    """The packet cut into fragments that carry ``size`` bytes each, a multiple of 8."""
    header_length = (packet[0] & 15) * 4 if packet[0] >> 4 == 4 else 40
    payload = packet[header_length:]
    parts = []
    for offset in range(0, len(payload), size):
        part = payload[offset : offset + size]
        more = offset + size < len(payload)
        if packet[0] >> 4 == 4:
            length = struct.pack("!HHH", header_length + len(part), ident, more << 13 | offset // 8)
            parts.append(fix_ipv4_checksum(packet[:2] + length + packet[8:header_length] + part))
        else:
            header = packet[:4] + struct.pack("!HB", 8 + len(part), 44) + packet[7:40]
            extension = struct.pack("!BBHI", packet[6], 0, offset | more, ident)
            parts.append(header + extension + part)
    return parts


# Transport ------------------------------------------------------------------------------------------


def tcp(
    src: str,
    dst: str,
    sport: int,
    dport: int,
    flags: str | int = "S",
    seq: int = 0,
    ack: int = 0,
    window: int = 65535,
    payload: bytes = b"",
    options: bytes = b"",
    *,
    data_offset: int | None = None,
    **fields: object,
) -> bytes:
    """A TCP segment in an IP packet; ``options`` are padded to 4 bytes, ``data_offset`` counts words."""
    options += b"\0" * (-len(options) % 4)
    words = 5 + len(options) // 4 if data_offset is None else data_offset
    header = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, words << 4, flag_bits(flags), window, 0, 0)
    return ip(src, dst, TCP, _sealed(src, dst, TCP, header + options + payload, 16), **fields)


def udp(
    src: str,
    dst: str,
    sport: int,
    dport: int,
    payload: bytes = b"",
    *,
    length: int | None = None,
    **fields: object,
) -> bytes:
    """A UDP datagram in an IP packet."""
    header = struct.pack("!HHHH", sport, dport, 8 + len(payload) if length is None else length, 0)
    return ip(src, dst, UDP, _sealed(src, dst, UDP, header + payload, 6), **fields)


def icmp_echo(
    src: str,
    dst: str,
    ident: int = 1,
    sequence: int = 1,
    reply: bool = False,
    payload: bytes = b"ping",
    **fields: object,
) -> bytes:
    """An echo request or reply."""
    if ip_address(src).version == 4:
        kind = 0 if reply else 8
    else:
        kind = 129 if reply else 128
    return icmp(src, dst, kind, 0, struct.pack("!HH", ident, sequence) + payload, **fields)


def icmp_error(
    src: str, dst: str, quoted: bytes, kind: int | None = None, code: int = 1, **fields: object
) -> bytes:
    """An error about ``quoted``, of which it holds up to 548 bytes; by default destination unreachable."""
    if kind is None:
        kind = 3 if ip_address(src).version == 4 else 1
    return icmp(src, dst, kind, code, bytes(4) + quoted[:548], **fields)


def icmp(src: str, dst: str, kind: int, code: int, rest: bytes, **fields: object) -> bytes:
    """Any ICMP or ICMPv6 message; ``rest`` is what follows the checksum."""
    protocol = ICMP if ip_address(src).version == 4 else ICMPV6
    message = struct.pack("!BBH", kind, code, 0) + rest
    return ip(src, dst, protocol, _sealed(src, dst, protocol, message, 2), **fields)


def _sealed(src: str, dst: str, protocol: int, segment: bytes, at: int) -> bytes:
    """The segment with its checksum written ``at`` its place."""
    addresses = ip_address(src).packed + ip_address(dst).packed
    pseudo = b"" if protocol == ICMP else addresses + struct.pack("!IHH", len(segment), 0, protocol)
    value = checksum(pseudo + segment)
    if protocol == UDP and value == 0:
        value = 0xFFFF
    return segment[:at] + struct.pack("!H", value) + segment[at + 2 :]


# GENEVE ---------------------------------------------------------------------------------------------


def option(option_class: int, option_type: int, value: bytes, *, reserved: int = 0) -> bytes:
    """One GENEVE option; ``value`` is a multiple of 4 bytes."""
    return struct.pack("!HBB", option_class, option_type, reserved << 5 | len(value) // 4) + value


def endpoint_option(endpoint: int) -> bytes:
    return option(0x0108, 1, struct.pack("!Q", endpoint))


def attachment_option(attachment: int) -> bytes:
    return option(0x0108, 2, struct.pack("!Q", attachment))


def cookie_option(cookie: int) -> bytes:
    return option(0x0108, 3, struct.pack("!I", cookie))


def geneve(
    inner: bytes,
    endpoint: int = 1,
    cookie: int | None = 0x1234,
    attachment: int = 0x0A77AC,
    *,
    options: Sequence[bytes] | None = None,
    version: int = 0,
    option_words: int | None = None,
    control: bool = False,
    critical: bool = False,
    reserved: int = 0,
    reserved_last: int = 0,
    protocol_type: int | None = None,
    vni: int = 0,
) -> bytes:
    """The UDP payload that a gateway load balancer sends; ``options`` replaces the three usual ones."""
    if options is None:
        options = [endpoint_option(endpoint), attachment_option(attachment)]
        if cookie is not None:
            options.append(cookie_option(cookie))
    joined = b"".join(options)
    words = len(joined) // 4 if option_words is None else option_words
    if protocol_type is None:
        protocol_type = 0x86DD if inner and inner[0] >> 4 == 6 else 0x0800
    header = struct.pack(
        "!BBHI",
        version << 6 | words,
        control << 7 | critical << 6 | reserved,
        protocol_type,
        vni << 8 | reserved_last,
    )
    return header + joined + inner


# Batches --------------------------------------------------------------------------------------------


def load(
    batch: Batch,
    i: int,
    packet: bytes,
    bare: bool = False,
    peer: tuple[str, int] = GATEWAY,
    local: tuple[str, int] = FIREWALL,
    endpoint: int = 0,
) -> None:
    """Put ``packet`` into row ``i`` as a port does: GENEVE, or with ``bare`` an IP packet of ``endpoint``."""
    end = HEADROOM_BYTES + len(packet)
    if end > batch.data.shape[1]:
        raise ValueError(f"a packet of {len(packet)} bytes does not fit a slot")
    batch.data[i, HEADROOM_BYTES:end] = np.frombuffer(packet, np.uint8)
    row = batch.meta[i]
    row[meta.START] = HEADROOM_BYTES
    row[meta.END] = end
    row[meta.PEER_ADDRESS] = int(ip_address(peer[0]))
    row[meta.PEER_PORT] = peer[1]
    row[meta.LOCAL_ADDRESS] = int(ip_address(local[0]))
    row[meta.BARE] = int(bare)
    row[meta.ENDPOINT] = endpoint


def batch_of(packets: Sequence[bytes], bare: bool = False, endpoint: int = 0) -> Batch:
    """A batch that holds exactly ``packets``."""
    batch = make_batch(len(packets))
    for i, packet in enumerate(packets):
        load(batch, i, packet, bare, endpoint=endpoint)
    return batch


def unload(batch: Batch, i: int) -> bytes:
    """The bytes of row ``i`` between START and END."""
    return bytes(batch.data[i, batch.meta[i, meta.START] : batch.meta[i, meta.END]])
