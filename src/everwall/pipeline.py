"""The way of a packet, on one page.

    read    decapsulate -> parse -> key
    judge   session found?   yes -> track                   -> forward | drop
                             no  -> open | ask the store    -> forward | park | drop
    answer  from the store -> restore under today's policy -> parked packets go the same way

A batch passes in stages: all its packets are read, then each is judged in the order of arrival. Every
function answers with a ``Verdict``. A forwarded packet is returned as it came: its own GENEVE header
stays before it, only the port swaps the outer addresses. What policy refuses is
answered where its rule says so (``answering``).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from everwall.answering import answer
from everwall.counters import Counter
from everwall.flow import make_key
from everwall.kernels import inlined, kernel
from everwall.limits import DOUBT_NS
from everwall.opening import decide, open_flow
from everwall.policy.match import CompiledPolicy, zone_of
from everwall.rematch import may_go_on, rematch
from everwall.session import image, parking, state, strict, tcp
from everwall.session import table as t
from everwall.session.ageing import age, end_if_over, end_session
from everwall.session.fragments import complete, remember
from everwall.session.offload import offload, withdraw
from everwall.session.refused import any_refused, forget_refused, was_refused
from everwall.session.resync import note_answer, resync
from everwall.session.state import Sessions
from everwall.session.writer import forget, store, worth_storing
from everwall.takeover import restore, written
from everwall.verdict import Verdict
from everwall.wire import meta as m
from everwall.wire.geneve import decapsulate
from everwall.wire.packet import parse
from everwall.wire.tcp import window_scale

FORWARD = int(Verdict.FORWARD)
PARK = int(Verdict.PARK)
_GENEVE_SOURCE = int(Verdict.GENEVE_SOURCE)
_GENEVE_REFUSED = int(Verdict.GENEVE_REFUSED)
_NON_SYN_TCP = int(Verdict.NON_SYN_TCP)
_POLICY_DENY = int(Verdict.POLICY_DENY)
_TCP_WINDOW = int(Verdict.TCP_WINDOW)
_TCP_RST_WINDOW = int(Verdict.TCP_RST_WINDOW)
_TCP_STATE = int(Verdict.TCP_STATE)
_ENDPOINT_UNMAPPED = int(Verdict.ENDPOINT_UNMAPPED)
_FRAGMENT_UNMATCHED = int(Verdict.FRAGMENT_UNMATCHED)
_ICMP_ERROR_UNMATCHED = int(Verdict.ICMP_ERROR_UNMATCHED)
_ICMP_UNSOLICITED = int(Verdict.ICMP_UNSOLICITED)
_LOOKUP_TIMEOUT = int(Verdict.LOOKUP_TIMEOUT)
_STORE_UNAVAILABLE = int(Verdict.STORE_UNAVAILABLE)
_RESTORE_REFUSED = int(Verdict.RESTORE_REFUSED)

_RECORDS_REFUSED = int(Counter.RECORDS_REFUSED)
_LOOKUP_HITS = int(Counter.LOOKUP_HITS)
_LOOKUP_MISSES = int(Counter.LOOKUP_MISSES)
_LOOKUP_FAILURES = int(Counter.LOOKUP_FAILURES)
_LATE_REPLIES = int(Counter.LATE_REPLIES)
_STRICT_UNACKNOWLEDGED = int(Counter.STRICT_UNACKNOWLEDGED)
_BYTES = int(Counter.BYTES)
_RECEIVED = int(Counter.RECEIVED)

_NONE = -1


class State(NamedTuple):
    """All that the data path of one worker works on."""

    sessions: Sessions
    policy: CompiledPolicy
    sources: npt.NDArray[np.int64]
    """int64[n, 2]: first and last outer IPv4 address that GENEVE is accepted from."""


# The main path ----------------------------------------------------------------------------------------


@kernel
def receive(state_, batch, count, now):
    """Judge the first ``count`` packets of a batch: fills VERDICT and SESSION of each row.

    All of them are read before the first is judged, so that the memory of the later ones' sessions is on
    its way while the earlier ones are worked on.
    """
    for i in range(count):
        read(state_, batch, i)
    for i in range(count):
        fetch(state_, batch, i)
    for i in range(count):
        judge(state_, batch, i, now)


@inlined
def read(state_, batch, i):
    """First stage: what packet ``i`` is and the key of its flow; VERDICT says why it is none.

    A later fragment has no key yet: its first one may stand before it in the same batch.
    """
    meta = batch.meta
    meta[i, m.SESSION] = _NONE
    meta[i, m.ROUTED] = 0
    if meta[i, m.VERDICT] != FORWARD:
        return
    verdict = _unwrap(state_, batch, i)
    meta[i, m.VERDICT] = verdict
    if verdict == FORWARD and meta[i, m.FRAGMENT] != m.LATER_FRAGMENT:
        make_key(meta, i, state_.sessions.words[state.SEED])
        t.fetch_tags(state_.sessions.table, meta[i, m.HASH])


@inlined
def fetch(state_, batch, i):
    """Between the stages: begin to fetch the session that packet ``i`` seems to belong to."""
    meta = batch.meta
    if meta[i, m.VERDICT] == FORWARD and meta[i, m.FRAGMENT] != m.LATER_FRAGMENT:
        t.fetch_session(state_.sessions.table, meta[i, m.HASH])


@inlined
def judge(state_, batch, i, now):
    """Second stage, in the order of arrival: the verdict on packet ``i``, counted."""
    verdict = batch.meta[i, m.VERDICT]
    if verdict == FORWARD:
        verdict = _process(state_, batch, i, now)
        batch.meta[i, m.VERDICT] = verdict
        if verdict == _POLICY_DENY:
            answer(state_.sessions, batch, i, now)
    state_.sessions.verdicts[verdict] += 1
    state_.sessions.counters[_RECEIVED] += 1


@inlined
def _process(state_, batch, i, now):
    sessions, meta = state_.sessions, batch.meta
    verdict, slot = locate(sessions, meta, i, now)
    if verdict != FORWARD:
        return verdict
    if slot >= 0 and may_go_on(state_, slot, now):
        verdict = _carry(state_, batch, slot, i, now)
        if verdict == PARK:
            verdict = parking.park(sessions, parking.find_pending(sessions, meta, i), batch, i)
        elif verdict != FORWARD and _is_doubtful(sessions, slot, now):
            verdict = _doubt(state_, batch, i, verdict, now)
        else:
            offload(sessions, slot)
    else:
        verdict = _miss(state_, batch, i, now)
    if meta[i, m.FRAGMENT] == m.FIRST_FRAGMENT and (verdict == FORWARD or verdict == PARK):
        remembered = remember(sessions.fragments, meta, i, sessions.words[state.SEED], now, False)
        if remembered != FORWARD and verdict == FORWARD:
            return remembered
    return verdict


@inlined
def locate(sessions, meta, i, now):
    """Whose packet ``i`` is: FORWARD and the slot of its session, -1 for none; or a drop.

    A session whose time is over is ended here, also when the ageing hand has not come by yet.
    """
    if meta[i, m.FRAGMENT] == m.LATER_FRAGMENT:
        verdict = complete(sessions.fragments, meta, i, sessions.words[state.SEED], now)
        if verdict != FORWARD:
            return verdict, _NONE
        make_key(meta, i, sessions.words[state.SEED])
    slot = t.find_session(sessions.table, meta, i)
    if slot >= 0:
        withdraw(sessions, slot)
        if end_if_over(sessions, slot, now):
            slot = _NONE
    return FORWARD, slot


@inlined
def _unwrap(state_, batch, i):
    """The outer packet and the headers of the inner one."""
    meta = batch.meta
    if meta[i, m.BARE] == 0:
        if state_.sessions.words[state.INSPECT] == 0:
            return _GENEVE_REFUSED
        if not _source_allowed(state_.sources, meta[i, m.PEER_ADDRESS]):
            return _GENEVE_SOURCE
    verdict = decapsulate(batch.data, meta, i)
    if verdict != FORWARD:
        return verdict
    return parse(batch.data, meta, i)


@inlined
def _source_allowed(sources, address):
    for k in range(sources.shape[0]):  # noqa: SIM110 (no generators in kernels)
        if sources[k, 0] <= address and address <= sources[k, 1]:
            return True
    return False


# A session is there -------------------------------------------------------------------------------------


@inlined
def _carry(state_, batch, slot, i, now):
    """The verdict on a packet of a session; PARK where strict mode wants it to wait, which is the caller's to do."""
    sessions, table = state_.sessions, state_.sessions.table
    strict_ = np.int64(table.short[slot, t.LOCAL]) & (t.HELD | t.UNACKNOWLEDGED)
    if strict_ != 0 and strict.must_wait(sessions, batch.meta, slot, i):
        return PARK
    verdict = _hit(state_, batch, slot, i, now)
    asks = np.int64(table.short[slot, t.LOCAL]) & t.UNACKNOWLEDGED != 0 or table.hot[slot, t.KEY2] == 0
    if verdict == FORWARD and asks and strict.hold(sessions, batch.meta, slot, i, now):
        return PARK
    return verdict


@inlined
def _hit(state_, batch, slot, i, now):
    sessions, meta = state_.sessions, batch.meta
    if meta[i, m.ICMP_KIND] == m.ICMP_ERROR:
        sessions.counters[_BYTES] += meta[i, m.INNER_END] - meta[i, m.INNER]
        meta[i, m.SESSION] = sessions.table.cold[slot, t.ID]
        return FORWARD
    if meta[i, m.PROTOCOL] == m.PROTOCOL_TCP and meta[i, m.FRAGMENT] != m.LATER_FRAGMENT:
        verdict = _tcp(state_, batch, slot, i, now)
        if verdict != FORWARD or sessions.table.hot[slot, t.KEY2] == 0:
            return verdict  # a connection that was opened anew in another slot has counted its packet
    else:
        _note_reply(sessions, meta, slot, i, now)
    _count(sessions, meta, slot, i, now)
    return FORWARD


@inlined
def _is_doubtful(sessions, slot, now):
    """Whether the store may know better: the session was quiet here, or is but a SYN that may have been
    sent into the middle of a connection that another node carried."""
    quiet = now - sessions.table.cold[slot, t.LAST_SEEN] > DOUBT_NS
    return quiet or np.int64(sessions.table.short[slot, t.STATE]) == tcp.TCP_INIT


@kernel
def _doubt(state_, batch, i, refusal, now):
    """A packet does not fit a doubtful session: its flow may have gone on at another node meanwhile.

    After a hang or a partition its flow can come back to a node that still has the session as it was
    before; the store knows better.
    """
    if refusal != _TCP_WINDOW and refusal != _TCP_RST_WINDOW and refusal != _TCP_STATE:
        return refusal
    return _ask_or_refuse(state_, batch, i, refusal, now)


@inlined
def _count(sessions, meta, slot, i, now):
    length = meta[i, m.INNER_END] - meta[i, m.INNER]
    cold = sessions.table.cold
    cold[slot, t.LAST_SEEN] = now
    cold[slot, t.PACKETS] += 1
    cold[slot, t.BYTES] += length
    sessions.counters[_BYTES] += length
    meta[i, m.SESSION] = cold[slot, t.ID]


@inlined
def _note_reply(sessions, meta, slot, i, now):
    """A flow without states is worth keeping once it was answered."""
    flags = np.int64(sessions.table.short[slot, t.FLAGS])
    if flags & image.REPLIED == 0 and meta[i, m.DIRECTION] != flags & image.INITIATOR_UPPER:
        sessions.table.short[slot, t.FLAGS] = flags | image.REPLIED
        sessions.table.cold[slot, t.LAST_SEEN] = now
        local = np.int64(sessions.table.short[slot, t.LOCAL])
        awaited = local & (t.UNACKNOWLEDGED | t.ASKED) == t.UNACKNOWLEDGED  # strict mode writes it, and waits
        if meta[i, m.PROTOCOL] != m.PROTOCOL_TCP and not awaited:
            store(sessions, slot, now)


@inlined
def _tcp(state_, batch, slot, i, now):
    """Track a TCP packet and act on the change of state."""
    sessions, meta = state_.sessions, batch.meta
    short, small = sessions.table.short, sessions.table.small
    if meta[i, m.TCP_FLAG_BITS] & (m.TCP_SYN | m.TCP_ACK) == m.TCP_SYN:
        # A SYN into an old session is passed on unlearnt; it must not be one that policy has come to deny.
        verdict, _, _ = decide(state_, meta, i, np.int64(short[slot, t.FLAGS]) & image.INITIATOR_UPPER)
        if verdict != FORWARD:
            return verdict
    if np.int64(short[slot, t.LOCAL]) & t.RELEARNING != 0 and tcp.fits(short, small, slot, meta, i):
        tcp.end_relearning(short, slot, now, sessions.table.cold[slot, t.WRITTEN])
    scale = window_scale(batch.data, meta, i) if meta[i, m.TCP_FLAG_BITS] & m.TCP_SYN != 0 else -1
    before = np.int64(short[slot, t.STATE])
    verdict, follows = tcp.track(short, small, slot, meta, i, scale)
    if verdict != FORWARD:
        return verdict
    if follows == tcp.RESTART:
        return _reuse(state_, batch, slot, i, scale, now)
    _note_reply(sessions, meta, slot, i, now)
    if follows == before:
        return FORWARD
    short[slot, t.STATE] = follows
    sessions.table.cold[slot, t.LAST_SEEN] = now
    short[slot, t.END_REASON] = _end_reason(short, slot, meta, i, follows)
    if follows == tcp.TCP_CLOSED:
        forget(sessions, slot)
    elif (
        follows != tcp.TCP_UNVERIFIED_RST
        and before != tcp.TCP_UNVERIFIED_RST
        and worth_storing(sessions, slot)
    ):
        store(sessions, slot, now)
    return FORWARD


@kernel
def _end_reason(short, slot, meta, i, follows):
    """What the log will say if the session ends in the state it is now entering."""
    if follows == tcp.TCP_TIME_WAIT:
        return tcp.END_TCP_FIN
    if follows == tcp.TCP_CLOSED or follows == tcp.TCP_UNVERIFIED_RST:
        client = meta[i, m.DIRECTION] == np.int64(short[slot, t.FLAGS]) & image.INITIATOR_UPPER
        return tcp.END_TCP_RST_CLIENT if client else tcp.END_TCP_RST_SERVER
    return tcp.END_NONE


@kernel
def _reuse(state_, batch, slot, i, scale, now):
    """The 5-tuple is used again: the old session ends, the new one is judged by policy as any other."""
    sessions, meta = state_.sessions, batch.meta
    reason = np.int64(sessions.table.short[slot, t.END_REASON])
    from_upper = np.int64(sessions.table.short[slot, t.FLAGS]) & image.INITIATOR_UPPER
    end_session(sessions, slot, reason if reason != tcp.END_NONE else tcp.END_TCP_REUSE, 0, now)
    syn = meta[i, m.TCP_FLAG_BITS] & m.TCP_ACK == 0
    initiator_upper = meta[i, m.DIRECTION] if syn else from_upper
    verdict, fresh = open_flow(state_, meta, i, initiator_upper, now)
    if verdict != FORWARD:
        return verdict
    if syn:
        tcp.open_session(sessions.table.short, sessions.table.small, fresh, meta, i, scale)
    else:
        tcp.reopen_from_syn_ack(sessions.table.short, sessions.table.small, fresh, meta, i, scale)
    if fresh != slot:
        _count(sessions, meta, fresh, i, now)
    return FORWARD


# No session is there --------------------------------------------------------------------------------------


@inlined
def _miss(state_, batch, i, now):
    meta = batch.meta
    if zone_of(state_.policy, meta[i, m.ENDPOINT]) < 0:
        return _ENDPOINT_UNMAPPED  # whatever the store holds for it: no policy speaks of this endpoint
    is_tcp = meta[i, m.PROTOCOL] == m.PROTOCOL_TCP and meta[i, m.ICMP_KIND] != m.ICMP_ERROR
    if is_tcp and meta[i, m.FRAGMENT] != m.LATER_FRAGMENT:
        if tcp.event_of(meta[i, m.TCP_FLAG_BITS]) == tcp.SYN:
            return _open_tcp(state_, batch, i, now)
        if any_refused(state_.sessions, now) and _is_refused_still(state_, meta, i, now):
            return _POLICY_DENY
        verdict = _ask_or_refuse(state_, batch, i, _NON_SYN_TCP, now)
        return _open_midstream(state_, batch, i, now) if verdict == _NON_SYN_TCP else verdict
    if is_tcp:
        return _ask_or_refuse(state_, batch, i, _NON_SYN_TCP, now)
    if meta[i, m.FRAGMENT] == m.LATER_FRAGMENT:
        # The first fragment waits for an answer, or was refused by one: a session is not opened by the rest.
        return _ask_or_refuse(state_, batch, i, _FRAGMENT_UNMATCHED, now)
    if meta[i, m.ICMP_KIND] == m.ICMP_ERROR:
        return _ask_or_refuse(state_, batch, i, _ICMP_ERROR_UNMATCHED, now)
    if meta[i, m.ICMP_KIND] == m.ICMP_REPLY:
        return _ask_or_refuse(state_, batch, i, _ICMP_UNSOLICITED, now)
    return _open_other(state_, batch, i, now)


@inlined
def _open_tcp(state_, batch, i, now):
    """A SYN: policy decides at once, whatever the store may hold of an older connection."""
    sessions, meta = state_.sessions, batch.meta
    parking.clear_missing(sessions, meta, i)
    verdict, slot = open_flow(state_, meta, i, meta[i, m.DIRECTION], now)
    if verdict != FORWARD:
        return verdict
    if any_refused(sessions, now):
        forget_refused(sessions, meta, i)
    tcp.open_session(
        sessions.table.short, sessions.table.small, slot, meta, i, window_scale(batch.data, meta, i)
    )
    _count(sessions, meta, slot, i, now)
    return FORWARD


@kernel
def _is_refused_still(state_, meta, i, now):
    """Whether the flow of packet ``i`` was alive when policy came to refuse it, and policy has not changed its mind.

    Else it may be a newer connection, which the store knows. ``words[ANSWER]``: what both ends are told.
    """
    sessions = state_.sessions
    if not was_refused(sessions, meta, i, now):
        return False
    client_upper = 1 if sessions.words[state.ANSWER] & state.ANSWER_CLIENT_UPPER != 0 else 0
    verdict, _, _ = decide(state_, meta, i, client_upper)
    if verdict != _POLICY_DENY:
        forget_refused(sessions, meta, i)
        return False
    sessions.words[state.ANSWER] |= state.ANSWER_KNOWN
    return True


@kernel
def _open_midstream(state_, batch, i, now):
    """A segment of a connection whose SYN nobody saw and that the store does not know: policy decides, where the
    operator wants that (``tcp-reject-non-syn: no``); its sender counts as the client.

    Only what an open connection sends, ACK or FIN: an RST ends nothing here, and a SYN-ACK would open a flow in the
    direction that policy was not asked about. Strict mode holds nothing: neither end waits for its first answer.
    A refusal is not answered: the packet may be the server's of a connection that its client's next one opens.
    """
    sessions, meta = state_.sessions, batch.meta
    if sessions.words[state.ADMIT_NON_SYN] == 0 or meta[i, m.FRAGMENT] == m.LATER_FRAGMENT:
        return _NON_SYN_TCP
    event = tcp.event_of(meta[i, m.TCP_FLAG_BITS])
    if event != tcp.ACK and event != tcp.FIN:
        return _NON_SYN_TCP
    parking.clear_missing(sessions, meta, i)
    verdict, slot = open_flow(state_, meta, i, meta[i, m.DIRECTION], now)
    if verdict != FORWARD:
        sessions.words[state.ANSWER] = 0
        return verdict
    tcp.open_midstream(sessions.table.short, slot)
    sessions.table.cold[slot, t.WRITTEN] = now  # since then it relearns
    return _hit(state_, batch, slot, i, now)


@inlined
def _open_other(state_, batch, i, now):
    """UDP and the like: what policy allows goes at once and adopts its past when the store answers;
    what policy would refuse may be the answer to an older session, so the store is asked first."""
    sessions, meta = state_.sessions, batch.meta
    pending = parking.find_pending(sessions, meta, i)
    if pending >= 0:
        return parking.park(sessions, pending, batch, i)
    verdict, slot = open_flow(state_, meta, i, meta[i, m.DIRECTION], now)
    if verdict == _POLICY_DENY:
        return _ask_or_refuse(state_, batch, i, verdict, now)
    if verdict != FORWARD:
        return verdict
    _count(sessions, meta, slot, i, now)
    if sessions.words[state.RESILIENCY] != 0 and not parking.known_missing(sessions, meta, i, now):
        parking.ask(sessions, meta, i, now)
    return FORWARD


@kernel
def _ask_or_refuse(state_, batch, i, refusal, now):
    """Park the packet and ask the store about its flow; ``refusal`` when there is nothing to ask."""
    sessions, meta = state_.sessions, batch.meta
    if sessions.words[state.RESILIENCY] == 0 or parking.known_missing(sessions, meta, i, now):
        return refusal
    pending = parking.find_pending(sessions, meta, i)
    if pending < 0:
        verdict, pending = parking.ask(sessions, meta, i, now)
        if verdict != FORWARD:
            return verdict
    return parking.park(sessions, pending, batch, i)


# The store has answered --------------------------------------------------------------------------------------


@kernel
def _answer(state_, rows, k, released, now):
    """Act on reply row ``k``; returns the number of rows in ``sessions.released`` that may be sent."""
    sessions = state_.sessions
    status = rows[k, image.OP]
    if status == image.WRITTEN or status == image.LOST:
        note_answer(sessions, rows[k, image.TAG], now)
        held = written(sessions, rows, k)
        return released if held < 0 else _let_go(state_, held, released, now)
    pending = parking.pending_of_tag(sessions, rows[k, image.TAG])
    if pending < 0:
        sessions.counters[_LATE_REPLIES] += 1
        if status == image.MISSING:
            parking.charge_miss(sessions)  # it cost the store as much as one in time
        return released
    if status == image.FOUND:
        sessions.counters[_LOOKUP_HITS] += 1
        return _settle(state_, pending, rows, k, FORWARD, released, now)
    if status == image.MISSING:
        sessions.counters[_LOOKUP_MISSES] += 1
        parking.charge_miss(sessions)
        return _settle(state_, pending, rows, _NONE, _NON_SYN_TCP, released, now)
    if status == image.REFUSED:
        sessions.counters[_RECORDS_REFUSED] += 1
        return _settle(state_, pending, rows, _NONE, _RESTORE_REFUSED, released, now)
    sessions.counters[_LOOKUP_FAILURES] += 1
    return _settle(state_, pending, rows, _NONE, _STORE_UNAVAILABLE, released, now)


@kernel
def _settle(state_, pending, rows, k, verdict, released, now):
    """End a look-up: restore from row ``k`` (or nothing), then let every parked packet go its way."""
    sessions = state_.sessions
    meta = sessions.arena.meta
    row = parking.close_pending(sessions, pending)
    if k >= 0:
        verdict = restore(state_, rows, k, _wants_ownership(sessions, row), now)
    elif verdict == _NON_SYN_TCP and row >= 0:
        parking.remember_miss(sessions, meta, row, now)
    return _resume_all(state_, row, verdict, released, now)


@kernel
def _let_go(state_, pending, released, now):
    """End what strict mode held: the first packet was judged when it came, those behind it are now."""
    sessions = state_.sessions
    meta = sessions.arena.meta
    row = parking.close_pending(sessions, pending)
    following = sessions.next_row[row]
    slot = t.find_session(sessions.table, meta, row)
    meta[row, m.VERDICT] = FORWARD
    sessions.verdicts[FORWARD] += 1
    sessions.released[released] = row
    if slot >= 0:
        sessions.table.short[slot, t.LOCAL] = np.int64(sessions.table.short[slot, t.LOCAL]) & ~t.HELD
        offload(sessions, slot)
    return _resume_all(state_, following, FORWARD, released + 1, now)


@kernel
def _resume_all(state_, row, verdict, released, now):
    """Let the parked packets of a list, from ``row`` on, go their way; strict mode may hold them once more."""
    sessions = state_.sessions
    meta = sessions.arena.meta
    while row >= 0:
        following = sessions.next_row[row]
        final = _resume(state_, row, verdict, now)
        if final == PARK:
            parking.append(sessions, parking.find_pending(sessions, meta, row), row)
            row = following
            continue
        meta[row, m.VERDICT] = final
        sessions.verdicts[final] += 1
        if final == FORWARD:
            sessions.released[released] = row
            released += 1
        else:
            if final == _POLICY_DENY:
                answer(sessions, sessions.arena, row, now)
            parking.free_row(sessions, row)
        row = following
    return released


@kernel
def _resume(state_, row, verdict, now):
    """The final verdict on a parked packet, after its look-up ended with ``verdict``."""
    sessions = state_.sessions
    arena, meta = sessions.arena, sessions.arena.meta
    slot = t.find_session(sessions.table, meta, row)
    if slot >= 0:
        withdraw(sessions, slot)  # its flow may have gone on while this packet waited
    if slot >= 0 and may_go_on(state_, slot, now):
        final = _carry(state_, arena, slot, row, now)
        if final == PARK:
            return final
        if final != FORWARD:
            parking.remember_miss(sessions, meta, row, now)  # asked in doubt, and the session is as it was
        offload(sessions, slot)
        return final
    if meta[row, m.ICMP_KIND] == m.ICMP_ERROR:
        return _ICMP_ERROR_UNMATCHED if verdict == _NON_SYN_TCP else verdict
    unknown = verdict == _NON_SYN_TCP or verdict == FORWARD
    if meta[row, m.PROTOCOL] == m.PROTOCOL_TCP:
        if verdict == _NON_SYN_TCP:  # the store has never heard of it
            return _open_midstream(state_, arena, row, now)
        return _NON_SYN_TCP if unknown else verdict
    if meta[row, m.ICMP_KIND] == m.ICMP_REPLY:
        return _ICMP_UNSOLICITED if unknown else verdict
    if meta[row, m.FRAGMENT] == m.LATER_FRAGMENT:
        return _FRAGMENT_UNMATCHED if unknown else verdict
    # Not every packet in the list asked: one that policy allows only waited with the others.
    opened, slot = open_flow(state_, meta, row, meta[row, m.DIRECTION], now)
    if opened == FORWARD:
        _count(sessions, meta, slot, row, now)
        return FORWARD
    return opened if unknown else verdict


@kernel
def _wants_ownership(sessions, row):
    """Whether more than ICMP errors wait in a list of parked packets; an empty list adopts."""
    if row < 0:
        return True
    while row >= 0:
        if sessions.arena.meta[row, m.ICMP_KIND] != m.ICMP_ERROR:
            return True
        row = sessions.next_row[row]
    return False


@kernel
def answers(state_, rows, count, now):
    """Act on ``count`` reply rows; returns how many rows of ``sessions.released`` are to be sent."""
    released = 0
    for k in range(count):
        released = _answer(state_, rows, k, released, now)
    return released


# Time passes ---------------------------------------------------------------------------------------------


@kernel
def pass_time(state_, now, released):
    """End look-ups that are overdue and age a slice of the table; returns rows to send as ``answers``."""
    sessions = state_.sessions
    pending = parking.overdue(sessions, now)
    while pending >= 0:
        sessions.counters[_LOOKUP_FAILURES] += 1
        released = _settle(state_, pending, sessions.requests.rows, _NONE, _LOOKUP_TIMEOUT, released, now)
        pending = parking.overdue(sessions, now)
    pending = parking.overdue_hold(sessions, now)
    while pending >= 0:
        sessions.counters[_STRICT_UNACKNOWLEDGED] += 1
        released = _let_go(state_, pending, released, now)
        pending = parking.overdue_hold(sessions, now)
    age(sessions, now)
    resync(sessions, now)
    rematch(state_, now)
    return released


@kernel
def next_timer(state_):
    """When ``pass_time`` wants to be called, ns."""
    if state_.sessions.words[state.REMATCH_LEFT] != 0:
        return np.int64(0)
    return parking.next_deadline(state_.sessions, state_.sessions.words[state.AGEING_DUE])
