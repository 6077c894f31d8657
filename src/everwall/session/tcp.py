"""TCP as a firewall in the middle sees it: a transition table, and the window check.

States are those an operator knows by their time-outs; ``TRANSITIONS`` is data: for each state, who
sent (client or server) and what (SYN, SYN-ACK, FIN, RST, ACK), the state that follows. What is not
listed is dropped as ``tcp-state``. ``RESTART`` means that the packet opens a new connection on the
old tuple.

The window check follows the four bounds of G. van Rooij, "Real Stateful TCP Packet Filtering in IP
Filter" (2001): for each end the highest sequence sent, the highest allowed by its peer, and the
largest window it offered. After a takeover none of these is known: the session *relearns* them from
both directions for a while before it judges again. RST is treated with the care of RFC 5961: only
an exact one ends the session at once, one inside the window is passed on (the receiver will
challenge it), any other is dropped. One that was passed on shortens the life of an established session
until the next segment; the other states live shortly anyway, and must not be taken back.
"""

from __future__ import annotations

import numpy as np

from everwall.kernels import kernel
from everwall.limits import SECOND_NS
from everwall.session import table as t
from everwall.session.image import INITIATOR_UPPER, NO_SCALING, PARTIAL
from everwall.verdict import Verdict
from everwall.wire import meta as m
from everwall.wire.fragment import PACKET_BYTES_MAX

# States, 4 bits in the record ---------------------------------------------------------------------
NONE = 0
TCP_INIT = 1  # SYN seen
TCP_HANDSHAKE = 2  # SYN-ACK seen
TCP_ESTABLISHED = 3
TCP_HALF_CLOSED_CLIENT = 4  # the client has sent FIN
TCP_TIME_WAIT = 5  # both have
TCP_UNVERIFIED_RST = 6  # an RST inside the window, but not exact
UDP = 7
ICMP = 8
OTHER = 9
TCP_CLOSED = 10  # an exact RST
TCP_HALF_CLOSED_SERVER = 11
STATES = 16
_DROP = 14
RESTART = 15

STATE_NAMES = {
    TCP_INIT: "init",
    TCP_HANDSHAKE: "handshake",
    TCP_ESTABLISHED: "established",
    TCP_HALF_CLOSED_CLIENT: "half-closed",
    TCP_HALF_CLOSED_SERVER: "half-closed",
    TCP_TIME_WAIT: "time-wait",
    TCP_UNVERIFIED_RST: "unverified-rst",
    TCP_CLOSED: "closed",
    UDP: "active",
    ICMP: "active",
    OTHER: "active",
}

# Why a session ended, as firewall logs name it -----------------------------------------------------
END_NONE = 0
END_TCP_FIN = 1
END_TCP_RST_CLIENT = 2
END_TCP_RST_SERVER = 3
END_TCP_REUSE = 4
END_AGED_OUT = 5
END_POLICY_DENY = 6
END_NAMES = {
    END_TCP_FIN: "tcp-fin",
    END_TCP_RST_CLIENT: "tcp-rst-from-client",
    END_TCP_RST_SERVER: "tcp-rst-from-server",
    END_TCP_REUSE: "tcp-reuse",
    END_AGED_OUT: "aged-out",
    END_POLICY_DENY: "policy-deny",
}

CLIENT = 0
SERVER = 1

SYN = 0
SYN_ACK = 1
FIN = 2
RST = 3
ACK = 4
EVENTS = 5

# A SYN in the middle of a connection is passed on and changes nothing: a live receiver answers with
# a challenge ACK (RFC 5961 section 4); a receiver that has lost the connection answers SYN-ACK, which
# opens it anew (see ``track``). So is one of another sequence after the first was answered.
TRANSITIONS: dict[int, dict[tuple[int, int], int]] = {
    TCP_INIT: {
        (CLIENT, SYN): TCP_INIT,
        (CLIENT, RST): TCP_CLOSED,
        (SERVER, SYN): TCP_HANDSHAKE,  # simultaneous open, RFC 9293 section 3.5
        (SERVER, SYN_ACK): TCP_HANDSHAKE,
        (SERVER, ACK): TCP_INIT,  # a challenge ACK for an older connection
        (SERVER, RST): TCP_CLOSED,
    },
    TCP_HANDSHAKE: {
        (CLIENT, SYN): TCP_HANDSHAKE,
        (CLIENT, SYN_ACK): TCP_HANDSHAKE,
        (CLIENT, ACK): TCP_ESTABLISHED,
        (CLIENT, FIN): TCP_HALF_CLOSED_CLIENT,
        (CLIENT, RST): TCP_CLOSED,
        (SERVER, SYN): TCP_HANDSHAKE,
        (SERVER, SYN_ACK): TCP_HANDSHAKE,
        (SERVER, ACK): TCP_HANDSHAKE,
        (SERVER, FIN): TCP_HALF_CLOSED_SERVER,
        (SERVER, RST): TCP_CLOSED,
    },
    TCP_ESTABLISHED: {
        (CLIENT, SYN): TCP_ESTABLISHED,
        (CLIENT, ACK): TCP_ESTABLISHED,
        (CLIENT, FIN): TCP_HALF_CLOSED_CLIENT,
        (CLIENT, RST): TCP_CLOSED,
        (SERVER, SYN): TCP_ESTABLISHED,
        (SERVER, SYN_ACK): TCP_ESTABLISHED,
        (SERVER, ACK): TCP_ESTABLISHED,
        (SERVER, FIN): TCP_HALF_CLOSED_SERVER,
        (SERVER, RST): TCP_CLOSED,
    },
    TCP_HALF_CLOSED_CLIENT: {
        (CLIENT, SYN): TCP_HALF_CLOSED_CLIENT,
        (CLIENT, ACK): TCP_HALF_CLOSED_CLIENT,
        (CLIENT, FIN): TCP_HALF_CLOSED_CLIENT,
        (CLIENT, RST): TCP_CLOSED,
        (SERVER, SYN_ACK): TCP_HALF_CLOSED_CLIENT,
        (SERVER, ACK): TCP_HALF_CLOSED_CLIENT,
        (SERVER, FIN): TCP_TIME_WAIT,
        (SERVER, RST): TCP_CLOSED,
    },
    TCP_HALF_CLOSED_SERVER: {
        (CLIENT, SYN): TCP_HALF_CLOSED_SERVER,
        (CLIENT, ACK): TCP_HALF_CLOSED_SERVER,
        (CLIENT, FIN): TCP_TIME_WAIT,
        (CLIENT, RST): TCP_CLOSED,
        (SERVER, SYN_ACK): TCP_HALF_CLOSED_SERVER,
        (SERVER, ACK): TCP_HALF_CLOSED_SERVER,
        (SERVER, FIN): TCP_HALF_CLOSED_SERVER,
        (SERVER, RST): TCP_CLOSED,
    },
    TCP_TIME_WAIT: {
        (CLIENT, SYN): RESTART,
        (CLIENT, ACK): TCP_TIME_WAIT,
        (CLIENT, FIN): TCP_TIME_WAIT,
        (CLIENT, RST): TCP_CLOSED,
        (SERVER, SYN): RESTART,
        (SERVER, ACK): TCP_TIME_WAIT,
        (SERVER, FIN): TCP_TIME_WAIT,
        (SERVER, RST): TCP_CLOSED,
    },
    TCP_UNVERIFIED_RST: {
        (CLIENT, SYN): TCP_UNVERIFIED_RST,
        (CLIENT, ACK): TCP_ESTABLISHED,
        (CLIENT, FIN): TCP_HALF_CLOSED_CLIENT,
        (CLIENT, RST): TCP_CLOSED,
        (SERVER, SYN): TCP_UNVERIFIED_RST,
        (SERVER, SYN_ACK): TCP_UNVERIFIED_RST,
        (SERVER, ACK): TCP_ESTABLISHED,
        (SERVER, FIN): TCP_HALF_CLOSED_SERVER,
        (SERVER, RST): TCP_CLOSED,
    },
    TCP_CLOSED: {
        (CLIENT, SYN): RESTART,
        (CLIENT, RST): TCP_CLOSED,
        (SERVER, SYN): RESTART,
        (SERVER, RST): TCP_CLOSED,
    },
}


def _compile_transitions() -> np.ndarray:
    table = np.full((STATES, 2, EVENTS), _DROP, np.int64)
    for state, rows in TRANSITIONS.items():
        for (who, event), follows in rows.items():
            table[state, who, event] = follows
    return table


_NEXT = _compile_transitions()

RELEARN_NS = 10 * SECOND_NS
"""How long a session that was taken over judges no window; it goes on until both ends were heard."""
_ACK_SLACK = 66_000
"""An acknowledgement may be this far behind (retransmissions, several segments in flight)."""
_SCALE_UNKNOWN = 15
_SCALE_LOOSE = 14

_FORWARD = int(Verdict.FORWARD)
_TCP_STATE = int(Verdict.TCP_STATE)
_TCP_WINDOW = int(Verdict.TCP_WINDOW)
_TCP_RST_WINDOW = int(Verdict.TCP_RST_WINDOW)


@kernel
def event_of(flags):
    """Which event a combination of TCP flags is, or -1 for a segment without ACK that is none."""
    if flags & m.TCP_RST != 0:
        return RST
    if flags & m.TCP_SYN != 0:
        return SYN_ACK if flags & m.TCP_ACK != 0 else SYN
    if flags & m.TCP_ACK == 0:
        return -1
    return FIN if flags & m.TCP_FIN != 0 else ACK


@kernel
def after(a, b):
    """a > b in the arithmetic of sequence numbers (RFC 9293 section 3.4)."""
    return 0 < ((a - b) & 0xFFFFFFFF) < 0x80000000


@kernel
def _segment_end(meta, i):
    flags = meta[i, m.TCP_FLAG_BITS]
    length = meta[i, m.PAYLOAD]
    if flags & m.TCP_SYN != 0:
        length += 1
    if flags & m.TCP_FIN != 0:
        length += 1
    return (meta[i, m.TCP_SEQUENCE] + length) & 0xFFFFFFFF


@kernel
def scale_of(scales, end):
    """The window scale of one end as the record keeps it."""
    return (scales >> (4 * end)) & 15


@kernel
def _shift(short, slot, end):
    """By how many bits the window of one end is scaled; the most there can be where it is not known."""
    scale = scale_of(np.int64(short[slot, t.SCALES]), end)
    return _SCALE_LOOSE if scale == _SCALE_UNKNOWN else scale


@kernel
def _window(short, slot, meta, i, end):
    """The advertised window in bytes; a SYN's is never scaled (RFC 7323 section 2.2)."""
    window = meta[i, m.TCP_WINDOW_FIELD]
    if meta[i, m.TCP_FLAG_BITS] & m.TCP_SYN != 0:
        return window
    return window << _shift(short, slot, end)


@kernel
def widest_window(short, slot, end):
    """The largest window that one end can advertise."""
    return 0xFFFF << _shift(short, slot, end)


@kernel
def _set_scale(short, slot, end, scale):
    """Note the window scale option of a SYN or SYN-ACK; -1 (no option) means no scaling at all."""
    scales = np.int64(short[slot, t.SCALES])
    shift = 4 * end
    short[slot, t.SCALES] = (scales & ~(15 << shift)) | (max(scale, 0) << shift)


@kernel
def _settle_scales(short, slot, scale):
    """Scaling is on only if both SYN and SYN-ACK offer it (RFC 7323 section 2.2)."""
    if scale < 0:
        short[slot, t.SCALES] = 0


@kernel
def open_session(short, small, slot, meta, i, scale):
    """Begin tracking with the SYN of packet ``i``; ``scale`` is its window scale option or -1."""
    end = meta[i, m.DIRECTION]
    short[slot, t.STATE] = TCP_INIT
    short[slot, t.SCALES] = 0
    _set_scale(short, slot, end, scale)
    last = _segment_end(meta, i)
    small[slot, t.SEQUENCE_END + end] = last
    small[slot, t.SEQUENCE_MAX + end] = last
    small[slot, t.WINDOW_MAX + end] = max(meta[i, m.TCP_WINDOW_FIELD], 1)
    short[slot, t.LOCAL] |= t.LEARNED_LOWER << end
    # A client without the option turns scaling off for both; one with it leaves it to the SYN-ACK.
    if scale < 0:
        short[slot, t.FLAGS] |= NO_SCALING


@kernel
def _learn(short, small, slot, meta, i, end, last):
    """Raise what is known of both ends by a packet of ``end`` that was judged good."""
    other = 1 - end
    known = t.LEARNED_LOWER << end
    local = np.int64(short[slot, t.LOCAL])
    if meta[i, m.FRAGMENT] == m.FIRST_FRAGMENT and local & known != 0:
        # The rest of the segment comes without a TCP header: it may reach as far as the peer allows and as a
        # datagram is long. Without the second bound a peer's wide window would leave honest segments behind it.
        reach = np.int64(small[slot, t.SEQUENCE_MAX + end])
        longest = (meta[i, m.TCP_SEQUENCE] + PACKET_BYTES_MAX) & 0xFFFFFFFF
        reach = longest if after(reach, longest) else reach
        last = reach if after(reach, last) else last
    if local & known == 0 or after(last, np.int64(small[slot, t.SEQUENCE_END + end])):
        small[slot, t.SEQUENCE_END + end] = last
    if local & known == 0:
        small[slot, t.SEQUENCE_MAX + end] = last
        local |= known
        short[slot, t.LOCAL] = local
    window = _window(short, slot, meta, i, end)
    if window > np.int64(small[slot, t.WINDOW_MAX + end]):
        small[slot, t.WINDOW_MAX + end] = min(window, 0xFFFFFFFF)
    if meta[i, m.TCP_FLAG_BITS] & m.TCP_ACK != 0:
        acknowledged = meta[i, m.TCP_ACKNOWLEDGEMENT]
        allowed = (acknowledged + max(window, 1)) & 0xFFFFFFFF
        if local & (t.LEARNED_LOWER << other) == 0:
            if local & t.RELEARNING == 0:
                return
            # What is acknowledged was sent: the other end is known before it is heard.
            small[slot, t.SEQUENCE_END + other] = acknowledged
            small[slot, t.SEQUENCE_MAX + other] = allowed
            short[slot, t.LOCAL] = local | (t.LEARNED_LOWER << other)
            return
        if after(allowed, np.int64(small[slot, t.SEQUENCE_MAX + other])):
            small[slot, t.SEQUENCE_MAX + other] = allowed
        if local & t.RELEARNING != 0 and after(acknowledged, np.int64(small[slot, t.SEQUENCE_END + other])):
            small[slot, t.SEQUENCE_END + other] = acknowledged


@kernel
def _learn_anew(short, small, slot, meta, i, end, last):
    """Believe packet ``i`` instead of what was learnt before, which it contradicts.

    While a session relearns, one of the two may be an intruder's; who speaks last and is not contradicted
    again stays.
    """
    other = 1 - end
    small[slot, t.SEQUENCE_END + end] = last
    small[slot, t.SEQUENCE_MAX + end] = (last + np.int64(small[slot, t.WINDOW_MAX + other])) & 0xFFFFFFFF
    window = _window(short, slot, meta, i, end)
    if window > np.int64(small[slot, t.WINDOW_MAX + end]):
        small[slot, t.WINDOW_MAX + end] = min(window, 0xFFFFFFFF)
    acknowledged = meta[i, m.TCP_ACKNOWLEDGEMENT]
    small[slot, t.SEQUENCE_END + other] = acknowledged
    small[slot, t.SEQUENCE_MAX + other] = (acknowledged + max(window, 1)) & 0xFFFFFFFF


@kernel
def fits(short, small, slot, meta, i):
    """Whether a segment lies where both ends, as far as they are known, let it; SYN and RST prove nothing."""
    both = t.LEARNED_LOWER | t.LEARNED_UPPER
    if np.int64(short[slot, t.LOCAL]) & both != both or not windows_known(small, slot):
        return False
    if meta[i, m.TCP_FLAG_BITS] & (m.TCP_SYN | m.TCP_RST) != 0:
        return False
    return _in_window(small, slot, meta, i, meta[i, m.DIRECTION], _segment_end(meta, i))


@kernel
def _in_window(small, slot, meta, i, end, last):
    """The four bounds; both ends are known."""
    other = 1 - end
    sequence = meta[i, m.TCP_SEQUENCE]
    sent = np.int64(small[slot, t.SEQUENCE_END + end])
    allowed = np.int64(small[slot, t.SEQUENCE_MAX + end])
    offered = max(np.int64(small[slot, t.WINDOW_MAX + other]), 1)
    if after(sequence, allowed + 1):
        return False
    if after(sent - offered, last):
        return False
    if meta[i, m.TCP_FLAG_BITS] & m.TCP_ACK != 0:
        acknowledged = meta[i, m.TCP_ACKNOWLEDGEMENT]
        peer_sent = np.int64(small[slot, t.SEQUENCE_END + other])
        if after(acknowledged, peer_sent):
            return False
        slack = max(_ACK_SLACK, np.int64(small[slot, t.WINDOW_MAX + end]))
        if after(peer_sent - slack, acknowledged):
            return False
    return True


@kernel
def _judge_rst(short, small, slot, meta, i, end, who):
    """The state that an RST leads to: closed, unverified, or ``_DROP`` outside the window."""
    state = np.int64(short[slot, t.STATE])
    local = np.int64(short[slot, t.LOCAL])
    sequence = meta[i, m.TCP_SEQUENCE]
    other = 1 - end
    if state == TCP_CLOSED:
        return TCP_CLOSED
    if state == TCP_INIT and who == SERVER:
        # The refusal of a connection has sequence 0 and acknowledges the SYN (RFC 9293 section
        # 3.10.7.1); after a takeover the SYN's sequence is not known any more.
        refused = meta[i, m.TCP_ACKNOWLEDGEMENT] == np.int64(small[slot, t.SEQUENCE_END + other])
        return TCP_CLOSED if refused or local & t.RELEARNING != 0 else _DROP
    if local & (t.LEARNED_LOWER << end) == 0:
        return TCP_UNVERIFIED_RST
    sent = np.int64(small[slot, t.SEQUENCE_END + end])
    if sequence == sent:
        return TCP_CLOSED
    if local & t.RELEARNING != 0:
        return TCP_UNVERIFIED_RST
    offered = max(np.int64(small[slot, t.WINDOW_MAX + other]), 1)
    allowed = np.int64(small[slot, t.SEQUENCE_MAX + end])
    if after(sequence, allowed) or after(sent - offered, sequence):
        return _DROP
    return TCP_UNVERIFIED_RST


@kernel
def windows_known(small, slot):
    """Whether both ends have offered a window; one that was only acknowledged has not, and none can be judged by it."""
    return small[slot, t.WINDOW_MAX] != 0 and small[slot, t.WINDOW_MAX + 1] != 0


@kernel
def end_relearning(short, slot, now, taken_over):
    """Judge windows again once both ends were heard and the time for learning is over."""
    local = np.int64(short[slot, t.LOCAL])
    both = t.LEARNED_LOWER | t.LEARNED_UPPER
    if local & both == both and now - taken_over > RELEARN_NS:
        short[slot, t.LOCAL] = local & ~t.RELEARNING


@kernel
def track(short, small, slot, meta, i, scale):
    """Judge packet ``i`` against its session: (verdict, next state), RESTART for a new connection.

    ``scale``: window scale option of a SYN or SYN-ACK, -1 without. What the packet teaches is noted
    only when it is good; the state itself is left to the caller, who has to act on its change.
    """
    end = meta[i, m.DIRECTION]
    flags = np.int64(short[slot, t.FLAGS])
    local = np.int64(short[slot, t.LOCAL])
    state = np.int64(short[slot, t.STATE])
    who = CLIENT if end == (flags & INITIATOR_UPPER) else SERVER
    event = event_of(meta[i, m.TCP_FLAG_BITS])
    if event < 0:
        return _TCP_STATE, state
    follows = _NEXT[state, who, event]
    if follows == _DROP:
        return _TCP_STATE, state
    if follows == RESTART:
        return _FORWARD, RESTART
    if event == RST:
        follows = _judge_rst(short, small, slot, meta, i, end, who)
        if follows == _DROP:
            return _TCP_RST_WINDOW, state
        if follows == TCP_UNVERIFIED_RST and state != TCP_ESTABLISHED:
            return _FORWARD, state
        return _FORWARD, follows
    last = _segment_end(meta, i)
    opening = state == TCP_INIT or state == TCP_HANDSHAKE
    # The answer to its first SYN may have been lost, and all that the client did afterwards seen by another node.
    judged = local & (t.LEARNED_LOWER << end) != 0 and local & t.RELEARNING == 0
    anew = state == TCP_HANDSHAKE and judged and last != np.int64(small[slot, t.SEQUENCE_END + end])
    if event == SYN and (not opening or (who == CLIENT and anew)):
        small[slot, t.SYN_NEXT] = last
        short[slot, t.LOCAL] = local | t.SYN_PENDING
        return _FORWARD, state
    if event == SYN_ACK and local & t.SYN_PENDING != 0 and (who == SERVER or not opening):
        if meta[i, m.TCP_ACKNOWLEDGEMENT] == np.int64(small[slot, t.SYN_NEXT]):
            return _FORWARD, RESTART
    if event == SYN_ACK and not opening:
        return _FORWARD, state
    if event == SYN and who == CLIENT and state == TCP_INIT:
        # A retransmitted SYN may carry a new sequence (the client gave up and tries the same port).
        flags_kept = np.int64(short[slot, t.FLAGS]) & ~NO_SCALING
        short[slot, t.FLAGS] = flags_kept
        open_session(short, small, slot, meta, i, scale)
        return _FORWARD, TCP_INIT
    if (event == SYN_ACK or event == SYN) and who == SERVER and local & (t.LEARNED_LOWER << end) == 0:
        expected = np.int64(small[slot, t.SEQUENCE_END + 1 - end])
        learned = local & (t.LEARNED_LOWER << (1 - end)) != 0
        if event == SYN_ACK and learned and meta[i, m.TCP_ACKNOWLEDGEMENT] != expected:
            return _TCP_WINDOW, state
        if flags & NO_SCALING != 0 or scale < 0:
            _settle_scales(short, slot, -1)
        else:
            _set_scale(short, slot, end, scale)
        _learn(short, small, slot, meta, i, end, last)
        return _FORWARD, follows
    if state == TCP_INIT:
        return _FORWARD, follows  # a challenge ACK: nothing to learn from an older connection
    both = t.LEARNED_LOWER | t.LEARNED_UPPER
    if local & both == both and not _in_window(small, slot, meta, i, end, last):
        if local & t.RELEARNING == 0:
            return _TCP_WINDOW, state
        if windows_known(small, slot):
            _learn_anew(short, small, slot, meta, i, end, last)
            return _FORWARD, follows
    _learn(short, small, slot, meta, i, end, last)
    return _FORWARD, follows


@kernel
def open_midstream(short, slot):
    """Begin tracking with a segment of an open connection: nothing is known but that it is one, as after a takeover.

    One step before established, so that its packet makes it so, and is stored for it.
    """
    short[slot, t.STATE] = TCP_HANDSHAKE
    short[slot, t.SCALES] = _SCALE_UNKNOWN | _SCALE_UNKNOWN << 4
    short[slot, t.FLAGS] |= PARTIAL
    short[slot, t.LOCAL] |= t.RELEARNING


@kernel
def reopen_from_syn_ack(short, small, slot, meta, i, scale):
    """Go on as a connection whose SYN was passed on unlearnt and whose SYN-ACK is packet ``i``.

    The SYN's window and scale were not kept, so both are taken loosely.
    """
    end = meta[i, m.DIRECTION]
    other = 1 - end
    client_next = meta[i, m.TCP_ACKNOWLEDGEMENT]
    last = _segment_end(meta, i)
    short[slot, t.STATE] = TCP_HANDSHAKE
    scales = _SCALE_UNKNOWN << (4 * other)
    short[slot, t.SCALES] = scales | (max(scale, 0) << (4 * end)) if scale >= 0 else 0
    small[slot, t.SEQUENCE_END + other] = client_next
    small[slot, t.SEQUENCE_MAX + other] = (client_next + max(meta[i, m.TCP_WINDOW_FIELD], 1)) & 0xFFFFFFFF
    small[slot, t.WINDOW_MAX + other] = 0xFFFF
    small[slot, t.SEQUENCE_END + end] = last
    small[slot, t.SEQUENCE_MAX + end] = last
    small[slot, t.WINDOW_MAX + end] = max(meta[i, m.TCP_WINDOW_FIELD], 1)
    short[slot, t.LOCAL] |= t.LEARNED_LOWER | t.LEARNED_UPPER
