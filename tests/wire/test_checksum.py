"""The Internet checksum, by its RFC's example and by what the builder and scapy write."""

from __future__ import annotations

import numpy as np
import pytest
from scapy.layers.inet import IP

from everwall.wire import meta
from everwall.wire.checksum import ipv4_header_checksum, ones_complement_sum, transport_checksum
from tests import packets
from tests.wire.reading import Readings

pytestmark = pytest.mark.kernel


def row(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8).reshape(1, -1)


def test_example_of_rfc_1071() -> None:
    data = row(bytes.fromhex("0001 f203 f4f5 f6f7"))
    assert ones_complement_sum(data, 0, 0, 8, 0) == 0xDDF2


def test_an_odd_byte_is_the_high_half_of_a_word_and_nothing_is_read_behind_it() -> None:
    data = row(bytes.fromhex("0102 03 ff"))
    assert ones_complement_sum(data, 0, 0, 3, 0) == 0x0102 + 0x0300
    assert ones_complement_sum(data, 0, 0, 0, 0x1234) == 0x1234


def test_carries_are_folded_until_none_is_left() -> None:
    data = row(b"\xff" * 60)
    assert ones_complement_sum(data, 0, 0, 60, 0x7FFFFFFF) == 0x7FFF


def test_ipv4_header_checksum_is_what_scapy_writes() -> None:
    written = bytes(IP(src="192.168.0.1", dst="192.168.0.199", id=7, ttl=9, options=[]))
    blank = written[:10] + b"\0\0" + written[12:]
    assert ipv4_header_checksum(row(written), 0, 0, 20) == 0
    assert ipv4_header_checksum(row(blank), 0, 0, 20) == int.from_bytes(written[10:12], "big")


@pytest.mark.parametrize(
    "packet",
    [
        packets.tcp("10.0.0.1", "10.255.0.2", 1, 65535, "SA", payload=b"odd"),
        packets.udp("10.0.0.1", "10.255.0.2", 1, 65535, b"even"),
        packets.tcp("2001:db8::ffff", "fe80::1", 1, 65535, "SA", payload=b"odd"),
        packets.udp("2001:db8::ffff", "fe80::1", 1, 65535, b"even"),
        packets.icmp_echo("2001:db8::ffff", "fe80::1", 99),
    ],
)
def test_transport_checksum_of_a_good_packet_is_0_and_of_a_changed_one_is_not(packet: bytes) -> None:
    def value_of(whole: bytes) -> int:
        readings = Readings([whole], bare=True)
        found = [
            readings.column(0, name)
            for name in (
                meta.TRANSPORT,
                meta.INNER_END,
                meta.PROTOCOL,
                meta.SOURCE_HIGH,
                meta.SOURCE_LOW,
                meta.DESTINATION_HIGH,
                meta.DESTINATION_LOW,
            )
        ]
        return transport_checksum(readings.batch.data, 0, *found)

    assert value_of(packet) == 0
    assert value_of(packet[:-1] + bytes([packet[-1] ^ 1])) != 0
