"""From worker to worker: bounded pools, in order, nothing lost unnamed; fragments by way of their datagram's worker."""

from __future__ import annotations

from collections import Counter as Tally

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everwall import pipeline
from everwall.counters import Counter
from everwall.engine import EngineConfig, make_state
from everwall.handover import (
    Handover,
    abandon,
    arrivals,
    get_up,
    give_back,
    lie_down,
    make_handovers,
    next_to_wake,
    share_counts,
    spread,
    worker_of,
)
from everwall.limits import FRAME_BYTES, HANDOVER_PACKETS, SECOND_NS, sessions_per_worker
from everwall.pipeline import State
from everwall.policy.match import allow_all
from everwall.session import state
from everwall.session.fragments import datagram_hash
from everwall.verdict import Verdict
from everwall.wire import meta as m
from everwall.wire.meta import Batch
from tests import packets
from tests.naive import handover as naive

pytestmark = pytest.mark.kernel

NOW = 1_000 * SECOND_NS
ENDS = ("10.0.0.1", "10.0.1.1")


class Hands:
    """Workers without loop and port: only what they hand each other."""

    def __init__(self, workers: int) -> None:
        config = EngineConfig(max_sessions=64, parked_packets=64, lookups=8, seed=77, workers=workers)
        self.states: list[State] = [make_state(config, allow_all()) for _ in range(workers)]
        self.handovers: list[Handover] = make_handovers([-1] * workers, FRAME_BYTES)

    def spread(self, worker: int, *inners: bytes) -> tuple[Batch, list[int]]:
        """A batch that came to ``worker``, and its rows that stay there."""
        batch = packets.batch_of(inners, bare=True)
        for i in range(len(inners)):
            pipeline.read(self.states[worker], batch, i)
        rows = np.arange(len(inners), dtype=np.int64)
        kept = spread(self.states[worker].sessions, self.handovers[worker], batch, rows, len(inners), NOW)
        return batch, rows[:kept].tolist()

    def arrived(self, worker: int, giver: int, most: int = 64) -> list[bytes]:
        """Packets that a worker takes from another, given back at once."""
        rows = np.zeros(most, np.int64)
        count = arrivals(self.handovers[worker], giver, rows)
        taken = [packets.unload(self.handovers[worker].packets, row) for row in rows[:count]]
        give_back(self.states[worker].sessions, self.handovers[worker], giver, count)
        return taken

    def owner(self, inner: bytes) -> int:
        batch = packets.batch_of([inner], bare=True)
        pipeline.read(self.states[0], batch, 0)
        return int(worker_of(batch.meta[0, m.HASH], len(self.states)))

    def keeper(self, fragment: bytes) -> int:
        batch = packets.batch_of([fragment], bare=True)
        pipeline.read(self.states[0], batch, 0)
        return int(worker_of(datagram_hash(batch.meta, 0, 77), len(self.states)))


def flow_of(hands: Hands, worker: int, first: int = 1, **fields: object) -> bytes:
    """A UDP packet of a flow that belongs to ``worker``."""
    made = (packets.udp(*ENDS, port, 53, **fields) for port in range(first, 1 << 16))
    return next(inner for inner in made if hands.owner(inner) == worker)


@given(hashed=st.integers(-(1 << 63), (1 << 63) - 1), workers=st.integers(1, 64))
def test_the_upper_bits_of_a_hash_name_its_worker(hashed: int, workers: int) -> None:
    worker = worker_of(hashed, workers)
    assert worker == naive.worker_of(hashed, workers)
    assert 0 <= worker < workers


def test_flows_are_dealt_out_evenly_and_tables_have_room_for_chance() -> None:
    hands = Hands(3)
    flows = [packets.udp(*ENDS, port, 53) for port in range(1, 1501)]
    dealt = Tally(hands.owner(flow) for flow in flows)
    assert len(dealt) == 3
    assert max(dealt.values()) <= sessions_per_worker(1500, 3)
    assert sessions_per_worker(100, 1) == 100


def test_both_directions_and_the_errors_about_a_flow_have_one_owner() -> None:
    hands = Hands(7)
    for port in range(1, 40):
        there = packets.udp(*ENDS, port, 53)
        back = packets.udp(*reversed(ENDS), 53, port)
        error = packets.icmp_error("10.9.9.9", ENDS[0], there)
        assert hands.owner(there) == hands.owner(back) == hands.owner(error)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("give"), st.integers(1, 100)),
        st.tuples(st.just("take"), st.integers(1, 64)),
    ),
    max_size=25,
)


@settings(max_examples=25)
@given(steps=steps)
def test_a_pool_is_a_bounded_queue(steps: list[tuple[str, int]]) -> None:
    hands, twin, number = Hands(2), naive.Pool(), 0
    ours = flow_of(hands, 1)[:28]
    for what, count in steps:
        if what == "give":
            numbers = range(number, number + count)
            number += count
            inners = [packets.udp(*ENDS, int.from_bytes(ours[20:22]), 53, b"%08d" % n) for n in numbers]
            batch, kept = hands.spread(0, *inners)
            refused = [k for k, n in enumerate(numbers) if not twin.give(n)]
            assert kept == refused, "what found no room stays with the giver"
            assert {int(batch.meta[row, m.VERDICT]) for row in kept} <= {Verdict.HANDOVER_FULL}
        else:
            taken = [int(packet[-8:]) for packet in hands.arrived(1, 0, count)]
            assert taken == twin.take(count)
            twin.give_back()
    counted = hands.states[0].sessions.counters[Counter.HANDED_OVER]
    assert counted == hands.states[1].sessions.counters[Counter.HANDED_IN] + len(twin.waiting)


def test_what_is_taken_keeps_its_rows_until_it_is_given_back() -> None:
    hands = Hands(2)
    inner = flow_of(hands, 1)
    hands.spread(0, *[inner] * HANDOVER_PACKETS)
    rows = np.zeros(64, np.int64)
    assert arrivals(hands.handovers[1], 0, rows) == 64
    _, kept = hands.spread(0, inner)
    assert kept == [0], "the owner is not done with any of them"
    give_back(hands.states[1].sessions, hands.handovers[1], 0, 64)
    assert hands.spread(0, inner)[1] == []


def test_the_owner_does_not_take_the_givers_frame_for_its_own() -> None:
    hands = Hands(2)
    batch = packets.batch_of([flow_of(hands, 1)], bare=True)
    batch.meta[0, m.FRAME] = 77
    pipeline.read(hands.states[0], batch, 0)
    spread(hands.states[0].sessions, hands.handovers[0], batch, np.zeros(1, np.int64), 1, NOW)
    rows = np.zeros(1, np.int64)
    assert arrivals(hands.handovers[1], 0, rows) == 1
    assert hands.handovers[1].packets.meta[rows[0], m.FRAME] == 0


def test_what_nobody_will_judge_any_more_is_dropped_by_name() -> None:
    hands = Hands(3)
    for giver, count in ((0, 5), (1, 2)):
        hands.spread(giver, *[flow_of(hands, 2)] * count)
    assert len(hands.arrived(2, 0, 1)) == 1
    for _ in range(2):  # the second time there is nothing left
        for worker in range(3):
            abandon(hands.states[worker].sessions, hands.handovers[worker])
        dropped = [int(each.sessions.verdicts[Verdict.HANDOVER_STOPPED]) for each in hands.states]
        assert dropped == [0, 0, 6]
    assert int(hands.states[2].sessions.counters[Counter.HANDED_IN]) == 7, "as many as were given"
    assert hands.arrived(2, 0) == []


def test_each_pair_of_workers_has_a_pool_of_its_own() -> None:
    hands = Hands(3)
    inners = [flow_of(hands, worker, payload=b"to %d" % worker) for worker in range(3)]
    for giver in range(3):
        _, kept = hands.spread(giver, *inners)
        assert kept == [giver], "the own flow stays"
    for owner in range(3):
        for giver in range(3):
            assert hands.arrived(owner, giver) == ([inners[owner]] if giver != owner else [])


def test_an_owner_is_woken_once_and_only_when_it_sleeps() -> None:
    hands = Hands(2)
    giver, owner = hands.handovers
    inner = flow_of(hands, 1)
    hands.spread(0, inner)
    assert next_to_wake(giver) == -1, "awake: it will look by itself"
    assert not lie_down(owner), "there is something to do"
    hands.arrived(1, 0)
    assert lie_down(owner)
    hands.spread(0, inner, inner)
    assert [next_to_wake(giver), next_to_wake(giver)] == [1, -1]
    get_up(owner)
    hands.spread(0, inner)
    assert next_to_wake(giver) == -1


# Fragments -------------------------------------------------------------------------------------------


def datagram(hands: Hands, *, owner: int, keeper: int) -> list[bytes]:
    """A UDP datagram in three fragments whose flow belongs to ``owner`` and whose fragments to ``keeper``."""
    whole = flow_of(hands, owner, payload=b"x" * 1500)
    made = (packets.fragments(whole, 504, ident) for ident in range(1, 1 << 16))
    return next(parts for parts in made if hands.keeper(parts[0]) == keeper)


def test_fragments_go_by_way_of_their_datagrams_worker() -> None:
    hands = Hands(3)
    parts = datagram(hands, owner=2, keeper=1)
    _, kept = hands.spread(0, *parts)
    assert kept == []
    assert hands.arrived(2, 0) == [], "who received them knows no ports, so nobody goes straight to the owner"
    rows = np.zeros(64, np.int64)
    count = arrivals(hands.handovers[1], 0, rows)
    assert (
        spread(hands.states[1].sessions, hands.handovers[1], hands.handovers[1].packets, rows, count, NOW)
        == 0
    )
    give_back(hands.states[1].sessions, hands.handovers[1], 0, count)
    assert hands.arrived(2, 1) == parts, "in order: the later ones find their first one judged"


def test_a_later_fragment_alone_ends_at_its_datagrams_worker() -> None:
    hands = Hands(2)
    parts = datagram(hands, owner=1, keeper=0)
    batch, kept = hands.spread(0, parts[1])
    assert kept == [0]
    assert batch.meta[0, m.VERDICT] == Verdict.FRAGMENT_UNMATCHED


def test_first_fragments_beyond_all_room_displace_the_oldest() -> None:
    hands = Hands(2)
    own = datagram(hands, owner=0, keeper=0)
    entry = hands.handovers[0].datagrams
    entry[:, state.FRAGMENT_EXPIRY] = NOW + 5  # a flood of others, all of them young enough to be believed
    _, kept = hands.spread(0, *own)
    assert kept == [0, 1, 2], "the datagram's own worker has the flow too, and knew where to"
    assert int((entry[:, state.FRAGMENT_EXPIRY] > NOW + 5).sum()) == 1


# Counts ------------------------------------------------------------------------------------------------


def test_the_limit_of_sessions_is_the_nodes_not_a_workers() -> None:
    hands = Hands(3)
    for worker, live in enumerate((10, 20, 30)):
        hands.states[worker].sessions.counters[Counter.SESSIONS] = live
        share_counts(hands.states[worker].sessions, hands.handovers[worker])
    share_counts(hands.states[0].sessions, hands.handovers[0])
    assert hands.states[0].sessions.words[state.ELSEWHERE] == 50
    assert hands.states[2].sessions.words[state.ELSEWHERE] == 30
