"""The Internet checksum (RFC 1071): the complement of the ones-complement sum of 16-bit words."""

from __future__ import annotations

from everwall.kernels import kernel
from everwall.wire.fields import read8, read16


@kernel
def ones_complement_sum(data, i, at, end, start_value):
    """Sum of the words from ``at`` to ``end`` on top of ``start_value``, folded into 16 bits.

    An odd last byte counts as the high half of a word. Reads nothing outside ``at``..``end``.
    """
    total = start_value
    word = at
    while word + 1 < end:
        total += read16(data, i, word)
        word += 2
    if word < end:
        total += read8(data, i, word) << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@kernel
def ipv4_header_checksum(data, i, at, length):
    """Checksum of the header at ``at``: 0 where the one inside is right, the one to write where it is 0."""
    return ~ones_complement_sum(data, i, at, at + length, 0) & 0xFFFF


@kernel
def address_sum(high, low):
    """The part of a pseudo header sum that one address contributes."""
    total = 0
    for shift in range(0, 64, 16):
        total += (high >> shift & 0xFFFF) + (low >> shift & 0xFFFF)
    return total


@kernel
def transport_checksum(
    data, i, at, end, protocol, source_high, source_low, destination_high, destination_low
):
    """Checksum over a pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1) and ``at``..``end``.

    The same formula serves both families, as the halves of an IPv4 address are (0, address). It is
    0 where the checksum inside is right, and the one to write where that field is 0. UDP sends 0xFFFF
    in place of a computed 0; ICMP over IPv4 has no pseudo header (``ones_complement_sum`` alone).
    """
    length = end - at
    pseudo = address_sum(source_high, source_low) + address_sum(destination_high, destination_low)
    pseudo += protocol + (length >> 16) + (length & 0xFFFF)
    return ~ones_complement_sum(data, i, at, end, pseudo) & 0xFFFF
