"""From the table to the store and the log: sessions as rows of the request and event rings."""

from __future__ import annotations

import numpy as np

from everwall.counters import Counter
from everwall.kernels import inlined, kernel
from everwall.limits import FAILOVER_S, LB_IDLE_OTHER_S, LB_IDLE_TCP_S, MS_NS, SECOND_NS, STORED_IDLE_NS
from everwall.modes import ASYNC, MIN_AGE_UNIT_NS, OFF, STRICT
from everwall.rings import ring_publish, ring_slot
from everwall.session import image, state, tcp
from everwall.session import table as t
from everwall.session.image import REPLIED
from everwall.session.offload import sync
from everwall.wire import meta as m

_REQUESTS_DELAYED = int(Counter.REQUESTS_DELAYED)
_EVENTS_LOST = int(Counter.EVENTS_LOST)
_WRITES = int(Counter.WRITES)
_DELETES = int(Counter.DELETES)
_STARTS_AHEAD = int(Counter.STARTS_AHEAD)


@inlined
def protocol_of(key2):
    """The IP protocol in a flow key."""
    return (key2 >> 32) & 0xFF


@inlined
def stored_expiry(sessions, slot):
    """When the record of a session stops being true, in seconds of store time.

    Idle time-out or the load balancer's, whichever is longer, and time for the failover itself. No record lives for
    longer than its bucket does without a write, however long the time-out is.
    """
    short = sessions.table.short
    idle_s = min(sessions.timeouts[np.int64(short[slot, t.STATE])], STORED_IDLE_NS) // SECOND_NS
    tcp_flow = protocol_of(sessions.table.hot[slot, t.KEY2]) == m.PROTOCOL_TCP
    balancer_s = LB_IDLE_TCP_S if tcp_flow else LB_IDLE_OTHER_S
    seen_s = (
        sessions.table.cold[slot, t.LAST_SEEN] + sessions.clock[state.CLOCK_OFFSET] + SECOND_NS - 1
    ) // SECOND_NS
    return seen_s + max(idle_s, balancer_s) + FAILOVER_S


@inlined
def _fill(sessions, row, rows, slot):
    sync(sessions, slot)
    table = sessions.table
    hot, cold, small, short = table.hot, table.cold, table.small, table.short
    lower_high, lower_low, upper_high, upper_low = t.ends_of(table, slot)
    rows[row, image.ENDPOINT] = hot[slot, t.KEY0]
    rows[row, image.LOWER_HIGH] = lower_high
    rows[row, image.LOWER_LOW] = lower_low
    rows[row, image.UPPER_HIGH] = upper_high
    rows[row, image.UPPER_LOW] = upper_low
    rows[row, image.KEY2] = hot[slot, t.KEY2]
    rows[row, image.STATE] = np.int64(short[slot, t.STATE])
    rows[row, image.FLAGS] = np.int64(short[slot, t.FLAGS])
    rows[row, image.SCALES] = np.int64(short[slot, t.SCALES])
    rows[row, image.FROM_ZONE] = np.int64(short[slot, t.FROM_ZONE])
    rows[row, image.TO_ZONE] = np.int64(short[slot, t.TO_ZONE])
    rows[row, image.APPLICATION] = np.int64(short[slot, t.APPLICATION])
    rows[row, image.RULE] = np.int64(small[slot, t.RULE])
    rows[row, image.HOST] = np.int64(small[slot, t.HOST])
    rows[row, image.OWNER] = sessions.words[state.OWNER]
    rows[row, image.GENERATION] = np.int64(short[slot, t.GENERATION])
    rows[row, image.START] = cold[slot, t.START]
    rows[row, image.EXPIRY] = stored_expiry(sessions, slot)
    rows[row, image.PACKETS] = cold[slot, t.PACKETS]
    rows[row, image.BYTES] = t.bytes_of(table, slot)
    rows[row, image.CONFIRM] = 0


@inlined
def begin_row(rows, row, meta, i):
    """A row about the flow of packet ``i``, for which there is no session: all else is 0."""
    for column in range(image.COLUMNS):
        rows[row, column] = 0
    rows[row, image.ENDPOINT] = meta[i, m.KEY0]
    rows[row, image.LOWER_HIGH] = meta[i, m.LOWER_HIGH]
    rows[row, image.LOWER_LOW] = meta[i, m.LOWER_LOW]
    rows[row, image.UPPER_HIGH] = meta[i, m.UPPER_HIGH]
    rows[row, image.UPPER_LOW] = meta[i, m.UPPER_LOW]
    rows[row, image.KEY2] = meta[i, m.KEY2]


@kernel
def worth_storing(sessions, slot):
    """Whether a session is one the cluster must not lose: established, or answered."""
    current = np.int64(sessions.table.short[slot, t.STATE])
    if current >= tcp.UDP and current <= tcp.OTHER:
        return np.int64(sessions.table.short[slot, t.FLAGS]) & REPLIED != 0
    return (
        current == tcp.TCP_ESTABLISHED
        or current == tcp.TCP_HALF_CLOSED_CLIENT
        or current == tcp.TCP_HALF_CLOSED_SERVER
        or current == tcp.TCP_UNVERIFIED_RST
        or current == tcp.TCP_TIME_WAIT
    )


@inlined
def is_due(sessions, slot, now):
    """Whether the node and the session's rule let the store have it by now; what is there already is kept true."""
    mode = np.int64(sessions.table.short[slot, t.MODE])
    if sessions.words[state.RESILIENCY] == 0 or mode == OFF:
        return False
    if mode == ASYNC or mode == STRICT or np.int64(sessions.table.short[slot, t.LOCAL]) & t.STORED != 0:
        return True
    return now - _born(sessions, slot, now) >= mode * MIN_AGE_UNIT_NS


@inlined
def _born(sessions, slot, now):
    """When a session began, ns of this node's time.

    Its start is of a time to come where this machine's clock was ahead before the store told the time. As long as no
    record says so it is put right: a later connection of the same ends would lose every comparison with it.
    """
    born = sessions.table.cold[slot, t.START] * MS_NS - sessions.clock[state.CLOCK_OFFSET]
    if born > now and np.int64(sessions.table.short[slot, t.LOCAL]) & t.STORED == 0:
        sessions.table.cold[slot, t.START] = (now + sessions.clock[state.CLOCK_OFFSET]) // MS_NS
        sessions.counters[_STARTS_AHEAD] += 1
        born = now
    return born


@inlined
def store(sessions, slot, now):
    """Hand a session to the store if it is due; returns whether it was."""
    if not is_due(sessions, slot, now):
        return False
    write(sessions, slot, now)
    return True


@inlined
def write(sessions, slot, now):
    """Hand a session to the store: for the first time plainly, later by comparison.

    When the queue is full the session is marked and the ageing hand tries again. An unverified RST
    is a passing doubt of this node: the store keeps the session as established.
    """
    unacknowledged = np.int64(sessions.table.short[slot, t.LOCAL]) & t.UNACKNOWLEDGED
    write_as(sessions, slot, now, slot, image.REPLICATED if unacknowledged != 0 else 0)


@kernel
def write_as(sessions, slot, now, tag, confirm):
    """As ``write``; ``tag``, whose low 32 bits are the slot, comes back with the answer, and with ``confirm`` (a value
    of ``image``, or 0) there is one in any case. Returns whether there was room, and the store's time is known.

    What is older than the last gap is compared: it may have gone on elsewhere before it was ever written here.
    """
    short = sessions.table.short
    if sessions.clock[state.CLOCK_GUESSED] != 0:
        return False  # with the first connection all are offered
    row = ring_slot(sessions.requests)
    if row < 0:
        short[slot, t.LOCAL] |= t.DIRTY
        sessions.counters[_REQUESTS_DELAYED] += 1
        return False
    rows = sessions.requests.rows
    local = np.int64(short[slot, t.LOCAL])
    compared = _born(sessions, slot, now) <= sessions.words[state.GAP] or local & t.STORED != 0
    rows[row, image.OP] = image.WRITE if compared else image.WRITE_FIRST
    rows[row, image.TAG] = tag
    _fill(sessions, row, rows, slot)
    rows[row, image.CONFIRM] = confirm
    if rows[row, image.STATE] == tcp.TCP_UNVERIFIED_RST:
        rows[row, image.STATE] = tcp.TCP_ESTABLISHED
    ring_publish(sessions.requests)
    short[slot, t.LOCAL] = (local | t.STORED) & ~t.DIRTY
    sessions.table.cold[slot, t.WRITTEN] = now
    sessions.counters[_WRITES] += 1
    return True


@kernel
def forget(sessions, slot):
    """Ask the store to delete the record of a session that ended here.

    With a full queue, and while resiliency is off, the record is left to expire by itself.
    """
    short = sessions.table.short
    local = np.int64(short[slot, t.LOCAL])
    if local & t.STORED == 0:
        return
    short[slot, t.LOCAL] = local & ~(t.STORED | t.DIRTY)
    if sessions.words[state.RESILIENCY] == 0:
        return
    row = ring_slot(sessions.requests)
    if row < 0:
        sessions.counters[_REQUESTS_DELAYED] += 1
        return
    sessions.requests.rows[row, image.OP] = image.DELETE
    sessions.requests.rows[row, image.TAG] = slot
    _fill(sessions, row, sessions.requests.rows, slot)
    ring_publish(sessions.requests)
    sessions.counters[_DELETES] += 1


@kernel
def report(sessions, slot, kind, reason, refused_by, now):
    """Put an event about a session into the log's ring; ``refused_by``: id of the rule that ends it, or 0."""
    row = event_slot(sessions)
    if row < 0:
        return
    _fill(sessions, row, sessions.events.rows, slot)
    sessions.events.rows[row, state.EVENT_SESSION] = sessions.table.cold[slot, t.ID]
    publish_event(sessions, row, kind, reason, refused_by, now)


@inlined
def event_slot(sessions):
    """Where the next event for the log goes; negative when there is no room, and one more is lost."""
    row = ring_slot(sessions.events)
    if row < 0:
        sessions.counters[_EVENTS_LOST] += 1
    return row


@inlined
def publish_event(sessions, row, kind, reason, refused_by, now):
    """Hand an event to the log, whose session is in its row already; the rest as in ``report``."""
    rows = sessions.events.rows
    rows[row, state.EVENT_KIND] = kind
    rows[row, state.EVENT_REASON] = reason
    rows[row, state.EVENT_TIME] = now
    rows[row, state.EVENT_REFUSED_BY] = refused_by
    ring_publish(sessions.events)
