"""The number of buckets, and the secret, changed on a real Redis Cluster: a record's places are on several servers."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from redis.crc import key_slot

from everwall.limits import MS_NS, SECOND_NS, STORE_TIMEOUT_S
from everwall.session import image, record
from everwall.session.image import DELETE, FAILED, FOUND, LOOKUP, MISSING, WRITE, WRITE_FIRST, WRITTEN
from everwall.session.record import derive_keys
from everwall.session.state import CLOCK_CONNECTIONS
from everwall.store import cluster as cluster_module
from everwall.store import conversation, relayout
from everwall.store.layout import Epoch, Layout, bucket_key, bucket_of, meta_key
from everwall.store.relayout import Relayout
from tests.needs import deep
from tests.store.stores import KEYS
from tests.store.test_cluster import meta_slot, move
from tests.store.test_relayout import NEXT, SECRET, Owner
from tests.store.workers import PATIENCE_S, Worker, be_patient, eventually, sessions

pytestmark = pytest.mark.usefixtures("patience")


@pytest.fixture
def worker():
    made: list[Worker] = []

    def make(config) -> Worker:
        made.append(Worker(config))
        return made[-1].connected()

    yield make
    for each in made:
        each.close()


@pytest.fixture
def change(monkeypatch):
    """Begins changes that are quick to begin, and pass few buckets at a time; ends what is under way."""
    monkeypatch.setattr(relayout, "LAYOUT_NOTICE_CLUSTER_S", 2)
    # As in life, all hear of it within the notice, or ask first.
    monkeypatch.setattr(conversation, "_PROBE_NS", 100 * MS_NS)
    monkeypatch.setattr(cluster_module, "LAYOUT_LEASE_NS", 500 * MS_NS)
    monkeypatch.setattr(relayout, "LAYOUT_LEASE_NS", SECOND_NS)
    monkeypatch.setattr(relayout, "_SLICE_BUCKETS", 8)
    monkeypatch.setattr(relayout, "MOVED_BUCKETS_PER_S", 64)
    monkeypatch.setattr(relayout, "STORE_RECONNECT_MAX_S", 0.2)
    made: list[Relayout] = []

    def begin(where, buckets: int) -> Relayout:
        made.append(Relayout(where))
        made[-1].begin(buckets)
        return made[-1]

    yield begin
    for each in made:
        each.stop()


def keys_of(servers, prefix: str) -> dict[bytes, int]:
    """How many records there are in each bucket, on whatever server."""
    found = {}
    for server in servers.primaries:
        with server.client() as client:
            found |= {key: client.hlen(key) for key in client.keys("{" + prefix + ":*:*")}
    return found


def home_of(servers, prefix: str, rows, epoch: Epoch, secret: int = 0):
    """The server that each session has its record of an epoch on."""
    owners = servers.owners()
    fields = [int(record.field_of(rows, i, KEYS, secret)) % 2**64 for i in range(len(rows))]
    keys = [bucket_key(prefix, epoch, bucket_of(field.to_bytes(8, "big"), epoch)) for field in fields]
    return [owners[key_slot(key)] for key in keys]


def follow(owners, rows, change: Relayout) -> None:
    """Every node asks for every session, twice at least and again until the change is over."""
    deadline, asked = time.monotonic() + 6 * PATIENCE_S, 0
    while change.running or asked < 2 * len(owners):
        assert time.monotonic() < deadline, change.status()
        for owner in owners:
            owner.follow()
            found = owner.worker.outcome(rows, LOOKUP)
            while FAILED in found:  # for a moment two servers say of each other that they have a slot
                found = owner.worker.outcome(rows, LOOKUP)
            assert found == [FOUND] * len(rows), (change.status(), owner.worker.status)
            asked += 1


def test_the_number_of_buckets_changes_while_slots_move_and_every_session_is_found_all_the_time(
    cluster, worker, change, monkeypatch
):
    where = cluster.config()
    moved, settle = threading.Event(), relayout.settle

    def settle_when_all_have_moved(*words) -> Layout:
        assert moved.wait(PATIENCE_S)
        return settle(*words)

    monkeypatch.setattr(relayout, "settle", settle_when_all_have_moved)
    rows = sessions(450)
    rows[:, image.OWNER] = np.arange(450) // 150
    owners = [Owner(worker(where), rows[:150]), Owner(worker(where), rows[150:300])]
    dead = Worker(where).connected()
    dead.ask(rows[300:], WRITE_FIRST)
    dead.close()
    running = change(where, 200)

    class Resharding:
        """Between two rounds of questions a slot moves: the layout's own, then some of the old and the new buckets."""

        def __init__(self) -> None:
            old, new = (bucket_key(where.prefix, epoch, 5) for epoch in (Epoch(0, 64), Epoch(1, 200)))
            self.slots = [meta_slot(where), key_slot(old), key_slot(new), key_slot(old) ^ 1]
            self.worker = owners[0].worker

        def follow(self) -> None:
            if running.status()["state"] == "moving" and self.slots:
                slot = self.slots.pop()
                target = next(server for server in cluster.primaries if server is not cluster.owners()[slot])
                move(cluster, slot, target)
                if not self.slots:
                    moved.set()

    resharding = Resharding()
    follow([*owners, resharding], rows, running)
    assert resharding.slots == []
    assert (running.status()["state"], running.status()["error"]) == ("settled", "")
    assert running.status()["moved"] >= 150, "at least those of the dead node"
    found = keys_of(cluster, where.prefix)
    assert {key.split(b":")[1] for key in found} == {b"1"}, "nothing is left of the old epoch"
    assert sum(found.values()) == 450, "and nothing is there twice"
    for owner in owners:
        eventually(lambda o=owner: o.worker.status["layout"] == "v1 epoch 1 buckets 200", "heard of the end")
        assert owner.moves == 1
        assert owner.worker.status["found_elsewhere"] > 0
        assert owner.worker.status["unconfirmed"] == 0
        assert owner.worker.outcome(rows, LOOKUP) == [FOUND] * 450
        assert owner.worker.outcome(sessions(3, seed=9), LOOKUP) == [MISSING] * 3
    assert (owners[0].worker.ask(rows, LOOKUP)[:, image.OWNER] == rows[:, image.OWNER]).all()
    assert worker(where).outcome(rows, LOOKUP) == [FOUND] * 450, "a newcomer knows where to look"
    assert owners[0].worker.outcome(rows[:150], DELETE) == [WRITTEN] * 150
    assert sum(keys_of(cluster, where.prefix).values()) == 300


@deep
def test_a_shard_that_dies_in_the_middle_of_a_change_holds_up_its_own_buckets_until_its_heir_is_there(
    cluster, worker, change
):
    where = cluster.config()
    rows = sessions(300)
    owner = Owner(worker(where), rows[:150])
    dead = Worker(where).connected()
    dead.ask(rows[150:], WRITE_FIRST)
    dead.close()
    leader = cluster.owners()[meta_slot(where)]
    place = next(i for i, server in enumerate(cluster.primaries) if server is not leader)
    victim, heir = cluster.primaries[place], cluster.replicas[place]
    for server in cluster.primaries:
        cluster.replicated(server)
    running = change(where, 200)
    eventually(lambda: owner.worker.clock[2] > owner.moves, "it writes to the new epoch")
    owner.follow()
    new = home_of(cluster, where.prefix, rows[:150], Epoch(1, 200))
    mine = np.array([server is not victim for server in new])
    victim.kill()
    eventually(lambda: "buckets wait for" in running.status()["error"], "the change says what it waits for")
    assert f"127.0.0.1:{victim.port}" in running.status()["error"]
    assert 20 < running.status()["percent"] < 100, "the others' buckets are passed all the same"
    found = owner.worker.outcome(rows[:150][mine], LOOKUP)
    assert found == [FOUND] * mine.sum(), "what was found in one place is told although the other is silent"
    cluster.take_over(heir)
    follow([owner], rows, running)
    assert (running.status()["state"], running.status()["error"]) == ("settled", "")
    assert {key.split(b":")[1] for key in keys_of(cluster, where.prefix)} == {b"1"}
    assert owner.worker.outcome(rows, LOOKUP) == [FOUND] * 300
    victim.start()
    cluster.settle()


def test_the_secret_is_rotated_under_running_nodes_and_no_session_is_missing_at_any_step(cluster, worker):
    where = cluster.config()
    steps = [(SECRET,), (SECRET, NEXT), (NEXT, SECRET), (NEXT,)]
    owners = [Owner(worker(where), sessions(100, seed=seed)) for seed in (1, 2)]
    everything = np.concatenate([owner.rows for owner in owners])
    everything[:, image.TAG] = np.arange(len(everything))
    for step in steps[1:]:
        for owner in owners:
            before = owner.worker.status["secrets"]
            owner.worker.store.use_keys(derive_keys(*step))
            eventually(lambda o=owner, b=before: o.worker.status["secrets"] != b, "it uses them")
            for each in owners:
                each.follow()
                assert each.worker.outcome(everything, LOOKUP) == [FOUND] * 200
    assert [owner.moves for owner in owners] == [1, 1], "only what is written with has changed, and once"
    assert [int(owner.worker.clock[CLOCK_CONNECTIONS]) for owner in owners] == [3, 3], "no link was given up"
    assert sum(keys_of(cluster, where.prefix).values()) == 200, "under the former secret nothing is left"


def test_a_node_that_stood_still_asks_for_the_layout_before_it_asks_for_anything_else(cluster, worker):
    where = cluster.config()
    late, other, rows = worker(where), worker(where), sessions(50)
    first, after = Layout(Epoch(1, 512)), Layout(Epoch(2, 64))
    leader = cluster.admin(cluster.owners()[meta_slot(where)])
    leader.set(meta_key(where.prefix), str(first))
    for node in (late, other):
        eventually(lambda n=node: n.status["layout"] == str(first), "it has heard of it")
    router = late.store._router
    link = next(link for link in router.links if link.leads)
    link.on_told = lambda _: None  # what comes while it stands still
    leader.set(meta_key(where.prefix), str(after))
    eventually(lambda: other.status["layout"] == str(after), "of the next one, too")
    other.ask(rows, WRITE_FIRST)
    assert late.status["layout"] == str(first)
    link.on_told = router._told
    router._confirmed_ns = link._probed_ns = 0  # so long ago
    assert late.outcome(rows, LOOKUP) == [FOUND] * 50


def test_a_node_that_cannot_hear_of_the_layout_for_long_confirms_nothing_and_misses_nothing(
    cluster, worker, patience, monkeypatch
):
    """Others may have begun to write elsewhere; what it finds is there all the same."""
    where = cluster.config()
    node, rows = worker(where), sessions(200)
    node.ask(rows, WRITE_FIRST)
    leader = cluster.owners()[meta_slot(where)]
    there = np.array([server is not leader for server in home_of(cluster, where.prefix, rows, Epoch(0, 64))])
    left, absent = rows[there], sessions(200, seed=5)
    absent = absent[np.array([s is not leader for s in home_of(cluster, where.prefix, absent, Epoch(0, 64))])]
    leader.hang()
    try:
        patience.setattr(conversation, "_TIMEOUT_NS", int(STORE_TIMEOUT_S * SECOND_NS))
        eventually(lambda: node.status["shards"] == "2 of 3", "the link is given up")
        be_patient(patience)
        assert node.outcome(absent, LOOKUP) == [MISSING] * len(absent), "what it knows is good for a while"
        assert node.outcome(left, WRITE) == [WRITTEN] * len(left)
        monkeypatch.setattr(cluster_module, "LAYOUT_TRUST_NS", 0)
        assert node.outcome(left, LOOKUP) == [FOUND] * len(left)
        assert node.outcome(absent, LOOKUP) == [FAILED] * len(absent)
        node.tell(left, WRITE)
        eventually(lambda: node.status["unconfirmed"] == len(left), "written, and nobody says so")
        monkeypatch.undo()
    finally:
        leader.wake()
    node.connected()
    assert node.outcome(rows, WRITE) == [WRITTEN] * 200
    assert node.outcome(absent, LOOKUP) == [MISSING] * len(absent)
