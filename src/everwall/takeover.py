"""Takeover: a session that another node wrote goes on here, under today's policy.

The record is trusted for what it says (its seal was checked before), not for being allowed: policy is
asked again with the saved direction. The generation is raised, so that the former owner loses every
later comparison in the store.
"""

from __future__ import annotations

import numpy as np

from everwall.counters import Counter
from everwall.flow import make_key
from everwall.kernels import kernel
from everwall.opening import add, apply_rule, decide, describe_flow
from everwall.session import image, parking, state, tcp
from everwall.session import table as t
from everwall.session.offload import offload, withdraw
from everwall.session.resync import slot_of
from everwall.session.writer import protocol_of, report, store
from everwall.verdict import Verdict
from everwall.wire import meta as m

_FORWARD = int(Verdict.FORWARD)

_SESSIONS = int(Counter.SESSIONS)
_SESSIONS_RESTORED = int(Counter.SESSIONS_RESTORED)
_SESSIONS_ADOPTED = int(Counter.SESSIONS_ADOPTED)
_SESSIONS_DEMOTED = int(Counter.SESSIONS_DEMOTED)
_RESTORE_DENIED = int(Counter.RESTORE_DENIED)

_NONE = -1


@kernel
def restore(state_, rows, k, own, now):
    """Take the session of reply row ``k`` over; FORWARD, or why not.

    ``own`` is false when only ICMP errors asked: they may pass, but a session needs a packet of its own.
    """
    sessions = state_.sessions
    scratch = sessions.scratch
    _flow_of_image(scratch, rows, k, sessions.words[state.SEED])
    existing = t.find_session(sessions.table, scratch, 0)
    if existing >= 0 and own and _went_on_elsewhere(sessions, rows, k, existing):
        _give_up(sessions, existing)
        existing = -1
    if existing >= 0 and not _adoptable(sessions, rows, k, existing):
        return _FORWARD
    verdict, rule, zone = decide(state_, scratch, 0, rows[k, image.FLAGS] & image.INITIATOR_UPPER)
    if verdict != _FORWARD:
        sessions.counters[_RESTORE_DENIED] += 1
        sessions.words[state.ANSWER] |= state.ANSWER_KNOWN
        return verdict
    if existing >= 0:
        apply_rule(state_, existing, rule, zone)
        _adopt(sessions, rows, k, existing, now)
        return _FORWARD
    if not own:
        return _FORWARD
    verdict, slot = _install(state_, rows, k, rule, zone, now)
    if verdict != _FORWARD:
        return verdict
    report(sessions, slot, state.EVENT_TAKEN_OVER, tcp.END_NONE, 0, now)
    store(sessions, slot, now)
    return _FORWARD


@kernel
def restore_all(state_, rows, count, now):
    """Take over the sessions of the first ``count`` rows at once; returns how many of them came to live here.

    As ``restore``, for many: what policy denies or is here already is passed over. Nobody asked for them, so there is
    no line in the log for each; to the store they go as fast as its queue takes them. What needs no look is offloaded.
    """
    sessions = state_.sessions
    scratch = sessions.scratch
    restored = 0
    for k in range(count):
        _flow_of_image(scratch, rows, k, sessions.words[state.SEED])
        if t.find_session(sessions.table, scratch, 0) >= 0:
            continue
        verdict, rule, zone = decide(state_, scratch, 0, rows[k, image.FLAGS] & image.INITIATOR_UPPER)
        if verdict != _FORWARD:
            sessions.counters[_RESTORE_DENIED] += 1
            continue
        verdict, slot = _install(state_, rows, k, rule, zone, now)
        if verdict != _FORWARD:
            continue
        store(sessions, slot, now)
        offload(sessions, slot)
        restored += 1
    return restored


@kernel
def _install(state_, rows, k, rule, zone, now):
    """A session as row ``k`` has it, in a slot of its own: (verdict, slot); ``scratch`` holds its flow."""
    sessions = state_.sessions
    verdict, slot = add(sessions, sessions.scratch, 0, now)
    if verdict != _FORWARD:
        return verdict, _NONE
    short, small = sessions.table.short, sessions.table.small
    short[slot, t.STATE] = rows[k, image.STATE]
    short[slot, t.FLAGS] = rows[k, image.FLAGS]
    short[slot, t.SCALES] = rows[k, image.SCALES]
    short[slot, t.APPLICATION] = rows[k, image.APPLICATION]
    small[slot, t.HOST] = rows[k, image.HOST]
    short[slot, t.LOCAL] = t.RELEARNING
    sessions.table.cold[slot, t.WRITTEN] = now  # since then it relearns, whether it is written here or not
    if rows[k, image.STATE] == tcp.TCP_TIME_WAIT:
        short[slot, t.END_REASON] = tcp.END_TCP_FIN
    apply_rule(state_, slot, rule, zone)
    _inherit(sessions, rows, k, slot)
    sessions.counters[_SESSIONS_RESTORED] += 1
    return _FORWARD, slot


@kernel
def _flow_of_image(scratch, rows, k, seed):
    """The descriptor of a packet from the lower to the upper end of a stored flow."""
    describe_flow(
        scratch,
        rows[k, image.ENDPOINT],
        rows[k, image.KEY2],
        rows[k, image.LOWER_HIGH],
        rows[k, image.LOWER_LOW],
        rows[k, image.UPPER_HIGH],
        rows[k, image.UPPER_LOW],
    )
    make_key(scratch, 0, seed)


@kernel
def _inherit(sessions, rows, k, slot):
    """Go on counting where the former owner was last heard, one generation later."""
    short, cold = sessions.table.short, sessions.table.cold
    short[slot, t.FLAGS] |= image.PARTIAL
    short[slot, t.LOCAL] = (np.int64(short[slot, t.LOCAL]) | t.STORED) & ~t.UNACKNOWLEDGED
    short[slot, t.GENERATION] = (rows[k, image.GENERATION] + 1) & 0xFFFF
    cold[slot, t.START] = rows[k, image.START]
    cold[slot, t.PACKETS] += rows[k, image.PACKETS]
    cold[slot, t.BYTES] += rows[k, image.BYTES]


@kernel
def _adoptable(sessions, rows, k, slot):
    """Whether the session that a look-up found here still lacks its past.

    A TCP session that exists by now was opened by a SYN and is a newer connection.
    """
    local = np.int64(sessions.table.short[slot, t.LOCAL])
    return protocol_of(rows[k, image.KEY2]) != m.PROTOCOL_TCP and local & t.STORED == 0


@kernel
def _adopt(sessions, rows, k, slot, now):
    """A flow without handshake went on before the answer came: give it its past."""
    short, small = sessions.table.short, sessions.table.small
    short[slot, t.FLAGS] = rows[k, image.FLAGS]
    short[slot, t.APPLICATION] = rows[k, image.APPLICATION]
    small[slot, t.HOST] = rows[k, image.HOST]
    _inherit(sessions, rows, k, slot)
    sessions.counters[_SESSIONS_ADOPTED] += 1
    report(sessions, slot, state.EVENT_TAKEN_OVER, tcp.END_NONE, 0, now)
    store(sessions, slot, now)


@kernel
def written(sessions, rows, k):
    """A write was answered: the store has the session, or a comparison was lost and the session, another node's
    now, ends here without a word. Returns the pending slot of packets that strict mode held for it, or -1."""
    slot = slot_of(rows[k, image.TAG])
    if not _is_about(sessions.table, rows, k, slot):
        return _NONE
    local = np.int64(sessions.table.short[slot, t.LOCAL])
    held = _NONE
    if rows[k, image.OP] == image.LOST or rows[k, image.CONFIRM] != 0:
        sessions.table.short[slot, t.LOCAL] = local & ~t.UNACKNOWLEDGED
        if local & t.HELD != 0:
            _flow_of_image(sessions.scratch, rows, k, sessions.words[state.SEED])
            held = parking.find_pending(sessions, sessions.scratch, 0)
    if rows[k, image.OP] == image.LOST:
        _give_up(sessions, slot)
    return held


@kernel
def _is_about(table, rows, k, slot):
    """Whether the session in a slot is still the one that row ``k`` was written for."""
    return (
        slot < table.hot.shape[0]
        and table.hot[slot, t.KEY2] == rows[k, image.KEY2]
        and table.hot[slot, t.KEY0] == rows[k, image.ENDPOINT]
        and table.cold[slot, t.START] == rows[k, image.START]
        and np.int64(table.short[slot, t.GENERATION]) == rows[k, image.GENERATION]
    )


@kernel
def _went_on_elsewhere(sessions, rows, k, slot):
    """Whether the stored session is a later one than ours: a newer connection, or taken over since.

    A mere SYN of ours gives way in any case: a packet that only an established connection sends asked.
    """
    start = sessions.table.cold[slot, t.START]
    if protocol_of(rows[k, image.KEY2]) != m.PROTOCOL_TCP:
        return False
    if np.int64(sessions.table.short[slot, t.STATE]) == tcp.TCP_INIT:
        return True
    if rows[k, image.START] < start:
        return False
    generation = np.int64(sessions.table.short[slot, t.GENERATION])
    return rows[k, image.START] > start or rows[k, image.GENERATION] > generation


@kernel
def _give_up(sessions, slot):
    """End a session that is another node's: nothing is logged and nothing deleted."""
    withdraw(sessions, slot)
    t.remove_session(sessions.table, slot)
    sessions.counters[_SESSIONS] -= 1
    sessions.counters[_SESSIONS_DEMOTED] += 1
