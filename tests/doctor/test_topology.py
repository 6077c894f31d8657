"""The doctor before Sentinels and clusters, real ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from everwall.doctor import topology
from everwall.doctor.findings import Finding, Level
from everwall.doctor.sizing import size
from everwall.doctor.topology import _judge_sentinels
from everwall.store.connection import Address, StoreConfig
from tests import needs
from tests.redis_server import free_port
from tests.topologies import Cluster, Watched, eventually


def look(config: StoreConfig) -> list[Finding]:
    return topology.look(config, lambda kind, shards: size(-(-100_000 // shards), server=kind))


def about(found: list[Finding], check: str) -> list[Finding]:
    return [finding for finding in found if finding.check == check]


def complaints(found: list[Finding]) -> set[str]:
    return {
        finding.check for finding in found if finding.level is not Level.OK and finding.check != "round-trip"
    }


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    needs.binary("redis-server")
    servers = Watched(sentinels=1)
    yield servers
    servers.close()


def test_behind_a_sentinel_the_primary_is_looked_over(watched: Watched) -> None:
    found = look(watched.config(wait_replicas=1))
    assert "nobody is left to order a failover" in about(found, "sentinel")[0].text, "one is too few"
    assert complaints(found) == {"sentinel", "maxmemory"}, found
    assert about(found, "role")[0].text == "primary"
    assert about(found, "wait-replicas")[0].text == "strict sessions wait for 1, 1 online"


def test_more_replicas_waited_for_than_there_are_is_an_error(watched: Watched) -> None:
    (found,) = about(look(watched.config(wait_replicas=2)), "wait-replicas")
    assert found.level is Level.ERROR
    assert "waits in vain" in found.text


def test_sentinels_that_cannot_be_asked_are_named_with_the_reason(watched: Watched) -> None:
    dead = Address("127.0.0.1", free_port())
    first = watched.config().sentinels[0]
    found = look(watched.config(sentinels=(dead, first)))
    refused, good = about(found, "sentinel")
    assert str(dead) in refused.text
    assert "refused" in refused.text
    assert "1 of them" in good.text
    alone = look(watched.config(sentinels=(first,), sentinel_password="wrong"))
    assert "invalid username-password" in alone[0].text
    assert alone[1].level is Level.ERROR
    assert complaints(look(watched.config(service="nobody"))) == {"sentinel"}


def test_sentinels_that_agree_are_ok() -> None:
    state = {"ip": "10.0.0.5", "port": 6379, "num-other-sentinels": 2, "quorum": 2, "is_sdown": False}
    config = StoreConfig(sentinels=(Address("a", 1), Address("b", 1)), service="s")
    (found,) = _judge_sentinels(
        config, {address: {**state, "is_odown": False} for address in config.sentinels}
    )
    assert (found.level, found.text) == (Level.OK, "2 of 2 asked name 10.0.0.5:6379; quorum 2 of 3")


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"num-other-sentinels": 0, "quorum": 2}, "no failover can begin"),
        ({"num-other-sentinels": 1}, "nobody is left to order a failover"),
        ({"is_sdown": True}, "is down, they say"),
    ],
)
def test_sentinels_that_could_not_order_a_failover(changed: dict[str, object], text: str) -> None:
    state = {"ip": "10.0.0.5", "port": 6379, "num-other-sentinels": 2, "quorum": 2, "is_sdown": False}
    config = StoreConfig(sentinels=(Address("a", 1),), service="s")
    found = list(_judge_sentinels(config, {config.sentinels[0]: {**state, "is_odown": False, **changed}}))
    assert any(text in finding.text and finding.level is not Level.OK for finding in found)


def test_a_good_cluster_has_one_line_for_each_shard(cluster: Cluster) -> None:
    found = look(cluster.config())
    assert about(found, "cluster")[0].text == "16,384 slots on 3 primaries, state ok"
    assert len(about(found, "shard")) == 3
    assert "permissions" in about(found, "shard")[0].text
    assert complaints(found) == {"maxmemory"}, found
    assert len(about(found, "maxmemory")) == 3
    assert "not set yet" in about(found, "buckets")[0].text
    assert len(about(found, "buckets")) == 1, "the shard that has the key"


def test_a_cluster_that_stops_as_a_whole_is_a_warning_and_slots_without_a_server_are_an_error(
    cluster: Cluster,
) -> None:
    for server in cluster.servers:
        cluster.admin(server).config_set("cluster-require-full-coverage", "yes")
    assert about(look(cluster.config()), "full-coverage")[0].level is Level.WARNING
    for server in cluster.servers:
        cluster.admin(server).config_set("cluster-require-full-coverage", "no")
    give_back = cluster.orphan(0)
    (found,) = about(look(cluster.config()), "cluster")
    assert (found.level, found.text) == (Level.ERROR, "1 of 16,384 slots are served by nobody")
    give_back()
    eventually(lambda: about(look(cluster.config()), "cluster")[0].level is Level.OK, "whole again")


def test_a_shard_that_is_spoken_to_as_if_it_were_all_is_an_error(cluster: Cluster) -> None:
    port = cluster.primaries[0].port
    (found,) = about(look(cluster.config(cluster=(), host="localhost", port=port)), "cluster")
    assert found.level is Level.ERROR
    assert "everwall-redis-cluster" in found.advice


def test_a_user_who_may_not_ask_for_slots_is_an_error(cluster: Cluster) -> None:
    for server in cluster.primaries:
        cluster.admin(server).acl_setuser(
            "wall", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-asking"]
        )
    found = look(cluster.config(username="wall", password="pw"))
    assert all("ASKING" in finding.text for finding in about(found, "permissions"))
    assert complaints(found) >= {"permissions"}


def test_where_no_node_answers_the_reason_is_said() -> None:
    (found,) = look(StoreConfig(cluster=(Address("127.0.0.1", free_port()),), tls=False))
    assert found.level is Level.ERROR
    assert "refused" in found.text
