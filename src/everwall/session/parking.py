"""Packets wait, copied aside, while the store is asked: of unknown flows, and in strict mode; misses are remembered.

One look-up per flow at a time. Its packets are kept in order in a list of arena rows, bounded per
flow and in all. A deadline ends the wait whatever the store does.
"""

from __future__ import annotations

from everwall.counters import Counter
from everwall.kernels import kernel
from everwall.limits import NEGATIVE_NS, PARKED_PER_FLOW_MAX, STRICT_WAIT_NS
from everwall.rings import ring_publish, ring_slot
from everwall.session import image, state
from everwall.session import table as t
from everwall.session.remembered import forget_flow, recall, remember
from everwall.session.tokens import refill
from everwall.session.writer import begin_row
from everwall.verdict import Verdict
from everwall.wire import meta as m

_LOOKUPS = int(Counter.LOOKUPS)
_PARKED = int(Counter.PARKED)

_FORWARD = int(Verdict.FORWARD)
_PARK = int(Verdict.PARK)
_PARK_FULL = int(Verdict.PARK_FULL)
_PARK_FLOW_FULL = int(Verdict.PARK_FLOW_FULL)
_LOOKUP_LIMIT = int(Verdict.LOOKUP_LIMIT)
_LOOKUP_BUDGET = int(Verdict.LOOKUP_BUDGET)

_SLOT_BITS = 24  # a tag is a mark and the slot of its pending entry


@kernel
def find_pending(sessions, meta, i):
    """The look-up under way for the flow of packet ``i``, or -1."""
    return t.find(sessions.pending, sessions.pending_tags, sessions.pending_addresses, meta, i)


@kernel
def pending_of_tag(sessions, tag):
    """The look-up that an answer belongs to, or -1 when its deadline has passed."""
    slot = tag & ((1 << _SLOT_BITS) - 1)
    pending = sessions.pending
    if slot >= pending.shape[0] or pending[slot, t.KEY2] == 0:
        return -1
    return slot if pending[slot, state.PENDING_TAG] == tag else -1


@kernel
def _budget_left(sessions, now):
    """Whether the budget for misses allows another look-up; it fills again with time."""
    return refill(sessions.words, state.MISS_TOKENS, sessions.words[state.MISS_BUDGET], now) > 0


@kernel
def charge_miss(sessions):
    """A look-up found nothing: only these use up the budget, so a failover is never throttled."""
    sessions.words[state.MISS_TOKENS] -= 1


@kernel
def _open_pending(sessions, slot, meta, i, deadline):
    """Begin a wait of the flow of packet ``i`` in a free slot; returns its tag."""
    words, pending = sessions.words, sessions.pending
    t.set_key(pending, sessions.pending_tags, sessions.pending_addresses, slot, meta, i)
    words[state.LOOKUP_MARK] = (words[state.LOOKUP_MARK] + 1) & 0x7FFFFFFF
    tag = (words[state.LOOKUP_MARK] << _SLOT_BITS) | slot
    pending[slot, state.PENDING_DEADLINE] = deadline
    pending[slot, state.PENDING_FIRST] = -1
    pending[slot, state.PENDING_LAST] = -1
    pending[slot, state.PENDING_COUNT] = 0
    pending[slot, state.PENDING_TAG] = tag
    return tag


@kernel
def hold(sessions, meta, i, now):
    """Begin to hold the flow of packet ``i`` for strict mode: its pending slot, or -1 without room for the packet."""
    words, holds = sessions.words, sessions.holds
    slot = t.place(sessions.pending_tags, meta[i, m.HASH])
    waiting = words[state.HOLD_TAIL] - words[state.HOLD_HEAD]
    if slot < 0 or words[state.FREE_ROW] < 0 or waiting >= holds.shape[0]:
        return -1
    tag = _open_pending(sessions, slot, meta, i, now + STRICT_WAIT_NS)
    holds[words[state.HOLD_TAIL] & (holds.shape[0] - 1)] = tag
    words[state.HOLD_TAIL] += 1
    return slot


@kernel
def has_room(sessions, slot):
    """Whether one more packet can be parked in a list."""
    return (
        sessions.pending[slot, state.PENDING_COUNT] < PARKED_PER_FLOW_MAX
        and sessions.words[state.FREE_ROW] >= 0
    )


@kernel
def ask(sessions, meta, i, now):
    """Begin a look-up for the flow of packet ``i``: (FORWARD, its pending slot) or (reason, -1)."""
    words, deadlines = sessions.words, sessions.deadlines
    if not _budget_left(sessions, now):
        return _LOOKUP_BUDGET, -1
    waiting = words[state.DEADLINE_TAIL] - words[state.DEADLINE_HEAD]
    slot = t.place(sessions.pending_tags, meta[i, m.HASH])
    row = ring_slot(sessions.requests)
    if slot < 0 or row < 0 or waiting >= deadlines.shape[0]:
        return _LOOKUP_LIMIT, -1
    tag = _open_pending(sessions, slot, meta, i, now + words[state.LOOKUP_DEADLINE])
    deadlines[words[state.DEADLINE_TAIL] & (deadlines.shape[0] - 1)] = tag
    words[state.DEADLINE_TAIL] += 1
    rows = sessions.requests.rows
    begin_row(rows, row, meta, i)
    rows[row, image.OP] = image.LOOKUP
    rows[row, image.TAG] = tag
    ring_publish(sessions.requests)
    words[state.URGENT] = 1
    sessions.counters[_LOOKUPS] += 1
    return _FORWARD, slot


@kernel
def park(sessions, slot, batch, i):
    """Copy packet ``i`` to the end of a look-up's list; PARK, or why there is no room."""
    words, pending = sessions.words, sessions.pending
    if pending[slot, state.PENDING_COUNT] >= PARKED_PER_FLOW_MAX:
        return _PARK_FLOW_FULL
    row = words[state.FREE_ROW]
    if row < 0:
        return _PARK_FULL
    words[state.FREE_ROW] = sessions.next_row[row]
    arena = sessions.arena
    for column in range(m.COLUMNS):
        arena.meta[row, column] = batch.meta[i, column]
    arena.meta[row, m.FRAME] = 0
    for at in range(batch.meta[i, m.START], batch.meta[i, m.END]):
        arena.data[row, at] = batch.data[i, at]
    append(sessions, slot, row)
    sessions.counters[_PARKED] += 1
    return _PARK


@kernel
def append(sessions, slot, row):
    """Put a parked packet's row at the end of a list."""
    pending = sessions.pending
    sessions.next_row[row] = -1
    if pending[slot, state.PENDING_LAST] < 0:
        pending[slot, state.PENDING_FIRST] = row
    else:
        sessions.next_row[pending[slot, state.PENDING_LAST]] = row
    pending[slot, state.PENDING_LAST] = row
    pending[slot, state.PENDING_COUNT] += 1


@kernel
def close_pending(sessions, slot):
    """End a look-up; returns the first of its parked rows, which the caller takes over, or -1."""
    t.clear_key(sessions.pending, sessions.pending_tags, slot)
    return sessions.pending[slot, state.PENDING_FIRST]


@kernel
def free_row(sessions, row):
    """Give a parked packet's row back."""
    sessions.next_row[row] = sessions.words[state.FREE_ROW]
    sessions.words[state.FREE_ROW] = row
    sessions.counters[_PARKED] -= 1


@kernel
def overdue(sessions, now):
    """The slot of a look-up whose deadline has passed, or -1; call again until -1."""
    return _overdue(sessions, sessions.deadlines, state.DEADLINE_HEAD, now)


@kernel
def overdue_hold(sessions, now):
    """The same for a flow that strict mode holds."""
    return _overdue(sessions, sessions.holds, state.HOLD_HEAD, now)


@kernel
def _overdue(sessions, queue, head, now):
    """``queue``: tags in the order of their deadlines; ``head``: index of its first cursor, the other is the next."""
    words, pending = sessions.words, sessions.pending
    while words[head] < words[head + 1]:
        slot = pending_of_tag(sessions, queue[words[head] & (queue.shape[0] - 1)])
        if slot >= 0 and pending[slot, state.PENDING_DEADLINE] > now:
            return -1
        words[head] += 1
        if slot >= 0:
            return slot
    return -1


@kernel
def next_deadline(sessions, otherwise):
    """When the oldest look-up, or flow that is held, becomes overdue, or ``otherwise``."""
    earliest = _next_deadline(sessions, sessions.deadlines, state.DEADLINE_HEAD, otherwise)
    return _next_deadline(sessions, sessions.holds, state.HOLD_HEAD, earliest)


@kernel
def _next_deadline(sessions, queue, head, otherwise):
    words = sessions.words
    if words[head] == words[head + 1]:
        return otherwise
    slot = pending_of_tag(sessions, queue[words[head] & (queue.shape[0] - 1)])
    if slot < 0:
        return 0  # answered meanwhile: the list wants to be tidied
    return min(sessions.pending[slot, state.PENDING_DEADLINE], otherwise)


@kernel
def remember_miss(sessions, meta, i, now):
    """Do not ask again about this flow for a while."""
    remember(sessions.negative, meta, i, now + NEGATIVE_NS)


@kernel
def known_missing(sessions, meta, i, now):
    """Whether the store said a moment ago that it does not know this flow."""
    return recall(sessions.negative, meta, i, now) >= 0


@kernel
def clear_missing(sessions, meta, i):
    """A SYN opens the flow: what was not there before may be there in a moment."""
    forget_flow(sessions.negative, meta, i)
