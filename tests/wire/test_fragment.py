"""Fragments of both families: told apart, named by their id, and never such that a header hides in them."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet import fragment as cut_by_scapy

from everwall.verdict import Verdict
from everwall.wire.meta import FIRST_FRAGMENT, LATER_FRAGMENT, NOT_FRAGMENT
from tests import packets
from tests.wire.mutations import part_of
from tests.wire.reading import Readings, read, verdict_of

pytestmark = pytest.mark.kernel

FAMILIES = [("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8::2")]
both_families = pytest.mark.parametrize(("source", "destination"), FAMILIES)


@both_families
def test_the_first_has_ports_and_the_later_ones_have_none(source: str, destination: str) -> None:
    parts = packets.fragments(packets.tcp(source, destination, 1234, 80, payload=bytes(60)), 40, ident=0x77)
    assert len(parts) == 2
    verdict, found = read(parts[0])
    assert verdict == Verdict.FORWARD
    assert (found["fragment"], found["fragment_id"]) == (FIRST_FRAGMENT, 0x77)
    assert (found["sport"], found["dport"], found["payload"]) == (1234, 80, 20)
    verdict, found = read(parts[1])
    assert verdict == Verdict.FORWARD
    assert (found["fragment"], found["fragment_id"]) == (LATER_FRAGMENT, 0x77)
    assert (found["sport"], found["dport"], found["transport"]) == (0, 0, -1)
    assert (found["protocol"], found["payload"], found["flags"]) == (6, 40, 0)


def test_what_scapy_cuts_is_read_the_same() -> None:
    parts = cut_by_scapy(IP(src="1.2.3.4", dst="5.6.7.8", id=99) / UDP(sport=7, dport=9) / bytes(100), 48)
    readings = Readings([bytes(part) for part in parts], bare=True)
    assert readings.verdicts == [Verdict.FORWARD] * 3
    assert [readings.packet(i)["fragment"] for i in range(3)] == [1, 2, 2]
    assert [readings.packet(i)["payload"] for i in range(3)] == [40, 48, 12]
    assert [readings.packet(i)["fragment_id"] for i in range(3)] == [99] * 3
    assert readings.packet(0)["dport"] == 9


def test_an_ipv6_id_has_32_bits() -> None:
    packet = packets.udp("::1", "::2", 1, 2, extensions=[packets.ipv6_fragment(0xFEDCBA98, 0, True)])
    assert read(packet)[1]["fragment_id"] == 0xFEDCBA98


def test_a_packet_that_only_must_not_be_cut_is_whole() -> None:
    packet = packets.udp("10.0.0.1", "10.0.0.2", 1, 2, dont_fragment=True)
    assert read(packet)[1]["fragment"] == NOT_FRAGMENT


def test_the_whole_of_a_single_ipv6_fragment_is_judged_as_a_whole_packet() -> None:
    """No offset and nothing to come (RFC 6946): its UDP length is checked, and it has no id to wait under."""
    atomic = [packets.ipv6_fragment(5)]
    verdict, found = read(packets.udp("::1", "::2", 1, 2, extensions=atomic))
    assert verdict == Verdict.FORWARD
    assert (found["fragment"], found["fragment_id"]) == (NOT_FRAGMENT, 0)
    longer = packets.udp("::1", "::2", 1, 2, length=99, extensions=atomic)
    assert verdict_of(longer) == Verdict.UDP_HEADER


@both_families
def test_a_first_fragment_truncated_inside_its_transport_header_is_refused(
    source: str, destination: str
) -> None:
    header = 20 if ":" not in source else 40
    for packet, needed in (
        (packets.tcp(source, destination, 1, 2, options=b"\1" * 8), 28),
        (packets.udp(source, destination, 1, 2, bytes(40)), 8),
        (packets.icmp_echo(source, destination), 8),
    ):
        cut = [part_of(packet[: header + length], 0, more=True) for length in range(needed + 1)]
        verdicts = Readings(cut, bare=True).verdicts
        assert set(verdicts[:needed]) == {Verdict.FRAGMENT_HEADER}
        assert verdicts[needed] == Verdict.FORWARD


@both_families
def test_a_first_fragment_of_another_protocol_may_be_of_any_size(source: str, destination: str) -> None:
    assert verdict_of(part_of(packets.ip(source, destination, 47, b""), 0, more=True)) == Verdict.FORWARD


@both_families
def test_a_lie_in_a_whole_header_is_named_after_the_header(source: str, destination: str) -> None:
    segment = part_of(packets.tcp(source, destination, 1, 2, data_offset=4), 0, more=True)
    datagram = part_of(packets.udp(source, destination, 1, 2, length=7), 0, more=True)
    flags = part_of(packets.tcp(source, destination, 1, 2, "SF"), 0, more=True)
    assert verdict_of(segment) == Verdict.TCP_HEADER
    assert verdict_of(datagram) == Verdict.UDP_HEADER
    assert verdict_of(flags) == Verdict.TCP_FLAGS


@both_families
def test_a_later_fragment_over_the_tcp_header_is_refused(source: str, destination: str) -> None:
    """It would rewrite, behind the firewall, the flags that the first one was judged by (RFC 3128)."""
    body = packets.ip(source, destination, packets.TCP, bytes(16))
    assert verdict_of(part_of(body, 8, more=True)) == Verdict.FRAGMENT_HEADER
    assert verdict_of(part_of(body, 16, more=False)) == Verdict.FRAGMENT_HEADER
    assert verdict_of(part_of(body, 24, more=False)) == Verdict.FORWARD
    datagram = packets.ip(source, destination, packets.UDP, bytes(16))
    assert verdict_of(part_of(datagram, 8, more=True)) == Verdict.FORWARD


def test_a_fragment_past_the_largest_packet_is_refused() -> None:
    """IPv4 counts its header into the 65,535 bytes, IPv6 does not."""
    for length, expected in ((19, Verdict.FORWARD), (20, Verdict.FRAGMENT_HEADER)):
        packet = packets.ip("10.0.0.1", "10.0.0.2", packets.UDP, bytes(length))
        assert verdict_of(part_of(packet, 65_496, more=False)) == expected
    for length, expected in ((7, Verdict.FORWARD), (8, Verdict.FRAGMENT_HEADER)):
        packet = packets.ip("::1", "::2", packets.UDP, bytes(length))
        assert verdict_of(part_of(packet, 65_528, more=False)) == expected


def test_a_later_ipv6_fragment_says_what_its_fragment_header_says() -> None:
    """Where destination options were cut apart with the rest, that is their number and not the transport's."""
    packet = packets.udp("::1", "::2", 1, 2, bytes(40), extensions=[packets.ipv6_options(60)])
    first, later = packets.fragments(packet, 32)
    assert read(first)[1]["protocol"] == packets.UDP
    assert read(later)[1]["protocol"] == 60
