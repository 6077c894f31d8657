"""Clients for every topology, against real servers."""

from __future__ import annotations

import pytest
import redis

from everwall.store.clients import find_primary, find_slots, make_client
from everwall.store.connection import Address, StoreConfig, login_of, tls_context
from tests import needs
from tests.redis_server import PASSWORD, RedisServer, free_port
from tests.topologies import Watched, eventually

pytestmark = pytest.mark.usefixtures("patience")


@pytest.fixture(scope="module")
def single():
    needs.binary("redis-server")
    server = RedisServer().start()
    yield server
    server.close()


def single_config(server: RedisServer, **changes) -> StoreConfig:
    return StoreConfig(**{"host": "localhost", "port": server.port, "ca_pem": server.ca_pem, **changes})


def primary_of(config: StoreConfig) -> Address:
    return find_primary(config, tls_context(config), login_of(config))


def test_a_client_of_a_single_server_reads_its_password_from_a_file_each_time_it_connects(single, tmp_path):
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    with make_client(single_config(single, password_file=file)) as client, single.client() as admin:
        client.set("key", "value")
        admin.acl_setuser("default", enabled=True, passwords=["+new"], keys=["*"], commands=["+@all"])
        file.write_text("new")
        client.connection_pool.disconnect()
        assert client.get("key") == b"value"
        assert client.acl_whoami() == "default"


def test_a_client_believes_only_the_given_authority(single):
    unbelieving = single_config(single, password=PASSWORD, ca_pem=None)
    with (
        make_client(unbelieving) as client,
        pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        client.ping()


def test_a_cluster_client_reaches_every_shard(cluster):
    with make_client(cluster.config()) as client:
        keys = [f"{{{number}}}" for number in range(50)]
        for key in keys:
            client.set(key, key)
        assert [client.get(key).decode() for key in keys] == keys
        assert len(client.get_primaries()) == 3


def test_the_slots_of_a_cluster_are_told_by_any_node_that_answers(cluster):
    dead = Address("127.0.0.1", free_port())
    config = cluster.config(cluster=(dead, *cluster.config().cluster))
    found = find_slots(config, tls_context(config), login_of(config))
    assert sum(last - first + 1 for first, last, _ in found) == 16384
    assert {address.port for *_, address in found} == {server.port for server in cluster.primaries}


def test_where_no_node_answers_each_says_why():
    config = StoreConfig(cluster=(Address("127.0.0.1", free_port()),), tls=False)
    with pytest.raises(redis.ConnectionError, match=r"no node of the cluster tells its slots: .*refused"):
        find_slots(config, None, login_of(config))


def test_a_server_that_is_no_cluster_is_said(single):
    config = StoreConfig(
        cluster=(Address("localhost", single.port),), password=PASSWORD, ca_pem=single.ca_pem
    )
    with pytest.raises(redis.ConnectionError, match="cluster support disabled"):
        find_slots(config, tls_context(config), login_of(config))


def test_without_tls_nobody_beyond_this_machine_is_spoken_to():
    from everwall.store.connection import require_private

    config = StoreConfig(sentinels=(Address("127.0.0.1", 1),), tls=False)
    for host in ("127.0.0.1", "::1", "localhost"):
        require_private(config, Address(host, 6379))
    with pytest.raises(redis.ConnectionError, match=r"10\.0\.0\.5:6379 is not on loopback"):
        require_private(config, Address("10.0.0.5", 6379))


@pytest.fixture(scope="module")
def watched():
    """One Sentinel is enough for what it says."""
    needs.binary("redis-server")
    servers = Watched(replicas=0, sentinels=1)
    yield servers
    servers.close()


def test_sentinels_name_the_primary_or_say_why_not(watched):
    config = watched.config()
    assert primary_of(config).port == watched.primary.port
    with make_client(config) as client:
        assert client.set("key", "value")
    with pytest.raises(redis.ConnectionError, match="invalid username-password"):
        primary_of(watched.config(sentinel_password="wrong"))
    with pytest.raises(redis.ConnectionError, match="knows no living primary of nobody"):
        primary_of(watched.config(service="nobody"))


def test_sentinels_without_a_password_are_asked_without():
    needs.binary("redis-server")
    servers = Watched(replicas=0, sentinels=1, requirepass="")
    try:
        assert primary_of(servers.config(sentinel_password=None)).port == servers.primary.port
    finally:
        servers.close()


@needs.deep
def test_a_client_follows_a_failover_that_two_of_three_sentinels_order():
    servers = Watched()
    try:
        config = servers.config()
        with make_client(config) as client:
            client.set("key", "value")
            client.wait(1, 1000)
            servers.sentinels.pop(0).kill()
            servers.primary.kill()
            servers.hurry()
            successor = servers.replicas[0].port
            eventually(lambda: primary_of(config).port == successor, "a failover")
            assert eventually(lambda: client.get("key"), "the client follows") == b"value"
            eventually(lambda: client.set("key", "new"), "the replica is a primary")
    finally:
        servers.close()
