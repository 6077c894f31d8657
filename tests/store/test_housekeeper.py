"""A node's housekeeper: it comes back whatever happens, and says once when policies differ."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import trustme

from everwall.limits import MEMBER_BYTES_MAX, MEMBERS_MAX
from everwall.store import clients, layout
from everwall.store import housekeeper as housekeeping
from everwall.store.clients import make_client
from everwall.store.connection import Address, StoreConfig
from everwall.store.housekeeper import Housekeeper, memory_of
from everwall.store.members import Member, Members, differing, members_key, unsealed
from everwall.store.names import HostNames
from tests import needs
from tests.redis_server import PASSWORD, RedisServer
from tests.store.stores import NODE_RIGHTS
from tests.store.workers import PATIENCE_S, eventually

pytestmark = pytest.mark.usefixtures("patience")

SECRET = b"a cluster secret of 32 bytes ..."
A = Member("a", "policy.yaml", "11", "1.0")
B = Member("b", "policy.yaml", "22", "1.0")
EPOCH = layout.Epoch(0, 1)


@pytest.fixture
def server():
    needs.binary("redis-server")
    server = RedisServer().start()
    yield server
    server.close()


def config_of(server: RedisServer, owner: int = 1) -> StoreConfig:
    return StoreConfig(
        "127.0.0.1", server.port, password=PASSWORD, ca_pem=server.ca_pem, owner=owner, prefix="test"
    )


@pytest.fixture
def client(server):
    client = make_client(config_of(server))
    yield client
    client.close()


@pytest.fixture
def hasty(monkeypatch):
    """Without the pauses of a thread that has all the time in the world."""
    monkeypatch.setattr(housekeeping, "SURVEY_S", 0.05)
    monkeypatch.setattr(housekeeping, "SWEEP_IDLE_S", 0.02)
    monkeypatch.setattr(housekeeping, "HOUSEKEEPING_RECONNECT_MIN_S", 0.02)
    monkeypatch.setattr(housekeeping, "HOUSEKEEPING_RECONNECT_MAX_S", 0.1)


@pytest.fixture
def keeper(server):
    """Housekeepers by what they say of themselves; all are stopped at the end."""
    started: list[Housekeeper] = []

    def start(own: Member | Callable[[], Member], warned: list[str], owner: int = 1) -> Housekeeper:
        says = own if callable(own) else lambda: own
        started.append(Housekeeper(config_of(server, owner), [SECRET], says, warned.append, pass_s=0.5))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        assert one.stop(PATIENCE_S)


def test_orphans_go_while_nodes_run(hasty, client, keeper):
    client.set(layout.meta_key("test"), 16)
    for bucket in range(16):
        client.hset(layout.bucket_key("test", EPOCH, bucket), "orphan", bytes(52))
    one = keeper(A, [])
    eventually(lambda: one.status()["housekeeping"]["swept_records"] == 16, one.status)
    assert client.keys("{test:0:*") == []


def test_it_comes_back_after_the_server_was_away(hasty, server, client, keeper):
    one = keeper(A, [])
    eventually(lambda: one.status()["housekeeping"]["connected"], one.status)
    server.kill()
    eventually(lambda: not one.status()["housekeeping"]["connected"], one.status)
    assert one.status()["memory"]["used_bytes"] is None, "what the server said no longer holds"
    server.start()
    eventually(lambda: one.status()["housekeeping"]["connected"], one.status)
    assert one.status()["housekeeping"]["errors"] >= 1
    eventually(lambda: client.hlen(members_key("test")) == 1, "the others see it again")


def test_a_former_primary_that_goes_on_answering_is_left_when_sentinels_name_another(hasty, monkeypatch):
    needs.binary("redis-server")
    authority = trustme.CA()
    former, present = (RedisServer(authority=authority).start() for _ in range(2))
    named = former
    monkeypatch.setattr(clients, "find_primary", lambda *_: Address("127.0.0.1", named.port))
    where = replace(
        config_of(former), host="", sentinels=(Address("127.0.0.1", 1),), service="any", prefix="test"
    )
    one = Housekeeper(where, [SECRET], lambda: A, [].append)
    one.start()
    try:
        with former.client() as old, present.client() as new:
            eventually(lambda: old.hlen(members_key("test")) == 1, one.status)
            named = present
            eventually(lambda: new.hlen(members_key("test")) == 1, one.status)
    finally:
        assert one.stop(PATIENCE_S)
        former.close()
        present.close()


def test_it_tells_how_much_memory_the_server_has(hasty, client, keeper):
    client.config_set("maxmemory", 100 << 20)
    one = keeper(A, [])
    eventually(lambda: one.status()["memory"]["used_bytes"], one.status)
    memory = one.status()["memory"]
    assert memory["used_bytes"] > 1 << 19
    assert (memory["max_bytes"], memory["policy"], memory["evicted_keys"]) == (100 << 20, "noeviction", 0)


def test_of_a_cluster_memory_is_a_sum_and_one_server_without_a_limit_is_no_limit():
    server = {"used_memory": 10, "maxmemory": 100, "maxmemory_policy": "noeviction", "evicted_keys": 1}
    assert memory_of([server, server]) == {
        "used_bytes": 20,
        "max_bytes": 200,
        "policy": "noeviction",
        "evicted_keys": 2,
    }
    other = {**server, "maxmemory": 0, "maxmemory_policy": "allkeys-lru"}
    found = memory_of([server, other])
    assert (found["max_bytes"], found["policy"]) == (0, "allkeys-lru, noeviction")


def test_a_difference_of_policies_is_said_once_and_so_is_its_end(hasty, keeper):
    heard_a: list[str] = []
    heard_b: list[str] = []
    policy, surveys = [B], []

    def said() -> Member:
        surveys.append(1)
        return policy[0]

    one = keeper(A, heard_a, owner=1)
    other = keeper(said, heard_b, owner=2)
    eventually(lambda: heard_a and heard_b, (one.status(), other.status()))
    found_so_far = len(surveys)
    eventually(lambda: len(surveys) >= found_so_far + 3, "surveys that find the same")
    assert len(heard_a) == len(heard_b) == 1
    assert one.status()["policy_differs_on"] == "b"
    assert [row["same_policy"] for row in one.status()["members"]] == [True, False]
    policy[0] = replace(B, checksum=A.checksum)
    eventually(lambda: len(heard_a) == 2 and len(heard_b) == 2, (heard_a, heard_b))
    assert "b (policy.yaml 22)" in heard_a[0]
    assert "again" in heard_a[1]
    assert one.status()["policy_differs_on"] == ""


def test_a_node_that_stops_takes_leave(hasty, client, keeper):
    one, other = keeper(A, [], owner=1), keeper(B, [], owner=2)
    eventually(lambda: len(one.status()["members"]) == 2, one.status)
    assert other.stop(PATIENCE_S)
    eventually(lambda: len(one.status()["members"]) == 1, one.status)


def members(owner: int = 1, secret: bytes = SECRET) -> Members:
    return Members([secret], "test", owner)


def test_an_acl_user_needs_no_more_than_the_documentation_says(hasty, server, client):
    client.acl_setuser(
        "wall",
        enabled=True,
        passwords=["+pw"],
        keys=["{test}:*", "{test:*"],
        commands=NODE_RIGHTS.split(),
    )
    client.set(layout.meta_key("test"), 4)
    for bucket in range(4):
        client.hset(
            layout.bucket_key("test", EPOCH, bucket),
            mapping={"orphan": bytes(52), "alive": b"\xff" * 52},
        )
    config = replace(config_of(server), username="wall", password="pw")
    one = Housekeeper(config, [SECRET], lambda: A, [].append, pass_s=0.2)
    one.start()
    names = HostNames(make_client(config), [SECRET], "test", time.monotonic)
    assert names.resolve(names.intern("www.example.com")) == "www.example.com"
    eventually(lambda: one.status()["housekeeping"]["swept_records"] == 4, one.status)
    assert one.stop(PATIENCE_S)
    assert one.status()["housekeeping"]["errors"] == 0
    assert names.counts["failed"] == 0
    assert client.hgetall(members_key("test")) == {}, "it could take leave"


def test_a_node_that_died_is_forgotten_in_time(client):
    dead, alive = members(1), members(2)
    dead.meet(client, A)
    alive.meet(client, B)
    assert alive.others == (A,)
    stored = client.hget(members_key("test"), "00000001")
    client.hset(members_key("test"), "00000001", (int(time.time()) - 1).to_bytes(4, "big") + stored[4:])
    alive.meet(client, B)
    assert alive.others == ()
    assert client.hkeys(members_key("test")) == [b"00000002"]


def test_what_no_node_said_is_not_believed(client):
    """Whoever can write there could hide a difference, or claim one."""
    members(1).meet(client, A)
    key, far = members_key("test"), b"\xff\xff\xff\xff"
    stored = client.hget(key, "00000001")
    client.hset(key, "00000009", stored)  # of another node
    client.hset(key, "00000008", far + bytes(8) + b'["c","policy.yaml","11","1.0"]')
    client.hset(key, "00000007", far + b"x" * (2 * MEMBER_BYTES_MAX))
    client.hset(key, "00000006", "")
    members(3, b"the secret of another cluster. .").meet(client, B)
    own = members(2)
    own.meet(client, B)
    assert own.others == (A,)
    assert own.refused == 4


def test_the_list_of_nodes_does_not_grow_without_bound(client):
    key = members_key("test")
    client.hset(key, mapping={str(number): b"\xff" * 20 for number in range(MEMBERS_MAX + 1)})
    own = members(1)
    own.meet(client, A)
    assert client.hlen(key) == 1


def test_the_list_of_nodes_ends_with_them(client):
    members(1).meet(client, A)
    assert 0 < client.ttl(members_key("test")) <= 60


def test_a_full_server_still_hears_of_nodes(client):
    client.config_set("maxmemory", 1 << 20)
    members(1).meet(client, A)
    assert client.hlen(members_key("test")) == 1


def test_names_in_any_alphabet_fit(client):
    long = Member("ノード" * 50, "/very/long/" + "ポリシー" * 60 + ".yaml", "0123456789abcdef", "1.0")
    members(1).meet(client, long)
    own = members(2)
    own.meet(client, B)
    (read,) = own.others
    assert long.node.startswith(read.node)
    assert read.checksum == long.checksum


def test_nodes_that_differ_are_those_with_another_checksum():
    assert differing(A, [replace(A, node="c", release="2.0"), B]) == (B,)


def test_whoever_has_not_the_secret_sees_them_as_they_are(client):
    members(1).meet(client, A)
    members(2).meet(client, B)
    assert unsealed(client.hgetall(members_key("test")), int(time.time())) == [A, B]
    assert unsealed(client.hgetall(members_key("test")), int(time.time()) + 61) == []
    assert unsealed({b"x": b"\xff" * 30, b"y": b"", b"z": b"\xff" * 12 + b"{}"}, 0) == []
