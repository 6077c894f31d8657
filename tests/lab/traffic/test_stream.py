"""Every byte of the lab's connections is known, so every wrong one is seen."""

from __future__ import annotations

import pytest

from everwall.lab.traffic.stream import DOWN, UP, Corrupt, Frames, Stream, frame


def test_what_one_end_takes_the_other_end_verifies() -> None:
    sender, receiver = Stream(7, UP), Stream(7, UP)
    for length in (1, 64, 8192, 65536, 3, 65536):
        receiver.verify(sender.take(length))
    assert receiver.position == sender.position == 1 + 64 + 8192 + 65536 + 3 + 65536


def test_streams_differ_by_connection_and_direction() -> None:
    pieces = {Stream(number, way).take(64) for number in range(50) for way in (UP, DOWN)}
    assert len(pieces) == 100


@pytest.mark.parametrize("at", [0, 100, 8191])
def test_a_flipped_bit_is_seen(at: int) -> None:
    piece = bytearray(Stream(1, UP).take(8192))
    piece[at] ^= 1
    receiver = Stream(1, UP)
    with pytest.raises(Corrupt, match="8192 bytes at position 0"):
        receiver.verify(bytes(piece))
    assert receiver.position == 0


@pytest.mark.parametrize("gap", [1, 536, 1460, 4096, 65536])
def test_a_gap_a_repetition_and_a_foreign_stream_are_seen(gap: int) -> None:
    sender = Stream(1, UP)
    repeated = sender.take(gap)
    late = sender.take(256)
    receiver = Stream(1, UP)
    with pytest.raises(Corrupt):
        receiver.verify(late)
    receiver.verify(repeated)
    with pytest.raises(Corrupt):
        receiver.verify(repeated if gap > 1 else repeated * 256)
    with pytest.raises(Corrupt):
        receiver.verify(Stream(2, UP).take(256))
    receiver.verify(late)


def test_frames_come_out_whole_however_the_bytes_come_in() -> None:
    sent = [frame(3, number, Stream(3, UP).take(number * 40), number) for number in range(5)]
    stream = b"".join(sent)
    for step in (1, 7, 16, 17, len(stream)):
        frames = Frames()
        got = [each for at in range(0, len(stream), step) for each in frames.feed(stream[at : at + step])]
        assert [(each.connection, each.sequence, each.answer_length) for each in got] == [
            (3, number, number) for number in range(5)
        ]
        assert [len(each.payload) for each in got] == [0, 40, 80, 120, 160]


def test_a_length_nobody_sends_is_corrupt() -> None:
    with pytest.raises(Corrupt, match="a frame of"):
        list(Frames().feed(b"\xff" * 16))
