"""Live sessions under another policy: each is asked about once more, by a hand that passes over the table.

A session that the policy refuses now ends with the reason ``policy-deny``: it is logged, withdrawn from the
cut-through and its record deleted. One that it allows gets the rule that allows it now, and is not touched otherwise:
what is offloaded stays so. Ends that the rule wants to be told hear it in answer to their next packet
(``session.refused``). The hand looks at a few sessions in each pass of the loop, beside the packets, so that it
holds nobody up.

A packet that comes here, of a session that the hand has not passed yet, has it asked about there and then. What the
cut-through carries goes on until the hand comes by.
"""

from __future__ import annotations

import numpy as np

from everwall.counters import Counter
from everwall.flow import make_key
from everwall.kernels import inlined, kernel
from everwall.limits import REMATCH_SESSIONS, REMATCH_SLOTS
from everwall.opening import apply_rule, decide, describe_flow
from everwall.policy.match import RULE_ID, RULE_LOG_END
from everwall.session import image, state, tcp
from everwall.session import table as t
from everwall.session.ageing import end_session
from everwall.session.refused import remember_refused
from everwall.session.writer import is_due, protocol_of, worth_storing
from everwall.verdict import Verdict
from everwall.wire.meta import PROTOCOL_TCP

_FORWARD = int(Verdict.FORWARD)
_POLICY_DENY = int(Verdict.POLICY_DENY)
_SESSIONS_RULED_OUT = int(Counter.SESSIONS_RULED_OUT)


@kernel
def begin_rematch(sessions):
    """Send the hand over the whole table, from its first slot."""
    sessions.words[state.REMATCH_LEFT] = sessions.table.tags.shape[0]


@kernel
def rematch(state_, now):
    """Move the hand by at most REMATCH_SESSIONS sessions, if it is on its way."""
    sessions = state_.sessions
    left = sessions.words[state.REMATCH_LEFT]
    if left == 0:
        return
    slots = sessions.table.tags.shape[0]
    end = max(left - REMATCH_SLOTS, 0)
    asked = 0
    while left > end and asked < REMATCH_SESSIONS:
        slot = slots - left
        if sessions.table.tags[slot] != 0:
            _ask_again(state_, slot, now)
            asked += 1
        left -= 1
    sessions.words[state.REMATCH_LEFT] = left


@inlined
def may_go_on(state_, slot, now):
    """Whether a session is still one of today's policy; it is asked about where the hand has not come by yet, and ended
    where it is refused."""
    left = state_.sessions.words[state.REMATCH_LEFT]
    return left == 0 or slot < state_.sessions.table.tags.shape[0] - left or _ask_again(state_, slot, now)


@kernel
def _ask_again(state_, slot, now):
    """Whether the policy allows a session; it has the rule that does, or has ended."""
    sessions = state_.sessions
    short = sessions.table.short
    _flow_of_slot(sessions, slot)
    initiator_upper = np.int64(short[slot, t.FLAGS]) & image.INITIATOR_UPPER
    verdict, row, zone = decide(state_, sessions.scratch, 0, initiator_upper)
    if verdict != _FORWARD:
        _rule_out(state_, slot, row if verdict == _POLICY_DENY else -1, now)
        return False
    was_due = is_due(sessions, slot, now)
    apply_rule(state_, slot, row, zone)
    if not was_due and is_due(sessions, slot, now) and worth_storing(sessions, slot):
        short[slot, t.LOCAL] = np.int64(short[slot, t.LOCAL]) | t.DIRTY  # the ageing hand writes it
    return True


@kernel
def _rule_out(state_, slot, row, now):
    """End a session that policy row ``row`` refuses, -1 when its endpoint has no zone any more; ``scratch`` has its
    flow."""
    sessions = state_.sessions
    reason = np.int64(sessions.table.short[slot, t.END_REASON])
    refused_by = 0
    if reason == tcp.END_NONE:
        reason = tcp.END_POLICY_DENY
        if row >= 0:
            refused_by = state_.policy.rules[row, RULE_ID]
            if state_.policy.rules[row, RULE_LOG_END] != 0:
                short = sessions.table.short
                short[slot, t.LOCAL] = np.int64(short[slot, t.LOCAL]) & ~t.UNLOGGED
            is_tcp = protocol_of(sessions.table.hot[slot, t.KEY2]) == PROTOCOL_TCP
            if is_tcp and sessions.words[state.ANSWER] & state.ANSWER_MASK != 0:
                make_key(sessions.scratch, 0, sessions.words[state.SEED])
                remember_refused(sessions, sessions.scratch, 0, now)
    end_session(sessions, slot, reason, refused_by, now)
    sessions.counters[_SESSIONS_RULED_OUT] += 1


@kernel
def _flow_of_slot(sessions, slot):
    """What policy asks of a session, in ``scratch``."""
    hot = sessions.table.hot
    lower_high, lower_low, upper_high, upper_low = t.ends_of(sessions.table, slot)
    describe_flow(
        sessions.scratch,
        hot[slot, t.KEY0],
        hot[slot, t.KEY2],
        lower_high,
        lower_low,
        upper_high,
        upper_low,
    )
