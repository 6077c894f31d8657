"""What the worker is told: answers into its ring, and what found the ring full."""

from __future__ import annotations

import os

import numpy as np

from everwall.rings import Ring, ring_push
from everwall.session import image
from everwall.store.protocol import Rows
from everwall.store.replies import GIVEN_ANSWERS, TALLY


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
