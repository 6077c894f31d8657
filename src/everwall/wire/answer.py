"""What a firewall says to the ends of a packet that it refuses: TCP RST, ICMP and ICMPv6 unreachable.

A reset is what the other end of the connection would have sent (RFC 9293 section 3.10.7.1), an unreachable has code
"communication administratively prohibited" (RFC 1812 section 5.2.7.1, RFC 4443 section 3.1). A firewall behind a load
balancer has no address of its own in there: whatever it says comes from the end that was not reached.
"""

from __future__ import annotations

from everwall.kernels import kernel
from everwall.limits import ANSWER_HOPS, UNREACHABLE_BYTES_4, UNREACHABLE_BYTES_6
from everwall.wire.checksum import ipv4_header_checksum, ones_complement_sum, transport_checksum
from everwall.wire.fields import read8, write8, write16, write32, write64
from everwall.wire.meta import (
    DESTINATION_HIGH,
    DESTINATION_LOW,
    DESTINATION_PORT,
    FAMILY,
    FRAGMENT,
    ICMP_KIND,
    ICMP_NONE,
    ICMP_REQUEST,
    INNER,
    INNER_END,
    NOT_FRAGMENT,
    PAYLOAD,
    PROTOCOL,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    SOURCE_HIGH,
    SOURCE_LOW,
    SOURCE_PORT,
    TCP_ACK,
    TCP_ACKNOWLEDGEMENT,
    TCP_FIN,
    TCP_FLAG_BITS,
    TCP_RST,
    TCP_SEQUENCE,
    TCP_SYN,
)

_IPV4_BYTES = 20
_IPV6_BYTES = 40
_TCP_BYTES = 20
_ICMP_BYTES = 8
_DONT_FRAGMENT = 0x4000
_INTERNETWORK_CONTROL = 0xC0
"""Precedence 6, which RFC 1812 section 4.3.2.5 asks for."""
_UNREACHABLE_4, _PROHIBITED_4 = 3, 13
_UNREACHABLE_6, _PROHIBITED_6 = 1, 1


@kernel
def may_be_answered(meta, i):
    """Whether anything may be said about packet ``i``, which ``wire.packet.parse`` let pass.

    Nothing answers an answer (an RST, an ICMP error), a part of a datagram, or what does not go from one host to one
    other (RFC 9293 section 3.10.7.1, RFC 1812 section 4.3.2.7, RFC 4443 section 2.4 e). Of ICMP only a request is
    answered.
    """
    if meta[i, FRAGMENT] != NOT_FRAGMENT:
        return False
    if meta[i, ICMP_KIND] != ICMP_NONE and meta[i, ICMP_KIND] != ICMP_REQUEST:
        return False
    if meta[i, PROTOCOL] == PROTOCOL_TCP and meta[i, TCP_FLAG_BITS] & TCP_RST != 0:
        return False
    family = meta[i, FAMILY]
    return _is_host(family, meta[i, SOURCE_HIGH], meta[i, SOURCE_LOW]) and _is_host(
        family, meta[i, DESTINATION_HIGH], meta[i, DESTINATION_LOW]
    )


@kernel
def _is_host(family, high, low):
    """Whether an address is that of one host on a network: not unspecified, loopback, multicast or broadcast."""
    if family == 4:
        first = low >> 24
        return first != 0 and first != 127 and first < 224
    return (high >> 56) & 0xFF != 0xFF and (high != 0 or (low != 0 and low != 1))


@kernel
def _write_ip(to, row, at, meta, i, onward, protocol, payload_bytes, service):
    """The IP header of an answer to packet ``i``, ``onward`` or back; returns where its payload begins."""
    source, destination = (SOURCE_LOW, DESTINATION_LOW) if onward else (DESTINATION_LOW, SOURCE_LOW)
    if meta[i, FAMILY] == 4:
        write16(to, row, at, 0x4500 | service)
        write16(to, row, at + 2, _IPV4_BYTES + payload_bytes)
        write32(to, row, at + 4, _DONT_FRAGMENT)
        write16(to, row, at + 8, ANSWER_HOPS << 8 | protocol)
        write16(to, row, at + 10, 0)
        write32(to, row, at + 12, meta[i, source])
        write32(to, row, at + 16, meta[i, destination])
        write16(to, row, at + 10, ipv4_header_checksum(to, row, at, _IPV4_BYTES))
        return at + _IPV4_BYTES
    write32(to, row, at, 0x60000000 | service << 20)
    write16(to, row, at + 4, payload_bytes)
    write16(to, row, at + 6, protocol << 8 | ANSWER_HOPS)
    write64(to, row, at + 8, meta[i, source - 1])
    write64(to, row, at + 16, meta[i, source])
    write64(to, row, at + 24, meta[i, destination - 1])
    write64(to, row, at + 32, meta[i, destination])
    return at + _IPV6_BYTES


@kernel
def _checksum(to, row, at, end, protocol, meta, i):
    """Checksum of a segment between the ends of packet ``i``; whose is whose makes no difference to the sum."""
    return transport_checksum(
        to,
        row,
        at,
        end,
        protocol,
        meta[i, SOURCE_HIGH],
        meta[i, SOURCE_LOW],
        meta[i, DESTINATION_HIGH],
        meta[i, DESTINATION_LOW],
    )


@kernel
def write_reset(to, row, at, meta, i, onward):
    """Write the RST about TCP segment ``i`` at ``at`` of a row; returns one past its last byte.

    Back to the sender it has the sequence number that the segment acknowledges, or acknowledges all that the segment
    holds. ``onward``, to the receiver, it takes the segment's place.
    """
    flags = meta[i, TCP_FLAG_BITS]
    sequence, acknowledgement, answer = meta[i, TCP_ACKNOWLEDGEMENT], 0, TCP_RST
    if onward:
        sequence = meta[i, TCP_SEQUENCE]
    if flags & TCP_ACK == 0:
        length = meta[i, PAYLOAD]
        length += 1 if flags & TCP_SYN != 0 else 0
        length += 1 if flags & TCP_FIN != 0 else 0
        if not onward:
            sequence = 0
            acknowledgement = (meta[i, TCP_SEQUENCE] + length) & 0xFFFFFFFF
            answer = TCP_RST | TCP_ACK
    elif onward:
        acknowledgement = meta[i, TCP_ACKNOWLEDGEMENT]
        answer = TCP_RST | TCP_ACK
    start = _write_ip(to, row, at, meta, i, onward, PROTOCOL_TCP, _TCP_BYTES, 0)
    write16(to, row, start, meta[i, SOURCE_PORT if onward else DESTINATION_PORT])
    write16(to, row, start + 2, meta[i, DESTINATION_PORT if onward else SOURCE_PORT])
    write32(to, row, start + 4, sequence)
    write32(to, row, start + 8, acknowledgement)
    write16(to, row, start + 12, (_TCP_BYTES // 4) << 12 | answer)
    write16(to, row, start + 14, 0)
    write32(to, row, start + 16, 0)
    end = start + _TCP_BYTES
    write16(to, row, start + 16, _checksum(to, row, start, end, PROTOCOL_TCP, meta, i))
    return end


@kernel
def write_unreachable(to, row, at, data, meta, i):
    """Write the unreachable about packet ``i`` of ``data`` at ``at`` of a row; returns one past its last byte.

    It quotes as much of the packet as the family allows: 576 bytes in all, or the IPv6 minimum MTU.
    """
    inner = meta[i, INNER]
    bytes_ = meta[i, INNER_END] - inner
    if meta[i, FAMILY] == 4:
        quoted = min(bytes_, UNREACHABLE_BYTES_4 - _IPV4_BYTES - _ICMP_BYTES)
        start = _write_ip(
            to, row, at, meta, i, False, PROTOCOL_ICMP, _ICMP_BYTES + quoted, _INTERNETWORK_CONTROL
        )
        write16(to, row, start, _UNREACHABLE_4 << 8 | _PROHIBITED_4)
    else:
        quoted = min(bytes_, UNREACHABLE_BYTES_6 - _IPV6_BYTES - _ICMP_BYTES)
        start = _write_ip(to, row, at, meta, i, False, PROTOCOL_ICMPV6, _ICMP_BYTES + quoted, 0)
        write16(to, row, start, _UNREACHABLE_6 << 8 | _PROHIBITED_6)
    write16(to, row, start + 2, 0)
    write32(to, row, start + 4, 0)
    for k in range(quoted):
        write8(to, row, start + _ICMP_BYTES + k, read8(data, i, inner + k))
    end = start + _ICMP_BYTES + quoted
    if meta[i, FAMILY] == 4:
        write16(to, row, start + 2, ~ones_complement_sum(to, row, start, end, 0) & 0xFFFF)
    else:
        write16(to, row, start + 2, _checksum(to, row, start, end, PROTOCOL_ICMPV6, meta, i))
    return end
