"""A worker whose side of a store's thread is played by the test."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

import numpy as np

from everwall.rings import make_ring, ring_pop, ring_push
from everwall.session import image
from everwall.store.connection import StoreConfig
from everwall.store.redis import RedisStore, make_clock
from tests.store.stores import KEYS, asking
from tests.store.stores import sessions as future_sessions

PATIENCE_S = 30.0
"""Nothing here takes this long; a loaded machine may."""


def sessions(count: int, **columns: int):
    """Sessions of today, as the server's clock will judge them."""
    now = int(time.time())
    return future_sessions(count, **{"START": now * 1000, "EXPIRY": now + 3720, **columns})


def eventually(condition: Callable[[], bool], what: str) -> None:
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
