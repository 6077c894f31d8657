"""The store's thread against a real Redis Cluster over TLS: slots that move, primaries that die."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from redis.crc import key_slot

from everwall.limits import LOOKUP_DEADLINE_NS, SECOND_NS, STORE_TIMEOUT_S
from everwall.session import image, record
from everwall.session.image import DELETE, FAILED, FOUND, LOOKUP, LOST, MISSING, WRITE, WRITE_FIRST, WRITTEN
from everwall.session.state import CLOCK_CONNECTIONS, CLOCK_OFFSET
from everwall.store import conversation
from everwall.store.resp import bucket_of
from tests import needs
from tests.redis_server import PASSWORD, SERVERS
from tests.store.stores import KEYS
from tests.store.workers import PATIENCE_S, Worker, be_patient, eventually, sessions
from tests.topologies import Cluster

pytestmark = pytest.mark.usefixtures("patience")


@pytest.fixture(params=SERVERS)
def own(request):
    """A cluster of the test's own."""
    program = needs.server(request.param)
    made: list[Cluster] = []

    def make(**options: int) -> Cluster:
        made.append(Cluster(program=program, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def worker():
    made: list[Worker] = []

    def make(config, **options: int) -> Worker:
        made.append(Worker(config, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def slots_of(rows, prefix: str):
    """The slot of each session, by redis-py's own arithmetic."""
    slots = []
    for i in range(len(rows)):
        bucket = int(bucket_of(record.field_of(rows, i, KEYS, 0), 64))
        slots.append(key_slot(b"{%s:0:%x}" % (prefix.encode(), bucket)))
    return np.array(slots)


def meta_slot(where) -> int:
    """The slot of the key on which nodes agree."""
    return int(key_slot(("{" + where.prefix + "}:buckets").encode()))


# Ordinary days -----------------------------------------------------------------------------------


def test_sessions_are_spread_over_the_shards_and_found_there_by_another_node(cluster, worker):
    where = cluster.config()
    one, other = worker(where).connected(), worker(where).connected()
    rows = sessions(300)
    assert one.outcome(rows, WRITE_FIRST) == [WRITTEN] * 300
    assert one.outcome(rows, WRITE) == [WRITTEN] * 300, "scripts are loaded on every shard"
    found = other.ask(rows, LOOKUP)
    rows[:, [image.OP, image.CONFIRM]] = FOUND, 1
    assert (found == rows).all()
    for server in cluster.primaries:
        with server.client() as client:
            assert sum(client.hlen(key) for key in client.keys("{" + where.prefix + ":0:*")) > 50
    assert one.outcome(rows[:100], DELETE) == [WRITTEN] * 100
    assert other.outcome(rows, LOOKUP) == [MISSING] * 100 + [FOUND] * 200
    for node in (one, other):
        assert (node.status["errors"], node.status["shards"]) == (0, "3 of 3"), node.status


def test_a_takeover_makes_the_former_owner_lose(cluster, worker):
    where = cluster.config()
    old, new = worker(where).connected(), worker(where).connected()
    old.ask(sessions(20, OWNER=1), WRITE_FIRST)
    assert new.outcome(sessions(20, OWNER=2, GENERATION=1), WRITE) == [WRITTEN] * 20
    assert old.outcome(sessions(20, OWNER=1), WRITE) == [LOST] * 20


def test_all_nodes_go_by_the_clock_of_the_shard_that_has_the_meta_key(cluster, worker):
    where = cluster.config()
    node = worker(where).connected()
    leader = cluster.owners()[meta_slot(where)]
    assert node.status["primary"] == f"127.0.0.1:{leader.port}"

    def ahead_ns() -> int:
        return time.monotonic_ns() + int(node.clock[CLOCK_OFFSET]) - time.time_ns()

    eventually(lambda: abs(ahead_ns()) < SECOND_NS, "store time")
    with leader.client() as client:
        assert client.get("{" + where.prefix + "}:buckets") == b"64"


def test_many_requests_at_once_are_all_answered_and_stopping_sends_what_waits(cluster, worker):
    where = cluster.config()
    node, reader = worker(where).connected(), worker(where).connected()
    rows = sessions(4000)
    node.ask(rows[::2], WRITE_FIRST)
    assert node.outcome(rows, LOOKUP) == [FOUND, MISSING] * 2000
    node.tell(rows[1::2], WRITE, confirm=False)
    assert node.store.stop(PATIENCE_S)
    assert reader.outcome(rows, LOOKUP) == [FOUND] * 4000


# Slots that move ----------------------------------------------------------------------------------


def move(servers: Cluster, slot: int, target, pause=lambda: None) -> None:
    """Give a slot to another primary, as redis-cli's reshard does it; ``pause`` runs with the slot half moved."""
    source = servers.owners()[slot]
    if source is target:
        return
    old, new = servers.admin(source), servers.admin(target)
    new.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", servers.id(source))
    old.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", servers.id(target))
    pause()
    for key in old.execute_command("CLUSTER GETKEYSINSLOT", slot, 1000):
        old.execute_command("MIGRATE", "127.0.0.1", target.port, key, 0, 60_000, "AUTH", PASSWORD)
    pause()
    for client in (new, old):
        client.execute_command("CLUSTER SETSLOT", slot, "NODE", servers.id(target))


def test_a_slot_that_is_being_moved_is_asked_of_both_and_then_of_its_new_owner(cluster, worker):
    servers = cluster
    node = worker(servers.config()).connected()
    rows = sessions(400)
    node.ask(rows, WRITE_FIRST)
    slots = slots_of(rows, node.prefix)
    slot = int(slots[0])
    mine = rows[slots == slot]
    target = next(server for server in servers.primaries if server is not servers.owners()[slot])
    seen: list[bool] = []

    def look() -> None:
        seen.append(node.outcome(mine, LOOKUP) == [FOUND] * len(mine))
        seen.append(node.outcome(mine, WRITE) == [WRITTEN] * len(mine))
        seen.append(node.outcome(mine[:1], DELETE) == [WRITTEN])
        seen.append(node.outcome(mine[:1], WRITE_FIRST) == [WRITTEN])

    move(servers, slot, target, look)
    look()
    assert seen == [True] * 12, node.status
    assert "ASK" in node.status["last_error"] or "MOVED" in node.status["last_error"]
    with target.client() as client:
        keys = client.execute_command("CLUSTER GETKEYSINSLOT", slot, 10)
        buckets = [key for key in keys if key.startswith("{" + node.prefix + ":")]
        assert sum(map(client.hlen, buckets)) == len(mine)
        assert all(client.ttl(key) > 0 for key in buckets), "the bucket still cleans up after itself"
    before = node.status["errors"]
    assert node.outcome(rows, LOOKUP) == [FOUND] * 400
    assert node.status["errors"] == before, "the new owner is known by now"


def test_resharding_under_traffic_loses_nothing(cluster, worker):
    servers = cluster
    where = servers.config()
    node, reader = worker(where).connected(), worker(where).connected()
    rows = sessions(1000)
    node.ask(rows, WRITE_FIRST)
    slots = slots_of(rows, where.prefix)
    done = threading.Event()
    lost: list[str] = []

    def traffic() -> None:
        generation = 0
        while not done.is_set():
            generation += 1
            rows[:, image.PACKETS] = generation
            written = node.outcome(rows, WRITE)
            found = reader.ask(rows, LOOKUP)
            while (found[:, image.OP] == FAILED).any():
                found = reader.ask(rows, LOOKUP)  # a loaded machine was too slow for an answer in time
            if written != [WRITTEN] * len(rows):
                lost.append(f"written {np.unique(written, return_counts=True)}")
            if (found[:, image.OP] != FOUND).any() or (found[:, image.PACKETS] != generation).any():
                lost.append(f"found {np.unique(found[:, image.OP], return_counts=True)}")

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        target = servers.primaries[2]
        for slot in sorted(set(slots.tolist()))[: None if needs.DEEP else 12]:
            move(servers, slot, target)
    finally:
        done.set()
        thread.join()
    assert lost == []
    assert (slots_of(rows, where.prefix) == slots).all()
    assert node.outcome(rows, WRITE) == [WRITTEN] * 1000, "whether or not it has met all the moves by now"
    assert node.status["errors"] > 0, "some went where their slot was not any more"


def test_a_shard_that_is_taken_for_the_whole_store_says_so_and_every_look_up_is_answered(cluster, worker):
    where = cluster.config()
    leader = cluster.owners()[meta_slot(where)]
    node = worker(replace(where, cluster=(), host="localhost", port=leader.port)).connected()
    rows = sessions(60)
    node.tell(rows, WRITE_FIRST, confirm=0)
    eventually(lambda: node.status["written"] + node.status["dropped"] == 60, "what is its own is written")
    assert "MOVED" in node.status["last_error"]
    assert set(node.outcome(rows, LOOKUP)) == {FOUND, FAILED}


# Bad days ----------------------------------------------------------------------------------------


def by_owner(servers: Cluster, rows, prefix: str, server):
    """The rows that a server has, and the others."""
    owners = servers.owners()
    mine = np.array([owners[int(slot)] is server for slot in slots_of(rows, prefix)])
    return rows[mine], rows[~mine]


@needs.deep
def test_a_dead_shard_without_a_replica_gets_what_waits_when_it_is_back(own, worker):
    servers = own(node_timeout_ms=60_000)
    node = worker(servers.config()).connected()
    rows = sessions(200)
    node.ask(rows, WRITE_FIRST)
    victim = servers.primaries[1]
    gone, left = by_owner(servers, rows, node.prefix, victim)
    victim.kill()
    eventually(lambda: node.status["shards"] == "2 of 3", "the loss is noticed although nothing was asked")
    assert not node.status["connected"]
    assert node.outcome(gone, LOOKUP) == [FAILED] * len(gone)
    assert node.outcome(left, LOOKUP) == [FOUND] * len(left)
    assert node.outcome(left, WRITE) == [WRITTEN] * len(left)
    node.tell(gone, WRITE)
    victim.start()
    assert node.answers(len(gone))[:, image.OP].tolist() == [WRITTEN] * len(gone), "kept until it is back"
    assert node.outcome(rows, LOOKUP) == [FOUND] * 200


def test_one_hung_shard_holds_only_its_own_sessions_up(cluster, worker, patience):
    servers, where = cluster, cluster.config()
    node = worker(where).connected()
    rows = sessions(200)
    node.ask(rows, WRITE_FIRST)
    leader = servers.owners()[meta_slot(where)]
    victim = next(server for server in servers.primaries if server is not leader)
    gone, left = by_owner(servers, rows, node.prefix, victim)
    victim.hang()
    try:
        node.tell(gone, LOOKUP)
        node.tell(left, LOOKUP)
        answers = node.answers(len(left))
        assert answers[:, image.OP].tolist() == [FOUND] * len(left), "the others answer as ever"
        patience.setattr(conversation, "LOOKUP_DEADLINE_NS", LOOKUP_DEADLINE_NS)
        os.eventfd_write(node.wake_store, 1)
        assert node.answers(len(gone))[:, image.OP].tolist() == [FAILED] * len(gone), "after the deadline"
        assert node.status["shards"] == "3 of 3", "it may still come back"
        be_patient(patience)
        patience.setattr(conversation, "_TIMEOUT_NS", int(STORE_TIMEOUT_S * SECOND_NS))
        eventually(lambda: node.status["shards"] == "2 of 3", "the link is given up")
        be_patient(patience)
        assert node.outcome(left, LOOKUP) == [FOUND] * len(left)
    finally:
        victim.wake()
    eventually(lambda: node.status["connected"], "a new link")
    assert node.outcome(rows, LOOKUP) == [FOUND] * 200


@needs.deep
def test_a_cluster_that_is_down_is_asked_at_growing_pauses_until_it_is_up(cluster, worker):
    """As when one shard is gone and cluster-require-full-coverage is on: everybody refuses, without hanging up."""
    servers = cluster
    node = worker(servers.config()).connected()
    rows = sessions(60)
    node.ask(rows, WRITE_FIRST)
    for server in servers.servers:
        servers.admin(server).config_set("cluster-require-full-coverage", "yes")
    give_back = servers.orphan(0)
    admins = [servers.admin(server) for server in servers.primaries]
    eventually(lambda: {state(admin) for admin in admins} == {"fail"}, "all refuse")
    eventually(lambda: FOUND not in node.outcome(rows, LOOKUP), "nobody answers any more")
    eventually(lambda: "CLUSTERDOWN" in (node.status["last_error"] or ""), "and says why")
    eventually(lambda: node.status["shards"] == "0 of 3", f"nobody is spoken to: {node.status}")
    node.tell(rows, WRITE)
    for server in servers.servers:
        servers.admin(server).config_set("cluster-require-full-coverage", "no")
    give_back()
    assert node.answers(60)[:, image.OP].tolist() == [WRITTEN] * 60
    eventually(lambda: node.status["connected"], "all of it")
    eventually(lambda: {state(admin) for admin in admins} == {"ok"}, "the cluster is whole")


def state(admin) -> str:
    """What a server says of its cluster."""
    return str(admin.execute_command("CLUSTER INFO")["cluster_state"])


def test_a_primary_dies_and_its_replica_takes_over(cluster, worker):
    """The others do not notice; strict writes wait for the replicas of each shard."""
    servers = cluster
    node = worker(servers.config(wait_replicas=1)).connected()
    rows = sessions(200)
    node.tell(rows, WRITE_FIRST, confirm=image.REPLICATED)
    assert node.answers(200)[:, image.OP].tolist() == [WRITTEN] * 200
    victim, replica = servers.primaries[0], servers.replicas[0]
    gone, left = by_owner(servers, rows, node.prefix, victim)
    connections = int(node.clock[CLOCK_CONNECTIONS])
    victim.kill()
    eventually(lambda: node.status["shards"] == "2 of 3", "the loss is noticed although nothing was asked")
    assert not node.status["connected"]
    assert node.outcome(gone, LOOKUP) == [FAILED] * len(gone)
    assert node.outcome(left, LOOKUP) == [FOUND] * len(left)
    assert node.outcome(left, WRITE) == [WRITTEN] * len(left)
    node.tell(gone[:10], DELETE)
    node.tell(gone[10:20], WRITE)
    eventually(lambda: node.status["queue"] == 20, "they wait")
    servers.take_over(replica)
    eventually(lambda: node.status["connected"], f"the successor: {node.status}")
    assert int(node.clock[CLOCK_CONNECTIONS]) > connections, "whoever watches offers the live sessions again"
    assert node.answers(10)[:, image.OP].tolist() == [WRITTEN] * 10
    assert node.status["dropped"] == 10, "deletes may be another's session by now"
    assert node.outcome(rows, LOOKUP) == [FOUND] * 200
    assert node.outcome(rows, WRITE) == [WRITTEN] * 200, "the successor gets the scripts"
    victim.start()
    servers.settle()


@needs.deep
def test_a_replica_takes_over_by_itself_under_traffic(own, worker):
    servers = own(replicas=1, node_timeout_ms=500)
    where = servers.config()
    node, reader = worker(where).connected(), worker(where).connected()
    rows = sessions(500)
    node.ask(rows, WRITE_FIRST)
    for server in servers.primaries:
        servers.replicated(server)
    servers.primaries[0].kill()
    while not (node.status["connected"] and reader.status["connected"]):
        outcomes = set(reader.outcome(rows, LOOKUP))
        assert outcomes <= {FOUND, FAILED}
        node.tell(rows, WRITE, confirm=0)
    eventually(lambda: node.status["queue"] + node.status["pipelines"] == 0, "all is written")
    assert node.outcome(rows, WRITE) == [WRITTEN] * 500
    assert reader.outcome(rows, LOOKUP) == [FOUND] * 500


@needs.deep
def test_a_first_node_finds_the_cluster_by_any_seed_and_waits_for_the_shard_of_the_meta_key(own, worker):
    servers = own(node_timeout_ms=60_000)
    where = servers.config()
    leader = servers.owners()[meta_slot(where)]
    leader.kill()
    node = worker(where)
    row = sessions(1)
    node.tell(row, WRITE_FIRST)
    assert node.outcome(sessions(5), LOOKUP) == [FAILED] * 5
    eventually(lambda: node.status["shards"] == "2 of 3", f"the others: {node.status}")
    leader.start()
    assert node.answers(1)[0, image.OP] == WRITTEN
    assert node.status["connected"]
