"""The IPv6 header and its extension headers (RFC 8200).

Hop-by-hop options, routing, fragment, destination options and authentication headers are followed;
anything else is the transport, ESP included. Jumbograms do not fit a slot and fail by their length of 0.
"""

from __future__ import annotations

from everwall.kernels import kernel
from everwall.limits import IPV6_EXTENSIONS_MAX
from everwall.verdict import Verdict
from everwall.wire import fragment
from everwall.wire.fields import read8, read16, read32, read64
from everwall.wire.meta import (
    DESTINATION_HIGH,
    DESTINATION_LOW,
    END,
    FAMILY,
    INNER,
    INNER_END,
    PROTOCOL,
    SOURCE_HIGH,
    SOURCE_LOW,
    TRANSPORT,
)

HEADER_BYTES = 40
HOP_BY_HOP = 0
ROUTING = 43
FRAGMENT_HEADER = 44
AUTHENTICATION = 51
DESTINATION_OPTIONS = 60
OFFSET_MASK = 0xFFF8
MORE_FRAGMENTS = 0x0001

_FORWARD = int(Verdict.FORWARD)
_IP_TRUNCATED = int(Verdict.IP_TRUNCATED)
_IPV6_EXTENSION = int(Verdict.IPV6_EXTENSION)


@kernel
def parse(data, meta, i):
    """Read the headers at INNER, whose version is known to be 6; fill the IP columns; return a verdict.

    FORWARD means that all headers and the payload lie inside the packet: bytes from INNER to INNER_END
    may be read, and TRANSPORT, unless it is -1, is at most INNER_END. In a later fragment PROTOCOL is what
    its fragment header says: an extension header where those were cut apart as well.
    """
    at = meta[i, INNER]
    if at + HEADER_BYTES > meta[i, END]:
        return _IP_TRUNCATED
    end = at + HEADER_BYTES + read16(data, i, at + 4)
    if end > meta[i, END]:
        return _IP_TRUNCATED

    meta[i, FAMILY] = 6
    meta[i, INNER_END] = end
    meta[i, SOURCE_HIGH] = read64(data, i, at + 8)
    meta[i, SOURCE_LOW] = read64(data, i, at + 16)
    meta[i, DESTINATION_HIGH] = read64(data, i, at + 24)
    meta[i, DESTINATION_LOW] = read64(data, i, at + 32)
    protocol, transport, fragment_header = walk(data, i, read8(data, i, at + 6), at + HEADER_BYTES, end)
    if transport < 0:
        return _IPV6_EXTENSION
    meta[i, PROTOCOL] = protocol
    meta[i, TRANSPORT] = transport
    if fragment_header >= 0:
        field = read16(data, i, fragment_header + 2)
        if field & (OFFSET_MASK | MORE_FRAGMENTS):
            identification = read32(data, i, fragment_header + 4)
            return fragment.place(meta, i, identification, field & OFFSET_MASK, 0)
    return _FORWARD


@kernel
def is_extension(protocol):
    """True for the headers that are followed."""
    return (
        protocol == HOP_BY_HOP
        or protocol == ROUTING
        or protocol == FRAGMENT_HEADER
        or protocol == AUTHENTICATION
        or protocol == DESTINATION_OPTIONS
    )


@kernel
def walk(data, i, protocol, at, end):
    """Follow the extension headers at ``at``; ``protocol`` says what stands there.

    Returns (protocol, offset behind the headers, offset of the fragment header or -1). The offset is
    at most ``end``, or -1 when a header does not fit, there are more than IPV6_EXTENSIONS_MAX, or a second
    one speaks of fragments. Behind the header of a later fragment there is only data, so the walk ends there.
    """
    fragment_header = -1
    extensions = 0
    while is_extension(protocol):
        extensions += 1
        if extensions > IPV6_EXTENSIONS_MAX or at + 8 > end:
            return protocol, -1, fragment_header
        length = (read8(data, i, at + 1) + 1) * 8
        if protocol == AUTHENTICATION:
            length = (read8(data, i, at + 1) + 2) * 4
        if protocol == FRAGMENT_HEADER:
            if fragment_header >= 0:
                return protocol, -1, fragment_header
            fragment_header = at
            length = 8
        if at + length > end:
            return protocol, -1, fragment_header
        protocol = read8(data, i, at)
        if fragment_header == at and read16(data, i, at + 2) & OFFSET_MASK:
            return protocol, at + length, fragment_header
        at += length
    return protocol, at, fragment_header
