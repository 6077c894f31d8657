"""Real servers that belong together, over TLS and AUTH on 127.0.0.1: replicas, Sentinels, a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import redis
import trustme

from everwall.store.connection import Address, StoreConfig
from tests.redis_server import PASSWORD, SERVERS, RedisServer, free_port

SLOTS = 16384
SERVICE = "sessions"
SENTINEL_PASSWORD = "another horse"
PATIENCE_S = 60.0
"""Servers tell one another once a second, one at a time; a loaded machine makes that long."""


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """The condition's first true value; what a server has not said yet, or refuses, is false."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            found = condition()
        except redis.RedisError as error:
            found, what = None, f"{what.split(' (', 1)[0]} ({error})"
        if found:
            return found
        assert time.monotonic() < deadline, f"did not come about: {what}"
        time.sleep(0.01)


class _Together:
    """Servers with one authority."""

    def __init__(self, program: str = SERVERS[0]) -> None:
        self.program = program
        self.authority = trustme.CA()
        self.servers: list[RedisServer] = []
        self._admins: dict[RedisServer, redis.Redis] = {}

    def admin(self, server: RedisServer) -> redis.Redis:
        """A client of one server, kept."""
        return self._admins.setdefault(server, server.client())

    def replicated(self, server: RedisServer, replicas: int = 1) -> None:
        """Wait until its replicas have all that ``server`` has: by itself, WAIT speaks of what its own link wrote."""

        def have_all() -> bool:
            with self.admin(server).pipeline(transaction=False) as told:
                return bool(told.publish("everything", "").wait(replicas, 1000).execute()[1] >= replicas)

        eventually(have_all, "replicas that have everything")

    def config(self, **changes: Any) -> StoreConfig:
        usual = {"password": PASSWORD, "ca_pem": self.authority.cert_pem.bytes()}
        return StoreConfig(**{**usual, "prefix": f"t{time.monotonic_ns()}", **changes})

    def close(self) -> None:
        for client in self._admins.values():
            client.close()
        for server in self.servers:
            server.close()


class Replicated(_Together):
    """A primary and its replicas."""

    def __init__(self, replicas: int = 1, program: str = SERVERS[0]) -> None:
        super().__init__(program)
        for _ in range(1 + replicas):
            self.add()
        self.primary, *self.replicas = self.servers

    def add(self) -> RedisServer:
        """Another server: of the primary, if there is one, a replica."""
        options = ["--tls-replication", "yes", "--masterauth", PASSWORD, "--repl-diskless-sync-delay", "0"]
        if self.servers:
            options += ["--replicaof", "127.0.0.1", str(self.servers[0].port)]
        server = RedisServer(authority=self.authority, arguments=tuple(options), program=self.program).start()
        self.servers.append(server)
        if len(self.servers) > 1:
            with server.client() as client:
                eventually(lambda: client.info("replication")["master_link_status"] == "up", "a replica")
            self.replicated(self.servers[0], len(self.servers) - 1)
        return server


class _Sentinel(RedisServer):
    """Keeps what it learns in its configuration file."""

    def _command(self, options: list[str]) -> list[str]:
        file = self.directory / "sentinel.conf"
        if not file.exists():
            words = dict(zip(options[::2], options[1::2], strict=True))
            for name in ("--save", "--appendonly"):
                del words[name]
            lines = [f'{name[2:]} "{value}"' for name, value in words.items()]
            file.write_text("\n".join([*lines, *self.watched]) + "\n")
        return [self.program, str(file), "--sentinel"]

    watched: tuple[str, ...] = ()


class Watched(Replicated):
    """The same, watched by Sentinels that have a password of their own.

    They are patient: nobody takes over from a primary that a loaded machine holds up. ``hurry`` has them look closely.
    """

    def __init__(
        self,
        replicas: int = 1,
        sentinels: int = 3,
        requirepass: str = SENTINEL_PASSWORD,
        program: str = SERVERS[0],
    ) -> None:
        super().__init__(replicas, program)
        self._sentinel_password = requirepass or None
        self.sentinels = []
        for _ in range(sentinels):
            own = ("--requirepass", requirepass, "--tls-replication", "yes")
            sentinel = _Sentinel(authority=self.authority, arguments=own, program=program)
            sentinel.watched = (
                f"sentinel monitor {SERVICE} 127.0.0.1 {self.primary.port} {sentinels // 2 + 1}",
                f'sentinel auth-pass {SERVICE} "{PASSWORD}"',
                f"sentinel down-after-milliseconds {SERVICE} {1000 * PATIENCE_S:.0f}",
                f"sentinel failover-timeout {SERVICE} 2000",
                *([f'sentinel sentinel-pass "{requirepass}"'] if requirepass else []),
            )
            self.sentinels.append(sentinel.start())
        self.servers += self.sentinels
        for sentinel in self.sentinels:
            with sentinel.client(password=self._sentinel_password) as client:
                eventually(
                    lambda client=client: self._knows_all(client.sentinel_masters()[SERVICE], replicas),
                    "Sentinels that know one another",
                )

    def hurry(self) -> None:
        """Let the Sentinels miss the primary soon; to be called when it is dead, or about to be."""
        for sentinel in self.sentinels:
            with sentinel.client(password=self._sentinel_password) as client:
                client.sentinel_set(SERVICE, "down-after-milliseconds", 300)

    def _knows_all(self, state: dict[str, Any], replicas: int) -> bool:
        others = len(self.sentinels) - 1
        return bool(state["num-other-sentinels"] == others and state["num-slaves"] == replicas)

    def config(self, **changes: Any) -> StoreConfig:
        addresses = tuple(Address("127.0.0.1", sentinel.port) for sentinel in self.sentinels)
        usual = {"sentinels": addresses, "service": SERVICE, "sentinel_password": SENTINEL_PASSWORD}
        return super().config(**{**usual, **changes})


class Cluster(_Together):
    """Shards, the slots dealt out evenly, each with so many replicas."""

    def __init__(
        self,
        shards: int = 3,
        replicas: int = 0,
        node_timeout_ms: int = 1000,
        program: str = SERVERS[0],
    ) -> None:
        super().__init__(program)
        self._bus: dict[RedisServer, int] = {}
        for number in range(shards * (1 + replicas)):
            bus = free_port()
            options = {
                "cluster-enabled": "yes",
                "cluster-port": str(bus),
                "cluster-node-timeout": str(node_timeout_ms),
                "cluster-require-full-coverage": "no",
                "cluster-allow-replica-migration": "no",
                "tls-cluster": "yes",
                "tls-replication": "yes",
                "masterauth": PASSWORD,
                "repl-diskless-sync-delay": "0",
            }
            words = tuple(word for name, value in options.items() for word in (f"--{name}", value))
            server = RedisServer(authority=self.authority, arguments=words, program=program).start()
            self.servers.append(server)
            self._bus[server] = bus
            if number < shards:
                first, last = SLOTS * number // shards, SLOTS * (number + 1) // shards - 1
                self.admin(server).execute_command("CLUSTER ADDSLOTSRANGE", first, last)
                self.admin(server).execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        self.primaries, self.replicas = self.servers[:shards], self.servers[shards:]
        with self.servers[0].client() as client:
            for server in self.servers[1:]:
                client.execute_command("CLUSTER MEET", "127.0.0.1", server.port, self._bus[server])
        for server in self.servers:
            with server.client() as client:
                eventually(lambda client=client: self._is_whole(client), "a cluster")
        for number, server in enumerate(self.replicas):
            self.admin(server).execute_command("CLUSTER REPLICATE", self.id(self.primaries[number % shards]))
        self.settle()

    def _is_whole(self, client: redis.Redis) -> bool:
        nodes, info = client.execute_command("CLUSTER NODES"), client.execute_command("CLUSTER INFO")
        # Of one that it only begins to know a server does not have the id yet.
        known = [node for node in nodes.values() if "handshake" not in node["flags"]]
        return len(known) == len(self.servers) and info["cluster_state"] == "ok"

    def id(self, server: RedisServer) -> str:
        """By which the cluster knows a server."""
        return str(self.admin(server).execute_command("CLUSTER MYID").decode())

    def owners(self) -> dict[int, RedisServer]:
        """The server that, as the first one says, serves each slot."""
        by_port = {server.port: server for server in self.servers}
        told = self.admin(self.primaries[0]).execute_command("CLUSTER SLOTS")
        return {
            slot: by_port[port] for first, last, (_, port, *_), *_ in told for slot in range(first, last + 1)
        }

    def config(self, **changes: Any) -> StoreConfig:
        seeds = tuple(Address("127.0.0.1", server.port) for server in self.primaries[:2])
        return super().config(**{"cluster": seeds, **changes})

    def orphan(self, slot: int) -> Callable[[], None]:
        """Let nobody have a slot; returns what gives it back."""
        owner = self.owners()[slot]

        def is_gone() -> bool:
            # Whoever hears, of a time before, that somebody has it believes that once more.
            having = [server for server in self.servers if _owners(self.admin(server), slot)]
            for server in having:
                self.admin(server).execute_command("CLUSTER DELSLOTS", slot)
            return not having

        eventually(is_gone, "nobody has the slot")

        def give_back() -> None:
            self.admin(owner).execute_command("CLUSTER ADDSLOTS", slot)
            # Replicas as well: one that takes over takes what it knows its primary to have.
            for server in self.servers:
                told = self.admin(server)
                eventually(lambda told=told: owner.port in _owners(told, slot), "all know who has the slot")

        return give_back

    def take_over(self, replica: RedisServer) -> None:
        """Let a replica of a dead primary have its slots, whatever the others think; all know in the end."""
        dead = self.primaries[self.replicas.index(replica)]
        self.admin(replica).execute_command("CLUSTER FAILOVER", "TAKEOVER")
        place = self.primaries.index(dead)
        self.primaries[place], self.replicas[self.replicas.index(replica)] = replica, dead
        for server in self.primaries:
            told = self.admin(server)
            eventually(lambda told=told: replica.port in _owners(told), "a take-over that all know")

    def settle(self) -> None:
        """Wait until every replica follows its primary, and has told so: up to a second later."""
        for server in self.replicas:
            eventually(lambda server=server: self._follows(server), "a replica")

    def _follows(self, replica: RedisServer) -> bool:
        own = self.admin(replica).info("replication")
        if own.get("master_link_status") != "up":
            return False
        (primary,) = (server for server in self.servers if server.port == own["master_port"])
        told = self.admin(primary).info("replication")
        followers = [told[f"slave{number}"] for number in range(told["connected_slaves"])]
        return any(each["port"] == replica.port and each["state"] == "online" for each in followers)


def _owners(client: redis.Redis, slot: int | None = None) -> set[int]:
    """Ports of those that have slots, or a certain one, as one server says."""
    return {
        owner[1]
        for first, last, owner, *_ in client.execute_command("CLUSTER SLOTS")
        if slot is None or first <= slot <= last
    }
