"""A store in memory: the few commands of Redis that ``protocol`` uses, with the scripts as plain Python.

The simulator, the replay of captures and the tests run against it; the same tests run against a real
server, which keeps the twin honest. Scripts are known by their SHA-1 only after ``SCRIPT LOAD``, as there.
Expiry is as there too, by the time the caller passes in.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from everwall.session.record import EXPIRY_OFFSET, ORDER_BYTES, ORDER_OFFSET, OWNER_OFFSET, RECORD_BYTES
from everwall.store.protocol import (
    CLOCK_SCRIPT,
    COPY_SCRIPT,
    DELETE_SCRIPT,
    FORGET_SCRIPT,
    MOVE_SCRIPT,
    REPLACE_SCRIPT,
    WRITE_SCRIPT,
    Command,
    ErrorReply,
    script_sha,
)

Words = tuple[bytes, ...]
_ORDER_END = ORDER_OFFSET + ORDER_BYTES


class MemoryStore:
    """``keys``: what is stored; strings as bytes, hashes as dicts of bytes."""

    def __init__(self) -> None:
        self.keys: dict[bytes, bytes | dict[bytes, bytes]] = {}
        self.expiries: dict[bytes, float] = {}
        """Seconds of store time at which a key ends; a key that is not named here stays."""
        self.scripts: set[bytes] = set()

    def execute(self, command: Command, now: float = 0.0) -> Any:
        """The reply to one command at store time ``now`` (seconds); an error is returned as an ErrorReply."""
        handler = _COMMANDS.get(command[0])
        if handler is None:
            return ErrorReply(f"ERR unknown command '{command[0].decode()}'")
        for key in command[1:]:
            if key in self.expiries and self.expiries[key] <= now:
                self._remove(key)
        try:
            return handler(self, now, *command[1:])
        except ErrorReply as error:
            return error

    def _remove(self, key: bytes) -> None:
        self.keys.pop(key, None)
        self.expiries.pop(key, None)

    def _hash(self, key: bytes) -> dict[bytes, bytes]:
        found = self.keys.get(key, {})
        if isinstance(found, bytes):
            raise ErrorReply("WRONGTYPE Operation against a key holding the wrong kind of value")
        return found

    def _set(self, now: float, key: bytes, value: bytes, *options: bytes) -> Any:
        if b"NX" in options and key in self.keys:
            return None
        self._remove(key)
        self.keys[key] = value
        return b"OK"

    def _get(self, now: float, key: bytes) -> Any:
        found = self.keys.get(key)
        if isinstance(found, dict):
            raise ErrorReply("WRONGTYPE Operation against a key holding the wrong kind of value")
        return found

    def _info(self, now: float, *sections: bytes) -> bytes:
        return b"# Server\r\nredis_version:0.0 (memory)\r\n"

    def _time(self, now: float) -> list[bytes]:
        return [b"%d" % int(now), b"%d" % int(now % 1 * 1_000_000)]

    def _hget(self, now: float, key: bytes, field: bytes) -> bytes | None:
        return self._hash(key).get(field)

    def _hset(self, now: float, key: bytes, field: bytes, value: bytes) -> int:
        fields = self._hash(key)
        new = field not in fields
        fields[field] = value
        self.keys[key] = fields
        return int(new)

    def _hdel(self, now: float, key: bytes, field: bytes) -> int:
        fields = self._hash(key)
        known = fields.pop(field, None) is not None
        if known and not fields:
            self._remove(key)
        return int(known)

    def _expire(self, now: float, key: bytes, seconds: bytes, condition: bytes) -> int:
        current, wanted = self.expiries.get(key), now + int(seconds)
        allowed = current is None if condition == b"NX" else current is not None and wanted > current
        if key in self.keys and allowed:
            self.expiries[key] = wanted
            return 1
        return 0

    def _script(self, now: float, action: bytes, *arguments: bytes) -> bytes:
        if action == b"FLUSH":
            self.scripts.clear()
            return b"OK"
        sha = script_sha(arguments[0])
        self.scripts.add(sha)
        return sha

    def _hkeys(self, now: float, key: bytes) -> list[bytes]:
        return list(self._hash(key))

    def _hmget(self, now: float, key: bytes, *fields: bytes) -> list[bytes | None]:
        return [self._hash(key).get(field) for field in fields]

    def _evalsha(self, now: float, sha: bytes, count: bytes, *rest: bytes) -> Any:
        if sha not in self.scripts:
            return ErrorReply("NOSCRIPT No matching script. Please use EVAL.")
        return _SCRIPTS[sha](self, now, rest[: int(count)], rest[int(count) :])

    def _write_newer(self, now: float, keys: Words, arguments: Words) -> list[int | bytes]:
        answers: list[int | bytes] = []
        for key, field, new in zip(keys, arguments[::2], arguments[1::2], strict=True):
            old, seen, new = self._hash(key).get(field), new[RECORD_BYTES:], new[:RECORD_BYTES]
            over = (
                seen and old and (len(old) < EXPIRY_OFFSET + 4 or _expiry(old) <= int.from_bytes(seen, "big"))
            )
            wins = over or _wins(new, old)
            if wins:
                self._hset(now, key, field, new)
            answers.append(1 if wins else old or b"")
        return answers

    def _delete_older(self, now: float, keys: Words, arguments: Words) -> list[int | bytes]:
        answers: list[int | bytes] = []
        for key, field, gone in zip(keys, arguments[::2], arguments[1::2], strict=True):
            old = self._hash(key).get(field)
            if _wins(gone, old):
                self._hdel(now, key, field)
            answers.append(1 if _wins(gone, old) else old or b"")
        return answers

    def _move(self, now: float, keys: Words, arguments: Words) -> int:
        source, life = keys[0], max(self.expiries.get(keys[0], now) - now, int(arguments[-1]))
        moved = 0
        for key, field in zip(keys[1:], arguments[:-1], strict=True):
            record, there = self._hash(source).get(field), self._hash(key).get(field)
            if record and len(record) == RECORD_BYTES and _expiry(record) >= int(now):
                if there is None or len(there) < _ORDER_END or not _wins(there, record):
                    self._hset(now, key, field, record)
                    for condition in (b"NX", b"GT"):
                        self._expire(now, key, b"%d" % life, condition)
                    moved += 1
            self._hdel(now, source, field)
        return moved

    def _copy(self, now: float, keys: Words, arguments: Words) -> int:
        (key,), life, put = keys, arguments[0], 0
        for field, record in zip(arguments[1::2], arguments[2::2], strict=True):
            there = self._hash(key).get(field)
            if there is None or len(there) < _ORDER_END or not _wins(there, record):
                self._hset(now, key, field, record)
                put += 1
        for condition in (b"NX", b"GT") if put else ():
            self._expire(now, key, life, condition)
        return put

    def _forget(self, now: float, keys: Words, arguments: Words) -> int:
        pairs = zip(arguments[::2], arguments[1::2], strict=True)
        same = [field for field, read in pairs if self._hash(keys[0]).get(field) == read]
        return sum(self._hdel(now, keys[0], field) for field in same)

    def _tell_time(self, now: float, keys: Words, arguments: Words) -> list[bytes]:
        least, most_ahead, pause = map(int, arguments)
        kept, server = self.keys.get(keys[0]), round(now * 1_000_000)
        latest, ahead = map(int, kept.split()) if isinstance(kept, bytes) else (0, 0)
        told = server
        if latest <= server + most_ahead:
            going_on = server + ahead if server + ahead <= latest + pause else server
            told = going_on if going_on >= latest else latest if least else latest + pause
        if least <= server + most_ahead:
            told = max(told, least)
        self._set(now, keys[0], b"%d %d" % (told, told - server))
        return [b"%d" % (told // 1_000_000), b"%d" % (told % 1_000_000)]

    def _replace(self, now: float, keys: Words, arguments: Words) -> int:
        if self._get(now, keys[0]) != arguments[0]:
            return 0
        self._set(now, keys[0], arguments[1])
        return 1


def _expiry(record: bytes) -> int:
    (seconds,) = struct.unpack_from(">I", record, EXPIRY_OFFSET)
    return int(seconds)


def _wins(new: bytes, old: bytes | None) -> bool:
    """``scripts/order.lua``: the higher order stays; with the same order only the owner may write again."""
    if old is None or len(old) < _ORDER_END:
        return True
    new_order, old_order = new[ORDER_OFFSET:_ORDER_END], old[ORDER_OFFSET:_ORDER_END]
    if new_order != old_order:
        return new_order > old_order
    return struct.unpack_from(">I", new, OWNER_OFFSET) == struct.unpack_from(">I", old, OWNER_OFFSET)


_COMMANDS: dict[bytes, Callable[..., Any]] = {
    b"SET": MemoryStore._set,
    b"GET": MemoryStore._get,
    b"INFO": MemoryStore._info,
    b"TIME": MemoryStore._time,
    b"HGET": MemoryStore._hget,
    b"HSET": MemoryStore._hset,
    b"HDEL": MemoryStore._hdel,
    b"HKEYS": MemoryStore._hkeys,
    b"HMGET": MemoryStore._hmget,
    b"EXPIRE": MemoryStore._expire,
    b"SCRIPT": MemoryStore._script,
    b"EVALSHA": MemoryStore._evalsha,
}
_SCRIPTS: dict[bytes, Callable[..., Any]] = {
    script_sha(WRITE_SCRIPT): MemoryStore._write_newer,
    script_sha(DELETE_SCRIPT): MemoryStore._delete_older,
    script_sha(MOVE_SCRIPT): MemoryStore._move,
    script_sha(COPY_SCRIPT): MemoryStore._copy,
    script_sha(FORGET_SCRIPT): MemoryStore._forget,
    script_sha(REPLACE_SCRIPT): MemoryStore._replace,
    script_sha(CLOCK_SCRIPT): MemoryStore._tell_time,
}
