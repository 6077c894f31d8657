"""One trouble at a time: each has its run, and a cluster that does not mind it is caught where that is possible."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from everwall.session import image
from everwall.sim.checkers.order import flow_of_row
from everwall.sim.cluster import STRICT, Cluster, Report, SimulationFailure
from everwall.sim.hosts import Conversation, TcpConnection
from everwall.sim.loop import MS, SECOND
from everwall.sim.node import Node
from everwall.sim.operator import STEPS
from everwall.sim.plan import Fault, Kind, Moment, Plan, Relayout, Rotation, draw
from everwall.sim.storage import Rows
from everwall.store import clock
from everwall.store.backlog import Backlog
from everwall.store.occasions import Refusals
from everwall.store.protocol import StoreBatch
from tests import needs
from tests.sim.planted import ServersTime

SEED = 18
"""A short run without change of policy."""
LATE_KILL = Fault(Kind.KILL, 15 * SECOND, 300 * MS, back=2 * SECOND)


def scenario(*faults: Fault, **changes: Any) -> Plan:
    """A run of two nodes with these faults."""
    plan = replace(draw(SEED), nodes=2, lag=0, wait_replicas=False, moving=False, intrusions=0)
    plan = replace(plan, rotation=None, relayout=None)
    return replace(plan, faults=faults, duration=faults[-1].at + 14 * SECOND, **changes)


def run(*faults: Fault, **changes: Any) -> Report:
    report = Cluster(scenario(*faults, **changes)).run()
    assert report.lost == report.lost_by_store == 0
    return report


# Nodes that were away --------------------------------------------------------------------------------------


def test_a_hung_node_that_wakes_gives_up_what_others_have() -> None:
    hang = Fault(Kind.HANG, 6 * SECOND, 300 * MS, lasts=4 * SECOND)
    report = run(hang, replace(LATE_KILL, at=30 * SECOND))
    assert report.demoted > 0


def first_words() -> Plan:
    """A node hangs with the first write of a flow in its hands; the flow goes on elsewhere as a new one."""
    hang = Fault(Kind.HANG, 100 * MS, 200 * MS, lasts=6 * SECOND, moment=Moment.ASKED)
    return scenario(hang, LATE_KILL, steady=0, passing=0, pings=0, datagrams=8)


def test_a_first_write_from_before_a_hang_is_compared_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Cluster(first_words()).run().demoted > 0
    monkeypatch.setattr(Backlog, "compare", lambda backlog: None)
    with pytest.raises(SimulationFailure, match="HSET took a record back"):
        Cluster(first_words()).run()


@pytest.mark.parametrize("kind", [Kind.PARTITION, Kind.ISOLATE])
def test_a_node_that_was_cut_off_comes_back_and_does_no_harm(kind: Kind) -> None:
    report = run(Fault(kind, 6 * SECOND, 300 * MS, lasts=5 * SECOND), replace(LATE_KILL, at=30 * SECOND))
    assert report.restored > report.restored_after_kill > 0, "flows moved when it left"
    assert report.demoted > 0, "and their sessions ended there when it was back"


def test_a_delete_that_waits_for_a_connection_is_never_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(scenario(LATE_KILL, steady=12))
    cluster.traffic.begin()
    cluster.loop.run(5 * SECOND)
    node = max(cluster.nodes, key=lambda node: node.engine.counters["sessions"])
    cluster.server.cut({node.name})
    carried = cluster.liveness.carried(cluster.traffic.live, node)
    closed = [one for one in carried if isinstance(one, TcpConnection) and cluster.records.is_stored(one)]
    for one in closed:
        one.abort(by_client=True)
    cluster.loop.run(9 * SECOND)
    assert not node.link.connected
    rows = rows_of(cluster, monkeypatch)
    cluster.server.heal({node.name})
    cluster.loop.run(14 * SECOND)
    assert node.link.connected
    assert closed
    deletes = {flow_of_row(row) for row in rows if row[image.OP] == image.DELETE}
    assert not deletes.intersection(one.flow.key for one in closed)


def rows_of(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> list[Rows]:
    """What the store is asked from now on, row by row."""
    rows: list[Rows] = []
    begins = cluster.store_order.begins

    def watch(batch: StoreBatch) -> None:
        rows.extend(batch.rows.copy())
        begins(batch)

    monkeypatch.setattr(cluster.store_order, "begins", watch)
    return rows


@pytest.mark.parametrize("kind", [Kind.HANG, Kind.ISOLATE])
def test_the_same_in_the_middle_of_a_rotation(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that write with either secret take sessions over from each other, and give them up."""
    cluster = Cluster(scenario(Fault(kind, 6 * SECOND, 300 * MS, lasts=5 * SECOND), LATE_KILL, moving=True))
    rows = rows_of(cluster, monkeypatch)
    report = cluster.run()
    assert image.CLEAR in [int(row[image.OP]) for row in rows], "records moved"
    assert report.lost == 0
    assert report.restored > report.restored_after_kill > 0
    assert report.demoted > 0


# Records that get another place ----------------------------------------------------------------------------


def more_buckets(at: int, watched: int = 2 * SECOND) -> Relayout:
    return Relayout(at, 200, watched)


@pytest.mark.parametrize("seconds", [1, 9, 11, 13, 15, 18] if needs.DEEP else [9, 13])
def test_a_node_dies_at_any_step_of_a_change_of_the_number_of_buckets(seconds: int) -> None:
    """Announced, just before and after the first write to the new ones, before and while what is left is moved."""
    begun = 4 * SECOND
    kill = replace(LATE_KILL, at=begun + seconds * SECOND)
    report = run(kill, relayout=more_buckets(begun))
    assert "buckets" in report.faults, "whoever died, it was carried out in the end"
    assert report.restored_after_kill > 0


def test_whoever_changes_the_number_of_buckets_dies_and_another_node_goes_on() -> None:
    cluster = Cluster(scenario(LATE_KILL, replace(LATE_KILL, at=50 * SECOND), relayout=more_buckets(SECOND)))
    cluster.traffic.begin()
    cluster.operator.begin()
    cluster.loop.run(15 * SECOND + 200 * MS)
    former, current = (epoch_in(cluster, number) for number in (0, 1))
    assert former
    assert current, "it is in the middle of moving what is left, or owners are"
    cluster.strikes._strike(LATE_KILL, cluster.operator._node)
    cluster.loop.run(30 * SECOND)
    assert cluster.operator.done == ["buckets"]
    assert not epoch_in(cluster, 0)


def epoch_in(cluster: Cluster, number: int) -> list[bytes]:
    """The buckets of an epoch that hold something."""
    return [key for key in cluster.server.memory.keys if key.startswith(b"{everwall:%d:" % number)]


@pytest.mark.parametrize("kind", [Kind.HANG, Kind.ISOLATE])
def test_a_node_that_was_away_from_before_the_announcement_to_after_the_end_finds_its_way(kind: Kind) -> None:
    """Its lease has run out: it asks for the layout before it asks for, or writes, anything else."""
    away = Fault(kind, 4 * SECOND, 300 * MS, lasts=21 * SECOND)
    report = run(away, replace(LATE_KILL, at=27 * SECOND), relayout=more_buckets(5 * SECOND))
    assert "buckets" in report.faults
    assert report.restored_after_kill > 0, "what it took over lay where it had never looked before"


@pytest.mark.parametrize(
    "kind",
    [Kind.STORE_HUNG, Kind.STORE_FULL, Kind.STORE_RESTARTED, Kind.STORE_EMPTIED, Kind.STORE_FAILED_OVER]
    if needs.DEEP
    else [Kind.STORE_EMPTIED],
)
def test_a_store_that_fails_in_the_middle_of_a_change(kind: Kind) -> None:
    fault = Fault(kind, 14 * SECOND, lasts=2 * SECOND)
    report = run(fault, replace(LATE_KILL, at=30 * SECOND), relayout=more_buckets(3 * SECOND), lag=500 * MS)
    assert report.demanded > 3


def test_the_secret_is_changed_step_by_step_while_nodes_die_and_come_back() -> None:
    """The old one is not dropped here: where a node has died, that waits for the longest idle time-out."""
    kills = (replace(LATE_KILL, at=7 * SECOND), replace(LATE_KILL, at=24 * SECOND))
    cluster = Cluster(scenario(*kills, rotation=Rotation(6 * SECOND, 300 * MS, steps=2)))
    report = cluster.run()
    assert "rotation" in report.faults
    assert report.lost == 0
    assert report.restored_after_kill > 0
    assert all(node.link.keys is STEPS[2] for node in cluster.current.values())


# A store that fails ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        Kind.STORE_DOWN,
        Kind.STORE_HUNG,
        Kind.STORE_FULL,
        Kind.STORE_RESTARTED,
        Kind.STORE_EMPTIED,
        Kind.STORE_FAILED_OVER,
        Kind.STORE_SPLIT,
    ],
)
def test_when_the_store_was_made_whole_again_a_kill_loses_nothing(kind: Kind) -> None:
    report = run(Fault(kind, 5 * SECOND, lasts=2 * SECOND), LATE_KILL, lag=1_500 * MS)
    assert report.demanded > 3, "the node said that the store has all, and it had"


def test_a_store_that_is_not_made_whole_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Node._told_time
    monkeypatch.setattr(Node, "_told_time", lambda node, offset, resync: told(node, offset, False))
    emptied = Fault(Kind.STORE_EMPTIED, 5 * SECOND, lasts=500 * MS)
    with pytest.raises(SimulationFailure, match="said that the store has all its sessions"):
        Cluster(scenario(emptied, LATE_KILL)).run()


def test_what_a_full_store_refused_is_written_when_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Fault(Kind.STORE_FULL, SECOND // 10, lasts=5 * SECOND)
    assert run(full, LATE_KILL).demanded > 3
    monkeypatch.setattr(Refusals, "note", lambda refusals, refused, now_ns: None)
    with pytest.raises(SimulationFailure, match="said that the store has all its sessions"):
        Cluster(scenario(full, LATE_KILL)).run()


# Clocks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-1_000, -5, 5, 1_000])
def test_a_clock_that_is_set_does_no_harm(seconds: int) -> None:
    step = Fault(Kind.STORE_CLOCK, 7 * SECOND, step=seconds * SECOND)
    assert run(step, LATE_KILL).demanded > 3


def anew_elsewhere() -> Plan:
    """A node is cut off and keeps its sessions; the clock is set back, ends connect anew, their new node dies.

    So their flows come to a node that has an earlier session of each.
    """
    away = Fault(Kind.PARTITION, 6 * SECOND, 300 * MS, lasts=7 * SECOND)
    back = Fault(Kind.STORE_CLOCK, 7 * SECOND, step=-1_000 * SECOND)
    plan = scenario(away, back, LATE_KILL, passing=40)
    rules = tuple(replace(rule, strict=True) for rule in plan.rulebook.rules)
    return replace(plan, rulebook=replace(plan.rulebook, rules=rules))


def test_connections_anew_after_a_clock_was_set_back_are_the_later_ones_wherever_they_come_to() -> None:
    report = Cluster(anew_elsewhere(), mode=STRICT).run()
    assert report.lost == 0
    assert report.acknowledged > 20
    with pytest.raises(SimulationFailure, match=r"took a record back|has no record"):
        Cluster(anew_elsewhere(), memory=ServersTime(), mode=STRICT).run()


@pytest.mark.parametrize("seconds", [-1_000, 1_000])
@pytest.mark.parametrize("after", [1, 9, 12] if needs.DEEP else [1])
def test_a_clock_that_is_set_in_the_middle_of_a_change_of_the_number_of_buckets(
    seconds: int, after: int
) -> None:
    """Right after the announcement, when one node has heard of it and another has not; and later."""
    begun = 4 * SECOND
    step = Fault(Kind.STORE_CLOCK, begun + after * SECOND - 700 * MS, step=seconds * SECOND)
    kill = replace(LATE_KILL, at=step.at + 1_200 * MS)
    report = run(step, kill, replace(LATE_KILL, at=40 * SECOND), relayout=more_buckets(begun))
    assert "buckets" in report.faults
    assert report.restored_after_kill > 0


@pytest.mark.parametrize("seconds", [-100, 100])
def test_a_replica_with_another_clock_takes_over(seconds: int) -> None:
    """Right before a node that starts is the first to speak to it."""
    kill = Fault(Kind.KILL, 5 * SECOND, 300 * MS, back=1_500 * MS)
    takes_over = Fault(Kind.STORE_FAILED_OVER, 6 * SECOND, lasts=500 * MS, step=seconds * SECOND)
    assert run(kill, takes_over, replace(LATE_KILL, at=20 * SECOND), lag=50 * MS).demanded > 3


def test_expiries_of_another_time_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "is_clock_step", lambda moved: False)
    step = Fault(Kind.STORE_CLOCK, 7 * SECOND, step=1_000 * SECOND)
    with pytest.raises(SimulationFailure, match="said that the store has all its sessions"):
        Cluster(scenario(step, LATE_KILL)).run()


# Replicas --------------------------------------------------------------------------------------------------


def lost_by_a_fail_over(wait: bool) -> set[Conversation]:
    """The store fails over right after a client got its first answer in strict mode."""
    plan = scenario(LATE_KILL, lag=40 * MS, wait_replicas=wait, passing=30)
    rules = tuple(replace(rule, strict=True) for rule in plan.rulebook.rules)
    cluster = Cluster(replace(plan, rulebook=replace(plan.rulebook, rules=rules)))
    cluster.traffic.begin()
    cluster.loop.run(3 * SECOND)
    before = set(cluster.records.answered)
    while cluster.records.answered == before:
        cluster.loop.run(cluster.loop.now + 5 * MS)
    cluster.strikes.hurt_store(Fault(Kind.STORE_FAILED_OVER, cluster.loop.now, lasts=300 * MS))
    return cluster.records.answered & cluster.records.ever_lost


def test_what_a_replica_has_acknowledged_a_fail_over_does_not_lose() -> None:
    assert lost_by_a_fail_over(wait=False)
    assert not lost_by_a_fail_over(wait=True)
