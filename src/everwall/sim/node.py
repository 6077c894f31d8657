"""A firewall node: an engine, a receive queue, timers and a connection to the store."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np

from everwall.counters import Counter
from everwall.engine import Engine
from everwall.limits import BATCH_PACKETS, HEADROOM_BYTES
from everwall.session import image, state
from everwall.session.resync import RESTING, progress
from everwall.sim.loop import MS, SECOND, US, Loop
from everwall.sim.rulebook import Rulebook
from everwall.sim.storage import Rows
from everwall.sim.storelink import StoreLink
from everwall.verdict import Verdict
from everwall.wire import meta as m
from everwall.wire.meta import make_batch

POLL = 30 * US
QUEUE_PACKETS = 256
"""The socket buffer: what a hanging node lets pile up."""
TIMER = 2 * SECOND
"""How often a quiet node lets time pass; the ageing hand makes up for what it missed."""
_FORWARD = int(Verdict.FORWARD)
_VERDICTS = {int(which): which for which in Verdict}
_ANSWERED = [
    int(Counter.LOOKUP_HITS),
    int(Counter.LOOKUP_MISSES),
    int(Counter.LOOKUP_FAILURES),
    int(Counter.RECORDS_REFUSED),
]


class NodeWitness(Protocol):
    """Who is told what an engine takes in and lets out."""

    def arrived(self, node: Node, outer: bytes) -> None: ...

    def forwarded(self, node: Node, outer: bytes) -> None: ...

    def withheld(self, node: Node, outer: bytes, verdict: Verdict) -> None: ...

    def made(self, node: Node, outer: bytes) -> None: ...

    def answered(self, node: Node, rows: Rows) -> None: ...

    def stepped(self, node: Node, asked: Rows) -> None: ...


class Node:
    """One life of a node: a node that is started again after its death is another one."""

    def __init__(
        self,
        loop: Loop,
        name: str,
        address: int,
        engine: Engine,
        clock_offset: int,
        rulebook: Rulebook,
        connect: Callable[[Callable[[Rows], None], Callable[[int, bool], None]], StoreLink],
        send: Callable[[int, bytes], None],
        witness: NodeWitness,
    ) -> None:
        """``connect`` makes the link to the store, from what takes its answers and what takes its time."""
        self.name = name
        self.address = address
        self.engine = engine
        self.alive = True
        self.hung = False
        self.rulebooks = [(loop.now, rulebook)]
        """Policies in the order they came into force."""
        self.arrived = 0
        self.refused = 0
        """Packets that found the node dead or its queue full."""
        self.abandoned = 0
        """Packets that died with it in its queue."""
        self.forwarded = 0
        self.made = 0
        """Packets of its own: answers to refused ones."""
        self.ended_events = 0
        self.takeover_events = 0
        self.found = 0
        self._loop = loop
        self._clock_offset = clock_offset
        self._send = send
        self._witness = witness
        self._queue: deque[bytes] = deque()
        self._polling = False
        self._batch = make_batch(BATCH_PACKETS)
        self._due = 0
        self.link = connect(self._replied, self._told_time)
        self.link.on_moved = self._moved
        self._set_timer()

    @property
    def local_now(self) -> int:
        """The node's own monotonic clock."""
        return self._loop.now + self._clock_offset

    @property
    def queued(self) -> int:
        """Packets that wait to be received."""
        return len(self._queue)

    # Faults and changes ------------------------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL: no last words."""
        self.alive = False
        self.link.kill()
        self.abandoned += len(self._queue)
        self._queue.clear()

    def hang(self) -> None:
        """SIGSTOP."""
        self.hung = True
        self.link.stopped = True

    def resume(self) -> None:
        """SIGCONT."""
        if self.alive and self.hung:
            self.hung = False
            self.engine.stood_still(self.local_now)
            self.link.resume()
            self._wake()
            self._set_timer()

    def _told_time(self, offset: int, resync: bool) -> None:
        """Store time minus the simulation's; ``resync``: the store may lack what it was told."""
        clock = self.engine.sessions_state.clock
        clock[state.CLOCK_OFFSET] = offset - self._clock_offset
        clock[state.CLOCK_GUESSED] = 0
        if resync:
            clock[state.CLOCK_CONNECTIONS] += 1
            self._set_timer()

    def _moved(self) -> None:
        """Records are written to another place from now on: the live sessions are offered again."""
        self.engine.sessions_state.clock[state.CLOCK_LAYOUT] += 1
        self._set_timer()

    @property
    def store_time(self) -> int:
        """Store time as this node believes it to be, ns."""
        return self.local_now + int(self.engine.sessions_state.clock[state.CLOCK_OFFSET])

    @property
    def is_whole(self) -> bool:
        """Whether the node says that the store has all its sessions."""
        facts = progress(self.engine.sessions_state)
        whole = facts["resync_percent"] == 100 and facts["unsynced_sessions"] == 0
        return self.link.connected and not self.link.refused and whole

    def replace_policy(self, rulebook: Rulebook) -> None:
        """Decide new and restored sessions by other rules."""
        self.rulebooks.append((self._loop.now, rulebook))
        self.engine.replace_policy(rulebook.compiled())

    # Packets -------------------------------------------------------------------------------------------------

    def receive(self, outer: bytes) -> None:
        """A GENEVE packet comes in from the network."""
        self.arrived += 1
        if not self.alive or len(self._queue) >= QUEUE_PACKETS:
            self.refused += 1
            return
        self._queue.append(outer)
        self._wake()

    def _wake(self) -> None:
        if self._queue and not self._polling and not self.hung:
            self._polling = True
            self._loop.after(POLL, self._poll)

    def _poll(self) -> None:
        self._polling = False
        if not self.alive or self.hung:
            return
        data, meta = self._batch
        count = min(len(self._queue), BATCH_PACKETS)
        taken = [self._queue.popleft() for _ in range(count)]
        meta[:count] = 0
        for i, outer in enumerate(taken):
            self._witness.arrived(self, outer)
            end = HEADROOM_BYTES + len(outer)
            data[i, HEADROOM_BYTES:end] = np.frombuffer(outer, np.uint8)
            meta[i, m.START] = HEADROOM_BYTES
            meta[i, m.END] = end
        self.engine.receive(self._batch, count, self.local_now)
        for i, verdict in enumerate(meta[:count, m.VERDICT].tolist()):
            if verdict == _FORWARD:
                self._forward(data[i, meta[i, m.START] : meta[i, m.END]].tobytes())
            else:
                self._witness.withheld(self, taken[i], _VERDICTS[verdict])
        self._stepped()
        self._wake()

    def _forward(self, outer: bytes) -> None:
        self.forwarded += 1
        self._witness.forwarded(self, outer)
        self._send(self.address, outer)

    def _replied(self, rows: Rows) -> None:
        self.found += int((rows[:, image.OP] == image.FOUND).sum())
        self._witness.answered(self, rows)
        for _, outer in self.engine.inbox(rows, self.local_now):
            self._forward(outer)
        self._stepped()

    def _stepped(self) -> None:
        for outer in self.engine.made():
            self.made += 1
            self._witness.made(self, outer)
            self._send(self.address, outer)
        rows = self.engine.outbox()
        self.link.push(rows)
        self._witness.stepped(self, rows)
        if self._asking:
            self._set_timer()

    @property
    def _asking(self) -> bool:
        """Whether look-ups are under way or packets wait, whose deadlines have to be kept, or a resync goes on."""
        sessions = self.engine.sessions_state
        counters, words = sessions.counters, sessions.words
        return bool(
            counters[Counter.LOOKUPS] > counters[_ANSWERED].sum()
            or counters[Counter.PARKED]
            or words[state.RESYNC] != RESTING
            or words[state.CONNECTIONS] != sessions.clock[state.CLOCK_CONNECTIONS]
            or words[state.LAYOUT] != sessions.clock[state.CLOCK_LAYOUT]
        )

    # Time ----------------------------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        wait = TIMER
        if self._asking:
            wait = min(wait, max(self.engine.next_timer() - self.local_now, MS))
        due = self._loop.now + wait
        if self._due <= self._loop.now or due < self._due:
            self._due = due
            self._loop.at(due, self._pass_time, due)

    def _pass_time(self, due: int) -> None:
        if not self.alive or self.hung or due != self._due:
            return
        for _, outer in self.engine.handle_timer(self.local_now):
            self._forward(outer)
        self.read_events()
        self._stepped()
        self._set_timer()

    def read_events(self) -> None:
        """Count what the engine has logged since the last time."""
        events = self.engine.events()
        ended = np.isin(events[:, state.EVENT_KIND], (state.EVENT_ENDED, state.EVENT_ENDED_UNLOGGED))
        self.ended_events += int(ended.sum())
        self.takeover_events += int((events[:, state.EVENT_KIND] == state.EVENT_TAKEN_OVER).sum())
