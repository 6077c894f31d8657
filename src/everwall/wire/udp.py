"""The UDP header (RFC 768)."""

from __future__ import annotations

from everwall.kernels import kernel
from everwall.verdict import Verdict
from everwall.wire.fields import read16
from everwall.wire.meta import (
    DESTINATION_PORT,
    FIRST_FRAGMENT,
    FRAGMENT,
    INNER_END,
    PAYLOAD,
    SOURCE_PORT,
    TRANSPORT,
)

HEADER_BYTES = 8

_FORWARD = int(Verdict.FORWARD)
_FRAGMENT_HEADER = int(Verdict.FRAGMENT_HEADER)
_UDP_HEADER = int(Verdict.UDP_HEADER)


@kernel
def parse(data, meta, i):
    """Read the header at TRANSPORT; fill ports and PAYLOAD; return a verdict.

    FORWARD means that the header, and in a whole packet the datagram's length, lies before INNER_END. A
    datagram may be shorter than its packet, never longer; in a first fragment it is longer by nature.
    """
    at = meta[i, TRANSPORT]
    end = meta[i, INNER_END]
    first_fragment = meta[i, FRAGMENT] == FIRST_FRAGMENT
    if at + HEADER_BYTES > end:
        return _FRAGMENT_HEADER if first_fragment else _UDP_HEADER
    length = read16(data, i, at + 4)
    if length < HEADER_BYTES:
        return _UDP_HEADER
    if at + length > end and not first_fragment:
        return _UDP_HEADER
    meta[i, SOURCE_PORT] = read16(data, i, at)
    meta[i, DESTINATION_PORT] = read16(data, i, at + 2)
    meta[i, PAYLOAD] = min(at + length, end) - at - HEADER_BYTES
    return _FORWARD
