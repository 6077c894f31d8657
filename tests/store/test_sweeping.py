"""What nobody owns any more goes, what lives stays, and every bucket is passed in time, by however many nodes."""

from __future__ import annotations

import time
from collections import Counter

import pytest
import redis

from everwall.limits import BUCKET_TTL_S, SWEEP_BUCKETS, SWEEP_FIELDS_MAX
from everwall.session import image, record
from everwall.session.image import FOUND, MISSING, WRITE_FIRST
from everwall.store import layout, sweeping
from everwall.store.clients import make_client
from everwall.store.connection import StoreConfig
from everwall.store.protocol import clock_key
from everwall.store.sweeping import Sweeper
from tests.redis_server import PASSWORD
from tests.store.stores import Node, Real, sessions

pytestmark = pytest.mark.usefixtures("patience")

EPOCH = layout.Epoch(0, 1)
AT_ONCE = 1e-6
"""Seconds of a pass in which every bucket is due again and again: sixteen a turn."""


@pytest.fixture
def client(server):
    client = make_client(StoreConfig("127.0.0.1", server.port, password=PASSWORD, ca_pem=server.ca_pem))
    client.config_set("maxmemory", 0)
    client.flushall()
    yield client
    client.config_set("maxmemory", 0)
    client.close()


@pytest.fixture
def node(server, client):
    real = Real(server)
    yield Node(real, buckets=SWEEP_BUCKETS)
    real.close()


def sessions_ending(count: int, in_s: int, seed: int):
    now = int(time.time())
    return sessions(count, seed, START=now * 1000, EXPIRY=now + in_s)


def swept(client, prefix: str = "test") -> Sweeper:
    """A sweeper that has passed every bucket."""
    sweeper = Sweeper(prefix, AT_ONCE)
    sweeper.learn(client)
    sweeper.turn(client)  # nobody swept here before: the cursor begins
    assert sweeper.turn(client), "there is always more"
    return sweeper


def test_what_has_expired_goes_and_what_lives_stays(client, node):
    alive, dead = sessions_ending(100, 3720, 1), sessions_ending(60, -1, 2)
    node.outcome(alive, WRITE_FIRST)
    node.outcome(dead, WRITE_FIRST)
    sweeper = swept(client)
    assert sweeper.swept_records == 60
    assert sum(client.hlen(key) for key in client.keys("{test:0:*")) == 100
    now = int(time.time())
    assert node.outcome(alive, image.LOOKUP, now) == [FOUND] * 100
    assert node.outcome(dead, image.LOOKUP, now) == [MISSING] * 60


def test_a_bucket_of_the_dead_alone_is_gone(client, node):
    node.outcome(sessions_ending(200, -1, 3), WRITE_FIRST)
    assert swept(client).swept_records == 200
    assert client.keys("{test:0:*") == []


def test_a_cluster_that_is_over_cleans_itself_and_one_that_is_not_keeps_its_buckets(client, node):
    """Without an expiry a bucket of a cluster that was switched off would stay for ever."""
    node.outcome(sessions_ending(10, 3720, 4), WRITE_FIRST)
    there = client.keys("{test:0:*")
    client.persist(there[0])
    client.expire(there[1], BUCKET_TTL_S // 2 - 60)
    untouched = client.ttl(there[2])
    sweeper = swept(client)
    assert sweeper.renewed_buckets == 2
    assert all(BUCKET_TTL_S - 60 < client.ttl(key) <= BUCKET_TTL_S for key in there[:2])
    assert client.ttl(there[2]) <= untouched


def test_a_bucket_outlives_the_longest_of_its_records(client, node):
    node.outcome(sessions_ending(1, 20_000, 5), WRITE_FIRST)
    (key,) = client.keys("{test:0:*")
    client.expire(key, 10_000)
    swept(client)
    assert client.ttl(key) > 20_000


def test_only_what_may_still_be_a_record_is_kept(client, node):
    """A later release may have longer records, but their expiry stands where it stood."""
    key, ends = layout.bucket_key("test", EPOCH, 3), int(time.time()) + 60
    record_like = bytes(record.EXPIRY_OFFSET) + ends.to_bytes(4, "big")
    client.hset(key, mapping={"short": "x" * 32, "shortest": "", "later": record_like + b"y" * 30})
    assert swept(client).swept_records == 2
    assert client.hkeys(key) == [b"later"]


def test_what_is_no_bucket_does_not_stop_the_sweep(client, node):
    """Whoever can write there may put anything anywhere: it is counted and passed by."""
    client.set(layout.bucket_key("test", EPOCH, 0), "a string")
    client.hset(
        layout.bucket_key("test", EPOCH, 1),
        mapping={str(i): "" for i in range(SWEEP_FIELDS_MAX + 1)},
    )
    client.hset(layout.bucket_key("test", EPOCH, 15), "orphan", "")
    sweeper = swept(client)
    assert sweeper.strange_buckets == 2
    assert sweeper.swept_records == 1
    assert client.hlen(layout.bucket_key("test", EPOCH, 1)) == SWEEP_FIELDS_MAX + 1


def test_while_the_number_of_buckets_changes_both_epochs_are_swept(client):
    """What stays behind in the former one is nobody's any more."""
    now = int(time.time())
    client.set(
        layout.meta_key("test"), str(layout.Layout(layout.Epoch(3, 8), layout.Epoch(2, 16), now, now + 60))
    )
    for epoch in (layout.Epoch(3, 8), layout.Epoch(2, 16)):
        for bucket in range(epoch.buckets):
            client.hset(layout.bucket_key("test", epoch, bucket), "orphan", "")
    assert swept(client).swept_records == 24


def test_a_full_server_is_swept_too(client, node):
    """That is when it matters most. The cursor is written all the same, and what is removed makes room."""
    node.outcome(sessions_ending(300, -1, 6), WRITE_FIRST)
    client.config_set("maxmemory", 1 << 20)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        client.set("anything", "at all")
    assert swept(client).swept_records == 300


def test_what_has_expired_is_a_matter_of_store_time_and_not_of_a_server_s_clock(client, node):
    """A server's may have been set back, and a shard's of a Redis Cluster is another than that of the first."""
    node.outcome(sessions_ending(5, 300, 8), WRITE_FIRST)
    assert swept(client).swept_records == 0
    microseconds = 1_000_000
    client.set(clock_key("test"), f"{(int(time.time()) + 400) * microseconds} {400 * microseconds}")
    assert swept(client).swept_records == 5


def test_a_server_that_was_restarted_learns_the_scripts_again(client, node):
    swept(client)
    node.outcome(sessions_ending(5, -1, 7), WRITE_FIRST)
    client.script_flush()
    assert swept(client).swept_records == 5


def test_nodes_share_the_buckets_and_each_is_passed_once(client, monkeypatch):
    """Three nodes that know nothing of each other, one of them twice as busy: no bucket is left out."""
    client.set(layout.meta_key("test"), 1000)
    seen: list[bytes] = []
    sweep = sweeping._SWEEP.of_each

    def watching(its_client, names, arguments):
        seen.extend(names)
        return sweep(its_client, names, arguments)

    monkeypatch.setattr(sweeping._SWEEP, "of_each", watching)
    nodes = [Sweeper("test", 3600.0) for _ in range(3)]
    for sweeper in nodes:
        sweeper.learn(client)
        del sweeper.ranges[1:]
        assert not sweeper.turn(client), "nothing is due before time has passed"
    # A whole pass later, by a cursor put back: that is what a sweep owes that nobody did for an hour.
    cursor = nodes[0].ranges[0].cursor
    client.set(cursor, int(client.get(cursor)) - 1000)
    while any([nodes[0].turn(client), nodes[1].turn(client), nodes[2].turn(client), nodes[0].turn(client)]):
        pass
    counts = Counter(seen)
    assert sorted(counts) == sorted(layout.bucket_key("test", EPOCH, bucket) for bucket in range(1000))
    assert sum(counts.values()) <= 1000 + 3, "and hardly one twice, as the clock goes on"
    assert nodes[0].swept_buckets > nodes[1].swept_buckets > 0


@pytest.mark.parametrize("held", [b"9" * 15, b"-5", b"nan", b"inf", b"no number"])
def test_a_cursor_that_makes_no_sense_is_put_right(client, held):
    """The server's clock was set back, the number of buckets was lowered, or somebody wrote there."""
    client.set(layout.meta_key("test"), 64)
    sweeper = Sweeper("test", 3600.0)
    sweeper.learn(client)
    del sweeper.ranges[1:]
    client.set(sweeper.ranges[0].cursor, held)
    while sweeper.turn(client):
        pass
    due = int(client.get(sweeper.ranges[0].cursor))
    assert abs(due - time.time() * 64 / 3600) < 64
    assert sweeper.swept_buckets <= 64 + 2, "never more than a whole pass is owed"


@pytest.mark.parametrize("meta", [None, b"", b"0", b"many", b"999999999999"])
def test_where_no_cluster_has_buckets_there_is_nothing_to_sweep(client, meta):
    if meta is not None:
        client.set(layout.meta_key("test"), meta)
    sweeper = Sweeper("test", AT_ONCE)
    sweeper.learn(client)
    assert not sweeper.turn(client)
    assert client.keys("{test}:sweep*") == []
