"""The compiled part of a replay: judge a batch of frames, each at its own time, and note what became of each.

Two engines stand ready. Without handover the first judges everything. With it a flow begins on the first
engine (or where its predecessor on the same tuple was), and the loop stops at the packet that has to find it gone.
"""

from __future__ import annotations

import numpy as np

from everwall import pipeline
from everwall.kernels import kernel
from everwall.opening import decide
from everwall.policy.match import RULE_ID
from everwall.ports.pcap import describe_frame
from everwall.rings import ring_release, ring_waiting
from everwall.session import image, state, tcp
from everwall.session import table as t
from everwall.session.ageing import end_if_over
from everwall.verdict import Verdict
from everwall.wire import meta as m

# Columns of ``frames``, filled for each row of the batch before it is judged
TIME = 0  # ns, never smaller than the row's before
LINK = 1
CAPTURED = 2  # bytes in the row
LENGTH = 3  # bytes on the wire
FRAME_COLUMNS = 4

# Columns of ``results``
VERDICT = 0  # a Verdict, or NO_IP
FLOW = 1  # 1: the columns below name the flow of the packet
ENDPOINT = 2
LOWER_HIGH = 3
LOWER_LOW = 4
UPPER_HIGH = 5
UPPER_LOW = 6
KEY2 = 7
DIRECTION = 8
ECHO = 9  # 1: the ports are an ICMP identifier
BYTES = 10  # of the inner packet
STATE = 11  # of the session after the packet, NONE if there is none
RULE = 12  # id of the rule that allowed or refused, 0 if none was asked
ENDED = 13  # why an older session of the tuple ended before this packet, END_NONE if none did
END_REASON = 14  # why the session will have ended
RESULT_COLUMNS = 15

NO_IP = -1

# Columns of ``ended``: the six of a result from ENDPOINT to KEY2, then
ENDED_REASON = KEY2 - ENDPOINT + 1
ENDED_COLUMNS = ENDED_REASON + 1

_FORWARD = int(Verdict.FORWARD)
_POLICY_DENY = int(Verdict.POLICY_DENY)
_FRAGMENT_UNMATCHED = int(Verdict.FRAGMENT_UNMATCHED)
_ICMP_ERROR_UNMATCHED = int(Verdict.ICMP_ERROR_UNMATCHED)


@kernel
def run(first, second, batch, frames, start, count, handover, results):
    """Judge rows ``start`` to ``count``; returns the row that waits for a handover, or ``count``.

    ``handover``: packets after which a flow moves to the other engine, 0 for never.
    """
    for i in range(start, count):
        if not describe_frame(
            batch.data, batch.meta, i, frames[i, LINK], frames[i, CAPTURED], frames[i, LENGTH]
        ):
            results[i, VERDICT] = NO_IP
            results[i, FLOW] = 0
            continue
        now = frames[i, TIME]
        pipeline.read(first, batch, i)  # both engines read and hash alike
        holder = 0
        if handover > 0:
            holder, slot = holder_of(first, second, batch, i, now)
            if slot >= 0 and _leaves(second if holder == 1 else first, batch.meta, slot, i, handover):
                return i
        judging = second if holder == 1 else first
        pipeline.judge(judging, batch, i, now)
        judging.sessions.words[state.MADE] = 0  # nobody is there to be answered
        note(judging, batch.meta, i, results)
        results[i, ENDED] = _take_end(first.sessions) + _take_end(second.sessions)
    return count


@kernel
def holder_of(first, second, batch, i, now):
    """Which engine packet ``i``, read already, goes to, 0 or 1, and the slot of its session there, -1 for none."""
    holder = 0
    unmatched = False
    if batch.meta[i, m.VERDICT] != _FORWARD:
        return holder, -1
    for which in range(2):
        sessions = second.sessions if which == 1 else first.sessions
        verdict, slot = pipeline.locate(sessions, batch.meta, i, now)
        if slot >= 0:
            return which, slot
        if which == 0:
            unmatched = verdict == _FRAGMENT_UNMATCHED
        elif unmatched and verdict == _FORWARD:
            holder = 1  # the fragment's first part went there
    return holder, -1


@kernel
def _leaves(state_, meta, slot, i, handover):
    """Whether packet ``i`` has to find its session on the other engine.

    Not with a SYN, for which nobody asks the store, nor with an RST, which cannot be verified by who
    has heard neither end; nor with a part of a datagram or an error, which need the flow where it is.
    """
    table = state_.sessions.table
    if np.int64(table.short[slot, t.FLAGS]) & image.PARTIAL != 0 or table.cold[slot, t.PACKETS] < handover:
        return False
    if meta[i, m.FRAGMENT] == m.LATER_FRAGMENT or meta[i, m.ICMP_KIND] == m.ICMP_ERROR:
        return False
    if meta[i, m.PROTOCOL] != m.PROTOCOL_TCP:
        return True
    if np.int64(table.short[slot, t.STATE]) == tcp.TCP_CLOSED:
        return False  # its record is deleted
    event = tcp.event_of(meta[i, m.TCP_FLAG_BITS])
    return event != tcp.SYN and event != tcp.RST


@kernel
def note(state_, meta, i, results):
    """Fill the result of packet ``i``, judged a moment ago, but for ENDED."""
    for column in range(RESULT_COLUMNS):
        results[i, column] = 0
    verdict = meta[i, m.VERDICT]
    results[i, VERDICT] = verdict
    if meta[i, m.KEY2] == 0 or verdict == _ICMP_ERROR_UNMATCHED:
        return
    results[i, FLOW] = 1
    results[i, ENDPOINT] = meta[i, m.KEY0]
    results[i, LOWER_HIGH] = meta[i, m.LOWER_HIGH]
    results[i, LOWER_LOW] = meta[i, m.LOWER_LOW]
    results[i, UPPER_HIGH] = meta[i, m.UPPER_HIGH]
    results[i, UPPER_LOW] = meta[i, m.UPPER_LOW]
    results[i, KEY2] = meta[i, m.KEY2]
    results[i, DIRECTION] = meta[i, m.DIRECTION]
    kind = meta[i, m.ICMP_KIND]
    results[i, ECHO] = 1 if kind == m.ICMP_REQUEST or kind == m.ICMP_REPLY else 0
    results[i, BYTES] = meta[i, m.INNER_END] - meta[i, m.INNER]
    slot = t.find_session(state_.sessions.table, meta, i)
    if slot >= 0:
        short, small = state_.sessions.table.short, state_.sessions.table.small
        results[i, STATE] = np.int64(short[slot, t.STATE])
        results[i, RULE] = np.int64(small[slot, t.RULE])
        results[i, END_REASON] = np.int64(short[slot, t.END_REASON])
    elif verdict == _POLICY_DENY:
        _, row, _ = decide(state_, meta, i, meta[i, m.DIRECTION])
        results[i, RULE] = state_.policy.rules[row, RULE_ID]


@kernel
def _take_end(sessions):
    """The reason of the one session that ended since the last call, or END_NONE; empties the log."""
    events = sessions.events
    reason = tcp.END_NONE
    first, count = ring_waiting(events)
    for k in range(count):
        row = (first + k) & (events.rows.shape[0] - 1)
        kind = events.rows[row, state.EVENT_KIND]
        if kind == state.EVENT_ENDED or kind == state.EVENT_ENDED_UNLOGGED:
            reason = events.rows[row, state.EVENT_REASON]
    ring_release(events, count)
    return reason


@kernel
def sweep(state_, now, start, ended):
    """End what is over by ``now`` from slot ``start`` on: (slot to go on from, rows of ``ended`` filled)."""
    sessions = state_.sessions
    hot = sessions.table.hot
    count = 0
    for slot in range(start, hot.shape[0]):
        if count == ended.shape[0]:
            return slot, count
        key2 = hot[slot, t.KEY2]
        if key2 == 0:
            continue
        ended[count, 0] = hot[slot, t.KEY0]
        ended[count, 1], ended[count, 2], ended[count, 3], ended[count, 4] = t.ends_of(sessions.table, slot)
        ended[count, 5] = key2
        if not end_if_over(sessions, slot, now):
            continue
        ended[count, ENDED_REASON] = _take_end(sessions)
        count += 1
    return hot.shape[0], count
