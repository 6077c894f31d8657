"""The thread that carries requests to a Redis or Valkey server and brings its answers back.

The worker pushes rows into the request ring and wakes this thread by an eventfd: at once when a packet waits
for an answer, else when there is enough for a pipeline or the flush window has passed. The thread takes
whatever is there, sends it in pipelines and pushes what the worker wants to know into the reply ring. While
only changes are under way whose answers nobody waits for, these are read when there is something else to do.
Nothing the store does or fails to do holds the worker up:

* every look-up is answered: FAILED at once while there is no connection, and FAILED after the look-up
  deadline when the server has not answered by then;
* writes wait, bounded and one for each session; across a lost connection they are kept (compared when they
  are sent at last), deletes are dropped, for somebody else may own the session by then;
* connections are made by a helper thread, because resolving a name cannot be given a time-out.

Errors are counted and the last one is shown; the thread itself never ends on one.
"""

from __future__ import annotations

import os
import queue
import random
import select
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from everwall.kernels import bound
from everwall.limits import (
    CLUSTER_SECRET_BYTES_MIN,
    LOOKUP_DEADLINE_NS,
    MS_NS,
    SECOND_NS,
    STORE_QUEUE_ROWS,
    STORE_RECONNECT_MAX_S,
    STORE_RECONNECT_MIN_S,
    STORE_TIMEOUT_S,
)
from everwall.rings import Ring, make_ring, ring_length, ring_push
from everwall.session import image
from everwall.session.record import derive_keys
from everwall.session.state import CLOCK_CONNECTIONS, CLOCK_OFFSET
from everwall.store.backlog import Backlog, collect, take
from everwall.store.connection import StoreConfig, login_of, tls_context
from everwall.store.link import Arrival, Link, connect
from everwall.store.protocol import Command, Protocol, ProtocolError, Rows, StoreBatch
from everwall.store.replies import AGAIN, DONE, FULL, GIVEN_ANSWERS, MORE, TALLY, UNWRITTEN, settle

__all__ = ["RedisStore", "StoreConfig", "make_clock", "warm"]

_TIMEOUT_NS = int(STORE_TIMEOUT_S * SECOND_NS)
_PROBE_NS = SECOND_NS
_PIPELINES_MAX = 4
"""Pipelines under way at once: the server works on one while the next is being encoded."""
_UNHURRIED_NS = 20 * MS_NS
"""Answers that nobody waits for are read after so long, if nothing else gives occasion to."""

CLOCK_DRIFT_NS = 20 * MS_NS
"""A server's clock that moved by more than this was set, or has drifted: the offset is taken anew."""


def make_clock() -> npt.NDArray[np.int64]:
    """The array in which the thread tells store time and the number of connections made."""
    return np.zeros(2, np.int64)


@dataclass
class _Pipeline:
    """A batch, and its way to the server and back."""

    batch: StoreBatch
    sent_ns: int = 0
    probe: bool = False
    hurried: bool = False
    """Somebody waits for an answer."""
    late: int = 0
    """Its look-ups were answered FAILED already."""


class RedisStore:
    """The store as a node has it: two rings, two eventfds and a thread.

    ``wake_fd_store`` is written to after requests were pushed, ``wake_fd_worker`` after replies were.
    ``clock`` comes from ``make_clock``. Raises ValueError when the CA certificate cannot be read.
    """

    def __init__(
        self,
        config: StoreConfig,
        keys: Rows,
        requests: Ring,
        replies: Ring,
        wake_fd_store: int,
        wake_fd_worker: int,
        clock: npt.NDArray[np.int64],
        buckets: int | None = None,
    ) -> None:
        self._config = config
        self._context, self._login = tls_context(config), login_of(config)
        self._protocol = (
            Protocol(keys, config.prefix) if buckets is None else Protocol(keys, config.prefix, buckets)
        )
        self._requests, self._replies = requests, replies
        self._wake_fd_store, self._wake_fd_worker = wake_fd_store, wake_fd_worker
        self._clock = clock

        self._thread = threading.Thread(target=self._run, name="everwall-store", daemon=True)
        self._connector: threading.Thread | None = None
        self._arrivals: queue.SimpleQueue[Arrival | Exception] = queue.SimpleQueue()
        self._stop_at_ns: int | None = None
        self._ended = False

        self._link: Link | None = None
        self._poll = select.poll()
        self._poll.register(wake_fd_store, select.POLLIN)
        self._listening: int | None = None
        """For what the connection is polled."""
        self._idle = [_Pipeline(self._protocol.room()) for _ in range(_PIPELINES_MAX)]
        self._pipelines: deque[_Pipeline] = deque()
        self._is_full = False
        """The worker has not taken all answers of the first pipeline yet."""
        self._hurried = 0
        """Pipelines under way for which somebody waits."""
        self._backlog = Backlog(keys)
        self._keys = keys
        self._unpushed: list[Rows] = []
        self._scratch = np.zeros((1, image.COLUMNS), np.int64)
        self._attempt_at_ns = 0
        self._attempts = 0
        self._heard_ns = 0
        self._probed_ns = 0

        self._server: str | None = None
        self._rtt_ns = 0
        self._offset_ns = 0
        """Store time minus monotonic time."""
        self._skew_ns = 0
        self._last_error: str | None = None
        self._tally = np.zeros(TALLY, np.int64)
        """By what became of requests; changes that were made and were deletes by DELETE as well."""
        self._looked_up = self._dropped = self._errors = 0
        self._collect, self._take, self._settle = self._bound()

    def _bound(self) -> tuple[Any, Any, Any]:
        """What is called for each pipeline, for the types of this store's own arrays."""
        pipeline, buffer = self._idle[0].batch.pipeline, np.zeros(1, np.uint8)
        keys, rings = self._keys, (self._replies, self._scratch, self._tally)
        return (
            bound(collect, self._backlog.queue, self._requests),
            bound(take, self._backlog.queue, pipeline.rows, pipeline.fields, 0),
            bound(settle, pipeline, 0, 0, buffer, 0, 0, keys, 0, *rings),
        )

    # The owner's side ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; it connects by itself, again and again."""
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> bool:
        """Send what waits, for ``timeout`` seconds at most, then end; True when the thread has ended.

        The eventfds may be closed once this has returned True.
        """
        self._stop_at_ns = time.monotonic_ns() + int(timeout * SECOND_NS)
        os.eventfd_write(self._wake_fd_store, 1)
        self._thread.join(timeout + STORE_TIMEOUT_S)
        connector = self._connector
        if connector is not None:
            connector.join(STORE_TIMEOUT_S)
        return not self._thread.is_alive() and (connector is None or not connector.is_alive())

    def status(self) -> dict[str, Any]:
        """What the operator sees; may be called from any thread."""
        tally = self._tally.tolist()
        return {
            "connected": self._link is not None,
            "endpoint": self._config.where,
            "server": self._server,
            "tls": self._config.tls,
            "auth": self._login.is_needed,
            "rtt_ms": round(self._rtt_ns / MS_NS, 3),
            "skew_ms": round(self._skew_ns / MS_NS, 1),
            "connections": int(self._clock[CLOCK_CONNECTIONS]),
            "queue": len(self._backlog) + int(ring_length(self._requests)),
            "pipelines": len(self._pipelines),
            "looked_up": self._looked_up,
            "found": tally[image.FOUND],
            "missing": tally[image.MISSING],
            "refused": tally[image.REFUSED],
            "failed": tally[image.FAILED],
            "unwritten": tally[UNWRITTEN],
            "written": tally[image.WRITTEN],
            "deleted": tally[image.DELETE],
            "lost": tally[image.LOST],
            "dropped": self._dropped,
            "errors": self._errors,
            "last_error": self._last_error,
        }

    # The thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._finished():
                readable = self._wait()
                self._looked_up += self._collect(self._backlog.queue, self._requests)
                if self._link is None:
                    self._without_store()
                else:
                    self._with_store(self._link, readable)
                self._push()
        finally:
            self._ended = True
            self._hang_up()
            self._push()

    def _finished(self) -> bool:
        if self._stop_at_ns is None:
            return False
        if time.monotonic_ns() >= self._stop_at_ns:
            return True
        idle = not self._pipelines and not len(self._backlog) and ring_length(self._requests) == 0
        return not self._unpushed and (idle or self._link is None)

    def _wait(self) -> bool:
        """Until there is something to do: a request, a reply, a new connection, or time passing.

        Returns whether the connection has something to read.
        """
        now = time.monotonic_ns()
        link, listening = self._link, 0
        if link is None:
            wait_ns = SECOND_NS if self._connector else self._attempt_at_ns - now
        elif len(self._backlog) and self._idle:
            wait_ns = 0
        else:
            wait_ns = self._probed_ns + _PROBE_NS - now
            if self._pipelines:
                patience_ns = _TIMEOUT_NS if self._pipelines[0].late else LOOKUP_DEADLINE_NS
                wait_ns = min(wait_ns, patience_ns - self._silence_ns(now))
            if self._has_time():
                wait_ns = min(wait_ns, _UNHURRIED_NS)
            else:
                listening = select.POLLIN
            if link.wants_to_send:
                listening |= select.POLLOUT
        if self._unpushed or self._is_full:
            wait_ns = min(wait_ns, MS_NS)
        if self._stop_at_ns is not None:
            wait_ns = min(wait_ns, self._stop_at_ns - now, 10 * MS_NS)
        if link is not None and listening != self._listening:
            self._listening = listening
            self._poll.register(link, listening)
        readable = False
        for descriptor, _ in self._poll.poll(max(0, -(-wait_ns // MS_NS))):
            if descriptor == self._wake_fd_store:
                os.eventfd_read(descriptor)
            else:
                readable = True
        return readable

    def _has_time(self) -> bool:
        """Whether only changes are under way of which nobody waits to hear, and the next can be sent all the same."""
        return bool(self._pipelines and self._idle) and not self._hurried

    def _without_store(self) -> None:
        self._answer_failed(self._backlog.take_lookups())
        if self._backlog.is_full:
            self._dropped += self._backlog.keep_writes(STORE_QUEUE_ROWS // 2)
            self._looked_up += self._backlog.collect(self._requests)
            self._answer_failed(self._backlog.take_lookups())
        if self._connector is None:
            if time.monotonic_ns() >= self._attempt_at_ns:
                greeting = self._protocol.greeting()
                self._connector = threading.Thread(
                    target=self._connect, args=(greeting,), name="everwall-store-connect", daemon=True
                )
                self._connector.start()
            return
        try:
            arrival = self._arrivals.get_nowait()
        except queue.Empty:
            return
        self._connector = None
        if isinstance(arrival, Exception):
            self._disconnect(_describe(arrival))
        else:
            self._welcome(arrival)

    def _connect(self, greeting: list[Command]) -> None:
        """In the helper thread. Whatever goes wrong is told to the store's thread, which tries again."""
        try:
            arrival: Arrival | Exception = connect(self._config, self._context, greeting, login=self._login)
        except Exception as error:
            arrival = error
        if self._ended:
            if isinstance(arrival, Arrival):
                arrival.link.close()
            return
        self._arrivals.put(arrival)
        os.eventfd_write(self._wake_fd_store, 1)

    def _welcome(self, arrival: Arrival) -> None:
        try:
            greeting = self._protocol.greet(arrival.replies)
        except Exception as error:
            arrival.link.close()
            self._disconnect(_describe(error))
            return
        self._link, self._server, self._rtt_ns = arrival.link, greeting.server, arrival.rtt_ns
        self._attempts, self._heard_ns = 0, time.monotonic_ns()
        self._probed_ns = self._heard_ns
        self._set_clock(greeting.time_ns, arrival.monotonic_ns)
        self._clock[CLOCK_CONNECTIONS] += 1
        self._dropped += self._backlog.keep_writes(STORE_QUEUE_ROWS)
        self._with_store(arrival.link, False)

    def _set_clock(self, store_ns: int, monotonic_ns: int) -> None:
        self._clock[CLOCK_OFFSET] = self._offset_ns = store_ns - monotonic_ns
        self._skew_ns = store_ns - monotonic_ns - (time.time_ns() - time.monotonic_ns())

    def _store_time_s(self) -> int:
        return (time.monotonic_ns() + self._offset_ns) // SECOND_NS

    def _with_store(self, link: Link, readable: bool) -> None:
        try:
            if not self._listen(link, readable):
                self._judge_silence()
            while self._idle and len(self._backlog):
                pipeline = self._idle.pop()
                batch = pipeline.batch
                rows, fields = batch.pipeline.rows, batch.pipeline.fields
                batch.count = self._take(self._backlog.queue, rows, fields, len(rows))
                self._protocol.encode(batch, self._store_time_s())
                self._send(link, pipeline, probe=False)
            if time.monotonic_ns() - self._probed_ns >= _PROBE_NS and self._idle:
                pipeline = self._idle.pop()
                self._protocol.probe(pipeline.batch)
                self._send(link, pipeline, probe=True)
            if link.wants_to_send:
                link.flush()
        except Exception as error:
            # Whatever a server says or does not say, this thread goes on.
            self._disconnect(_describe(error))

    def _listen(self, link: Link, readable: bool) -> bool:
        """Take all replies that have come; whether there were any.

        All, so that their pipelines are used again next, while they are in the cache.
        """
        heard = self._is_full
        while self._is_full or ((readable or self._pipelines) and link.receive()):
            heard, readable = True, False
            self._heard_ns = time.monotonic_ns()
            self._take_replies(link)
            if self._is_full:
                break
        return heard

    def _send(self, link: Link, pipeline: _Pipeline, *, probe: bool) -> None:
        pipeline.sent_ns, pipeline.probe, pipeline.late = time.monotonic_ns(), probe, 0
        pipeline.hurried = probe or pipeline.batch.is_awaited
        self._hurried += pipeline.hurried
        if probe:
            self._probed_ns = pipeline.sent_ns
        self._pipelines.append(pipeline)
        link.send(pipeline.batch.data)

    def _take_replies(self, link: Link) -> None:
        pipelines, tally = self._pipelines, self._tally
        now_s = self._store_time_s()
        while pipelines:
            pipeline = pipelines[0]
            batch = pipeline.batch
            link.start, found, again = self._settle(
                batch.pipeline,
                batch.count,
                pipeline.late,
                link.buffer,
                link.start,
                link.end,
                self._keys,
                now_s,
                self._replies,
                self._scratch,
                tally,
            )
            if again:
                self._backlog.put_back(batch.rows[batch.outcomes == AGAIN])
            if found == DONE:
                if pipeline.hurried:
                    self._take_time(pipeline)
                self._idle.append(pipelines.popleft())
            elif found == MORE or found == FULL:
                self._is_full = found == FULL
                return
            else:
                self._protocol.wonder(batch, link.buffer, link.start, link.end, found)
                self._note_error(str(batch.errors[-1]))
        self._is_full = False
        if link.start < link.end:
            data = bytes(link.buffer[link.start : min(link.end, link.start + 80)])
            raise ConnectionError(f"the server answered what nobody asked: {data!r}")

    def _take_time(self, pipeline: _Pipeline) -> None:
        """The answers of a pipeline for which somebody waited were read at once: they tell how far the server is."""
        self._hurried -= 1
        self._rtt_ns += (self._heard_ns - pipeline.sent_ns - self._rtt_ns) // 8
        if pipeline.probe:
            told_ns = pipeline.batch.told_ns
            if not told_ns:
                raise ProtocolError("TIME was answered by something else")
            self._watch_clock(told_ns, (pipeline.sent_ns + self._heard_ns) // 2)

    def _judge_silence(self) -> None:
        """While the server is silent beyond the look-up deadline nobody waits for it any longer.

        Only asked when the socket had nothing to read: time this thread was kept from the processor, or
        took to read an answer, is no silence of the server.
        """
        if not self._pipelines:
            return
        silent_ns = self._silence_ns(time.monotonic_ns())
        if silent_ns >= _TIMEOUT_NS:
            raise ConnectionError(f"the server did not answer within {STORE_TIMEOUT_S:g} s")
        if silent_ns < LOOKUP_DEADLINE_NS:
            return
        for pipeline in self._pipelines:
            if not pipeline.late:
                pipeline.late = 1
                self._answer_failed(pipeline.batch.lookups)
        self._answer_failed(self._backlog.take_lookups())

    def _silence_ns(self, now: int) -> int:
        return now - max(self._heard_ns, self._pipelines[0].sent_ns)

    def _watch_clock(self, store_ns: int, monotonic_ns: int) -> None:
        """Follow the server's clock when it was set, but not the jitter of the network."""
        drift_ns = store_ns - monotonic_ns - self._offset_ns
        if abs(drift_ns) > max(CLOCK_DRIFT_NS, 2 * self._rtt_ns):
            self._set_clock(store_ns, monotonic_ns)

    def _disconnect(self, reason: str) -> None:
        """Give the connection up, or an attempt at one; the next follows after a pause that grows."""
        self._hang_up()
        self._note_error(reason)
        pause_s = min(STORE_RECONNECT_MIN_S * 2**self._attempts, STORE_RECONNECT_MAX_S)
        self._attempts = min(self._attempts + 1, 16)
        # Nodes that lost the server together shall not come back together.
        self._attempt_at_ns = time.monotonic_ns() + int(pause_s * random.uniform(0.5, 1.0) * SECOND_NS)

    def _hang_up(self) -> None:
        """Close the connection; nobody knows what became of the pipelines under way."""
        if self._link is not None:
            if self._listening is not None:
                self._poll.unregister(self._link)
                self._listening = None
            self._link.close()
            self._link = None
        for pipeline in reversed(self._pipelines):  # of two changes of a session the later one is kept
            if not pipeline.late:
                self._answer_failed(pipeline.batch.lookups)
            self._backlog.put_back(pipeline.batch.changes)
        self._idle += self._pipelines
        self._pipelines.clear()
        self._is_full, self._hurried = False, 0
        self._answer_failed(self._backlog.take_lookups())

    def _note_error(self, text: str) -> None:
        self._errors += 1
        self._last_error = text

    # Answers ------------------------------------------------------------------------------------------

    def _answer_failed(self, rows: Rows) -> None:
        if len(rows):
            rows = rows.copy()
            rows[:, image.OP] = image.FAILED
            self._tally[image.FAILED] += len(rows)
            self._unpushed.append(rows)

    def _push(self) -> None:
        """Hand over the answers that did not come from the server, and wake the worker for those that it got.

        What finds the ring full waits here and is tried again.
        """
        if self._unpushed:
            rows = np.concatenate(self._unpushed)
            taken = int(ring_push(self._replies, rows, len(rows)))
            self._unpushed = [rows[taken:]] if taken < len(rows) else []
            self._tally[GIVEN_ANSWERS] += taken
        if self._tally[GIVEN_ANSWERS]:
            self._tally[GIVEN_ANSWERS] = 0
            os.eventfd_write(self._wake_fd_worker, 1)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def warm() -> None:
    """Compile what the thread calls: from the worker's ring to the bytes of a pipeline, and from replies back."""
    ring = make_ring(2, image.COLUMNS)
    keys = derive_keys(bytes(CLUSTER_SECRET_BYTES_MIN))
    protocol, backlog = Protocol(keys, buckets=1), Backlog(keys)
    rows = np.zeros((1, image.COLUMNS), np.int64)
    rows[0, image.OP] = image.WRITE_FIRST
    ring_push(ring, rows, len(rows))
    ring_length(ring)
    backlog.collect(ring)
    backlog.keep_writes(1)
    batch = protocol.room(1)
    batch.count = take(backlog.queue, batch.pipeline.rows, batch.pipeline.fields, 1)
    protocol.encode(batch, 0)
    protocol.encoded(batch.rows, 0)
    buffer, tally = np.zeros(1, np.uint8), np.zeros(TALLY, np.int64)
    protocol.read(batch, buffer, 0, 0, 0)
    settle(batch.pipeline, 1, 0, buffer, 0, 0, keys, 0, ring, rows, tally)
