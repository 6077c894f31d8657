"""The number of buckets, and the secret, changed under store threads that go on asking a real server."""

from __future__ import annotations

import time

import numpy as np
import pytest

from everwall.config import ConfigError
from everwall.limits import MS_NS, SECOND_NS
from everwall.session import image
from everwall.session.image import FOUND, LOOKUP, MISSING, WRITE, WRITE_FIRST
from everwall.session.record import derive_keys, fingerprints
from everwall.session.state import CLOCK_CONNECTIONS, CLOCK_LAYOUT
from everwall.store import conversation, relayout
from everwall.store import redis as redis_module
from everwall.store.connection import Address, StoreConfig
from everwall.store.layout import Epoch, Layout, LayoutError, meta_key
from everwall.store.protocol import ProtocolError
from everwall.store.relayout import Relayout
from tests import needs
from tests.redis_server import PASSWORD, RedisServer
from tests.store.test_redis import client, config
from tests.store.workers import PATIENCE_S, Worker, eventually, sessions

pytestmark = pytest.mark.usefixtures("patience")

SECRET = b"a cluster secret of 32 bytes ..."
NEXT = b"the one after it, of 32 bytes .."


@pytest.fixture(scope="module")
def shared():
    needs.binary("redis-server")
    server = RedisServer().start()
    yield server
    server.close()


@pytest.fixture
def worker():
    """Makes workers and ends them."""
    made: list[Worker] = []

    def make(config: StoreConfig) -> Worker:
        made.append(Worker(config))
        return made[-1].connected()

    yield make
    for each in made:
        each.close()


def epochs_in(admin, prefix: str) -> set[bytes]:
    """The epochs of which there are buckets."""
    return {key.split(b":")[1] for key in admin.keys(f"{{{prefix}:*")}


def put_layout(admin, where: StoreConfig, wanted: Layout) -> None:
    admin.set(meta_key(where.prefix), str(wanted))


class Owner:
    """A node with sessions: when it hears that records have other places it writes all of them, as the hand does."""

    def __init__(self, worker: Worker, rows) -> None:
        self.worker, self.rows, self.moves = worker, rows, 0
        worker.ask(rows, WRITE_FIRST)

    def follow(self) -> None:
        moves = int(self.worker.clock[CLOCK_LAYOUT])
        if moves != self.moves:
            self.moves = moves
            self.worker.ask(self.rows, WRITE)


def test_the_number_of_buckets_changes_under_traffic_and_every_session_is_found_all_the_time(
    shared, worker, monkeypatch
):
    monkeypatch.setattr(relayout, "LAYOUT_NOTICE_S", 2)
    # As in life, all hear of it within the notice, or ask first.
    monkeypatch.setattr(conversation, "_PROBE_NS", 100 * MS_NS)
    monkeypatch.setattr(conversation, "LAYOUT_LEASE_NS", 500 * MS_NS)
    monkeypatch.setattr(relayout, "LAYOUT_LEASE_NS", SECOND_NS)
    where, admin = config(shared), client(shared)
    rows = sessions(600)
    rows[:, image.OWNER] = np.arange(600) // 200
    owners = [Owner(worker(where), rows[:200]), Owner(worker(where), rows[200:400])]
    dead = Worker(where).connected()
    dead.ask(rows[400:], WRITE_FIRST)
    dead.close()
    change, asked = Relayout(where), 0
    try:
        change.begin(1024)
        with pytest.raises(LayoutError, match="a change is under way"):
            Relayout(where).begin(32)
        deadline = time.monotonic() + 6 * PATIENCE_S  # the change itself takes seconds
        while change.running or asked < 2:
            assert time.monotonic() < deadline, change.status()
            for owner in owners:
                owner.follow()
                assert owner.worker.outcome(rows, LOOKUP) == [FOUND] * 600
                asked += 1
    finally:
        change.stop()
    assert (change.status()["state"], change.status()["error"]) == ("settled", "")
    assert change.status()["moved"] >= 200, "at least those of the dead node"
    assert admin.get(meta_key(where.prefix)) == b"v1 epoch 1 buckets 1024"
    assert epochs_in(admin, where.prefix) == {b"1"}
    for owner in owners:
        eventually(lambda o=owner: o.worker.status["layout"] == "v1 epoch 1 buckets 1024", "heard of the end")
        assert owner.moves == 1
        assert int(owner.worker.clock[CLOCK_CONNECTIONS]) == 1, "nobody had to connect anew"
        assert owner.worker.status["found_elsewhere"] > 0
        assert owner.worker.outcome(rows, LOOKUP) == [FOUND] * 600
    found = owners[0].worker.ask(rows, LOOKUP)
    assert (found[:, image.OWNER] == rows[:, image.OWNER]).all()
    newcomer = worker(where)
    assert newcomer.outcome(rows, LOOKUP) == [FOUND] * 600


def test_a_node_that_stood_still_asks_for_the_layout_before_it_asks_for_anything_else(shared, worker):
    """Else it would look for sessions where nobody has them any more, and refuse their packets."""
    where, admin = config(shared), client(shared)
    late, other, rows = worker(where), worker(where), sessions(50)
    wanted = Layout(Epoch(1, 512))
    put_layout(admin, where, wanted)
    eventually(lambda: other.status["layout"] == str(wanted), "one of them has heard of it")
    eventually(lambda: late.status["layout"] == str(wanted), "and the other one")
    after = Layout(Epoch(2, 64))
    put_layout(admin, where, after)
    eventually(lambda: other.status["layout"] == str(after), "of the next one, too")
    other.ask(rows, WRITE_FIRST)
    link = late.store._router.shard.ordinary
    link.protocol.hear(str(wanted).encode())
    link.protocol.move(0)
    link.confirmed_ns = link._probed_ns = 0  # as after a hang
    assert late.outcome(rows, LOOKUP) == [FOUND] * 50


def test_a_layout_of_a_newer_release_that_appears_is_refused_until_it_is_gone(shared, worker):
    where, admin = config(shared), client(shared)
    node, rows = worker(where), sessions(5)
    node.ask(rows, WRITE_FIRST)
    admin.set(meta_key(where.prefix), "v2 something else")
    eventually(lambda: not node.status["connected"], "it hangs up")
    assert "layout of version 2, and this release knows version 1" in node.status["last_error"]
    assert admin.get(meta_key(where.prefix)) == b"v2 something else"
    admin.set(meta_key(where.prefix), "64")
    node.connected()
    assert node.outcome(rows, LOOKUP) == [FOUND] * 5


def test_the_secret_is_rotated_under_running_nodes_and_no_session_is_missing_at_any_step(shared, worker):
    where, admin = config(shared), client(shared)
    steps = [(SECRET,), (SECRET, NEXT), (NEXT, SECRET), (NEXT,)]
    owners = [Owner(worker(where), sessions(100, seed=seed)) for seed in (1, 2)]
    everything = np.concatenate([owner.rows for owner in owners])
    everything[:, image.TAG] = np.arange(len(everything))
    told = set()
    for step in steps[1:]:
        for owner in owners:
            before = owner.worker.status["secrets"]
            owner.worker.store.use_keys(derive_keys(*step))
            eventually(lambda o=owner, b=before: o.worker.status["secrets"] != b, "it uses them")
            told.add(owner.worker.status["secrets"])
            for each in owners:
                each.follow()
                assert each.worker.outcome(everything, LOOKUP) == [FOUND] * 200
    assert len(told) == 3
    assert [owner.moves for owner in owners] == [1, 1], "only what is written with has changed, and once"
    fields = sum(admin.hlen(key) for key in admin.keys(f"{{{where.prefix}:*"))
    assert fields == 200, "under the former secret nothing is left"


def test_a_refresh_counts_as_one_while_a_record_has_two_places(shared, worker, monkeypatch):
    """It is written in one and cleared from the other; rates are what is left of the writes without refreshes."""
    # A first write that waited while the machine stood still is compared, and counts as a refresh.
    monkeypatch.setattr(redis_module, "stood_still", lambda *_: False)
    monkeypatch.setattr(conversation.Trade, "stood_still", lambda _: False)
    node = worker(config(shared))
    both = derive_keys(SECRET, NEXT)
    node.store.use_keys(both)
    eventually(lambda: node.status["secrets"] == ", ".join(fingerprints(both)), "the secrets are used")
    rows = sessions(3)
    node.ask(rows, WRITE_FIRST)
    node.ask(rows, WRITE)
    assert (node.status["written"], node.status["refreshed"]) == (6, 3)


def test_with_a_secret_that_nobody_else_has_nothing_is_found(shared, worker):
    where = config(shared)
    node, rows = worker(where), sessions(3)
    node.ask(rows, WRITE_FIRST)
    node.store.use_keys(derive_keys(NEXT))
    eventually(lambda: node.status["secrets"] != worker(where).status["secrets"], "it uses another")
    assert node.outcome(rows, LOOKUP) == [MISSING] * 3


def test_what_cannot_be_done_is_said_before_it_is_begun(shared):
    where = config(shared)
    with pytest.raises(LayoutError, match="no node has been here yet"):
        Relayout(where).begin(64)
    with pytest.raises(ConnectionError, match="the store does not answer"):
        Relayout(StoreConfig("127.0.0.1", 1, password=PASSWORD, ca_pem=shared.ca_pem)).begin(64)
    with pytest.raises(ConnectionError, match="the store does not answer"):
        Relayout(StoreConfig(cluster=(Address("127.0.0.1", 1),), tls=False))


def test_moving_ends_between_two_buckets_when_the_node_does(shared, monkeypatch):
    """A slow server must not hold the node up for a slice of a hundred buckets."""
    where = config(shared)
    change = Relayout(where)
    former, moved = Epoch(0, 100), []

    def move(*words) -> int:
        moved.append(words[-1])
        change._stop.set()
        return 0

    monkeypatch.setattr(relayout, "move_bucket", move)
    change._move_rest(Layout(Epoch(1, 200), former, 1, 2))
    assert moved == [0]
    change.stop()


def test_what_a_change_cannot_do_now_is_tried_again_whatever_the_reason(shared, monkeypatch):
    """A password file that is being replaced, an answer that makes no sense."""
    change, tried = Relayout(config(shared)), []
    wrong = [ConfigError("auth", "a password"), ProtocolError("TIME was answered by None"), OSError("gone")]

    def tell(*_) -> int:
        tried.append(1)
        if wrong:
            raise wrong.pop()
        return 10

    monkeypatch.setattr(relayout, "store_time_s", tell)
    monkeypatch.setattr(relayout, "STORE_RECONNECT_MAX_S", 0)
    change._carry_out(Layout(Epoch(1, 200), Epoch(0, 100), 1, 2))
    assert (len(tried), change.status()["state"]) == (4, "left to its time-out")
    change.stop()
