"""When a store lacks what it was told although the connection to it was never lost.

A connection that is made anew has all live sessions offered again (``session/resync.py``). So have to be

* what the server refused, out of memory for instance: after a pause, which grows while it goes on refusing;
* everything, once the server's clock was set by far: the expiries of all records are in another time then.

And a thread that stood still comes back to requests that were nobody else's when they were queued: their
sessions may have been taken over meanwhile, and every write of them has to be compared.
"""

from __future__ import annotations

from everwall.limits import (
    CLOCK_STEP_NS_MAX,
    LOOP_GAP_NS_MAX,
    REFUSAL_PAUSE_MAX_S,
    REFUSAL_PAUSE_MIN_S,
    SECOND_NS,
)

_PAUSE_MIN_NS = int(REFUSAL_PAUSE_MIN_S * SECOND_NS)
_PAUSE_MAX_NS = int(REFUSAL_PAUSE_MAX_S * SECOND_NS)


class Refusals:
    """Watches how many writes a server has refused, and says when to offer it all sessions again."""

    def __init__(self) -> None:
        self._seen = 0
        self._due_ns: int | None = None
        self._offered_ns = 0
        self._pause_ns = _PAUSE_MIN_NS

    @property
    def pending(self) -> bool:
        """Whether something was refused that was not offered again yet."""
        return self._due_ns is not None

    def note(self, refused: int, now_ns: int) -> None:
        """``refused``: writes refused in all."""
        if refused == self._seen:
            return
        self._seen = refused
        if self._due_ns is None:
            if now_ns - self._offered_ns > 2 * self._pause_ns:
                self._pause_ns = _PAUSE_MIN_NS  # a while ago all was well
            self._due_ns = now_ns + self._pause_ns
            self._pause_ns = min(2 * self._pause_ns, _PAUSE_MAX_NS)

    def is_due(self, now_ns: int) -> bool:
        """Whether to offer everything now; True once for each occasion."""
        if self._due_ns is None or now_ns < self._due_ns:
            return False
        self._due_ns, self._offered_ns = None, now_ns
        return True


def is_clock_step(drift_ns: int) -> bool:
    """Whether a server's clock was set by so much that what the store holds expires at another time than it should."""
    return abs(drift_ns) > CLOCK_STEP_NS_MAX


def stood_still(before_ns: int, asked_ns: int, now_ns: int) -> bool:
    """Whether a thread that meant to sleep ``asked_ns`` from ``before_ns`` on was stopped, or starved, beyond that."""
    return now_ns - before_ns - max(asked_ns, 0) > LOOP_GAP_NS_MAX
