"""Store time: what all nodes of a cluster take for the time, and never goes back.

Starts order the sessions of a flow, so a later connection must have a later start, whichever node opens it. The
clock of a server does not see to that: it is set, and a replica that takes over has another one. So store time is the
server's clock only while that is not behind: a key in the store (``scripts/clock.lua``) holds the latest time that
anybody was told, and how far it was ahead of the server's clock. A node that asks, once a second, names a time that has
come by its own reckoning; nobody is told an earlier one after that. So a store that has lost the key hears of it from
the nodes that live.

Between two questions a node goes by its own monotonic clock. It learns from an answer what is certain: the time that
was told had come when the answer was there, and had not passed when the question was put. A node that is behind moves
forward; one that is ahead goes a little slower until it is not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from everwall.limits import CLOCK_SLEW_NS, CLOCK_TOLERANCE_NS, SECOND_NS
from everwall.session.state import CLOCK_CONNECTIONS, CLOCK_GUESSED, CLOCK_LAYOUT, CLOCK_OFFSET
from everwall.store.occasions import is_clock_step


class StoreClock:
    """Store time as one node reckons it, and what else the worker is told of the store by a few words."""

    def __init__(self, words: npt.NDArray[np.int64]) -> None:
        """``words``: where the worker reads the offset and when to offer live sessions (``session.state``)."""
        self.connections = 0
        """How often one was made."""
        self._words = words
        self._is_told = False
        self._offset_ns = 0
        """Store time minus monotonic time."""

    def least_ns(self, monotonic_ns: int) -> int:
        """A time that has come, for whoever tells the time to the others; 0 while this node was told none itself.

        In whole microseconds, as it is said: an answer that names it back must not seem to be from before it.
        """
        return (monotonic_ns + self._offset_ns - CLOCK_TOLERANCE_NS) // 1000 * 1000 if self._is_told else 0

    def tell(self, store_ns: int, least_ns: int, asked_ns: int, heard_ns: int) -> None:
        """It was ``store_ns`` some time between the question and the answer; the question named ``least_ns``.

        An answer from before that says that the server's clock was set back by more than a cluster goes without:
        it is followed. Time that moves by far makes the expiries in the store untrue: the live sessions are
        offered again.
        """
        if not self._is_told:
            self._is_told = True
            self._move(store_ns - (asked_ns + heard_ns) // 2)
            self._words[CLOCK_GUESSED] = 0
            return
        behind_ns = store_ns - heard_ns - self._offset_ns
        ahead_ns = asked_ns + self._offset_ns - store_ns
        if store_ns < least_ns:
            self._step(-ahead_ns)
        elif behind_ns > 0:
            self._step(behind_ns)
        elif ahead_ns > 0:
            self._move(-min(ahead_ns, CLOCK_SLEW_NS))

    def _step(self, by_ns: int) -> None:
        self._move(by_ns)
        if is_clock_step(by_ns):
            self.offer_again()

    def _move(self, by_ns: int) -> None:
        self._offset_ns += by_ns
        self._words[CLOCK_OFFSET] = self._offset_ns

    def seconds(self, monotonic_ns: int) -> int:
        return (monotonic_ns + self._offset_ns) // SECOND_NS

    def skew_ns(self, local_ns: int, monotonic_ns: int) -> int:
        """How far this machine's clock is behind."""
        return self._offset_ns - (local_ns - monotonic_ns)

    def count_connection(self) -> None:
        """One was made: the store may lack anything."""
        self.connections += 1
        self.offer_again()

    def offer_again(self) -> None:
        """The store may lack what it was told: whoever watches it offers the live sessions once more."""
        self._words[CLOCK_CONNECTIONS] += 1

    def count_move(self) -> None:
        """Records are written to another place from now on: the live sessions are offered again."""
        self._words[CLOCK_LAYOUT] += 1
