"""ICMP (RFC 792) and ICMPv6 (RFC 4443): echo, errors with the packet they quote, and the rest.

An error is about somebody else's packet: it quotes the beginning of it. Its tuple here is that of the
quoted flow, *turned*, because the error travels against the packet it quotes; so the flow key finds the
session, and in the same direction as an answer of that flow would.
"""

from __future__ import annotations

from everwall.kernels import kernel
from everwall.verdict import Verdict
from everwall.wire import ipv4, ipv6
from everwall.wire.fields import read8, read16, read32, read64
from everwall.wire.meta import (
    DESTINATION_HIGH,
    DESTINATION_LOW,
    DESTINATION_PORT,
    FAMILY,
    FIRST_FRAGMENT,
    FRAGMENT,
    ICMP_ERROR,
    ICMP_KIND,
    ICMP_OTHER,
    ICMP_REPLY,
    ICMP_REQUEST,
    INNER_END,
    PAYLOAD,
    PROTOCOL,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    SOURCE_HIGH,
    SOURCE_LOW,
    SOURCE_PORT,
    TCP_SEQUENCE,
    TRANSPORT,
)

HEADER_BYTES = 8
QUOTED_TRANSPORT_BYTES = 8
"""What an error has to quote behind the IP header (RFC 792); enough for ports and TCP sequence."""

_FORWARD = int(Verdict.FORWARD)
_FRAGMENT_HEADER = int(Verdict.FRAGMENT_HEADER)
_ICMP_HEADER = int(Verdict.ICMP_HEADER)
_ICMP_ERROR_HEADER = int(Verdict.ICMP_ERROR_HEADER)


@kernel
def kind_of(family, message):
    """ICMP_REQUEST, ICMP_REPLY, ICMP_ERROR or ICMP_OTHER of a message type."""
    if family == 4:
        if message == 8:
            return ICMP_REQUEST
        if message == 0:
            return ICMP_REPLY
        # Unreachable, source quench, redirect, time exceeded, parameter problem.
        if message == 3 or message == 4 or message == 5 or message == 11 or message == 12:
            return ICMP_ERROR
        return ICMP_OTHER
    if message == 128:
        return ICMP_REQUEST
    if message == 129:
        return ICMP_REPLY
    # Unreachable, packet too big, time exceeded, parameter problem.
    if 1 <= message <= 4:
        return ICMP_ERROR
    return ICMP_OTHER


@kernel
def parse(data, meta, i):
    """Read the message at TRANSPORT; fill ports, PAYLOAD and ICMP_KIND; return a verdict.

    FORWARD means that the 8 bytes of header lie before INNER_END. Of an error also the addresses,
    PROTOCOL and, for TCP, TCP_SEQUENCE become those of the quoted packet, turned. An error in fragments is
    refused: the largest that stacks send fits every link.
    """
    at = meta[i, TRANSPORT]
    end = meta[i, INNER_END]
    first_fragment = meta[i, FRAGMENT] == FIRST_FRAGMENT
    if at + HEADER_BYTES > end:
        return _FRAGMENT_HEADER if first_fragment else _ICMP_HEADER
    meta[i, PAYLOAD] = end - at - HEADER_BYTES
    kind = kind_of(meta[i, FAMILY], read8(data, i, at))
    meta[i, ICMP_KIND] = kind
    if kind == ICMP_REQUEST or kind == ICMP_REPLY:
        identifier = read16(data, i, at + 4)
        meta[i, SOURCE_PORT] = identifier
        meta[i, DESTINATION_PORT] = identifier
    if kind != ICMP_ERROR:
        return _FORWARD
    if first_fragment:
        return _ICMP_ERROR_HEADER
    if meta[i, FAMILY] == 4:
        return _parse_quoted_ipv4(data, meta, i, at + HEADER_BYTES, end)
    return _parse_quoted_ipv6(data, meta, i, at + HEADER_BYTES, end)


@kernel
def _parse_quoted_ipv4(data, meta, i, at, end):
    """Read the quoted header at ``at``. Its checksum and total length are of a packet changed on its way."""
    if at + ipv4.HEADER_BYTES_MIN > end:
        return _ICMP_ERROR_HEADER
    header_length = (read8(data, i, at) & 0x0F) * 4
    if read8(data, i, at) >> 4 != 4 or header_length < ipv4.HEADER_BYTES_MIN:
        return _ICMP_ERROR_HEADER
    if read16(data, i, at + 6) & ipv4.OFFSET_MASK:
        return _ICMP_ERROR_HEADER
    source = read32(data, i, at + 12)
    if source != meta[i, DESTINATION_LOW]:
        return _ICMP_ERROR_HEADER
    meta[i, SOURCE_LOW] = read32(data, i, at + 16)
    return _parse_quoted_transport(data, meta, i, read8(data, i, at + 9), at + header_length, end)


@kernel
def _parse_quoted_ipv6(data, meta, i, at, end):
    """Read the quoted headers at ``at``."""
    if at + ipv6.HEADER_BYTES > end:
        return _ICMP_ERROR_HEADER
    if read8(data, i, at) >> 4 != 6:
        return _ICMP_ERROR_HEADER
    if read64(data, i, at + 8) != meta[i, DESTINATION_HIGH]:
        return _ICMP_ERROR_HEADER
    if read64(data, i, at + 16) != meta[i, DESTINATION_LOW]:
        return _ICMP_ERROR_HEADER
    first = at + ipv6.HEADER_BYTES
    protocol, transport, fragment_header = ipv6.walk(data, i, read8(data, i, at + 6), first, end)
    if transport < 0:
        return _ICMP_ERROR_HEADER
    if fragment_header >= 0 and read16(data, i, fragment_header + 2) & ipv6.OFFSET_MASK:
        return _ICMP_ERROR_HEADER
    meta[i, SOURCE_HIGH] = read64(data, i, at + 24)
    meta[i, SOURCE_LOW] = read64(data, i, at + 32)
    return _parse_quoted_transport(data, meta, i, protocol, transport, end)


@kernel
def _parse_quoted_transport(data, meta, i, protocol, at, end):
    """Take the ports from the quoted transport header, turned; an error about an error is never sent."""
    if at + QUOTED_TRANSPORT_BYTES > end:
        return _ICMP_ERROR_HEADER
    meta[i, PROTOCOL] = protocol
    if protocol == PROTOCOL_TCP or protocol == PROTOCOL_UDP:
        meta[i, SOURCE_PORT] = read16(data, i, at + 2)
        meta[i, DESTINATION_PORT] = read16(data, i, at)
        if protocol == PROTOCOL_TCP:
            meta[i, TCP_SEQUENCE] = read32(data, i, at + 4)
    family = meta[i, FAMILY]
    if (family == 4 and protocol == PROTOCOL_ICMP) or (family == 6 and protocol == PROTOCOL_ICMPV6):
        kind = kind_of(family, read8(data, i, at))
        if kind == ICMP_ERROR:
            return _ICMP_ERROR_HEADER
        if kind == ICMP_REQUEST or kind == ICMP_REPLY:
            identifier = read16(data, i, at + 4)
            meta[i, SOURCE_PORT] = identifier
            meta[i, DESTINATION_PORT] = identifier
    return _FORWARD
