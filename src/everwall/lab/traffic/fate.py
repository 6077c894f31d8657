"""What becomes of one connection or flow, judged the same way whatever carries it."""

from __future__ import annotations

from typing import Any

PROBE_DEADLINE_S = 10.0
"""A connection that completes no round trip within this time after its probe is lost."""


class Fate:
    """The answers that came, the longest wait for one, and whether the lab's probe was answered in time.

    Times are CLOCK_MONOTONIC ns, 0 = not yet.
    """

    def __init__(self) -> None:
        self.error = ""
        self.corrupt = ""
        self.exchanges = 0
        self.stall_ns = 0
        self.stall_began_ns = 0
        self.probed_ns = 0
        self.answered_ns = 0

    def note_answer(self, sent_ns: int, now: int) -> None:
        """Data sent at ``sent_ns`` was answered now."""
        self.exchanges += 1
        if now - sent_ns > self.stall_ns:
            self.stall_ns, self.stall_began_ns = now - sent_ns, sent_ns

    def forget_probe(self) -> None:
        """Ready for another probe, if the last one was answered in time; otherwise that one stays the judge."""
        if self.answered_ns and not self.lost(self.answered_ns):
            self.probed_ns = self.answered_ns = 0

    def lost(self, now: int) -> str:
        """Why it counts as lost; empty while it does not."""
        if self.error:
            return self.error
        if self.corrupt or not self.probed_ns:
            return ""
        if (self.answered_ns or now) - self.probed_ns <= PROBE_DEADLINE_S * 1e9:
            return ""
        return "answered too late" if self.answered_ns else "no answer"

    def told(self, now: int, waiting_since_ns: int | None) -> dict[str, Any]:
        """The figures for the lab; what still waits for its answer counts as a stall until now."""
        stall, began = self.stall_ns, self.stall_began_ns
        if waiting_since_ns is not None and now - waiting_since_ns > stall:
            stall, began = now - waiting_since_ns, waiting_since_ns
        return {
            "exchanges": self.exchanges,
            "corrupt": self.corrupt,
            "lost": self.lost(now),
            "stall_ns": stall,
            "stall_began_ns": began,
            "probed_ns": self.probed_ns,
            "answered_ns": self.answered_ns,
        }
