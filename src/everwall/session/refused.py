"""Connections that were alive when a new policy refused them: whoever goes on with one is told.

Nobody can reset a connection out of the blue: the numbers of one that the cut-through carries are known roughly, and
the header of the tunnel that leads to its ends not at all. The next packet of either end has all of it. So a flow that
ended by policy is remembered here for as long as its ends may still speak (``session.remembered``). Packets of one
whose place a later flow has taken are dropped as strays.
"""

from __future__ import annotations

from everwall.kernels import inlined, kernel
from everwall.limits import REFUSED_NS
from everwall.session import state
from everwall.session.remembered import forget_flow, recall, remember


@kernel
def remember_refused(sessions, meta, i, now):
    """The flow of descriptor ``i`` was refused a moment ago; ``words[ANSWER]`` says who is its client."""
    row = remember(sessions.refused, meta, i, now + REFUSED_NS)
    sessions.refused[row, state.REFUSED_ANSWER] = sessions.words[state.ANSWER]
    sessions.words[state.REFUSED_UNTIL] = now + REFUSED_NS


@inlined
def any_refused(sessions, now):
    """Whether a look is worth it."""
    return sessions.words[state.REFUSED_UNTIL] > now


@kernel
def was_refused(sessions, meta, i, now):
    """Whether the flow of packet ``i`` was refused while it was alive; ``words[ANSWER]`` is then what it was."""
    row = recall(sessions.refused, meta, i, now)
    if row < 0:
        return False
    sessions.words[state.ANSWER] = sessions.refused[row, state.REFUSED_ANSWER]
    return True


@kernel
def forget_refused(sessions, meta, i):
    """The ports are used again, by a connection that is allowed."""
    forget_flow(sessions.refused, meta, i)
