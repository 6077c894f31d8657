"""The store made whole from the live sessions, and sessions that may be another node's by now.

After a *gap* (the loop stood still, or there was no connection to the store) every session is unconfirmed until it
has been written again: always by comparison, and a lost comparison ends it here. After a gap of the loop the
ageing hand does that with those that had packets since. A new connection may lead to a store that knows nothing,
so a hand of its own passes over the whole table once and offers every session worth it, silent ones too. The same hand
rewrites them where records have other places from now on: another number of buckets, or another secret.

Should the next connection come while the hand is on its way, it goes on from where it is, once round: beginning anew
each time, it would never come to the last slots while a connection is lost again and again.

Both keep to one rate, never fill the request ring beyond half, and wait for answers before they ask more than a
pipeline of them: what packets ask for goes before, in the ring and at the server. So every such write is confirmed, and
the end of a pass means that the store has them all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from everwall.kernels import inlined, kernel
from everwall.limits import MS_NS, RESYNC_PATIENCE_NS, RESYNC_SLOTS, SECOND_NS
from everwall.rings import ring_length
from everwall.session import image, state, tcp
from everwall.session import table as t
from everwall.session.state import Sessions
from everwall.session.writer import is_due, worth_storing, write_as

# What words[RESYNC] may be
RESTING = 0
PASSING = 1  # the hand is on its way
WAITING = 2  # it has passed; answers are missing

_ROUND_BITS = 32  # a tag is the round and the slot
_BURST_PARTS = 16  # of a second's sessions, as many may be written at once


@inlined
def is_unconfirmed(sessions, slot):
    """Whether a session had packets since the last gap, and was not written since."""
    gap = sessions.words[state.GAP]
    return sessions.table.cold[slot, t.WRITTEN] < gap and sessions.table.cold[slot, t.LAST_SEEN] >= gap


@inlined
def _too_many_wait(sessions, now):
    """Whether the store has still to answer as many of these writes as may be under way, and may do so yet."""
    words = sessions.words
    missing = words[state.RESYNC_ASKED] - words[state.RESYNC_ANSWERED]
    if missing - words[state.RESYNC_GIVEN_UP] < words[state.RESYNC_MOST]:
        return False
    if now - words[state.RESYNC_HEARD] <= RESYNC_PATIENCE_NS:
        return True
    words[state.RESYNC_GIVEN_UP] = missing
    words[state.RESYNC_HEARD] = now
    return False


@kernel
def take_turn(sessions, now):
    """Whether one more session may be written; the right to do so fills again with time."""
    words = sessions.words
    refill = min(now - words[state.RESYNC_REFILLED], SECOND_NS) * words[state.RESYNC_RATE] // SECOND_NS
    if refill > 0:
        most = max(words[state.RESYNC_RATE] // _BURST_PARTS, 1)
        words[state.RESYNC_TOKENS] = min(words[state.RESYNC_TOKENS] + refill, most)
        words[state.RESYNC_REFILLED] = now
    if (
        words[state.RESYNC_TOKENS] <= 0
        or ring_length(sessions.requests) * 2 >= sessions.requests.rows.shape[0]
        or _too_many_wait(sessions, now)
    ):
        return False
    words[state.RESYNC_TOKENS] -= 1
    return True


@kernel
def resync(sessions, now):
    """Move the hand as far as rate and ring allow: after a new connection, when records have other places, and when
    resiliency is switched on."""
    words = sessions.words
    if words[state.RESILIENCY] == 0:
        words[state.CONNECTIONS] = -1  # whatever is connected when it is switched on, the store lacks all
        words[state.RESYNC] = RESTING
        return
    if sessions.clock[state.CLOCK_GUESSED] != 0:
        return  # a shard has come, and not yet the one that tells the time: nothing can be written
    if sessions.clock[state.CLOCK_CONNECTIONS] != words[state.CONNECTIONS]:
        words[state.GAP] = now
        _begin(sessions, now)
    elif sessions.clock[state.CLOCK_LAYOUT] != words[state.LAYOUT]:
        _begin(sessions, now)
    if words[state.RESYNC] == PASSING:
        _pass(sessions, now)
    elif words[state.RESYNC] == WAITING:
        all_there = words[state.RESYNC_ANSWERED] >= words[state.RESYNC_ASKED]
        if all_there or now - words[state.RESYNC_HEARD] > RESYNC_PATIENCE_NS:
            words[state.RESYNC] = RESTING


@kernel
def _begin(sessions, now):
    words = sessions.words
    words[state.RESYNC_ROUND] += 1
    words[state.RESYNC_BEGAN] = now
    words[state.RESYNC_DONE] = 0
    words[state.RESYNC_TOTAL] = sessions.table.tags.shape[0]
    words[state.RESYNC_ASKED] = 0
    words[state.RESYNC_ANSWERED] = 0
    words[state.RESYNC_GIVEN_UP] = 0
    words[state.RESYNC_HEARD] = now
    words[state.RESYNC] = PASSING
    words[state.CONNECTIONS] = sessions.clock[state.CLOCK_CONNECTIONS]
    words[state.LAYOUT] = sessions.clock[state.CLOCK_LAYOUT]


@kernel
def _pass(sessions, now):
    words, total = sessions.words, sessions.words[state.RESYNC_TOTAL]
    hand, done = words[state.RESYNC_HAND], words[state.RESYNC_DONE]
    end = min(done + RESYNC_SLOTS, total)
    while done < end:
        if sessions.table.tags[hand] != 0 and _is_lacking(sessions, hand, now):
            if not take_turn(sessions, now):
                break
            offer(sessions, hand, now)
        done += 1
        hand += 1
        if hand == total:
            hand = 0
    words[state.RESYNC_HAND], words[state.RESYNC_DONE] = hand, done
    if done == total:
        words[state.RESYNC] = WAITING
        words[state.RESYNC_HEARD] = now


@inlined
def _is_lacking(sessions, slot, now):
    """Whether the store shall have a session that was not written since the hand began."""
    if sessions.table.cold[slot, t.WRITTEN] >= sessions.words[state.RESYNC_BEGAN] or not is_due(
        sessions, slot, now
    ):
        return False
    stored = np.int64(sessions.table.short[slot, t.LOCAL]) & t.STORED != 0
    waits = np.int64(sessions.table.short[slot, t.STATE]) == tcp.TCP_HANDSHAKE
    return worth_storing(sessions, slot) or (stored and waits)


@kernel
def offer(sessions, slot, now):
    """Write a session whose turn it is, and count on an answer."""
    words = sessions.words
    unacknowledged = np.int64(sessions.table.short[slot, t.LOCAL]) & t.UNACKNOWLEDGED
    confirm = image.REPLICATED if unacknowledged != 0 else image.PRIMARY
    if write_as(sessions, slot, now, words[state.RESYNC_ROUND] << _ROUND_BITS | slot, confirm):
        words[state.RESYNC_ASKED] += 1


@inlined
def slot_of(tag):
    """The session that the answer to a write is about."""
    return tag & ((1 << _ROUND_BITS) - 1)


@kernel
def note_answer(sessions, tag, now):
    """Count the answer to a write, if it belongs to the hand's present round."""
    words = sessions.words
    if tag >> _ROUND_BITS != 0 and tag >> _ROUND_BITS == words[state.RESYNC_ROUND]:
        words[state.RESYNC_ANSWERED] += 1
        words[state.RESYNC_HEARD] = now


def progress(sessions: Sessions) -> dict[str, Any]:
    """How far the store is whole, for readers: slots passed and in all, and sessions it may lack.

    ``resync_percent`` is 100 only when the hand has passed and the store has answered, or is silent about some: these
    are the ``unsynced_sessions`` then, which their next change or refresh writes again. ``resync_ms`` is how long that
    took, from the new connection to the last answer; None before its end.
    """
    words, table = sessions.words, sessions.table
    if not words[state.RESILIENCY]:
        unsynced = int(np.count_nonzero(table.tags))
        return {"resync_percent": 0, "resync_ms": None, "unsynced_sessions": unsynced}
    done, total = int(words[state.RESYNC_DONE]), int(words[state.RESYNC_TOTAL])
    began = int(words[state.RESYNC_BEGAN])
    missing = max(int(words[state.RESYNC_ASKED] - words[state.RESYNC_ANSWERED]), 0)
    clock = sessions.clock[[state.CLOCK_CONNECTIONS, state.CLOCK_LAYOUT]].tolist()
    if clock != words[[state.CONNECTIONS, state.LAYOUT]].tolist():
        done, began, missing, running = 0, np.iinfo(np.int64).max, 0, True  # the worker has not seen it yet
    else:
        running = bool(words[state.RESYNC] != RESTING)
    if not running:
        took = round(int(words[state.RESYNC_HEARD] - began) / MS_NS, 1)
        return {"resync_percent": 100, "resync_ms": took, "unsynced_sessions": missing}
    slots, hand = len(table.tags), int(words[state.RESYNC_HAND])
    behind = hand + slots - done  # where the pass ends, counted on beyond the last slot
    ahead = 0
    for part in (slice(hand, min(behind, slots)), slice(0, max(behind - slots, 0))):
        ahead += int(np.count_nonzero((table.tags[part] != 0) & (table.cold[part, t.WRITTEN] < began)))
    percent = min(100 * done // total, 99) if total else 0
    unsynced = missing + ahead
    return {"resync_percent": percent, "resync_ms": None, "unsynced_sessions": unsynced}
