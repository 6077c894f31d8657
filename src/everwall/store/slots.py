"""Which slot of a Redis Cluster a bucket is in: CRC16 (XMODEM) of what stands in the braces of its key, of 16384.

Redis Cluster Specification, "Key distribution model" and "Hash tags".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from redis.crc import key_slot

from everwall.kernels import kernel
from everwall.session.record import field_of
from everwall.store.layout import Epoch
from everwall.store.protocol import Protocol, Rows
from everwall.store.resp import EPOCH, SECRET, bucket_of, place_of


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


def slots_of_buckets(protocol: Protocol, epoch: Epoch) -> npt.NDArray[np.int64]:
    """The slot of each bucket of an epoch."""
    slots = np.zeros(epoch.buckets, np.int64)
    fill_slots(protocol.key_prefix(epoch)[1:], slots)
    return slots


@kernel
def _homes(rows, fields, keys, others, epoch, owners, former_owners, out):
    for i in range(rows.shape[0]):
        place = place_of(rows, i)
        if place == 0 or place > others.shape[0]:
            out[i] = owners[bucket_of(fields[i], owners.shape[0])]
            continue
        field = field_of(rows, i, keys, others[place - 1, SECRET])
        if others[place - 1, EPOCH] == epoch:
            out[i] = owners[bucket_of(field, owners.shape[0])]
        else:
            out[i] = former_owners[bucket_of(field, former_owners.shape[0])]


def homes_of(rows: Rows, fields: Rows, protocol: Protocol, owners: Sequence[Rows]) -> Rows:
    """Who has the bucket that each row is for: ``owners`` says of each bucket who has it, for each epoch.

    ``fields`` are those of the first secret.
    """
    out: Rows = np.empty(len(rows), np.int64)
    number = np.int64(protocol.epochs[0].number)
    _homes(rows, fields, protocol.keys, protocol.others, number, owners[0], owners[-1], out)
    return out
