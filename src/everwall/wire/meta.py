"""The descriptor of one packet: an int64 row that port, parsers and engine fill in turn.

A batch is one byte array (a row per packet) and one descriptor array. Offsets count from the start
of the packet's row. Addresses are two int64 halves in network order, high and low; an IPv4 address
is (0, address). All columns are plain numbers, so that the whole row means the same compiled,
interpreted and in a test.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from everwall.limits import BATCH_PACKETS, FRAME_BYTES
from everwall.rings import zeros_apart

# Filled by the port ----------------------------------------------------------------------------
START = 0  # offset of the GENEVE header, or of the inner packet where there is none
END = 1  # offset one past the last byte received
PEER_ADDRESS = 2  # outer IPv4 source
PEER_PORT = 3  # outer UDP source port
LOCAL_ADDRESS = 4  # outer IPv4 destination
BARE = 5  # 1: no GENEVE, an IP packet stands at START (captures, load balancer endpoints)
FRAME = 6  # where the port still has the packet itself, until its next receive; 0 = nowhere, as in every copy of a row
PEER_MAC = 7  # Ethernet source, 48 bits; 0 where the system finds the way back by itself

# Filled by decapsulation -------------------------------------------------------------------------
ENDPOINT = 8  # GWLB endpoint id, 64 bits as int64
COOKIE = 9  # flow cookie, or -1 when the option is missing
INNER = 10  # offset of the inner IP header
INNER_END = 11  # offset one past the inner packet (by the IP length)

# Filled by the IP and transport parsers ------------------------------------------------------------
FAMILY = 12  # 4 or 6
PROTOCOL = 13  # IP protocol number of the transport
TRANSPORT = 14  # offset of the transport header; -1 in a later fragment
PAYLOAD = 15  # bytes after the transport header
SOURCE_HIGH = 16
SOURCE_LOW = 17
DESTINATION_HIGH = 18
DESTINATION_LOW = 19
SOURCE_PORT = 20  # ICMP echo: the identifier in both ports; other protocols: 0
DESTINATION_PORT = 21
TCP_FLAG_BITS = 22  # the 8 flag bits of RFC 9293
TCP_SEQUENCE = 23
TCP_ACKNOWLEDGEMENT = 24
TCP_WINDOW_FIELD = 25  # as in the header, not scaled
FRAGMENT = 26  # NOT_FRAGMENT, FIRST_FRAGMENT or LATER_FRAGMENT
FRAGMENT_ID = 27
ICMP_KIND = 28  # ICMP_NONE, ICMP_REQUEST, ICMP_REPLY, ICMP_ERROR or ICMP_OTHER

# Filled by flow.key --------------------------------------------------------------------------------
KEY0 = 32  # endpoint
KEY1 = 33  # IPv4: both addresses; IPv6: a signature of them
KEY2 = 34  # ports, protocol, family; never 0
LOWER_HIGH = 35  # the canonical order: the lower of both ends first
LOWER_LOW = 36
UPPER_HIGH = 37
UPPER_LOW = 38
DIRECTION = 39  # 0: the packet's source is the lower end; 1: the upper
HASH = 40

# Filled by handover --------------------------------------------------------------------------------
ROUTED = 41  # 1: a fragment that the worker of its datagram has seen

# Filled by the engine ------------------------------------------------------------------------------
VERDICT = 44  # a Verdict
SESSION = 45  # the session's id, or -1

COLUMNS = 48

NOT_FRAGMENT = 0
FIRST_FRAGMENT = 1
LATER_FRAGMENT = 2

ICMP_NONE = 0
ICMP_REQUEST = 1  # echo request
ICMP_REPLY = 2  # echo reply
ICMP_ERROR = 3  # the tuple is that of the quoted flow, turned to this packet's direction
ICMP_OTHER = 4

TCP_FIN = 0x01
TCP_SYN = 0x02
TCP_RST = 0x04
TCP_PSH = 0x08
TCP_ACK = 0x10

PROTOCOL_ICMP = 1
PROTOCOL_TCP = 6
PROTOCOL_UDP = 17
PROTOCOL_ICMPV6 = 58


class Batch(NamedTuple):
    """``data``: uint8[packets, frame bytes]; ``meta``: int64[packets, COLUMNS]."""

    data: npt.NDArray[np.uint8]
    meta: npt.NDArray[np.int64]


def make_batch(packets: int = BATCH_PACKETS, frame_bytes: int = FRAME_BYTES) -> Batch:
    """An empty batch."""
    return Batch(zeros_apart((packets, frame_bytes), np.uint8), zeros_apart((packets, COLUMNS)))
