"""Link layers of captures: where in a frame the IP packet begins.

The data plane has no link layer, a load balancer hands over IP; this is for capture files. Link types are
the LINKTYPE numbers of libpcap: Ethernet, also with 802.1Q and 802.1ad tags, Linux cooked captures v1
and v2, and raw IP.
"""

from __future__ import annotations

from everwall.kernels import kernel
from everwall.wire.fields import read16

LINK_ETHERNET = 1
LINK_RAW_OF_BSD = 12  # what some systems write into files for raw IP
LINK_RAW = 101
LINK_COOKED = 113
LINK_IPV4 = 228
LINK_IPV6 = 229
LINK_COOKED_V2 = 276

ETHER_TYPE_IPV4 = 0x0800
ETHER_TYPE_IPV6 = 0x86DD
ETHER_TYPE_VLAN = 0x8100
ETHER_TYPE_SERVICE_VLAN = 0x88A8
VLAN_TAGS_MAX = 2


@kernel
def ip_offset(data, i, at, end, link):
    """The offset of the IP packet in the frame at ``at``..``end``, or -1 when it holds none.

    -1 for other protocols, frames that are cut off, more than two VLAN tags and unknown link types. The
    offset is at most ``end``; the IP header itself has not been looked at.
    """
    if link == LINK_RAW or link == LINK_RAW_OF_BSD or link == LINK_IPV4 or link == LINK_IPV6:
        return at
    if link == LINK_ETHERNET:
        type_at, network_at = at + 12, at + 14
    elif link == LINK_COOKED:
        type_at, network_at = at + 14, at + 16
    elif link == LINK_COOKED_V2:
        type_at, network_at = at, at + 20
    else:
        return -1
    if network_at > end:
        return -1
    ether_type = read16(data, i, type_at)
    tags = 0
    while ether_type == ETHER_TYPE_VLAN or ether_type == ETHER_TYPE_SERVICE_VLAN:
        tags += 1
        if tags > VLAN_TAGS_MAX or network_at + 4 > end:
            return -1
        ether_type = read16(data, i, network_at + 2)
        network_at += 4
    if ether_type == ETHER_TYPE_IPV4 or ether_type == ETHER_TYPE_IPV6:
        return network_at
    return -1
