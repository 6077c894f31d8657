"""New sessions: policy decides once, when a flow is opened or taken over."""

from __future__ import annotations

import numpy as np

from everwall.counters import Counter
from everwall.kernels import inlined, kernel
from everwall.limits import MS_NS
from everwall.modes import STRICT
from everwall.policy.match import (
    ACTION_ALLOW,
    RULE_ACTION,
    RULE_ANSWER,
    RULE_ID,
    RULE_LOG_END,
    RULE_LOG_START,
    RULE_MODE,
    match,
    zone_of,
)
from everwall.session import image, state, tcp
from everwall.session import table as t
from everwall.session.tokens import take_token
from everwall.session.writer import begin_row, event_slot, protocol_of, publish_event, report
from everwall.verdict import Verdict
from everwall.wire import meta as m

_FORWARD = int(Verdict.FORWARD)
_ENDPOINT_UNMAPPED = int(Verdict.ENDPOINT_UNMAPPED)
_POLICY_DENY = int(Verdict.POLICY_DENY)
_TABLE_FULL = int(Verdict.TABLE_FULL)
_SESSION_LIMIT = int(Verdict.SESSION_LIMIT)

_SESSIONS = int(Counter.SESSIONS)
_SESSIONS_CREATED = int(Counter.SESSIONS_CREATED)
_REFUSALS_UNLOGGED = int(Counter.REFUSALS_UNLOGGED)

_NONE = -1


@inlined
def decide(state_, meta, i, initiator_upper):
    """(verdict of today's policy, rule row, zone index) for the flow of a packet; words[ANSWER] of a refusal."""
    policy = state_.policy
    zone = zone_of(policy, meta[i, m.ENDPOINT])
    if zone < 0:
        return _ENDPOINT_UNMAPPED, 0, 0
    forward = meta[i, m.DIRECTION] == initiator_upper
    row = match(
        policy,
        zone,
        zone,
        meta[i, m.FAMILY],
        meta[i, m.SOURCE_HIGH if forward else m.DESTINATION_HIGH],
        meta[i, m.SOURCE_LOW if forward else m.DESTINATION_LOW],
        meta[i, m.DESTINATION_HIGH if forward else m.SOURCE_HIGH],
        meta[i, m.DESTINATION_LOW if forward else m.SOURCE_LOW],
        meta[i, m.PROTOCOL],
        meta[i, m.SOURCE_PORT if forward else m.DESTINATION_PORT],
        meta[i, m.DESTINATION_PORT if forward else m.SOURCE_PORT],
        0,
    )
    if policy.rules[row, RULE_ACTION] != ACTION_ALLOW:
        client = state.ANSWER_CLIENT_UPPER if initiator_upper != 0 else 0
        state_.sessions.words[state.ANSWER] = policy.rules[row, RULE_ANSWER] | client
        return _POLICY_DENY, row, zone
    return _FORWARD, row, zone


@inlined
def open_flow(state_, meta, i, initiator_upper, now):
    """A new session for the flow of packet ``i``, if policy allows it: (verdict, slot)."""
    sessions = state_.sessions
    verdict, row, zone = decide(state_, meta, i, initiator_upper)
    if verdict != _FORWARD:
        if verdict == _POLICY_DENY:
            _log_refusal(state_, meta, i, row, zone, initiator_upper, now)
        return verdict, _NONE
    verdict, slot = add(sessions, meta, i, now)
    if verdict != _FORWARD:
        return verdict, _NONE
    short, cold = sessions.table.short, sessions.table.cold
    short[slot, t.STATE] = _state_without_states(meta[i, m.PROTOCOL])
    short[slot, t.FLAGS] = initiator_upper
    apply_rule(state_, slot, row, zone)
    if state_.policy.rules[row, RULE_MODE] == STRICT:
        short[slot, t.LOCAL] = np.int64(short[slot, t.LOCAL]) | t.UNACKNOWLEDGED
    cold[slot, t.START] = (now + sessions.clock[state.CLOCK_OFFSET]) // MS_NS
    sessions.counters[_SESSIONS_CREATED] += 1
    if state_.policy.rules[row, RULE_LOG_START] != 0:
        report(sessions, slot, state.EVENT_STARTED, tcp.END_NONE, 0, now)
    return _FORWARD, slot


@kernel
def _log_refusal(state_, meta, i, row, zone, initiator_upper, now):
    """A line for the log about a first packet that the rule in ``row`` refuses, if that rule logs at all."""
    sessions, rules = state_.sessions, state_.policy.rules
    if rules[row, RULE_LOG_START] | rules[row, RULE_LOG_END] == 0:
        return
    words = sessions.words
    if not take_token(words, state.LOG_TOKENS, words[state.LOG_BUDGET], now):
        sessions.counters[_REFUSALS_UNLOGGED] += 1
        return
    event = event_slot(sessions)
    if event < 0:
        return
    rows = sessions.events.rows
    begin_row(rows, event, meta, i)
    rows[event, image.FLAGS] = initiator_upper
    rows[event, image.FROM_ZONE] = rows[event, image.TO_ZONE] = state_.policy.zones[zone]
    rows[event, image.RULE] = rules[row, RULE_ID]
    rows[event, image.START] = (now + sessions.clock[state.CLOCK_OFFSET]) // MS_NS
    rows[event, image.PACKETS] = 1
    rows[event, image.BYTES] = meta[i, m.INNER_END] - meta[i, m.INNER]
    publish_event(sessions, event, state.EVENT_REFUSED, tcp.END_POLICY_DENY, rules[row, RULE_ID], now)


@inlined
def add(sessions, meta, i, now):
    if sessions.counters[_SESSIONS] + sessions.words[state.ELSEWHERE] >= sessions.words[state.MAX_SESSIONS]:
        return _SESSION_LIMIT, _NONE
    slot = t.add_session(sessions.table, meta, i)
    if slot < 0:
        return _TABLE_FULL, _NONE
    sessions.table.cold[slot, t.LAST_SEEN] = now
    sessions.table.cold[slot, t.ID] = sessions.words[state.NEXT_ID]
    sessions.words[state.NEXT_ID] += sessions.words[state.ID_STEP]
    sessions.counters[_SESSIONS] += 1
    return _FORWARD, slot


@inlined
def apply_rule(state_, slot, row, zone):
    """What a session has of the rule in ``row``, which allows it."""
    short, small = state_.sessions.table.short, state_.sessions.table.small
    local = np.int64(short[slot, t.LOCAL]) & ~t.UNLOGGED
    short[slot, t.LOCAL] = local if state_.policy.rules[row, RULE_LOG_END] != 0 else local | t.UNLOGGED
    short[slot, t.FROM_ZONE] = state_.policy.zones[zone]
    short[slot, t.TO_ZONE] = state_.policy.zones[zone]
    small[slot, t.RULE] = state_.policy.rules[row, RULE_ID]
    short[slot, t.MODE] = state_.policy.rules[row, RULE_MODE]


@kernel
def describe_flow(scratch, endpoint, key2, lower_high, lower_low, upper_high, upper_low):
    """A flow by its key and addresses as the descriptor of a packet from its lower to its upper end, without hash."""
    scratch[0, m.ENDPOINT] = endpoint
    scratch[0, m.FAMILY] = key2 >> 40
    scratch[0, m.PROTOCOL] = protocol_of(key2)
    scratch[0, m.SOURCE_HIGH] = lower_high
    scratch[0, m.SOURCE_LOW] = lower_low
    scratch[0, m.DESTINATION_HIGH] = upper_high
    scratch[0, m.DESTINATION_LOW] = upper_low
    scratch[0, m.SOURCE_PORT] = key2 & 0xFFFF
    scratch[0, m.DESTINATION_PORT] = (key2 >> 16) & 0xFFFF
    scratch[0, m.DIRECTION] = 0


@inlined
def _state_without_states(protocol):
    """The state of a flow that is not TCP; a TCP session gets its own right after."""
    if protocol == m.PROTOCOL_UDP:
        return tcp.UDP
    if protocol == m.PROTOCOL_ICMP or protocol == m.PROTOCOL_ICMPV6:
        return tcp.ICMP
    return tcp.OTHER
