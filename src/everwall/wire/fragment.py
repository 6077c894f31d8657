"""Fragments of either IP version: which part of a packet this one is, and what no honest sender makes.

The first fragment has to hold its whole transport header (RFC 7112 for IPv6; for IPv4 it is what every
stack does), so a later fragment never has to be read to judge a flow. It follows that a later one that
begins inside the TCP header wants to overwrite what was judged (RFC 3128): it is dropped.
"""

from __future__ import annotations

from everwall.kernels import kernel
from everwall.verdict import Verdict
from everwall.wire.meta import (
    FIRST_FRAGMENT,
    FRAGMENT,
    FRAGMENT_ID,
    INNER_END,
    LATER_FRAGMENT,
    PAYLOAD,
    PROTOCOL,
    PROTOCOL_TCP,
    TRANSPORT,
)

PACKET_BYTES_MAX = 65_535
TCP_HEADER_BYTES_MIN = 20

_FORWARD = int(Verdict.FORWARD)
_FRAGMENT_HEADER = int(Verdict.FRAGMENT_HEADER)


@kernel
def place(meta, i, identification, offset, header_length):
    """Fill FRAGMENT and FRAGMENT_ID for the part that starts ``offset`` bytes into the payload.

    PROTOCOL, TRANSPORT and INNER_END are read; a later fragment loses its TRANSPORT. ``header_length`` is
    what the family counts into the 65,535 bytes before the data. Offset 0 with nothing to come is a
    whole packet (RFC 6946 for IPv6), and not given here.
    """
    length = meta[i, INNER_END] - meta[i, TRANSPORT]
    meta[i, FRAGMENT_ID] = identification
    if offset == 0:
        meta[i, FRAGMENT] = FIRST_FRAGMENT
    else:
        meta[i, FRAGMENT] = LATER_FRAGMENT
        meta[i, TRANSPORT] = -1
        meta[i, PAYLOAD] = length
        if meta[i, PROTOCOL] == PROTOCOL_TCP and offset < TCP_HEADER_BYTES_MIN:
            return _FRAGMENT_HEADER
    if header_length + offset + length > PACKET_BYTES_MAX:
        return _FRAGMENT_HEADER
    return _FORWARD
