"""The one store of a cluster: a server in memory, and everything that can be wrong with it.

Connections are as TCP has them: what one end sends arrives in order, or not at all once the connection is
given up. A server that hangs lets pile up what arrives and executes it when it wakes, also what came over connections
that their clients have given up meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from random import Random
from typing import Any
from typing import Protocol as Interface

import numpy as np
import numpy.typing as npt

from everwall.sim.loop import SECOND, Loop
from everwall.store.memory import MemoryStore
from everwall.store.protocol import (
    CLOCK_SCRIPT,
    MOVE_SCRIPT,
    REPLACE_SCRIPT,
    WRITE_SCRIPT,
    Command,
    ErrorReply,
    StoreBatch,
    script_sha,
)

Rows = npt.NDArray[np.int64]
Request = Callable[[], tuple[Any, bool]]
"""What a server does when it arrives: (answer, whether somebody waits for it)."""

LAG_MAX = 2 * SECOND
"""Longest that a replica is behind: so far back can a fail-over lose writes."""
_MOVE_SHA = script_sha(MOVE_SCRIPT)
_OF_NO_RECORD = {script_sha(script) for script in (REPLACE_SCRIPT, CLOCK_SCRIPT)}
_WRITING = {script_sha(script) for script in (WRITE_SCRIPT, MOVE_SCRIPT, REPLACE_SCRIPT)}
_OOM = ErrorReply("OOM command not allowed when used memory > 'maxmemory'.")


class StoreWitness(Interface):
    """Who is told what the server executes."""

    def begins(self, batch: StoreBatch) -> None: ...

    def before(self, command: Command) -> None: ...

    def after(self, command: Command) -> None: ...

    def executed(self, batch: StoreBatch, replies: list[Any]) -> None: ...


class Client(Interface):
    """Who has a connection to the server."""

    name: str

    def heard(self, connection: Connection, answer: Any) -> None: ...

    def cut_off(self, connection: Connection) -> None: ...


class Connection:
    """One TCP connection of a client."""

    def __init__(self, loop: Loop, server: StoreServer, client: Client) -> None:
        self.is_open = True
        """The client has not given it up."""
        self.is_served = True
        """The process that accepted it is alive."""
        self._loop = loop
        self._server = server
        self._client = client
        self._arrives = self._answers = 0
        self._stuck: list[Callable[[], None]] = []

    @property
    def _is_cut(self) -> bool:
        return self._client.name in self._server.unreachable

    def send(self, request: Request) -> None:
        """Have the server do something; its answer comes to the client's ``heard``."""
        self._arrives = max(self._loop.now + self._server.way(), self._arrives)
        self._loop.at(self._arrives, self._arrive, request)

    def _arrive(self, request: Request) -> None:
        if self._is_cut:
            self._stuck.append(lambda: self._arrive(request))  # sent again until somebody gives up
        elif self.is_served:
            self._server.take(self, request)
        else:
            self._loop.after(self._server.way(), self._client.cut_off, self)

    def answer(self, answer: Any, delay: int) -> None:
        """What the server says, ``delay`` after now."""
        self._answers = max(self._loop.now + self._server.way() + delay, self._answers)
        self._loop.at(self._answers, self._hear, answer)

    def _hear(self, answer: Any) -> None:
        if self._is_cut:
            self._stuck.append(lambda: self._hear(answer))
        elif self.is_open:
            self._client.heard(self, answer)

    def unstuck(self) -> None:
        """The way is open again."""
        stuck, self._stuck = self._stuck, []
        for each in stuck if self.is_open else ():
            each()

    def reset(self) -> None:
        """The server's process is gone, or there never was one."""
        self.is_served = False
        if not self._is_cut:
            self._loop.after(self._server.way(), self._client.cut_off, self)


class StoreServer:
    """The one store of the cluster, and what is wrong with it at the moment."""

    def __init__(
        self, loop: Loop, epoch: int, random: Random, delay: int, memory: MemoryStore | None = None
    ) -> None:
        self.memory = memory or MemoryStore()
        self.witness: StoreWitness | None = None
        self.delay = delay
        """ns, one way."""
        self.extra_delay = 0
        self.hung = False
        self.refusing = False
        """No process listens there."""
        self.full = False
        """At ``maxmemory`` without eviction."""
        self.unreachable: set[str] = set()
        """Clients whose packets do not come through."""
        self.lag = 0
        """ns that the replica is behind."""
        self.waits = False
        """``wait-replicas``: an answer that somebody waits for comes when the replica has it too."""
        self._behind = 0
        """ns by which its clock is behind store time."""
        self.changed = 0
        """When something began or ceased to be wrong with it."""
        self.batches = 0
        self._loop = loop
        self._epoch = epoch
        self._random = random
        self._connections: list[Connection] = []
        self._piled: list[tuple[Connection, Request]] = []
        self._undo: deque[tuple[int, bytes, bytes, bytes | None]] = deque()

    @property
    def now_ns(self) -> int:
        """Its own clock."""
        return self._epoch + self._loop.now

    @property
    def store_ns(self) -> int:
        """Store time, which goes on when the clock is set back, and waits for none that is set forward again."""
        return self.now_ns + self._behind

    @property
    def store_s(self) -> int:
        """Store time in whole seconds."""
        return self.store_ns // SECOND

    def way(self) -> int:
        """How long the next message takes, ns."""
        spread = self.delay + self.extra_delay
        return spread + int(self._random.random() * spread / 2)

    @property
    def longest_way(self) -> int:
        """Longer than that no message takes."""
        return (self.delay + self.extra_delay) * 3 // 2

    def serves(self, name: str) -> bool:
        """Whether everything a client sends is done as always, and was for the last seconds."""
        trouble = self.hung or self.refusing or self.full or name in self.unreachable
        return not trouble and self._loop.now - self.changed > 3 * SECOND

    # Connections ---------------------------------------------------------------------------------------------

    def connect(self, client: Client) -> Connection:
        """Dial; a server that does not listen resets the connection."""
        connection = Connection(self._loop, self, client)
        if self.refusing:
            connection.reset()
        else:
            self._connections.append(connection)
        return connection

    def leave(self, connection: Connection) -> None:
        """A client gives its connection up; what it has not sent yet is thrown away (an RST)."""
        connection.is_open = False
        if connection in self._connections:
            self._connections.remove(connection)

    def take(self, connection: Connection, request: Request) -> None:
        """A request has arrived."""
        if self.hung:
            self._piled.append((connection, request))
        else:
            self._do(connection, request)

    def _do(self, connection: Connection, request: Request) -> None:
        answer, awaited = request()
        connection.answer(answer, self.lag if self.waits and awaited else 0)

    def execute_batch(self, batch: StoreBatch) -> tuple[list[Any], bool]:
        """A pipeline, executed in one go: (its replies, whether somebody waits for them)."""
        self.batches += 1
        if self.witness:
            self.witness.begins(batch)
        replies = self.execute(batch.commands)
        if self.witness:
            self.witness.executed(batch, replies)
        return replies, batch.is_awaited

    def execute(self, commands: list[Command]) -> list[Any]:
        """The replies to some commands, each seen by the witness before and after."""
        replies = []
        for command in commands:
            if self.full and _takes_memory(command):
                replies.append(_OOM)
                continue
            places = [(bucket, field) for bucket, field, value in touched(command) if value is not None]
            before = [self.value(*place) for place in places]
            if self.witness:
                self.witness.before(command)
            replies.append(self.memory.execute(command, self.now_ns / SECOND))
            if self.witness:
                self.witness.after(command)
            for place, value in zip(places, before, strict=True):
                if value != self.value(*place):
                    self._undo.append((self._loop.now, *place, value))
        while self._undo and self._undo[0][0] < self._loop.now - LAG_MAX:
            self._undo.popleft()
        return replies

    def value(self, bucket: bytes, field: bytes) -> bytes | None:
        """What lies there."""
        found = self.memory.keys.get(bucket)
        return found.get(field) if isinstance(found, dict) else None

    # What goes wrong -----------------------------------------------------------------------------------------

    def stop(self) -> None:
        """SIGSTOP."""
        self.hung, self.changed = True, self._loop.now

    def go_on(self) -> None:
        """SIGCONT: what has piled up is done first, whoever still waits for it."""
        self.hung, self.changed = False, self._loop.now
        piled, self._piled = self._piled, []
        for connection, request in piled:
            self._do(connection, request)

    def die(self) -> None:
        """The process is gone: connections are reset, nobody listens; scripts are lost in any case."""
        self.refusing, self.changed = True, self._loop.now
        connections, self._connections = self._connections, []
        for connection in connections:
            connection.reset()
        self.memory.scripts.clear()

    def come_back(self) -> None:
        """A process listens there again, with the data that it has."""
        self.refusing, self.changed = False, self._loop.now

    def lose_everything(self) -> None:
        """It had kept nothing on disk."""
        self.memory.keys.clear()
        self.memory.expiries.clear()
        self._undo.clear()

    def lose_last_writes(self) -> None:
        """The replica that takes its place had not received what was written in the last moments."""
        since = self._loop.now - self.lag
        while self._undo and self._undo[-1][0] > since:
            _, bucket, field, old = self._undo.pop()
            found = self.memory.keys.setdefault(bucket, {})
            assert isinstance(found, dict)
            if old is None:
                found.pop(field, None)
            else:
                found[field] = old
        self._undo.clear()

    def set_clock(self, by: int) -> None:
        """Its clock is set, forward or back."""
        self._epoch += by
        self._behind = max(self._behind - by, 0)
        self.changed = self._loop.now

    def cut(self, names: set[str]) -> None:
        """Nothing passes between it and some of the clients."""
        self.unreachable |= names
        self.changed = self._loop.now

    def heal(self, names: set[str]) -> None:
        """The way is open again."""
        self.unreachable -= names
        self.changed = self._loop.now
        for connection in list(self._connections):
            connection.unstuck()

    def fill(self, full: bool) -> None:
        """Its memory is used up, or there is room again."""
        self.full, self.changed = full, self._loop.now

    def slow_down(self, extra_delay: int) -> None:
        """From now on every message takes so much longer."""
        self.extra_delay, self.changed = extra_delay, self._loop.now


def _takes_memory(command: Command) -> bool:
    """Whether a server at ``maxmemory`` refuses the command (its flag ``denyoom``; of scripts what they call)."""
    if command[0] == b"EVALSHA":
        return command[1] in _WRITING
    return command[0] in (b"HSET", b"SET")


def named(batch: StoreBatch) -> Iterator[tuple[int, bytes, bytes]]:
    """(row, bucket, field) for everything a batch speaks about, read from its commands."""
    for command, indices in zip(batch.commands, batch.spoken_for(), strict=True):
        if not indices:
            continue
        for row, (bucket, field, _) in zip(indices, touched(command), strict=True):
            yield row, bucket, field


def touched(command: Command) -> list[tuple[bytes, bytes, bytes | None]]:
    """(bucket, field, value) of the records a command reads, writes or deletes; value is None where it only reads."""
    if command[0] == b"HSET":
        return [(command[1], command[2], command[3])]
    if command[0] == b"HGET":
        return [(command[1], command[2], None)]
    if command[0] == b"HDEL":
        return [(command[1], command[2], b"")]
    if command[0] == b"EVALSHA":
        count = int(command[2])
        keys, rest = command[3 : 3 + count], command[3 + count :]
        if command[1] == _MOVE_SHA:
            return [
                place
                for field, source, target in moved(command)
                for place in ((source, field, b""), (target, field, b""))
            ]
        if command[1] in _OF_NO_RECORD:
            return []
        return [(keys[i], rest[2 * i], rest[2 * i + 1]) for i in range(count)]
    return []


def moved(command: Command) -> list[tuple[bytes, bytes, bytes]]:
    """(field, bucket it leaves, bucket it comes to) of the records that a command moves to another epoch."""
    if command[0] != b"EVALSHA" or command[1] != _MOVE_SHA:
        return []
    count = int(command[2])
    source, *targets = command[3 : 3 + count]
    return [(field, source, target) for field, target in zip(command[3 + count : -1], targets, strict=True)]
