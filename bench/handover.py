"""What it costs that a packet came to another worker: handed over between two processors, and judged there.

Two loops in two threads stand for two workers without ports: the giver reads packets and hands all of them over, the
owner judges them. Beside it one loop reads and judges the same packets as its own. Small UDP packets of known flows.
"""

from __future__ import annotations

import os
import statistics
import threading
import time

import numba
import numpy as np

from bench.engine import batches
from everwall import pipeline
from everwall.engine import EngineConfig, make_state
from everwall.handover import arrivals, give_back, make_handovers, spread, worker_of
from everwall.limits import BATCH_PACKETS, FRAME_BYTES
from everwall.policy.match import allow_all
from everwall.verdict import Verdict
from everwall.wire import meta as m
from everwall.wire.meta import Batch

BATCHES = 128
ROUNDS = 20
_FORWARD = int(Verdict.FORWARD)
_NOW = 2


class _Pair:
    """Two workers' arrays, and packets whose flows the second has."""

    def __init__(self, cores: tuple[int, int]) -> None:
        self._cores = cores
        config = EngineConfig(max_sessions=1 << 15, resiliency=False, workers=2)
        self._giver, self._owner = (make_state(config, allow_all()) for _ in range(2))
        self._handovers = make_handovers([-1, -1], FRAME_BYTES)
        self._rows = [np.arange(BATCH_PACKETS, dtype=np.int64) for _ in range(2)]
        data, descriptors = batches(4 * BATCHES)
        theirs = [
            (number, i)
            for number in range(len(data))
            for i in range(BATCH_PACKETS)
            if _owner_of(self._owner, data[number], descriptors[number], i) == 1
        ][: BATCHES * BATCH_PACKETS]
        at = tuple(np.array(theirs).T)
        self._data = data[at].reshape(BATCHES, *data.shape[1:])
        self._descriptors = descriptors[at].reshape(BATCHES, *descriptors.shape[1:])

    def own(self, passes: int) -> float:
        """ns per packet that the owner received itself."""
        os.sched_setaffinity(0, {self._cores[1]})
        began = time.perf_counter_ns()
        _read_and_judge(self._owner, self._data, self._descriptors, passes)
        return (time.perf_counter_ns() - began) / (passes * BATCHES * BATCH_PACKETS)

    def handed_over(self, passes: int) -> float:
        """ns per packet that goes through both."""
        os.sched_setaffinity(0, {self._cores[1]})
        giver = threading.Thread(target=self._give, args=(passes,))
        began = time.perf_counter_ns()
        giver.start()
        _take_and_judge(self._owner, self._handovers[1], self._rows[1], passes * BATCHES * BATCH_PACKETS)
        took = time.perf_counter_ns() - began
        giver.join()
        return took / (passes * BATCHES * BATCH_PACKETS)

    def _give(self, passes: int) -> None:
        os.sched_setaffinity(threading.get_native_id(), {self._cores[0]})
        _read_and_give(self._giver, self._handovers[0], self._data, self._descriptors, self._rows[0], passes)


def measure(seconds: float) -> dict[str, float]:
    """Nanoseconds per packet, medians of ``ROUNDS`` rounds of each, which alternate."""
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        raise RuntimeError("two workers need a processor each, and there is only one")
    pair = _Pair((min(allowed), max(allowed)))
    own, handed_over = [], []
    passes = max(1, int(seconds * 1e9 / (2 * ROUNDS * 500 * BATCHES * BATCH_PACKETS)))
    try:
        pair.own(1)
        pair.handed_over(1)  # compiled, and every session open
        for _ in range(ROUNDS):
            own.append(pair.own(passes))
            handed_over.append(pair.handed_over(passes))
    finally:
        os.sched_setaffinity(0, allowed)
    return {
        "ns per packet, its own": statistics.median(own),
        "ns per packet, all handed over": statistics.median(handed_over),
    }


@numba.njit(nogil=True, error_model="numpy", _nrt=False)
def _owner_of(state, data, descriptors, i):  # type: ignore[no-untyped-def]
    batch = Batch(data, descriptors)
    batch.meta[i, m.VERDICT] = _FORWARD
    pipeline.read(state, batch, i)
    return worker_of(batch.meta[i, m.HASH], 2)


@numba.njit(nogil=True, error_model="numpy", _nrt=False)
def _read_and_judge(state, data, descriptors, passes):  # type: ignore[no-untyped-def]
    for _ in range(passes):
        for number in range(data.shape[0]):
            batch = Batch(data[number], descriptors[number])
            for i in range(BATCH_PACKETS):
                batch.meta[i, m.VERDICT] = _FORWARD
            pipeline.receive(state, batch, BATCH_PACKETS, _NOW)


@numba.njit(nogil=True, error_model="numpy", _nrt=False)
def _read_and_give(state, handover, data, descriptors, rows, passes):  # type: ignore[no-untyped-def]
    for _ in range(passes):
        for number in range(data.shape[0]):
            batch = Batch(data[number], descriptors[number])
            for i in range(BATCH_PACKETS):
                batch.meta[i, m.VERDICT] = _FORWARD
                pipeline.read(state, batch, i)
                rows[i] = i
            left = BATCH_PACKETS
            while left > 0:  # what found no room is offered again: the owner sets the pace
                left = spread(state.sessions, handover, batch, rows, left, _NOW)
                for k in range(left):
                    batch.meta[rows[k], m.VERDICT] = _FORWARD


@numba.njit(nogil=True, error_model="numpy", _nrt=False)
def _take_and_judge(state, handover, rows, wanted):  # type: ignore[no-untyped-def]
    taken = 0
    while taken < wanted:
        count = arrivals(handover, 0, rows)
        for k in range(count):
            pipeline.fetch(state, handover.packets, rows[k])
        for k in range(count):
            pipeline.judge(state, handover.packets, rows[k], _NOW)
        give_back(state.sessions, handover, 0, count)
        taken += count
