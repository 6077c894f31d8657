"""A node whose clock is ahead: its sessions begin when the store says, not when it thought. And a store that errs."""

from __future__ import annotations

import pytest

from everwall.counters import Counter
from everwall.limits import SECOND_NS
from everwall.session import image, state
from everwall.session.record import ORDER_OFFSET
from everwall.session.resync import progress
from everwall.store.clock import StoreClock
from everwall.store.protocol import CLOCK_SCRIPT, clock_command, store_time_ns
from everwall.verdict import Verdict
from tests.cluster import Cluster, Node
from tests.conversations import Connection
from tests.session.test_ageing import by

pytestmark = pytest.mark.kernel

AHEAD_NS = 3600 * SECOND_NS


def fast(cluster: Cluster) -> Node:
    """A node that was never connected, an hour ahead."""
    offset = cluster.time - 1000 * SECOND_NS  # as the first node of a cluster has it
    return cluster.node(epoch_offset=offset + AHEAD_NS, epoch_guessed=True)


def connect(node: Node) -> None:
    """The store's thread has a first connection."""
    clock = node.engine.sessions_state.clock
    clock[state.CLOCK_OFFSET] = node.offset
    clock[state.CLOCK_GUESSED] = 0
    clock[state.CLOCK_CONNECTIONS] += 1


def test_nothing_is_written_before_the_store_has_told_the_time_and_all_of_it_afterwards() -> None:
    cluster = Cluster()
    node = fast(cluster)
    for sport in range(1000, 1010):
        node.receive(*Connection(sport=sport).handshake())
    node.tick(2)
    assert len(node.engine.outbox()) == 0
    connect(node)
    node.tick(0.02)
    rows = node.engine.outbox()
    assert len(rows) == 10
    assert (rows[:, image.START] * 1_000_000 <= cluster.time).all()
    assert node.engine.counters[Counter.STARTS_AHEAD.label] == 10
    node.answer(rows)
    node.tick(2)
    assert [session["start_ms"] for session in node.sessions()] == rows[:, image.START].tolist()
    assert len(cluster.records()) == 10


def test_a_store_of_which_only_a_part_has_come_is_not_whole() -> None:
    node = fast(Cluster())
    node.receive(*Connection().handshake())
    node.engine.sessions_state.clock[state.CLOCK_CONNECTIONS] += 1
    node.tick(1)
    facts = progress(node.engine.sessions_state)
    assert (facts["resync_percent"], facts["unsynced_sessions"]) == (0, 1)
    connect(node)
    node.tick(0.02)
    node.serve()
    node.tick()
    facts = progress(node.engine.sessions_state)
    assert (facts["resync_percent"], facts["unsynced_sessions"]) == (100, 0)


def test_a_session_that_began_by_a_clock_ahead_gives_way_to_a_later_one_of_the_same_ends() -> None:
    """Else its owner's delete, an hour late, would take away the record of the connection that is there."""
    cluster = Cluster()
    early = fast(cluster)
    early.receive(*Connection().handshake())
    connect(early)
    early.tick(0.02)
    early.serve()
    cluster.wait(10)
    later, again = cluster.node(), Connection(client_start=77_000, server_start=99_000)
    later.receive(*again.handshake())
    later.serve()
    later.receive(again.fin())
    later.serve()
    early.tick(2 * 3600)
    early.serve()
    assert early.sessions() == [], "it has aged out"
    assert len(cluster.records()) == 1, "and its delete was refused"
    (kept,) = cluster.records().values()
    began = int.from_bytes(kept[ORDER_OFFSET : ORDER_OFFSET + 6], "big")
    assert began == later.only_session()["start_ms"]


def test_min_age_counts_from_now_and_not_from_an_hour_ahead() -> None:
    cluster = Cluster()
    offset = cluster.time - 1000 * SECOND_NS
    node = cluster.node(by("min-age 3s"), epoch_offset=offset + AHEAD_NS, epoch_guessed=True)
    node.receive(*Connection().handshake())
    node.tick(1)
    connect(node)
    node.tick(1)
    assert len(node.engine.outbox()) == 0
    node.tick(3)
    assert len(node.engine.outbox()) == 1


class Watch:
    """How a node asks for store time of a server whose clock is behind what it was."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._clock = StoreClock(node.engine.sessions_state.clock)

    def ask(self, behind_s: int) -> None:
        cluster, now = self._node.cluster, self._node.now
        least_ns = self._clock.least_ns(now)
        server_s = (cluster.time - behind_s * SECOND_NS) / SECOND_NS
        cluster.store.execute((b"SCRIPT", b"LOAD", CLOCK_SCRIPT), server_s)
        told = cluster.store.execute(clock_command(b"clock", least_ns), server_s)
        self._clock.tell(store_time_ns(told), least_ns, now, now)


@pytest.mark.parametrize("set_back_s", [2, 1_000])
@pytest.mark.parametrize("joins", [False, True], ids=["there-before", "joins-after"])
def test_ends_that_connect_anew_after_a_server_s_clock_was_set_back_have_the_later_session(
    joins: bool, set_back_s: int
) -> None:
    """The node that has still got the former one takes it for what it is when the flow comes to it."""
    cluster = Cluster()
    former, later = cluster.node(), cluster.node()
    watches = Watch(former), Watch(later)
    watches[0].ask(behind_s=0)
    if not joins:
        watches[1].ask(behind_s=0)
    former.receive(*Connection().handshake())
    former.serve()
    cluster.wait(1)
    watches[1].ask(behind_s=set_back_s)
    again = Connection(client_start=77_000, server_start=99_000)
    later.receive(*again.handshake())
    later.serve()
    assert later.only_session()["start_ms"] > former.only_session()["start_ms"]
    watches[0].ask(behind_s=set_back_s)
    former.tick(1)
    former.serve()
    assert former.judge(again.data(), again.data(again.server)) == [Verdict.FORWARD] * 2, (
        "the later one is lost"
    )
    assert former.only_session()["start_ms"] == later.only_session()["start_ms"]
