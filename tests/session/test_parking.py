"""Packets of unknown flows wait for the store: copied, in order, bounded, and never for long."""

from __future__ import annotations

import numpy as np
import pytest

from everwall.counters import Counter
from everwall.limits import MISS_BUDGET_PER_S, PARKED_PER_FLOW_MAX
from everwall.session import image, state
from everwall.verdict import Verdict
from everwall.wire import meta as m
from tests import packets
from tests.cluster import Cluster, Node
from tests.conversations import Connection

pytestmark = pytest.mark.kernel

FORWARD, PARK = Verdict.FORWARD, Verdict.PARK


def stray(sport: int = 40_000, payload: bytes = b"") -> bytes:
    """A packet from the middle of a connection."""
    return packets.tcp("10.0.0.1", "10.0.1.1", sport, 80, "A", 1, 1, payload=payload)


@pytest.fixture
def node() -> Node:
    return Cluster().node()


def counter(node: Node, which: Counter) -> int:
    return node.engine.counters[which.label]


# Waiting -----------------------------------------------------------------------------------------------


def test_one_look_up_for_a_flow_and_its_packets_in_order() -> None:
    cluster = Cluster()
    first, second = cluster.node(), cluster.node()
    connection = Connection()
    first.judge(*connection.handshake())
    segments = [*connection.exchange(3), connection.fin()]
    assert second.receive(*segments) == [PARK] * 7
    rows = second.engine.outbox()
    assert rows[:, image.OP].tolist() == [image.LOOKUP]
    assert counter(second, Counter.PARKED) == 7
    second.answer(rows)
    assert second.released == segments
    assert counter(second, Counter.PARKED) == 0
    assert second.only_session()["state"] == "half-closed"


def test_parked_packets_are_copies(node: Node) -> None:
    # The batch they came in is used again for the next packets at once.
    batch = packets.batch_of([stray(payload=b"mine")], bare=True)
    node.engine.receive(batch, 1, node.now)
    batch.data[:] = 0xFF
    batch.meta[:] = -1
    row = int(node.engine.state.sessions.pending[:, state.PENDING_FIRST].max())
    arena = node.engine.state.sessions.arena
    assert packets.unload(arena, row) == stray(payload=b"mine")
    assert arena.meta[row, m.VERDICT] == FORWARD  # not judged yet


def test_both_directions_wait_for_one_answer(node: Node) -> None:
    back = packets.tcp("10.0.1.1", "10.0.0.1", 80, 40_000, "A", 1, 1)
    assert node.receive(stray(), back, stray()) == [PARK] * 3
    assert len(node.engine.outbox()) == 1


def test_what_the_store_does_not_know_is_refused_in_the_end(node: Node) -> None:
    assert node.judge(stray()) == [Verdict.NON_SYN_TCP]
    assert (counter(node, Counter.LOOKUP_MISSES), counter(node, Counter.PARKED)) == (1, 0)
    assert node.sessions() == []


def test_a_geneve_packet_is_released_with_its_own_header() -> None:
    cluster = Cluster()
    first, second = cluster.node(), cluster.node()
    connection = Connection()
    first.judge(*map(packets.geneve, connection.handshake()), bare=False)
    wrapped = packets.geneve(connection.data(), cookie=0xC00C1E)
    assert second.judge(wrapped, bare=False) == [FORWARD]
    assert second.released == [wrapped]


# Bounds ------------------------------------------------------------------------------------------------


def test_a_flow_parks_so_many_and_no_more(node: Node) -> None:
    verdicts = node.receive(*[stray()] * (PARKED_PER_FLOW_MAX + 2))
    assert verdicts == [PARK] * PARKED_PER_FLOW_MAX + [Verdict.PARK_FLOW_FULL] * 2


def test_the_arena_is_bounded_and_comes_back() -> None:
    node = Cluster().node(parked_packets=8)
    verdicts = node.receive(*(stray(sport) for sport in range(10)))
    assert verdicts == [PARK] * 8 + [Verdict.PARK_FULL] * 2
    node.serve()
    node.cluster.wait(1)
    assert node.receive(*(stray(sport) for sport in range(8))) == [PARK] * 8


def test_look_ups_under_way_are_bounded() -> None:
    node = Cluster().node(lookups=8)
    verdicts = node.receive(*(stray(sport) for sport in range(9)))
    assert verdicts == [PARK] * 8 + [Verdict.LOOKUP_LIMIT]


def test_a_full_request_queue_refuses_by_name() -> None:
    node = Cluster().node(ring_rows=2)
    verdicts = node.receive(*(stray(sport) for sport in range(3)))
    assert verdicts == [PARK, PARK, Verdict.LOOKUP_LIMIT]


def test_lookups_must_make_whole_sets() -> None:
    with pytest.raises(ValueError, match="power of two"):
        Cluster().node(lookups=12)


# Deadlines ---------------------------------------------------------------------------------------------


def test_a_silent_store_is_not_waited_for(node: Node) -> None:
    node.receive(stray(1), stray(1))
    node.cluster.wait(0.02)
    node.receive(stray(2))
    assert node.engine.next_timer() - node.now <= 30_000_000
    node.tick(0.029)
    assert counter(node, Counter.PARKED) == 3
    node.tick(0.001)
    assert counter(node, Counter.PARKED) == 1
    node.tick(0.02)
    assert node.engine.verdicts == {"park": 3, "lookup-timeout": 3}
    assert counter(node, Counter.LOOKUP_FAILURES) == 2


def test_an_answer_that_comes_too_late_is_only_counted() -> None:
    cluster = Cluster()
    first, second = cluster.node(), cluster.node()
    connection = Connection()
    first.judge(*connection.handshake())
    second.receive(connection.data())
    rows = second.engine.outbox()
    second.tick(0.05)
    second.answer(rows)
    assert (second.released, second.sessions()) == ([], [])
    assert counter(second, Counter.LATE_REPLIES) == 1
    assert second.judge(connection.data()) == [FORWARD]  # the next packet asks again


def test_a_late_answer_is_not_taken_for_another_flows() -> None:
    # The slot of the old look-up is used again; the answer's mark tells them apart.
    node = Cluster().node(lookups=8)
    node.receive(*(stray(sport) for sport in range(8)))
    late = node.engine.outbox()
    node.tick(0.05)
    node.receive(*(stray(sport) for sport in range(8, 16)))
    node.reply(late, image.FAILED)
    assert counter(node, Counter.PARKED) == 8
    assert counter(node, Counter.LATE_REPLIES) == 8


# Misses ------------------------------------------------------------------------------------------------


def test_a_miss_is_remembered_for_a_moment(node: Node) -> None:
    assert node.judge(stray()) == [Verdict.NON_SYN_TCP]
    assert node.receive(stray()) == [Verdict.NON_SYN_TCP]
    node.cluster.wait(0.099)
    assert node.receive(stray()) == [Verdict.NON_SYN_TCP]
    assert counter(node, Counter.LOOKUPS) == 1
    node.cluster.wait(0.001)
    assert node.receive(stray()) == [PARK]


def test_a_syn_clears_what_was_missed(node: Node) -> None:
    connection = Connection()
    node.judge(stray())
    assert node.receive(connection.syn()) == [FORWARD]
    node.forget_everything()
    assert node.receive(stray()) == [PARK]


def test_a_failure_is_not_remembered_as_a_miss(node: Node) -> None:
    node.receive(stray())
    node.reply(node.engine.outbox(), image.FAILED)
    assert node.receive(stray()) == [PARK]


def flood(node: Node, count: int) -> list[Verdict]:
    verdicts = []
    for sport in range(count):
        verdicts += node.judge(stray(1 + sport % 60_000))
    return verdicts


def budget(node: Node, per_second: int) -> None:
    words = node.engine.state.sessions.words
    assert words[state.MISS_BUDGET] == MISS_BUDGET_PER_S
    words[state.MISS_BUDGET] = words[state.MISS_TOKENS] = per_second
    words[state.MISS_REFILLED] = node.now


def test_a_flood_of_strays_uses_up_a_budget_that_fills_again(node: Node) -> None:
    budget(node, 20)
    assert flood(node, 25) == [Verdict.NON_SYN_TCP] * 20 + [Verdict.LOOKUP_BUDGET] * 5
    node.cluster.wait(0.5)
    node.engine.state.sessions.negative[:] = 0
    assert flood(node, 25) == [Verdict.NON_SYN_TCP] * 10 + [Verdict.LOOKUP_BUDGET] * 15
    node.cluster.wait(100)
    node.engine.state.sessions.negative[:] = 0
    assert flood(node, 25).count(Verdict.NON_SYN_TCP) == 20  # it is never more than a second's


def test_a_miss_that_comes_too_late_is_charged_as_well(node: Node) -> None:
    """A store that a flood has made slow answers late: it would be asked ever more."""
    budget(node, 3)
    for sport in range(3):
        node.receive(stray(40_000 + sport))
    rows = node.engine.outbox()
    node.tick(0.06)  # long past the deadline
    node.engine.state.sessions.words[state.MISS_TOKENS] = 3
    node.reply(rows, image.MISSING)
    assert counter(node, Counter.LATE_REPLIES) == 3
    assert node.receive(stray(50_000)) == [Verdict.LOOKUP_BUDGET]


def test_a_failover_is_not_charged() -> None:
    cluster = Cluster()
    first, second = cluster.node(), cluster.node()
    budget(second, 5)
    connections = [Connection(sport=sport) for sport in range(30)]
    for connection in connections:
        first.judge(*connection.handshake())
    assert {second.judge(connection.data())[0] for connection in connections} == {FORWARD}
    assert counter(second, Counter.LOOKUP_HITS) == 30


def test_nothing_is_asked_without_resiliency() -> None:
    node = Cluster().node(resiliency=False)
    assert node.receive(stray()) == [Verdict.NON_SYN_TCP]
    assert len(node.engine.outbox()) == 0


def test_every_row_of_the_arena_is_free_again(node: Node) -> None:
    """After any mix of ends: no packet leaks, whatever became of it."""
    total = len(node.engine.state.sessions.next_row)
    for at in range(40):
        node.receive(stray(at), stray(at))
        rows = node.engine.outbox()
        if at % 3 == 0:
            node.reply(rows, image.MISSING)
        elif at % 3 == 1:
            node.reply(rows, image.REFUSED)
        else:
            node.tick(0.06)
    next_row, free = node.engine.state.sessions.next_row, 0
    row = int(node.engine.state.sessions.words[state.FREE_ROW])
    seen = np.zeros(total, bool)
    while row >= 0:
        assert not seen[row]
        seen[row] = True
        row, free = int(next_row[row]), free + 1
    assert free == total
    assert counter(node, Counter.PARKED) == 0
