"""Link layers of captures, cross-checked against scapy's."""

from __future__ import annotations

import numpy as np
import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, CookedLinux, CookedLinuxV2, Dot1AD, Dot1Q, Ether

from everwall.wire.ethernet import (
    LINK_COOKED,
    LINK_COOKED_V2,
    LINK_ETHERNET,
    LINK_IPV4,
    LINK_IPV6,
    LINK_RAW,
    LINK_RAW_OF_BSD,
    ip_offset,
)

pytestmark = pytest.mark.kernel

INNER = IP(src="10.0.0.1", dst="10.0.0.2") / UDP()
INNER_V6 = IPv6(src="::1", dst="::2") / UDP()

FRAMES = [
    (LINK_ETHERNET, Ether() / INNER, 14),
    (LINK_ETHERNET, Ether() / INNER_V6, 14),
    (LINK_ETHERNET, Ether() / Dot1Q(vlan=5) / INNER, 18),
    (LINK_ETHERNET, Ether() / Dot1AD(vlan=5) / Dot1Q(vlan=6) / INNER_V6, 22),
    (LINK_COOKED, CookedLinux(proto=0x0800) / INNER, 16),
    (LINK_COOKED, CookedLinux() / Dot1Q(vlan=5) / INNER_V6, 20),
    (LINK_COOKED_V2, CookedLinuxV2(proto=0x0800) / INNER, 20),
    (LINK_COOKED_V2, CookedLinuxV2(proto=0x86DD) / INNER_V6, 20),
    (LINK_RAW, INNER, 0),
    (LINK_RAW_OF_BSD, INNER_V6, 0),
    (LINK_IPV4, INNER, 0),
    (LINK_IPV6, INNER_V6, 0),
]


def offset_in(frame: bytes, link: int) -> int:
    """The offset in ``frame``, which ends where its row ends."""
    data = np.full((2, 8 + len(frame)), 0x5A, np.uint8)
    data[1, 8:] = np.frombuffer(frame, np.uint8)
    found = int(ip_offset(data, 1, 8, 8 + len(frame), link))
    return found if found == -1 else found - 8


@pytest.mark.parametrize(("link", "frame", "expected"), FRAMES)
def test_the_ip_packet_is_found(link: int, frame: object, expected: int) -> None:
    written = bytes(frame)  # type: ignore[call-overload]
    assert offset_in(written, link) == expected
    assert written[expected] >> 4 in (4, 6)


@pytest.mark.parametrize(("link", "frame", "expected"), FRAMES)
def test_truncated(link: int, frame: object, expected: int) -> None:
    written = bytes(frame)  # type: ignore[call-overload]
    for length in range(expected):
        assert offset_in(written[:length], link) == -1
    assert offset_in(written[:expected], link) == expected


def test_other_protocols_and_links_hold_no_ip_packet() -> None:
    assert offset_in(bytes(Ether() / ARP()), LINK_ETHERNET) == -1
    assert offset_in(bytes(Ether(type=60) / bytes(60)), LINK_ETHERNET) == -1
    assert offset_in(bytes(Ether() / Dot1Q() / Dot1Q() / Dot1Q() / INNER), LINK_ETHERNET) == -1
    assert offset_in(bytes(Ether() / INNER), 105) == -1
