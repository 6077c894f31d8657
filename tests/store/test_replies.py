"""Replies as they come off the wire: in one piece, byte by byte, with more behind them, and damaged."""

from __future__ import annotations

import random

import numpy as np
import pytest

from everwall.kernels import JIT
from everwall.rings import make_ring, ring_pop
from everwall.session import image
from everwall.session.image import DELETE, FOUND, LOOKUP, LOST, MISSING, REFUSED, WRITE, WRITE_FIRST, WRITTEN
from everwall.session.record import open_record
from everwall.store import replies
from everwall.store.memory import MemoryStore
from everwall.store.protocol import ErrorReply, Protocol, ProtocolError, reply_bytes
from tests.store.stores import KEYS, NOW, asking, sessions

pytestmark = pytest.mark.kernel


def conversation():
    """A batch with requests of every kind and every outcome, and the bytes of its replies."""
    store, protocol = MemoryStore(), Protocol(KEYS, "test", 8)
    rows = sessions(70)

    def send(which):
        batch = protocol.encoded(which, NOW)
        answers = [store.execute(command, NOW) for command in batch.commands]
        return batch, b"".join(map(reply_bytes, answers))

    send(asking(rows[:40], WRITE_FIRST))
    newer = asking(rows[30:34], WRITE_FIRST)
    newer[:, image.GENERATION] = 9
    send(newer)
    mixed = asking(rows, LOOKUP)
    mixed[10:35] = asking(rows[10:35], WRITE)
    mixed[33:36] = asking(rows[33:36], DELETE)
    mixed[60:65] = asking(rows[60:65], WRITE_FIRST)
    return protocol, *send(mixed)


def whole(protocol, batch, data):
    buffer = np.frombuffer(data, np.uint8)
    assert protocol.read(batch, buffer, 0, len(buffer), NOW) == (len(buffer), True)
    return batch.outcomes.tolist(), batch.rows.copy()


def test_every_request_gets_its_own_outcome() -> None:
    protocol, batch, data = conversation()
    outcomes, rows = whole(protocol, batch, data)
    expected = [FOUND] * 10 + [WRITTEN] * 20 + [LOST] * 4 + [WRITTEN] * 2 + [FOUND] * 4 + [MISSING] * 20
    assert outcomes[:60] == expected
    assert outcomes[60:65] == [WRITTEN] * 5
    assert rows[:10, image.RULE].tolist() == [77] * 10


def test_replies_that_come_byte_by_byte_mean_the_same() -> None:
    protocol, batch, data = conversation()
    expected, rows = whole(protocol, batch, data)
    protocol, batch, data = conversation()
    buffer, start = np.frombuffer(data, np.uint8), 0
    for end in range(len(buffer)):
        start, complete = protocol.read(batch, buffer, start, end, NOW)
        assert not complete
        assert start <= end
    assert protocol.read(batch, buffer, start, len(buffer), NOW) == (len(buffer), True)
    assert batch.outcomes.tolist() == expected
    assert (batch.rows == rows).all()


def test_what_follows_belongs_to_the_next_batch() -> None:
    protocol, batch, data = conversation()
    buffer = np.frombuffer(data + b":1\r\n", np.uint8)
    assert protocol.read(batch, buffer, 0, len(buffer), NOW) == (len(data), True)


@pytest.mark.parametrize(
    "reply",
    [
        b"+OK\r\n",
        b"$3\r\nabc\r\n",
        b"*1\r\n:1\r\n",
        b":1\n\r:1\r\n",
        b"?1\r\n",
        b"$-2\r\n",
        b"$abc\r\n",
        b"$\r\n",
        b"*99999999999999999999\r\n",
        b"*10000\r\n",
        b"x" * 5000,
        b"+" + b"x" * 5000,
    ],
)
def test_what_is_no_reply_to_a_write_ends_the_conversation(reply: bytes) -> None:
    protocol = Protocol(KEYS, "test", 8)
    batch = protocol.encoded(asking(sessions(1), WRITE_FIRST), NOW)
    with pytest.raises(ProtocolError, match="no reply to what was asked"):
        protocol.read(batch, np.frombuffer(reply, np.uint8), 0, len(reply), NOW)


def test_a_record_of_another_length_is_refused_and_not_read() -> None:
    protocol = Protocol(KEYS, "test", 8)
    for size in (0, 51, 53, 3000):
        batch = protocol.encoded(asking(sessions(1), LOOKUP), NOW)
        data = reply_bytes(bytes(size))
        assert protocol.decode(batch, data, NOW).rows[0, image.OP] == REFUSED


@pytest.mark.parametrize("code", ["READONLY", "LOADING", "MASTERDOWN", "NOAUTH"])
def test_a_server_that_is_not_the_one_to_speak_to_is_left(code: str) -> None:
    protocol = Protocol(KEYS, "test", 8)
    batch = protocol.encoded(asking(sessions(2), WRITE_FIRST), NOW)
    with pytest.raises(ErrorReply, match=code):
        protocol.decode(batch, b"-%s because\r\n" % code.encode() * 4, NOW)


def test_damaged_replies_are_told_or_taken_but_never_read_beyond_their_end() -> None:
    """Interpreted, reading outside raises; compiled, nothing may crash and no forged record may open."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    genuine = set()
    for _ in range(3000 if JIT else 60):
        protocol, batch, data = conversation()
        if not genuine:
            outcomes, rows = whole(protocol, batch, data)
            genuine = {
                rows[i, image.START : image.BYTES + 1].tobytes()
                for i in range(len(rows))
                if outcomes[i] == FOUND
            }
            continue
        damaged = bytearray(data[: dice.randrange(len(data)) + 1])
        for _ in range(dice.randrange(4)):
            damaged[dice.randrange(len(damaged))] = dice.choice(
                [0, 13, 10, 36, 42, 45, 58, dice.randrange(256)]
            )
        buffer = np.frombuffer(bytes(damaged), np.uint8)
        try:
            start, _ = protocol.read(batch, buffer, 0, len(buffer), NOW)
        except (ProtocolError, ErrorReply):
            continue
        assert 0 <= start <= len(buffer)
        for i in np.flatnonzero(batch.outcomes == FOUND):
            assert batch.rows[i, image.START : image.BYTES + 1].tobytes() in genuine


def test_answers_that_find_the_ring_full_are_given_later_and_counted_once() -> None:
    protocol, batch, data = conversation()
    whole(protocol, batch, data)
    ring, scratch = make_ring(16, image.COLUMNS), np.zeros((1, image.COLUMNS), np.int64)
    tally, out, got = np.zeros(replies.TALLY, np.int64), np.zeros((16, image.COLUMNS), np.int64), []
    buffer, found = np.zeros(1, np.uint8), replies.FULL
    while found == replies.FULL:
        _, found, _ = replies.settle(
            batch.pipeline, batch.count, 0, 0, buffer, 0, 0, KEYS, NOW, ring, scratch, tally
        )
        got += out[: ring_pop(ring, out)].tolist()
    assert found == replies.DONE
    assert len(got) == tally[replies.GIVEN_ANSWERS] == 70 - 27, (
        "of changes that were made nobody wants to hear"
    )
    assert (tally[WRITTEN], tally[LOST], tally[FOUND]) == (27, 4, 14)


def test_a_record_is_opened_under_its_own_flow_only() -> None:
    rows = sessions(2)
    protocol = Protocol(KEYS, "test", 8)
    value = protocol.encoded(asking(rows[:1], WRITE_FIRST), NOW).commands[0][3]
    data = np.frombuffer(b"xx" + value, np.uint8)
    for i, outcome in ((0, FOUND), (1, REFUSED)):
        open_record(rows, i, KEYS, 0, data, 2)
        assert rows[i, image.OP] == outcome
