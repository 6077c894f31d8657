"""The flow table of the load balancer: which target each flow goes to, and by which cookie it returns.

Buckets of eight, and two buckets for each flow, of which the emptier takes it; no entry ever
moves. ``tags`` holds one word for each place, so that looking into a bucket reads one cache line. A
flow is removed when it was idle too long; where both its buckets are full, a flow whose end was
seen, or one idle too long, makes room.

Beside it stands a small table of fragments: the later ones carry no ports, so the first leaves a
note by (endpoint, addresses, protocol, identification) that names the flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from everwall.flow import hash_of
from everwall.kernels import kernel
from everwall.limits import (
    BUCKET_SLOTS,
    FRAGMENT_NS,
    FRAGMENTS_MAX,
    GWLB_FRAGMENT_WAYS,
    GWLB_TABLE_LOAD_MAX,
    GWLB_TARGETS_MAX,
)
from everwall.wire.meta import (
    DESTINATION_HIGH,
    DESTINATION_LOW,
    ENDPOINT,
    FAMILY,
    FRAGMENT_ID,
    HASH,
    KEY0,
    KEY1,
    KEY2,
    LOWER_HIGH,
    LOWER_LOW,
    PROTOCOL,
    PROTOCOL_TCP,
    SOURCE_HIGH,
    SOURCE_LOW,
    UPPER_HIGH,
    UPPER_LOW,
)

# Columns of a flow; the first seven are the key as ``flow.make_key`` has it
_KEY0, _KEY1, _KEY2, _LOWER_HIGH, _LOWER_LOW, _UPPER_HIGH, _UPPER_LOW = range(7)
COOKIE = 7
TARGET = 8  # the target's reference
LAST = 9  # ns; the last packet from an endpoint
FLAGS = 10
SOURCE_PORT = 11  # of the outer packets
PACKETS_OUT = 12
PACKETS_BACK = 13
SINCE = 14  # ns; the first packet
MOVES = 15  # how often its target changed
_COLUMNS = 16

# Bits of FLAGS
FIN_LOWER = 1
FIN_UPPER = 2
RESET = 4
FIRST_UPPER = 8  # the first packet came from the upper end

# Columns of a fragment note
_F_ENDPOINT, _F_SOURCE_HIGH, _F_SOURCE_LOW, _F_DESTINATION_HIGH, _F_DESTINATION_LOW, _F_ID = range(6)
_F_SLOT = 6
_F_SINCE_FLOW = 7
_F_UNTIL = 8
_F_COLUMNS = 16

# Words of Flows.numbers
_COUNT = 0
_SEED = 1
_HAND = 2
_IDLE_TCP = 3
_IDLE_OTHER = 4
_NUMBERS = 8


class Flows(NamedTuple):
    """The arrays of one flow table; made by ``make_flows``."""

    tags: npt.NDArray[np.int64]  # [buckets, BUCKET_SLOTS], 0 = free
    rows: npt.NDArray[np.int64]  # [buckets * BUCKET_SLOTS, columns]
    fragments: npt.NDArray[np.int64]  # [sets, ways, columns]
    per_target: npt.NDArray[np.int64]  # [targets], flows that are there now
    numbers: npt.NDArray[np.int64]


def make_flows(capacity: int, idle_tcp: int, idle_other: int, seed: int) -> Flows:
    """An empty table for ``capacity`` flows; idle time-outs in nanoseconds."""
    buckets = 1
    while buckets * BUCKET_SLOTS * GWLB_TABLE_LOAD_MAX < capacity:
        buckets *= 2
    numbers = np.zeros(_NUMBERS, np.int64)
    numbers[_SEED], numbers[_IDLE_TCP], numbers[_IDLE_OTHER] = seed, idle_tcp, idle_other
    return Flows(
        np.zeros((buckets, BUCKET_SLOTS), np.int64),
        np.zeros((buckets * BUCKET_SLOTS, _COLUMNS), np.int64),
        np.zeros((FRAGMENTS_MAX // GWLB_FRAGMENT_WAYS, GWLB_FRAGMENT_WAYS, _F_COLUMNS), np.int64),
        np.zeros(GWLB_TARGETS_MAX, np.int64),
        numbers,
    )


def active(flows: Flows) -> int:
    """Flows in the table."""
    return int(flows.numbers[_COUNT])


def snapshot(flows: Flows, limit: int) -> npt.NDArray[np.int64]:
    """A copy of up to ``limit`` flow rows, taken beside a running worker: each row is of one flow."""
    # Of a copy: NumPy refuses to search what changes meanwhile.
    slots = np.flatnonzero(flows.tags.copy())[:limit]
    before = flows.rows[slots]
    whole = before[:, SINCE] == flows.rows[slots, SINCE]
    rows: npt.NDArray[np.int64] = before[whole & (flows.tags.reshape(-1)[slots] != 0)]
    return rows


class FlowKey(NamedTuple):
    """The key of a flow, taken apart; addresses are (high, low) halves."""

    endpoint: int
    family: int
    protocol: int
    lower: tuple[int, int]
    lower_port: int
    upper: tuple[int, int]
    upper_port: int


def describe(row: Sequence[int]) -> FlowKey:
    """The key in one row of a ``snapshot``."""
    ports = row[_KEY2]
    return FlowKey(
        row[_KEY0],
        ports >> 40 & 0xFF,
        ports >> 32 & 0xFF,
        (row[_LOWER_HIGH], row[_LOWER_LOW]),
        ports & 0xFFFF,
        (row[_UPPER_HIGH], row[_UPPER_LOW]),
        ports >> 16 & 0xFFFF,
    )


@kernel
def _bucket(flows, tag, choice):
    mask = flows.tags.shape[0] - 1
    return ((tag >> 33) if choice == 1 else (tag >> 1)) & mask


@kernel
def _is_flow(row, meta, i):
    return (
        row[_KEY1] == meta[i, KEY1]
        and row[_KEY2] == meta[i, KEY2]
        and row[_KEY0] == meta[i, KEY0]
        and row[_LOWER_LOW] == meta[i, LOWER_LOW]
        and row[_LOWER_HIGH] == meta[i, LOWER_HIGH]
        and row[_UPPER_LOW] == meta[i, UPPER_LOW]
        and row[_UPPER_HIGH] == meta[i, UPPER_HIGH]
    )


@kernel
def find(flows, meta, i):
    """The place of the flow that packet ``i`` (with its key made) belongs to, or -1."""
    tag = meta[i, HASH] | 1
    for choice in range(2):
        bucket = _bucket(flows, tag, choice)
        for k in range(BUCKET_SLOTS):
            if flows.tags[bucket, k] == tag:
                slot = bucket * BUCKET_SLOTS + k
                if _is_flow(flows.rows[slot], meta, i):
                    return slot
    return -1


@kernel
def is_tcp(flows, slot):
    """Whether the flow is one of TCP."""
    return (flows.rows[slot, _KEY2] >> 32) & 0xFF == PROTOCOL_TCP


@kernel
def expired(flows, slot, now):
    """Whether the flow was idle longer than it may be."""
    idle = flows.numbers[_IDLE_TCP] if is_tcp(flows, slot) else flows.numbers[_IDLE_OTHER]
    return now - flows.rows[slot, LAST] > idle


@kernel
def ended(flows, slot):
    """Whether the end of the TCP connection was seen: FIN from both ends, or a reset."""
    flags = flows.rows[slot, FLAGS]
    return flags & RESET != 0 or flags & (FIN_LOWER | FIN_UPPER) == FIN_LOWER | FIN_UPPER


@kernel
def remove(flows, slot):
    """Take a flow out."""
    flows.tags[slot // BUCKET_SLOTS, slot % BUCKET_SLOTS] = 0
    flows.per_target[flows.rows[slot, TARGET] % GWLB_TARGETS_MAX] -= 1
    flows.numbers[_COUNT] -= 1


@kernel
def assign(flows, slot, target):
    """Give a flow that has a target another one."""
    flows.per_target[flows.rows[slot, TARGET] % GWLB_TARGETS_MAX] -= 1
    flows.per_target[target % GWLB_TARGETS_MAX] += 1
    flows.rows[slot, TARGET] = target
    flows.rows[slot, MOVES] += 1


@kernel
def _place(flows, tag, now):
    """A free place for ``tag``, emptied where needed; -1 when both buckets are full of living flows."""
    best = -1
    most = 0
    for choice in range(2):
        bucket = _bucket(flows, tag, choice)
        free = 0
        place = -1
        for k in range(BUCKET_SLOTS):
            if flows.tags[bucket, k] == 0:
                free += 1
                place = bucket * BUCKET_SLOTS + k
        if free > most:
            best, most = place, free
    if best >= 0:
        return best
    for choice in range(2):
        bucket = _bucket(flows, tag, choice)
        for k in range(BUCKET_SLOTS):
            slot = bucket * BUCKET_SLOTS + k
            if ended(flows, slot) or expired(flows, slot, now):
                remove(flows, slot)
                return slot
    return -1


@kernel
def insert(flows, meta, i, target, cookie, source_port, flags, now):
    """Enter the flow of packet ``i``; returns its place, or -1 when there is no room."""
    tag = meta[i, HASH] | 1
    slot = _place(flows, tag, now)
    if slot < 0:
        return -1
    row = flows.rows[slot]
    row[_KEY0] = meta[i, KEY0]
    row[_KEY1] = meta[i, KEY1]
    row[_KEY2] = meta[i, KEY2]
    row[_LOWER_HIGH] = meta[i, LOWER_HIGH]
    row[_LOWER_LOW] = meta[i, LOWER_LOW]
    row[_UPPER_HIGH] = meta[i, UPPER_HIGH]
    row[_UPPER_LOW] = meta[i, UPPER_LOW]
    row[COOKIE] = cookie
    row[TARGET] = target
    row[LAST] = now
    row[FLAGS] = flags
    row[SOURCE_PORT] = source_port
    row[PACKETS_OUT] = 0
    row[PACKETS_BACK] = 0
    row[SINCE] = now
    row[MOVES] = 0
    flows.per_target[target % GWLB_TARGETS_MAX] += 1
    flows.numbers[_COUNT] += 1
    flows.tags[slot // BUCKET_SLOTS, slot % BUCKET_SLOTS] = tag
    return slot


@kernel
def age(flows, now, buckets):
    """Remove what was idle too long from the next ``buckets`` buckets; returns how many flows."""
    removed = 0
    hand = flows.numbers[_HAND]
    mask = flows.tags.shape[0] - 1
    for step in range(min(buckets, mask + 1)):
        bucket = (hand + step) & mask
        for k in range(BUCKET_SLOTS):
            if flows.tags[bucket, k] != 0:
                slot = bucket * BUCKET_SLOTS + k
                if expired(flows, slot, now):
                    remove(flows, slot)
                    removed += 1
    flows.numbers[_HAND] = (hand + buckets) & mask
    return removed


@kernel
def _fragment_id(meta, i):
    return meta[i, FRAGMENT_ID] | (meta[i, PROTOCOL] << 32) | (meta[i, FAMILY] << 40)


@kernel
def _fragment_set(flows, meta, i):
    seed = flows.numbers[_SEED]
    mixed = hash_of(meta[i, ENDPOINT], meta[i, SOURCE_HIGH], meta[i, SOURCE_LOW], seed)
    mixed = hash_of(mixed, meta[i, DESTINATION_HIGH], meta[i, DESTINATION_LOW], seed)
    return hash_of(mixed, _fragment_id(meta, i), 0, seed) & (flows.fragments.shape[0] - 1)


@kernel
def _is_fragment_of(note, meta, i):
    return (
        note[_F_ID] == _fragment_id(meta, i)
        and note[_F_ENDPOINT] == meta[i, ENDPOINT]
        and note[_F_SOURCE_LOW] == meta[i, SOURCE_LOW]
        and note[_F_SOURCE_HIGH] == meta[i, SOURCE_HIGH]
        and note[_F_DESTINATION_LOW] == meta[i, DESTINATION_LOW]
        and note[_F_DESTINATION_HIGH] == meta[i, DESTINATION_HIGH]
    )


@kernel
def note_fragment(flows, meta, i, slot, now):
    """Remember that the fragments of packet ``i``, a first one, belong to the flow at ``slot``.

    A full set gives up its oldest note.
    """
    notes = flows.fragments[_fragment_set(flows, meta, i)]
    way = 0
    for k in range(GWLB_FRAGMENT_WAYS):
        if _is_fragment_of(notes[k], meta, i):
            way = k
            break
        if notes[k, _F_UNTIL] < notes[way, _F_UNTIL]:
            way = k
    note = notes[way]
    note[_F_ENDPOINT] = meta[i, ENDPOINT]
    note[_F_SOURCE_HIGH] = meta[i, SOURCE_HIGH]
    note[_F_SOURCE_LOW] = meta[i, SOURCE_LOW]
    note[_F_DESTINATION_HIGH] = meta[i, DESTINATION_HIGH]
    note[_F_DESTINATION_LOW] = meta[i, DESTINATION_LOW]
    note[_F_ID] = _fragment_id(meta, i)
    note[_F_SLOT] = slot
    note[_F_SINCE_FLOW] = flows.rows[slot, SINCE]
    note[_F_UNTIL] = now + FRAGMENT_NS


@kernel
def find_fragment(flows, meta, i, now):
    """The place of the flow that packet ``i``, a later fragment, belongs to, or -1."""
    notes = flows.fragments[_fragment_set(flows, meta, i)]
    for k in range(GWLB_FRAGMENT_WAYS):
        if notes[k, _F_UNTIL] > now and _is_fragment_of(notes[k], meta, i):
            slot = notes[k, _F_SLOT]
            alive = flows.tags[slot // BUCKET_SLOTS, slot % BUCKET_SLOTS] != 0
            # The place may hold another flow by now.
            if alive and flows.rows[slot, SINCE] == notes[k, _F_SINCE_FLOW]:
                return slot
    return -1
