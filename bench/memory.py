"""What a session costs a node in memory, and what becomes of a full table.

A million sessions are inserted at once, as a node takes over another's, and then five. Of the million, sessions are
replaced at random at full load, as they are on any day, and those that find no place are counted.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

import numba
import numpy as np

from everwall.engine import Engine, EngineConfig
from everwall.limits import (
    FRAME_BYTES,
    GENEVE_OVERHEAD_BYTES,
    INNER_MTU_MAX,
    JUMBO_FRAME_BYTES,
    SESSIONS_MIN,
    XDP_FRAMES,
)
from everwall.policy.match import allow_all
from everwall.ports.port import close, open_udp
from everwall.ports.umem import chunk_bytes_for
from everwall.session import image, tcp
from everwall.session import table as t
from everwall.wire import meta as m
from everwall.worker import Worker

SESSIONS = 1_000_000
MANY = 5_000_000
_CHUNK = 50_000
_TURNOVER = 4


def measure(seconds: float) -> dict[str, float]:
    """Bytes per session of the arrays and of the process, ns per inserted session, overflow in a full table."""
    del seconds  # there is so much to insert, however long it takes
    engine, found = _filled(SESSIONS)
    for what, frame_bytes in (("", FRAME_BYTES), ("jumbo: ", JUMBO_FRAME_BYTES)):
        found[f"{what}bytes of one worker beside its table"] = others(frame_bytes)
        # The rings beside the frames are a hundred kilobytes.
        mtu = (INNER_MTU_MAX if what else 1500) + GENEVE_OVERHEAD_BYTES
        found[f"{what}bytes of the frames of its AF_XDP queue"] = XDP_FRAMES * chunk_bytes_for(mtu)
    found["replaced sessions without a place, per million"] = _overflow(engine)
    del engine
    return found | {f"5 million: {what}": number for what, number in _filled(MANY)[1].items()}


def _filled(sessions: int) -> tuple[Engine, dict[str, float]]:
    engine = Engine(EngineConfig(max_sessions=sessions, resiliency=False), allow_all())
    table = engine.sessions_state.table
    # Compiled, or loaded, before anything is measured.
    there = engine.restore_all(rows_of_sessions(0, 1), 1)
    before = _resident()
    spent = 0
    for first in range(1, sessions, _CHUNK):
        rows = rows_of_sessions(first, min(_CHUNK, sessions - first))
        start = time.perf_counter_ns()
        there += engine.restore_all(rows, 1)
        spent += time.perf_counter_ns() - start
    del rows
    resident = _resident() - before
    shared = table.hot.nbytes + table.tags.nbytes + table.addresses.nbytes
    return engine, {
        "bytes per slot": t.SLOT_BYTES,
        "slots taken, per cent": 100 * there / len(table.tags),
        "sessions without a place": sessions - there,
        "bytes per session": (shared + table.cold.nbytes) / sessions,
        "of these in maps that the cut-through sees": shared / sessions,
        "bytes per session that the process grew by": resident / sessions,
        "ns per session inserted in bulk": spent / sessions,
    }


def rows_of_sessions(first: int, count: int) -> np.ndarray:
    """Image rows of answered UDP flows, each another one: int64[count, image.COLUMNS]."""
    number = np.arange(first, first + count)
    rows = np.zeros((count, image.COLUMNS), np.int64)
    rows[:, image.LOWER_LOW] = 0x0A000000 + number // 50_000
    rows[:, image.UPPER_LOW] = 0x0A800001
    rows[:, image.KEY2] = (1_024 + number % 50_000) | 53 << 16 | m.PROTOCOL_UDP << 32 | 4 << 40
    rows[:, image.STATE] = tcp.UDP
    rows[:, image.FLAGS] = image.REPLIED
    return rows


def others(frame_bytes: int) -> int:
    """Bytes of all arrays of a worker that do not grow with its sessions, in its engine and its loop."""
    config = EngineConfig(max_sessions=SESSIONS_MIN, frame_bytes=frame_bytes)
    with contextlib.ExitStack() as opened:
        wakes = [os.eventfd(0), os.eventfd(0)]
        for descriptor in wakes:
            opened.callback(os.close, descriptor)
        port = open_udp("127.0.0.1", geneve_port=0)
        opened.callback(close, port)
        worker = Worker(config, allow_all(), port, *wakes)
    waiting: list[Any] = [part for part in worker.sessions if part is not worker.sessions.table] + [
        worker.loop
    ]
    total = 0
    while waiting:
        part = waiting.pop()
        if isinstance(part, tuple):
            waiting += part
        else:
            total += part.nbytes
    return total


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@numba.njit(nogil=True, error_model="numpy", _nrt=False)
def _replace(table, meta, slots, victims):  # type: ignore[no-untyped-def]
    overflow = 0
    for k in range(victims.shape[0]):
        victim = victims[k]
        if slots[victim] >= 0:
            t.remove_session(table, slots[victim])
        meta[0, m.HASH] = meta[k + 1, m.HASH]
        slots[victim] = t.add_session(table, meta, 0)
        if slots[victim] < 0:
            overflow += 1
    return overflow


def _overflow(engine: Engine) -> float:
    """Sessions that found all their sets full, of a million that took another's place."""
    table = engine.sessions_state.table
    dice = np.random.default_rng(1)
    slots = np.flatnonzero(table.tags)
    meta = np.zeros((SESSIONS // 10 + 1, m.COLUMNS), np.int64)
    meta[0, m.KEY2] = 1
    overflow = 0.0
    for _ in range(_TURNOVER):
        overflow = 0.0  # the last round counts: by then the table is as it will always be
        for _ in range(10):
            meta[1:, m.HASH] = dice.integers(-(2**63), 2**63, SESSIONS // 10)
            overflow += _replace(table, meta, slots, dice.integers(0, len(slots), SESSIONS // 10))
    return overflow * 1e6 / SESSIONS
