"""What the worker is told: answers into its ring, and what found the ring full."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from everwall.limits import MS_NS, SECOND_NS
from everwall.rings import Ring, ring_push
from everwall.session import image
from everwall.session.state import CLOCK_CONNECTIONS, CLOCK_GUESSED, CLOCK_LAYOUT, CLOCK_OFFSET
from everwall.store.occasions import is_clock_step
from everwall.store.protocol import Rows
from everwall.store.replies import GIVEN_ANSWERS, TALLY

CLOCK_DRIFT_NS = 20 * MS_NS
"""A server's clock that moved by more than this was set, or has drifted: the offset is taken anew."""


class Answers:
    """The worker's side of a store: ring of replies, eventfd, and counts of what became of its requests."""

    def __init__(self, ring: Ring, wake_fd: int) -> None:
        self.ring = ring
        self.scratch = np.zeros((1, image.COLUMNS), np.int64)
        self.tally = np.zeros(TALLY, np.int64)
        """By what became of requests; changes that were made and were deletes by DELETE as well."""
        self._wake_fd = wake_fd
        self._unpushed: list[Rows] = []

    @property
    def wait(self) -> bool:
        """Whether some have found no room yet."""
        return bool(self._unpushed)

    def fail(self, lookups: Rows) -> None:
        """Look-ups that the store could not be asked, or did not answer in time; what another place had holds."""
        if len(lookups):
            rows = lookups.copy()
            found = (rows[:, image.WALK] >> image.SO_FAR_SHIFT) & image.SO_FAR_BITS == image.FOUND
            rows[:, image.OP] = np.where(found, image.FOUND, image.FAILED)
            self.tally[image.FOUND] += np.count_nonzero(found)
            self.tally[image.FAILED] += np.count_nonzero(~found)
            self._unpushed.append(rows)

    def push(self) -> None:
        """Hand over the answers that did not come from a server, and wake the worker for those that it got.

        What finds the ring full waits here and is tried again.
        """
        if self._unpushed:
            rows = np.concatenate(self._unpushed)
            taken = int(ring_push(self.ring, rows, len(rows)))
            self._unpushed = [rows[taken:]] if taken < len(rows) else []
            self.tally[GIVEN_ANSWERS] += taken
        if self.tally[GIVEN_ANSWERS]:
            self.tally[GIVEN_ANSWERS] = 0
            os.eventfd_write(self._wake_fd, 1)


class StoreClock:
    """Store time, as one server tells it: all nodes go by the same one, whatever the others say."""

    def __init__(self, words: npt.NDArray[np.int64]) -> None:
        """``words``: where the worker reads the offset and when to offer live sessions (``session.state``)."""
        self.connections = 0
        """How often one was made."""
        self._words = words
        self._offset_ns = 0
        """Store time minus monotonic time."""

    def set(self, store_ns: int, monotonic_ns: int) -> None:
        self._words[CLOCK_OFFSET] = self._offset_ns = store_ns - monotonic_ns
        self._words[CLOCK_GUESSED] = 0

    def watch(self, store_ns: int, monotonic_ns: int, rtt_ns: int) -> None:
        """Follow the server's clock when it was set, but not the jitter of the network.

        Set by far, it makes the expiries in the store untrue: the live sessions are offered again.
        """
        drift_ns = store_ns - monotonic_ns - self._offset_ns
        if abs(drift_ns) > max(CLOCK_DRIFT_NS, 2 * rtt_ns):
            self.set(store_ns, monotonic_ns)
            if is_clock_step(drift_ns):
                self.offer_again()

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
