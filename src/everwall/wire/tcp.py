"""The TCP header (RFC 9293)."""

from __future__ import annotations

from everwall.kernels import kernel
from everwall.verdict import Verdict
from everwall.wire.fields import read8, read16, read32
from everwall.wire.meta import (
    DESTINATION_PORT,
    FIRST_FRAGMENT,
    FRAGMENT,
    INNER_END,
    PAYLOAD,
    SOURCE_PORT,
    TCP_ACK,
    TCP_ACKNOWLEDGEMENT,
    TCP_FIN,
    TCP_FLAG_BITS,
    TCP_RST,
    TCP_SEQUENCE,
    TCP_SYN,
    TCP_WINDOW_FIELD,
    TRANSPORT,
)

HEADER_BYTES_MIN = 20
WINDOW_SCALE_MAX = 14
OPTION_END = 0
OPTION_NOTHING = 1
OPTION_WINDOW_SCALE = 3

_FORWARD = int(Verdict.FORWARD)
_FRAGMENT_HEADER = int(Verdict.FRAGMENT_HEADER)
_TCP_HEADER = int(Verdict.TCP_HEADER)
_TCP_FLAGS = int(Verdict.TCP_FLAGS)


@kernel
def parse(data, meta, i):
    """Read the header at TRANSPORT; fill ports and TCP columns; return a verdict.

    FORWARD means that the header with its options lies before INNER_END. A segment carries at least one
    of SYN, ACK, FIN and RST (only ACK may be missing beside another), and SYN neither with FIN nor
    with RST: anything else is a scanner's.
    """
    at = meta[i, TRANSPORT]
    end = meta[i, INNER_END]
    cut_off = _FRAGMENT_HEADER if meta[i, FRAGMENT] == FIRST_FRAGMENT else _TCP_HEADER
    if at + HEADER_BYTES_MIN > end:
        return cut_off
    header_length = (read8(data, i, at + 12) >> 4) * 4
    if header_length < HEADER_BYTES_MIN:
        return _TCP_HEADER
    if at + header_length > end:
        return cut_off

    flags = read8(data, i, at + 13)
    meta[i, SOURCE_PORT] = read16(data, i, at)
    meta[i, DESTINATION_PORT] = read16(data, i, at + 2)
    meta[i, TCP_SEQUENCE] = read32(data, i, at + 4)
    meta[i, TCP_ACKNOWLEDGEMENT] = read32(data, i, at + 8)
    meta[i, TCP_FLAG_BITS] = flags
    meta[i, TCP_WINDOW_FIELD] = read16(data, i, at + 14)
    meta[i, PAYLOAD] = end - at - header_length
    if flags & (TCP_SYN | TCP_ACK | TCP_FIN | TCP_RST) == 0:
        return _TCP_FLAGS
    if flags & TCP_SYN and flags & (TCP_FIN | TCP_RST):
        return _TCP_FLAGS
    return _FORWARD


@kernel
def window_scale(data, meta, i):
    """The window scale option (RFC 7323) of a segment that ``parse`` let pass: 0 to 14, or -1.

    -1 when it is missing or the options are malformed. A shift above 14 counts as 14 (section 2.3), the last
    of several counts. It means something in a SYN only.
    """
    at = meta[i, TRANSPORT]
    end = at + (read8(data, i, at + 12) >> 4) * 4
    at += HEADER_BYTES_MIN
    scale = -1
    while at < end:
        kind = read8(data, i, at)
        if kind == OPTION_END:
            break
        if kind == OPTION_NOTHING:
            at += 1
            continue
        if at + 2 > end:
            return -1
        length = read8(data, i, at + 1)
        if length < 2 or at + length > end:
            return -1
        if kind == OPTION_WINDOW_SCALE:
            if length != 3:
                return -1
            scale = min(read8(data, i, at + 2), WINDOW_SCALE_MAX)
        at += length
    return scale
