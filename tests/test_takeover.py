"""A session that moved to another node and comes back to one that still has it as it was."""

from __future__ import annotations

import numpy as np
import pytest

from everwall.engine import Engine, EngineConfig
from everwall.limits import DOUBT_NS, SECOND_NS
from everwall.policy.match import allow_all, deny_all
from everwall.session import image
from everwall.verdict import Verdict
from everwall.wire import meta as m
from tests import packets
from tests.cluster import Cluster
from tests.conversations import Connection
from tests.naive.cutthrough import BOUNCED
from tests.packets import batch_of, geneve, tcp

pytestmark = pytest.mark.kernel

CLIENT, SERVER = "10.1.0.7", "10.2.0.9"
FAR = 500_000
"""More than any window here: what the connection moved on at the other node."""


class Node:
    """An engine, its clock, and a store that the test plays."""

    def __init__(self, owner: int) -> None:
        self.engine = Engine(
            EngineConfig(max_sessions=64, parked_packets=16, lookups=8, owner=owner), allow_all()
        )
        self.now = 1_000 * SECOND_NS

    def take(self, packet: bytes) -> Verdict:
        batch = batch_of([geneve(packet)])
        self.engine.receive(batch, 1, self.now)
        return Verdict(int(batch.meta[0, m.VERDICT]))

    def open(self) -> np.ndarray:
        """A connection is opened here; returns the record that is written."""
        assert self.take(client("S", 0, 0)) is Verdict.FORWARD
        assert self.take(server("SA", 0, 1)) is Verdict.FORWARD
        assert self.take(client("A", 1, 1)) is Verdict.FORWARD
        (written,) = self.engine.outbox()
        return written

    def answer(self, asked: np.ndarray, found: np.ndarray) -> int:
        """The store has a record for the session that was asked for; returns how many packets are let go."""
        reply = found.copy()
        reply[image.OP], reply[image.TAG] = image.FOUND, asked[image.TAG]
        return len(self.engine.inbox(reply.reshape(1, -1), self.now))


def client(flags: str, seq: int, ack: int, payload: bytes = b"") -> bytes:
    return tcp(CLIENT, SERVER, 40_000, 443, flags, seq=seq, ack=ack, window=8_000, payload=payload)


def server(flags: str, seq: int, ack: int, payload: bytes = b"") -> bytes:
    return tcp(SERVER, CLIENT, 443, 40_000, flags, seq=seq, ack=ack, window=8_000, payload=payload)


def moved_on(record: np.ndarray) -> np.ndarray:
    """The record after another node has taken the session over."""
    later = record.copy()
    later[image.OWNER] = 2
    later[image.GENERATION] += 1
    return later


def test_a_flow_that_comes_back_after_a_partition_goes_on_where_the_other_node_left_it() -> None:
    node = Node(owner=1)
    record = node.open()
    node.now += 10 * SECOND_NS
    assert node.take(client("PA", FAR, FAR, b"further on")) is Verdict.PARK
    (asked,) = node.engine.outbox()
    assert asked[image.OP] == image.LOOKUP
    assert node.answer(asked, moved_on(record)) == 1
    assert node.take(server("PA", FAR, FAR + 10, b"so it is")) is Verdict.FORWARD
    (session,) = node.engine.sessions()
    assert session["generation"] == 2
    assert node.engine.counters["sessions-demoted"] == 1
    assert node.engine.counters["sessions-restored"] == 1


def test_a_packet_outside_the_window_of_a_session_that_nobody_took_is_dropped_as_such() -> None:
    node = Node(owner=1)
    record = node.open()
    node.now += 10 * SECOND_NS
    assert node.take(client("PA", FAR, FAR, b"a guess")) is Verdict.PARK
    (asked,) = node.engine.outbox()
    assert node.answer(asked, record) == 0
    assert node.engine.verdicts["tcp-window"] == 1
    assert node.take(client("PA", FAR, FAR, b"another")) is Verdict.TCP_WINDOW, "the store was asked just now"
    assert node.take(client("PA", 1, 1, b"the client itself")) is Verdict.FORWARD


def test_a_busy_session_asks_nobody_about_a_packet_that_does_not_fit() -> None:
    node = Node(owner=1)
    node.open()
    node.now += DOUBT_NS
    assert node.take(client("PA", FAR, FAR, b"a guess")) is Verdict.TCP_WINDOW
    assert len(node.engine.outbox()) == 0


def test_a_new_connection_on_an_old_session_asks_todays_policy() -> None:
    """The SYN would be passed on unlearnt, as one that a live end challenges."""
    node = Node(owner=1)
    node.open()
    # As with other addresses of host names, after which live sessions are not asked about.
    node.engine.state = node.engine.state._replace(policy=deny_all())
    assert node.take(client("S", 77_000, 0)) is Verdict.POLICY_DENY
    assert node.take(client("PA", 1, 1, b"the old one goes on")) is Verdict.FORWARD


# Many at once ------------------------------------------------------------------------------------------


def test_many_sessions_are_taken_over_at_once() -> None:
    cluster = Cluster()
    former, node = cluster.node(), cluster.node(cut_through=True)
    talks = [Connection(sport=sport) for sport in range(10)]
    asks = [packets.udp(CLIENT, SERVER, sport, 53) for sport in range(20, 30)]
    answers = [packets.udp(SERVER, CLIENT, 53, sport) for sport in range(20, 30)]
    for talk in talks:
        former.receive(*talk.handshake())
    former.receive(*asks, *answers)
    rows = former.engine.outbox()
    rows = rows[rows[:, image.OP] == image.WRITE_FIRST]
    assert node.drive(packets.udp(CLIENT, SERVER, 20, 53)) == [Verdict.FORWARD], "one of them is here already"
    node.engine.outbox()
    assert node.engine.restore_all(rows, node.now) == 19
    assert node.engine.counters["sessions-restored"] == 19
    assert node.engine.restore_all(rows, node.now) == 0, "all of them are here by now"
    assert node.drive(*asks[1:], *answers[1:]) == [BOUNCED] * 18, "answered flows need no look"
    assert node.drive(*(talk.data() for talk in talks)) == [Verdict.FORWARD] * 10, "windows are learnt first"
    assert {session["generation"] for session in node.sessions()} == {0, 1}
    written = node.engine.outbox()
    assert (written[:, image.OP] == image.WRITE).sum() == 19, "they are this node's now"


def test_of_many_sessions_policy_and_room_decide() -> None:
    cluster = Cluster()
    former = cluster.node(max_sessions=200)
    former.receive(*(packets.udp(CLIENT, SERVER, sport, 53) for sport in range(100)))
    former.receive(*(packets.udp(SERVER, CLIENT, 53, sport) for sport in range(100)))
    rows = former.engine.outbox()
    rows = rows[rows[:, image.OP] == image.WRITE_FIRST]
    assert cluster.node(deny_all()).engine.restore_all(rows, former.now) == 0
    narrow = cluster.node(max_sessions=64)
    assert narrow.engine.restore_all(rows, narrow.now) == 64
    assert len(narrow.sessions()) == 64


def test_what_the_queue_to_the_store_cannot_take_is_written_later() -> None:
    cluster = Cluster()
    former, node = cluster.node(), cluster.node(ring_rows=8)
    for sport in range(20):
        former.receive(*Connection(sport=sport).handshake())
    assert node.engine.restore_all(former.engine.outbox(), node.now) == 20
    assert len(node.engine.outbox()) == 8
    node.tick(1)
    node.tick(1)
    assert len(node.engine.outbox()) == 8
    node.tick(1)
    assert len(node.engine.outbox()) == 4
