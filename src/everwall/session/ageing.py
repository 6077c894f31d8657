"""Sessions end and are refreshed by a hand that passes over the table once per period."""

from __future__ import annotations

import numpy as np

from everwall.counters import Counter
from everwall.kernels import inlined, kernel, prefetch
from everwall.limits import (
    AGEING_PERIOD_NS,
    AGEING_TICKS,
    BUCKET_SLOTS,
    CONFIRM_NS,
    REFRESH_PASSES,
    STORED_IDLE_NS,
)
from everwall.modes import ASYNC, STRICT
from everwall.session import state, tcp
from everwall.session import table as t
from everwall.session.offload import is_offloaded, sync, withdraw
from everwall.session.resync import is_unconfirmed, offer, take_turn
from everwall.session.writer import forget, is_due, report, worth_storing, write

_SESSIONS = int(Counter.SESSIONS)
_SESSIONS_ENDED = int(Counter.SESSIONS_ENDED)
_REFRESHES = int(Counter.REFRESHES)

TICK_NS = AGEING_PERIOD_NS // AGEING_TICKS
_AHEAD = 24
"""Slots between the hand and what is being fetched for it: a few sessions, whose cache misses overlap."""


@kernel
def end_session(sessions, slot, reason, refused_by, now):
    """Log the end of a session, delete its record and free its slot; ``refused_by`` as in ``report``."""
    withdraw(sessions, slot)
    unlogged = np.int64(sessions.table.short[slot, t.LOCAL]) & t.UNLOGGED != 0
    kind = state.EVENT_ENDED_UNLOGGED if unlogged else state.EVENT_ENDED
    report(sessions, slot, kind, reason, refused_by, now)
    forget(sessions, slot)
    t.remove_session(sessions.table, slot)
    sessions.counters[_SESSIONS] -= 1
    sessions.counters[_SESSIONS_ENDED] += 1


@inlined
def _is_over(sessions, slot, now):
    idle = now - sessions.table.cold[slot, t.LAST_SEEN]
    return idle >= sessions.timeouts[np.int64(sessions.table.short[slot, t.STATE])]


@inlined
def end_if_over(sessions, slot, now):
    """End a session that was idle for its time-out; returns whether it was.

    After an RST that could not be verified the record stays: right after a takeover anybody can send one, and a
    connection that lives on is restored by its next packet.
    """
    if not _is_over(sessions, slot, now):
        return False
    return _end_idle(sessions, slot, now)


@kernel
def _end_idle(sessions, slot, now):
    short = sessions.table.short
    withdraw(sessions, slot)
    if not _is_over(sessions, slot, now):
        return False  # the program has bounced a packet in this very moment
    if np.int64(short[slot, t.STATE]) == tcp.TCP_UNVERIFIED_RST:
        short[slot, t.LOCAL] = np.int64(short[slot, t.LOCAL]) & ~t.STORED
    reason = np.int64(short[slot, t.END_REASON])
    end_session(sessions, slot, reason if reason != tcp.END_NONE else tcp.END_AGED_OUT, 0, now)
    return True


@inlined
def _has_turn(sessions, slot):
    """Whether the hand asks in this pass if the session wants a refresh: by set, since these fill from their first slot
    on."""
    return (slot // BUCKET_SLOTS + sessions.words[state.AGEING_PASS]) & (REFRESH_PASSES - 1) == 0


@inlined
def _age(sessions, slot, asks, now):
    """``asks``: what is known of the last write is looked at too."""
    short = sessions.table.short
    if sessions.words[state.CUT_THROUGH] != 0:
        if is_offloaded(sessions, slot):
            sync(sessions, slot)
        else:
            withdraw(sessions, slot)  # a flag of an older epoch
    if end_if_over(sessions, slot, now) or not is_due(sessions, slot, now):
        return
    local = np.int64(short[slot, t.LOCAL])
    if local & t.DIRTY != 0:
        write(sessions, slot, now)
    elif local & t.STORED == 0:
        mode = np.int64(short[slot, t.MODE])
        if mode != ASYNC and mode != STRICT and worth_storing(sessions, slot):
            write(sessions, slot, now)  # it has come of age
    elif not asks:
        return
    elif _wants_refresh(sessions, slot, now) and worth_storing(sessions, slot):
        write(sessions, slot, now)
        sessions.counters[_REFRESHES] += 1
    elif is_unconfirmed(sessions, slot) and worth_storing(sessions, slot) and take_turn(sessions, now):
        offer(sessions, slot, now)


@inlined
def _wants_refresh(sessions, slot, now):
    """Whether a third of the time that its record lives has passed since a session was written, and packets since."""
    timeout = min(sessions.timeouts[np.int64(sessions.table.short[slot, t.STATE])], STORED_IDLE_NS)
    written = sessions.table.cold[slot, t.WRITTEN]
    # Multiplied, because the hand passes a million sessions a second and a division is slow.
    due = (now - written) * sessions.words[state.REFRESH_DIVISOR] >= timeout
    return due and sessions.table.cold[slot, t.LAST_SEEN] > written


@inlined
def _fetch(sessions, slot, asks):
    """Begin to fetch what ``_age`` looks at: a million sessions a second are in no cache."""
    table, words = sessions.table, sessions.words
    cold = np.int64(table.cold.ctypes.data) + slot * (t.COLD_COLUMNS * 8)
    prefetch(cold)
    prefetch(cold + 63)
    if asks:
        prefetch(cold + t.COLD_COLUMNS * 8 - 1)
    if words[state.CUT_THROUGH] != 0:
        prefetch(np.int64(table.hot.ctypes.data) + slot * t.LINE_BYTES)


@kernel
def age(sessions, now):
    """Move the hand as far as the time since the last call asks, at most once round."""
    words = sessions.words
    if now < words[state.AGEING_DUE]:
        return
    tags, slots = sessions.table.tags, sessions.table.hot.shape[0]
    ticks = min((now - words[state.AGEING_DUE]) // TICK_NS + 1, AGEING_TICKS)
    words[state.AGEING_DUE] = now + TICK_NS
    hand = words[state.AGEING_HAND]
    confirms = now - words[state.GAP] < CONFIRM_NS
    for _ in range(min(ticks * ((slots + AGEING_TICKS - 1) // AGEING_TICKS), slots)):
        if hand + _AHEAD < slots and tags[hand + _AHEAD] != 0:
            _fetch(sessions, hand + _AHEAD, confirms or _has_turn(sessions, hand + _AHEAD))
        if tags[hand] != 0:
            _age(sessions, hand, confirms or _has_turn(sessions, hand), now)
        hand += 1
        if hand == slots:
            hand = 0
            words[state.AGEING_PASS] += 1
    words[state.AGEING_HAND] = hand


@kernel
def write_all(sessions, now):
    """Hand every session to the store as it stands; what finds the queue full is marked for later."""
    for slot in range(sessions.table.hot.shape[0]):
        if sessions.table.hot[slot, t.KEY2] != 0:
            write(sessions, slot, now)


@kernel
def release_session(sessions, slot, now):
    """Hand a session to the store and free its slot; no log, no delete: it goes on elsewhere."""
    withdraw(sessions, slot)
    write(sessions, slot, now)
    t.remove_session(sessions.table, slot)
    sessions.counters[_SESSIONS] -= 1
