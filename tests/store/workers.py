"""A worker whose side of a store's thread is played by the test."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

import numpy as np
import pytest

from everwall.engine import Engine, EngineConfig
from everwall.limits import MS_NS, SECOND_NS
from everwall.policy.match import allow_all
from everwall.rings import make_ring, ring_pop, ring_push
from everwall.session import image
from everwall.session.resync import progress
from everwall.store import connection, conversation
from everwall.store import link as links
from everwall.store.connection import StoreConfig
from everwall.store.redis import RedisStore, make_clock
from tests import packets
from tests.conversations import Connection
from tests.store.stores import KEYS, asking
from tests.store.stores import sessions as future_sessions

PATIENCE_S = 90.0
"""Nothing here takes this long; a loaded machine may, and a Sentinel that it held up does nothing for half a minute."""
_START_MS = int(time.time()) * 1000
"""Of all sessions, so that generations alone order them."""


def be_patient(patch: pytest.MonkeyPatch) -> None:
    """Let nobody give a server up, or a replica, that the machine holds up: what is asked is answered in the end."""
    patch.setattr(conversation, "LOOKUP_DEADLINE_NS", int(PATIENCE_S * SECOND_NS))
    patch.setattr(conversation, "_TIMEOUT_NS", int(PATIENCE_S * SECOND_NS))
    patch.setattr(conversation, "WAIT_REPLICAS_MS", int(PATIENCE_S * SECOND_NS) // MS_NS)
    patch.setattr(connection, "STORE_TIMEOUT_S", PATIENCE_S)
    patch.setattr(links, "STORE_DIAL_S", PATIENCE_S)


def sessions(count: int, **columns: int):
    """Sessions of today, as the server's clock will judge them."""
    return future_sessions(count, **{"START": _START_MS, "EXPIRY": int(time.time()) + 3720, **columns})


def eventually(condition: Callable[[], object], what: object) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"did not come about: {what}"
        time.sleep(0.005)


class Worker:
    """The other end of the rings."""

    def __init__(self, config: StoreConfig, reply_rows: int = 1 << 13) -> None:
        self.requests, self.replies = make_ring(1 << 15, image.COLUMNS), make_ring(reply_rows, image.COLUMNS)
        self.wake_store, self.wake_worker = os.eventfd(0), os.eventfd(0)
        self.clock = make_clock()
        self.prefix = config.prefix
        self.store = RedisStore(
            config, KEYS, self.requests, self.replies, self.wake_store, self.wake_worker, self.clock, 64
        )
        self.store.start()

    @property
    def status(self):
        return self.store.status()

    def connected(self) -> Worker:
        eventually(lambda: self.status["connected"], f"connection: {self.status}")
        return self

    def tell(self, rows, operation: int, confirm: int = image.PRIMARY) -> None:
        """Push requests; no answer is waited for."""
        rows = asking(rows, operation)
        rows[:, image.CONFIRM] = confirm
        assert ring_push(self.requests, rows, len(rows)) == len(rows)
        os.eventfd_write(self.wake_store, 1)

    def answers(self, count: int):
        """The next ``count`` answers, in the order of TAG."""
        got = np.zeros((0, image.COLUMNS), np.int64)
        out = np.zeros((1 << 13, image.COLUMNS), np.int64)
        deadline = time.monotonic() + PATIENCE_S
        while len(got) < count:
            left = deadline - time.monotonic()
            assert left > 0, f"{len(got)} of {count} answers came: {self.status}"
            if select.select([self.wake_worker], [], [], left)[0]:
                os.eventfd_read(self.wake_worker)
            popped = ring_pop(self.replies, out)
            got = np.concatenate([got, out[:popped]])
        assert len(got) == count
        return got[np.argsort(got[:, image.TAG], kind="stable")]

    def ask(self, rows, operation: int):
        self.tell(rows, operation)
        return self.answers(len(rows))

    def outcome(self, rows, operation: int) -> list[int]:
        return self.ask(rows, operation)[:, image.OP].tolist()

    def close(self) -> None:
        if self.store.stop(1.0):
            os.close(self.wake_store)
            os.close(self.wake_worker)


class Firewall:
    """An engine with a store's thread: a node as far as its sessions are concerned, its loop turned by the test."""

    def __init__(self, config: StoreConfig, max_sessions: int = 4096) -> None:
        settings = EngineConfig(
            max_sessions=max_sessions,
            owner=config.owner,
            epoch_offset=time.time_ns() - time.monotonic_ns(),
        )
        self.engine = Engine(settings, allow_all())
        self.state = self.engine.sessions_state
        self._replies = make_ring(1 << 13, image.COLUMNS)
        self._out = np.zeros((1 << 13, image.COLUMNS), np.int64)
        self._wakes = os.eventfd(0), os.eventfd(0, os.EFD_NONBLOCK)
        self.store = RedisStore(
            config, KEYS, self.state.requests, self._replies, *self._wakes, self.state.clock, 64
        )
        self._compile()
        self.store.start()

    def _compile(self) -> None:
        """Before anybody waits for something."""
        now = time.monotonic_ns()
        self.engine.receive(packets.batch_of([Connection().syn()], True), 0, now)
        self.engine.handle_timer(now)
        self.engine.inbox(self._out[:0], now)

    def open(self, count: int, first_port: int) -> None:
        """So many new connections."""
        for number in range(count):
            inners = Connection(sport=first_port + number).handshake()
            self.engine.receive(packets.batch_of(inners, True), len(inners), time.monotonic_ns())
        self.turn()

    def turn(self) -> None:
        """Once round the loop."""
        now = time.monotonic_ns()
        self.engine.handle_timer(now)
        os.eventfd_write(self._wakes[0], 1)
        count = ring_pop(self._replies, self._out)
        if count:
            self.engine.inbox(self._out[:count], now)

    def whole(self) -> bool:
        """Whether the store has every session, as far as the node knows; turns the loop."""
        self.turn()
        told = progress(self.state)
        return bool(self.store.status()["connected"]) and (
            told["resync_percent"],
            told["unsynced_sessions"],
        ) == (100, 0)

    def close(self) -> None:
        if self.store.stop(1.0):
            for descriptor in self._wakes:
                os.close(descriptor)
