"""More than there is room for where a store has several links: what is let go is counted. No I/O."""

from __future__ import annotations

import select
import time

import numpy as np
import pytest

from everwall.limits import LOOKUP_DEADLINE_NS, SECOND_NS, STORE_ASKED_ROWS, STORE_QUEUE_ROWS
from everwall.rings import make_ring
from everwall.session import image
from everwall.session.image import FAILED, LOOKUP, WRITE
from everwall.session.state import CLOCK_CONNECTIONS
from everwall.store import backlog, cluster, conversation, router
from everwall.store.answers import Answers
from everwall.store.clock import StoreClock
from everwall.store.cluster import ClusterRouter
from everwall.store.connection import Address, StoreConfig, login_of
from everwall.store.conversation import Trade
from everwall.store.link import Arrival
from everwall.store.protocol import ErrorReply, Protocol
from everwall.store.redis import make_clock
from everwall.store.router import Shard
from tests.store.stores import KEYS, asking, sessions

pytestmark = pytest.mark.kernel

OLD = [Address("127.0.0.1", port) for port in (7001, 7002, 7003)]
NEW = [Address("127.0.0.1", port) for port in (7011, 7012, 7013)]
NO_FD = -1
"""Nobody is woken here."""


def trade() -> Trade:
    answers = Answers(make_ring(8, image.COLUMNS), NO_FD)
    return Trade(KEYS, answers, StoreClock(make_clock()), select.poll(), {}, NO_FD)


def thirds(addresses: list[Address]):
    """A map: so many slots for each."""
    return [
        (first, first + 5461, address) for first, address in zip((0, 5462, 10924), addresses, strict=True)
    ]


def routed() -> ClusterRouter:
    config = StoreConfig(cluster=tuple(OLD), tls=False)
    protocol = Protocol(KEYS, "test", 64, clustered=True)
    made = ClusterRouter(trade(), protocol, config, None, login_of(config))
    made._learn(thirds(OLD))
    leader = next(link for link in made.links if link.leads)
    made._greeted(leader)
    return made


def unreachable(greeting) -> Arrival:
    raise ConnectionError("nobody is there")


def test_changes_of_many_servers_that_have_gone_at_once_go_to_their_successors(monkeypatch):
    """A cluster comes back from an outage with other addresses, and each link there was has its backlog full."""
    for module in (backlog, cluster, conversation, router):
        monkeypatch.setattr(module, "STORE_QUEUE_ROWS", 64)
    monkeypatch.setattr(backlog, "_ROWS", 128)
    monkeypatch.setattr(router, "STORE_BATCH_RECORDS", 16)
    store = routed()
    rows = asking(sessions(180), WRITE)
    for number, link in enumerate(store.links):
        link.backlog.put(rows[60 * number : 60 * (number + 1)])
    store._learn(thirds(NEW))
    store._survey_wanted = False
    now = time.monotonic_ns()
    store._leaving = dict.fromkeys(OLD, now - 10**10)
    store.step()
    assert sorted(store._shards) == NEW
    kept = np.concatenate([link.backlog.take(len(link.backlog)) for link in store.links])
    assert len(np.unique(kept[:, image.TAG])) == len(kept), "each once"
    assert len(kept) + store._trade.dropped == 180, "and what there was no room for is counted"
    assert len(kept) >= 3 * 32


def test_requests_that_are_sent_to_and_fro_are_bounded_and_lookups_leave_nothing_behind():
    store = routed()
    link = store.links[0]
    back = ErrorReply(f"MOVED 1 {store._address_of(link)}")
    asked = asking(sessions(8), LOOKUP)
    for row in asked:
        store._redirect(link, [(back, row.reshape(1, -1))], False)
    assert store._trade.answers.tally[FAILED] == 8
    assert not store._later
    changes = np.repeat(asking(sessions(1), WRITE), STORE_QUEUE_ROWS // 2, axis=0)
    for _ in range(3):
        store._redirect(link, [(back, changes)], False)
    assert sum(map(len, store._later)) == STORE_QUEUE_ROWS
    assert store._trade.dropped == STORE_QUEUE_ROWS // 2


def test_a_map_of_more_servers_than_a_cluster_has_is_not_used(monkeypatch):
    store = routed()
    monkeypatch.setattr(cluster, "STORE_SHARDS_MAX", 3)
    store._learn([(0, 5000, NEW[0]), *[(first + 1, last, address) for first, last, address in thirds(OLD)]])
    assert sorted(store._shards) == OLD
    assert store._trade.last_error == "the cluster has 4 primaries, a node speaks to 3 at most"


@pytest.mark.parametrize("kind", ["MOVED", "ASK"])
def test_a_server_that_sends_requests_to_ever_new_ones_is_not_followed_without_end(monkeypatch, kind):
    """Each would cost two queues and a thread that dials."""
    store = routed()
    monkeypatch.setattr(cluster, "STORE_SHARDS_MAX", 5)
    (row,) = asking(sessions(1), WRITE)
    for port in range(8000, 8010):
        link = store._shard(store._owners[1]).ordinary
        store._learnt_ns[:] = 0
        store._redirect(link, [(ErrorReply(f"{kind} 1 127.0.0.1:{port}"), row.reshape(1, -1))], False)
    assert len(store._shards) == 5
    assert "127.0.0.1:8009 is one server more than the 5 of a cluster" in store._trade.last_error
    assert sum(map(len, store._later)) == 8, "they wait for the next map"


@pytest.mark.parametrize("operation", [LOOKUP, WRITE])
def test_rows_of_a_slot_that_moves_do_not_pile_up_where_they_are_sent_one_by_one(operation):
    common = trade()
    shard = Shard(common, Protocol(KEYS, "test", 64, clustered=True), unreachable, leads=False, replicas=0)
    row = asking(sessions(1), operation)[0]
    for _ in range(STORE_ASKED_ROWS + 5):
        shard.ordinary.ask(row)
    assert len(shard.ordinary._asked) == STORE_ASKED_ROWS
    assert (common.answers.tally[FAILED], common.dropped) == ((5, 0) if operation == LOOKUP else (0, 5))


def test_lookups_for_a_slow_server_fail_before_they_overwrite_one_another(monkeypatch):
    """No ring of the worker's keeps them back where several servers are asked."""
    for module in (backlog, conversation):
        monkeypatch.setattr(module, "STORE_QUEUE_ROWS", 64)
    monkeypatch.setattr(backlog, "_ROWS", 128)
    common = trade()
    shard = Shard(common, Protocol(KEYS, "test", 64, clustered=True), unreachable, leads=False, replicas=0)
    rows = asking(sessions(200), LOOKUP)
    for first in range(0, 200, 8):
        some = rows[first : first + 8]
        shard.put(some, np.zeros(len(some), np.int64))
    waiting = shard.ordinary.backlog.take_lookups()
    assert len(waiting) + common.answers.tally[FAILED] == 200
    assert len(waiting) <= 64
    assert waiting[:, image.TAG].tolist() == list(range(200 - len(waiting), 200))


class Busy:
    """A link over which nothing comes and nothing more can be sent."""

    wants_to_send = False

    def receive(self) -> bool:
        return False


def test_lookups_for_which_nobody_waits_any_more_are_not_sent_to_a_slow_server(monkeypatch):
    """It answers all the time, and each question stands behind those that came too late: none is answered in time."""
    common = trade()
    link = Shard(
        common, Protocol(KEYS, "test", 64, clustered=True), unreachable, leads=False, replicas=0
    ).ordinary
    link._idle.clear()
    now = 10 * SECOND_NS
    monkeypatch.setattr(time, "monotonic_ns", lambda: now)
    link._probed_ns = now
    rows = asking(sessions(30), LOOKUP)
    link.backlog.put(rows[:10])
    link._with_link(Busy(), False)
    link.backlog.put(rows[10:20])
    assert link.backlog.take_lookups(4)[:, image.TAG].tolist() == [0, 1, 2, 3], "some are sent"
    now += LOOKUP_DEADLINE_NS
    link._with_link(Busy(), False)
    assert common.answers.tally[FAILED] == 6, "the rest of those that have waited so long"
    link._with_link(Busy(), False)
    assert len(link.backlog.take_lookups()) == 10, "the server is asked about those that came since"
    link.backlog.put(rows[20:])
    now += LOOKUP_DEADLINE_NS
    link._with_link(Busy(), False)
    assert common.answers.tally[FAILED] == 6, "and these have just come"


def test_changes_that_a_slow_server_had_no_room_for_are_offered_again(monkeypatch):
    """Those that were dropped without a link are so anyway, with the next one."""
    for module in (backlog, conversation):
        monkeypatch.setattr(module, "STORE_QUEUE_ROWS", 64)
    monkeypatch.setattr(backlog, "_ROWS", 128)
    common = trade()
    shard = Shard(common, Protocol(KEYS, "test", 64, clustered=True), unreachable, leads=False, replicas=0)
    rows = asking(sessions(140), WRITE)
    shard.put(rows[:64], np.zeros(64, np.int64))
    shard.put(rows[64:70], np.zeros(6, np.int64))
    assert (common.dropped, common.crowded_out) == (32, 0)
    shard.ordinary.link = Busy()
    shard.put(rows[70:100], np.zeros(30, np.int64))
    shard.put(rows[100:], np.zeros(40, np.int64))
    assert (common.dropped, common.crowded_out) == (68, 36)
    before = common.clock._words[CLOCK_CONNECTIONS]
    for second in range(100):
        common.offer_what_was_refused(second * SECOND_NS)
    assert common.clock._words[CLOCK_CONNECTIONS] == before + 1
