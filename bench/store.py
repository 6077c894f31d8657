"""The store's thread against a real redis-server over TLS with AUTH, both on this machine.

The worker's side is played by this script, so the figures are what one node's store thread carries while
server and thread share the processors: lower bounds.
"""

from __future__ import annotations

import os
import select
import time

import numpy as np

from everwall.rings import make_ring, ring_pop, ring_push
from everwall.session import image, record
from everwall.store.connection import StoreConfig
from everwall.store.redis import RedisStore, make_clock
from tests.redis_server import PASSWORD, RedisServer

_SESSIONS = 20_000
_AHEAD = 4096
"""Requests under way at once, as many as look-ups may be."""


def measure(seconds: float) -> dict[str, float]:
    """Requests per second, and milliseconds of one look-up alone."""
    server = RedisServer().start()
    requests, replies = make_ring(1 << 15, image.COLUMNS), make_ring(1 << 13, image.COLUMNS)
    wake_store, wake_worker = os.eventfd(0), os.eventfd(0)
    config = StoreConfig("127.0.0.1", server.port, password=PASSWORD, ca_pem=server.ca_pem)
    keys = record.derive_keys(b"k" * 32)
    store = RedisStore(config, keys, requests, replies, wake_store, wake_worker, make_clock())
    rows = np.zeros((_SESSIONS, image.COLUMNS), np.int64)
    rows[:, image.KEY2] = np.arange(1, _SESSIONS + 1)
    rows[:, image.STATE] = 3
    rows[:, image.START] = time.time_ns() // 1_000_000
    rows[:, image.EXPIRY] = int(time.time()) + 3720
    rows[:, image.CONFIRM] = 1
    out = np.zeros((_AHEAD, image.COLUMNS), np.int64)

    def run(operation: int, expected: int, ahead: int, length: float, at_least: int = 0) -> float:
        """Requests per second with ``ahead`` of them under way, for ``length`` seconds."""
        rows[:, image.OP] = operation
        sent = answered = 0
        start = time.perf_counter()
        going_on = True
        while going_on or answered < sent:
            room = min(ahead - (sent - answered), _SESSIONS - sent % _SESSIONS)
            going_on = time.perf_counter() - start < length or sent < at_least
            if room and going_on:
                at = sent % _SESSIONS
                sent += ring_push(requests, rows[at : at + room], room)
                os.eventfd_write(wake_store, 1)
            if select.select([wake_worker], [], [], 1.0)[0]:
                os.eventfd_read(wake_worker)
            count = ring_pop(replies, out)
            assert (out[:count, image.OP] == expected).all(), store.status()
            answered += count
        return answered / (time.perf_counter() - start)

    try:
        store.start()
        while not store.status()["connected"]:
            time.sleep(0.01)
        run(image.WRITE_FIRST, image.WRITTEN, _AHEAD, 0.0, at_least=_SESSIONS)
        return {
            "first writes per s": run(image.WRITE_FIRST, image.WRITTEN, _AHEAD, seconds / 3),
            "compared writes per s": run(image.WRITE, image.WRITTEN, _AHEAD, seconds / 3),
            "look-ups per s": run(image.LOOKUP, image.FOUND, _AHEAD, seconds / 3),
            "us per look-up, one at a time": 1e6 / run(image.LOOKUP, image.FOUND, 1, seconds / 3),
        }
    finally:
        store.stop()
        os.close(wake_store)
        os.close(wake_worker)
        server.close()
