"""A refused packet is answered, where the rule that refuses it says so: packets that the firewall makes itself.

They leave by the tunnel of the packet that they are about, behind a copy of its GENEVE header, so that endpoint, flow
cookie and outer source port are those of the flow: the load balancer takes them as any other return, and from its
endpoint on they go where they are addressed to, back or onward. Nothing is answered that is an answer itself, and no
more than ANSWERS_PER_S packets are made in a second.
"""

from __future__ import annotations

from everwall.counters import Counter
from everwall.kernels import kernel
from everwall.limits import HEADROOM_BYTES
from everwall.policy.match import (
    ANSWER_RESET_CLIENT,
    ANSWER_RESET_SERVER,
    ANSWER_UNREACHABLE,
    ANSWER_UNREACHABLE_TCP,
)
from everwall.session import state
from everwall.session.tokens import take_token
from everwall.verdict import Verdict
from everwall.wire import meta as m
from everwall.wire.answer import may_be_answered, write_reset, write_unreachable

_FORWARD = int(Verdict.FORWARD)
_RESETS = int(Counter.RESETS)
_UNREACHABLES = int(Counter.UNREACHABLES)
_ANSWERS_HELD_BACK = int(Counter.ANSWERS_HELD_BACK)

_NONE = -1


@kernel
def answer(sessions, batch, i, now):
    """Make what ``words[ANSWER]`` wants the ends of refused packet ``i`` to be told.

    To the sender always; to the receiver only of a connection that it knows, for nothing of a new one came to it.
    """
    meta = batch.meta
    wanted = sessions.words[state.ANSWER]
    if wanted & state.ANSWER_MASK == 0 or not may_be_answered(meta, i):
        return
    from_upper = 1 if wanted & state.ANSWER_CLIENT_UPPER != 0 else 0
    from_client = meta[i, m.DIRECTION] == from_upper
    if meta[i, m.PROTOCOL] != m.PROTOCOL_TCP:
        if wanted & ANSWER_UNREACHABLE != 0 and from_client:
            _unreachable(sessions, batch, i, now)
        return
    if wanted & (ANSWER_RESET_CLIENT if from_client else ANSWER_RESET_SERVER) != 0:
        _reset(sessions, batch, i, False, now)
    other = ANSWER_RESET_SERVER if from_client else ANSWER_RESET_CLIENT
    if wanted & other != 0 and wanted & state.ANSWER_KNOWN != 0:
        _reset(sessions, batch, i, True, now)
    if wanted & ANSWER_UNREACHABLE_TCP != 0 and from_client:
        _unreachable(sessions, batch, i, now)


@kernel
def _reset(sessions, batch, i, onward, now):
    row = _begin(sessions, batch, i, now)
    if row >= 0:
        made = sessions.made
        made.meta[row, m.END] = write_reset(made.data, row, made.meta[row, m.INNER], batch.meta, i, onward)
        sessions.counters[_RESETS] += 1


@kernel
def _unreachable(sessions, batch, i, now):
    row = _begin(sessions, batch, i, now)
    if row >= 0:
        made = sessions.made
        made.meta[row, m.END] = write_unreachable(
            made.data, row, made.meta[row, m.INNER], batch.data, batch.meta, i
        )
        sessions.counters[_UNREACHABLES] += 1


@kernel
def _begin(sessions, batch, i, now):
    """A row of ``made`` for an answer to packet ``i``, its tunnel written; -1 where there may be no more of them."""
    words, made, meta = sessions.words, sessions.made, batch.meta
    row = words[state.MADE]
    if row >= made.meta.shape[0] or not take_token(words, state.MADE_TOKENS, words[state.MADE_BUDGET], now):
        sessions.counters[_ANSWERS_HELD_BACK] += 1
        return _NONE
    words[state.MADE] = row + 1
    for column in range(m.COLUMNS):
        made.meta[row, column] = 0
    for column in (m.PEER_ADDRESS, m.PEER_PORT, m.LOCAL_ADDRESS, m.PEER_MAC, m.BARE, m.ENDPOINT):
        made.meta[row, column] = meta[i, column]
    header = meta[i, m.INNER] - meta[i, m.START]
    for k in range(header):
        made.data[row, HEADROOM_BYTES + k] = batch.data[i, meta[i, m.START] + k]
    made.meta[row, m.START] = HEADROOM_BYTES
    made.meta[row, m.INNER] = HEADROOM_BYTES + header
    made.meta[row, m.SESSION] = _NONE
    made.meta[row, m.VERDICT] = _FORWARD
    return row
