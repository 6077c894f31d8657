"""The worker: one compiled loop from port to port, entered once and left when told to stop.

    receive -> read -> hand over what is another worker's -> judge -> send
    what others handed over -> judge -> send
    answers of the store -> time -> sleep until something happens

Called for each batch from Python, the same kernels would wait for the interpreter lock as soon as
another thread is busy (milliseconds instead of microseconds); inside one loop that never takes the
lock they do not. Python threads reach the loop through rings, an eventfd and the control words only.
An idle worker sleeps in poll, at most POLL_MS_MAX, so that its heartbeat stays fresh; at most
POLL_OFFLOADED_MS_MAX while the cut-through forwards for it, which wants to know that it lives.

The store's thread is woken by the worker alone: at once when a packet waits for its answer, else for a pipeline's
worth of requests or when the oldest has waited for the flush window. A pipeline costs about as much as a
hundred records in it, so that waking the thread for every few would cost more than all that is written; a worker
that is at its limit waits for a few milliseconds instead of one.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from everwall import pipeline
from everwall.counters import Counter
from everwall.engine import EngineConfig, drain_ring, make_state
from everwall.handover import (
    WORKER,
    WORKERS,
    Handover,
    arrivals,
    get_up,
    give_back,
    lie_down,
    make_handovers,
    next_to_wake,
    share_counts,
    spread,
)
from everwall.kernels import fence, inlined, kernel
from everwall.limits import (
    BATCH_PACKETS,
    BUSY_BATCH_PACKETS,
    MS_NS,
    POLL_MS_MAX,
    POLL_OFFLOADED_MS_MAX,
    REPLY_RING_ROWS,
    STORE_BATCH_RECORDS,
    STORE_FLUSH_BUSY_NS,
    STORE_FLUSH_NS,
)
from everwall.policy.match import CompiledPolicy, allow_all
from everwall.ports.port import Port, descriptor, open_udp, receive, send
from everwall.ports.port import close as close_port
from everwall.rematch import begin_rematch
from everwall.rings import Ring, make_ring, ring_length, ring_pop, ring_push, zeros_apart
from everwall.session import image, offload, parking, state
from everwall.session.state import Sessions
from everwall.session.table import SharedTable, fault_in
from everwall.system import clear_signal, monotonic, poll_words, readable, signal, wait
from everwall.verdict import Verdict
from everwall.wire import meta as m
from everwall.wire.meta import Batch, make_batch

# Indices of the control words
STOP = 0  # set from outside: leave the loop
_LEAVE = 1  # set from outside: leave it to the thread that waits for it
_NEXT = 2  # what that thread does, see below
_REMATCH = 3  # 1: it asks about the live sessions again
HEARTBEAT = 8  # CLOCK_MONOTONIC ns of the last pass, written by the loop
_LEFT = 9  # CLOCK_MONOTONIC ns at which the loop was left to another thread
_ENTERED = 10  # and at which that one had it
_INSIDE = 11  # 1: the thread that ``start`` began has come to the loop
_CONTROL_WORDS = 16
_NOBODY, _COMING, _WAITING, _ENTERING = 0, 1, 2, 3
_NEXT_WAIT_NS = 50 * MS_NS

_FORWARD = int(Verdict.FORWARD)
_OFFLOADED = int(Counter.OFFLOADED)
_ANSWERS_UNSENT = int(Counter.ANSWERS_UNSENT)
_HEAD, _TAIL = 0, 8  # of a ring's index

_WATCH_S = 0.0002
"""How often the thread that brings another one to the loop looks at it."""

# Indices of ``told``
_TOLD = 0  # tail of the request ring when the store was told last
_SINCE = 1  # ns: when the oldest request of which it was not told began to wait, 0 = there is none
_LOAD = 2  # packets of a batch, a moving average in 256ths


class Loop(NamedTuple):
    """What the loop needs beside the data path's state and the port."""

    control: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]  # poll: port, then eventfd
    descriptors: npt.NDArray[np.int64]  # [0] our eventfd, [1] the store's
    baton: npt.NDArray[np.int64]  # poll: the eventfd by which the loop is left to another thread
    baton_scratch: npt.NDArray[np.int64]
    leaving: npt.NDArray[np.int64]  # scratch of a thread whose loop is another one's already
    told: npt.NDArray[np.int64]  # what the store's thread was woken for
    scratch: npt.NDArray[np.int64]
    batch: Batch
    rows: npt.NDArray[np.int64]  # rows of the batch to send
    replies: Ring
    reply_rows: npt.NDArray[np.int64]
    handover: Handover


@kernel
def run(state_, port, loop):
    """Forward until the control word says stop, or another thread is to go on.

    A thread that comes to a loop which another one is in waits here until that one leaves it. It needs nothing of the
    interpreter any more by then, so that the packets wait for a thread to wake and not for Python.
    """
    if loop.control[_NEXT] == _COMING:
        if not _wait_for_the_loop(loop):
            loop.control[_NEXT] = _NOBODY
            return
        if loop.control[_REMATCH] != 0:
            begin_rematch(state_.sessions)
        loop.control[_ENTERED] = monotonic(loop.scratch)
        loop.control[_NEXT] = _NOBODY
    loop.control[_INSIDE] = 1
    while loop.control[STOP] == 0 and loop.control[_LEAVE] == 0:
        now = monotonic(loop.scratch)
        if not turn(state_, port, loop, now):
            _sleep(state_, loop, now)
    if loop.control[_LEAVE] != 0:
        loop.control[_LEFT] = monotonic(loop.scratch)
        loop.control[_LEAVE] = 0
        fence()  # all that this thread has written, before the other one goes on with it
        loop.control[_NEXT] = _ENTERING
        signal(loop.baton[0] & 0xFFFFFFFF, loop.leaving)


@kernel
def _wait_for_the_loop(loop):
    """Whether it is ours; all else of it is the other thread's meanwhile."""
    loop.control[_NEXT] = _WAITING
    while loop.control[STOP] == 0 and loop.control[_NEXT] == _WAITING:
        wait(loop.baton, _NEXT_WAIT_NS, loop.baton_scratch)
    ours = loop.control[_NEXT] == _ENTERING
    fence()  # nothing of the other thread's is read before it has left
    return ours


@kernel
def turn(state_, port, loop, now):
    """One pass of the loop, which never blocks; returns whether there was anything to do."""
    sessions, batch, handover = state_.sessions, loop.batch, loop.handover
    loop.control[HEARTBEAT] = now
    offload.stamp(sessions, now)  # before anything is judged: it may take all sessions back

    count = receive(port, batch, batch.meta.shape[0])
    for i in range(count):
        pipeline.read(state_, batch, i)
        loop.rows[i] = i
    if count > 0:
        loop.told[_LOAD] += ((count << 8) - loop.told[_LOAD]) >> 3
        _forward(state_, port, loop, batch, count, now)
    handed = 0
    if handover.own[WORKERS] > 1:
        handed = _take_handed_over(state_, port, loop, now)

    released = 0
    answered = ring_pop(loop.replies, loop.reply_rows)
    if answered > 0:
        released = pipeline.answers(state_, loop.reply_rows, answered, now)
    released = pipeline.pass_time(state_, now, released)
    if released > 0:
        _send(sessions, port, sessions.arena, sessions.released, released)
        for k in range(released):
            parking.free_row(sessions, sessions.released[k])
    if sessions.words[state.MADE] > 0:
        _send_made(sessions, port)

    tell_store(sessions, loop, now)
    return count > 0 or handed > 0 or answered > 0


@inlined
def _flush_window(loop):
    return STORE_FLUSH_BUSY_NS if loop.told[_LOAD] >= BUSY_BATCH_PACKETS << 8 else STORE_FLUSH_NS


@kernel
def tell_store(sessions, loop, now):
    """Wake the store's thread if it is time to."""
    told, index, words = loop.told, sessions.requests.index, sessions.words
    tail = index[_TAIL]
    if tail == told[_TOLD]:
        return
    if index[_HEAD] != tail:  # else it has found them by itself
        if told[_SINCE] == 0:
            told[_SINCE] = now
        enough = words[state.URGENT] != 0 or tail - told[_TOLD] >= STORE_BATCH_RECORDS
        if not enough and now - told[_SINCE] < _flush_window(loop):
            return
        signal(loop.descriptors[1], loop.scratch)
    words[state.URGENT] = 0
    told[_TOLD], told[_SINCE] = tail, 0


@kernel
def _forward(state_, port, loop, batch, count, now):
    """Judge the packets ``loop.rows[:count]``, read already, and send what may go; or hand them over."""
    rows = loop.rows
    if loop.handover.own[WORKERS] > 1:
        count = spread(state_.sessions, loop.handover, batch, rows, count, now)
    for k in range(count):
        pipeline.fetch(state_, batch, rows[k])
    sending = 0
    for k in range(count):
        row = rows[k]
        pipeline.judge(state_, batch, row, now)
        if batch.meta[row, m.VERDICT] == _FORWARD:
            rows[sending] = row
            sending += 1
    if sending > 0:
        _send(state_.sessions, port, batch, rows, sending)
    if state_.sessions.words[state.MADE] > 0:
        _send_made(state_.sessions, port)


@kernel
def _take_handed_over(state_, port, loop, now):
    """Forward what the other workers handed over, wake those that we gave some; returns how many packets came."""
    handover = loop.handover
    share_counts(state_.sessions, handover)
    taken = 0
    for giver in range(handover.own[WORKERS]):
        if giver != handover.own[WORKER]:
            count = arrivals(handover, giver, loop.rows)
            if count > 0:
                _forward(state_, port, loop, handover.packets, count, now)
                give_back(state_.sessions, handover, giver, count)
                taken += count
    owner = next_to_wake(handover)
    while owner >= 0:
        signal(handover.wakes[owner], loop.scratch)
        owner = next_to_wake(handover)
    return taken


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
def _send_made(sessions, port):
    """Send the packets of our own; what the system refuses of them is counted."""
    count = sessions.words[state.MADE]
    sessions.words[state.MADE] = 0
    sessions.counters[_ANSWERS_UNSENT] += send(port, sessions.made, sessions.made_rows, count)


@kernel
def _sleep(state_, loop, now):
    """Until a packet or an answer comes, another worker wakes us, or ``patience_ns`` has passed."""
    if lie_down(loop.handover):
        if wait(loop.words, patience_ns(state_, loop, now), loop.scratch) > 0 and readable(loop.words, 1):
            clear_signal(loop.descriptors[0], loop.scratch)
        get_up(loop.handover)


@kernel
def patience_ns(state_, loop, now):
    """How long nothing has to be done: until the next timer, and never so long that we would be taken for dead."""
    due = pipeline.next_timer(state_)
    if loop.told[_SINCE] != 0:
        due = min(due, loop.told[_SINCE] + _flush_window(loop))
    most = POLL_OFFLOADED_MS_MAX if state_.sessions.counters[_OFFLOADED] > 0 else POLL_MS_MAX
    return min(max(due - now, 0), most * MS_NS)


class Worker:
    """One worker: its arrays, its port, and the thread that stays in ``run``.

    ``wake`` and ``store_wake`` are non-blocking eventfds: the store writes the first after pushing to
    ``replies``, the worker writes the second after pushing to ``state.sessions.requests``.
    """

    def __init__(
        self,
        config: EngineConfig,
        policy: CompiledPolicy,
        port: Port,
        wake: int,
        store_wake: int,
        handover: Handover | None = None,
        shared: SharedTable | None = None,
        control_words: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """``handover``: this worker's of ``make_handovers``; None for a worker that is alone.

        ``shared`` and ``control_words``: for the cut-through, as in ``make_sessions``.
        """
        self.state = make_state(config, policy, shared, control_words)
        self.port = port
        self.loop = Loop(
            control=zeros_apart(_CONTROL_WORDS),
            words=np.array(poll_words([descriptor(port), wake]), np.int64),
            descriptors=np.array([wake, store_wake], np.int64),
            baton=zeros_apart(1),
            baton_scratch=zeros_apart(2),
            leaving=zeros_apart(2),
            told=zeros_apart(3),
            scratch=zeros_apart(4),
            batch=make_batch(BATCH_PACKETS, config.frame_bytes),
            rows=zeros_apart(BATCH_PACKETS),
            replies=make_ring(REPLY_RING_ROWS, image.COLUMNS),
            reply_rows=zeros_apart((STORE_BATCH_RECORDS, image.COLUMNS)),
            handover=handover or make_handovers([wake], config.frame_bytes)[0],
        )
        self._thread: threading.Thread | None = None
        self._core: int | None = None
        self._changing = threading.Lock()
        """Of the thread in the loop, and of what it is there with."""

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

    def start(self, core: int | None = None) -> None:
        """Enter the loop in a thread of its own, on one processor if ``core`` names it.

        Raises OSError when there is no memory for all sessions.
        """
        fault_in(self.state.sessions.table)
        self.loop.control[STOP] = self.loop.control[_LEAVE] = self.loop.control[_INSIDE] = 0
        self._core = core
        self._thread = self._begin(self.state)
        self._pin(self._thread)

    def _begin(self, state_: pipeline.State) -> threading.Thread:
        """A new thread in ``run``."""
        thread = threading.Thread(target=run, args=(state_, self.port, self.loop), name="worker", daemon=True)
        thread.start()
        return thread

    def _pin(self, thread: threading.Thread) -> None:
        if self._core is not None and thread.native_id is not None:
            os.sched_setaffinity(thread.native_id, {self._core})

    def replace_policy(self, policy: CompiledPolicy, rematch: bool = True) -> int:
        """Decide by another policy from the next batch on; live sessions are asked about again as the loop passes,
        or, without ``rematch``, stay as they are. As ``successor``, in one step.
        """
        with self.successor(policy, rematch) as go_on:
            return go_on()

    @contextlib.contextmanager
    def successor(self, policy: CompiledPolicy, rematch: bool = True) -> Iterator[Callable[[], int]]:
        """Prepare another policy: all that can fail is done, and nothing has changed. What is given puts it in force;
        it cannot fail, and returns for how many ns packets waited. Not called, everything stays as it is.

        Kernels know where their arrays are when they are entered. So another thread is brought to the loop with the
        new ones, and goes on where this one leaves: nothing is lost. Raises RuntimeError when no thread comes.
        """
        with self._changing:
            state_, former = self.state._replace(policy=policy), self._thread
            if former is None or not former.is_alive():
                yield lambda: self._decide_by(state_, rematch)
                return
            self.loop.control[_REMATCH] = int(rematch)
            baton = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            try:
                successor = self._bring(former, state_, baton)
                try:
                    yield lambda: self._succeed(former, successor, state_)
                finally:
                    if self._thread is not successor or self.loop.control[_NEXT] == _WAITING:
                        self._send_away(successor, baton)
            finally:
                self.loop.control[_NEXT] = _NOBODY
                os.close(baton)

    def _decide_by(self, state_: pipeline.State, rematch: bool) -> int:
        """Another policy for a loop that nobody is in."""
        self.state = state_
        if rematch:
            begin_rematch(self.sessions)
        return 0

    def _bring(self, former: threading.Thread, state_: pipeline.State, baton: int) -> threading.Thread:
        """Another thread at the loop, where it waits for ``baton`` and the former one's word."""
        control = self.loop.control
        while control[_INSIDE] == 0 and former.is_alive():  # or it would take itself for the other one
            time.sleep(_WATCH_S)
        self.loop.baton[0] = poll_words([baton])[0]
        control[_NEXT] = _COMING
        successor = self._begin(state_)
        problem = ""
        try:
            self._pin(successor)
        except OSError as error:
            problem = f": {error.strerror}"
        while control[_NEXT] == _COMING and successor.is_alive():
            time.sleep(_WATCH_S)
        if problem or control[_NEXT] != _WAITING:
            self._send_away(successor, baton)
            raise RuntimeError(f"no other thread could enter the worker's loop{problem}")
        return successor

    def _succeed(self, former: threading.Thread, successor: threading.Thread, state_: pipeline.State) -> int:
        """End the former thread and let the other one in; returns when the loop is its own."""
        control = self.loop.control
        # Before the former one goes, or whoever asks meanwhile is told that the worker has stopped.
        self._thread, self.state = successor, state_
        control[_LEAVE] = 1
        os.eventfd_write(int(self.loop.descriptors[0]), 1)
        former.join()
        if control[_NEXT] == _WAITING:
            return 0  # it had ended by itself and left nothing to anybody: the worker has stopped
        while control[_NEXT] != _NOBODY and successor.is_alive():
            time.sleep(_WATCH_S)
        return int(control[_ENTERED] - control[_LEFT])

    def _send_away(self, successor: threading.Thread, baton: int) -> None:
        """End a thread that waits for the loop."""
        self.loop.control[_NEXT] = _NOBODY
        os.eventfd_write(baton, 1)
        successor.join()

    def stop(self) -> None:
        """Leave the loop; returns when it has been left."""
        self.loop.control[STOP] = 1
        os.eventfd_write(int(self.loop.descriptors[0]), 1)
        with self._changing:
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
