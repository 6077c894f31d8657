"""One node's way to the store: what the store's thread does, without thread and socket.

Queue and commands are the real ones; connecting, giving up, the pause before the next attempt, the deadline of
look-ups, the lease of the layout and the move to other places of records are told a second time, in fake time
(``store/conversation.py``). What time it is the node reckons as the product does (``store/clock.py``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from everwall.limits import (
    LAYOUT_LEASE_NS,
    LOOKUP_DEADLINE_NS,
    STORE_FLUSH_NS,
    STORE_QUEUE_ROWS,
    STORE_RECONNECT_MAX_S,
    STORE_RECONNECT_MIN_S,
    STORE_TIMEOUT_S,
)
from everwall.session import image, state
from everwall.sim.loop import SECOND, US, Loop
from everwall.sim.storage import Connection, Rows, StoreServer
from everwall.store.backlog import Backlog
from everwall.store.clock import StoreClock
from everwall.store.occasions import Refusals
from everwall.store.protocol import ErrorReply, Protocol, ProtocolError, StoreBatch, reply_bytes

BATCH_ROWS = 256
PIPELINES_MAX = 4
_TIMEOUT = round(STORE_TIMEOUT_S * SECOND)


@dataclass
class _Pipeline:
    """A batch under way."""

    batch: StoreBatch
    sent: int
    probes: bool
    """It asks for store time and the layout."""
    least: int
    """The store time that it names, ns."""
    late: bool = False


class StoreLink:
    """``deliver`` takes reply rows, ``set_clock`` store time minus local time and whether a resync is due."""

    def __init__(
        self,
        loop: Loop,
        name: str,
        server: StoreServer,
        protocol: Protocol,
        keys: Rows,
        random: Random,
        error: int,
        deliver: Callable[[Rows], None],
        set_clock: Callable[[int, bool], None],
    ) -> None:
        """``error``: ns by which this node misjudges store time."""
        self.name = name
        self.dead = False
        """The node was killed: what is on its way arrives, nothing more is sent."""
        self.stopped = False
        """The node hangs: nothing is sent, answers wait."""
        self.on_moved: Callable[[], None] | None = None
        """Records are written to another place from now on."""
        self._loop = loop
        self._server = server
        self._protocol = protocol
        self._confirmed = 0
        """When the layout was asked for that is known now."""
        self._is_due = False
        """Records have other places than those that are spoken of."""
        self._new_keys: Rows | None = None
        self._random = random
        self._error = error
        self._deliver = deliver
        self._set_clock = set_clock
        self._backlog = Backlog(keys)
        self._connection: Connection | None = None
        self._is_welcome = False
        self._asked = 0
        self._attempts = 0
        self._pipelines: deque[_Pipeline] = deque()
        self._unheard: list[Any] = []
        """What came while the node hung."""
        self._flushing = -1
        """When the next flush is due."""
        self._heard = 0
        self._words = np.zeros(4, np.int64)
        self._clock = StoreClock(self._words)
        """Goes by the simulation's time, less the node's error."""
        self._offered = 0
        self._least = 0
        """The store time that the greeting named, ns."""
        self._refusals = Refusals()
        self._unwritten = 0
        self._connect()
        self._loop.after(SECOND, self._probe)

    @property
    def connected(self) -> bool:
        """Whether requests reach the store, as far as the node knows."""
        return self._is_welcome

    @property
    def refused(self) -> bool:
        """Whether the server has refused writes, and was not offered them again yet."""
        return self._refusals.pending

    @property
    def keys(self) -> Rows:
        """Those that records are named and sealed by, or will be as soon as nothing is under way."""
        return self._protocol.keys if self._new_keys is None else self._new_keys

    # The node's side -----------------------------------------------------------------------------------------

    def push(self, rows: Rows) -> None:
        """Requests from the engine's outbox."""
        if len(rows):
            self._backlog.put(rows)
            urgent = ((rows[:, image.OP] == image.LOOKUP) | (rows[:, image.CONFIRM] != 0)).any()
            self._schedule(US if urgent else STORE_FLUSH_NS)

    def use_keys(self, keys: Rows) -> None:
        """Name and seal records by other keys, those of other secrets, once nothing is under way."""
        self._new_keys = keys
        self._loop.after(US, self._move_if_due)

    def kill(self) -> None:
        """The process is gone, and its connection with it: what has not come through yet never will."""
        self.dead = True
        if self._connection is not None:
            self._server.leave(self._connection)

    def resume(self) -> None:
        """The node runs again after a hang: sessions that wait here may be another node's by now."""
        self.stopped = False
        self._backlog.compare()
        unheard, self._unheard = self._unheard, []
        for each in unheard:
            each()
        self._judge_silence()
        self._move_if_due()
        self._schedule(US)

    # Connecting ----------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self.dead:
            return
        if self.stopped:
            self._unheard.append(self._connect)
            return
        self._least = self._clock.least_ns(self._now)
        greeting = self._protocol.greeting(self._least)
        connection = self._connection = self._server.connect(self)
        self._asked = self._loop.now
        connection.send(lambda: (self._server.execute(greeting), False))
        self._loop.after(_TIMEOUT, self._expect_greeting, connection)

    def _expect_greeting(self, connection: Connection) -> None:
        if connection is self._connection and not self._is_welcome:
            self._disconnect()

    def _welcome(self, answers: list[Any]) -> None:
        try:
            greeting = self._protocol.greet(answers)
        except (ErrorReply, ProtocolError):
            self._disconnect()
            return
        self._is_welcome, self._attempts, self._heard = True, 0, self._loop.now
        self._confirmed, self._is_due = self._asked, False
        self._backlog.keep_writes(STORE_QUEUE_ROWS)
        self._clock.count_connection()
        self._hear_time(greeting.time_ns, self._least if greeting.is_agreed else 0, self._asked)
        self._move_if_due()
        self._schedule(US)

    def cut_off(self, connection: Connection) -> None:
        """The server has closed a connection."""
        if self.stopped:
            self._unheard.append(lambda: self.cut_off(connection))
        elif connection is self._connection and not self.dead:
            self._disconnect()

    def _disconnect(self) -> None:
        """Give the connection up, or an attempt at one; the next follows after a pause that grows."""
        assert self._connection is not None
        self._server.leave(self._connection)
        self._connection, self._is_welcome = None, False
        for pipeline in reversed(self._pipelines):  # of two changes of a session the later one is kept
            if not pipeline.late:
                self._fail(pipeline.batch.lookups)
            self._backlog.put_back(pipeline.batch.changes)
        self._pipelines.clear()
        self._fail(self._backlog.take_lookups())
        pause = min(STORE_RECONNECT_MIN_S * 2**self._attempts, STORE_RECONNECT_MAX_S)
        self._attempts = min(self._attempts + 1, 16)
        self._loop.after(int(pause * self._random.uniform(0.5, 1.0) * SECOND), self._connect)

    # Requests ------------------------------------------------------------------------------------------------

    def _schedule(self, delay: int) -> None:
        due = self._loop.now + delay
        if len(self._backlog) and (self._flushing < self._loop.now or due < self._flushing):
            self._flushing = due
            self._loop.at(due, self._flush, due)

    def _flush(self, due: int) -> None:
        if due != self._flushing or self.dead or self.stopped:
            return
        self._flushing = -1
        if not self._is_welcome:
            self._fail(self._backlog.take_lookups())
            return
        if not self._may_send():
            return
        while len(self._backlog) and len(self._pipelines) < PIPELINES_MAX:
            self._send(self._protocol.encoded(self._backlog.take(BATCH_ROWS), self._now_s))

    def _send(self, batch: StoreBatch, *, probes: bool = False, least: int = 0) -> None:
        assert self._connection is not None
        self._pipelines.append(_Pipeline(batch, self._loop.now, probes, least))
        server = self._server
        if probes:
            self._connection.send(lambda: (server.execute(batch.commands), False))
        else:
            self._connection.send(lambda: server.execute_batch(batch))
        self._loop.after(LOOKUP_DEADLINE_NS, self._judge_silence)

    def _ask_time(self) -> None:
        """And for the layout."""
        batch, least = self._protocol.room(1), self._clock.least_ns(self._now)
        self._protocol.probe(batch, least_ns=least)
        self._send(batch, probes=True, least=least)

    def _probe(self) -> None:
        if self.dead:
            return
        if self.stopped:
            self._unheard.append(self._probe)
            return
        if self._is_welcome and len(self._pipelines) < PIPELINES_MAX:
            self._ask_time()
        if self._refusals.is_due(self._loop.now):
            self._clock.offer_again()
            self._pass_on_time()
        self._loop.after(SECOND, self._probe)

    def _judge_silence(self) -> None:
        """While the server is silent beyond the look-up deadline nobody waits for it any longer."""
        if self.dead or self.stopped or not self._pipelines:
            return
        silent = self._loop.now - max(self._heard, self._pipelines[0].sent)
        if silent >= _TIMEOUT:
            self._disconnect()
            return
        if silent < LOOKUP_DEADLINE_NS:
            self._loop.after(LOOKUP_DEADLINE_NS - silent, self._judge_silence)
            return
        for pipeline in self._pipelines:
            if not pipeline.late:
                pipeline.late = True
                self._fail(pipeline.batch.lookups)
        self._fail(self._backlog.take_lookups())
        self._loop.after(_TIMEOUT - silent, self._judge_silence)

    # Answers -------------------------------------------------------------------------------------------------

    def heard(self, connection: Connection, answer: Any) -> None:
        """The server answers the greeting, or the oldest pipeline."""
        if self.dead:
            return
        if self.stopped:
            self._unheard.append(lambda: self.heard(connection, answer))
        elif connection is self._connection:
            if self._is_welcome:
                self._heard = self._loop.now
                self._settle(answer)
            else:
                self._welcome(answer)

    def _settle(self, answer: Any) -> None:
        pipeline = self._pipelines.popleft()
        batch = pipeline.batch
        decoded = self._protocol.decode(batch, b"".join(map(reply_bytes, answer)), self._now_s)
        if pipeline.probes:
            if batch.told_ns:
                self._hear_time(batch.told_ns, pipeline.least, pipeline.sent)
            self._hear(batch.said, pipeline.sent)
            self._schedule(US)
            return
        self._backlog.put_back(decoded.again)
        if len(decoded.unwritten):
            self._note_refusal(len(decoded.unwritten))
        rows = decoded.answers
        if pipeline.late:
            asked = np.isin(rows[:, image.OP], (image.FOUND, image.MISSING, image.REFUSED, image.FAILED))
            rows = rows[~asked]
        if len(rows):
            self._deliver(rows)
        self._move_if_due()
        self._schedule(US)

    def _fail(self, rows: Rows) -> None:
        if len(rows):
            rows = rows.copy()
            rows[:, image.OP] = image.FAILED
            self._loop.after(US, self._give, rows)

    def _give(self, rows: Rows) -> None:
        if self.stopped:
            self._unheard.append(lambda: self._give(rows))
        elif not self.dead:
            self._deliver(rows)

    # The layout ----------------------------------------------------------------------------------------------

    def _may_send(self) -> bool:
        """Whether it is known where records lie; asks, if that was too long ago."""
        if self._loop.now - self._confirmed > LAYOUT_LEASE_NS:
            if not any(pipeline.probes for pipeline in self._pipelines):
                self._ask_time()
            return False
        self._move_if_due()
        return not self._is_due and self._new_keys is None

    def _hear(self, said: bytes | None, asked: int) -> None:
        self._protocol.hear(said)
        self._confirmed = asked
        self._is_due = self._protocol.is_due(self._now_s)
        self._move_if_due()

    @property
    def _now(self) -> int:
        """What the clock goes by."""
        return self._loop.now + self._error

    @property
    def _now_s(self) -> int:
        return self._clock.seconds(self._now)

    def _move_if_due(self) -> None:
        """Move to the places that hold now, once nothing is under way."""
        if self.dead or self.stopped or self._pipelines or not (self._is_due or self._new_keys is not None):
            return
        keys, self._new_keys, self._is_due = self._new_keys, None, False
        if keys is not None:
            self._backlog.use_keys(keys)
        if self._protocol.move(self._now_s, keys) and self.on_moved is not None:
            self.on_moved()
        self._schedule(US)

    # Time and refusals --------------------------------------------------------------------------------------

    def _hear_time(self, told: int, least: int, asked: int) -> None:
        self._clock.tell(told, least, asked + self._error, self._now)
        self._pass_on_time()

    def _pass_on_time(self) -> None:
        offered, self._offered = self._offered, int(self._words[state.CLOCK_CONNECTIONS])
        self._set_clock(int(self._words[state.CLOCK_OFFSET]) + self._error, self._offered != offered)

    def _note_refusal(self, count: int) -> None:
        """What the server refused it is offered again after a while."""
        self._unwritten += count
        self._refusals.note(self._unwritten, self._loop.now)
