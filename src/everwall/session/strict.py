"""Strict mode: the first answer of a session waits until the store has acknowledged the session.

That is the SYN-ACK, or the first packet back of a flow without handshake. Before it nobody counts on the session;
after it every node can go on with it. What comes behind it waits in order. Nothing is ever dropped for strictness:
after STRICT_WAIT_NS, or where there is no room to wait, the packet goes and ``strict-unacknowledged`` counts it.
"""

from __future__ import annotations

import numpy as np

from everwall.counters import Counter
from everwall.kernels import kernel
from everwall.rings import ring_slot
from everwall.session import image, parking, state, tcp
from everwall.session import table as t
from everwall.session.writer import protocol_of, write, write_as
from everwall.wire import meta as m

_STRICT_UNACKNOWLEDGED = int(Counter.STRICT_UNACKNOWLEDGED)


@kernel
def must_wait(sessions, meta, slot, i):
    """Whether packet ``i`` waits unjudged: behind the first answer, or, being it, behind a look-up of its flow."""
    short = sessions.table.short
    local = np.int64(short[slot, t.LOCAL])
    if meta[i, m.ICMP_KIND] == m.ICMP_ERROR:
        return False
    if local & t.HELD == 0:
        from_client = meta[i, m.DIRECTION] == np.int64(short[slot, t.FLAGS]) & image.INITIATOR_UPPER
        if local & t.ASKED != 0 or from_client:
            return False
    pending = parking.find_pending(sessions, meta, i)
    if pending < 0:
        return False
    if parking.has_room(sessions, pending):
        return True
    if local & t.HELD != 0:
        sessions.counters[_STRICT_UNACKNOWLEDGED] += 1
    return False


@kernel
def hold(sessions, meta, slot, i, now):
    """Whether packet ``i``, judged good, is the first answer of its session and waits from now on for the store.

    The store is asked here, in the session's present state, which another node can go on from.
    """
    table = sessions.table
    if table.hot[slot, t.KEY2] == 0:
        slot = t.find_session(table, meta, i)  # the connection was opened anew in another slot
        if slot < 0:
            return False
    local = np.int64(table.short[slot, t.LOCAL])
    if local & (t.UNACKNOWLEDGED | t.ASKED) != t.UNACKNOWLEDGED or meta[i, m.ICMP_KIND] == m.ICMP_ERROR:
        return False
    if protocol_of(table.hot[slot, t.KEY2]) == m.PROTOCOL_TCP:
        if np.int64(table.short[slot, t.STATE]) != tcp.TCP_HANDSHAKE:
            return False
    elif np.int64(table.short[slot, t.FLAGS]) & image.REPLIED == 0:
        return False
    table.short[slot, t.LOCAL] = local | t.ASKED
    if sessions.words[state.RESILIENCY] == 0:
        return False
    if ring_slot(sessions.requests) >= 0 and parking.find_pending(sessions, meta, i) < 0:
        pending = parking.hold(sessions, meta, i, now)
        if pending >= 0:
            table.short[slot, t.LOCAL] = local | t.ASKED | t.HELD
            write_as(sessions, slot, now, slot, image.REPLICATED)
            sessions.words[state.URGENT] = 1
            return True
    sessions.counters[_STRICT_UNACKNOWLEDGED] += 1
    write(sessions, slot, now)
    return False
