"""What an engine counts beside verdicts: one name for each, one meaning."""

from __future__ import annotations

from enum import IntEnum


class Counter(IntEnum):
    """Index in an engine's counter array."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> Counter:
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    @property
    def label(self) -> str:
        """The name as people read it, for example ``sessions-created``."""
        return self.name.lower().replace("_", "-")

    SESSIONS = 0, "sessions in the table now"
    SESSIONS_CREATED = 1, "sessions opened by a first packet that policy allowed"
    SESSIONS_RESTORED = 2, "sessions taken over from the store"
    SESSIONS_ADOPTED = 3, "sessions opened here whose saved past was found afterwards"
    SESSIONS_ENDED = 4, "sessions that ended here"
    SESSIONS_DEMOTED = 5, "sessions given up because another node owns them now"
    RESTORE_DENIED = 6, "stored sessions that today's policy does not allow"
    RECORDS_REFUSED = 7, "stored sessions that did not open: forged, altered or foreign"
    LOOKUPS = 8, "sessions asked of the store"
    LOOKUP_HITS = 9, "of these, found"
    LOOKUP_MISSES = 10, "of these, not there"
    LOOKUP_FAILURES = 11, "of these, not answered: no store, or too late"
    LATE_REPLIES = 12, "answers that came after their deadline"
    WRITES = 13, "sessions handed to the store for the first time or after a change"
    REFRESHES = 14, "sessions handed to the store again because a third of their idle time has passed"
    DELETES = 15, "ended sessions whose record was asked to be deleted"
    REQUESTS_DELAYED = 16, "store requests put off because the queue was full"
    EVENTS_LOST = 17, "log events lost because their queue was full"
    PARKED = 18, "packets parked now"
    BYTES = 19, "inner bytes forwarded"
    RECEIVED = 20, "packets received"
    HANDED_OVER = 21, "packets given to the worker that has their flow; it counts what becomes of them"
    HANDED_IN = 22, "packets taken from other workers"
    OFFLOADED = 23, "sessions that the cut-through carries now"
    STRICT_UNACKNOWLEDGED = (
        24,
        "packets that strict mode let go before the store had acknowledged their session",
    )
    SESSIONS_RULED_OUT = 25, "sessions that ended because a new policy does not allow them"
    RESETS = 26, "TCP resets made for refused connections"
    UNREACHABLES = 27, "ICMP and ICMPv6 unreachables made for refused packets"
    ANSWERS_HELD_BACK = 28, "resets and unreachables not made, because there were too many already"
    ANSWERS_UNSENT = 29, "of those made, what the system refused to send"
    REFUSALS_UNLOGGED = (
        31,
        "refused first packets without a line in the log, because there were too many already",
    )
    STARTS_AHEAD = 30, "sessions whose start lay in the future by the store's clock and was put right"


COUNTERS = 32
"""Length of a counter array."""

assert max(Counter) < COUNTERS
