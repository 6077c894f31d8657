"""The thread that carries requests to a Redis or Valkey store and brings its answers back.

The worker pushes rows into the request ring and wakes this thread by an eventfd: at once when a packet waits
for an answer, else when there is enough for a pipeline or the flush window has passed. The thread takes
whatever is there and has it sent in pipelines (``conversation``) over the link it belongs to (``router``,
``cluster``); what the worker wants to know comes into the reply ring (``answers``). Nothing the store does or fails
to do holds the worker up; what the store lacks although no connection was lost is offered again (``occasions.py``).
Errors are counted and the last one is shown; the thread itself never ends on one.
"""

from __future__ import annotations

import os
import select
import ssl
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from everwall.kernels import bound
from everwall.limits import CLUSTER_SECRET_BYTES_MIN, MS_NS, SECOND_NS, STORE_TIMEOUT_S
from everwall.rings import Ring, make_ring, ring_length, ring_push
from everwall.session import image
from everwall.session.record import derive_keys, fingerprints
from everwall.store import replies as told
from everwall.store.answers import Answers
from everwall.store.backlog import Backlog, collect, take, waits_behind
from everwall.store.clock import StoreClock
from everwall.store.cluster import ClusterRouter
from everwall.store.connection import Login, StoreConfig, login_of, tls_context
from everwall.store.conversation import Conversation, Trade
from everwall.store.lag import Lag
from everwall.store.link import Arrival, connect
from everwall.store.occasions import stood_still
from everwall.store.protocol import Command, Protocol, Rows
from everwall.store.replies import FROM_ELSEWHERE, TALLY, UNCONFIRMED, UNREPLICATED, UNWRITTEN, settle
from everwall.store.router import Router
from everwall.store.sentinels import Sentinels
from everwall.store.slots import homes_of, slots_of_buckets

__all__ = ["RedisStore", "StoreConfig", "make_clock", "warm"]


def make_clock() -> npt.NDArray[np.int64]:
    """The array in which the thread tells store time, connections made, moves to other places of records, and whether
    the time is a guess yet."""
    return np.zeros(4, np.int64)


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
        self._config, self._login = config, login_of(config)
        self._requests, self._wake_fd = requests, wake_fd_store
        self._answers, self._clock = Answers(replies, wake_fd_worker), StoreClock(clock)
        self._poll = select.poll()
        self._poll.register(wake_fd_store, select.POLLIN)
        self._by_descriptor: dict[int, Conversation] = {}
        self._trade = Trade(keys, self._answers, self._clock, self._poll, self._by_descriptor, wake_fd_store)
        self._sentinels: Sentinels | None = None
        self._router = self._make_router(keys, buckets)
        self._credentials: tuple[str, ...] | None = None
        """A new password that was not said on the links yet."""
        self._new_keys: Rows | None = None
        """Those of other secrets, which the links do not use yet."""
        self._looked_up = self._dropped = 0
        self._doubts = False
        """This thread stood still: what waits here and in the ring is to be compared."""
        self._lag = Lag()
        self._collect: Any = bound(collect, self._router.lobby.queue, requests)

        self._thread = threading.Thread(target=self._run, name="everwall-store", daemon=True)
        self._stop_at_ns: int | None = None

    def _make_router(self, keys: Rows, buckets: int | None) -> Router | ClusterRouter:
        config, context = self._config, tls_context(self._config)
        settings: dict[str, Any] = {} if buckets is None else {"buckets": buckets}
        protocol = Protocol(keys, config.prefix, clustered=bool(config.cluster), **settings)
        if config.cluster:
            return ClusterRouter(self._trade, protocol, config, context, self._login)
        if not config.sentinels:
            reach = partial(connect, config, context, login=self._login)
            return Router(self._trade, protocol, reach, config.wait_replicas)
        self._sentinels = Sentinels(config, context, self._login)
        reach = partial(_reach, config, context, self._login, self._sentinels)
        return Router(self._trade, protocol, reach, config.wait_replicas, self._sentinels.find)

    # The owner's side ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; it connects by itself, again and again."""
        self._thread.start()

    def begin_stop(self, timeout: float = 1.0) -> None:
        """Have it send what waits, for ``timeout`` seconds at most, and end; ``stop`` waits for that."""
        if self._stop_at_ns is None:
            self._stop_at_ns = time.monotonic_ns() + int(timeout * SECOND_NS)
            os.eventfd_write(self._wake_fd, 1)

    def stop(self, timeout: float = 1.0) -> bool:
        """Send what waits, for ``timeout`` seconds from ``begin_stop`` on, then end; True when all threads have ended.

        The eventfds may be closed once this has returned True.
        """
        self.begin_stop(timeout)
        assert self._stop_at_ns is not None
        until = self._stop_at_ns / SECOND_NS + STORE_TIMEOUT_S
        self._thread.join(max(until - time.monotonic(), 0))
        ended = self._router.join(until) and not self._thread.is_alive()
        if ended and self._sentinels is not None:
            self._sentinels.close()
        return ended

    def renew_login(self, username: str | None, password: str | None, file: Path | None = None) -> None:
        """Go in with another password (or user) from now on, on the links there are as well.

        May be called from any thread. Raises ConfigError for a file that holds no password.
        """
        self._login.renew(username, password, file)
        if self._login.is_needed:
            self._credentials = self._login.get_credentials()
            os.eventfd_write(self._wake_fd, 1)

    def use_keys(self, keys: Rows) -> None:
        """Name and seal records by other keys from now on, those of other secrets; may be called from any thread."""
        self._new_keys = keys
        os.eventfd_write(self._wake_fd, 1)

    @property
    def refused(self) -> tuple[int, int]:
        """Records that did not open, and genuine ones of another version."""
        tally = self._answers.tally
        return int(tally[image.REFUSED]), int(tally[image.FOREIGN])

    def watch(self) -> None:
        """See how old what waits is; called about ten times a second, from one thread."""
        router = self._router
        backlogs = [router.lobby, *(link.backlog for link in list(router.links))]
        self._lag.note(time.monotonic_ns(), backlogs, router.connected)

    def status(self) -> dict[str, Any]:
        """What the operator sees; may be called from any thread."""
        tally, router, trade = self._answers.tally.tolist(), self._router, self._trade
        links = list(router.links)
        return {
            "connected": router.connected,
            "endpoint": self._config.where,
            **router.status(),
            "server": next((link.server for link in links if link.server), None),
            "tls": self._config.tls,
            "auth": self._login.is_needed,
            "rtt_ms": round(max((link.rtt_ns for link in links), default=0) / MS_NS, 3),
            "skew_ms": round(self._clock.skew_ns(time.time_ns(), time.monotonic_ns()) / MS_NS, 1),
            "layout": str(self._router.protocol.layout),
            "secrets": ", ".join(fingerprints(trade.keys)),
            "connections": self._clock.connections,
            "queue": router.waiting + int(ring_length(self._requests)),
            "lag_ms": round(self._lag.ns(time.monotonic_ns()) / MS_NS, 1),
            "pipelines": sum(link.pipelines for link in links),
            "looked_up": self._looked_up,
            "found": tally[image.FOUND],
            "missing": tally[image.MISSING],
            "found_elsewhere": tally[FROM_ELSEWHERE],
            "refused": tally[image.REFUSED],
            "refused_version": tally[image.FOREIGN],
            "failed": tally[image.FAILED],
            "unwritten": tally[UNWRITTEN],
            "unreplicated": tally[UNREPLICATED],
            "unconfirmed": tally[UNCONFIRMED],
            "written": tally[image.WRITTEN],
            "refreshed": tally[image.WRITE] + tally[image.CLEAR],
            "deleted": tally[image.DELETE],
            "lost": tally[image.LOST],
            "dropped": trade.dropped,
            "errors": trade.errors,
            "last_error": trade.last_error,
        }

    # The thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        router, answers = self._router, self._answers
        warm()  # loading a kernel takes tens of milliseconds: none is left for when look-ups wait
        try:
            while not self._finished():
                self._wait()
                if self._new_keys is not None:
                    keys, self._new_keys = self._new_keys, None
                    router.use_keys(keys)
                self._looked_up += self._collect(router.lobby.queue, self._requests)
                if self._doubts:
                    self._compare()
                router.step()
                for link in router.links:
                    link.step()
                if self._credentials is not None:
                    self._authenticate()
                answers.push()
        finally:
            router.end()
            answers.push()

    def _finished(self) -> bool:
        if self._stop_at_ns is None:
            return False
        if time.monotonic_ns() >= self._stop_at_ns:
            return True
        if self._answers.wait or not self._router.is_idle:
            return False
        return ring_length(self._requests) == 0 or all(link.link is None for link in self._router.links)

    def _wait(self) -> None:
        """Until there is something to do: a request, a reply, a new connection, or time passing."""
        now = time.monotonic_ns()
        wait_ns = self._router.wait_ns(now)
        for link in self._router.links:
            wait_ns = min(wait_ns, link.prepare(now))
        if self._answers.wait:
            wait_ns = min(wait_ns, MS_NS)
        if self._trade.dropped != self._dropped:
            self._dropped, wait_ns = self._trade.dropped, 0  # there is room for more in the worker's ring
        if self._stop_at_ns is not None:
            wait_ns = min(wait_ns, self._stop_at_ns - now, 10 * MS_NS)
        for descriptor, _ in self._poll.poll(max(0, -(-wait_ns // MS_NS))):
            if descriptor == self._wake_fd:
                os.eventfd_read(descriptor)
            else:
                self._by_descriptor[descriptor].readable = True

        trade = self._trade
        before, trade.passed_ns = trade.passed_ns, time.monotonic_ns()
        if stood_still(before, wait_ns, trade.passed_ns):
            self._doubts, trade.resumed_ns = True, trade.passed_ns

    def _compare(self) -> None:
        """Whoever was new when this thread stood still may be another's by now."""
        self._router.lobby.compare()
        for link in self._router.links:
            link.compare()
        self._doubts = ring_length(self._requests) > 0

    def _authenticate(self) -> None:
        credentials, self._credentials = self._credentials, None
        for link in self._router.links:
            if credentials is not None and link.link is not None:
                link.authenticate(credentials)


def _reach(
    config: StoreConfig,
    context: ssl.SSLContext | None,
    login: Login,
    sentinels: Sentinels,
    greeting: list[Command],
) -> Arrival:
    """Connect to whom the Sentinels name; in a helper thread."""
    return connect(config, context, greeting, sentinels.find().primary, login)


def warm() -> None:
    """Compile, or load, what the thread calls: from the worker's ring to the bytes of a pipeline, and from replies
    back; what it calls for errors, gaps, replicas and clusters too."""
    ring = make_ring(2, image.COLUMNS)
    keys = derive_keys(bytes(CLUSTER_SECRET_BYTES_MIN))
    protocol, backlog = Protocol(keys, buckets=1), Backlog(keys)
    rows = np.zeros((1, image.COLUMNS), np.int64)
    rows[0, image.OP] = image.WRITE_FIRST
    ring_push(ring, rows, len(rows))
    ring_length(ring)
    backlog.collect(ring)
    backlog.put(rows)
    backlog.keep_writes(1)
    backlog.compare()
    waits_behind(backlog.queue, rows, np.zeros(1, np.int64), np.zeros(1, np.bool_))
    batch = protocol.room(1)
    batch.count = take(backlog.queue, batch.pipeline.rows, batch.pipeline.fields, 1)
    protocol.encode(batch, 0)
    protocol.encoded(batch.rows, 0)
    buffer, tally = np.zeros(1, np.uint8), np.zeros(TALLY, np.int64)
    protocol.read(batch, buffer, 0, 0, 0)
    told.command(batch.pipeline)
    told.advance(batch.pipeline, 0)
    slots_of_buckets(protocol, protocol.epochs[0])
    homes_of(rows, np.zeros(1, np.int64), protocol, [np.zeros(1, np.int64)])
    settle(batch.pipeline, 1, 0, 0, buffer, 0, 0, keys, 0, ring, rows, tally)
