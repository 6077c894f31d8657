"""The TCP header, its flags and the one option that tracking needs."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from everwall.verdict import Verdict
from tests import packets
from tests.wire.reading import Readings, read, verdict_of

pytestmark = pytest.mark.kernel

A, B = "10.0.0.1", "10.0.0.2"
END, NOTHING = b"\0", b"\1"
SEGMENT_SIZE = b"\2\4\5\xb4"
SACK = b"\4\2"
TIMESTAMPS = b"\x08\x0a" + bytes(8)


def scale(shift: int) -> bytes:
    return bytes([3, 3, shift])


def scale_of(options: bytes) -> int:
    return int(Readings([packets.tcp(A, B, 1, 2, "S", options=options)], bare=True).scales[0])


@pytest.mark.parametrize(("source", "destination"), [(A, B), ("2001:db8::1", "2001:db8::2")])
def test_all_fields_are_read(source: str, destination: str) -> None:
    packet = packets.tcp(
        source, destination, 1234, 65535, "PA", 0xFFFFFFFF, 0x80000000, 4321, b"payload", SEGMENT_SIZE
    )
    verdict, found = read(packet)
    assert verdict == Verdict.FORWARD
    assert (found["sport"], found["dport"]) == (1234, 65535)
    assert (found["seq"], found["ack"]) == (0xFFFFFFFF, 0x80000000)
    assert (found["flags"], found["window"], found["payload"]) == (0x18, 4321, 7)


def test_what_scapy_writes_is_read_the_same() -> None:
    segment = TCP(
        sport=5, dport=6, seq=7, ack=8, flags="SEC", window=9, options=[("WScale", 7), ("NOP", None)]
    )
    for header in (IP(src=A, dst=B), IPv6(src="::1", dst="::2")):
        readings = Readings([bytes(header / segment / b"abc")], bare=True)
        found = readings.packet(0)
        assert readings.verdicts == [Verdict.FORWARD]
        assert (found["sport"], found["dport"], found["seq"], found["ack"]) == (5, 6, 7, 8)
        assert (found["flags"], found["window"], found["payload"]) == (0xC2, 9, 3)
        assert readings.scales == [7]


def test_truncated() -> None:
    """The IP length agrees with what is there, so it is the TCP header that is cut off."""
    segment = packets.tcp(A, B, 1, 2, "S", options=SEGMENT_SIZE + scale(7))[20:]
    assert len(segment) == 28
    cut = [packets.ip(A, B, 6, segment[:length]) for length in range(28)]
    assert set(Readings(cut, bare=True).verdicts) == {Verdict.TCP_HEADER}
    assert verdict_of(packets.ip(A, B, 6, segment)) == Verdict.FORWARD


@pytest.mark.parametrize("words", [0, 1, 2, 3, 4])
def test_a_header_length_under_20_is_refused(words: int) -> None:
    packet = packets.tcp(A, B, 1, 2, payload=bytes(40), data_offset=words)
    assert verdict_of(packet) == Verdict.TCP_HEADER


@pytest.mark.parametrize("flags", ["S", "SA", "A", "FA", "F", "R", "RA", "PA", "UA", "SEC", "FPUA", "FPUR"])
def test_flags_that_stacks_send_pass(flags: str) -> None:
    assert verdict_of(packets.tcp(A, B, 1, 2, flags)) == Verdict.FORWARD


@pytest.mark.parametrize("flags", [0, "P", "U", "EC", "PU", "SF", "SFA", "SR", "SRA", 0xFF])
def test_flags_that_no_stack_sends_are_refused(flags: str | int) -> None:
    assert verdict_of(packets.tcp(A, B, 1, 2, flags)) == Verdict.TCP_FLAGS


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (b"", -1),
        (SEGMENT_SIZE + SACK + TIMESTAMPS + NOTHING + scale(7), 7),
        (scale(0), 0),
        (scale(14), 14),
        (scale(7) + END, 7),
        (scale(7) + scale(9), 9),
        (NOTHING * 37 + scale(3), 3),
    ],
)
def test_the_window_scale_is_found_among_the_options(options: bytes, expected: int) -> None:
    assert scale_of(options) == expected


def test_a_shift_over_14_counts_as_14() -> None:
    assert scale_of(scale(15)) == scale_of(scale(255)) == 14


def test_a_window_scale_behind_the_end_of_the_options_is_none() -> None:
    assert scale_of(END + scale(7)) == -1


@pytest.mark.parametrize(
    "options",
    [
        b"\3\2\1\1",  # without its shift
        b"\3\4\7\1",  # with too much
        b"\1\1\1\3",  # cut off behind the kind
        b"\1\1\3\3",  # cut off behind the length
        b"\2\0" + scale(7),  # a length that leads nowhere
        b"\2\1" + scale(7),
        scale(7) + b"\2\x28",  # good, but what follows is longer than the header
    ],
)
def test_malformed_options_give_no_window_scale_and_no_drop(options: bytes) -> None:
    packet = packets.tcp(A, B, 1, 2, "S", options=options, payload=scale(9) * 10)
    readings = Readings([packet], bare=True)
    assert readings.verdicts == [Verdict.FORWARD]
    assert readings.scales == [-1]


def test_window_scale_truncated() -> None:
    """Whatever the header length cuts off, nothing is taken from the payload."""
    options = SEGMENT_SIZE + SACK + NOTHING + NOTHING + TIMESTAMPS + NOTHING + NOTHING + scale(7) + NOTHING
    assert scale_of(options) == 7
    cut = [packets.tcp(A, B, 1, 2, "S", options=options, data_offset=words) for words in range(5, 11)]
    assert set(Readings(cut, bare=True).scales) == {-1}
