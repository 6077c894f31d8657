"""The thread that carries requests to a Redis or Valkey server and brings its answers back.

The worker pushes rows into the request ring and writes to an eventfd; this thread takes whatever is there,
sends it in one pipeline and pushes the answers into the reply ring. Nothing the store does or fails to do
holds the worker up:

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
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from everwall.limits import (
    CLUSTER_SECRET_BYTES_MIN,
    LOOKUP_DEADLINE_NS,
    MS_NS,
    REPLY_RING_ROWS,
    REQUEST_RING_ROWS,
    SECOND_NS,
    STORE_BATCH_RECORDS,
    STORE_FLUSH_NS,
    STORE_RECONNECT_MAX_S,
    STORE_RECONNECT_MIN_S,
    STORE_TIMEOUT_S,
)
from everwall.rings import Ring, make_ring, ring_length, ring_pop, ring_push
from everwall.session import image
from everwall.session.record import derive_keys
from everwall.store.backlog import Backlog
from everwall.store.connection import Arrival, Link, StoreConfig, connect, tls_context
from everwall.store.protocol import Command, ErrorReply, Protocol, Rows, StoreBatch, store_time_ns

__all__ = ["CLOCK_CONNECTIONS", "CLOCK_OFFSET", "RedisStore", "StoreConfig", "make_clock", "warm"]

CLOCK_OFFSET = 0
"""Index into ``clock``: store time minus monotonic time, nanoseconds."""
CLOCK_CONNECTIONS = 1
"""Index into ``clock``: connections made so far."""

_TIMEOUT_NS = int(STORE_TIMEOUT_S * SECOND_NS)
_PROBE_NS = SECOND_NS
_PIPELINES_MAX = 4
"""Pipelines under way at once: the server works on one while the next is being encoded."""
_RECONNECT_CODES = {"READONLY", "LOADING", "MASTERDOWN", "NOAUTH"}
"""Errors of a server that is not, or no longer, the one to speak to: the name is resolved anew."""

CLOCK_DRIFT_NS = 20 * MS_NS
"""A server's clock that moved by more than this was set, or has drifted: the offset is taken anew."""
_COUNTED = {
    "found": image.FOUND,
    "missing": image.MISSING,
    "refused": image.REFUSED,
    "failed": image.FAILED,
    "written": image.WRITTEN,
    "lost": image.LOST,
}


def make_clock() -> npt.NDArray[np.int64]:
    """The array in which the thread tells store time and the number of connections made."""
    return np.zeros(2, np.int64)


@dataclass
class _Pipeline:
    """A batch on its way."""

    batch: StoreBatch
    sent_ns: int
    probe: bool
    replies: list[Any] = field(default_factory=list)
    late: bool = False
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
        self._context = tls_context(config)
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
        self._pipelines: deque[_Pipeline] = deque()
        self._backlog = Backlog()
        self._taken = np.zeros((REPLY_RING_ROWS, image.COLUMNS), np.int64)
        self._unpushed: list[Rows] = []
        self._first_ns = 0
        """When what waits in the backlog began to."""
        self._attempt_at_ns = 0
        self._attempts = 0
        self._heard_ns = 0

        self._server: str | None = None
        self._rtt_ns = 0
        self._skew_ns = 0
        self._last_error: str | None = None
        self._counts: Counter[str] = Counter()

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
        counts = self._counts
        return {
            "connected": self._link is not None,
            "endpoint": f"{self._config.host}:{self._config.port}",
            "server": self._server,
            "tls": self._config.tls,
            "auth": self._config.password is not None,
            "rtt_ms": round(self._rtt_ns / MS_NS, 3),
            "skew_ms": round(self._skew_ns / MS_NS, 1),
            "connections": int(self._clock[CLOCK_CONNECTIONS]),
            "queue": len(self._backlog) + int(ring_length(self._requests)),
            "pipelines": len(self._pipelines),
            "looked_up": counts["looked_up"],
            "found": counts["found"],
            "missing": counts["missing"],
            "refused": counts["refused"],
            "failed": counts["failed"],
            "unwritten": counts["unwritten"],
            "written": counts["written"],
            "deleted": counts["deleted"],
            "lost": counts["lost"],
            "dropped": counts["dropped"],
            "errors": counts["errors"],
            "last_error": self._last_error,
        }

    # The thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._finished():
                self._wait()
                self._take_requests()
                if self._link is None:
                    self._without_store()
                else:
                    self._with_store(self._link)
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

    def _wait(self) -> None:
        """Until there is something to do: a request, a reply, a new connection, or time passing."""
        now = time.monotonic_ns()
        if self._unpushed:
            wait_ns = MS_NS
        elif self._link is None:
            wait_ns = SECOND_NS if self._connector else self._attempt_at_ns - now
        elif self._pipelines:
            patience_ns = _TIMEOUT_NS if self._pipelines[0].late else LOOKUP_DEADLINE_NS
            wait_ns = patience_ns - self._silence_ns(now)
        else:
            wait_ns = self._heard_ns + _PROBE_NS - now
        if self._stop_at_ns is not None:
            wait_ns = min(wait_ns, self._stop_at_ns - now, 10 * MS_NS)
        gathers = self._link is not None and self._gathers(now)
        if gathers:
            wait_ns = min(wait_ns, STORE_FLUSH_NS)
        poll = select.poll()
        if not gathers:  # else the worker's next request would wake us for itself alone
            poll.register(self._wake_fd_store, select.POLLIN)
        if self._link is not None:
            poll.register(self._link, select.POLLIN | (select.POLLOUT if self._link.wants_to_send else 0))
        for descriptor, _ in poll.poll(max(0, -(-wait_ns // MS_NS))):
            if descriptor == self._wake_fd_store:
                os.eventfd_read(descriptor)

    def _gathers(self, now: int) -> bool:
        """Whether what waits may wait for more: writes alone, few of them, and none for STORE_FLUSH_NS yet.

        A pipeline costs about as much as fifty records in it.
        """
        waiting = len(self._backlog)
        return (
            0 < waiting < STORE_BATCH_RECORDS
            and not self._backlog.has_lookups
            and now - self._first_ns < STORE_FLUSH_NS
            and self._stop_at_ns is None
        )

    def _take_requests(self) -> None:
        """Move requests out of the ring; while connected only as many as there is room for, so that the
        worker sees how full it is, otherwise all, so that look-ups are answered."""
        while self._link is None or len(self._backlog) < REQUEST_RING_ROWS:
            count = int(ring_pop(self._requests, self._taken))
            if not count:
                break
            rows = self._taken[:count]
            if not len(self._backlog):
                self._first_ns = time.monotonic_ns()
            self._counts["looked_up"] += int((rows[:, image.OP] == image.LOOKUP).sum())
            self._backlog.add(rows)

    def _without_store(self) -> None:
        self._answer_failed(self._backlog.take_lookups())
        if len(self._backlog) > 2 * REQUEST_RING_ROWS:
            self._counts["dropped"] += self._backlog.keep_writes(REQUEST_RING_ROWS)
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
            arrival: Arrival | Exception = connect(self._config, self._context, greeting)
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
        self._set_clock(greeting.time_ns, arrival.monotonic_ns)
        self._clock[CLOCK_CONNECTIONS] += 1
        self._counts["dropped"] += self._backlog.keep_writes(REQUEST_RING_ROWS)
        self._with_store(arrival.link)

    def _set_clock(self, store_ns: int, monotonic_ns: int) -> None:
        self._clock[CLOCK_OFFSET] = store_ns - monotonic_ns
        self._skew_ns = store_ns - monotonic_ns - (time.time_ns() - time.monotonic_ns())

    def _store_time_s(self) -> int:
        return int((time.monotonic_ns() + int(self._clock[CLOCK_OFFSET])) // SECOND_NS)

    def _with_store(self, link: Link) -> None:
        try:
            replies = link.receive()
            if replies:
                self._heard_ns = time.monotonic_ns()
                self._take_replies(replies)
            else:
                self._judge_silence()
            while len(self._backlog) and len(self._pipelines) < _PIPELINES_MAX:
                if self._gathers(time.monotonic_ns()):
                    break
                rows = self._backlog.take(STORE_BATCH_RECORDS)
                self._first_ns = time.monotonic_ns()
                self._send(link, self._protocol.encode(rows, self._store_time_s()))
            if not self._pipelines and time.monotonic_ns() - self._heard_ns >= _PROBE_NS:
                self._send(link, self._protocol.probe(), probe=True)
            link.flush()
        except Exception as error:
            # Whatever a server says or does not say, this thread goes on.
            self._disconnect(_describe(error))

    def _send(self, link: Link, batch: StoreBatch, probe: bool = False) -> None:
        self._pipelines.append(_Pipeline(batch, time.monotonic_ns(), probe))
        link.send(batch.data)

    def _take_replies(self, replies: list[Any]) -> None:
        taken = 0
        while taken < len(replies):
            if not self._pipelines:
                raise ConnectionError(f"the server answered what nobody asked: {replies[taken]!r}")
            pipeline = self._pipelines[0]
            if not pipeline.replies:
                self._rtt_ns += (self._heard_ns - pipeline.sent_ns - self._rtt_ns) // 8
            part = replies[taken : taken + len(pipeline.batch) - len(pipeline.replies)]
            if ErrorReply in set(map(type, part)):
                for reply in part:
                    if isinstance(reply, ErrorReply) and reply.code in _RECONNECT_CODES:
                        raise reply
            pipeline.replies += part
            taken += len(part)
            if len(pipeline.replies) == len(pipeline.batch):
                self._finish(pipeline)
                self._pipelines.popleft()

    def _finish(self, pipeline: _Pipeline) -> None:
        if pipeline.probe:
            now = time.monotonic_ns()
            self._watch_clock(store_time_ns(pipeline.replies[0]), (pipeline.sent_ns + now) // 2)
            return
        decoded = self._protocol.decode(pipeline.batch, pipeline.replies, self._store_time_s())
        for error in decoded.errors:
            self._note_error(str(error))
        rows, asked = decoded.rows, decoded.operations
        if pipeline.late:
            rows, asked = rows[asked != image.LOOKUP], asked[asked != image.LOOKUP]
        self._counts["deleted"] += int(((asked == image.DELETE) & (rows[:, image.OP] == image.WRITTEN)).sum())
        self._counts["unwritten"] += len(decoded.unwritten)
        self._answer(rows)
        self._backlog.put_back(decoded.again)

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
                pipeline.late = True
                rows = pipeline.batch.rows
                self._answer_failed(rows[rows[:, image.OP] == image.LOOKUP])
        self._answer_failed(self._backlog.take_lookups())

    def _silence_ns(self, now: int) -> int:
        return now - max(self._heard_ns, self._pipelines[0].sent_ns)

    def _watch_clock(self, store_ns: int, monotonic_ns: int) -> None:
        """Follow the server's clock when it was set, but not the jitter of the network."""
        drift_ns = store_ns - monotonic_ns - int(self._clock[CLOCK_OFFSET])
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
            self._link.close()
            self._link = None
        for pipeline in reversed(self._pipelines):  # of two changes of a session the later one is kept
            rows = pipeline.batch.rows
            lookups = rows[:, image.OP] == image.LOOKUP
            if not pipeline.late:
                self._answer_failed(rows[lookups])
            self._backlog.put_back(rows[~lookups])
        self._pipelines.clear()
        self._answer_failed(self._backlog.take_lookups())

    def _note_error(self, text: str) -> None:
        self._counts["errors"] += 1
        self._last_error = text

    # Answers ------------------------------------------------------------------------------------------

    def _answer_failed(self, rows: Rows) -> None:
        if len(rows):
            rows = rows.copy()
            rows[:, image.OP] = image.FAILED
            self._answer(rows)

    def _answer(self, rows: Rows) -> None:
        outcomes = np.bincount(rows[:, image.OP], minlength=image.LOST + 1).tolist()
        for name, outcome in _COUNTED.items():
            self._counts[name] += outcomes[outcome]
        if len(rows):
            self._unpushed.append(rows)

    def _push(self) -> None:
        """Hand the answers over; what finds the ring full waits here and is tried again."""
        if not self._unpushed:
            return
        rows = np.concatenate(self._unpushed)
        pushed = int(ring_push(self._replies, rows, len(rows)))
        self._unpushed = [rows[pushed:]] if pushed < len(rows) else []
        if pushed:
            os.eventfd_write(self._wake_fd_worker, 1)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def warm() -> None:
    """Compile what the thread calls: both ends of a ring, sealing a record and opening it."""
    ring = make_ring(2, image.COLUMNS)
    protocol = Protocol(derive_keys(bytes(CLUSTER_SECRET_BYTES_MIN)), buckets=1)
    rows = np.zeros((1, image.COLUMNS), np.int64)
    rows[0, image.OP] = image.WRITE_FIRST
    ring_push(ring, rows, len(rows))
    ring_length(ring)
    rows = rows[: ring_pop(ring, rows)]
    sealed = protocol.encode(rows, 0).commands[0][-1]
    rows[0, image.OP] = image.LOOKUP
    protocol.decode(protocol.encode(rows, 0), [sealed], 0)
