"""The thread that keeps the store clean: one for each node, at a low rate, on a connection of its own.

It sweeps a share of the buckets, tells the other nodes which policy this one has, and asks the server how much memory
is left. None of that is in a hurry: whatever goes wrong is counted, and tried again after a pause that grows.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis

from everwall.limits import (
    HOUSEKEEPING_RECONNECT_MAX_S,
    HOUSEKEEPING_RECONNECT_MIN_S,
    STORE_TIMEOUT_S,
    SURVEY_S,
    SWEEP_BUSY_S,
    SWEEP_IDLE_S,
    SWEEP_PASS_S,
)
from everwall.store.clients import make_client
from everwall.store.connection import StoreConfig
from everwall.store.lua import Client
from everwall.store.members import Member, Members, differing
from everwall.store.sweeping import Sweeper


class Housekeeper:
    """``own`` says what this node is; ``warn`` hears, in the thread, when the nodes' policies differ or agree again."""

    def __init__(
        self,
        config: StoreConfig,
        secrets: Sequence[bytes],
        own: Callable[[], Member],
        warn: Callable[[str], None],
        pass_s: float = SWEEP_PASS_S,
    ) -> None:
        self._config, self._own, self._warn = config, own, warn
        self._sweeper = Sweeper(config.prefix, pass_s)
        self._members = Members(secrets, config.prefix, config.owner)
        self._thread = threading.Thread(target=self._run, name="everwall-housekeeper", daemon=True)
        self._stopping = threading.Event()
        self._connected = False
        self._memory: dict[str, Any] = {
            "used_bytes": None,
            "max_bytes": None,
            "policy": None,
            "evicted_keys": None,
        }
        self._differing: tuple[Member, ...] = ()
        self._failures = self._errors = 0
        self._last_error: str | None = None

    # The owner's side ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; it connects by itself, again and again."""
        self._thread.start()

    def begin_stop(self) -> None:
        """Have it take leave of the others and end; ``stop`` waits for that."""
        self._stopping.set()

    def stop(self, timeout: float = 2 * STORE_TIMEOUT_S) -> bool:
        """Take leave of the others and end; True when the thread has ended."""
        self.begin_stop()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def use_secrets(self, secrets: Sequence[bytes]) -> None:
        """Others than before, the first of them seals; may be called from any thread."""
        self._members.use_secrets(secrets)

    def status(self) -> dict[str, Any]:
        """What the operator sees; may be called from any thread."""
        sweeper, own = self._sweeper, self._own()
        # The server's figures are shown only as long as they hold.
        memory = self._memory if self._connected else dict.fromkeys(self._memory)
        return {
            "memory": dict(memory),
            "housekeeping": {
                "connected": self._connected,
                "swept_buckets": sweeper.swept_buckets,
                "swept_records": sweeper.swept_records,
                "renewed_buckets": sweeper.renewed_buckets,
                "strange_buckets": sweeper.strange_buckets,
                "errors": self._errors,
                "last_error": self._last_error,
            },
            "policy_differs_on": ", ".join(member.node for member in self._differing),
            "members_refused": self._members.refused,
            "members": [
                {
                    "node": member.node,
                    "policy": member.policy,
                    "checksum": member.checksum,
                    "release": member.release,
                    "same_policy": member.checksum == own.checksum,
                }
                for member in (own, *self._members.others)
            ],
        }

    # The thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            client: Client | None = None
            try:
                client = make_client(self._config)
                self._serve(client)
            except Exception as error:
                # Whatever a server says or does not say, this thread goes on.
                self._errors += 1
                self._last_error = f"{type(error).__name__}: {error}"
            self._connected = False
            if client is not None:
                _close(client)
            self._stopping.wait(self._pause_s())

    def _pause_s(self) -> float:
        pause_s = min(HOUSEKEEPING_RECONNECT_MIN_S * 2**self._failures, HOUSEKEEPING_RECONNECT_MAX_S)
        self._failures = min(self._failures + 1, 16)
        # Nodes that lost the server together shall not come back together.
        return float(pause_s) * random.uniform(0.5, 1.0)

    def _serve(self, client: Client) -> None:
        survey_at = 0.0
        while not self._stopping.is_set():
            if time.monotonic() >= survey_at:
                self._survey(client)
                survey_at = time.monotonic() + SURVEY_S * random.uniform(0.9, 1.1)
            more = self._sweeper.turn(client)
            self._connected, self._failures = True, 0
            self._stopping.wait(SWEEP_BUSY_S if more else SWEEP_IDLE_S * random.uniform(0.5, 1.5))
        self._members.leave(client)

    def _survey(self, client: Client) -> None:
        if self._config.sentinels and isinstance(client, redis.Redis):
            # The next command asks them anew: a former primary may go on answering.
            client.connection_pool.disconnect()
        self._sweeper.learn(client)
        self._memory = memory_of([{**memory, **stats} for memory, stats in _informed(client)])
        own = self._own()
        self._members.meet(client, own)
        self._compare(own)

    def _compare(self, own: Member) -> None:
        """Say it once when somebody else has another policy, or when that has changed."""
        found = differing(own, self._members.others)
        if found == self._differing:
            return
        self._differing = found
        if not found:
            self._warn(f"all nodes have this node's policy again: {own.policy} {own.checksum}")
            return
        others = "; ".join(_described(member, own) for member in found)
        self._warn(f"nodes have another policy than this one ({own.policy} {own.checksum}): {others}")


def _informed(client: Client) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """INFO memory and stats of each server that holds something."""
    if not isinstance(client, redis.RedisCluster):
        return [(client.info("memory"), client.info("stats"))]
    each = {"target_nodes": redis.RedisCluster.PRIMARIES}
    memory, stats = client.info("memory", **each), client.info("stats", **each)
    if "used_memory" in memory:  # there is one primary, and redis-py does not say which
        return [(memory, stats)]
    return [(memory[name], stats[name]) for name in memory.keys() & stats.keys()]


def memory_of(servers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What INFO says about memory, together: sums, and the policies there are."""
    policies = sorted({str(server.get("maxmemory_policy", "unknown")) for server in servers})
    limits = [int(server.get("maxmemory", 0)) for server in servers]
    return {
        "used_bytes": sum(int(server.get("used_memory", 0)) for server in servers),
        "max_bytes": sum(limits) if all(limits) else 0,
        "policy": ", ".join(policies),
        "evicted_keys": sum(int(server.get("evicted_keys", 0)) for server in servers),
    }


def _described(member: Member, own: Member) -> str:
    release = "" if member.release == own.release else f", release {member.release}"
    return f"{member.node} ({member.policy} {member.checksum}{release})"


def _close(client: Client) -> None:
    try:
        client.close()
    except Exception:  # it is given up either way
        return
