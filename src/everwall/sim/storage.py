"""The store and the way to it: one server in memory, one connection for each node.

A connection behaves as a node's store thread does: requests are gathered for a flush window, one
pipeline is under way at a time, its answers come back after the network's delay. While the store is not
reachable every request is answered FAILED, look-ups first of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any
from typing import Protocol as Interface

import numpy as np
import numpy.typing as npt

from everwall.limits import STORE_FLUSH_NS
from everwall.session import image
from everwall.sim.loop import MS, SECOND, Loop
from everwall.store.memory import MemoryStore
from everwall.store.protocol import Command, Protocol, StoreBatch, reply_bytes

Rows = npt.NDArray[np.int64]

BATCH_ROWS = 256


class StoreWitness(Interface):
    """Who is told what the server executes."""

    def before(self, command: Command) -> None: ...

    def after(self, command: Command) -> None: ...

    def executed(self, batch: StoreBatch, replies: list[Any]) -> None: ...


class StoreServer:
    """The one store of the cluster, and what is wrong with it at the moment."""

    def __init__(self, loop: Loop, epoch: int, random: Random, delay: int) -> None:
        self.memory = MemoryStore()
        self.witness: StoreWitness | None = None
        self.delay = delay
        """ns, one way."""
        self.extra_delay = 0
        self.down = False
        self.batches = 0
        self._loop = loop
        self._epoch = epoch
        self._random = random

    @property
    def now_ns(self) -> int:
        """Store time."""
        return self._epoch + self._loop.now

    @property
    def now_s(self) -> int:
        """Store time in whole seconds."""
        return self.now_ns // SECOND

    def way(self) -> int:
        """How long the next message takes, ns."""
        spread = self.delay + self.extra_delay
        return spread + int(self._random.random() * spread / 2)

    def execute(self, commands: list[Command]) -> list[Any]:
        """The replies to some commands, each seen by the witness before and after."""
        replies = []
        for command in commands:
            if self.witness:
                self.witness.before(command)
            replies.append(self.memory.execute(command, self.now_ns / SECOND))
            if self.witness:
                self.witness.after(command)
        return replies


class StoreLink:
    """One node's connection; ``deliver`` takes reply rows."""

    def __init__(
        self, loop: Loop, server: StoreServer, protocol: Protocol, deliver: Callable[[Rows], None]
    ) -> None:
        self.dead = False
        """The node was killed: what is on its way arrives, nothing more is sent."""
        self.stopped = False
        """The node hangs: nothing is sent, answers wait."""
        self._loop = loop
        self._server = server
        self._protocol = protocol
        self._deliver = deliver
        self._waiting: list[Rows] = []
        self._answers: list[Rows] = []
        self._busy = False
        self._flushing = False
        protocol.greet(server.execute(protocol.greeting()))

    def push(self, rows: Rows) -> None:
        """Requests from the engine's outbox."""
        if len(rows):
            self._queue(rows)

    def resume(self) -> None:
        """The node runs again after a hang."""
        self.stopped = False
        answers, self._answers = self._answers, []
        for rows in answers:
            self._give(rows)
        self._schedule()

    def _queue(self, rows: Rows) -> None:
        self._waiting.append(rows)
        self._schedule()

    def _schedule(self) -> None:
        if self._waiting and not self._busy and not self._flushing:
            self._flushing = True
            self._loop.after(STORE_FLUSH_NS, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self.dead or self.stopped or self._busy or not self._waiting:
            return
        rows = np.concatenate(self._waiting)
        self._waiting = [rows[BATCH_ROWS:]] if len(rows) > BATCH_ROWS else []
        rows = rows[:BATCH_ROWS]
        if self._server.down:
            rows[:, image.OP] = image.FAILED
            self._loop.after(MS, self._answer, rows)
            self._schedule()
            return
        self._busy = True
        self._loop.after(self._server.way(), self._arrive, self._protocol.encoded(rows, self._server.now_s))

    def _arrive(self, batch: StoreBatch) -> None:
        """The server has the pipeline and executes it in one go."""
        server = self._server
        if server.down:
            rows = batch.rows.copy()
            rows[:, image.OP] = image.FAILED
            self._loop.after(server.way(), self._back, rows, None)
            return
        server.batches += 1
        replies = server.execute(batch.commands)
        if server.witness:
            server.witness.executed(batch, replies)
        decoded = self._protocol.decode(batch, b"".join(map(reply_bytes, replies)), server.now_s)
        self._loop.after(server.way(), self._back, decoded.answers, decoded.again)

    def _back(self, rows: Rows, again: Rows | None) -> None:
        self._busy = False
        if self.dead:
            return
        if again is not None and len(again):
            self._waiting.insert(0, again)
        self._answer(rows)
        self._schedule()

    def _answer(self, rows: Rows) -> None:
        if self.dead:
            return
        if self.stopped:
            self._answers.append(rows)
        else:
            self._give(rows)

    def _give(self, rows: Rows) -> None:
        if len(rows):
            self._deliver(rows)


def named(batch: StoreBatch) -> Iterator[tuple[int, bytes, bytes]]:
    """(row, bucket, field) for everything a batch speaks about, read from its commands."""
    for command, indices in zip(batch.commands, batch.spoken_for(), strict=True):
        if not indices:
            continue
        for row, (bucket, field, _) in zip(indices, touched(command), strict=True):
            yield row, bucket, field


def touched(command: Command) -> list[tuple[bytes, bytes, bytes]]:
    """(bucket, field, value) of the records a command reads, writes or deletes."""
    if command[0] == b"HSET":
        return [(command[1], command[2], command[3])]
    if command[0] == b"HGET":
        return [(command[1], command[2], b"")]
    if command[0] == b"EVALSHA":
        count = int(command[2])
        keys, rest = command[3 : 3 + count], command[3 + count :]
        return [(keys[i], rest[2 * i], rest[2 * i + 1]) for i in range(count)]
    return []
