"""Each checker speaks up when its promise is broken, and only then."""

from __future__ import annotations

import itertools

import pytest

from everwall.counters import Counter
from everwall.session import state, tcp
from everwall.session import table as t
from everwall.sim import packets
from everwall.sim.checkers import PromiseBroken, books
from everwall.sim.checkers.order import SessionOrder
from everwall.sim.cluster import Cluster
from everwall.sim.flows import Flow
from everwall.sim.hosts import Phase, TcpConnection
from everwall.sim.loop import SECOND
from everwall.sim.node import Node
from everwall.sim.packets import ACK, RST, TCP
from everwall.sim.plan import draw
from everwall.sim.rulebook import Rule

pytestmark = pytest.mark.kernel

SEED = 18
"""A short run without change of policy."""


@pytest.fixture
def cluster() -> Cluster:
    """A cluster five seconds after its beginning: nothing has failed yet."""
    running = Cluster(draw(SEED))
    running.traffic.begin()
    running.loop.run(5 * SECOND)
    return running


def busy(cluster: Cluster) -> Node:
    return max(cluster.nodes, key=lambda node: node.engine.counters["sessions"])


def stored_connection(cluster: Cluster) -> TcpConnection:
    return next(
        one
        for one in cluster.traffic.live
        if isinstance(one, TcpConnection) and one.live and cluster.liveness.is_stored(one)
    )


def test_books_of_a_running_cluster_add_up(cluster: Cluster) -> None:
    for node in cluster.nodes:
        books.check_engine(node)


@pytest.mark.parametrize(
    ("counter", "complaint"),
    [
        (Counter.RECEIVED, "received = forwarded"),
        (Counter.SESSIONS, "sessions begun"),
        (Counter.SESSIONS_ENDED, "sessions begun"),
        (Counter.LOOKUP_HITS, "look-ups"),
    ],
)
def test_a_counter_that_is_off_by_one_is_noticed(cluster: Cluster, counter: Counter, complaint: str) -> None:
    node = busy(cluster)
    node.engine.sessions_state.counters[counter] += 1
    with pytest.raises(PromiseBroken, match=complaint):
        books.check_engine(node)


def test_a_lost_packet_that_nobody_counted_is_noticed(cluster: Cluster) -> None:
    cluster.traffic.stop()
    cluster.loop.run(15 * SECOND)

    def check() -> None:
        links = cluster.edge_in, cluster.edge_out, cluster.to_nodes, cluster.from_nodes
        books.check_network(cluster.gateway, cluster.nodes, *links)

    check()
    next(iter(cluster.to_nodes.values())).lost -= 1
    with pytest.raises(PromiseBroken, match="sent, lost and delivered"):
        check()


@pytest.mark.parametrize(
    ("was", "now", "forbidden"),
    [
        (tcp.TCP_ESTABLISHED, tcp.TCP_HANDSHAKE, True),
        (tcp.TCP_TIME_WAIT, tcp.TCP_ESTABLISHED, True),
        (tcp.TCP_HALF_CLOSED_CLIENT, tcp.TCP_ESTABLISHED, True),
        (tcp.TCP_ESTABLISHED, tcp.UDP, True),
        (tcp.TCP_INIT, tcp.TCP_ESTABLISHED, False),
        (tcp.TCP_UNVERIFIED_RST, tcp.TCP_ESTABLISHED, False),
        (tcp.TCP_ESTABLISHED, tcp.TCP_CLOSED, False),
    ],
)
def test_a_session_that_goes_back_is_noticed(cluster: Cluster, was: int, now: int, forbidden: bool) -> None:
    node, order = busy(cluster), SessionOrder()
    table = node.engine.sessions_state.table
    slot = int(table.hot[:, t.KEY2].argmax())
    table.short[slot, t.STATE] = was
    order.look(node)
    table.short[slot, t.STATE] = now
    if forbidden:
        with pytest.raises(PromiseBroken, match="went from state"):
            order.look(node)
    else:
        order.look(node)


def test_a_generation_that_falls_is_noticed(cluster: Cluster) -> None:
    node, order = busy(cluster), SessionOrder()
    table = node.engine.sessions_state.table
    slot = int(table.hot[:, t.KEY2].argmax())
    table.short[slot, t.GENERATION] = 3
    order.look(node)
    table.short[slot, t.GENERATION] = 2
    with pytest.raises(PromiseBroken, match="generation"):
        order.look(node)


def test_a_record_that_is_taken_back_is_noticed(cluster: Cluster) -> None:
    bucket, field, value = some_record(cluster)
    older = value[:21] + (int.from_bytes(value[21:27], "big") - 1).to_bytes(6, "big") + value[27:]
    with pytest.raises(PromiseBroken, match="took a record back"):
        cluster.server.execute([(b"HSET", bucket, field, older)])


def test_a_packet_that_nobody_sent_is_noticed(cluster: Cluster) -> None:
    connection = stored_connection(cluster)
    node = cluster.passage.carriers[connection.flow.key]
    strange = connection.flow._replace(cport=1, sport=1)
    outer = wrapped(strange)
    with pytest.raises(PromiseBroken, match="nobody began it"):
        cluster.passage.forwarded(node, outer)


def test_another_node_may_not_let_in_what_its_policy_denies(cluster: Cluster) -> None:
    connection = stored_connection(cluster)
    other = next(n for n in cluster.nodes if n is not cluster.passage.carriers[connection.flow.key])
    outer = wrapped(connection.flow)
    closed = type(cluster.plan.rulebook)(())
    other.rulebooks = [(cluster.loop.now - 1, closed)]
    cluster.passage.arrived(other, outer)
    with pytest.raises(PromiseBroken, match="policy does not allow"):
        cluster.passage.forwarded(other, outer)


def test_a_flow_without_syn_needs_a_record(cluster: Cluster) -> None:
    connection = stored_connection(cluster)
    other = next(n for n in cluster.nodes if n is not cluster.passage.carriers[connection.flow.key])
    outer = wrapped(connection.flow)
    cluster.store_order.ever.discard(connection.flow.key)
    cluster.passage.arrived(other, outer)
    with pytest.raises(PromiseBroken, match="the store never had it"):
        cluster.passage.forwarded(other, outer)


def test_a_node_answers_only_what_a_rule_refuses_and_says_so(cluster: Cluster) -> None:
    flow = stored_connection(cluster).flow
    node, book = busy(cluster), cluster.plan.rulebook
    with pytest.raises(PromiseBroken, match="about which no rule says so"):
        cluster.passage.made(node, wrapped(flow, RST))
    node.rulebooks = [(0, book.with_first(Rule("stop", False, TCP, answers=False)))]
    with pytest.raises(PromiseBroken, match="about which no rule says so"):
        cluster.passage.made(node, wrapped(flow, RST))
    node.rulebooks = [(0, book.with_first(Rule("stop", False, TCP)))]
    for one in (flow, flow.turned):
        cluster.passage.made(node, wrapped(one, RST))
    with pytest.raises(PromiseBroken, match="neither RST nor unreachable"):
        cluster.passage.made(node, wrapped(flow))


def test_a_stored_connection_that_falls_silent_is_lost(cluster: Cluster) -> None:
    connection = stored_connection(cluster)
    cluster.edge_out.cut = True
    with pytest.raises(PromiseBroken, match="was lost: no round trip"):
        cluster.loop.run(40 * SECOND)
    assert connection.phase is Phase.OPEN


def test_an_unstored_connection_of_a_node_that_fails_is_excused(cluster: Cluster) -> None:
    connection = stored_connection(cluster)
    node = cluster.passage.carriers[connection.flow.key]
    forget(cluster, connection)
    cluster.liveness.struck([connection], node, cluster.loop.now)
    cluster.liveness.broke(connection, "client: reset")
    assert cluster.liveness.lost == [connection]
    stored = next(
        one for one in itertools.islice(cluster.traffic.live, 50) if one is not connection and one.live
    )
    with pytest.raises(PromiseBroken, match="was lost: client: reset"):
        cluster.liveness.broke(stored, "client: reset")


def test_a_record_that_another_owner_writes_over_is_noticed(cluster: Cluster) -> None:
    bucket, field, value = some_record(cluster)
    stranger = value[:17] + b"\0\0\0\1" + value[21:]
    with pytest.raises(PromiseBroken, match="over the record of another owner"):
        cluster.server.execute([(b"HSET", bucket, field, stranger)])


def test_a_clock_that_was_set_back_is_no_excuse_for_an_earlier_start(cluster: Cluster) -> None:
    bucket, field, value = some_record(cluster)
    start = int.from_bytes(value[21:27], "big")
    earlier = value[:21] + (start - 4_000).to_bytes(6, "big") + value[27:]
    cluster.server.set_clock(-5 * SECOND)
    with pytest.raises(PromiseBroken, match="took a record back"):
        cluster.server.execute([(b"HSET", bucket, field, earlier)])


def test_a_record_from_the_future_may_be_written_over_by_a_new_connection(cluster: Cluster) -> None:
    bucket, field, value = some_record(cluster)
    found = cluster.server.memory.keys[bucket]
    assert isinstance(found, dict)
    start = cluster.server.store_ns // 1_000_000 + 3_600_000
    found[field] = value[:21] + start.to_bytes(6, "big") + value[27:]
    cluster.server.execute([(b"HSET", bucket, field, value)])
    assert cluster.server.value(bucket, field) == value


def test_a_node_that_says_the_store_has_all_its_sessions_is_held_to_it(cluster: Cluster) -> None:
    connection = stored_connection(cluster)
    node = cluster.passage.carriers[connection.flow.key]
    assert node.is_whole
    cluster.records.must_hold(node, [connection])
    forget(cluster, connection)
    with pytest.raises(PromiseBroken, match="said that the store has all its sessions"):
        cluster.records.must_hold(node, [connection])


@pytest.mark.parametrize("trouble", ["hung", "full", "away", "resync"])
def test_nothing_is_demanded_of_a_store_that_nobody_calls_whole(cluster: Cluster, trouble: str) -> None:
    connection = stored_connection(cluster)
    node = cluster.passage.carriers[connection.flow.key]
    forget(cluster, connection)
    if trouble == "hung":
        cluster.server.stop()
    elif trouble == "full":
        cluster.server.fill(True)
    elif trouble == "away":
        cluster.server.cut({node.name})
    else:
        node.engine.sessions_state.clock[state.CLOCK_CONNECTIONS] += 1
    cluster.records.must_hold(node, [connection])


def test_a_strict_connection_without_record_is_lost_by_whoever_lost_it(cluster: Cluster) -> None:
    connection = stored_connection(cluster)
    node = cluster.passage.carriers[connection.flow.key]
    cluster.server.stop()  # so that nothing else is demanded
    cluster.records.answered.add(connection)
    forget(cluster, connection)
    with pytest.raises(PromiseBroken, match="was answered and has no record"):
        cluster.records.must_hold(node, [connection])
    cluster.records.store_lost({connection})
    cluster.records.must_hold(node, [connection])


def test_what_the_store_loses_is_excused_while_no_node_that_is_well_has_it(cluster: Cluster) -> None:
    connection = stored_connection(cluster)
    cluster.liveness.store_lost({connection}, lambda node: True)
    assert connection not in cluster.liveness.excused
    cluster.liveness.store_lost({connection}, lambda node: False)
    assert "while its node was away" in cluster.liveness.excused[connection]


def forget(cluster: Cluster, connection: TcpConnection) -> None:
    """The store has no record of a connection any more."""
    bucket, field = cluster.store_order.place(connection.flow.key)
    found = cluster.server.memory.keys[bucket]
    assert isinstance(found, dict)
    del found[field]


def some_record(cluster: Cluster) -> tuple[bytes, bytes, bytes]:
    """(bucket, field, value) of a live connection."""
    bucket, field = cluster.store_order.place(stored_connection(cluster).flow.key)
    value = cluster.server.value(bucket, field)
    assert value is not None
    return bucket, field, value


def wrapped(flow: Flow, flags: int = ACK) -> bytes:
    """A segment as a gateway wraps it: 8 bytes of options before the endpoint id, 20 after."""
    inner = packets.tcp(*flow[2:], flags, 1, 1, 100)
    return bytes([32 // 4]) + bytes(11) + flow.endpoint.to_bytes(8, "big") + bytes(20) + inner
