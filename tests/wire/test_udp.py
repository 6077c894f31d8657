"""The UDP header and the length that may be less than the packet's, but never more."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from everwall.verdict import Verdict
from tests import packets
from tests.wire.reading import Readings, read, verdict_of

pytestmark = pytest.mark.kernel

A, B = "10.0.0.1", "10.0.0.2"


def test_what_scapy_writes_is_read_the_same() -> None:
    for header in (IP(src=A, dst=B), IPv6(src="::1", dst="::2")):
        verdict, found = read(bytes(header / UDP(sport=53, dport=65535) / b"answer"))
        assert verdict == Verdict.FORWARD
        assert (found["protocol"], found["sport"], found["dport"], found["payload"]) == (17, 53, 65535, 6)


def test_truncated() -> None:
    datagram = packets.udp(A, B, 1, 2, b"data")[20:]
    cut = [packets.ip(A, B, 17, datagram[:length]) for length in range(len(datagram))]
    assert set(Readings(cut, bare=True).verdicts) == {Verdict.UDP_HEADER}
    assert verdict_of(packets.ip(A, B, 17, datagram)) == Verdict.FORWARD


@pytest.mark.parametrize("length", [0, 1, 7])
def test_a_length_that_does_not_hold_the_header_is_refused(length: int) -> None:
    assert verdict_of(packets.udp(A, B, 1, 2, b"data", length=length)) == Verdict.UDP_HEADER


def test_a_length_past_the_packet_is_refused() -> None:
    assert verdict_of(packets.udp(A, B, 1, 2, b"data", length=13)) == Verdict.UDP_HEADER
    assert verdict_of(packets.udp(A, B, 1, 2, b"data", length=0xFFFF)) == Verdict.UDP_HEADER


def test_bytes_behind_the_datagram_are_no_payload() -> None:
    verdict, found = read(packets.udp(A, B, 1, 2, b"dataREST", length=12))
    assert verdict == Verdict.FORWARD
    assert found["payload"] == 4
