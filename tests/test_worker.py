"""Workers beside one another: whatever worker a packet comes to, its flow's owner judges it and sends it.

First by hand, turn by turn in one thread, so that each step can be looked at; then in threads, with the system
spreading packets over the workers as it likes.
"""

from __future__ import annotations

import copy
import os
import random
from collections import Counter as Tally
from collections.abc import Callable, Iterator

import pytest

from everwall.counters import Counter
from everwall.engine import describe_sessions
from everwall.handover import lie_down
from everwall.limits import (
    HANDOVER_PACKETS,
    LOOP_GAP_NS_MAX,
    MS_NS,
    POLL_MS_MAX,
    POLL_OFFLOADED_MS_MAX,
    SECOND_NS,
    STORE_BATCH_RECORDS,
    STORE_FLUSH_NS,
)
from everwall.policy.match import deny_all
from everwall.session import control
from everwall.worker import patience_ns
from tests import packets
from tests.conversations import Connection
from tests.fleet import Fleet

pytestmark = pytest.mark.kernel

CLIENT, SERVER = "10.1.0.7", "10.2.0.9"


@pytest.fixture
def fleet() -> Iterator[Callable[..., Fleet]]:
    made: list[Fleet] = []

    def make(workers: int, **options: object) -> Fleet:
        made.append(Fleet(workers, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()


def connection_of(fleet: Fleet, worker: int, first: int = 40_000) -> Connection:
    """A TCP connection whose flow belongs to ``worker``."""
    port = next(p for p in range(first, 1 << 16) if fleet.owner(packets.tcp(CLIENT, SERVER, p, 80)) == worker)
    return Connection(CLIENT, SERVER, port)


def datagram_of(fleet: Fleet, owner: int, keeper: int, turned: bool = False) -> list[bytes]:
    """A UDP datagram in fragments whose flow one worker has and whose fragments another keeps together."""
    ends = (SERVER, CLIENT) if turned else (CLIENT, SERVER)
    for port in range(5_000, 6_000):
        ports = (53, port) if turned else (port, 53)
        whole = packets.udp(*ends, *ports, b"x" * 3000)
        if fleet.owner(packets.udp(*ends, *ports)) == owner:
            break
    made = (packets.fragments(whole, 1400, ident) for ident in range(1, 1 << 16))
    return next(parts for parts in made if fleet.keeper(parts[0]) == keeper)


# By hand -----------------------------------------------------------------------------------------------


def test_a_flow_that_comes_to_the_wrong_worker_is_its_owners(fleet: Callable[..., Fleet]) -> None:
    pair = fleet(2)
    talk = connection_of(pair, 1)
    for number, segment in enumerate([*talk.handshake(), talk.data(), talk.data(talk.server)]):
        came_to = number % 2
        pair.send(came_to, segment)
        pair.step(came_to)
        if came_to == 0:
            assert pair.returned() == [], "handed over, and its owner has not had its turn"
            pair.step(1)
        assert pair.returned() == [segment]
    assert describe_sessions(pair.workers[0].sessions) == []
    (session,) = describe_sessions(pair.workers[1].sessions)
    assert (session["state"], session["packets"]) == ("established", 5)
    assert pair.verdicts() == [{}, {"forward": 5}], "counted where it was judged, and only there"
    assert (pair.counter(Counter.HANDED_OVER), pair.counter(Counter.HANDED_IN)) == ([3, 0], [0, 3])


def test_the_order_of_a_flow_is_kept_on_the_way(fleet: Callable[..., Fleet]) -> None:
    pair = fleet(2)
    port = next(port for port in range(1, 99) if pair.owner(packets.udp(CLIENT, SERVER, port, 53)) == 1)
    sent = [packets.udp(CLIENT, SERVER, port, 53, b"%04d" % n) for n in range(50)]
    pair.send(0, *sent)
    pair.step()
    assert pair.returned() == sent


def test_fragments_find_their_owner_by_way_of_the_worker_that_keeps_them_together(
    fleet: Callable[..., Fleet],
) -> None:
    three = fleet(3)
    there = datagram_of(three, owner=2, keeper=1)
    three.send(0, *there)
    three.step(0, 2)
    assert three.returned() == [], "nobody knows their ports yet"
    three.step(1)
    assert three.returned() == []
    three.step(2)
    assert three.returned() == there
    back = datagram_of(three, owner=2, keeper=0, turned=True)
    three.send(1, *back)
    three.step()
    assert three.returned() == back
    (session,) = describe_sessions(three.workers[2].sessions)
    assert session["packets"] == len(there) + len(back)


def test_the_rest_of_a_refused_datagram_is_refused_by_its_owner(fleet: Callable[..., Fleet]) -> None:
    three = fleet(3, policy=deny_all())
    parts = datagram_of(three, owner=2, keeper=1)
    three.send(0, *parts)
    three.step()
    assert three.returned() == []
    assert three.verdicts() == [{}, {}, {"policy-deny": 1, "fragment-unmatched": len(parts) - 1}]


def test_an_error_about_a_flow_goes_to_the_worker_that_has_it(fleet: Callable[..., Fleet]) -> None:
    pair = fleet(2)
    talk = connection_of(pair, 1)
    pair.send(1, *talk.handshake())
    pair.step()
    data = talk.data()
    error = packets.icmp_error("10.9.9.9", CLIENT, data)
    pair.send(0, error)
    pair.step()
    assert pair.returned()[-1] == error


def test_the_owner_asks_the_store_and_lets_parked_packets_go(fleet: Callable[..., Fleet]) -> None:
    former, pair = fleet(2, resiliency=True, owner=1), fleet(2, resiliency=True, owner=2)
    talk = connection_of(pair, 1)
    former.send(1, *talk.handshake())
    former.step()
    former.serve()
    pair.store = former.store
    going_on = [talk.data(), talk.data(talk.server)]
    pair.send(0, *going_on)
    pair.step()
    assert pair.returned() == []
    assert pair.verdicts() == [{}, {"park": 2}]
    pair.serve()
    pair.step()
    assert pair.returned() == going_on
    assert pair.counter(Counter.SESSIONS_RESTORED) == [0, 1]
    assert pair.counter(Counter.LOOKUPS) == [0, 1]


def test_a_worker_that_stands_still_costs_its_own_flows_only_and_by_name(fleet: Callable[..., Fleet]) -> None:
    pair = fleet(2)
    theirs, own = connection_of(pair, 1), connection_of(pair, 0)
    syn = theirs.handshake()[0]
    for _ in range(HANDOVER_PACKETS // 64 + 1):
        pair.send(0, *[syn] * 64)
        pair.step(0)
    pair.send(0, *own.handshake())
    pair.step(0)
    assert len(pair.returned()) == 3, "the others go on"
    assert pair.verdicts()[0] == {"forward": 3, "handover-full": 64}
    pair.step()
    assert len(pair.returned()) == HANDOVER_PACKETS
    assert pair.verdicts()[1] == {"forward": HANDOVER_PACKETS}


def test_only_a_sleeping_owner_is_woken(fleet: Callable[..., Fleet]) -> None:
    pair = fleet(2)
    syn = connection_of(pair, 1).handshake()[0]
    pair.send(0, syn)
    pair.step(0)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(pair.wakes[1])
    pair.step(1)
    assert lie_down(pair.workers[1].loop.handover)
    pair.send(0, syn)
    pair.step(0)
    assert os.eventfd_read(pair.wakes[1]) == 1


def test_no_two_sessions_of_a_node_have_one_id(fleet: Callable[..., Fleet]) -> None:
    three = fleet(3)
    three.send(0, *(packets.tcp(CLIENT, SERVER, port, 80) for port in range(1, 61)))
    three.step()
    ids = [[row["id"] for row in describe_sessions(worker.sessions)] for worker in three.workers]
    assert len({number for one in ids for number in one}) == 60
    assert all(number % 3 == (worker + 1) % 3 for worker, one in enumerate(ids) for number in one)


def test_all_workers_together_have_room_for_max_sessions(fleet: Callable[..., Fleet]) -> None:
    """However chance deals flows out: the limit is the node's, and a worker's table is larger than its share."""
    pair = fleet(2, max_sessions=300)
    for port in range(1, 401):
        pair.send(port % 2, packets.tcp(CLIENT, SERVER, port, 80))
        pair.step()
    assert sum(pair.counter(Counter.SESSIONS)) == 300
    assert sum(told.get("session-limit", 0) for told in pair.verdicts()) == 100
    pair.now += 10 * SECOND_NS
    pair.step()
    assert sum(pair.counter(Counter.SESSIONS)) == 0


def test_a_worker_sleeps_five_milliseconds_at_most_while_the_cut_through_forwards_for_it(
    fleet: Callable[..., Fleet],
) -> None:
    pair = fleet(2, cut_through=True)
    talk = connection_of(pair, 1)
    pair.send(1, *talk.handshake(), talk.data(), talk.data(talk.server))
    pair.step()
    assert pair.counter(Counter.OFFLOADED) == [0, 1]
    idle, forwarded_for = (
        int(patience_ns(worker.state, worker.loop, pair.now)) / MS_NS for worker in pair.workers
    )
    assert POLL_OFFLOADED_MS_MAX < idle <= POLL_MS_MAX
    assert 0 < forwarded_for <= POLL_OFFLOADED_MS_MAX


def woken(fleet: Fleet) -> bool:
    """Whether the store's thread of the only worker was woken since the last look."""
    try:
        return os.eventfd_read(fleet.store_wakes[0]) > 0
    except BlockingIOError:
        return False


def test_the_store_is_woken_for_what_a_millisecond_brought_and_not_for_each_record(
    fleet: Callable[..., Fleet],
) -> None:
    alone = fleet(1, resiliency=True)
    for port in range(3):
        alone.send(0, *Connection(CLIENT, SERVER, 40_000 + port).handshake())
        alone.step()
        alone.now += STORE_FLUSH_NS // 4
    assert alone.counter(Counter.WRITES) == [3]
    assert not woken(alone), "a pipeline for each of them would cost more than the records"
    (worker,) = alone.workers
    assert patience_ns(worker.state, worker.loop, alone.now) == STORE_FLUSH_NS // 4, "no sleep beyond it"
    alone.now += STORE_FLUSH_NS // 4
    alone.step()
    assert woken(alone)
    alone.now += SECOND_NS
    alone.step()
    assert not woken(alone), "once is enough"


def test_the_store_is_woken_at_once_for_a_pipelines_worth_of_records(fleet: Callable[..., Fleet]) -> None:
    alone = fleet(1, resiliency=True)
    for port in range(STORE_BATCH_RECORDS):
        assert not woken(alone)
        alone.send(0, *Connection(CLIENT, SERVER, 40_000 + port).handshake())
        alone.step()
    assert woken(alone)


def test_the_store_is_woken_at_once_when_a_packet_waits_for_it(fleet: Callable[..., Fleet]) -> None:
    alone = fleet(1, resiliency=True)
    alone.send(0, Connection(CLIENT, SERVER, 40_000).data())
    alone.step()
    assert alone.counter(Counter.LOOKUPS) == [1]
    assert woken(alone)


def test_each_worker_stamps_its_own_word_and_takes_its_sessions_back_after_a_gap(
    fleet: Callable[..., Fleet],
) -> None:
    pair = fleet(2, cut_through=True)
    talk = connection_of(pair, 1)
    pair.send(0, *talk.handshake(), talk.data(), talk.data(talk.server))
    pair.step()
    assert pair.counter(Counter.OFFLOADED) == [0, 1]
    beats = [control.WORKER + w * control.WORKER_WORDS + control.BEAT for w in range(2)]
    wants = [beat - control.BEAT + control.WANT for beat in beats]
    assert pair.control_words[beats].tolist() == [pair.now] * 2
    before = pair.control_words[wants].tolist()
    pair.now += LOOP_GAP_NS_MAX
    pair.step(0, 1)
    assert pair.control_words[wants].tolist() == before, "busy for a while, no more"
    pair.now += LOOP_GAP_NS_MAX
    pair.step(0)
    pair.now += 1
    pair.step(1)
    assert pair.control_words[beats].tolist() == [pair.now - 1, pair.now]
    assert pair.control_words[wants[0]] == before[0]
    assert pair.control_words[wants[1]] != before[1], "who stood still does not know whose its sessions are"


# Against one worker ------------------------------------------------------------------------------------


def traffic(dice: random.Random) -> tuple[list[bytes], list[bytes]]:
    """What another node has seen of many flows, and how they go on, with strays and lost first fragments."""
    earlier: list[bytes] = []
    flows: list[list[bytes]] = []
    for number in range(12):
        talk = Connection(CLIENT, SERVER, 41_000 + number)
        segments = [*talk.handshake(), talk.data(), talk.data(talk.server)]
        segments += [packets.icmp_error("10.9.9.9", CLIENT, segments[-2]), *talk.goodbye()]
        began = dice.choice((0, 0, 1, 2, 3, 4))
        earlier += segments[:began]
        flows.append(segments[began:])
        there = packets.udp(CLIENT, SERVER, 5_000 + number, 53, b"x" * dice.choice((20, 3000)))
        back = packets.udp(SERVER, CLIENT, 53, 5_000 + number, b"y" * dice.choice((20, 3000)))
        pieces = packets.fragments(there, 1400, number + 1) + packets.fragments(back, 1400, number + 50)
        flows.append(pieces[dice.randrange(2) :])
        flows.append([packets.icmp_echo(CLIENT, SERVER, number, reply=bool(dice.randrange(2)))] * 2)
    mixed = []
    while flows:
        flow = dice.choice(flows)
        mixed.append(flow.pop(0))
        if not flow:
            flows.remove(flow)
    return earlier, mixed


@pytest.mark.parametrize("resiliency", [False, True])
@pytest.mark.parametrize("workers", [2, 3, 5])
def test_so_many_workers_do_what_one_would_do(
    fleet: Callable[..., Fleet], workers: int, resiliency: bool
) -> None:
    dice = random.Random(workers)
    earlier, packets_now = traffic(dice)
    former = fleet(1, resiliency=True, owner=1)
    for packet in earlier:
        former.send(0, packet)
        former.settle()
    alone, many = (fleet(number, resiliency=resiliency, owner=2) for number in (1, workers))
    for each in (alone, many):
        each.store = copy.deepcopy(former.store)
    for packet in packets_now:
        passed = dice.choice((0, 0, 0, 0, 2, 11)) * SECOND_NS
        alone.wait(passed)
        many.wait(passed)
        alone.send(0, packet)
        many.send(dice.randrange(workers), packet)
        alone.settle()
        many.settle()
        assert many.returned() == alone.returned()
    assert (sum(many.counter(Counter.SESSIONS_RESTORED)) > 0) is resiliency
    assert many.store.keys == alone.store.keys or not resiliency, "the store knows nothing of workers"
    total = sum((Tally(told) for told in many.verdicts()), Tally())
    assert total == Tally(alone.verdicts()[0])
    assert len(total) >= 5, "more has happened than forwarding"
    for which in set(Counter) - {Counter.HANDED_OVER, Counter.HANDED_IN}:
        assert sum(many.counter(which)) == alone.counter(which)[0], which.label
    assert sum(many.counter(Counter.HANDED_OVER)) == sum(many.counter(Counter.HANDED_IN)) > 0


# In threads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 3])
def test_in_threads_every_packet_comes_back_once(fleet: Callable[..., Fleet], workers: int) -> None:
    """The system spreads by outer ports, which change with every packet: most come to the wrong worker."""
    many = fleet(workers, one_address=True, resiliency=True)
    many.start()
    talks = [Connection(CLIENT, SERVER, port) for port in range(41_000, 41_012)]
    for step in zip(*(talk.handshake() for talk in talks)):
        many.through(*step)
    many.through(*(talk.data() for talk in talks))
    many.through(*(talk.data(talk.server) for talk in talks))
    queries = [packets.udp(CLIENT, SERVER, port, 53, b"query") for port in range(6_000, 6_012)]
    many.through(*queries, *(packets.icmp_echo(CLIENT, SERVER, ident) for ident in range(1, 6)))
    many.through(*(packets.icmp_error("10.9.9.9", CLIENT, query) for query in queries))
    for port in range(7_000, 7_006):
        first, *rest = packets.fragments(packets.udp(CLIENT, SERVER, port, 53, b"x" * 3000), 1400, port)
        many.through(first)
        many.through(*rest)
    final = sum(count for told in many.verdicts() for count in told.values())
    assert sum(many.counter(Counter.RECEIVED)) == final
    assert sum(many.counter(Counter.HANDED_OVER)) == sum(many.counter(Counter.HANDED_IN)) > 0
    assert sum(many.counter(Counter.SESSIONS_CREATED)) == 12 + 12 + 5 + 6
    assert {name for told in many.verdicts() for name in told} == {"forward"}


def test_in_threads_connections_of_a_dead_node_are_taken_over(fleet: Callable[..., Fleet]) -> None:
    former = fleet(3, one_address=True, resiliency=True, owner=1)
    former.start()
    talks = [Connection(CLIENT, SERVER, port) for port in range(41_000, 41_012)]
    for step in zip(*(talk.handshake() for talk in talks)):
        former.through(*step)
    former.serve()
    # Another number of workers: the store knows nothing of them.
    node = fleet(2, one_address=True, resiliency=True, owner=2)
    node.store = former.store
    node.start()
    node.through(*(talk.data() for talk in talks))
    node.through(*(talk.data(talk.server) for talk in talks))
    assert sum(node.counter(Counter.SESSIONS_RESTORED)) == len(talks)
    assert all(count > 0 for count in node.counter(Counter.SESSIONS_RESTORED))
