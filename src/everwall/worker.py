"""The worker: one compiled loop from port to port, entered once and left when told to stop.

    receive -> judge -> send -> answers of the store -> time -> sleep until something happens

Called for each batch from Python, the same kernels would wait for the interpreter lock as soon as
another thread is busy (milliseconds instead of microseconds); inside one loop that never takes the
lock they do not. Python threads reach the loop through rings, an eventfd and the control words only.
An idle worker sleeps in poll, at most POLL_MS_MAX, so that its heartbeat stays fresh.
"""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from everwall import pipeline
from everwall.engine import EngineConfig, drain_ring, make_state
from everwall.kernels import kernel
from everwall.limits import BATCH_PACKETS, MS_NS, POLL_MS_MAX, REPLY_RING_ROWS, STORE_BATCH_RECORDS
from everwall.policy.match import CompiledPolicy, allow_all
from everwall.ports.port import Port, descriptor, open_udp, receive, send
from everwall.ports.port import close as close_port
from everwall.rings import Ring, make_ring, ring_length, ring_pop, ring_push
from everwall.session import image, parking
from everwall.session.state import Sessions
from everwall.system import clear_signal, monotonic, poll_words, readable, signal, wait
from everwall.verdict import Verdict
from everwall.wire import meta as m
from everwall.wire.meta import Batch, make_batch

# Indices of the control words
STOP = 0  # set from outside: leave the loop
HEARTBEAT = 8  # CLOCK_MONOTONIC ns of the last pass, written by the loop
_CONTROL_WORDS = 16

_FORWARD = int(Verdict.FORWARD)
_TAIL = 8  # of a ring's index


class Loop(NamedTuple):
    """What the loop needs beside the data path's state and the port."""

    control: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]  # poll: port, then eventfd
    descriptors: npt.NDArray[np.int64]  # [0] our eventfd, [1] the store's
    scratch: npt.NDArray[np.int64]
    batch: Batch
    rows: npt.NDArray[np.int64]  # rows of the batch to send
    replies: Ring
    reply_rows: npt.NDArray[np.int64]


@kernel
def run(state_, port, loop):
    """Forward until the control word says stop."""
    sessions = state_.sessions
    batch, rows, control = loop.batch, loop.rows, loop.control
    limit = batch.meta.shape[0]
    while control[STOP] == 0:
        now = monotonic(loop.scratch)
        control[HEARTBEAT] = now
        asked = sessions.requests.index[_TAIL]

        count = receive(port, batch, limit)
        if count > 0:
            pipeline.receive(state_, batch, count, now)
            sending = 0
            for i in range(count):
                if batch.meta[i, m.VERDICT] == _FORWARD:
                    rows[sending] = i
                    sending += 1
            _send(sessions, port, batch, rows, sending)

        answered = ring_pop(loop.replies, loop.reply_rows)
        released = pipeline.answers(state_, loop.reply_rows, answered, now)
        released = pipeline.pass_time(state_, now, released)
        if released > 0:
            _send(sessions, port, sessions.arena, sessions.released, released)
            for k in range(released):
                parking.free_row(sessions, sessions.released[k])

        if sessions.requests.index[_TAIL] != asked:
            signal(loop.descriptors[1], loop.scratch)
        if count == 0 and answered == 0:
            _sleep(state_, loop, now)


@kernel
def _send(sessions, port, batch, rows, count):
    """Send, and count what the system refused by its name instead of as forwarded."""
    if send(port, batch, rows, count) == 0:
        return
    for k in range(count):
        verdict = batch.meta[rows[k], m.VERDICT]
        if verdict != _FORWARD:
            sessions.verdicts[_FORWARD] -= 1
            sessions.verdicts[verdict] += 1


@kernel
def _sleep(state_, loop, now):
    """Until a packet or an answer comes, the next timer is due, or POLL_MS_MAX has passed."""
    due = max(pipeline.next_timer(state_) - now, 0)
    timeout_ms = min((due + MS_NS - 1) // MS_NS, POLL_MS_MAX)
    if wait(loop.words, timeout_ms) > 0 and readable(loop.words, 1):
        clear_signal(loop.descriptors[0], loop.scratch)


class Worker:
    """One worker: its arrays, its port, and the thread that stays in ``run``.

    ``wake`` and ``store_wake`` are non-blocking eventfds: the store writes the first after pushing to
    ``replies``, the worker writes the second after pushing to ``state.sessions.requests``.
    """

    def __init__(
        self, config: EngineConfig, policy: CompiledPolicy, port: Port, wake: int, store_wake: int
    ) -> None:
        self.state = make_state(config, policy)
        self.port = port
        self.loop = Loop(
            control=np.zeros(_CONTROL_WORDS, np.int64),
            words=np.array(poll_words([descriptor(port), wake]), np.int64),
            descriptors=np.array([wake, store_wake], np.int64),
            scratch=np.zeros(4, np.int64),
            batch=make_batch(BATCH_PACKETS, config.frame_bytes),
            rows=np.zeros(BATCH_PACKETS, np.int64),
            replies=make_ring(REPLY_RING_ROWS, image.COLUMNS),
            reply_rows=np.zeros((STORE_BATCH_RECORDS, image.COLUMNS), np.int64),
        )
        self._thread: threading.Thread | None = None

    @property
    def sessions(self) -> Sessions:
        """The session arrays, for readers."""
        return self.state.sessions

    @property
    def heartbeat(self) -> int:
        """CLOCK_MONOTONIC ns at which the loop last passed."""
        return int(self.loop.control[HEARTBEAT])

    @property
    def running(self) -> bool:
        """True while the loop is running; it leaves by itself only when it fails."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Enter the loop in a thread of its own."""
        self.loop.control[STOP] = 0
        self._thread = threading.Thread(
            target=run, args=(self.state, self.port, self.loop), name="worker", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Leave the loop; returns when it has been left."""
        self.loop.control[STOP] = 1
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def warm() -> None:
    """Compile the loop by passing through it once."""
    config = EngineConfig(max_sessions=64, parked_packets=64, lookups=64, ring_rows=64)
    wake, store_wake = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    port = open_udp("127.0.0.1", geneve_port=0)
    try:
        worker = Worker(config, allow_all(), port, wake, store_wake)
        worker.loop.control[STOP] = 1
        run(worker.state, port, worker.loop)
        # What the threads beside the loop call.
        ring_push(worker.loop.replies, worker.loop.reply_rows, ring_length(worker.loop.replies))
        drain_ring(worker.sessions.events)
    finally:
        close_port(port)
        os.close(wake)
        os.close(store_wake)
