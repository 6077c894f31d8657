"""One link: what becomes of requests on their way when time passes unnoticed, or the server stammers."""

from __future__ import annotations

import select
import socket
import threading
import time

import hiredis
import pytest
import redis

from everwall.limits import LOOP_GAP_NS_MAX, SECOND_NS, STORE_STEADY_S, STORE_TIMEOUT_S
from everwall.session import image
from everwall.session.image import FAILED, LOOKUP, WRITE, WRITE_FIRST
from everwall.session.record import derive_keys
from everwall.store.connection import StoreConfig
from everwall.store.conversation import Conversation
from everwall.store.link import Arrival, connect
from everwall.store.memory import MemoryStore
from everwall.store.protocol import Protocol, reply_bytes
from tests.store.stores import KEYS, asking
from tests.store.test_crowding import trade, unreachable
from tests.store.workers import Worker, eventually, sessions


class Wire:
    """A link of which the test says how much the socket takes."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.wants_to_send = self.closed = False
        self.flushed = 0
        self.peer = "peer"

    def send(self, data: memoryview) -> None:
        self.sent.append(bytes(data))

    def flush(self) -> None:
        self.flushed += 1

    def receive(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


def linked(*, clustered: bool = True) -> tuple[Conversation, Wire]:
    """A conversation over a wire, greeted already, to which nothing happens by time passing."""
    link, wire = (
        Conversation(trade(), Protocol(KEYS, "test", 64, clustered=clustered), unreachable, leads=False),
        Wire(),
    )
    link.link = wire  # type: ignore[assignment]
    later = time.monotonic_ns() + 3600 * SECOND_NS
    link._probed_ns = link._heard_ns = link.confirmed_ns = link._trade.passed_ns = later
    return link, wire


# A new link ---------------------------------------------------------------------------------------


def test_whoever_sees_a_link_sees_what_it_brought():
    """A connection that is counted after it is seen would be missed by who looks in between."""
    link, wire = linked(clustered=False)
    link.link, seen = None, []
    link._trade.clock.count_connection = lambda: seen.append((link.link, link.peer))  # type: ignore[method-assign]
    link._welcome(Arrival(wire, [b"redis_version:7.0.15\r\n"], time.monotonic_ns(), 1))  # type: ignore[arg-type]
    assert seen == [(None, None)]
    assert (link.link, link.peer) == (wire, "peer")


# A node that stood still --------------------------------------------------------------------------


def test_first_writes_that_were_encoded_before_a_gap_and_not_sent_yet_are_sent_compared():
    """Another node may have the sessions by now, and a first write overwrites whatever lies there."""
    link, wire = linked()
    link.backlog.put(asking(sessions(10), WRITE_FIRST))
    link._with_link(wire, False)  # type: ignore[arg-type]
    wire.wants_to_send = True
    link.compare()
    assert (wire.closed, link.link) == (True, None), "the server never gets the rest of them"
    assert link._trade.last_error == "this node stood still with requests half sent"
    link.backlog.keep_writes(100)  # as with the next connection
    assert link.backlog.take(100)[:, image.OP].tolist() == [WRITE] * 10


def test_what_compares_anyway_or_has_left_already_is_no_reason_to_hang_up():
    link, wire = linked()
    link.backlog.put(asking(sessions(10), WRITE))
    link._with_link(wire, False)  # type: ignore[arg-type]
    wire.wants_to_send = True
    link.compare()
    assert not wire.closed
    link.backlog.put(asking(sessions(10, ENDPOINT=8), WRITE_FIRST))
    wire.wants_to_send = False
    link._with_link(wire, False)  # type: ignore[arg-type]
    link.compare()
    assert not wire.closed


def test_a_gap_between_taking_requests_and_sending_them_sends_none():
    link, wire = linked()
    link.backlog.put(asking(sessions(10), WRITE_FIRST))
    link._trade.passed_ns = time.monotonic_ns() - LOOP_GAP_NS_MAX - 1
    link._with_link(wire, False)  # type: ignore[arg-type]
    assert wire.sent == []
    link._with_link(wire, False)  # type: ignore[arg-type]
    (sent,) = wire.sent
    assert b"EVALSHA" in sent, "but compared, by the next pass, be that as slow"
    assert sent.count(b"LOAD") == 2
    assert sent.count(b"EXPIRE") > 0


def test_a_gap_before_the_rest_of_a_pipeline_is_sent_gives_the_link_up():
    link, wire = linked()
    link.backlog.put(asking(sessions(10), WRITE_FIRST))
    link._with_link(wire, False)  # type: ignore[arg-type]
    wire.wants_to_send = True
    link._trade.passed_ns = time.monotonic_ns() - LOOP_GAP_NS_MAX - 1
    link._with_link(wire, False)  # type: ignore[arg-type]
    assert (wire.flushed, wire.closed) == (0, True)


@pytest.mark.parametrize("operation", [LOOKUP, WRITE, WRITE_FIRST])
def test_what_passed_while_this_node_stood_still_is_no_silence_of_the_server(operation):
    """The machine stood still with the answer on its way: it comes a moment later. But a first write that comes later
    than another's overwrites that."""
    link, wire = linked()
    link.backlog.put(asking(sessions(3), operation))
    link._with_link(wire, False)  # type: ignore[arg-type]
    link._heard_ns, link._pipelines[0].sent_ns = 0, time.monotonic_ns() - int(STORE_TIMEOUT_S * SECOND_NS)
    link._trade.resumed_ns = time.monotonic_ns() + 3600 * SECOND_NS
    link._with_link(wire, False)  # type: ignore[arg-type]
    assert wire.closed == (operation == WRITE_FIRST)
    assert not link.is_silent
    link._trade.resumed_ns = 0
    if link.link is not None:
        link._with_link(wire, False)  # type: ignore[arg-type]
    assert wire.closed, "as after a silence that it was awake for"
    assert link._trade.answers.tally[FAILED] == (3 if operation == LOOKUP else 0)


# What is asked all the time ----------------------------------------------------------------------


def asked(link: Conversation, wire: Wire) -> list[list[bytes]]:
    """The first words of the commands that a link sends once it is due to ask."""
    wire.sent.clear()
    link._probed_ns = 0
    link._with_link(wire, False)  # type: ignore[arg-type]
    reader = hiredis.Reader()
    reader.feed(b"".join(wire.sent))
    return [command[:1] if command[0] != b"SCRIPT" else command[:2] for command in iter(reader.gets, False)]


def test_a_link_that_follows_does_not_ask_for_store_time():
    """It may be the first at a server that has become the primary, where nobody has loaded the script yet."""
    assert asked(*linked(clustered=False)) == [[b"TIME"], [b"GET"]]
    assert asked(*linked(clustered=True)) == [[b"TIME"]], "the layout is on the server that leads"


def test_a_link_that_comes_to_lead_teaches_the_server_with_its_first_question():
    link, wire = linked()
    link.leads = True
    assert asked(link, wire) == [[b"SCRIPT", b"LOAD"], [b"EVALSHA"], [b"GET"]]
    assert asked(link, wire) == [[b"EVALSHA"], [b"GET"]]


def test_who_sees_other_secrets_sees_that_all_sessions_are_to_be_written_with_them(monkeypatch):
    """Or an operator would drop the old secret before anything was written with the new one."""
    link, _ = linked()
    link.leads, trade, seen = True, link._trade, []
    count, others = trade.clock.count_move, derive_keys(b"o" * 32)
    monkeypatch.setattr(trade.clock, "count_move", lambda: (seen.append(trade.keys), count()))
    link.use_keys(others)
    assert trade.keys is KEYS, "something may be under way"
    link._move()
    assert len(seen) == 1
    assert seen[0] is KEYS
    assert trade.keys is others


# A connection that does not hold ------------------------------------------------------------------


def test_a_link_that_is_lost_as_soon_as_it_is_made_is_dialled_at_growing_pauses():
    """Each of them has every live session offered again."""
    link, _ = linked()
    for attempt in range(3):
        link.link, link._since_ns = Wire(), time.monotonic_ns()  # type: ignore[assignment]
        link.hang_up("it flaps")
        assert link._dialer._attempts == attempt + 1
    link.link = Wire()  # type: ignore[assignment]
    link._since_ns = time.monotonic_ns() - int(STORE_STEADY_S * SECOND_NS)
    link.hang_up("it held for a while")
    assert link._dialer._attempts == 1


# A server that stammers ---------------------------------------------------------------------------

_PAUSE_S = 0.1
_BYTES = 100
"""Ten seconds' worth: longer than anybody may wait, and no test hangs."""


class Stammerer:
    """A server that answers as the twin in memory does; from some command on byte by byte."""

    def __init__(self, until: bytes) -> None:
        self._until, self._memory = until, MemoryStore()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.config = StoreConfig("127.0.0.1", self._listener.getsockname()[1], tls=False)
        self._ended = threading.Event()
        self.stammered = 0
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ended.is_set():
            if select.select([self._listener], [], [], 0.05)[0]:
                with self._listener.accept()[0] as peer:
                    self._answer(peer)

    def _answer(self, peer: socket.socket) -> None:
        reader, out = hiredis.Reader(), b""
        try:
            while not self._ended.is_set() and self.stammered < _BYTES:
                if select.select([peer], [], [], 0 if out else 0.05)[0]:
                    if not (data := peer.recv(1 << 16)):
                        return
                    reader.feed(data)
                while not out and (command := reader.gets()) is not False:
                    if command[0] == self._until:
                        out = b"$%d\r\n" % 1000 + b"x" * 1000
                    elif command[0] == b"CLIENT":
                        peer.sendall(b"+OK\r\n")
                    else:
                        peer.sendall(reply_bytes(self._memory.execute(tuple(command), int(time.time()))))
                if out:
                    peer.sendall(out[:1])
                    out, self.stammered = out[1:], self.stammered + 1
                    self._ended.wait(_PAUSE_S)
        except OSError:
            return

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._listener.close()


@pytest.fixture
def stammerer():
    made: list[Stammerer] = []

    def make(until: bytes) -> Stammerer:
        made.append(Stammerer(until))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("command", [b"CLIENT", b"GET"])
def test_a_server_that_stammers_while_it_is_dialled_is_given_up(stammerer, command):
    server = stammerer(command)
    greeting = Protocol(KEYS, "test", 64).greeting()
    with pytest.raises(redis.TimeoutError):
        connect(server.config, None, greeting)
    assert 0 < server.stammered < _BYTES


def test_a_server_that_stammers_its_answer_is_found_silent(stammerer):
    server = stammerer(b"HGET")
    node = Worker(server.config)
    try:
        node.connected()
        assert node.outcome(sessions(3), LOOKUP) == [FAILED] * 3, "after the look-up deadline"
        eventually(lambda: "did not answer" in (node.status["last_error"] or ""), "the link is given up")
        assert server.stammered < _BYTES
    finally:
        node.close()
