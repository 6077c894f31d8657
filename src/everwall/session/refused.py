"""Connections that were alive when a new policy refused them: whoever goes on with one is told.

Nobody can reset a connection out of the blue: the numbers of one that the cut-through carries are known roughly, and
the header of the tunnel that leads to its ends not at all. The next packet of either end has all of it. So a flow that
ended by policy is remembered here for as long as its ends may still speak. One row for each hash: a flow that comes
later takes the place of another, whose packets are then dropped as strays.
"""

from __future__ import annotations

from everwall.kernels import inlined, kernel
from everwall.limits import REFUSED_NS
from everwall.session import state
from everwall.session import table as t
from everwall.wire import meta as m


@kernel
def _row(sessions, hashed):
    return (hashed >> 17) & (sessions.refused.shape[0] - 1)


@kernel
def _holds(sessions, row, meta, i):
    return (
        sessions.refused[row, t.KEY0] == meta[i, m.KEY0]
        and sessions.refused[row, t.KEY1] == meta[i, m.KEY1]
        and sessions.refused[row, t.KEY2] == meta[i, m.KEY2]
    )


@kernel
def remember_refused(sessions, meta, i, now):
    """The flow of descriptor ``i`` was refused a moment ago; ``words[ANSWER]`` says who is its client."""
    row = _row(sessions, meta[i, m.HASH])
    sessions.refused[row, t.KEY0] = meta[i, m.KEY0]
    sessions.refused[row, t.KEY1] = meta[i, m.KEY1]
    sessions.refused[row, t.KEY2] = meta[i, m.KEY2]
    sessions.refused[row, state.REFUSED_EXPIRY] = now + REFUSED_NS
    sessions.refused[row, state.REFUSED_ANSWER] = sessions.words[state.ANSWER]
    sessions.words[state.REFUSED_UNTIL] = now + REFUSED_NS


@inlined
def any_refused(sessions, now):
    """Whether a look is worth it."""
    return sessions.words[state.REFUSED_UNTIL] > now


@kernel
def was_refused(sessions, meta, i, now):
    """Whether the flow of packet ``i`` was refused while it was alive; ``words[ANSWER]`` is then what it was."""
    row = _row(sessions, meta[i, m.HASH])
    if sessions.refused[row, state.REFUSED_EXPIRY] <= now or not _holds(sessions, row, meta, i):
        return False
    sessions.words[state.ANSWER] = sessions.refused[row, state.REFUSED_ANSWER]
    return True


@kernel
def forget_refused(sessions, meta, i):
    """The ports are used again, by a connection that is allowed."""
    row = _row(sessions, meta[i, m.HASH])
    if _holds(sessions, row, meta, i):
        sessions.refused[row, state.REFUSED_EXPIRY] = 0
