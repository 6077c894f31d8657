"""A packet as a whole: every column is written, by bytes that belong to the packet."""

from __future__ import annotations

import pytest

from everwall.limits import FRAME_BYTES, HEADROOM_BYTES
from everwall.verdict import Verdict
from everwall.wire import meta, packet
from everwall.wire.geneve import decapsulate
from everwall.wire.meta import make_batch
from tests import packets
from tests.wire.reading import Readings, prefix_verdicts, read, verdict_of

pytestmark = pytest.mark.kernel

A, B = "10.0.0.1", "10.0.0.2"
GOOD = [
    packets.tcp(A, B, 1234, 80, "A", payload=b"data"),
    packets.tcp("::1", "::2", 1234, 80, extensions=[packets.ipv6_options(0), packets.ipv6_authentication()]),
    packets.udp(A, B, 1, 2, b"data"),
    packets.icmp_echo("::1", "::2", 9),
    packets.icmp_error(A, B, packets.tcp(B, A, 1, 2)),
    packets.fragments(packets.udp(A, B, 1, 2, bytes(64)), 32)[1],
    packets.ip(A, B, 47, b"\0\0\x08\0tunnel"),
]


@pytest.mark.parametrize("inner", GOOD)
def test_truncated(inner: bytes) -> None:
    """No prefix of a good packet lives, bare or in GENEVE."""
    assert verdict_of(inner) == Verdict.FORWARD
    assert set(prefix_verdicts(inner)) == {Verdict.IP_TRUNCATED}
    wrapped = packets.geneve(inner)
    verdicts = prefix_verdicts(wrapped, bare=False)
    assert set(verdicts[:40]) == {Verdict.GENEVE_TRUNCATED}
    assert set(verdicts[40:]) == {Verdict.IP_TRUNCATED}


def test_an_empty_packet_is_truncated() -> None:
    assert verdict_of(b"", bare=True) == Verdict.IP_TRUNCATED
    assert verdict_of(b"", bare=False) == Verdict.GENEVE_TRUNCATED


@pytest.mark.parametrize("version", [0, 1, 2, 3, 5, 7, 8, 9, 15])
def test_what_is_neither_ipv4_nor_ipv6_is_refused(version: int) -> None:
    assert verdict_of(bytes([version << 4]) + bytes(60)) == Verdict.IP_VERSION


@pytest.mark.parametrize("inner", GOOD)
def test_a_row_keeps_nothing_of_the_packet_before(inner: bytes) -> None:
    """Rows are used again and again: what one packet leaves must not colour the next."""
    columns = slice(meta.ENDPOINT, meta.ICMP_KIND + 1)
    fresh = Readings([packets.geneve(inner)]).batch.meta[0, columns].tolist()
    batch = make_batch(1)
    for before in [*GOOD, packets.tcp(A, B, 1, 2, "SF"), b"\x45"]:
        packets.load(batch, 0, packets.geneve(before))
        decapsulate(batch.data, batch.meta, 0)
        packet.parse(batch.data, batch.meta, 0)
        packets.load(batch, 0, packets.geneve(inner))
        assert decapsulate(batch.data, batch.meta, 0) == Verdict.FORWARD
        assert packet.parse(batch.data, batch.meta, 0) == Verdict.FORWARD
        # Readings puts a packet at the end of its row, a port behind the headroom.
        moved = HEADROOM_BYTES - Readings([packets.geneve(inner)]).column(0, meta.START)
        row = batch.meta[0, columns].tolist()
        for column in (meta.INNER, meta.INNER_END, meta.TRANSPORT):
            if fresh[column - meta.ENDPOINT] >= 0:
                row[column - meta.ENDPOINT] -= moved
        assert row == fresh


def test_bytes_behind_the_end_are_not_the_packets() -> None:
    """A slot still holds the longer packet that was in it before."""
    batch = make_batch(1)
    whole = packets.geneve(packets.tcp(A, B, 1, 2, payload=bytes(100)))
    packets.load(batch, 0, whole)
    for length in range(len(whole)):
        batch.meta[0, meta.END] = HEADROOM_BYTES + length
        verdict = decapsulate(batch.data, batch.meta, 0)
        if verdict == Verdict.FORWARD:
            verdict = packet.parse(batch.data, batch.meta, 0)
        assert verdict == (Verdict.GENEVE_TRUNCATED if length < 40 else Verdict.IP_TRUNCATED)


def test_the_largest_packet_of_a_slot_is_read() -> None:
    room = FRAME_BYTES - HEADROOM_BYTES - 40
    inner = packets.udp("::1", "::2", 1, 2, bytes(room - 48))
    batch = packets.batch_of([packets.geneve(inner)])
    assert decapsulate(batch.data, batch.meta, 0) == Verdict.FORWARD
    assert packet.parse(batch.data, batch.meta, 0) == Verdict.FORWARD
    assert batch.meta[0, meta.INNER_END] == FRAME_BYTES


@pytest.mark.parametrize("protocol", [0, 2, 47, 50, 51, 89, 132, 255])
def test_other_protocols_go_by_their_addresses(protocol: int) -> None:
    verdict, found = read(packets.ipv4(A, B, protocol, b"\xff" * 9))
    assert verdict == Verdict.FORWARD
    assert (found["protocol"], found["transport"], found["payload"]) == (protocol, 20, 9)
    assert (found["sport"], found["dport"], found["flags"], found["icmp"]) == (0, 0, 0, 0)
