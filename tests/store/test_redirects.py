"""What a server of a cluster says that has not, or not any more, what it was asked; and WAIT. No I/O."""

from __future__ import annotations

import select

import hiredis
import numpy as np
import pytest

from everwall.rings import make_ring, ring_pop
from everwall.session import image
from everwall.session.image import DELETE, FOUND, LOOKUP, WRITE, WRITE_FIRST, WRITTEN
from everwall.store import replies
from everwall.store.answers import Answers
from everwall.store.clock import StoreClock
from everwall.store.conversation import Conversation, Trade
from everwall.store.layout import Epoch, Layout
from everwall.store.link import Arrival
from everwall.store.memory import MemoryStore
from everwall.store.protocol import Command, ErrorReply, Protocol, reply_bytes
from everwall.store.redis import make_clock
from tests.store.stores import KEYS, NOW, asking, sessions

pytestmark = pytest.mark.kernel


class Asking(MemoryStore):
    """A server that is about to get a slot: it answers what comes after ASKING, and nothing else with a key."""

    KEYLESS = (b"SCRIPT", b"ASKING", b"WAIT")

    def __init__(self) -> None:
        super().__init__()
        self.asked = False

    def execute(self, command, now=0.0):
        if command[0] == b"ASKING":
            self.asked = True
            return b"OK"
        if command[0] not in self.KEYLESS and not self.asked:
            return ErrorReply("MOVED 7 10.0.0.9:6379")
        self.asked = False
        return super().execute(command, now)


def read(protocol, batch, answers) -> None:
    data = np.frombuffer(b"".join(map(reply_bytes, answers)), np.uint8)
    assert protocol.read(batch, data, 0, len(data), NOW) == (len(data), True)


def commands_of(data) -> list[tuple[bytes, ...]]:
    reader = hiredis.Reader()
    reader.feed(bytes(data))
    commands = []
    while (command := reader.gets()) is not False:
        commands.append(tuple(command))
    return commands


def test_each_command_in_a_cluster_names_one_key():
    """All keys of a script call have to be in one slot."""
    protocol = Protocol(KEYS, "test", 8, clustered=True)
    rows = np.concatenate([asking(sessions(40), WRITE), asking(sessions(9, seed=2), DELETE)])
    batch = protocol.encoded(rows, NOW)
    calls = [command for command in batch.commands if command[0] == b"EVALSHA"]
    assert [call[2] for call in calls] == [b"1"] * 49
    assert sorted(row for rows in batch.spoken_for() for row in rows) == list(range(49))
    store = MemoryStore()
    read(protocol, batch, [store.execute(command, NOW) for command in batch.commands])
    assert batch.outcomes.tolist() == [WRITTEN] * 49


def test_what_was_moved_is_told_with_its_rows_and_the_rest_is_answered():
    protocol = Protocol(KEYS, "test", 64, clustered=True)
    rows = np.concatenate([asking(sessions(3), WRITE_FIRST), asking(sessions(3, seed=2), LOOKUP)])
    batch = protocol.encoded(rows, NOW)
    moved, ask = ErrorReply("MOVED 5 10.0.0.1:7000"), ErrorReply("ASK 6 10.0.0.2:7000")
    answers = [1, moved, 1, None, ask, None]
    answers += [moved] * (len(batch.commands) - len(answers))
    read(protocol, batch, answers)
    elsewhere, missing = replies.ELSEWHERE, image.MISSING
    assert batch.outcomes.tolist() == [WRITTEN, elsewhere, WRITTEN, missing, elsewhere, missing]
    assert [(str(error), len(rows)) for error, rows in batch.redirects] == [(str(moved), 1), (str(ask), 1)]
    assert (batch.redirects[0][1][0] == batch.rows[1]).all()


@pytest.mark.parametrize("operation", [WRITE_FIRST, WRITE, DELETE, LOOKUP])
def test_a_row_is_asked_of_the_server_that_is_about_to_get_its_bucket(operation):
    protocol, store = Protocol(KEYS, "test", 8, clustered=True), Asking()
    batch = protocol.room()
    for expected in ((WRITE_FIRST, WRITTEN), (operation, FOUND if operation == LOOKUP else WRITTEN)):
        batch.count = 1
        batch.rows[:] = asking(sessions(1), expected[0])
        protocol.encode_asking(batch, NOW)
        commands = commands_of(batch.data)
        read(protocol, batch, [store.execute(command, NOW) for command in commands])
        assert batch.outcomes.tolist() == [expected[1]]
    assert batch.errors == []


def test_what_waits_to_be_asked_is_compared_after_the_thread_stood_still():
    trade = Trade(
        KEYS, Answers(make_ring(8, image.COLUMNS), 0), StoreClock(make_clock()), select.poll(), {}, 0
    )
    link = Conversation(trade, Protocol(KEYS, "test", 8, clustered=True), nobody, leads=False)
    for operation in (WRITE_FIRST, DELETE):
        link.ask(asking(sessions(1, seed=operation), operation)[0])
    link.compare()
    link.hang_up("so that both go back to the queue")
    assert link.backlog.take(8)[:, image.OP].tolist() == [WRITE, DELETE]


def nobody(greeting: list[Command]) -> Arrival:
    raise ConnectionRefusedError


@pytest.mark.parametrize(("holders", "told"), [(2, True), (3, True), (1, False), (0, False)])
def test_a_write_counts_when_as_many_replicas_have_it_as_are_waited_for(holders, told):
    protocol, store, answers = Protocol(KEYS, "test", 8), MemoryStore(), make_ring(8, image.COLUMNS)
    rows = np.concatenate([asking(sessions(1), WRITE_FIRST), asking(sessions(1, seed=2), WRITE_FIRST)])
    rows[:, image.CONFIRM] = image.REPLICATED, image.PRIMARY
    batch = protocol.encoded(rows, NOW)
    protocol.wait_for_replicas(batch, 2, 80)
    *commands, wait = commands_of(batch.data)
    assert wait == (b"WAIT", b"2", b"80")
    data = [store.execute(command, NOW) for command in commands]
    buffer = np.frombuffer(b"".join(map(reply_bytes, [*data, holders])), np.uint8)
    scratch, tally = np.zeros((1, image.COLUMNS), np.int64), np.zeros(replies.TALLY, np.int64)
    _, found, _ = replies.settle(
        batch.pipeline, 2, 0, 0, buffer, 0, len(buffer), KEYS, NOW, answers, scratch, tally
    )
    assert found == replies.DONE
    out = np.zeros((8, image.COLUMNS), np.int64)
    heard = out[: ring_pop(answers, out), image.CONFIRM].tolist()
    assert heard == ([image.REPLICATED] if told else []) + [image.PRIMARY], (
        "the other waits for the primary only"
    )
    assert tally[replies.UNREPLICATED] == (not told)


def two_epochs() -> Protocol:
    """Of a cluster, while the number of its buckets is being changed."""
    protocol = Protocol(KEYS, "test", 8, clustered=True)
    protocol.layout = Layout(Epoch(1, 64), Epoch(0, 8), NOW, NOW + 999)
    protocol.move(NOW)
    return protocol


@pytest.mark.parametrize(("holders", "confirm"), [(1, image.PRIMARY), (0, 0)])
def test_a_write_that_goes_on_to_another_server_is_judged_by_the_replicas_of_its_own(holders, confirm):
    """What is then cleared elsewhere needs no replica; where too few had it the engine waits in vain."""
    protocol, store, ring = two_epochs(), MemoryStore(), make_ring(8, image.COLUMNS)
    rows = asking(sessions(1), WRITE)
    rows[:, image.CONFIRM] = image.REPLICATED
    batch = protocol.encoded(rows, NOW)
    protocol.wait_for_replicas(batch, 1, 80)
    data = [store.execute(command, NOW) for command in commands_of(batch.data)[:-1]]
    buffer = np.frombuffer(b"".join(map(reply_bytes, [*data, holders])), np.uint8)
    scratch, tally = np.zeros((1, image.COLUMNS), np.int64), np.zeros(replies.TALLY, np.int64)
    _, found, again = replies.settle(
        batch.pipeline, 1, 0, 0, buffer, 0, len(buffer), KEYS, NOW, ring, scratch, tally
    )
    assert (found, again, ring_pop(ring, np.zeros((8, image.COLUMNS), np.int64))) == (replies.DONE, True, 0)
    assert batch.rows[0, [image.OP, image.CONFIRM]].tolist() == [image.CLEAR, confirm]
    assert tally[replies.UNREPLICATED] == (holders == 0)


def test_in_doubt_about_the_layout_nothing_is_confirmed_and_nothing_is_missing():
    protocol, store, ring = (
        Protocol(KEYS, "test", 8, clustered=True),
        MemoryStore(),
        make_ring(8, image.COLUMNS),
    )
    written, absent = asking(sessions(2), WRITE_FIRST), asking(sessions(1, seed=2), LOOKUP)
    written[:, image.CONFIRM] = image.PRIMARY, 0
    batch = protocol.encoded(np.concatenate([written, absent, asking(sessions(1), LOOKUP)]), NOW)
    data = [store.execute(command, NOW) for command in batch.commands]
    buffer = np.frombuffer(b"".join(map(reply_bytes, data)), np.uint8)
    scratch, tally = np.zeros((1, image.COLUMNS), np.int64), np.zeros(replies.TALLY, np.int64)
    replies.settle(batch.pipeline, 4, 0, 1, buffer, 0, len(buffer), KEYS, NOW, ring, scratch, tally)
    told = np.zeros((8, image.COLUMNS), np.int64)
    assert told[: ring_pop(ring, told), image.OP].tolist() == [image.FAILED, FOUND]
    assert (tally[replies.UNCONFIRMED], tally[WRITTEN], tally[image.MISSING]) == (1, 1, 0)


def test_where_places_are_apart_each_command_speaks_for_the_row_that_is_for_its_place():
    protocol = two_epochs()
    rows = np.concatenate([asking(sessions(4), op) for op in (WRITE, DELETE, image.CLEAR, LOOKUP)])
    rows[[5, 7, 8, 9, 10, 11, 13], image.WALK] = 1 << image.PLACE_SHIFT
    batch = protocol.encoded(rows, NOW)
    assert sorted(row for rows in batch.spoken_for() for row in rows) == list(range(16))
    for command, spoken in zip(batch.commands, batch.spoken_for(), strict=True):
        if spoken:
            key = command[3 if command[0] == b"EVALSHA" else 1]
            assert key.startswith(b"{test:0:" if rows[spoken[0], image.WALK] else b"{test:1:")


def test_a_wait_that_is_refused_counts_for_nobody():
    """The number before it is the answer to something else."""
    protocol, store = Protocol(KEYS, "test", 8), MemoryStore()
    rows = asking(sessions(1), WRITE_FIRST)
    batch = protocol.encoded(rows, NOW)
    protocol.wait_for_replicas(batch, 1, 80)
    *commands, _ = commands_of(batch.data)
    refused = ErrorReply("NOPERM this user has no permissions to run the 'wait' command")
    read(protocol, batch, [*(store.execute(command, NOW) for command in commands), refused])
    assert batch.pipeline.cursor[replies.HOLDERS] == 0
    assert [error.code for error in batch.errors] == ["NOPERM"]
