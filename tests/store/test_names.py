"""Host names stand once in the store, known by 32 bits; nobody without the secret can make one."""

from __future__ import annotations

import random
import time

import pytest

from everwall.limits import BUCKET_TTL_S, HOST_NAME_BYTES_MAX, HOST_NAME_PLACES, HOST_NAME_TTL_S
from everwall.store import layout, names
from everwall.store.clients import make_client
from everwall.store.connection import StoreConfig
from everwall.store.names import HostNames, bucket_key
from everwall.store.sweeping import Sweeper
from tests.redis_server import PASSWORD, RedisServer

pytestmark = pytest.mark.usefixtures("patience")

SECRET, OTHER_SECRET = b"a cluster secret of 32 bytes ...", b"and the one that came before it."


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def client(server):
    client = make_client(StoreConfig("127.0.0.1", server.port, password=PASSWORD, ca_pem=server.ca_pem))
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def names_of(client, clock):
    """A node's view of the names, with a cache of its own."""
    return lambda *secrets: HostNames(client, secrets or (SECRET,), "test", clock)


def stored(client) -> dict[bytes, dict[bytes, bytes]]:
    return {key: client.hgetall(key) for key in client.keys("{test:host:*")}


def test_what_one_node_interns_the_others_resolve(names_of):
    dice = random.Random(1)
    wanted = [f"host-{dice.randrange(10**9)}.example.com" for _ in range(50)]
    ids = [names_of().intern(name) for name in wanted]
    assert all(0 < number < 1 << 32 for number in ids)
    assert [names_of().resolve(number) for number in ids] == wanted


def test_all_nodes_come_to_the_same_id(names_of, client):
    assert len({names_of().intern("www.example.com") for _ in range(3)}) == 1
    assert sum(len(bucket) for bucket in stored(client).values()) == 1


def test_a_name_that_is_known_costs_the_store_nothing(names_of, client):
    node = names_of()
    number = node.intern("www.example.com")
    client.flushall()
    assert node.intern("www.example.com") == number
    assert node.resolve(number) == "www.example.com"
    assert stored(client) == {}


@pytest.mark.parametrize("length", [1, 52, 53, 112, 113, HOST_NAME_BYTES_MAX])
def test_names_of_every_length_keep_their_bucket_compact(names_of, client, length):
    number = names_of().intern("n" * length)
    assert names_of().resolve(number) == "n" * length
    (key,) = client.keys("{test:host:*")
    assert client.object("encoding", key) == b"listpack"


@pytest.mark.parametrize("name", ["", "n" * (HOST_NAME_BYTES_MAX + 1), "ü" * 127])
def test_what_is_no_host_name_has_no_id(names_of, client, name):
    assert names_of().intern(name) == 0
    assert stored(client) == {}


def test_nothing_a_client_sends_as_its_host_name_breaks_anything(names_of):
    for name in ("\udcff\udc80", "\x00", "a b\r\nSET x y", "ÄÖ.example"):
        assert names_of().resolve(names_of().intern(name)) == name


def test_a_forged_name_is_refused(names_of, client):
    number = names_of().intern("good.example.com")
    ((key, fields),) = stored(client).items()
    ((field, value),) = fields.items()
    for forged in (
        value[:-1] + b"n",  # another name
        value[:4] + bytes(8) + value[12:],  # another seal
        value[:12],  # no name
        b"",
        b"x" * 200,
    ):
        client.hset(key, field, forged)
        node = names_of()
        assert node.resolve(number) is None
        assert node.counts["refused"] == 1
    client.hset(key, field, b"\xff\xff\xff\xff" + value[4:])  # the expiry is the server's to say
    assert names_of().resolve(number) == "good.example.com"


def test_a_name_does_not_hold_under_another_id(names_of, client):
    number, other = names_of().intern("good.example.com"), names_of().intern("bad.example.com")
    good, bad = (
        client.hget(bucket_key("test", one % names.HOST_NAME_BUCKETS), one.to_bytes(4, "big"))
        for one in (number, other)
    )
    assert good
    assert bad
    client.hset(bucket_key("test", number % names.HOST_NAME_BUCKETS), number.to_bytes(4, "big"), bad)
    assert names_of().resolve(number) is None


def test_garbage_in_a_names_place_is_overwritten(names_of, client):
    """Otherwise whoever can write there could keep a name from ever having an id."""
    number = names_of().intern("good.example.com")
    ((key, fields),) = stored(client).items()
    client.hset(key, next(iter(fields)), b"\xff" * 40)
    node = names_of()
    assert node.intern("good.example.com") == number
    assert node.counts["refused"] == 1
    assert names_of().resolve(number) == "good.example.com"


def same_first_id(monkeypatch, places: int = 1) -> None:
    """Every name has the same first ids."""
    digest = names.Seal.digest

    def colliding(self, size, *parts):
        if size == 4 and int(parts[0]) < places:
            return digest(self, size, parts[0])
        return digest(self, size, *parts)

    monkeypatch.setattr(names.Seal, "digest", colliding)


def test_two_names_with_one_id_get_two(names_of, monkeypatch):
    same_first_id(monkeypatch)
    first, second = names_of().intern("a.example.com"), names_of().intern("b.example.com")
    assert first != second
    assert names_of().intern("b.example.com") == second, "another node comes to the same"
    assert names_of().resolve(first) == "a.example.com"
    assert names_of().resolve(second) == "b.example.com"


def test_a_name_whose_ids_are_all_taken_has_none(names_of, monkeypatch):
    same_first_id(monkeypatch, HOST_NAME_PLACES)
    ids = [names_of().intern(f"{i}.example.com") for i in range(HOST_NAME_PLACES + 1)]
    assert len(set(ids)) == HOST_NAME_PLACES + 1
    assert ids[-1] == 0


def test_the_id_of_a_name_that_expired_is_free(names_of, client, monkeypatch):
    same_first_id(monkeypatch)
    number = names_of().intern("long." + "a" * 150)
    ((key, fields),) = stored(client).items()
    past = int(time.time()) - 1
    for field, value in fields.items():
        client.hset(key, field, past.to_bytes(4, "big") + value[4:])
    assert names_of().intern("b.example.com") == number
    assert names_of().resolve(number) == "b.example.com"
    assert len(client.hgetall(key)) == 1, "nothing is left of the longer one"


def test_names_live_while_they_are_used(names_of, client, clock):
    """A record lives two hours and ten minutes at most: its name must not go before it."""
    node = names_of()
    number = node.intern("www.example.com")
    ((key, fields),) = stored(client).items()
    field = next(iter(fields))

    def left() -> float:
        return int.from_bytes(client.hget(key, field)[:4], "big") - time.time()

    assert HOST_NAME_TTL_S - 5 < left() <= HOST_NAME_TTL_S
    assert client.ttl(key) >= HOST_NAME_TTL_S
    past = (int(time.time()) + BUCKET_TTL_S).to_bytes(4, "big") + fields[field][4:]
    client.hset(key, field, past)
    clock.now = HOST_NAME_TTL_S - BUCKET_TTL_S - 1
    node.keep([number])
    assert left() < HOST_NAME_TTL_S - 5, "not yet"
    clock.now += 1
    node.keep([number])
    assert left() > HOST_NAME_TTL_S - 5


def test_a_node_that_took_sessions_over_keeps_their_names(names_of, client, clock):
    number = names_of().intern("www.example.com")
    ((key, fields),) = stored(client).items()
    field, value = next(iter(fields.items()))
    client.hset(key, field, (int(time.time()) + 60).to_bytes(4, "big") + value[4:])
    successor = names_of()
    successor.keep([number, 12345])
    assert int.from_bytes(client.hget(key, field)[:4], "big") > time.time() + HOST_NAME_TTL_S - 5
    assert successor.counts["missing"] == 1, "an id that nobody interned is nobody's"


def test_names_are_offered_again_to_a_store_that_came_back_empty(names_of, client):
    node = names_of()
    number, other = node.intern("www.example.com"), node.intern("ftp.example.com")
    client.flushall()
    node.offer_again()
    node.keep([number])
    assert node.intern("ftp.example.com") == other
    assert names_of().resolve(number) == "www.example.com"
    assert names_of().resolve(other) == "ftp.example.com"


def test_while_the_secret_changes_both_open(names_of):
    number = names_of(OTHER_SECRET).intern("www.example.com")
    assert names_of(SECRET).resolve(number) is None
    assert names_of(SECRET, OTHER_SECRET).resolve(number) == "www.example.com"
    assert names_of(SECRET).resolve(names_of(SECRET, OTHER_SECRET).intern("www.example.com"))


def test_names_that_nobody_uses_are_swept(names_of, client):
    kept, gone = names_of().intern("kept.example.com"), names_of().intern("gone." + "x" * 200)
    client.set(layout.meta_key("test"), 1)
    key, field = bucket_key("test", gone % names.HOST_NAME_BUCKETS), gone.to_bytes(4, "big")
    for piece, value in client.hgetall(key).items():
        if piece.startswith(field):
            client.hset(key, piece, (int(time.time()) - 1).to_bytes(4, "big") + value[4:])
    sweeper = Sweeper("test", 3600.0)
    sweeper.learn(client)
    sweeper.turn(client)
    cursor = sweeper.ranges[-1].cursor
    client.set(cursor, int(client.get(cursor)) - names.HOST_NAME_BUCKETS)  # a whole pass is owed
    while sweeper.turn(client):
        pass
    assert names_of().resolve(gone) is None
    assert names_of().resolve(kept) == "kept.example.com"
    assert sum(len(bucket) for bucket in stored(client).values()) == 1


def test_the_cache_is_bounded(names_of, monkeypatch):
    monkeypatch.setattr(names, "HOST_NAMES_CACHED", 10)
    node = names_of()
    ids = [node.intern(f"{i}.example.com") for i in range(30)]
    assert len(node) == 10
    assert node.resolve(ids[0]) == "0.example.com", "what was forgotten is asked again"


def test_a_store_that_does_not_answer_is_left_alone_for_a_while(server, clock):
    gone = RedisServer().start()
    client = make_client(StoreConfig("127.0.0.1", gone.port, password=PASSWORD, ca_pem=gone.ca_pem))
    node = HostNames(client, (SECRET,), "test", clock)
    number = node.intern("known.example.com")
    gone.kill()
    try:
        for _ in range(5):
            assert node.intern("www.example.com") == 0
            assert node.resolve(17) is None
        assert node.counts["failed"] == 1
        assert node.resolve(number) == "known.example.com", "what is known needs no store"
        gone.start()
        clock.now += 10
        assert node.intern("www.example.com") != 0
    finally:
        client.close()
        gone.close()
