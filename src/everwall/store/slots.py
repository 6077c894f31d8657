"""Which slot of a Redis Cluster a bucket is in: CRC16 (XMODEM) of what stands in the braces of its key, of 16384.

Redis Cluster Specification, "Key distribution model" and "Hash tags".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from redis.crc import key_slot

from everwall.kernels import kernel
from everwall.store.protocol import Protocol, Rows
from everwall.store.resp import bucket_of


def slot_of_key(key: bytes) -> int:
    return int(key_slot(key))


@kernel
def _crc16(crc, byte):
    """One byte more of a CRC with the polynomial 0x1021."""
    crc ^= byte << 8
    for _ in range(8):
        crc = (crc << 1) ^ 0x1021 if crc & 0x8000 else crc << 1
    return crc & 0xFFFF


@kernel
def fill_slots(prefix, slots):
    """The slot of each bucket, whose number follows ``prefix`` (from behind the brace) in hexadecimal."""
    beginning = np.int64(0)
    for byte in prefix:
        beginning = _crc16(beginning, np.int64(byte))
    for bucket in range(slots.shape[0]):
        digits = np.int64(1)
        while bucket >> (4 * digits):
            digits += 1
        crc = beginning
        for j in range(digits):
            digit = (bucket >> (4 * (digits - 1 - j))) & 0xF
            crc = _crc16(crc, 48 + digit if digit < 10 else 87 + digit)
        slots[bucket] = crc & 0x3FFF


def slots_of_buckets(protocol: Protocol) -> npt.NDArray[np.int64]:
    """The slot of each bucket of a cluster."""
    slots = np.zeros(protocol.buckets, np.int64)
    fill_slots(protocol.bucket_prefix[1:], slots)
    return slots


@kernel
def _homes(fields, owners, out):
    for i in range(fields.shape[0]):
        out[i] = owners[bucket_of(fields[i], owners.shape[0])]


def homes_of(fields: Rows, owners: Rows) -> Rows:
    """Who has the bucket of each field."""
    out: Rows = np.empty(len(fields), np.int64)
    _homes(fields, owners, out)
    return out
