"""Another number of buckets for a cluster that runs: begun by an operator on one node, carried out by all of them.

1. The new epoch is announced under the key of the layout, by comparison, so that of two operators one is told of the
   other. From then on every node asks both epochs (``layout.py``).
2. After a notice of ten seconds (30 on a Redis Cluster), by the monotonic clock of the node that carries it out, the
   key says that all write to the new one, and each rewrites its live sessions there (``session/resync.py``).
3. What is left in the old one belongs to nodes that have gone. Once nobody writes there any more it is moved, bucket
   by bucket (``moving.py``).
4. The old epoch is struck from the key; its buckets have gone with their last field.

Should that node end in the middle, nothing is lost: the old epoch is asked until everything in it has expired, before 2
without end, and the same command on any node goes on where it ended. So does a step that a server's failover has lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import redis
from redis.cluster import ClusterNode
from redis.exceptions import RedisClusterException

from everwall.config import ConfigError
from everwall.limits import (
    LAYOUT_LEASE_NS,
    LAYOUT_NOTICE_CLUSTER_S,
    LAYOUT_NOTICE_S,
    MOVED_BUCKETS_PER_S,
    SECOND_NS,
    STORE_RECONNECT_MAX_S,
    STORE_TIMEOUT_S,
)
from everwall.store.clients import make_client
from everwall.store.connection import StoreConfig
from everwall.store.layout import Layout, LayoutError, meta_key, parse
from everwall.store.moving import Apart, Ask, move_bucket, run, store_time_s
from everwall.store.protocol import REPLACE_SCRIPT, Command, ErrorReply, ProtocolError

_SLICE_BUCKETS = MOVED_BUCKETS_PER_S // 20


def announce(ask: Ask, prefix: str, buckets: int) -> Layout:
    """Begin a change to another number of buckets, or go on with the one to this number that is under way.

    Raises LayoutError when there is nothing to change, another change is under way, or somebody was faster.
    """
    key = meta_key(prefix)
    text = ask((b"GET", key), key)
    if text is None:
        raise LayoutError(f"{key.decode()} is not set: no node has been here yet")
    layout, now_s = parse(text), store_time_s(ask, prefix)
    if layout.changes(now_s) and layout.current.buckets == buckets:
        return layout
    wanted = layout.changed(buckets, now_s)
    if not _replace(ask, key, text, wanted):
        raise LayoutError("somebody else has changed the layout at this moment: look and decide again")
    return wanted


def open_epoch(ask: Ask, prefix: str, layout: Layout) -> Layout:
    """Have all nodes write to the current epoch, unless they do; returns what holds from now on.

    Raises LayoutError when the change is under way no more.
    """
    if not layout.is_announced:
        return layout
    return _next(ask, prefix, layout, layout.begun(store_time_s(ask, prefix)))


def settle(ask: Ask, prefix: str, layout: Layout) -> Layout:
    """End a change, unless somebody has done so already; returns what holds from now on.

    Raises LayoutError when another one is under way, or none any more.
    """
    return _next(ask, prefix, layout, layout.settled())


def _next(ask: Ask, prefix: str, layout: Layout, wanted: Layout) -> Layout:
    """Take a step of a change; of somebody else's, or after a failover that has lost one, what is there instead."""
    key = meta_key(prefix)
    if _replace(ask, key, str(layout).encode(), wanted):
        return wanted
    text = ask((b"GET", key), key)
    if text is None:
        raise ConnectionError(
            f"{key.decode()} is not set: the store was emptied, and no node has been there since"
        )
    there = parse(text)
    if there.current != layout.current:
        raise LayoutError(f"the change is under way no more: {there}")
    return there


def _replace(ask: Ask, key: bytes, expected: bytes, wanted: Layout) -> bool:
    return bool(run(ask, REPLACE_SCRIPT, (key,), (expected, str(wanted).encode())))


class Relayout:
    """A change carried out by a thread of its own, with a client of its own. ``status`` tells how far it is."""

    def __init__(self, config: StoreConfig) -> None:
        """Raises ConnectionError for a Redis Cluster of which no node answers."""
        self._config = config
        try:
            self._client = make_client(config)
        except (redis.RedisError, RedisClusterException) as error:
            raise ConnectionError(f"the store does not answer: {error}") from error
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._state, self._percent, self._moved, self._error = "announced", 0, 0, ""
        self._left: list[int] = []
        """Buckets that are to be looked through still, as of the last time."""

    def begin(self, buckets: int) -> Layout:
        """Announce the change and let the thread do the rest. Raises LayoutError, and OSError when nobody answers."""
        try:
            layout = announce(self._ask, self._config.prefix, buckets)
        except redis.RedisError as error:
            raise ConnectionError(f"the store does not answer: {error}") from error
        except ErrorReply as error:
            raise ConnectionError(f"the store refuses: {error}") from error
        self._thread = threading.Thread(
            target=self._carry_out, args=(layout,), name="everwall-relayout", daemon=True
        )
        self._thread.start()
        return layout

    @property
    def running(self) -> bool:
        """Whether there is something left to do."""
        return self._thread is not None and self._thread.is_alive()

    def begin_stop(self) -> None:
        """Have it leave the change as it is; another node may go on."""
        self._stop.set()

    def stop(self, timeout: float = 2 * STORE_TIMEOUT_S) -> bool:
        """The same, and wait for it; True when the thread has ended."""
        self.begin_stop()
        if self._thread is not None:
            self._thread.join(timeout)
        self._client.close()
        return not self.running

    def status(self) -> dict[str, Any]:
        """``announced``, ``moving``, ``settled``, ``left to its time-out`` or ``given up``, and how far it is."""
        return {"state": self._state, "percent": self._percent, "moved": self._moved, "error": self._error}

    def _ask(self, command: Command, at: bytes) -> Any:
        client = self._client
        try:
            if not isinstance(client, redis.RedisCluster):
                return client.execute_command(*command)
            name, *words = command
            if name in (b"TIME", b"SCRIPT"):  # these have no key
                node = self._node_of(client, at)
                return client.execute_command(
                    " ".join(word.decode() for word in command[:2]), *words[1:], target_nodes=node
                )
            return client.execute_command(name.decode(), *words)
        except RedisClusterException as error:
            raise redis.ConnectionError(str(error)) from error
        except redis.ResponseError as error:
            # redis-py takes the code off some errors.
            code = "NOSCRIPT " if isinstance(error, redis.exceptions.NoScriptError) else ""
            raise ErrorReply(f"{code}{error}") from error

    def _carry_out(self, layout: Layout) -> None:
        step: Callable[[Layout], Layout] = self._give_notice
        while not self._stop.is_set():
            try:
                if self._is_over(layout):
                    self._state = "left to its time-out"
                    return
                layout = step(layout)
                if layout.former is None:
                    self._state = "settled"
                    return
                # Somebody else, or a failover of the store, may have put it back.
                if layout.is_announced:
                    step = self._give_notice
                else:
                    step = self._move_rest if step == self._wait_for_writers else self._wait_for_writers
            except LayoutError as error:
                self._state, self._error = "given up", str(error)
                return
            except (redis.RedisError, ErrorReply, ProtocolError, OSError, ConfigError) as error:
                self._error = str(error)
                self._stop.wait(STORE_RECONNECT_MAX_S)

    def _is_over(self, layout: Layout) -> bool:
        """Whether everything in the former epoch has expired."""
        return store_time_s(self._ask, self._config.prefix) > layout.until_s

    def _give_notice(self, layout: Layout) -> Layout:
        """Until every node asks both epochs: then all write to the new one."""
        if layout.is_announced:
            self._state = "announced"
            if self._stop.wait(LAYOUT_NOTICE_CLUSTER_S if self._config.cluster else LAYOUT_NOTICE_S):
                return layout
        return open_epoch(self._ask, self._config.prefix, layout)

    def _wait_for_writers(self, layout: Layout) -> Layout:
        """Until nobody writes to the former epoch any more.

        Who has not heard asks first; on a Redis Cluster it goes on as long as it may be unable to. (Where a former
        release has announced it, ``from`` is to come still.)
        """
        while store_time_s(self._ask, self._config.prefix) < layout.from_s and not self._stop.wait(0.2):
            pass
        self._stop.wait(LAYOUT_NOTICE_CLUSTER_S if self._config.cluster else LAYOUT_LEASE_NS / SECOND_NS + 1)
        return layout

    def _move_rest(self, layout: Layout) -> Layout:
        """Then the former epoch is struck from the key."""
        assert layout.former is not None
        if self._state != "moving":
            self._state, self._left = "moving", list(range(layout.former.buckets))
        while left := self._pass(layout, self._left):
            self._left = left
            if self._stop.wait(STORE_RECONNECT_MAX_S) or self._is_over(layout):
                return layout
        return layout if self._stop.is_set() else settle(self._ask, self._config.prefix, layout)

    def _pass(self, layout: Layout, buckets: list[int]) -> list[int]:
        """Look through some buckets once; returns those that are to be looked at again."""
        assert layout.former is not None
        apart = Apart(self._ask, self._config.prefix, layout, self._server_of)
        left: list[int] = []
        for first in range(0, len(buckets), _SLICE_BUCKETS):
            due = time.monotonic() + _SLICE_BUCKETS / MOVED_BUCKETS_PER_S
            for bucket in buckets[first : first + _SLICE_BUCKETS]:
                if self._stop.is_set():
                    return []
                if not self._config.cluster:
                    self._moved += move_bucket(self._ask, self._config.prefix, layout, bucket)
                    continue
                moved, emptied = apart.move_bucket(bucket)
                self._moved += moved
                left += [] if emptied else [bucket]
            passed = layout.former.buckets - len(left) - len(buckets[first + _SLICE_BUCKETS :])
            self._percent = 100 * passed // layout.former.buckets
            if self._stop.wait(max(due - time.monotonic(), 0)):
                return []
        silent = "; ".join(f"{server or 'some slots'}: {error}" for server, error in apart.silent.items())
        self._error = f"{len(left)} buckets wait for {silent}" if silent else ""
        return left

    def _server_of(self, key: bytes) -> str:
        assert isinstance(self._client, redis.RedisCluster)
        return str(self._node_of(self._client, key).name)

    @staticmethod
    def _node_of(client: redis.RedisCluster, key: bytes) -> ClusterNode:
        """Raises redis.ConnectionError for a slot that nobody has."""
        try:
            node: ClusterNode = client.get_node_from_key(key)
        except RedisClusterException as error:
            raise redis.ConnectionError(str(error)) from error
        return node
