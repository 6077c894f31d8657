"""The session table: sets of eight slots, four sets per key, no slot ever moves.

Each session has a *hot* line of 64 bytes and its addresses, which the in-kernel cut-through reads and writes
too when the table is shared with it, and a *cold* part that only the engine touches. One byte per slot, its
*tag*, tells at a glance which slots of a set may hold a key: a look-up compares eight tags at once and
reads the line of a session only when its tag is right.

A key may stand in any of four sets; an insertion takes the emptiest. At the load the table is sized for, all
four being full is so rare that it is counted as a fault (``table-full``). Set and tag come from different halves
of the hash; the number of sets is any number, because a set is chosen by multiplying, not by masking.

``find`` and ``place`` work on any such arrays, so the look-ups under way use them too. An IPv4 key holds both
addresses. An IPv6 key holds a signature of them; the addresses themselves stand beside it and are compared as well.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from everwall.kernels import equal_bytes, inlined, kernel, lowest_bit, prefetch
from everwall.limits import BUCKET_SLOTS, SET_CHOICES, TABLE_LOAD_MAX
from everwall.wire import meta as m

# The hot line as int64: the flow key, written by the engine
KEY0 = 0
KEY1 = 1
KEY2 = 2  # 0: the slot is free
BYTES_LOWER = 6  # inner IP bytes that the program has bounced, by sending end; never set back
BYTES_UPPER = 7
HOT_COLUMNS = 8

# The hot line as uint32; all but CONTROL are written by the program
CONTROL = 6  # 0: not offloaded, else epoch << 16 | version << 1 | 1, both of 15 bits (session.offload)
SEEN = 7  # CLOCK_MONOTONIC >> SEEN_SHIFT when a packet was bounced last
END_LOWER = 8  # sequence after the last byte bounced, by sending end
END_UPPER = 9
PACKETS_LOWER = 10  # packets bounced, by sending end; never set back
PACKETS_UPPER = 11

SEEN_SHIFT = 20

LINE_BYTES = HOT_COLUMNS * 8

# Columns of ``addresses``: both ends of IPv6 in canonical order; IPv4 has them in KEY1, whose line is fetched anyway
LOWER_HIGH = 0
LOWER_LOW = 1
UPPER_HIGH = 2
UPPER_LOW = 3
ADDRESS_COLUMNS = 4

# The cold part, 112 bytes. What every packet needs stands in its first 64.
# as int64
LAST_SEEN = 0  # ns
PACKETS = 1  # previous owners included
BYTES = 2  # the same, less what the program has counted in this slot (``bytes_of``)
ID = 3
START = 12  # milliseconds of store time
WRITTEN = 13  # ns of the last write to the store
COLD_COLUMNS = 14
# as uint32
SEQUENCE_END = 8  # by end (lower, upper): sequence after the last byte sent
SEQUENCE_MAX = 10  # by end: sequence up to which the peer's window allows sending
WINDOW_MAX = 12  # by end: largest window advertised
RULE = 19  # rule id
HOST = 20
SYN_NEXT = 21  # sequence after a SYN that arrived in the middle of a connection
PACKETS_BASE = 22  # by end: the program's packets that PACKETS holds already
# as uint16
STATE = 28  # session.tcp
FLAGS = 29  # session.image flags
SCALES = 30  # as in the image
LOCAL = 31  # bits below, not stored
END_REASON = 32  # session.tcp END_*
FROM_ZONE = 33  # zone ids
TO_ZONE = 34
APPLICATION = 35
GENERATION = 36
MODE = 37  # everwall.modes, as the rule has it

# Bits of LOCAL
STORED = 1  # the store may hold a record of this session
DIRTY = 2  # must be written, the queue was full
LEARNED_LOWER = 4  # sequence numbers of the lower end are known
LEARNED_UPPER = 8
RELEARNING = 16  # taken over: windows are being learnt again
SYN_PENDING = 32  # SYN_NEXT holds
HELD = 64  # strict: packets wait for the store's acknowledgement
UNACKNOWLEDGED = 128  # strict: the store has not acknowledged the session yet
ASKED = 256  # strict: the first answer has come, and is held or gone
UNLOGGED = 512  # its rule wants no line in the log at its end

SLOT_BYTES = LINE_BYTES + ADDRESS_COLUMNS * 8 + 1 + COLD_COLUMNS * 8

_libc = ctypes.CDLL(None, use_errno=True)
_MADV_POPULATE_WRITE = 23  # linux/mman.h; ``mmap`` has no name for it

_LOW = 0xFFFFFFFF
_FAMILY_SHIFT = 40


class SharedTable(NamedTuple):
    """The part of a table that the cut-through program sees, given from outside; all zeros."""

    hot: npt.NDArray[np.int64]
    tags: npt.NDArray[np.uint8]
    addresses: npt.NDArray[np.int64]


class Table(NamedTuple):
    """The arrays of a table, and views of them by smaller words."""

    hot: npt.NDArray[np.int64]  # [slots, 8]
    hot32: npt.NDArray[np.uint32]  # [slots, 16], the same bytes
    tags: npt.NDArray[np.uint8]  # [slots], 0 = free
    addresses: npt.NDArray[np.int64]  # [slots, 4]
    cold: npt.NDArray[np.int64]  # [slots, 14]
    small: npt.NDArray[np.uint32]  # [slots, 28], the same bytes
    short: npt.NDArray[np.uint16]  # [slots, 56], the same bytes


def slots_for(sessions: int) -> int:
    """Slots of a table for so many sessions: whole sets, at most TABLE_LOAD_MAX full."""
    sets = max(1, int(sessions / (BUCKET_SLOTS * TABLE_LOAD_MAX)))
    while sets * BUCKET_SLOTS * TABLE_LOAD_MAX < sessions:
        sets += 1
    return sets * BUCKET_SLOTS


def huge_zeros(shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    """Zeros that begin on a page, so that 64 bytes are one cache line, and in huge pages where there are any.

    NumPy's own large arrays begin 16 bytes after a page, and every line of 64 would be two.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    array: npt.NDArray[Any] = np.frombuffer(memory, np.uint8)[:size].view(dtype).reshape(shape)
    return array


def fault_in(table: Table) -> None:
    """Have the system give a table all of its memory now, not while packets wait for it: a huge page is cleared at its
    first touch, which takes up to milliseconds, and a node that takes flows over touches all of them at once.

    What the program sees is there already, and a kernel before Linux 5.14 does not know how. Raises OSError (ENOMEM)
    when there is not enough.
    """
    for array in (table.hot, table.tags, table.addresses, table.cold):
        first = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
        size = array.ctypes.data + array.nbytes - first
        if _libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), _MADV_POPULATE_WRITE) != 0:
            number = ctypes.get_errno()
            if number == errno.ENOMEM:
                raise OSError(
                    number, f"no memory for a table of {len(table.tags):,} sessions ({size:,} bytes)"
                )


def make_table(sessions: int, shared: SharedTable | None = None) -> Table:
    """An empty table for ``sessions`` sessions, on memory of its own or on what the program sees.

    Raises ValueError when ``shared`` has not the shape of such a table.
    """
    slots = slots_for(sessions)
    if shared is None:
        shared = SharedTable(
            huge_zeros((slots, HOT_COLUMNS), np.int64),
            huge_zeros((slots,), np.uint8),
            huge_zeros((slots, ADDRESS_COLUMNS), np.int64),
        )
    shapes = tuple(array.shape for array in shared)
    if shapes != ((slots, HOT_COLUMNS), (slots,), (slots, ADDRESS_COLUMNS)):
        raise ValueError(f"a table for {sessions} sessions has {slots} slots, the shared arrays are {shapes}")
    cold = huge_zeros((slots, COLD_COLUMNS), np.int64)
    hot32 = shared.hot.view(np.uint32)
    return Table(
        shared.hot, hot32, shared.tags, shared.addresses, cold, cold.view(np.uint32), cold.view(np.uint16)
    )


@inlined
def tag_of(hashed):
    """The tag of a hash, 1 to 255."""
    return max((hashed >> 32) & 0xFF, 1)


@inlined
def set_start(hashed, choice, sets):
    """First slot of one of the sets of a hash; two of its sets may be the same."""
    step = ((hashed >> 32) & _LOW) | 1
    return ((((hashed & _LOW) + choice * step) & _LOW) * sets >> 32) * BUCKET_SLOTS


@inlined
def _same(keys, addresses, slot, meta, i):
    if (
        keys[slot, KEY2] != meta[i, m.KEY2]
        or keys[slot, KEY1] != meta[i, m.KEY1]
        or keys[slot, KEY0] != meta[i, m.KEY0]
    ):
        return False
    if meta[i, m.FAMILY] == 4:
        return True
    return (
        addresses[slot, LOWER_HIGH] == meta[i, m.LOWER_HIGH]
        and addresses[slot, LOWER_LOW] == meta[i, m.LOWER_LOW]
        and addresses[slot, UPPER_HIGH] == meta[i, m.UPPER_HIGH]
        and addresses[slot, UPPER_LOW] == meta[i, m.UPPER_LOW]
    )


@inlined
def find(keys, tags, addresses, meta, i):
    """The slot that holds the key of packet ``i``, or -1. ``keys``: int64[slots, 3 or more]."""
    hashed = meta[i, m.HASH]
    tag = tag_of(hashed)
    sets = tags.shape[0] // BUCKET_SLOTS
    for choice in range(SET_CHOICES):
        start = set_start(hashed, choice, sets)
        candidates = equal_bytes(tags, start, tag)
        while candidates != 0:
            slot = start + lowest_bit(candidates)
            if _same(keys, addresses, slot, meta, i):
                return slot
            candidates &= candidates - 1
    return -1


@inlined
def fetch_tags(table, hashed):
    """Begin to fetch the tags that a look-up of this hash will compare."""
    at = np.int64(table.tags.ctypes.data)
    sets = table.tags.shape[0] // BUCKET_SLOTS
    for choice in range(SET_CHOICES):
        prefetch(at + set_start(hashed, choice, sets))


@inlined
def fetch_session(table, hashed):
    """Begin to fetch the session of a hash, once its tags are there: the first slot with the right one."""
    tag = tag_of(hashed)
    sets = table.tags.shape[0] // BUCKET_SLOTS
    for choice in range(SET_CHOICES):
        start = set_start(hashed, choice, sets)
        candidates = equal_bytes(table.tags, start, tag)
        if candidates != 0:
            slot = start + lowest_bit(candidates)
            prefetch(np.int64(table.hot.ctypes.data) + slot * (HOT_COLUMNS * 8))
            cold = np.int64(table.cold.ctypes.data) + slot * (COLD_COLUMNS * 8)
            prefetch(cold)
            prefetch(cold + 63)
            return


@inlined
def place(tags, hashed):
    """A free slot for a hash, in the emptiest of its sets; -1 when all are full."""
    sets = tags.shape[0] // BUCKET_SLOTS
    best = -1
    most = 0
    for choice in range(SET_CHOICES):
        start = set_start(hashed, choice, sets)
        free = equal_bytes(tags, start, 0)
        count = 0
        rest = free
        while rest != 0:
            rest &= rest - 1
            count += 1
        if count > most:
            most = count
            best = start + lowest_bit(free)
    return best


@inlined
def set_key(keys, tags, addresses, slot, meta, i):
    """Write the key of packet ``i``; the tag, by which others find it, comes last."""
    if meta[i, m.FAMILY] != 4:
        addresses[slot, LOWER_HIGH] = meta[i, m.LOWER_HIGH]
        addresses[slot, LOWER_LOW] = meta[i, m.LOWER_LOW]
        addresses[slot, UPPER_HIGH] = meta[i, m.UPPER_HIGH]
        addresses[slot, UPPER_LOW] = meta[i, m.UPPER_LOW]
    keys[slot, KEY0] = meta[i, m.KEY0]
    keys[slot, KEY1] = meta[i, m.KEY1]
    keys[slot, KEY2] = meta[i, m.KEY2]
    tags[slot] = tag_of(meta[i, m.HASH])


@inlined
def clear_key(keys, tags, slot):
    """Free a slot; the tag, by which others find it, goes first."""
    tags[slot] = 0
    keys[slot, KEY2] = 0


@inlined
def find_session(table, meta, i):
    """The slot of the session that packet ``i`` belongs to, or -1."""
    return find(table.hot, table.tags, table.addresses, meta, i)


@inlined
def add_session(table, meta, i):
    """A zeroed session slot for the key of packet ``i``, or -1 when its sets are full.

    The program may still be about to count a packet of the slot's former session. So its counters are never set
    back; the new session counts from where they stand.
    """
    slot = place(table.tags, meta[i, m.HASH])
    if slot < 0:
        return -1
    for column in range(COLD_COLUMNS):
        table.cold[slot, column] = 0
    table.cold[slot, BYTES] = -(table.hot[slot, BYTES_LOWER] + table.hot[slot, BYTES_UPPER])
    table.small[slot, PACKETS_BASE] = table.hot32[slot, PACKETS_LOWER]
    table.small[slot, PACKETS_BASE + 1] = table.hot32[slot, PACKETS_UPPER]
    set_key(table.hot, table.tags, table.addresses, slot, meta, i)
    return slot


@inlined
def remove_session(table, slot):
    """Free a slot of a session that is not offloaded."""
    clear_key(table.hot, table.tags, slot)


@inlined
def ends_of(table, slot):
    """(lower high, lower low, upper high, upper low): the addresses of a session's ends, as in a descriptor."""
    if table.hot[slot, KEY2] >> _FAMILY_SHIFT == 4:
        both = table.hot[slot, KEY1]
        return np.int64(0), (both >> 32) & _LOW, np.int64(0), both & _LOW
    addresses = table.addresses
    return (
        addresses[slot, LOWER_HIGH],
        addresses[slot, LOWER_LOW],
        addresses[slot, UPPER_HIGH],
        addresses[slot, UPPER_LOW],
    )


def ends(table: Table, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """As ``ends_of``, for readers: int64[n, 4] of some slots."""
    hot, found = table.hot[slots], table.addresses[slots]
    in_key = hot[:, KEY2] >> _FAMILY_SHIFT == 4
    both = hot[in_key, KEY1]
    found[in_key] = 0
    found[in_key, LOWER_LOW], found[in_key, UPPER_LOW] = (both >> 32) & _LOW, both & _LOW
    return found


@kernel
def bytes_of(table, slot):
    """Inner IP bytes of a session, those that the program has bounced included."""
    return table.cold[slot, BYTES] + table.hot[slot, BYTES_LOWER] + table.hot[slot, BYTES_UPPER]
