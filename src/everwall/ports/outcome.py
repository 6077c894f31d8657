"""What the cut-through program did with a packet: one counter each, per CPU, added up for people.

``PASSED`` is not ours and goes on to the kernel; ``BOUNCED`` went back where it came from; ``NO_ROOM`` is dropped;
every other one of ours is handed up to the engine, which decides.
"""

from __future__ import annotations

from enum import IntEnum


class Outcome(IntEnum):
    """Indices of the program's counters, in the order in which it looks."""

    BOUNCED = 0
    BOUNCED_BYTES = 1
    """Inner bytes of the bounced packets; the one that counts no packets."""
    PASSED = 2
    """No GENEVE over IPv4 for an address of ours, or with a broken outer header: the kernel's business."""
    DISABLED = 3
    """The program is told to hand everything up."""
    SOURCE = 4
    """The outer source is in none of the ranges."""
    LENGTH = 5
    """Frame, outer IP, UDP and inner IP do not agree about the length, or it is too short for any flow."""
    OPTIONS = 6
    """GENEVE version or options other than one endpoint, at most one attachment and at most one cookie."""
    INNER_PROTOCOL = 7
    """Neither IPv4 nor IPv6 inside, a control packet, IP options or extension headers, neither TCP nor UDP."""
    FRAGMENT = 8
    INNER_CHECKSUM = 9
    TRANSPORT_HEADER = 10
    """The TCP or UDP header does not fit its packet."""
    TCP_FLAGS = 11
    """SYN, FIN, RST or URG, or no ACK."""
    NO_SESSION = 12
    NOT_OFFLOADED = 13
    """The session is there, and the engine keeps it to itself."""
    STALE = 14
    """The worker has not passed its loop for BEAT_STALE_NS."""
    SEQUENCE = 15
    """Farther than SEQUENCE_JUMP_MAX from the last segment, or acknowledging what was not sent, or as old as that."""
    NO_ROOM = 16
    """Was to be handed up, and the worker has not taken what was before: dropped here, where that costs least."""

    @property
    def label(self) -> str:
        """The name people read: lower case with hyphens."""
        return self.name.lower().replace("_", "-")


OUTCOMES = len(Outcome)
