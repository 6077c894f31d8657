"""An IP packet as a whole: from the descriptor's INNER to its tuple."""

from __future__ import annotations

from everwall.kernels import kernel
from everwall.verdict import Verdict
from everwall.wire import icmp, ipv4, ipv6, tcp, udp
from everwall.wire.fields import read8
from everwall.wire.meta import (
    END,
    FRAGMENT,
    ICMP_KIND,
    INNER,
    INNER_END,
    LATER_FRAGMENT,
    PAYLOAD,
    PROTOCOL,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    TRANSPORT,
)

_FORWARD = int(Verdict.FORWARD)
_IP_TRUNCATED = int(Verdict.IP_TRUNCATED)
_IP_VERSION = int(Verdict.IP_VERSION)


@kernel
def parse(data, meta, i):
    """Read the packet at INNER; fill the columns INNER_END to ICMP_KIND; return a verdict.

    FORWARD means that bytes from INNER to INNER_END may be read and that all columns are set. After
    a drop only those that were read before it hold values, the others 0. Transport
    checksums are left to the ends.
    """
    for column in range(INNER_END, ICMP_KIND + 1):
        meta[i, column] = 0
    meta[i, TRANSPORT] = -1
    at = meta[i, INNER]
    if at >= meta[i, END]:
        return _IP_TRUNCATED

    version = read8(data, i, at) >> 4
    if version == 4:
        verdict = ipv4.parse(data, meta, i)
    elif version == 6:
        verdict = ipv6.parse(data, meta, i)
    else:
        return _IP_VERSION
    if verdict != _FORWARD or meta[i, FRAGMENT] == LATER_FRAGMENT:
        return verdict

    protocol = meta[i, PROTOCOL]
    if protocol == PROTOCOL_TCP:
        return tcp.parse(data, meta, i)
    if protocol == PROTOCOL_UDP:
        return udp.parse(data, meta, i)
    if (version == 4 and protocol == PROTOCOL_ICMP) or (version == 6 and protocol == PROTOCOL_ICMPV6):
        return icmp.parse(data, meta, i)
    meta[i, PAYLOAD] = meta[i, INNER_END] - meta[i, TRANSPORT]
    return _FORWARD
