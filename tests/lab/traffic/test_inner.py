"""Packets of the packet-level traffic against Scapy, which made none of them."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Raw

from everwall.lab.traffic.inner import ACK, PSH, parse, tcp, udp
from everwall.lab.traffic.pings import echo_request


def checked(packet: bytes) -> IP:
    """The packet as Scapy reads it, its checksums proved by letting Scapy make them again."""
    read = IP(packet)
    again = IP(packet)
    del again.chksum
    del again[TCP if TCP in again else UDP].chksum
    assert bytes(again) == packet
    return read


@pytest.mark.parametrize("payload", [b"", b"x", b"everwall" * 100])
def test_a_tcp_packet_says_what_it_was_told(payload: bytes) -> None:
    packet = tcp("10.10.0.10", "10.20.0.10", 20001, 5001, ACK | PSH, 2**32 - 3, 99, payload)
    read = checked(packet)
    assert (read.src, read.dst, read[TCP].sport, read[TCP].dport) == ("10.10.0.10", "10.20.0.10", 20001, 5001)
    assert (read[TCP].seq, read[TCP].ack, str(read[TCP].flags)) == (2**32 - 3, 99, "PA")
    assert bytes(read[TCP].payload) == payload
    segment = parse(packet)
    assert (segment.sequence, segment.acknowledgement, segment.payload) == (2**32 - 3, 99, payload)


def test_a_udp_packet_says_what_it_was_told() -> None:
    packet = udp("10.10.0.9", "10.20.0.10", 10001, 5002, b"odd")
    assert bytes(checked(packet)[Raw]) == b"odd"
    assert parse(packet).source_port == 10001


def test_a_damaged_header_is_not_read() -> None:
    packet = bytearray(tcp("10.10.0.10", "10.20.0.10", 1, 2, ACK, 1, 1, b""))
    packet[8] ^= 1
    with pytest.raises(ValueError, match="not an IPv4 packet"):
        parse(bytes(packet))


def test_an_echo_request_has_a_right_checksum() -> None:
    made = echo_request(0x1234, 70_000, 5)
    read = ICMP(made)
    assert (read.type, read.id, read.seq) == (8, 0x1234, 70_000 & 0xFFFF)
    del read.chksum
    assert bytes(read) == made
