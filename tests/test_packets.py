"""The packet builder itself: scapy, asked to fill in lengths and checksums, writes the same bytes."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from everwall.limits import HEADROOM_BYTES
from everwall.wire import meta
from everwall.wire.meta import make_batch
from tests import packets

A, B, A6, B6 = "10.0.0.1", "203.0.113.9", "2001:db8::1", "fe80::9"

BUILT = [
    packets.tcp(A, B, 1234, 80, "SEC", 5, 6, 7, b"odd", b"\2\4\5\xb4\3\3\7"),
    packets.tcp(A6, B6, 1234, 80, "FPUA", payload=b"even"),
    packets.udp(A, B, 1, 65535, b"odd"),
    packets.udp(A6, B6, 1, 65535, b"even"),
    packets.udp(A, B, 1, 2, ip_options=b"\1" * 8, dont_fragment=True, ttl=3),
    packets.icmp_echo(A, B, 7, 8),
    packets.icmp_echo(A6, B6, 7, 8, reply=True),
    packets.icmp_error(A, B, packets.udp(B, A, 1, 2)),
    packets.icmp_error(A6, B6, packets.udp(B6, A6, 1, 2)),
    packets.tcp(A6, B6, 1, 2, extensions=[packets.ipv6_options(0, 2), packets.ipv6_options(60)]),
    packets.udp(A6, B6, 1, 2, extensions=[packets.ipv6_fragment(9)]),
]


@pytest.mark.parametrize("built", BUILT)
def test_scapy_agrees_on_lengths_and_checksums(built: bytes) -> None:
    dissected: Packet = IP(built) if built[0] >> 4 == 4 else IPv6(built)
    layer = dissected
    # A quoted packet inside an ICMP error stays as it is: it is data there.
    while layer and "in ICMP" not in layer.name:
        for field in ("len", "ihl", "chksum", "cksum", "plen", "dataofs"):
            if field in layer.fields:
                del layer.fields[field]
                layer.raw_packet_cache = None
        layer = layer.payload
    assert bytes(dissected) == built


def test_the_fields_are_what_scapy_reads() -> None:
    segment = IP(BUILT[0])[TCP]
    assert (segment.sport, segment.dport, segment.seq, segment.ack, segment.window) == (1234, 80, 5, 6, 7)
    assert str(segment.flags) == "SEC"
    assert segment.options[:2] == [("MSS", 1460), ("WScale", 7)]
    assert bytes(segment.payload) == b"odd"
    assert (IP(BUILT[5])[ICMP].id, IP(BUILT[5])[ICMP].seq) == (7, 8)
    assert (IP(BUILT[4]).ttl, str(IP(BUILT[4]).flags), IP(BUILT[4])[UDP].dport) == (3, "DF", 2)


@pytest.mark.parametrize("packet", [BUILT[0], BUILT[1], packets.udp(A, B, 1, 2, bytes(100))])
def test_fragments_put_together_are_the_packet(packet: bytes) -> None:
    header = 20 if packet[0] >> 4 == 4 else 40
    parts = packets.fragments(packet, 16, ident=3)
    own = header + (8 if header == 40 else 0)
    assert b"".join(part[own:] for part in parts) == packet[header:]
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if header == 20:
            assert (IP(part).id, IP(part).frag, str(IP(part).flags)) == (3, number * 2, "" if last else "MF")
        else:
            fragment = IPv6(part).payload
            assert (fragment.id, fragment.offset, fragment.m) == (3, number * 2, int(not last))


def test_a_loaded_row_is_what_a_port_receives() -> None:
    batch = make_batch(2)
    packets.load(batch, 1, b"bytes", peer=("192.0.2.1", 50_000), local=("192.0.2.2", 6081))
    row = batch.meta[1]
    assert packets.unload(batch, 1) == b"bytes"
    assert (row[meta.START], row[meta.END], row[meta.BARE]) == (HEADROOM_BYTES, HEADROOM_BYTES + 5, 0)
    assert (row[meta.PEER_ADDRESS], row[meta.PEER_PORT]) == (0xC0000201, 50_000)
    assert row[meta.LOCAL_ADDRESS] == 0xC0000202
    packets.load(batch, 0, b"x", bare=True, endpoint=9)
    assert (batch.meta[0, meta.BARE], batch.meta[0, meta.ENDPOINT]) == (1, 9)


def test_a_packet_larger_than_a_slot_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        packets.load(make_batch(1), 0, bytes(2048))
