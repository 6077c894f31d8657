"""The oracle for ``everwall.wire``: the same questions, answered by slicing bytes.

Offsets count from the first byte of what is given. A drop is an exception here, so every check is a
line that says what must hold.
"""

from __future__ import annotations

import struct
from typing import Any

from everwall.limits import IPV6_EXTENSIONS_MAX
from everwall.verdict import Verdict

WHOLE, FIRST, LATER = 0, 1, 2
NONE, REQUEST, REPLY, ERROR, OTHER = 0, 1, 2, 3, 4

Reading = tuple[Verdict, dict[str, Any]]


class Drop(Exception):
    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict


def must(holds: bool, verdict: Verdict) -> None:
    if not holds:
        raise Drop(verdict)


def decapsulate(packet: bytes) -> Reading:
    """Endpoint, cookie (-1: none) and where the inner packet begins."""
    try:
        return Verdict.FORWARD, _geneve(packet)
    except Drop as drop:
        return drop.verdict, {}


def parse(packet: bytes) -> Reading:
    """What ``meta`` says of an inner packet, addresses as bytes."""
    try:
        return Verdict.FORWARD, _ip(packet)
    except Drop as drop:
        return drop.verdict, {}


def _geneve(packet: bytes) -> dict[str, Any]:
    must(len(packet) >= 8, Verdict.GENEVE_TRUNCATED)
    version, words = divmod(packet[0], 64)
    must(version == 0, Verdict.GENEVE_VERSION)
    must(len(packet) >= 8 + 4 * words, Verdict.GENEVE_TRUNCATED)
    must(packet[1] < 0x80, Verdict.GENEVE_CONTROL)

    seen: dict[int, bytes] = {}
    rest = packet[8 : 8 + 4 * words]
    while rest:
        must(len(rest) >= 4, Verdict.GENEVE_OPTIONS)
        vendor, kind, size = rest[:2], rest[2], 4 + 4 * (rest[3] % 32)
        must(len(rest) >= size, Verdict.GENEVE_OPTIONS)
        value, rest = rest[4:size], rest[size:]
        if vendor == b"\x01\x08" and kind in (1, 3):
            must(kind not in seen and len(value) == {1: 8, 3: 4}[kind], Verdict.GENEVE_OPTIONS)
            seen[kind] = value
        else:
            must(kind < 0x80, Verdict.GENEVE_CRITICAL_OPTION)
    must(1 in seen, Verdict.GENEVE_NO_ENDPOINT)

    versions = {b"\x08\x00": 4, b"\x86\xdd": 6}
    must(packet[2:4] in versions, Verdict.GENEVE_PROTOCOL)
    inner = packet[8 + 4 * words :]
    must(len(inner) > 0, Verdict.IP_TRUNCATED)
    must(inner[0] // 16 == versions[packet[2:4]], Verdict.IP_VERSION)
    return {
        "endpoint": int.from_bytes(seen[1], "big", signed=True),
        "cookie": int.from_bytes(seen[3], "big") if 3 in seen else -1,
        "inner": 8 + 4 * words,
    }


def _ip(packet: bytes) -> dict[str, Any]:
    must(len(packet) > 0, Verdict.IP_TRUNCATED)
    must(packet[0] // 16 in (4, 6), Verdict.IP_VERSION)
    found = _ipv4(packet) if packet[0] // 16 == 4 else _ipv6(packet)
    found.update(sport=0, dport=0, flags=0, seq=0, ack=0, window=0, icmp=NONE)
    if found["fragment"] == LATER:
        found["payload"] = found["end"] - found["transport"]
        found["transport"] = -1
        return found

    body = packet[found["transport"] : found["end"]]
    found["payload"] = len(body)
    if found["protocol"] == 6:
        _tcp(body, found)
    elif found["protocol"] == 17:
        _udp(body, found)
    elif (found["family"], found["protocol"]) in ((4, 1), (6, 58)):
        _icmp(body, found)
    return found


def _ipv4(packet: bytes) -> dict[str, Any]:
    must(len(packet) >= 20, Verdict.IP_TRUNCATED)
    header_length = packet[0] % 16 * 4
    total, ident, flags = struct.unpack("!HHH", packet[2:8])
    must(20 <= header_length <= total, Verdict.IPV4_HEADER)
    must(total <= len(packet), Verdict.IP_TRUNCATED)
    words = struct.unpack(f"!{header_length // 2}H", packet[:header_length])
    # A sum of words is right when it is a multiple of 0xFFFF: that is what ones-complement means.
    must(sum(words) % 0xFFFF == 0 and any(words), Verdict.IPV4_CHECKSUM)
    found = {
        "family": 4,
        "protocol": packet[9],
        "source": packet[12:16],
        "destination": packet[16:20],
        "transport": header_length,
        "end": total,
    }
    offset = flags % 0x2000 * 8
    _fragment(found, offset, bool(flags & 0x2000), ident, total)
    return found


def _ipv6(packet: bytes) -> dict[str, Any]:
    must(len(packet) >= 40, Verdict.IP_TRUNCATED)
    end = 40 + int.from_bytes(packet[4:6], "big")
    must(end <= len(packet), Verdict.IP_TRUNCATED)
    headers, protocol, transport = _extensions(packet[6], packet[40:end], Verdict.IPV6_EXTENSION)
    found = {
        "family": 6,
        "protocol": protocol,
        "source": packet[8:24],
        "destination": packet[24:40],
        "transport": 40 + transport,
        "end": end,
    }
    offset, more, ident = _fragment_field(headers)
    _fragment(found, offset, more, ident, end - 40 - transport)
    return found


def _extensions(protocol: int, data: bytes, otherwise: Verdict) -> tuple[list[bytes], int, int]:
    """The extension headers, each with its own number in front, then the transport's number and offset."""
    headers: list[bytes] = []
    at = 0
    while protocol in (0, 43, 44, 51, 60):
        must(len(headers) < IPV6_EXTENSIONS_MAX and len(data) - at >= 8, otherwise)
        size = {44: 8, 51: data[at + 1] * 4 + 8}.get(protocol, data[at + 1] * 8 + 8)
        must(len(data) - at >= size, otherwise)
        must(protocol != 44 or all(header[0] != 44 for header in headers), otherwise)
        headers.append(bytes([protocol]) + data[at : at + size])
        protocol = data[at]
        at += size
        if headers[-1][0] == 44 and _fragment_field(headers)[0]:
            break
    return headers, protocol, at


def _fragment_field(headers: list[bytes]) -> tuple[int, bool, int]:
    """Offset in bytes, whether more follow, identification."""
    for header in headers:
        if header[0] == 44:
            field, ident = struct.unpack("!HI", header[3:9])
            return field // 8 * 8, bool(field % 2), ident
    return 0, False, 0


def _fragment(found: dict[str, Any], offset: int, more: bool, ident: int, counted: int) -> None:
    """Whole, first or later; ``counted`` bytes of this part count toward the largest packet."""
    found["fragment"] = LATER if offset else FIRST if more else WHOLE
    found["fragment_id"] = ident if found["fragment"] else 0
    if found["fragment"]:
        must(not (found["protocol"] == 6 and 0 < offset < 20), Verdict.FRAGMENT_HEADER)
        must(offset + counted < 65536, Verdict.FRAGMENT_HEADER)


def _tcp(body: bytes, found: dict[str, Any]) -> None:
    cut_off = Verdict.FRAGMENT_HEADER if found["fragment"] else Verdict.TCP_HEADER
    must(len(body) >= 20, cut_off)
    sport, dport, seq, ack, words, flags, window = struct.unpack("!HHIIBBH", body[:16])
    size = words // 16 * 4
    must(size >= 20, Verdict.TCP_HEADER)
    must(len(body) >= size, cut_off)
    fin, syn, rst, acknowledges = flags & 1, flags & 2, flags & 4, flags & 16
    must(bool(fin or syn or rst or acknowledges), Verdict.TCP_FLAGS)
    must(not (syn and fin) and not (syn and rst), Verdict.TCP_FLAGS)
    found.update(sport=sport, dport=dport, seq=seq, ack=ack, flags=flags, window=window)
    found["payload"] = len(body) - size


def _udp(body: bytes, found: dict[str, Any]) -> None:
    must(len(body) >= 8, Verdict.FRAGMENT_HEADER if found["fragment"] else Verdict.UDP_HEADER)
    found["sport"], found["dport"], length = struct.unpack("!HHH", body[:6])
    must(length >= 8, Verdict.UDP_HEADER)
    must(length <= len(body) or found["fragment"] == FIRST, Verdict.UDP_HEADER)
    found["payload"] = len(body[8:length])


def _icmp_kind(family: int, message: int) -> int:
    if family == 4:
        return {8: REQUEST, 0: REPLY, 3: ERROR, 4: ERROR, 5: ERROR, 11: ERROR, 12: ERROR}.get(message, OTHER)
    return {128: REQUEST, 129: REPLY, 1: ERROR, 2: ERROR, 3: ERROR, 4: ERROR}.get(message, OTHER)


def _icmp(body: bytes, found: dict[str, Any]) -> None:
    must(len(body) >= 8, Verdict.FRAGMENT_HEADER if found["fragment"] else Verdict.ICMP_HEADER)
    found["payload"] = len(body) - 8
    found["icmp"] = _icmp_kind(found["family"], body[0])
    if found["icmp"] in (REQUEST, REPLY):
        found["sport"] = found["dport"] = int.from_bytes(body[4:6], "big")
    if found["icmp"] == ERROR:
        wrong = Verdict.ICMP_ERROR_HEADER
        must(not found["fragment"], wrong)
        source, destination, protocol, rest = _quoted(found["family"], body[8:], wrong)
        must(source == found["destination"], wrong)
        must(len(rest) >= 8, wrong)
        found.update(source=destination, protocol=protocol)
        first, second = struct.unpack("!HH", rest[:4])
        if protocol in (6, 17):
            found.update(sport=second, dport=first)
        if protocol == 6:
            found["seq"] = int.from_bytes(rest[4:8], "big")
        if (found["family"], protocol) in ((4, 1), (6, 58)):
            kind = _icmp_kind(found["family"], rest[0])
            must(kind != ERROR, wrong)
            if kind != OTHER:
                found["sport"] = found["dport"] = int.from_bytes(rest[4:6], "big")


def _quoted(family: int, packet: bytes, wrong: Verdict) -> tuple[bytes, bytes, int, bytes]:
    """Source, destination, protocol and the beginning of the transport of a quoted packet."""
    must(len(packet) >= {4: 20, 6: 40}[family] and packet[0] // 16 == family, wrong)
    if family == 4:
        must(packet[0] % 16 >= 5, wrong)
        must(int.from_bytes(packet[6:8], "big") % 0x2000 == 0, wrong)
        return packet[12:16], packet[16:20], packet[9], packet[packet[0] % 16 * 4 :]
    headers, protocol, at = _extensions(packet[6], packet[40:], wrong)
    must(_fragment_field(headers)[0] == 0, wrong)
    return packet[8:24], packet[24:40], protocol, packet[40 + at :]


def window_scale(segment: bytes) -> int:
    """The window scale option of a TCP header, or -1."""
    options = list(segment[20 : segment[12] // 16 * 4])
    scale = -1
    while options and options[0] != 0:
        if options[0] == 1:
            options = options[1:]
            continue
        if len(options) < 2 or not 2 <= options[1] <= len(options):
            return -1
        if options[0] == 3:
            if options[1] != 3:
                return -1
            scale = min(options[2], 14)
        options = options[options[1] :]
    return scale
