"""Reading and writing big-endian fields of a packet's row.

No function here looks at a length: whoever calls has checked that the field lies inside the packet.
Every value is an int64; a 64-bit field is an int64 with the same bits.
"""

from __future__ import annotations

import numpy as np

from everwall.kernels import kernel


@kernel
def read8(data, i, at):
    return np.int64(data[i, at])


@kernel
def read16(data, i, at):
    return np.int64(data[i, at]) << 8 | np.int64(data[i, at + 1])


@kernel
def read32(data, i, at):
    return read16(data, i, at) << 16 | read16(data, i, at + 2)


@kernel
def join(high, low):
    """Two 32-bit halves as one int64; the sign comes from the top bit, nothing overflows on the way."""
    return ((high ^ 0x80000000) - 0x80000000) << 32 | low


@kernel
def read64(data, i, at):
    return join(read32(data, i, at), read32(data, i, at + 4))


@kernel
def write8(data, i, at, value):
    data[i, at] = value & 0xFF


@kernel
def write16(data, i, at, value):
    data[i, at] = value >> 8 & 0xFF
    data[i, at + 1] = value & 0xFF


@kernel
def write32(data, i, at, value):
    write16(data, i, at, value >> 16)
    write16(data, i, at + 2, value)


@kernel
def write64(data, i, at, value):
    write32(data, i, at, value >> 32)
    write32(data, i, at + 4, value)
