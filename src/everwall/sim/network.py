"""Links that delay, lose and reorder, and count what they did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from everwall.sim.loop import Loop


@dataclass(frozen=True)
class Quality:
    """How bad a network is; times in ns."""

    delay: int
    jitter: int
    """Added evenly from nothing to this: neighbours closer than that overtake each other."""
    loss: float
    straggle: float
    """Share of packets that arrive ``straggle_delay`` late."""
    straggle_delay: int


class Link:
    """One direction between two places."""

    def __init__(self, loop: Loop, random: Random, quality: Quality, deliver: Callable[..., None]) -> None:
        self.loop = loop
        self.quality = quality
        self.cut = False
        """A partition: everything is lost."""
        self.sent = 0
        self.lost = 0
        self.delivered = 0
        self._random = random
        self._deliver = deliver

    def send(self, *what: Any) -> None:
        """Put something on the way."""
        self.sent += 1
        quality = self.quality
        if self.cut or self._random.random() < quality.loss:
            self.lost += 1
            return
        delay = quality.delay + int(self._random.random() * quality.jitter)
        if self._random.random() < quality.straggle:
            delay += quality.straggle_delay
        self.loop.after(delay, self._arrive, what)

    def _arrive(self, what: tuple[Any, ...]) -> None:
        self.delivered += 1
        self._deliver(*what)
