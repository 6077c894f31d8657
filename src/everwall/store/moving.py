"""What dead nodes left in the buckets of a former epoch, moved to where it belongs from now on.

Bucket by bucket, as it is: a record's field and seal do not depend on the epoch. Where all buckets are on one server a
script moves what is in one of them at a stroke. On a Redis Cluster they are on several: records are copied, each unless
a later one lies there, and then deleted if they are still what was read. What comes in between stays for the next look;
a record is in two places for a moment, and never in none (``docs/decisions/0009``).

A server that does not answer holds up the buckets that it has, and those from which something has to go there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import redis

from everwall.limits import BUCKET_TTL_S, SECOND_NS
from everwall.session.record import EXPIRY_OFFSET, RECORD_BYTES
from everwall.store.layout import Layout, bucket_key, bucket_of
from everwall.store.protocol import (
    CLOCK_SCRIPT,
    COPY_SCRIPT,
    FORGET_SCRIPT,
    MOVE_SCRIPT,
    Command,
    ErrorReply,
    clock_command,
    clock_key,
    script_sha,
    store_time_ns,
)

_FIELDS_MAX = 512
"""Of one script call, so that it holds the server up for a millisecond or two."""

Words = tuple[bytes, ...]


class Ask(Protocol):
    """Sends one command to the server that has the key ``at``; raises ErrorReply."""

    def __call__(self, command: Command, at: bytes) -> Any: ...


def run(ask: Ask, script: bytes, keys: Words, arguments: Words) -> int:
    """The number that a script answers. Raises ErrorReply."""
    call = (b"EVALSHA", script_sha(script), b"%d" % len(keys), *keys, *arguments)
    return int(_taught(ask, script, call, keys[0]))


def _taught(ask: Ask, script: bytes, call: Command, at: bytes) -> Any:
    """What a script answers, which is taught to a server that does not know it."""
    try:
        return ask(call, at)
    except ErrorReply as error:
        if error.code != "NOSCRIPT":
            raise
    ask((b"SCRIPT", b"LOAD", script), at)
    return ask(call, at)


def store_time_s(ask: Ask, prefix: str) -> int:
    """What all nodes take for the time, in whole seconds. Raises ErrorReply."""
    key = clock_key(prefix)
    return store_time_ns(_taught(ask, CLOCK_SCRIPT, clock_command(key), key)) // SECOND_NS


def move_bucket(ask: Ask, prefix: str, layout: Layout, bucket: int) -> int:
    """Move what is left in one bucket of the former epoch; returns how many records that were."""
    assert layout.former is not None
    source = bucket_key(prefix, layout.former, bucket)
    fields, moved = ask((b"HKEYS", source), source), 0
    for first in range(0, len(fields), _FIELDS_MAX):
        some = fields[first : first + _FIELDS_MAX]
        targets = [bucket_key(prefix, layout.current, bucket_of(field, layout.current)) for field in some]
        moved += run(ask, MOVE_SCRIPT, (source, *targets), (*some, b"%d" % BUCKET_TTL_S))
    return moved


class Apart:
    """The same where buckets are on several servers."""

    def __init__(self, ask: Ask, prefix: str, layout: Layout, server_of: Callable[[bytes], str]) -> None:
        """``server_of`` says which server has a key; raises redis.RedisError where none has."""
        assert layout.former is not None
        self._ask, self._prefix, self._layout, self._former = ask, prefix, layout, layout.former
        self._server_of = server_of
        self.silent: dict[str, str] = {}
        """Servers that did not answer in this pass, and what is wrong with them."""

    def move_bucket(self, bucket: int) -> tuple[int, bool]:
        """(Records copied from one bucket of the former epoch, whether nothing was left there)."""
        source = bucket_key(self._prefix, self._former, bucket)
        fields = self._try((b"HKEYS", source), source)
        if fields is None:
            return 0, False
        copied, emptied = 0, True
        for first in range(0, len(fields), _FIELDS_MAX):
            some = fields[first : first + _FIELDS_MAX]
            records = self._try((b"HMGET", source, *some), source)
            if records is None:
                return copied, False
            found = {field: record for field, record in zip(some, records, strict=True) if record is not None}
            put, done = self._copy(found)
            gone = self._try_run(FORGET_SCRIPT, source, [word for pair in done.items() for word in pair])
            copied += put
            emptied &= gone == len(found)
        return copied, emptied

    def _copy(self, found: dict[bytes, bytes]) -> tuple[int, dict[bytes, bytes]]:
        """(How many were put where they belong, those that need not stay where they are)."""
        now_s = self._now_s()
        targets: dict[bytes, dict[bytes, bytes]] = {}
        done: dict[bytes, bytes] = {}
        for field, record in found.items():
            if len(record) != RECORD_BYTES or (now_s is not None and _expiry(record) < now_s):
                done[field] = record
            else:
                key = bucket_key(self._prefix, self._layout.current, bucket_of(field, self._layout.current))
                targets.setdefault(key, {})[field] = record
        put = 0
        for key, records in targets.items():
            words = [b"%d" % BUCKET_TTL_S, *(word for pair in records.items() for word in pair)]
            answer = self._try_run(COPY_SCRIPT, key, words)
            if answer is not None:
                put += answer
                done |= records
        return put, done

    def _now_s(self) -> int | None:
        """Store time; None while the server that tells it does not answer."""
        now_s: int | None = self._trying(
            clock_key(self._prefix), lambda: store_time_s(self._ask, self._prefix)
        )
        return now_s

    def _try_run(self, script: bytes, key: bytes, words: list[bytes]) -> int | None:
        answer: int | None = self._trying(key, lambda: run(self._ask, script, (key,), tuple(words)))
        return answer

    def _try(self, command: Command, key: bytes) -> Any:
        return self._trying(key, lambda: self._ask(command, key))

    def _trying(self, key: bytes, act: Callable[[], Any]) -> Any:
        """What the server of a key answers; None when it does not, and from then on without asking it."""
        server = ""
        try:
            server = self._server_of(key)
            if server in self.silent:
                return None
            return act()
        except (redis.RedisError, ErrorReply, OSError) as error:
            self.silent[server] = str(error)
            return None


def _expiry(record: bytes) -> int:
    """Seconds of store time."""
    return int.from_bytes(record[EXPIRY_OFFSET : EXPIRY_OFFSET + 4], "big")
