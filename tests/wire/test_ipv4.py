"""The IPv4 header: options, padding, and the ways in which it cannot be true."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, IPOption_Timestamp

from everwall.verdict import Verdict
from tests import packets
from tests.wire.reading import prefix_verdicts, read, verdict_of

pytestmark = pytest.mark.kernel

GOOD = packets.tcp("192.0.2.1", "198.51.100.2", 1234, 80, "A", payload=b"data")


def changed(packet: bytes, at: int, value: int) -> bytes:
    """One byte set to another value, and the header checksum right for it."""
    return packets.fix_ipv4_checksum(packet[:at] + bytes([value]) + packet[at + 1 :])


def test_addresses_protocol_and_extent() -> None:
    verdict, found = read(GOOD)
    assert verdict == Verdict.FORWARD
    assert found["family"] == 4
    assert found["source"] == ip_address("192.0.2.1").packed
    assert found["destination"] == ip_address("198.51.100.2").packed
    assert (found["protocol"], found["transport"], found["end"]) == (6, 20, len(GOOD))
    assert (found["fragment"], found["fragment_id"]) == (0, 0)


def test_truncated() -> None:
    assert set(prefix_verdicts(GOOD)) == {Verdict.IP_TRUNCATED}


def test_what_scapy_writes_is_read_the_same() -> None:
    written = bytes(
        IP(src="1.2.3.4", dst="255.254.253.252", proto=47, options=[IPOption_Timestamp()]) / b"rest"
    )
    verdict, found = read(written)
    header = IP(written)
    assert verdict == Verdict.FORWARD
    assert found["transport"] == header.ihl * 4 > 20
    assert (found["end"], found["payload"], found["protocol"]) == (header.len, 4, 47)
    assert found["source"] == ip_address(header.src).packed
    assert found["destination"] == ip_address(header.dst).packed


@pytest.mark.parametrize("words", range(11))
def test_options_of_every_length_are_passed_over(words: int) -> None:
    packet = packets.udp("10.0.0.1", "10.0.0.2", 7, 9, b"x", ip_options=b"\1" * 4 * words)
    verdict, found = read(packet)
    assert verdict == Verdict.FORWARD
    assert (found["transport"], found["sport"], found["dport"]) == (20 + 4 * words, 7, 9)


def test_what_follows_the_total_length_is_padding() -> None:
    verdict, found = read(GOOD + bytes(6))
    assert verdict == Verdict.FORWARD
    assert (found["end"], found["payload"]) == (len(GOOD), 4)


def test_another_version_is_refused() -> None:
    for version in (0, 1, 5, 7, 15):
        assert verdict_of(changed(GOOD, 0, version << 4 | 5)) == Verdict.IP_VERSION


@pytest.mark.parametrize("words", range(5))
def test_a_header_length_under_20_is_refused(words: int) -> None:
    assert verdict_of(bytes([0x40 | words]) + GOOD[1:]) == Verdict.IPV4_HEADER


@pytest.mark.parametrize("total", [0, 1, 19])
def test_a_total_length_that_does_not_hold_the_header_is_refused(total: int) -> None:
    assert verdict_of(packets.udp("10.0.0.1", "10.0.0.2", 7, 9, total_length=total)) == Verdict.IPV4_HEADER


def test_a_total_length_past_the_packet_is_refused() -> None:
    longer = packets.udp("10.0.0.1", "10.0.0.2", 7, 9, total_length=29)
    assert verdict_of(longer) == Verdict.IP_TRUNCATED


def test_a_header_length_past_the_packet_is_refused() -> None:
    """With 60 bytes of header, the total length of 44 is what cannot be."""
    assert verdict_of(changed(GOOD, 0, 0x4F)) == Verdict.IPV4_HEADER


@pytest.mark.parametrize("at", [1, 4, 8, 10, 11, 12, 19])
def test_a_flipped_bit_in_the_header_is_found_by_its_checksum(at: int) -> None:
    flipped = GOOD[:at] + bytes([GOOD[at] ^ 0x10]) + GOOD[at + 1 :]
    assert verdict_of(flipped) == Verdict.IPV4_CHECKSUM
    assert verdict_of(packets.fix_ipv4_checksum(flipped)) == Verdict.FORWARD
