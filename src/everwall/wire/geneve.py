"""GENEVE (RFC 8926) as a gateway load balancer speaks it: a layer-3 payload and three options of its own.

AWS gives class 0x0108 the types 1 (endpoint id, 8 bytes), 2 (attachment id, 8 bytes) and 3 (flow cookie,
4 bytes). Nothing here depends on their order, on the VNI, or on reserved bits; options of
others are passed over unless they are critical (RFC 8926 section 3.5).
"""

from __future__ import annotations

from everwall.kernels import kernel
from everwall.verdict import Verdict
from everwall.wire.fields import read8, read16, read32, read64, write8, write16, write32, write64
from everwall.wire.meta import BARE, COOKIE, END, ENDPOINT, INNER, START

HEADER_BYTES = 8
ENCAPSULATION_BYTES = 40
"""What ``encapsulate`` writes: the header and the options 1, 2 and 3."""

PROTOCOL_TYPE_IPV4 = 0x0800
PROTOCOL_TYPE_IPV6 = 0x86DD

CLASS_AWS = 0x0108
TYPE_ENDPOINT = 1
TYPE_ATTACHMENT = 2
TYPE_COOKIE = 3
CRITICAL = 0x80

_FORWARD = int(Verdict.FORWARD)
_TRUNCATED = int(Verdict.GENEVE_TRUNCATED)
_VERSION = int(Verdict.GENEVE_VERSION)
_OPTIONS = int(Verdict.GENEVE_OPTIONS)
_CRITICAL_OPTION = int(Verdict.GENEVE_CRITICAL_OPTION)
_CONTROL = int(Verdict.GENEVE_CONTROL)
_PROTOCOL = int(Verdict.GENEVE_PROTOCOL)
_NO_ENDPOINT = int(Verdict.GENEVE_NO_ENDPOINT)
_IP_TRUNCATED = int(Verdict.IP_TRUNCATED)
_IP_VERSION = int(Verdict.IP_VERSION)


@kernel
def decapsulate(data, meta, i):
    """Read the GENEVE header between START and END; fill ENDPOINT, COOKIE and INNER; return a verdict.

    FORWARD means that the header and all its options lie inside the packet, and so does at least one
    inner byte whose version nibble fits the payload type. A BARE row has no header: INNER is START
    and ENDPOINT stays as the caller set it. END must not exceed the row.
    """
    start = meta[i, START]
    end = meta[i, END]
    meta[i, COOKIE] = -1
    meta[i, INNER] = start
    if meta[i, BARE]:
        return _FORWARD
    meta[i, ENDPOINT] = 0

    if start + HEADER_BYTES > end:
        return _TRUNCATED
    first = read8(data, i, start)
    if first >> 6:
        return _VERSION
    inner = start + HEADER_BYTES + (first & 0x3F) * 4
    if inner > end:
        return _TRUNCATED
    if read8(data, i, start + 1) & 0x80:
        return _CONTROL

    verdict = _read_options(data, meta, i, start + HEADER_BYTES, inner)
    if verdict != _FORWARD:
        return verdict

    meta[i, INNER] = inner
    protocol_type = read16(data, i, start + 2)
    if protocol_type != PROTOCOL_TYPE_IPV4 and protocol_type != PROTOCOL_TYPE_IPV6:
        return _PROTOCOL
    if inner >= end:
        return _IP_TRUNCATED
    version = 4 if protocol_type == PROTOCOL_TYPE_IPV4 else 6
    if read8(data, i, inner) >> 4 != version:
        return _IP_VERSION
    return _FORWARD


@kernel
def _read_options(data, meta, i, at, end):
    """Walk the options from ``at`` to ``end``; a second endpoint or cookie is refused, as either could hold."""
    endpoints = 0
    cookies = 0
    while at < end:
        if at + 4 > end:
            return _OPTIONS
        option_class = read16(data, i, at)
        option_type = read8(data, i, at + 2)
        length = (read8(data, i, at + 3) & 0x1F) * 4
        value = at + 4
        at = value + length
        if at > end:
            return _OPTIONS
        if option_class == CLASS_AWS and option_type == TYPE_ENDPOINT:
            endpoints += 1
            if length != 8 or endpoints > 1:
                return _OPTIONS
            meta[i, ENDPOINT] = read64(data, i, value)
        elif option_class == CLASS_AWS and option_type == TYPE_COOKIE:
            cookies += 1
            if length != 4 or cookies > 1:
                return _OPTIONS
            meta[i, COOKIE] = read32(data, i, value)
        elif option_type & CRITICAL:
            return _CRITICAL_OPTION
    if endpoints == 0:
        return _NO_ENDPOINT
    return _FORWARD


@kernel
def encapsulate(data, row, at, protocol_type, endpoint, attachment, cookie):
    """Write a header with the options 1, 2 and 3 (VNI 0) at ``at``; returns its length, 40 bytes."""
    write8(data, row, at, (ENCAPSULATION_BYTES - HEADER_BYTES) // 4)
    write8(data, row, at + 1, 0)
    write16(data, row, at + 2, protocol_type)
    write32(data, row, at + 4, 0)
    _write_option(data, row, at + 8, TYPE_ENDPOINT, 8)
    write64(data, row, at + 12, endpoint)
    _write_option(data, row, at + 20, TYPE_ATTACHMENT, 8)
    write64(data, row, at + 24, attachment)
    _write_option(data, row, at + 32, TYPE_COOKIE, 4)
    write32(data, row, at + 36, cookie)
    return ENCAPSULATION_BYTES


@kernel
def _write_option(data, row, at, option_type, length):
    write16(data, row, at, CLASS_AWS)
    write8(data, row, at + 2, option_type)
    write8(data, row, at + 3, length // 4)
