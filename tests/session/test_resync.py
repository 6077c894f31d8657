"""The store is made whole after it was away, and what may be another node's by now is found out."""

from __future__ import annotations

import random

import numpy as np
import pytest

from everwall.limits import LOOP_GAP_NS_MAX, RESYNC_PATIENCE_NS, SECOND_NS
from everwall.session import image, state
from everwall.session import table as t
from everwall.session.offload import stamp
from everwall.session.resync import progress
from everwall.verdict import Verdict
from tests.cluster import Cluster, Node
from tests.conversations import Connection

pytestmark = pytest.mark.kernel


def reconnect(node: Node) -> None:
    """The store's thread has a new connection."""
    node.engine.sessions_state.clock[state.CLOCK_CONNECTIONS] += 1


def connections(node: Node, count: int) -> list[Connection]:
    made = [Connection(sport=1000 + number) for number in range(count)]
    for connection in made:
        assert set(node.receive(*connection.handshake())) == {Verdict.FORWARD}
    return made


def told(node: Node) -> tuple[int, int]:
    """(percent, unsynced sessions) as an operator sees them."""
    facts = progress(node.engine.sessions_state)
    return facts["resync_percent"], facts["unsynced_sessions"]


def gap(node: Node) -> None:
    """The loop passes, stands still, and passes again."""
    stamp(node.engine.sessions_state, node.now)
    node.cluster.wait((LOOP_GAP_NS_MAX + 1) / SECOND_NS)
    stamp(node.engine.sessions_state, node.now)


# Resync ------------------------------------------------------------------------------------------------


def test_a_store_that_came_back_empty_is_made_whole_silent_sessions_included() -> None:
    cluster = Cluster()
    node = cluster.node()
    connections(node, 20)
    node.receive(Connection(sport=5).syn())
    node.serve()
    before = cluster.records()
    assert len(before) == 20
    node.tick(2)
    cluster.store.keys.clear()
    reconnect(node)
    assert told(node) == (0, 21)
    node.tick(0.02)
    assert told(node) == (99, 20), "written, but nobody has said that it is there"
    rows = node.engine.outbox()
    assert set(rows[:, image.OP]) == {image.WRITE}
    assert set(rows[:, image.CONFIRM]) == {1}
    node.answer(rows)
    node.tick()
    assert told(node) == (100, 0)
    assert set(cluster.records()) == set(before)


def test_where_records_have_other_places_every_session_is_written_again_and_none_is_in_doubt() -> None:
    node = Cluster().node()
    connections(node, 20)
    node.serve()
    node.tick(1)
    sessions = node.engine.sessions_state
    gap_before = int(sessions.words[state.GAP])
    sessions.clock[state.CLOCK_LAYOUT] += 1
    assert told(node) == (0, 20)
    node.tick(0.02)
    rows = node.engine.outbox()
    assert set(rows[:, image.OP]) == {image.WRITE}
    assert len(rows) == 20
    assert told(node) == (99, 20)
    node.answer(rows)
    node.tick()
    assert told(node) == (100, 0)
    assert sessions.words[state.GAP] == gap_before, "the node was never without a store"
    node.tick(1)
    assert len(node.engine.outbox()) == 0, "once is enough"


def test_how_long_it_took_is_told_when_it_is_over() -> None:
    node = Cluster().node()
    connections(node, 20)
    node.serve()
    node.tick(1)
    reconnect(node)
    assert progress(node.engine.sessions_state)["resync_ms"] is None
    node.tick(0.02)
    rows = node.engine.outbox()
    assert progress(node.engine.sessions_state)["resync_ms"] is None
    node.cluster.wait(1)
    node.answer(rows)
    node.tick()
    took = progress(node.engine.sessions_state)["resync_ms"]
    assert 1000 <= took <= 1100, "until the last answer"
    node.tick(5)
    assert progress(node.engine.sessions_state)["resync_ms"] == took, "and not on and on"


def test_a_resync_raises_no_generation() -> None:
    node = Cluster().node()
    connections(node, 3)
    node.serve()
    reconnect(node)
    node.tick(1)
    assert set(node.engine.outbox()[:, image.GENERATION]) == {0}


def test_what_was_written_meanwhile_is_not_written_twice() -> None:
    node = Cluster().node()
    made = connections(node, 10)
    node.serve()
    reconnect(node)
    words = node.engine.sessions_state.words
    words[state.RESYNC_RATE] = 16  # one at a time
    node.tick(1)
    (first,) = node.engine.outbox()
    node.receive(*(connection.fin() for connection in made))
    assert len(node.engine.outbox()) == 10
    words[state.RESYNC_RATE] = 50_000
    node.tick(0.1)
    assert len(node.engine.outbox()) == 0
    assert first[image.OP] == image.WRITE


def test_the_hand_keeps_to_its_rate() -> None:
    node = Cluster().node()
    connections(node, 40)
    node.serve()
    node.tick(0.5)
    node.engine.sessions_state.words[state.RESYNC_RATE] = 160
    reconnect(node)
    written = []
    for _ in range(5):
        node.tick(0.05)
        written.append(len(node.engine.outbox()))
    assert written == [10, 8, 8, 8, 6], "a burst of a sixteenth, then eight in a twentieth of a second"


def test_the_hand_never_fills_the_ring_beyond_half() -> None:
    node = Cluster().node(ring_rows=32)
    connections(node, 30)
    node.serve()
    reconnect(node)
    node.tick(0.1)
    rows = node.engine.outbox()
    assert len(rows) == 16
    node.answer(rows)
    assert 0 < told(node)[0] < 100
    node.tick(0.1)
    node.serve()
    node.tick()
    assert told(node) == (100, 0)


def test_a_look_up_never_stands_behind_more_than_a_pipeline_of_resync_at_a_slow_server() -> None:
    """The ring is empty, for the store's thread takes whatever is there: what waits, waits at the server."""
    node = Cluster().node()
    connections(node, 30)
    node.serve()
    node.engine.sessions_state.words[state.RESYNC_MOST] = 8
    reconnect(node)
    node.tick(0.1)
    first = node.engine.outbox()
    assert len(first) == 8
    node.tick(0.1)
    assert len(node.engine.outbox()) == 0, "until it has answered"
    node.answer(first[:3])
    node.tick(0.1)
    assert len(node.engine.outbox()) == 3
    node.tick(RESYNC_PATIENCE_NS / SECOND_NS)
    node.tick(0.1)
    rest = node.engine.outbox()
    assert len(rest) == 8, "answers that do not come are not waited for for ever"
    node.tick(0.1)
    assert len(node.engine.outbox()) == 0, "and it is not asked any faster for that"
    node.answer(rest)
    for _ in range(3):
        node.tick(0.1)
        node.serve()
    node.tick(RESYNC_PATIENCE_NS / SECOND_NS)
    node.tick(0.1)
    assert told(node) == (100, 8), "as many as were not acknowledged"


def test_a_connection_that_is_lost_again_and_again_does_not_keep_the_hand_from_the_last_slots() -> None:
    node = Cluster().node()
    connections(node, 40)
    node.serve()
    node.tick(1)
    node.engine.sessions_state.words[state.RESYNC_RATE] = 160
    ports: set[int] = set()
    for _ in range(8):
        reconnect(node)
        node.tick(0.05)
        ports |= {int(key2) for key2 in node.engine.outbox()[:, image.KEY2]}
    assert len(ports) == 40, "eight or ten at a time, and each time others"
    assert told(node)[0] < 100


def test_what_the_store_does_not_acknowledge_is_shown_and_not_waited_for_for_ever() -> None:
    node = Cluster().node()
    connections(node, 5)
    node.serve()
    reconnect(node)
    node.tick(0.1)
    rows = node.engine.outbox()
    node.answer(rows[:3])
    node.tick(0.1)
    assert told(node) == (99, 2)
    node.tick(RESYNC_PATIENCE_NS / SECOND_NS)
    node.tick(0.1)
    assert told(node) == (100, 2)


def test_answers_of_an_older_round_do_not_count() -> None:
    node = Cluster().node()
    connections(node, 5)
    node.serve()
    reconnect(node)
    node.tick(0.1)
    old = node.engine.outbox()
    reconnect(node)
    node.tick(0.1)
    node.reply(old, image.WRITTEN)
    assert told(node) == (99, 5)
    node.reply(node.engine.outbox(), image.WRITTEN)
    node.tick()
    assert told(node) == (100, 0)


def test_whatever_the_order_of_events_every_live_session_is_in_the_store_at_the_end() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    cluster = Cluster()
    node = cluster.node(max_sessions=256)
    node.engine.sessions_state.words[state.RESYNC_RATE] = 400
    live = connections(node, 40)
    for step in range(200):
        what = dice.random()
        if what < 0.1:
            cluster.store.keys.clear()
            node.engine.outbox()  # what was under way is lost with the connection
            reconnect(node)
        elif what < 0.3:
            connection = live.pop(dice.randrange(len(live)))
            node.receive(connection.rst())
            live += connections_from(node, 5000 + step)
        elif what < 0.6:
            node.receive(dice.choice(live).data())
        else:
            node.tick(dice.random() / 10)
        if dice.random() < 0.5:
            node.serve()
    for _ in range(20):
        node.tick(0.1)
        node.serve()
    node.tick()
    assert told(node) == (100, 0)
    assert len(cluster.records()) == len(node.sessions()) - closed(node)


def connections_from(node: Node, sport: int) -> list[Connection]:
    connection = Connection(sport=sport)
    node.receive(*connection.handshake())
    return [connection]


def closed(node: Node) -> int:
    return sum(session["state"] == "closed" for session in node.sessions())


# Gaps --------------------------------------------------------------------------------------------------


def test_after_a_gap_only_what_had_packets_since_is_written_by_comparison() -> None:
    node = Cluster().node()
    busy, _ = connections(node, 2)
    node.serve()
    node.tick(1)
    gap(node)
    node.tick(1)
    assert len(node.engine.outbox()) == 0, "nobody has spoken yet"
    node.receive(busy.data())
    node.tick(1)
    (row,) = node.engine.outbox()
    assert row[image.OP] == image.WRITE
    node.receive(busy.data())
    node.tick(1)
    assert len(node.engine.outbox()) == 0, "it is confirmed"


def test_a_node_that_was_away_loses_what_another_has_taken_over() -> None:
    cluster = Cluster()
    late, heir = cluster.node(), cluster.node()
    (connection,) = connections(late, 1)
    late.serve()
    late.tick(1)
    stamp(late.engine.sessions_state, late.now)
    heir.judge(connection.data())
    assert heir.only_session()["generation"] == 1
    cluster.wait(5)
    stamp(late.engine.sessions_state, late.now)
    late.receive(connection.data())
    late.tick(1)
    late.serve()
    assert late.sessions() == []
    assert late.engine.counters["sessions-demoted"] == 1
    assert late.ends() == [], "it ends silently"


def test_a_session_older_than_the_gap_is_compared_when_it_is_written_first() -> None:
    node = Cluster().node()
    old, young = Connection(sport=1), Connection(sport=2)
    node.receive(*old.handshake()[:2])
    gap(node)
    node.cluster.wait(0.01)
    node.receive(old.ack())
    node.receive(*young.handshake())
    assert [int(row[image.OP]) for row in node.engine.outbox()] == [image.WRITE, image.WRITE_FIRST]


def test_a_loop_that_passes_in_time_has_no_gap() -> None:
    node = Cluster().node()
    sessions = node.engine.sessions_state
    for _ in range(10):
        stamp(sessions, node.now)
        node.cluster.wait(LOOP_GAP_NS_MAX / SECOND_NS)
    assert sessions.words[state.GAP] == 0


def test_a_lost_comparison_of_the_hand_ends_the_session_it_is_about() -> None:
    node = Cluster().node()
    connections(node, 3)
    node.serve()
    reconnect(node)
    node.tick(0.1)
    rows = node.engine.outbox()
    node.reply(rows[1:2], image.LOST)
    table = node.engine.sessions_state.table
    assert len(node.sessions()) == 2
    assert rows[1, image.KEY2] not in set(table.hot[np.flatnonzero(table.tags), t.KEY2])


# Switched on and off -----------------------------------------------------------------------------------


def switch(node: Node, on: bool) -> None:
    node.engine.sessions_state.words[state.RESILIENCY] = int(on)


def test_switched_off_nothing_is_asked_of_the_store_and_on_it_is_made_whole() -> None:
    cluster = Cluster()
    node = cluster.node()
    gone, stays = connections(node, 2)
    node.serve()
    switch(node, on=False)
    node.receive(gone.rst(), stays.data())
    connections_from(node, 7000)
    node.tick(1300)
    assert node.receive(Connection(sport=8000).ack()) == [Verdict.NON_SYN_TCP]
    assert len(node.engine.outbox()) == 0
    assert len(cluster.records()) == 2, "nobody was told of the end"
    assert told(node) == (0, 2)
    switch(node, on=True)
    node.tick(0.1)
    rows = node.engine.outbox()
    assert rows[:, image.OP].tolist() == [image.WRITE] * 2, "also what was never written before"
    node.answer(rows)
    node.tick()
    assert told(node) == (100, 0)
