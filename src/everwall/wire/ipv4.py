"""The IPv4 header (RFC 791). Options are passed over, the header checksum is verified."""

from __future__ import annotations

from everwall.kernels import kernel
from everwall.verdict import Verdict
from everwall.wire import fragment
from everwall.wire.checksum import ipv4_header_checksum
from everwall.wire.fields import read8, read16, read32
from everwall.wire.meta import (
    DESTINATION_LOW,
    END,
    FAMILY,
    INNER,
    INNER_END,
    PROTOCOL,
    SOURCE_LOW,
    TRANSPORT,
)

HEADER_BYTES_MIN = 20
MORE_FRAGMENTS = 0x2000
OFFSET_MASK = 0x1FFF

_FORWARD = int(Verdict.FORWARD)
_IP_TRUNCATED = int(Verdict.IP_TRUNCATED)
_IPV4_HEADER = int(Verdict.IPV4_HEADER)
_IPV4_CHECKSUM = int(Verdict.IPV4_CHECKSUM)


@kernel
def parse(data, meta, i):
    """Read the header at INNER, whose version is known to be 4; fill the IP columns; return a verdict.

    FORWARD means that header and payload lie inside the packet: bytes from INNER to INNER_END may be
    read, and TRANSPORT, unless it is -1, is at most INNER_END. What follows the total length is padding.
    """
    at = meta[i, INNER]
    end = meta[i, END]
    if at + HEADER_BYTES_MIN > end:
        return _IP_TRUNCATED
    header_length = (read8(data, i, at) & 0x0F) * 4
    total_length = read16(data, i, at + 2)
    if header_length < HEADER_BYTES_MIN or total_length < header_length:
        return _IPV4_HEADER
    if at + total_length > end:
        return _IP_TRUNCATED
    if ipv4_header_checksum(data, i, at, header_length):
        return _IPV4_CHECKSUM

    meta[i, FAMILY] = 4
    meta[i, INNER_END] = at + total_length
    meta[i, PROTOCOL] = read8(data, i, at + 9)
    meta[i, TRANSPORT] = at + header_length
    meta[i, SOURCE_LOW] = read32(data, i, at + 12)
    meta[i, DESTINATION_LOW] = read32(data, i, at + 16)
    flags = read16(data, i, at + 6)
    offset = (flags & OFFSET_MASK) * 8
    if offset or flags & MORE_FRAGMENTS:
        return fragment.place(meta, i, read16(data, i, at + 4), offset, header_length)
    return _FORWARD
