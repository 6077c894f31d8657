"""Clients of redis-py for what is not in a hurry, and who is the one to speak to: the primary of a Sentinel's
service, the owners of a cluster's slots. These block, up to STORE_TIMEOUT_S a server: for helper threads.
"""

from __future__ import annotations

import random
import ssl
from collections.abc import Iterable
from typing import Any

import redis
from redis.cluster import ClusterNode, parse_cluster_slots
from redis.exceptions import ReadOnlyError

from everwall.store.connection import (
    Address,
    Connection,
    Login,
    StoreConfig,
    login_of,
    options,
    require_private,
    tls_context,
)
from everwall.store.sentinels import Sentinels

SLOTS = 1 << 14
"""Hash slots of a Redis Cluster."""


def make_client(config: StoreConfig) -> redis.Redis | redis.RedisCluster:
    """A client for the store whatever its topology; it finds a new primary by itself when it connects again.

    Commands raise redis.RedisError. Raises ValueError for a CA certificate that cannot be read; for a cluster, which is
    asked at once, redis.RedisError or its RedisClusterException too, when no node answers.
    """
    context, login = tls_context(config), login_of(config)
    if config.cluster:
        return _cluster_client(config, context, login)
    if config.sentinels:
        return _client(_PrimaryConnection, find=config, **options(config, context, login))
    return _client(_PlainConnection, config.address, **options(config, context, login))


class _PlainConnection(Connection):
    """Left when its server became a replica: the name may lead to another by now."""

    def read_response(self, *arguments: Any, **more: Any) -> Any:
        try:
            return super().read_response(*arguments, **more)
        except ReadOnlyError:
            self.disconnect()
            raise


class _PrimaryConnection(_PlainConnection):
    """Asks the Sentinels whenever it connects."""

    def __init__(self, find: StoreConfig, **more: Any) -> None:
        super().__init__(**more)
        self._find = find

    def connect(self) -> None:
        if self._sock is None:
            self.host, self.port = find_primary(self._find, self._context, login_of(self._find))
        super().connect()


def _client(kind: type[Connection], address: Address | None = None, **more: Any) -> redis.Redis:
    if address is not None:
        more |= {"host": address.host, "port": address.port}
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=kind, **more))


def _cluster_client(config: StoreConfig, context: ssl.SSLContext | None, login: Login) -> redis.RedisCluster:
    class Pool(redis.ConnectionPool):  # type: ignore[misc]
        """redis-py makes one for each node, and knows no other way to hand our kind of connection down."""

        def __init__(self, **more: Any) -> None:
            require_private(config, Address(more["host"], more["port"]))
            super().__init__(
                connection_class=_PlainConnection,
                context=context,
                server_name=config.server_name,
                outward=config.outward,
                **more,
            )

    wanted = options(config, context, login)
    for name in ("context", "server_name", "outward", "retry"):
        del wanted[name]
    first, *others = config.cluster
    return redis.RedisCluster(
        url=f"redis://{first}",
        startup_nodes=[ClusterNode(*other) for other in others],
        connection_pool_class=Pool,
        **wanted,
    )


# Who is to be spoken to ---------------------------------------------------------------------------


def find_primary(config: StoreConfig, context: ssl.SSLContext | None, login: Login) -> Address:
    """Where the primary of the Sentinels' service is now, for one who asks once; errors as ``Sentinels.find``."""
    sentinels = Sentinels(config, context, login)
    try:
        return sentinels.find().primary
    finally:
        sentinels.close()


def ask_cluster(
    config: StoreConfig, context: ssl.SSLContext | None, login: Login, address: Address
) -> dict[str, str]:
    """What one node says of its cluster, and of the settings that nodes of ours depend on, where it may be asked."""
    with _client(Connection, address, **options(config, context, login)) as client:
        told: dict[str, str] = client.execute_command("CLUSTER INFO")
        try:
            settings = client.config_get("cluster-require-full-coverage")
        except redis.ResponseError:
            return told
    return {**told, **{_text(name): _text(value) for name, value in settings.items()}}


def _text(word: Any) -> str:
    return word.decode(errors="replace") if isinstance(word, bytes) else str(word)


def find_slots(
    config: StoreConfig, context: ssl.SSLContext | None, login: Login, known: Iterable[Address] = ()
) -> list[tuple[int, int, Address]]:
    """The slots of a cluster, first, last and who serves them, as one of its nodes tells.

    ``known`` are nodes beside those of the configuration. One that sees the cluster whole is believed before one that
    does not. Raises redis.RedisError when nobody answers.
    """
    nodes = list(dict.fromkeys((*known, *config.cluster)))
    random.shuffle(nodes)
    said: list[str] = []
    partial: list[tuple[int, int, Address]] | None = None
    for address in nodes:
        client = _client(Connection, address, **options(config, context, login))
        try:
            state = client.execute_command("CLUSTER INFO")["cluster_state"]
            told = parse_cluster_slots(client.execute_command("CLUSTER SLOTS"), current_host=address.host)
        except (redis.RedisError, OSError) as error:
            said.append(f"{address}: {error}")
            continue
        finally:
            client.close()
        ranges = []
        for (first, last), owners in told.items():
            host, port = owners["primary"]
            ranges.append((int(first), int(last), Address(host or address.host, int(port))))
        if state == "ok" and ranges:
            return ranges
        partial = ranges or partial
    if partial is None:
        raise redis.ConnectionError(f"no node of the cluster tells its slots: {'; '.join(said)}")
    return partial
