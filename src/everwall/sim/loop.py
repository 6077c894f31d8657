"""Fake time: a heap of what is to happen next. Nothing else in the simulator knows when it is."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

US = 1_000
MS = 1_000_000
SECOND = 1_000_000_000


class Loop:
    """``now`` in ns; what is due at the same instant happens in the order it was asked for."""

    def __init__(self) -> None:
        self.now = 0
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._asked = 0

    def at(self, when: int, action: Callable[..., None], *arguments: Any) -> None:
        """Call ``action`` at ``when``, or at once if that has passed."""
        self._asked += 1
        heapq.heappush(self._heap, (max(when, self.now), self._asked, action, arguments))

    def after(self, delay: int, action: Callable[..., None], *arguments: Any) -> None:
        """Call ``action`` in ``delay`` ns."""
        self.at(self.now + delay, action, *arguments)

    def run(self, until: int) -> None:
        """Let time pass up to and including ``until``."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, action, arguments = heapq.heappop(heap)
            action(*arguments)
        self.now = until
