"""The session table: sets of eight slots, two sets per key, no slot ever moves.

Each session has a *hot* line of 64 bytes (the key; the rest is reserved for the in-kernel
cut-through, which will share these lines through a memory-mapped BPF array) and a *cold* part that
only the engine touches. A key may stand in one of two sets, chosen by the two halves of its hash;
an insertion takes the emptier one. At the load the table is sized for, both being full is so rare
that it is counted as a fault (``table-full``).

``find`` and ``place`` work on any int64 array whose first three columns are a key, so the tables of
pending look-ups and of fragments use them too. An IPv6 key holds a signature of the addresses; the
addresses themselves are compared in a second array.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from everwall.kernels import kernel
from everwall.limits import BUCKET_SLOTS, TABLE_LOAD_MAX
from everwall.wire import meta as m

# Columns of the hot half: the flow key, then room for the cut-through program.
KEY0 = 0
KEY1 = 1
KEY2 = 2
HOT_COLUMNS = 8

# Columns of the cold half seen as uint32 --------------------------------------------------------
STATE = 0  # session.tcp
FLAGS = 1  # session.image flags
SCALES = 2  # as in the image
APPLICATION = 3
LOCAL = 4  # bits below, not stored
END_REASON = 5  # session.tcp END_*
FROM_ZONE = 6  # zone ids
TO_ZONE = 7
RULE = 8  # rule id
HOST = 9
GENERATION = 10
SYN_NEXT = 11  # sequence after a SYN that arrived in the middle of a connection
SEQUENCE_END = 12  # by end (lower, upper): sequence after the last byte sent
SEQUENCE_MAX = 14  # by end: sequence up to which the peer's window allows sending
WINDOW_MAX = 16  # by end: largest window advertised
SMALL_COLUMNS = 20

# Columns of the cold half seen as int64 -----------------------------------------------------------
LOWER_HIGH = 10
LOWER_LOW = 11
UPPER_HIGH = 12
UPPER_LOW = 13
LAST_SEEN = 14  # ns
START = 15  # milliseconds of store time
WRITTEN = 16  # ns of the last write to the store
ID = 17
PACKETS = 18  # previous owners included
BYTES = 19
COLD_COLUMNS = 20

# Bits of LOCAL
STORED = 1  # the store may hold a record of this session
DIRTY = 2  # must be written, the queue was full
LEARNED_LOWER = 4  # sequence numbers of the lower end are known
LEARNED_UPPER = 8
RELEARNING = 16  # taken over: windows are being learnt again
SYN_PENDING = 32  # SYN_NEXT holds


class Table(NamedTuple):
    """``hot``: int64[slots, 8]; ``cold``: int64[slots, 20]; ``small``: the cold half as uint32[slots, 40]."""

    hot: npt.NDArray[np.int64]
    cold: npt.NDArray[np.int64]
    small: npt.NDArray[np.uint32]


def slots_for(sessions: int) -> int:
    """Slots of a table for so many sessions: a power of two number of sets, at most 80 % full."""
    sets = 1
    while sets * BUCKET_SLOTS * TABLE_LOAD_MAX < sessions:
        sets *= 2
    return sets * BUCKET_SLOTS


def make_table(sessions: int) -> Table:
    """An empty table for ``sessions`` sessions."""
    slots = slots_for(sessions)
    cold = np.zeros((slots, COLD_COLUMNS), np.int64)
    return Table(np.zeros((slots, HOT_COLUMNS), np.int64), cold, cold.view(np.uint32))


@kernel
def _same(keys, addresses, first, slot, meta, i):
    if (
        keys[slot, KEY2] != meta[i, m.KEY2]
        or keys[slot, KEY1] != meta[i, m.KEY1]
        or keys[slot, KEY0] != meta[i, m.KEY0]
    ):
        return False
    if meta[i, m.FAMILY] == 4:
        return True
    return (
        addresses[slot, first] == meta[i, m.LOWER_HIGH]
        and addresses[slot, first + 1] == meta[i, m.LOWER_LOW]
        and addresses[slot, first + 2] == meta[i, m.UPPER_HIGH]
        and addresses[slot, first + 3] == meta[i, m.UPPER_LOW]
    )


@kernel
def _set_start(hashed, slots, second):
    """First slot of the one or the other set of a hash."""
    sets = slots // BUCKET_SLOTS
    if second:
        return ((hashed >> 32) & (sets - 1)) * BUCKET_SLOTS
    return (hashed & (sets - 1)) * BUCKET_SLOTS


@kernel
def find(keys, addresses, first, meta, i):
    """The slot that holds the key of packet ``i``, or -1.

    ``addresses[slot, first:first + 4]`` are the addresses of an IPv6 key in canonical order.
    """
    slots = keys.shape[0]
    for second in range(2):
        start = _set_start(meta[i, m.HASH], slots, second == 1)
        for slot in range(start, start + BUCKET_SLOTS):
            if _same(keys, addresses, first, slot, meta, i):
                return slot
    return -1


@kernel
def place(keys, hashed):
    """A free slot for a hash, in the emptier of its two sets; -1 when both are full."""
    slots = keys.shape[0]
    best = -1
    best_free = 0
    for second in range(2):
        start = _set_start(hashed, slots, second == 1)
        free = 0
        candidate = -1
        for slot in range(start, start + BUCKET_SLOTS):
            if keys[slot, KEY2] == 0:
                free += 1
                if candidate < 0:
                    candidate = slot
        if free > best_free:
            best_free = free
            best = candidate
    return best


@kernel
def set_key(keys, addresses, first, slot, meta, i):
    """Write the key of packet ``i``; KEY2, which makes the slot used, comes last."""
    addresses[slot, first] = meta[i, m.LOWER_HIGH]
    addresses[slot, first + 1] = meta[i, m.LOWER_LOW]
    addresses[slot, first + 2] = meta[i, m.UPPER_HIGH]
    addresses[slot, first + 3] = meta[i, m.UPPER_LOW]
    keys[slot, KEY0] = meta[i, m.KEY0]
    keys[slot, KEY1] = meta[i, m.KEY1]
    keys[slot, KEY2] = meta[i, m.KEY2]


@kernel
def find_session(table, meta, i):
    """The slot of the session that packet ``i`` belongs to, or -1."""
    return find(table.hot, table.cold, LOWER_HIGH, meta, i)


@kernel
def add_session(table, meta, i):
    """A zeroed session slot for the key of packet ``i``, or -1 when its sets are full."""
    slot = place(table.hot, meta[i, m.HASH])
    if slot < 0:
        return -1
    for column in range(COLD_COLUMNS):
        table.cold[slot, column] = 0
    set_key(table.hot, table.cold, LOWER_HIGH, slot, meta, i)
    return slot


@kernel
def remove_session(table, slot):
    """Free a slot."""
    table.hot[slot, KEY2] = 0
