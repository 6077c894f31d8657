"""The IPv6 header and its chain of extension headers."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from scapy.layers.inet import TCP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)

from everwall.limits import IPV6_EXTENSIONS_MAX
from everwall.verdict import Verdict
from tests import packets
from tests.wire.reading import prefix_verdicts, read, verdict_of

pytestmark = pytest.mark.kernel

A, B = "2001:db8::1", "fe80::8000:0:0:1"
HOP = packets.ipv6_options(0)
ROUTING = packets.ipv6_options(43, 3)
OPTIONS = packets.ipv6_options(60, 2)
AUTHENTICATION = packets.ipv6_authentication(12)


def test_addresses_protocol_and_extent() -> None:
    packet = packets.tcp(A, B, 1234, 80, "A", payload=b"data")
    verdict, found = read(packet)
    assert verdict == Verdict.FORWARD
    assert found["family"] == 6
    assert found["source"] == ip_address(A).packed
    assert found["destination"] == ip_address(B).packed
    assert (found["protocol"], found["transport"], found["end"]) == (6, 40, len(packet))


def test_truncated() -> None:
    packet = packets.tcp(A, B, 1234, 80, extensions=[HOP, AUTHENTICATION])
    assert set(prefix_verdicts(packet)) == {Verdict.IP_TRUNCATED}


def test_extension_headers_truncated_by_the_payload_length() -> None:
    packet = packets.tcp(A, B, 1234, 80, "A", extensions=[HOP, ROUTING, OPTIONS, AUTHENTICATION])
    chain = 8 + 24 + 16 + 24
    for length in range(chain + 20):
        cut = packet[:4] + length.to_bytes(2, "big") + packet[6 : 40 + length]
        assert verdict_of(cut) == (Verdict.IPV6_EXTENSION if length < chain else Verdict.TCP_HEADER)


def test_what_scapy_writes_is_read_the_same() -> None:
    header = IPv6(src=A, dst=B) / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"abc")])
    header = header / IPv6ExtHdrRouting(addresses=["::1"]) / IPv6ExtHdrDestOpt()
    written = bytes(header / TCP(sport=1234, dport=80, flags="A"))
    verdict, found = read(written)
    assert verdict == Verdict.FORWARD
    assert (found["protocol"], found["transport"]) == (6, len(written) - 20)
    assert (found["sport"], found["dport"], found["flags"]) == (1234, 80, 16)


@pytest.mark.parametrize("extension", [HOP, ROUTING, OPTIONS, AUTHENTICATION, packets.ipv6_fragment(9)])
def test_every_extension_header_is_followed(extension: tuple[int, bytes]) -> None:
    """A fragment header with nothing before and nothing after it is a whole packet too (RFC 6946)."""
    verdict, found = read(packets.udp(A, B, 7, 9, b"x", extensions=[extension]))
    assert verdict == Verdict.FORWARD
    assert (found["protocol"], found["transport"]) == (17, 40 + len(extension[1]))
    assert (found["sport"], found["dport"], found["fragment"]) == (7, 9, 0)


def test_as_many_extension_headers_as_the_limit_says_and_no_more() -> None:
    most = [OPTIONS] * IPV6_EXTENSIONS_MAX
    assert verdict_of(packets.udp(A, B, 7, 9, extensions=most)) == Verdict.FORWARD
    assert verdict_of(packets.udp(A, B, 7, 9, extensions=[*most, HOP])) == Verdict.IPV6_EXTENSION


def test_a_second_fragment_header_is_refused() -> None:
    twice = [packets.ipv6_fragment(9), packets.ipv6_fragment(9)]
    assert verdict_of(packets.udp(A, B, 7, 9, extensions=twice)) == Verdict.IPV6_EXTENSION


@pytest.mark.parametrize("protocol", [50, 59, 47, 132, 135, 139, 4, 41])
def test_what_is_no_extension_header_is_the_transport(protocol: int) -> None:
    verdict, found = read(packets.ipv6(A, B, protocol, b"12345", extensions=[HOP]))
    assert verdict == Verdict.FORWARD
    assert (found["protocol"], found["transport"], found["payload"]) == (protocol, 48, 5)
    assert (found["sport"], found["dport"]) == (0, 0)


def test_what_follows_the_payload_length_is_padding() -> None:
    packet = packets.udp(A, B, 7, 9, b"x")
    verdict, found = read(packet + bytes(7))
    assert verdict == Verdict.FORWARD
    assert found["end"] == len(packet)


def test_a_payload_length_past_the_packet_is_refused() -> None:
    assert verdict_of(packets.udp(A, B, 7, 9, payload_length=9)) == Verdict.IP_TRUNCATED


def test_a_jumbogram_is_refused() -> None:
    """Its length of 0 leaves no room for the header that would hold the real one."""
    packet = packets.ipv6(A, B, 17, bytes(8), extensions=[HOP], payload_length=0)
    assert verdict_of(packet) == Verdict.IPV6_EXTENSION
