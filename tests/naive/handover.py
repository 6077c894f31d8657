"""The handover said plainly: a queue for each ordered pair, bounded, and a flow's worker by proportion."""

from __future__ import annotations

from collections import deque

from everwall.limits import HANDOVER_PACKETS


def worker_of(hashed: int, workers: int) -> int:
    """The upper 32 bits of a hash as a fraction of one, times the number of workers."""
    return int((hashed >> 32 & 0xFFFFFFFF) / 2**32 * workers)


class Pool:
    """What is on its way from one worker to another; an owner gives back what it has taken when it is done."""

    def __init__(self) -> None:
        self.waiting: deque[int] = deque()
        self.taken = 0

    def give(self, packet: int) -> bool:
        if len(self.waiting) == HANDOVER_PACKETS:
            return False
        self.waiting.append(packet)
        return True

    def take(self, most: int) -> list[int]:
        self.taken = min(most, len(self.waiting))
        return [self.waiting[k] for k in range(self.taken)]

    def give_back(self) -> None:
        for _ in range(self.taken):
            self.waiting.popleft()
