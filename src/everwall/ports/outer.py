"""The headers around GENEVE in kernels: Ethernet, IPv4 without options and UDP, 42 bytes by address.

Read and written as little-endian words, as x86-64 and arm64 have them. The UDP checksum is not looked at: a sender of
the same machine leaves it half-done, and what is inside has checksums of its own. It is written as 0, which RFC 8926
section 3.3 allows, and which no offload can leave half-done.
"""

from __future__ import annotations

from everwall.kernels import kernel, load32, load64, store32, store64
from everwall.limits import GENEVE_PORT, OUTER_TTL
from everwall.wire.meta import END, LOCAL_ADDRESS, PEER_ADDRESS, PEER_MAC, PEER_PORT, START

OUTER_BYTES = 42
IP_UDP_BYTES = 28

# Offsets in a frame
_IP = 14
_UDP = 34

_MAC = 0xFFFF_FFFF_FFFF
_PROTOCOL_UDP = 17
_DONT_FRAGMENT = 0x0040


@kernel
def swap16(value):
    """Network order to the machine's, or back."""
    return ((value & 0xFF) << 8) | ((value >> 8) & 0xFF)


@kernel
def swap32(value):
    """Network order to the machine's, or back."""
    return ((value & 0xFF) << 24) | ((value & 0xFF00) << 8) | ((value >> 8) & 0xFF00) | ((value >> 24) & 0xFF)


@kernel
def _fold(total):
    """A sum of 16-bit words brought down to one, carries added (RFC 1071)."""
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)


@kernel
def payload_of(at, length, total):
    """Bytes of UDP payload of the packet that begins at address ``at``; -1 when it is not ours to read.

    ``length``: of its first piece; ``total``: of all. Ours is Ethernet, IPv4 without options, whole and with a right
    checksum, UDP to GENEVE_PORT, and lengths that fit into one another.
    """
    if length < OUTER_BYTES:
        return -1
    words = load32(at + _IP), load32(at + 18), load32(at + 22), load32(at + 26), load32(at + 30)
    checked = 0
    for word in words:
        checked += (word & 0xFFFF) + (word >> 16)
    ip_bytes = swap16(words[0] >> 16)
    udp_bytes = swap16(load32(at + _UDP + 4))
    ours = (
        load32(at + 12) & 0xFF_FFFF == 0x45_0008
        and _fold(checked) == 0xFFFF
        and (load32(at + 20) & 0xFF00_FF3F) == 17 << 24  # protocol; no fragment
        and swap16(load32(at + _UDP + 2)) == GENEVE_PORT
        and ip_bytes + _IP <= total
        and udp_bytes >= 8
        and udp_bytes + 20 <= ip_bytes
    )
    return udp_bytes - 8 if ours else -1


@kernel
def read(at, meta, i):
    """Ends of the packet that begins at address ``at``, into row ``i``."""
    meta[i, PEER_ADDRESS] = swap32(load32(at + 26))
    meta[i, PEER_PORT] = swap16(load32(at + _UDP))
    meta[i, LOCAL_ADDRESS] = swap32(load32(at + 30))
    meta[i, PEER_MAC] = load64(at + 6) & _MAC


@kernel
def write(at, own, meta, row):
    """All headers of a row at address ``at``; ``own``: our Ethernet address as PEER_MAC is the other one."""
    store64(at, meta[row, PEER_MAC] | (own & 0xFFFF) << 48)
    store32(at + 8, own >> 16)
    store32(at + 12, 0x0008)
    write_ip(at + _IP, meta, row)


@kernel
def write_ip(at, meta, row):
    """IPv4 and UDP headers of a row at address ``at``: 28 bytes."""
    udp_bytes = meta[row, END] - meta[row, START] + 8
    ip_bytes = swap16(udp_bytes + 20)
    hops = OUTER_TTL | _PROTOCOL_UDP << 8
    local, peer = swap32(meta[row, LOCAL_ADDRESS]), swap32(meta[row, PEER_ADDRESS])
    store32(at, 0x0045 | ip_bytes << 16)
    store32(at + 4, _DONT_FRAGMENT << 16)
    total = 0x0045 + ip_bytes + _DONT_FRAGMENT + hops + (local & 0xFFFF) + (local >> 16)
    checksum = _fold(total + (peer & 0xFFFF) + (peer >> 16)) ^ 0xFFFF
    store32(at + 8, hops | checksum << 16)
    store64(at + 12, local | peer << 32)
    store64(at + 20, swap16(meta[row, PEER_PORT]) | swap16(GENEVE_PORT) << 16 | swap16(udp_bytes) << 32)
