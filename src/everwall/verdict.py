"""What became of a packet: one name for each outcome, one counter for each name.

``FORWARD`` and ``PARK`` let a packet live; every other member is a reason to drop it. The names
(``Verdict.label``) are what the command line, metrics, reports and tests say. Each member tells
whether it is *normal*: something a healthy cluster sees every day (strays, scans, policy at
work), or a sign that something is misconfigured, overloaded or broken.
"""

from __future__ import annotations

from enum import IntEnum


class Verdict(IntEnum):
    """Outcome of one packet; the value is its index in the counter array."""

    normal: bool
    meaning: str

    def __new__(cls, value: int, normal: bool, meaning: str) -> Verdict:
        member = int.__new__(cls, value)
        member._value_ = value
        member.normal = normal
        member.meaning = meaning
        return member

    @property
    def label(self) -> str:
        """The name as people read it, for example ``non-syn-tcp``."""
        return self.name.lower().replace("_", "-")

    # Not drops ---------------------------------------------------------------------------------
    FORWARD = 0, True, "returned to the load balancer"
    PARK = 1, True, "copied aside until the store has answered"

    # The outer packet (GENEVE, RFC 8926) ---------------------------------------------------------
    GENEVE_SOURCE = 2, False, "outer source address is not in geneve-sources"
    GENEVE_REFUSED = 3, False, "GENEVE arrived although aws-gwlb-inspect is not enabled"
    GENEVE_TRUNCATED = 4, False, "shorter than its GENEVE header and options say"
    GENEVE_VERSION = 5, False, "GENEVE version is not 0"
    GENEVE_OPTIONS = 6, False, "options do not add up, or endpoint or cookie are malformed or repeated"
    GENEVE_CRITICAL_OPTION = 7, False, "an unknown option is marked critical"
    GENEVE_CONTROL = 8, False, "a control packet (O bit); there is no control channel"
    GENEVE_PROTOCOL = 9, False, "the payload is neither IPv4 nor IPv6"
    GENEVE_NO_ENDPOINT = 10, False, "the endpoint id option is missing"
    ENDPOINT_UNMAPPED = 11, False, "the endpoint has no zone although others have one"
    OVERSIZE = 12, False, "longer than a packet slot"
    OUTER_HEADER = 13, False, "not UDP to port 6081 in one whole IPv4 packet with a right header checksum"

    # The inner packet ------------------------------------------------------------------------------
    IP_TRUNCATED = 20, True, "shorter than its IP header says"
    IP_VERSION = 21, True, "IP version does not fit the GENEVE payload type"
    IPV4_HEADER = 22, True, "IPv4 header length or total length is impossible"
    IPV4_CHECKSUM = 23, True, "IPv4 header checksum is wrong"
    IPV6_EXTENSION = 24, True, "IPv6 extension headers are too many or do not fit"
    TCP_HEADER = 25, True, "TCP header is cut off or its length is impossible"
    TCP_FLAGS = 26, True, "TCP flags that no stack sends: none of SYN ACK FIN RST, SYN with FIN, SYN with RST"
    UDP_HEADER = 27, True, "UDP header is cut off or its length is impossible"
    ICMP_HEADER = 28, True, "ICMP header is cut off"
    ICMP_ERROR_HEADER = 29, True, "an ICMP error quotes no readable packet, or not one of its receiver"
    FRAGMENT_HEADER = (
        30,
        True,
        "a first fragment too small for its transport header, a later one inside it, or one past 65,535 bytes",
    )
    FRAGMENT_UNMATCHED = 31, True, "a later fragment whose first one was not seen or not allowed"
    FRAGMENT_TABLE_FULL = 32, False, "no room to remember a first fragment"

    # Session and policy ------------------------------------------------------------------------------
    NON_SYN_TCP = 40, True, "first TCP packet of an unknown session is not SYN"
    POLICY_DENY = 41, True, "policy does not allow this session"
    TCP_STATE = 42, True, "a TCP packet that the session's state does not allow"
    TCP_WINDOW = 43, True, "TCP sequence or acknowledgement outside the window"
    TCP_RST_WINDOW = 44, True, "RST outside the window (RFC 5961)"
    ICMP_ERROR_UNMATCHED = 45, True, "an ICMP error about a flow that is not known"
    ICMP_UNSOLICITED = 46, True, "an ICMP reply nobody asked for"
    TABLE_FULL = 47, False, "no free slot for a new session"
    SESSION_LIMIT = 48, False, "max-sessions reached"

    # Store -------------------------------------------------------------------------------------------
    PARK_FULL = 60, False, "no room to park a packet while its session is looked up"
    PARK_FLOW_FULL = 61, False, "too many packets of one flow parked"
    LOOKUP_LIMIT = 62, False, "too many look-ups under way"
    LOOKUP_BUDGET = 63, True, "the budget for look-ups that miss is used up (a flood of strays)"
    LOOKUP_TIMEOUT = 64, False, "the store did not answer in time"
    STORE_UNAVAILABLE = 65, False, "the store cannot be asked"
    RESTORE_REFUSED = 66, False, "the stored session is forged, altered or of a foreign version"

    # Port --------------------------------------------------------------------------------------------
    TRANSMIT = 70, False, "the system refused to send the packet"
    SOURCE_PORTS = 71, False, "no socket left for another outer source port (unprivileged UDP port)"

    # Workers -----------------------------------------------------------------------------------------
    HANDOVER_FULL = 75, False, "no room on the way to the worker that has the flow"
    HANDOVER_STOPPED = 76, True, "on the way to the worker that has the flow when the node stopped"

    # Load balancer (the first three are AWS's drop counters) -----------------------------------------
    INVALID_GENEVE_TUNNEL = 80, False, "a return not from the flow's own target, or malformed"
    INVALID_GWLB_ENDPOINT_ID = 81, False, "a return whose endpoint option is missing or not the flow's"
    INVALID_GWLB_FLOW_COOKIE = 82, False, "a return whose flow cookie is missing or not the flow's"
    NO_TARGET = 83, False, "no target is registered"
    FLOW_TABLE_FULL = 84, False, "no room for another flow"
    FLOW_EXPIRED = 85, True, "TCP data after the idle time-out ended its flow"
    TARGET_FAILED = 86, False, "the flow stays on a failed target (no_rebalance)"


VERDICTS = 96
"""Length of a counter array that is indexed by verdict."""

assert max(Verdict) < VERDICTS


def is_drop(verdict: int) -> bool:
    """True for every outcome but forward and park."""
    return verdict > Verdict.PARK
