"""Another number of buckets for a cluster that runs: begun by an operator on one node, carried out by all of them.

1. The new epoch is announced under the key of the layout, by comparison, so that of two operators one is told of the
   other. From then on every node asks both epochs (``layout.py``).
2. Ten seconds later all write to the new one, and each rewrites its live sessions there (``session/resync.py``).
3. What is left in the old one belongs to nodes that have gone. Bucket by bucket it is moved as it is: a record's field
   and seal do not depend on the epoch.
4. The old epoch is struck from the key; its buckets have gone with their last field.

Should the node that does 3 and 4 end in the middle, nothing is lost: the old epoch is asked until everything in it has
expired, and the same command on any node goes on where it ended.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import redis

from everwall.config import ConfigError
from everwall.limits import (
    BUCKET_TTL_S,
    LAYOUT_LEASE_NS,
    MOVED_BUCKETS_PER_S,
    SECOND_NS,
    STORE_RECONNECT_MAX_S,
    STORE_TIMEOUT_S,
)
from everwall.store.clients import make_client
from everwall.store.connection import StoreConfig
from everwall.store.layout import Layout, LayoutError, bucket_key, bucket_of, meta_key, parse
from everwall.store.protocol import (
    MOVE_SCRIPT,
    REPLACE_SCRIPT,
    Command,
    ErrorReply,
    ProtocolError,
    script_sha,
    store_time_ns,
)

Ask = Callable[[Command], Any]
"""Sends one command; raises ErrorReply."""

_SLICE_BUCKETS = MOVED_BUCKETS_PER_S // 20
_FIELDS_MAX = 512
"""Of one script call, so that it holds the server up for a millisecond or two."""


def announce(ask: Ask, prefix: str, buckets: int) -> Layout:
    """Begin a change to another number of buckets, or go on with the one to this number that is under way.

    Raises LayoutError when there is nothing to change, another change is under way, or somebody was faster.
    """
    key = meta_key(prefix)
    text = ask((b"GET", key))
    if text is None:
        raise LayoutError(f"{key.decode()} is not set: no node has been here yet")
    layout, now_s = parse(text), store_time_s(ask)
    if layout.changes(now_s) and layout.current.buckets == buckets:
        return layout
    wanted = layout.changed(buckets, now_s)
    if not _replace(ask, key, text, wanted):
        raise LayoutError("somebody else has changed the layout at this moment: look and decide again")
    return wanted


def move_bucket(ask: Ask, prefix: str, layout: Layout, bucket: int) -> int:
    """Move what is left in one bucket of the former epoch; returns how many records that were."""
    assert layout.former is not None
    source = bucket_key(prefix, layout.former, bucket)
    fields, moved = ask((b"HKEYS", source)), 0
    for first in range(0, len(fields), _FIELDS_MAX):
        some = fields[first : first + _FIELDS_MAX]
        targets = [bucket_key(prefix, layout.current, bucket_of(field, layout.current)) for field in some]
        moved += _run(ask, MOVE_SCRIPT, (source, *targets), (*some, b"%d" % BUCKET_TTL_S))
    return moved


def settle(ask: Ask, prefix: str, layout: Layout) -> None:
    """End a change, unless somebody has done so already."""
    _replace(ask, meta_key(prefix), str(layout).encode(), layout.settled())


def store_time_s(ask: Ask) -> int:
    """The server's clock, in whole seconds."""
    return store_time_ns(ask((b"TIME",))) // SECOND_NS


def _replace(ask: Ask, key: bytes, expected: bytes, wanted: Layout) -> bool:
    return bool(_run(ask, REPLACE_SCRIPT, (key,), (expected, str(wanted).encode())))


def _run(ask: Ask, script: bytes, keys: tuple[bytes, ...], arguments: tuple[bytes, ...]) -> int:
    call = (b"EVALSHA", script_sha(script), b"%d" % len(keys), *keys, *arguments)
    try:
        return int(ask(call))
    except ErrorReply as error:
        if error.code != "NOSCRIPT":
            raise
    ask((b"SCRIPT", b"LOAD", script))
    return int(ask(call))


class Relayout:
    """A change carried out by a thread of its own, with a client of its own. ``status`` tells how far it is."""

    def __init__(self, config: StoreConfig) -> None:
        """Raises LayoutError for a Redis Cluster, where two buckets are on two servers."""
        if config.cluster:
            raise LayoutError("the number of buckets of a Redis Cluster cannot be changed while nodes run")
        self._config = config
        self._client = make_client(config)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._state, self._percent, self._moved, self._error = "announced", 0, 0, ""

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
        """``announced``, ``moving``, ``settled`` or ``left to its time-out``, and how much was left behind."""
        return {"state": self._state, "percent": self._percent, "moved": self._moved, "error": self._error}

    def _ask(self, command: Command) -> Any:
        try:
            return self._client.execute_command(*command)
        except redis.ResponseError as error:
            # redis-py takes the code off some errors.
            code = "NOSCRIPT " if isinstance(error, redis.exceptions.NoScriptError) else ""
            raise ErrorReply(f"{code}{error}") from error

    def _carry_out(self, layout: Layout) -> None:
        steps = (self._wait_for_writers, self._move_rest, self._settle)
        step = 0
        while step < len(steps) and not self._stop.is_set():
            try:
                if store_time_s(self._ask) > layout.until_s:
                    self._state = "left to its time-out"
                    return
                steps[step](layout)
                step += 1
            except (redis.RedisError, ErrorReply, ProtocolError, OSError, ConfigError) as error:
                self._error = str(error)
                self._stop.wait(STORE_RECONNECT_MAX_S)

    def _wait_for_writers(self, layout: Layout) -> None:
        """Until nobody writes to the former epoch any more: whoever does not know asks first."""
        writing_s = layout.from_s + LAYOUT_LEASE_NS // SECOND_NS + 1
        while store_time_s(self._ask) <= writing_s and not self._stop.wait(0.2):
            pass

    def _move_rest(self, layout: Layout) -> None:
        assert layout.former is not None
        self._state = "moving"
        total = layout.former.buckets
        for first in range(0, total, _SLICE_BUCKETS):
            due = time.monotonic() + _SLICE_BUCKETS / MOVED_BUCKETS_PER_S
            for bucket in range(first, min(first + _SLICE_BUCKETS, total)):
                if self._stop.is_set():
                    return
                self._moved += move_bucket(self._ask, self._config.prefix, layout, bucket)
            self._percent = 100 * min(first + _SLICE_BUCKETS, total) // total
            if self._stop.wait(max(due - time.monotonic(), 0)):
                return

    def _settle(self, layout: Layout) -> None:
        settle(self._ask, self._config.prefix, layout)
        self._state = "settled"
