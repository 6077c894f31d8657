"""Random packets for the property campaign: good ones, ones broken on purpose, and ones broken blindly.

Breaking on purpose makes sure that every drop is reached often; breaking blindly reaches what nobody
thought of. Everything is drawn from the given ``Random``, so a seed names its packets.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from random import Random

from everwall.verdict import Verdict
from tests import packets

Breaker = Callable[[Random], bytes]

CORNERS = (0, 1, 2, 4, 5, 7, 8, 15, 19, 20, 39, 40, 44, 0x45, 0x60, 0x7F, 0x80, 0xFE, 0xFF)


# Good packets -----------------------------------------------------------------------------------------


def address(rng: Random, family: int) -> str:
    """Few enough that ends are equal now and then; with halves on both sides of the sign."""
    if family == 4:
        return str(IPv4Address(rng.choice([0x0A000001, 0x0A000002, 0xC0A80001, 0xFFFFFFFE, 1])))
    return str(IPv6Address(rng.choice([1, 1 << 63]) | rng.choice([0x2001, 0xFE80, 0x7FFF]) << 112))


def ends(rng: Random, family: int | None = None) -> tuple[str, str]:
    family = family or rng.choice([4, 6])
    return address(rng, family), address(rng, family)


def extensions(rng: Random) -> list[tuple[int, bytes]]:
    choices = [
        packets.ipv6_options(0, rng.randint(1, 3)),
        packets.ipv6_options(43, 1),
        packets.ipv6_options(60, 2),
        packets.ipv6_authentication(),
    ]
    chain = [rng.choice(choices) for _ in range(rng.choice([0, 0, 0, 1, 2, 8]))]
    if rng.random() < 0.2:
        chain[7:] = [packets.ipv6_fragment(rng.getrandbits(32))]
    return chain


def around(rng: Random, source: str) -> dict[str, object]:
    """Fields of the IP header, as the family has them."""
    if ":" in source:
        return {"extensions": extensions(rng)}
    return {"packet_id": rng.getrandbits(16), "ip_options": bytes([1] * 4 * rng.choice([0, 0, 0, 1, 10]))}


def tcp_options(rng: Random) -> bytes:
    """Real options, and pieces of them that lead past the header or nowhere."""
    real = [b"\2\4\5\xb4", b"\4\2", b"\1", b"\1", b"\3\3\7", b"\3\3\x0f", b"\x08\x0a" + bytes(8)]
    odd = [
        b"\0",
        b"\3",
        b"\3\2",
        b"\3\4\7\1",
        b"\3\1\7",
        b"\2\0",
        b"\2\5",
        b"\2\1",
        bytes([0xFE, rng.randint(2, 9)]),
    ]
    pieces = [rng.choice(real) for _ in range(rng.randrange(4))]
    if rng.random() < 0.4:
        pieces.insert(rng.choice([0, len(pieces)]), rng.choice(odd))
    return b"".join(pieces)


def whole(rng: Random) -> bytes:
    """A packet of one of the protocols, not in fragments."""
    source, destination = ends(rng)
    fields = around(rng, source)
    sport, dport = rng.choice([0, 53, 80, 65535]), rng.getrandbits(16)
    payload = rng.randbytes(rng.choice([0, 1, 9, 60]))
    kind = rng.randrange(6)
    if kind <= 1:
        flags = rng.choice(["S", "SA", "A", "PA", "FA", "R", "RA", "AE", "F"])
        options = tcp_options(rng)
        numbers = rng.getrandbits(32), rng.getrandbits(32), rng.getrandbits(16)
        return packets.tcp(source, destination, sport, dport, flags, *numbers, payload, options, **fields)
    if kind == 2:
        length = rng.choice([None, None, 8 + len(payload) // 2])
        return packets.udp(source, destination, sport, dport, payload, length=length, **fields)
    if kind == 3:
        return packets.icmp_echo(source, destination, dport, 1, rng.random() < 0.5, payload, **fields)
    if kind == 4:
        return packets.icmp(
            source, destination, rng.choice([9, 13, 133, 135]), 0, bytes(4) + payload, **fields
        )
    return packets.ip(source, destination, rng.choice([47, 50, 132, 1, 58]), bytes(8) + payload, **fields)


def error(rng: Random) -> bytes:
    """An ICMP error about a packet of its receiver."""
    quoted = whole(rng)
    if quoted[0] >> 4 == 4:
        origin, family, kinds = str(IPv4Address(quoted[12:16])), 4, [3, 4, 5, 11, 12]
    else:
        origin, family, kinds = str(IPv6Address(quoted[8:24])), 6, [1, 2, 3, 4]
    return packets.icmp_error(address(rng, family), origin, quoted, rng.choice(kinds))


def fragment(rng: Random) -> bytes:
    """One part of a packet that was cut."""
    source, destination = ends(rng)
    build = rng.choice([packets.tcp, packets.udp])
    packet = build(source, destination, 1, 2, payload=rng.randbytes(150))  # type: ignore[operator]
    return rng.choice(packets.fragments(packet, rng.choice([24, 64])))


def good_inner(rng: Random) -> bytes:
    return rng.choice([whole, whole, whole, error, fragment])(rng)


def good_options(rng: Random) -> list[bytes]:
    """The options of a gateway load balancer and others' uncritical ones, in any order."""
    options = [packets.endpoint_option(rng.choice([0, 1, 7 << 32, (1 << 64) - 1, rng.getrandbits(64)]))]
    if rng.random() < 0.9:
        options.append(packets.cookie_option(rng.getrandbits(32)))
    if rng.random() < 0.8:
        options.append(packets.attachment_option(rng.getrandbits(64)))
    for _ in range(rng.choice([0, 0, 1, 3])):
        value = rng.randbytes(4 * rng.randrange(5))
        vendor = rng.choice([0x0107, 0x0108, 0xFFFF])
        options.append(packets.option(vendor, rng.choice([4, 0x7F]), value, reserved=rng.randrange(8)))
    rng.shuffle(options)
    return options


def wrapped(rng: Random, inner: bytes) -> bytes:
    return packets.geneve(
        inner,
        options=good_options(rng),
        critical=rng.random() < 0.3,
        reserved=rng.getrandbits(6),
        reserved_last=rng.getrandbits(8),
        vni=rng.getrandbits(24),
    )


# Broken on purpose --------------------------------------------------------------------------------------


def geneve_truncated(rng: Random) -> bytes:
    packet = wrapped(rng, good_inner(rng))
    return packet[: rng.randrange(8 + 4 * (packet[0] & 63))]


def geneve_version(rng: Random) -> bytes:
    return packets.geneve(good_inner(rng), version=rng.randint(1, 3))


def geneve_options(rng: Random) -> bytes:
    options = good_options(rng)
    usual = [packets.endpoint_option(1), packets.cookie_option(2)]
    wrong = [
        [*usual, packets.endpoint_option(1)],
        [*usual, packets.cookie_option(2)],
        [packets.option(0x0108, 1, bytes(rng.choice([0, 4, 12])))],
        [packets.endpoint_option(1), packets.option(0x0108, 3, bytes(rng.choice([0, 8])))],
        [*options, struct.pack("!HBB", 0x0107, 4, rng.randint(1, 31))],
    ]
    return packets.geneve(good_inner(rng), options=rng.choice(wrong))


def geneve_critical_option(rng: Random) -> bytes:
    options = good_options(rng)
    option = packets.option(rng.choice([0x0107, 0x0108]), rng.choice([0x80, 0x81, 0xFF]), bytes(4))
    options.insert(rng.randrange(len(options)), option)
    return packets.geneve(good_inner(rng), options=options)


def geneve_control(rng: Random) -> bytes:
    return packets.geneve(good_inner(rng), control=True, reserved=rng.getrandbits(6))


def geneve_protocol(rng: Random) -> bytes:
    return packets.geneve(good_inner(rng), protocol_type=rng.choice([0, 0x6558, 0x0801, 0x86DC, 0xFFFF]))


def geneve_no_endpoint(rng: Random) -> bytes:
    options = [packets.cookie_option(1), packets.option(0x0107, 1, bytes(8))]
    return packets.geneve(good_inner(rng), options=options[: rng.randrange(3)])


def ip_truncated(rng: Random) -> bytes:
    inner = good_inner(rng)
    return wrapped(rng, inner[: rng.randrange(1, len(inner))])


def ip_version(rng: Random) -> bytes:
    inner = good_inner(rng)
    nibble = rng.choice([version for version in range(16) if version != inner[0] >> 4])
    kind = 0x0800 if inner[0] >> 4 == 4 else 0x86DD
    return packets.geneve(bytes([nibble << 4 | 5]) + inner[1:], protocol_type=kind)


def ipv4_header(rng: Random) -> bytes:
    source, destination = ends(rng, 4)
    if rng.random() < 0.5:
        short = packets.udp(source, destination, 1, 2, total_length=rng.randrange(20))
        return packets.geneve(short)
    inner = packets.udp(source, destination, 1, 2)
    return packets.geneve(bytes([0x40 | rng.randrange(5)]) + inner[1:])


def ipv4_checksum(rng: Random) -> bytes:
    source, destination = ends(rng, 4)
    inner = bytearray(packets.tcp(source, destination, 1, 2))
    inner[rng.choice([1, 4, 5, 6, 8, 9, 10, 11, 13, 17])] ^= 1 << rng.randrange(8)
    return packets.geneve(bytes(inner))


def ipv6_extension(rng: Random) -> bytes:
    source, destination = ends(rng, 6)
    one = rng.choice([packets.ipv6_options(0), packets.ipv6_options(60), packets.ipv6_authentication(4)])
    wrong = [
        [one] * rng.randint(9, 12),
        [packets.ipv6_fragment(1), packets.ipv6_fragment(1)],
        [(60, bytes([0, rng.randint(8, 255)]) + bytes(6))],
        [one, (51, bytes([0, rng.randint(20, 255)]) + bytes(6))],
        [(0, bytes(rng.randint(1, 7)))],
    ]
    return packets.geneve(packets.ipv6(source, destination, 59, b"", extensions=rng.choice(wrong)))


def tcp_header(rng: Random) -> bytes:
    source, destination = ends(rng)
    if rng.random() < 0.5:
        words = rng.choice([0, 1, 4, 6, 15])
        inner = packets.tcp(source, destination, 1, 2, "S", data_offset=words, **around(rng, source))
    else:
        inner = packets.ip(source, destination, 6, bytes([0x50] * rng.randrange(20)), **around(rng, source))
    return wrapped(rng, inner)


def tcp_flags(rng: Random) -> bytes:
    source, destination = ends(rng)
    flags = rng.choice([0, "P", "U", "PU", "EC", "SF", "SR", "SFA", "SRA", 0xFF])
    return wrapped(rng, packets.tcp(source, destination, 1, 2, flags, **around(rng, source)))


def udp_header(rng: Random) -> bytes:
    source, destination = ends(rng)
    payload = rng.randbytes(rng.randrange(20))
    if rng.random() < 0.3:
        return wrapped(rng, packets.ip(source, destination, 17, bytes(rng.randrange(8))))
    length = rng.choice([0, 7, 9 + len(payload), 0xFFFF])
    return wrapped(rng, packets.udp(source, destination, 1, 2, payload, length=length))


def icmp_header(rng: Random) -> bytes:
    source, destination = ends(rng)
    protocol = 58 if ":" in source else 1
    kind = rng.choice([0, 3, 8, 13, 128, 129])
    message = bytes([kind, 0, 0, 0, 0, 0, 0])[: rng.randrange(8)]
    return wrapped(rng, packets.ip(source, destination, protocol, message, **around(rng, source)))


def icmp_error_header(rng: Random) -> bytes:
    inner = error(rng)
    family = inner[0] >> 4
    source, stranger = ends(rng, family)
    header = (inner[0] & 15) * 4 if family == 4 else 40
    quoted = inner[header + 8 :]
    quoted_header = (quoted[0] & 15) * 4 if family == 4 else 40
    if family == 4:
        origin = str(IPv4Address(inner[16:20]))
    else:
        origin = str(IPv6Address(inner[24:40]))
    later = packets.fragments(packets.udp(origin, stranger, 1, 2, bytes(64)), 32)[1]
    wrong = [
        packets.icmp_error(source, origin, quoted[: rng.randrange(quoted_header + 8)]),
        packets.icmp_error(source, "192.0.2.7" if family == 4 else "2001:db8::7", quoted),
        packets.icmp_error(source, origin, later),
        packets.icmp_error(source, origin, packets.icmp_error(origin, source, quoted)),
        packets.icmp_error(source, origin, bytes([rng.choice([0, 0x41, 0x50, 0x64])]) + quoted[1:]),
        packets.fragments(inner, 64)[0] if len(inner) > 64 + header else inner[:header] + b"\3",
    ]
    return wrapped(rng, rng.choice(wrong))


def fragment_header(rng: Random) -> bytes:
    source, destination = ends(rng)
    kind = rng.randrange(4)
    if kind == 0:
        build = rng.choice([packets.tcp, packets.icmp_echo])
        size = 8 if build is packets.tcp else 0
        packet = build(source, destination, 1, 2)  # type: ignore[operator]
        cut = packet[: (40 if ":" in source else 20) + size]
        return wrapped(rng, part_of(cut, 0, more=True))
    body = bytes(rng.randrange(1, 64))
    if kind == 1:
        # The largest packet is of 65,535 bytes, and one byte more or less is worth trying.
        header, offset = (0, 65_528) if ":" in source else (20, 65_496)
        body = bytes(65_535 - header - offset + rng.choice([0, 1, 1, 1, 2, 9]))
        return wrapped(rng, part_of(packets.ip(source, destination, 17, body), offset, more=False))
    if kind == 2:
        return wrapped(rng, part_of(packets.ip(source, destination, 6, body), rng.choice([8, 16]), more=True))
    options = b"\1" * 20
    packet = packets.tcp(source, destination, 1, 2, options=options)
    return wrapped(rng, packets.fragments(packet, rng.choice([24, 32]))[0])


def part_of(packet: bytes, offset: int, more: bool) -> bytes:
    """The packet as if it were the part at ``offset`` of a larger one."""
    if packet[0] >> 4 == 4:
        length = struct.pack("!HHH", len(packet), 7, more << 13 | offset // 8)
        return packets.fix_ipv4_checksum(packet[:2] + length + packet[8:])
    header = packet[:4] + struct.pack("!HB", 8 + len(packet) - 40, 44) + packet[7:40]
    return header + struct.pack("!BBHI", packet[6], 0, offset | more, 7) + packet[40:]


BREAKERS: dict[Verdict, Breaker] = {
    Verdict.GENEVE_TRUNCATED: geneve_truncated,
    Verdict.GENEVE_VERSION: geneve_version,
    Verdict.GENEVE_OPTIONS: geneve_options,
    Verdict.GENEVE_CRITICAL_OPTION: geneve_critical_option,
    Verdict.GENEVE_CONTROL: geneve_control,
    Verdict.GENEVE_PROTOCOL: geneve_protocol,
    Verdict.GENEVE_NO_ENDPOINT: geneve_no_endpoint,
    Verdict.IP_TRUNCATED: ip_truncated,
    Verdict.IP_VERSION: ip_version,
    Verdict.IPV4_HEADER: ipv4_header,
    Verdict.IPV4_CHECKSUM: ipv4_checksum,
    Verdict.IPV6_EXTENSION: ipv6_extension,
    Verdict.TCP_HEADER: tcp_header,
    Verdict.TCP_FLAGS: tcp_flags,
    Verdict.UDP_HEADER: udp_header,
    Verdict.ICMP_HEADER: icmp_header,
    Verdict.ICMP_ERROR_HEADER: icmp_error_header,
    Verdict.FRAGMENT_HEADER: fragment_header,
}
"""For each drop of a parser, a maker of packets that end in it."""


# Broken blindly -----------------------------------------------------------------------------------------


def mutated(rng: Random, packet: bytes) -> bytes:
    """The packet after one to four changes that know nothing of its format.

    Half of the time the checksum of an inner IPv4 header is made right again, or nearly every change
    would end there.
    """
    changed = bytearray(packet)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed)) if changed else 0
        kind = rng.randrange(7)
        if not changed or kind == 0:
            changed[at:at] = rng.randbytes(rng.randint(1, 9))
        elif kind <= 2:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            changed[at] = rng.choice(CORNERS)
        elif kind == 4:
            changed[at : at + 2] = struct.pack("!H", rng.choice([0, 1, 8, 20, 0x1FFF, 0x2000, 0xFFFF]))
        elif kind == 5:
            del changed[at : at + rng.choice([1, 2, 4, 8])]
        else:
            del changed[at:]
    if rng.random() < 0.5:
        inner = 8 + 4 * (changed[0] & 63) if changed else 0
        if len(changed) >= inner + 20 and changed[inner] >> 4 == 4 and changed[inner] & 15 >= 5:
            changed[inner:] = packets.fix_ipv4_checksum(bytes(changed[inner:]))
    return bytes(changed)


def case(rng: Random, number: int) -> bytes:
    """Packet ``number`` of a campaign: two of three broken on purpose, the third blindly or not at all."""
    if number % 3:
        makers = list(BREAKERS.values())
        return makers[number * 2 // 3 % len(makers)](rng)
    packet = wrapped(rng, good_inner(rng))
    return mutated(rng, packet) if rng.random() < 0.8 else packet
