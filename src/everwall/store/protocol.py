"""What a node says to the store and what the answers mean: commands and replies, no I/O.

Requests are rows of ``session.image``; ``encode`` turns them into the bytes of one pipeline of Redis
commands, the caller sends these, and ``decode`` turns the replies into reply rows. The layout, for cluster ``prefix``:

* ``{prefix}:buckets``: how many buckets there are, agreed by whoever comes first;
* ``{prefix:epoch:bucket}``: a hash with the records of about 64 sessions; the bucket, in hexadecimal, is the
  record's field modulo the number of buckets. So few fields of so few bytes keep Redis's compact encoding.

Order within one pipeline: first writes, then compared writes, deletes, look-ups. The comparison makes the
order of writes and deletes of one session immaterial; look-ups come last so that a session deleted in
the same breath is not found again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import chain
from typing import Any, cast

import hiredis
import numpy as np
import numpy.typing as npt

from everwall.limits import BUCKETS_DEFAULT, FIELD_BYTES, SESSIONS_PER_BUCKET, STORE_BATCH_RECORDS
from everwall.session import image, record, resp

Command = tuple[bytes, ...]
Rows = npt.NDArray[np.int64]
_pack = cast(Callable[[Command], bytes], hiredis.pack_command)

EPOCH = 0
BUCKETS_MAX = 1 << 24


class ErrorReply(Exception):
    """An error that the server answered, with its code first: ``OOM command not allowed ...``."""

    @property
    def code(self) -> str:
        """The first word, for example ``NOSCRIPT``."""
        return str(self).split(" ", 1)[0]


class ProtocolError(Exception):
    """The server answered something that no Redis answers, or another layout is in use there."""


def _script(name: str) -> bytes:
    folder = resources.files("everwall.store") / "scripts"
    return (folder / "order.lua").read_bytes() + (folder / f"{name}.lua").read_bytes()


def script_sha(script: bytes) -> bytes:
    """The name by which EVALSHA calls a script (SHA-1, by Redis's definition)."""
    return hashlib.sha1(script, usedforsecurity=False).hexdigest().encode()


WRITE_SCRIPT = _script("write")
DELETE_SCRIPT = _script("delete")
_LOAD_SCRIPTS: list[Command] = [(b"SCRIPT", b"LOAD", WRITE_SCRIPT), (b"SCRIPT", b"LOAD", DELETE_SCRIPT)]
_LOAD_SCRIPTS_DATA = b"".join([_pack(command) for command in _LOAD_SCRIPTS])
_SHAS = np.array([list(script_sha(WRITE_SCRIPT)), list(script_sha(DELETE_SCRIPT))], np.uint8)


@dataclass
class StoreBatch:
    """One pipeline: the bytes to send, and which rows their commands are for."""

    rows: Rows
    data: bytes
    order: Rows
    """The rows in the order in which they are spoken for: first writes, writes, deletes, look-ups."""
    counts: list[int]
    """Rows of each of these kinds, then housekeeping commands, which come last (indices of ``resp``)."""
    loads_scripts: bool = False
    """Two commands before all others load the scripts."""

    @property
    def compared(self) -> int:
        """Script calls."""
        return sum(-(-self.counts[kind] // resp.SCRIPT_RECORDS) for kind in (resp.WRITES, resp.DELETES))

    def __len__(self) -> int:
        """Commands, which is replies to wait for."""
        others = self.counts[resp.FIRSTS] + self.counts[resp.LOOKUPS] + self.counts[resp.HOUSEKEEPING]
        return len(_LOAD_SCRIPTS) * self.loads_scripts + self.compared + others

    @property
    def commands(self) -> list[Command]:
        """The commands in ``data``, for a store in memory."""
        reader = hiredis.Reader()
        reader.feed(self.data)
        return [tuple(reader.gets()) for _ in range(len(self))]

    def spoken_for(self) -> list[list[int]]:
        """For each command the rows it speaks for."""
        each: list[list[int]] = [[] for _ in _LOAD_SCRIPTS] if self.loads_scripts else []
        order, at = self.order.tolist(), 0
        sizes = (1, resp.SCRIPT_RECORDS, resp.SCRIPT_RECORDS, 1)
        for count, size in zip(self.counts[: resp.HOUSEKEEPING], sizes, strict=True):
            end = at + count
            each += [order[k : min(k + size, end)] for k in range(at, end, size)]
            at = end
        return each + [[] for _ in range(self.counts[resp.HOUSEKEEPING])]


@dataclass
class Decoded:
    """What the replies to one batch mean."""

    rows: Rows
    """Reply rows: each is its request's row, ``OP`` says the outcome; FOUND rows carry the stored session.
    FAILED is the answer to look-ups only."""
    operations: Rows
    """For each reply row what was asked."""
    again: Rows
    """Requests to encode once more: the server had lost the scripts, or a forged record was in the way."""
    unwritten: Rows
    """Writes and deletes that the server refused; refreshing tries again in its time."""
    errors: list[ErrorReply]


@dataclass(frozen=True)
class Greeting:
    """What the server said when a connection was made."""

    time_ns: int
    """Store time: the server's clock, nanoseconds since the Unix epoch."""
    buckets: int
    server: str
    """Name and version, for example ``redis 7.0.15``."""


class Protocol:
    """One connection's side of the conversation; ``keys`` come from ``record.derive_keys``."""

    def __init__(self, keys: Rows, prefix: str = "everwall", buckets: int = BUCKETS_DEFAULT) -> None:
        """Raises ValueError for a prefix that could not stand in a key, or a bucket count out of range."""
        if not prefix or any(character in prefix for character in "{}: \r\n"):
            raise ValueError(
                f"a store prefix is not empty and has no braces, colons or white space: {prefix!r}"
            )
        if not 1 <= buckets <= BUCKETS_MAX:
            raise ValueError(f"buckets must be 1 to {BUCKETS_MAX}, got {buckets}")
        self.buckets = buckets
        self._keys = keys
        self._meta_key = b"{%s}:buckets" % prefix.encode()
        self._bucket_prefix = np.array(list(b"{%s:%d:" % (prefix.encode(), EPOCH)), np.uint8)
        # Store time in seconds until which each bucket certainly lives; 0 = not known.
        self._lives_until = np.zeros(buckets, np.int64)
        self._load_scripts = True
        self._counts = np.zeros(resp.KINDS, np.int64)
        self._make_room(STORE_BATCH_RECORDS)

    # Connecting ------------------------------------------------------------------------------------

    def greeting(self) -> list[Command]:
        """What to send first on every new connection."""
        # A server that was restarted has lost scripts and expiries.
        self._load_scripts = True
        self._lives_until[:] = 0
        return [
            (b"SET", self._meta_key, b"%d" % self.buckets, b"NX"),
            (b"GET", self._meta_key),
            (b"INFO", b"server"),
            (b"TIME",),
        ]

    def greet(self, replies: Sequence[Any]) -> Greeting:
        """Take the replies to ``greeting``; from here on the cluster's own bucket count is used.

        Raises ErrorReply with the server's error, ProtocolError when the answers make no sense.
        """
        for reply in replies:
            if isinstance(reply, ErrorReply):
                raise reply
        _, agreed, info, time = replies
        try:
            buckets = int(agreed)
        except (TypeError, ValueError):
            buckets = 0
        if not 1 <= buckets <= BUCKETS_MAX:
            raise ProtocolError(f"{self._meta_key.decode()} holds no bucket count: {agreed!r}")
        if buckets != self.buckets:
            self.buckets = buckets
            self._lives_until = np.zeros(buckets, np.int64)
        return Greeting(store_time_ns(time), buckets, _server_name(info))

    def probe(self) -> StoreBatch:
        """A question that changes nothing, to see whether the server is there: its time."""
        rows = np.zeros((0, image.COLUMNS), np.int64)
        return StoreBatch(rows, _pack((b"TIME",)), np.zeros(0, np.int64), [0, 0, 0, 0, 1])

    # Requests --------------------------------------------------------------------------------------

    def encode(self, rows: Rows, now_s: int) -> StoreBatch:
        """The commands for some request rows; ``now_s`` is store time. Raises ValueError for other rows."""
        count = len(rows)
        if count > len(self._fields):
            self._make_room(count)
        order = np.empty(count, np.int64)
        size = resp.encode(
            rows,
            count,
            self._keys,
            self._bucket_prefix,
            _SHAS,
            self._lives_until,
            now_s,
            self._fields,
            self._values,
            self._numbers,
            order,
            self._counts,
            self._out,
        )
        counts = self._counts.tolist()
        if sum(counts[: resp.HOUSEKEEPING]) != count:
            raise ValueError("rows that are no requests")
        data = self._out[:size].tobytes()
        loads = self._load_scripts and counts[resp.WRITES] + counts[resp.DELETES] > 0
        if loads:
            data = _LOAD_SCRIPTS_DATA + data
            self._load_scripts = False
        return StoreBatch(rows, data, order, counts, loads)

    def _make_room(self, count: int) -> None:
        """Where the kernel works: for ``count`` rows."""
        self._fields = np.empty((count, FIELD_BYTES), np.uint8)
        self._values = np.empty((count, record.RECORD_BYTES), np.uint8)
        self._numbers = np.empty(count, np.int64)
        self._out = np.empty(resp.room_for(count, len(self._bucket_prefix)), np.uint8)

    # Replies ---------------------------------------------------------------------------------------

    def decode(self, batch: StoreBatch, replies: Sequence[Any], now_s: int) -> Decoded:
        """What the replies say, one for each command of ``batch`` in its order; ``now_s`` is store time.

        A server error is an ``ErrorReply`` among the replies; the look-ups it concerns become FAILED.
        Raises ProtocolError when they are not replies to this batch.
        """
        if len(replies) != len(batch):
            raise ProtocolError(f"{len(replies)} replies to {len(batch)} commands")
        replies = list(replies)
        errors: list[ErrorReply] = []
        again: list[int] = []
        unwritten: list[int] = []
        failed: list[int] = []
        if ErrorReply in set(map(type, replies)):
            errors, again, unwritten, failed = self._take_errors(batch, replies)
        rows = batch.rows.copy()
        outcome = rows[:, image.OP]
        counts, order = batch.counts, batch.order
        firsts, lookups = counts[resp.FIRSTS], counts[resp.LOOKUPS]
        changes = len(order) - lookups
        outcome[order[:changes]] = image.WRITTEN
        outcome[order[changes:]] = image.MISSING
        at = len(_LOAD_SCRIPTS) * batch.loads_scripts + firsts
        kept = list(chain.from_iterable(replies[at : at + batch.compared]))
        if len(kept) != changes - firsts:
            raise ProtocolError(f"a script answered {len(kept)} times for {changes - firsts} records")
        at += batch.compared
        # What the store holds instead of a change, or in answer to a look-up.
        stored = [(firsts + k, value) for k, value in enumerate(kept) if value != 1]
        found = enumerate(replies[at : at + lookups], changes)
        stored += [(k, value) for k, value in found if value is not None]
        answered = np.ones(len(rows), np.bool_)
        retry = batch.rows[again]
        if stored:
            indices = order[[k for k, _ in stored]]
            obstructed = self._open(batch.rows, rows, indices, [value for _, value in stored], now_s)
            answered[obstructed] = False
            forced = batch.rows[obstructed]
            forced[:, image.OP] = image.WRITE_FIRST
            retry = np.concatenate([retry, forced])
        outcome[failed] = image.FAILED
        answered[again + unwritten] = False
        operations = batch.rows[answered, image.OP]
        return Decoded(rows[answered], operations, retry, batch.rows[unwritten], errors)

    def _take_errors(
        self, batch: StoreBatch, replies: list[Any]
    ) -> tuple[list[ErrorReply], list[int], list[int], list[int]]:
        """Put replies that say nothing where errors were.

        Returns the errors, the rows to ask again, the changes not made and the look-ups that failed.
        """
        self._lives_until[:] = 0  # a bucket that could not be written has no expiry either
        errors: list[ErrorReply] = []
        again: list[int] = []
        unwritten: list[int] = []
        failed: list[int] = []
        for k, indices in enumerate(batch.spoken_for()):
            error = replies[k]
            if not isinstance(error, ErrorReply):
                continue
            errors.append(error)
            replies[k] = None
            if not indices:
                continue
            operation = batch.rows[indices[0], image.OP]
            if operation == image.LOOKUP:
                failed += indices
                continue
            replies[k] = [1] * len(indices)
            lost_scripts = operation != image.WRITE_FIRST and error.code == "NOSCRIPT"
            self._load_scripts |= lost_scripts
            if lost_scripts and not batch.loads_scripts:
                again += indices
            else:
                unwritten += indices
        return errors, again, unwritten, failed

    def _open(self, requests: Rows, rows: Rows, indices: Rows, stored: list[bytes], now_s: int) -> Rows:
        """Open what the store held for rows ``indices``; returns those whose write no valid record stood against."""
        size = record.RECORD_BYTES
        data = b"".join([value if len(value) == size else bytes(size) for value in stored])
        values = np.frombuffer(bytearray(data), np.uint8).reshape(-1, size)
        opened = requests[indices]
        operations = opened[:, image.OP].copy()
        record.open_records(opened, len(stored), self._keys, values)
        outcome = opened[:, image.OP]
        outcome[(outcome == image.FOUND) & (opened[:, image.EXPIRY] < now_s)] = image.MISSING
        asked, found = operations == image.LOOKUP, outcome == image.FOUND
        rows[indices[~asked], image.OP] = image.LOST
        rows[indices[asked], image.OP] = outcome[asked]
        rows[indices[asked & found]] = opened[asked & found]
        obstructed: Rows = indices[(operations == image.WRITE) & ~found]
        return obstructed


def buckets_for(sessions: int) -> int:
    """The bucket count for a cluster of that many sessions: fewer cost time, more cost memory."""
    return min(max(1, -(-sessions // SESSIONS_PER_BUCKET)), BUCKETS_MAX)


def store_time_ns(reply: Any) -> int:
    """The answer to TIME, seconds and microseconds, as nanoseconds. Raises ProtocolError."""
    try:
        seconds, microseconds = reply
        return int(seconds) * 1_000_000_000 + int(microseconds) * 1000
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"TIME was answered by {reply!r}") from error


def _server_name(info: Any) -> str:
    """Name and version from the answer to ``INFO server``; Valkey names itself beside a Redis version."""
    facts = dict(
        line.split(":", 1) for line in bytes(info or b"").decode(errors="replace").splitlines() if ":" in line
    )
    if "valkey_version" in facts:
        return f"valkey {facts['valkey_version']}"
    return f"redis {facts.get('redis_version', '?')}"
