"""What a node says to the store and what the answers mean: commands and replies, no I/O.

Requests are rows of ``session.image``; ``encode`` turns those of a batch into the bytes of one pipeline of Redis
commands, the caller sends these, and ``read`` says what the bytes that come back mean for each. The layout, for
cluster ``prefix``:

* ``{prefix}:buckets``: how many buckets there are, agreed by whoever comes first, and which epoch of them it is
  (``layout.py``);
* ``{prefix:epoch:bucket}``: a hash with the records of about 64 sessions; the bucket, in hexadecimal, is the
  record's field modulo the number of buckets. So few fields of so few bytes keep Redis's compact encoding.

Order within one pipeline: first writes, then compared writes, deletes, look-ups. The comparison makes the
order of writes and deletes of one session immaterial; look-ups come last so that a session deleted in
the same breath is not found again.

A record lies in one of up to four *places*: an epoch, and a secret that names and seals it. Outside a change of the
number of buckets and the rotation of the secret there is one. The first place is written to. Look-ups ask all of them
and take the latest record; what is written is then cleared from the others, by comparison, so that records move as they
are refreshed; a delete goes to all (``resp.py``, ``replies.py``).

On a Redis Cluster places are *apart*: on other servers. There a request goes to one place and, when that is answered,
to the next; its row says to which (``image.WALK``), and a look-up's what was found so far.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, cast

import hiredis
import numpy as np
import numpy.typing as npt

from everwall.kernels import bound
from everwall.limits import (
    BUCKETS_DEFAULT,
    BUCKETS_MAX,
    CLOCK_AHEAD_MAX_S,
    CLOCK_PAUSE_S,
    SECOND_NS,
    SESSIONS_PER_BUCKET,
    STORE_BATCH_RECORDS,
    STORE_PREFIX_DEFAULT,
)
from everwall.session import image
from everwall.session.record import KEY_WORDS
from everwall.store import replies, resp
from everwall.store.layout import Epoch, Layout, LayoutError, meta_key, parse

Command = tuple[bytes, ...]
Rows = npt.NDArray[np.int64]
Buffer = npt.NDArray[np.uint8]
_pack = cast(Callable[[Command], bytes], hiredis.pack_command)


class ErrorReply(Exception):
    """An error that the server answered, with its code first: ``OOM command not allowed ...``."""

    @property
    def code(self) -> str:
        """The first word, for example ``NOSCRIPT``."""
        return str(self).split(" ", 1)[0]


class ProtocolError(Exception):
    """The server answered something that no Redis answers, or another layout is in use there."""


def _script(*names: str) -> bytes:
    folder = resources.files("everwall.store") / "scripts"
    return b"".join((folder / f"{name}.lua").read_bytes() for name in names)


def script_sha(script: bytes) -> bytes:
    """The name by which EVALSHA calls a script (SHA-1, by Redis's definition)."""
    return hashlib.sha1(script, usedforsecurity=False).hexdigest().encode()


WRITE_SCRIPT = _script("order", "write")
DELETE_SCRIPT = _script("order", "delete")
MOVE_SCRIPT = _script("order", "move")
COPY_SCRIPT = _script("order", "copy")
FORGET_SCRIPT = _script("forget")
REPLACE_SCRIPT = _script("replace")
CLOCK_SCRIPT = _script("clock")
_LOAD_SCRIPTS: list[Command] = [(b"SCRIPT", b"LOAD", WRITE_SCRIPT), (b"SCRIPT", b"LOAD", DELETE_SCRIPT)]
_LOAD_SCRIPTS_DATA = b"".join([_pack(command) for command in _LOAD_SCRIPTS])
_LOAD_CLOCK: Command = (b"SCRIPT", b"LOAD", CLOCK_SCRIPT)
_CLOCK_SHA = script_sha(CLOCK_SCRIPT)
_ASKING = _pack((b"ASKING",))
_EPOCH_DIGITS = 11  # and a colon
RECONNECT_CODES = {"READONLY", "LOADING", "MASTERDOWN", "NOAUTH", "CLUSTERDOWN"}
"""Errors of a server that is not, or no longer, the one to speak to: the name is resolved anew."""
_SHAS = np.array([list(script_sha(WRITE_SCRIPT)), list(script_sha(DELETE_SCRIPT))], np.uint8)


class StoreBatch:
    """One pipeline: requests, the bytes to send for them, and what the replies have said so far."""

    def __init__(self, room: int, prefix_bytes: int) -> None:
        self.pipeline = resp.make_pipeline(room, prefix_bytes)
        self.count = 0
        """Requests in it."""
        self.room = memoryview(self.pipeline.out)  # type: ignore[arg-type]
        self.data = self.room[:0]
        self.errors: list[ErrorReply] = []
        self.redirects: list[tuple[ErrorReply, Rows]] = []
        """What belongs to another server of a cluster, as the error says: ``MOVED slot host:port`` or ``ASK`` so."""

    @property
    def rows(self) -> Rows:
        """The requests; those that were found carry the stored session."""
        return self.pipeline.rows[: self.count]

    @property
    def outcomes(self) -> Rows:
        """What became of each: a reply of ``image``, AGAIN or UNWRITTEN of ``replies``, 0 = not known yet."""
        return self.pipeline.outcomes[: self.count]

    @property
    def lookups(self) -> Rows:
        """The requests that ask."""
        found: Rows = self.rows[self.rows[:, image.OP] == image.LOOKUP]
        return found

    @property
    def changes(self) -> Rows:
        """The requests that change something."""
        found: Rows = self.rows[self.rows[:, image.OP] != image.LOOKUP]
        return found

    @property
    def is_awaited(self) -> bool:
        """Whether a packet waits for an answer: to a look-up, or to a change that shall be confirmed."""
        return bool(self.pipeline.cursor[resp.AWAITED])

    @property
    def has_first_writes(self) -> bool:
        """Whether some of what is encoded is written without a comparison."""
        return bool(self.pipeline.counts[resp.FIRSTS])

    @property
    def told_ns(self) -> int:
        """The answer to ``probe``: the time, ns; 0 when there is none."""
        seconds, microseconds = self.pipeline.cursor[replies.SECONDS : replies.MICROSECONDS + 1].tolist()
        return int(seconds) * SECOND_NS + int(microseconds) * 1000

    @property
    def said(self) -> bytes | None:
        """The rest of the answer to ``probe``: what is under the key of the layout; None when nothing is."""
        return bytes(self.pipeline.said[: self.pipeline.cursor[replies.SAID]]) or None

    @property
    def loads_scripts(self) -> bool:
        """Two commands before all others load the scripts."""
        return self.data[: len(_LOAD_SCRIPTS_DATA)] == _LOAD_SCRIPTS_DATA

    @property
    def commands(self) -> list[Command]:
        """The commands in ``data``, for a store in memory."""
        reader = hiredis.Reader()
        reader.feed(bytes(self.data))
        commands: list[Command] = []
        while (command := reader.gets()) is not False:
            commands.append(tuple(command))
        return commands

    def spoken_for(self) -> list[list[int]]:
        """For each command the rows it speaks for."""
        each: list[list[int]] = [[] for _ in _LOAD_SCRIPTS] if self.loads_scripts else []
        counts, others = self.pipeline.counts.tolist(), int(self.pipeline.cursor[resp.OTHERS])
        order, at = self.pipeline.order.tolist(), 0
        most, apart = (int(self.pipeline.cursor[index]) for index in (resp.CALL_RECORDS, resp.APART))
        for kind, count in enumerate(counts[: resp.HOUSEKEEPING]):
            size = most if kind in (resp.WRITES, resp.DELETES, resp.CLEARS) else 1
            parts = others if kind == resp.CLEARS and not apart else 1
            for _ in range(parts):
                end = at + count // parts
                each += [order[k : min(k + size, end)] for k in range(at, end, size)]
                at = end
        return each + [[] for _ in range(counts[resp.HOUSEKEEPING])]


@dataclass
class Decoded:
    """What the replies to one batch mean."""

    rows: Rows
    """Reply rows: each is its request's row, ``OP`` says the outcome; FOUND rows carry the stored session.
    FAILED is the answer to look-ups only."""
    again: Rows
    """Requests to encode once more: the server had lost the scripts, a forged record was in the way, or other places
    are to be cleared or asked."""
    unwritten: Rows
    """Writes and deletes that the server refused; refreshing tries again in its time."""
    errors: list[ErrorReply]

    @property
    def answers(self) -> Rows:
        """What the engine is told: of changes that were made only those it waits for."""
        told = (self.rows[:, image.OP] != image.WRITTEN) | (self.rows[:, image.CONFIRM] != 0)
        answered: Rows = self.rows[told]
        return answered


@dataclass(frozen=True)
class Greeting:
    """What the server said when a connection was made."""

    time_ns: int
    """Store time, nanoseconds since the Unix epoch."""
    is_agreed: bool
    """It is the cluster's; else only the server's, which cannot keep the cluster's at the moment."""
    buckets: int
    """Of the epoch that is written to."""
    server: str
    """Name and version, for example ``redis 7.0.15``."""


class Protocol:
    """One connection's side of the conversation; ``keys`` come from ``record.derive_keys``."""

    def __init__(
        self,
        keys: Rows,
        prefix: str = STORE_PREFIX_DEFAULT,
        buckets: int = BUCKETS_DEFAULT,
        *,
        clustered: bool = False,
    ) -> None:
        """``buckets``: how many there shall be where no node has said so yet. ``clustered``: keys are parted among
        servers, so that a script call may name one only, and places are apart.

        Raises ValueError for a prefix that could not stand in a key, or a bucket count out of range.
        """
        if not prefix or any(character in prefix for character in "{}: \r\n"):
            raise ValueError(
                f"a store prefix is not empty and has no braces, colons or white space: {prefix!r}"
            )
        if not 1 <= buckets <= BUCKETS_MAX:
            raise ValueError(f"buckets must be 1 to {BUCKETS_MAX}, got {buckets}")
        self.layout = Layout(Epoch(0, buckets))
        """What the cluster has agreed on, as far as this node has heard."""
        self.keys = keys
        """Of the secrets, the one that is written first."""
        self.meta_key = meta_key(prefix)
        self._prefix, self._clustered = prefix, clustered
        self._stem = np.array(list(b"{%s:" % prefix.encode()), np.uint8)
        self._epochs: tuple[Epoch, ...] = ()
        self._wording = self._worded(self.layout.epochs(0))
        self._clock_key = clock_key(prefix)
        self._load_clock = True
        """The server may not know the script that tells the time."""
        self._encode = bound(resp.encode, self.room(1).pipeline, 0, self._wording, 0)
        self._scratch = np.zeros((1, image.COLUMNS), np.int64)
        self._load_scripts = True

    # Places ----------------------------------------------------------------------------------------

    @property
    def buckets(self) -> int:
        """Of the epoch that is written to."""
        return self._epochs[0].buckets

    @property
    def places(self) -> int:
        """How many places a record may lie in."""
        return 1 + len(self._wording.others)

    def is_due(self, now_s: int) -> bool:
        """Whether at ``now_s`` of store time records have other places than those this protocol speaks of."""
        return self.layout.epochs(now_s) != self._epochs

    def move(self, now_s: int, keys: Rows | None = None) -> bool:
        """Speak of the places that hold at ``now_s``, and of other ``keys``, those of other secrets, if there are any.

        To be called while no batch is under way. Returns whether something else is written to than before: then the
        live sessions have to be written once more.
        """
        before, written = self._epochs[0], self.keys[:KEY_WORDS].tolist()
        if keys is not None:
            self.keys = keys
        self._wording = self._worded(self.layout.epochs(now_s))
        return self._epochs[0] != before or self.keys[:KEY_WORDS].tolist() != written

    def _worded(self, epochs: tuple[Epoch, ...]) -> resp.Wording:
        current = epochs[0]
        secrets = range(len(self.keys) // KEY_WORDS)
        places = [(secret, epoch.number, epoch.buckets) for secret in secrets for epoch in epochs]
        lives_until = np.zeros(current.buckets, np.int64)
        if self._epochs and self._epochs[0] == current:
            lives_until = self._wording.lives_until
        self._epochs = epochs
        return resp.Wording(
            keys=self.keys,
            prefix=self.key_prefix(current),
            shas=_SHAS,
            lives_until=lives_until,
            stem=self._stem,
            others=np.array(places[1:], np.int64).reshape(-1, 3),
            call_records=np.int64(1 if self._clustered else resp.SCRIPT_RECORDS),
            apart=np.int64(self._clustered),
        )

    # Connecting ------------------------------------------------------------------------------------

    def greeting(self, least_ns: int = 0) -> list[Command]:
        """What to send first on every new connection; ``least_ns``: a store time that has come, if one is known."""
        # A server that was restarted has lost scripts and expiries.
        self._load_scripts, self._load_clock = True, False
        self._wording.lives_until[:] = 0
        return [
            (b"SET", self.meta_key, str(self.layout).encode(), b"NX"),
            (b"GET", self.meta_key),
            (b"INFO", b"server"),
            (b"TIME",),
            _LOAD_CLOCK,
            clock_command(self._clock_key, least_ns),
        ]

    def another(self) -> Protocol:
        """The same for another connection: what one of them learns, the other does not know."""
        return Protocol(self.keys, self._prefix, self.buckets, clustered=self._clustered)

    @property
    def clustered(self) -> bool:
        """Whether keys are parted among servers: one of them has the layout's."""
        return self._clustered

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """Where records are asked for; the first is the one that is written to."""
        return self._epochs

    @property
    def others(self) -> Rows:
        """The places beside the first: rows of secret, epoch and buckets (``resp.py``)."""
        return self._wording.others

    def key_prefix(self, epoch: Epoch) -> Buffer:
        """What the key of an epoch's bucket begins with; its number follows, in hexadecimal."""
        return np.array([*self._stem.tolist(), *b"%d:" % epoch.number], np.uint8)

    def follow(self, leader: Protocol) -> None:
        """Use the places that another connection has agreed on."""
        self.layout = leader.layout
        self._wording = self._worded(leader._epochs)
        self._wording.lives_until[:] = 0

    def following(self) -> list[Command]:
        """What to send first on a connection that only follows."""
        self._load_scripts = self._load_clock = True
        self._wording.lives_until[:] = 0
        state: list[Command] = [(b"CLUSTER", b"INFO")] if self._clustered else []
        return [(b"INFO", b"server"), *state]

    def followed(self, answers: Sequence[Any]) -> str:
        """Take the answers to ``following``: the server's name and version. Raises ErrorReply with its error."""
        for reply in answers:
            if isinstance(reply, ErrorReply):
                raise reply
        if self._clustered and b"cluster_state:ok" not in answers[1]:
            raise ErrorReply("CLUSTERDOWN the server says that its cluster is down")
        return _server_name(answers[0])

    def greet(self, answers: Sequence[Any]) -> Greeting:
        """Take the answers to ``greeting``; from here on the cluster's own layout is used. Where places are apart that
        has to be by all connections at once, and is left to whoever has these (``follow``).

        Raises ErrorReply with the server's error, ProtocolError when the answers make no sense, or the layout is of
        another version.
        """
        proposed, agreed, info, time, _, told = answers
        for reply in (proposed, agreed, info, time):
            # A server that is full takes no proposal, and needs none where there is a layout already.
            needless = reply is proposed and agreed is not None and not isinstance(agreed, ErrorReply)
            if isinstance(reply, ErrorReply) and not (needless and reply.code == "OOM"):
                raise reply
        # A server that takes no writes for want of replicas, say, does not keep the cluster's time, but has its own.
        is_agreed = not isinstance(told, ErrorReply)
        time_ns = store_time_ns(told if is_agreed else time)
        self.hear(agreed)
        if not self._clustered:
            self.move(time_ns // SECOND_NS)
        return Greeting(time_ns, is_agreed, self.buckets, _server_name(info))

    def hear(self, agreed: bytes | None) -> None:
        """Take what is under the key of the layout. Raises ProtocolError when that is no layout of this version.

        Nothing is there where the server has lost everything: what this node knows holds, and with its next connection
        it says so.
        """
        if agreed is None:
            return
        try:
            self.layout = parse(agreed)
        except LayoutError as error:
            raise ProtocolError(f"{self.meta_key.decode()} {error}") from error

    def room(self, count: int = STORE_BATCH_RECORDS) -> StoreBatch:
        """An empty batch for so many requests; it may be used again once it is answered."""
        return StoreBatch(count, len(self._stem) + _EPOCH_DIGITS)

    # Requests --------------------------------------------------------------------------------------

    def probe(self, batch: StoreBatch, *, least_ns: int | None = None, layout: bool = True) -> None:
        """Fill a batch with what is asked all the time: what time it is, and the layout too where the server has it.

        ``least_ns``: ask for store time, and say that this one has come, if it is not 0; else for the server's own.
        """
        commands: list[Command] = []
        if least_ns is None:
            commands.append((b"TIME",))
        else:
            if self._load_clock:
                commands.append(_LOAD_CLOCK)
                self._load_clock = False
            commands.append(clock_command(self._clock_key, least_ns))
        if layout:
            commands.append((b"GET", self.meta_key))
        self._say(batch, commands)

    def _say(self, batch: StoreBatch, commands: list[Command]) -> None:
        """Fill a batch with commands about no record."""
        batch.count, batch.errors = 0, []
        resp.encode(batch.pipeline, 0, self._wording, 0)
        batch.pipeline.counts[resp.HOUSEKEEPING] = len(commands)
        batch.data = memoryview(b"".join(map(_pack, commands)))

    def authenticate(self, batch: StoreBatch, credentials: Sequence[str]) -> None:
        """Fill a batch with a password, or user and password."""
        self._say(batch, [(b"AUTH", *(word.encode() for word in credentials))])

    def encode_asking(self, batch: StoreBatch, now_s: int) -> None:
        """As ``encode``, for one row whose bucket is being moved here: each command comes after an ASKING."""
        resp.name(batch.pipeline, 1, self._wording.keys)
        self.encode(batch, now_s)
        loads, commands = len(_LOAD_SCRIPTS) if batch.loads_scripts else 0, batch.commands
        keyed = [_ASKING + _pack(command) for command in commands[loads:]]
        batch.data = memoryview(b"".join([*map(_pack, commands[:loads]), *keyed]))
        batch.pipeline.cursor[replies.LOADS] += 1
        batch.pipeline.counts[resp.HOUSEKEEPING] *= 2

    def wait_for_replicas(self, batch: StoreBatch, replicas: int, timeout_ms: int) -> None:
        """Let an encoded batch end when so many replicas have it, or after that time; then only is it answered."""
        batch.pipeline.counts[resp.HOUSEKEEPING] += 1
        batch.pipeline.cursor[replies.REPLICAS] = replicas
        batch.data = memoryview(bytes(batch.data) + _pack((b"WAIT", b"%d" % replicas, b"%d" % timeout_ms)))

    def encode(self, batch: StoreBatch, now_s: int) -> None:
        """Put the commands for the batch's rows, whose fields are there, into its ``data``; ``now_s`` is store time.

        Raises ValueError for other rows than requests.
        """
        pipeline = batch.pipeline
        if batch.errors:
            batch.errors = []
        size = self._encode(pipeline, batch.count, self._wording, now_s)
        if size < 0:
            raise ValueError("rows that are no requests")
        batch.data = batch.room[:size]
        counts = pipeline.counts
        if self._load_scripts and counts[resp.WRITES] + counts[resp.DELETES] + counts[resp.CLEARS]:
            batch.data = memoryview(_LOAD_SCRIPTS_DATA + bytes(batch.data))
            pipeline.cursor[replies.LOADS] = len(_LOAD_SCRIPTS)
            self._load_scripts = False

    def take_back(self) -> None:
        """What was encoded is not sent: the server has neither the scripts nor the expiries that were in it."""
        self._load_scripts = True
        self._wording.lives_until[:] = 0

    def encoded(self, rows: Rows, now_s: int) -> StoreBatch:
        """A batch of its own for some request rows."""
        batch = self.room(len(rows))
        batch.count = len(rows)
        batch.rows[:] = rows
        resp.name(batch.pipeline, batch.count, self._wording.keys)
        self.encode(batch, now_s)
        return batch

    # Replies ---------------------------------------------------------------------------------------

    def read(self, batch: StoreBatch, data: Buffer, start: int, end: int, now_s: int) -> tuple[int, bool]:
        """Take replies to ``batch`` from ``data[start:end]``: (where the rest begins, whether all are there).

        ``now_s`` is store time. Raises ErrorReply for an error that says that this is not the server to speak to,
        ProtocolError when the bytes are no replies to the batch.
        """
        while True:
            start, found = replies.read(
                batch.pipeline, data, start, end, self._wording.keys, self._scratch, now_s
            )
            if found in (replies.MORE, replies.DONE):
                return start, found == replies.DONE
            self.wonder(batch, data, start, end, found)

    def wonder(self, batch: StoreBatch, data: Buffer, start: int, end: int, found: int) -> None:
        """What is next is an ERROR or CONFUSED: raises as ``read``, or takes the error so that reading may go on."""
        if found == replies.CONFUSED:
            raise ProtocolError(f"no reply to what was asked: {bytes(data[start : min(end, start + 80)])!r}")
        first, last = batch.pipeline.cursor[replies.TEXT : replies.TEXT_END + 1].tolist()
        self._take_error(batch, ErrorReply(bytes(data[first:last]).decode(errors="replace")))

    def _take_error(self, batch: StoreBatch, error: ErrorReply) -> None:
        """An error is the reply to the next command of a batch."""
        if error.code in RECONNECT_CODES:
            raise error
        self._wording.lives_until[:] = 0  # a bucket that could not be written has no expiry either
        batch.errors.append(error)
        pipeline = batch.pipeline
        kind, first, count, _ = (int(number) for number in replies.command(pipeline))
        rows = pipeline.order[first : first + count]
        outcome = replies.UNWRITTEN
        redirected = error.code in ("MOVED", "ASK")
        if kind in (resp.LOOKUPS, resp.LOOKUPS_ELSEWHERE):
            outcome = image.FAILED
            if not redirected:
                rows = rows[pipeline.outcomes[rows] != image.FOUND]
        elif kind in (resp.WRITES, resp.DELETES, resp.CLEARS) and error.code == "NOSCRIPT":
            self._load_scripts = True
            if not batch.loads_scripts:
                outcome = replies.AGAIN
        if kind == resp.HOUSEKEEPING:
            pipeline.cursor[replies.HOLDERS] = 0
            self._load_clock = self._load_clock or error.code == "NOSCRIPT"
        elif redirected:
            outcome = replies.ELSEWHERE
            batch.redirects.append((error, pipeline.rows[rows]))
        pipeline.outcomes[rows] = outcome
        replies.advance(pipeline, count)

    def decode(self, batch: StoreBatch, data: bytes, now_s: int) -> Decoded:
        """What all replies to a batch mean, as ``data`` has them; errors as in ``read``."""
        buffer = np.frombuffer(data, np.uint8)
        behind, complete = self.read(batch, buffer, 0, len(buffer), now_s)
        if not complete or behind != len(buffer):
            raise ProtocolError(f"{len(data)} bytes are no replies to {len(batch.commands)} commands")
        outcomes, rows = batch.outcomes, batch.rows.copy()
        outcomes[outcomes == image.FOREIGN] = image.REFUSED
        again, unwritten = outcomes == replies.AGAIN, outcomes == replies.UNWRITTEN
        repeated, refused = rows[again], rows[unwritten]
        rows[:, image.OP] = outcomes
        return Decoded(rows[~again & ~unwritten], repeated, refused, batch.errors)


def reply_bytes(reply: Any) -> bytes:
    """A reply as a server would send it (RESP 2): None, a number, bytes, an ErrorReply, or a list of these."""
    if isinstance(reply, ErrorReply):
        return b"-%s\r\n" % str(reply).encode()
    if isinstance(reply, list):
        return b"*%d\r\n" % len(reply) + b"".join(map(reply_bytes, reply))
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    return b"$-1\r\n" if reply is None else b"$%d\r\n%s\r\n" % (len(reply), reply)


def buckets_for(sessions: int) -> int:
    """The bucket count for a cluster of that many sessions: fewer cost time, more cost memory."""
    return min(max(1, -(-sessions // SESSIONS_PER_BUCKET)), BUCKETS_MAX)


def clock_key(prefix: str) -> bytes:
    """The key under which a cluster keeps its time."""
    return b"{%s}:clock" % prefix.encode()


def clock_command(key: bytes, least_ns: int = 0) -> Command:
    """The question for store time, to be put where CLOCK_SCRIPT is loaded; arguments as in ``clock_arguments``."""
    return (b"EVALSHA", _CLOCK_SHA, b"1", key, *(b"%d" % number for number in clock_arguments(least_ns)))


def clock_arguments(least_ns: int = 0) -> tuple[int, int, int]:
    """Of CLOCK_SCRIPT, whose key is that of ``clock_key``; ``least_ns``: a store time that has come."""
    return (least_ns // 1000, CLOCK_AHEAD_MAX_S * 1_000_000, CLOCK_PAUSE_S * 1_000_000)


def store_time_ns(reply: Any) -> int:
    """The answer to TIME, seconds and microseconds, as nanoseconds. Raises ProtocolError, also for a time that no
    record could bear."""
    try:
        seconds, microseconds = map(int, reply)
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"TIME was answered by {reply!r}") from error
    if not (0 <= seconds < 1 << 32 and 0 <= microseconds < 1_000_000):
        raise ProtocolError(f"TIME was answered by {reply!r}")
    return seconds * SECOND_NS + microseconds * 1000


def _server_name(info: Any) -> str:
    """Name and version from the answer to ``INFO server``; Valkey names itself beside a Redis version."""
    facts = dict(
        line.split(":", 1) for line in bytes(info or b"").decode(errors="replace").splitlines() if ":" in line
    )
    if "valkey_version" in facts:
        return f"valkey {facts['valkey_version']}"
    return f"redis {facts.get('redis_version', '?')}"
