"""Packets of established sessions through the engine, on one core and without a port.

The batches pass inside one compiled loop, as they do in a worker: handing the engine's arrays over from
Python for each batch would cost more than the batch. They hold small UDP packets inside GENEVE; sessions
are met in a random order, as they would be, so that a large table is a cold one. TCP connections are opened by
their three packets, many side by side, with and without requests for the store (which nobody sends).
"""

from __future__ import annotations

import random
import time

import numba
import numpy as np

from everwall import pipeline
from everwall.engine import Engine, EngineConfig
from everwall.limits import BATCH_PACKETS
from everwall.policy.match import allow_all
from everwall.verdict import Verdict
from everwall.wire import meta
from everwall.wire.meta import Batch
from tests import packets
from tests.conversations import Connection

_VERDICT = meta.VERDICT
_FORWARD = int(Verdict.FORWARD)
_HEAD, _TAIL = 0, 8  # of a ring's index
_SERVER = "10.2.0.1"
_BYTES = 256
"""Of one packet slot here; enough for a small packet, and a large table still fits the memory."""


def measure(seconds: float) -> dict[str, float]:
    """Nanoseconds per packet by the number of sessions, and of opening one."""
    results = {}
    for sessions in (64, 8192, 65536):
        opening, forwarding = _run(sessions, seconds / 3)
        results[f"ns per packet, {sessions} sessions"] = forwarding
        results[f"ns per new session, {sessions} sessions"] = opening
    for resiliency in (False, True):
        store = "with" if resiliency else "without"
        results[f"ns per new TCP connection, {store} the store"] = _connections(8192, resiliency)
    return results


@numba.njit(nogil=True, error_model="numpy", _nrt=False)
def _judge(state, data, descriptors, passes, now):  # type: ignore[no-untyped-def]
    for _ in range(passes):
        for number in range(data.shape[0]):
            batch = Batch(data[number], descriptors[number])
            for i in range(BATCH_PACKETS):
                batch.meta[i, _VERDICT] = _FORWARD
            pipeline.receive(state, batch, BATCH_PACKETS, now)
            requests = state.sessions.requests.index
            requests[_HEAD] = requests[_TAIL]


def _run(sessions: int, seconds: float) -> tuple[float, float]:
    """ns per new session and ns per packet of an established one."""
    engine = Engine(EngineConfig(max_sessions=sessions * 2, resiliency=False), allow_all())
    # Compiled, or loaded, before the clock runs.
    _judge(engine.state, *batches(1, first=1 << 17), 1, 1)
    data, descriptors = batches(sessions // BATCH_PACKETS)
    start = time.perf_counter_ns()
    _judge(engine.state, data, descriptors, 1, 2)
    opening = (time.perf_counter_ns() - start) / sessions
    passes = max(1, int(seconds * 1e9 / (200 * sessions)))
    start = time.perf_counter_ns()
    _judge(engine.state, data, descriptors, passes, 3)
    forwarding = (time.perf_counter_ns() - start) / (passes * sessions)
    assert engine.verdicts == {"forward": (passes + 1) * sessions + BATCH_PACKETS}, engine.verdicts
    return opening, forwarding


def _connections(count: int, resiliency: bool) -> float:
    """ns per connection that is opened."""
    engine = Engine(EngineConfig(max_sessions=count * 2, resiliency=resiliency), allow_all())
    _judge(engine.state, *batches(1, first=1 << 17), 1, 1)
    sent: list[bytes] = []
    for first in range(0, count, BATCH_PACKETS):
        handshakes = [_handshake(flow) for flow in range(first, first + BATCH_PACKETS)]
        sent += [packet for step in zip(*handshakes) for packet in step]
    data, descriptors = _loaded(sent)
    start = time.perf_counter_ns()
    _judge(engine.state, data, descriptors, 1, 2)
    spent = (time.perf_counter_ns() - start) / count
    assert engine.verdicts == {"forward": len(sent) + BATCH_PACKETS}, engine.verdicts
    return spent


def batches(count: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """``count`` batches of one packet each of as many flows, in a random order."""
    flows = list(range(first, first + count * BATCH_PACKETS))
    random.Random(1).shuffle(flows)
    return _loaded([_packet(flow) for flow in flows])


def _loaded(sent: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Packets in full batches, in this order."""
    count = len(sent) // BATCH_PACKETS
    data = np.zeros((count, BATCH_PACKETS, _BYTES), np.uint8)
    descriptors = np.zeros((count, BATCH_PACKETS, meta.COLUMNS), np.int64)
    for number in range(count):
        batch = Batch(data[number], descriptors[number])
        for i, packet in enumerate(sent[number * BATCH_PACKETS :][:BATCH_PACKETS]):
            packets.load(batch, i, packet)
    return data, descriptors


def _packet(flow: int) -> bytes:
    inner = packets.udp(_client(flow), _SERVER, 1024 + (flow >> 16), 53, payload=b"x" * 22)
    return packets.geneve(inner)


def _handshake(flow: int) -> list[bytes]:
    talk = Connection(_client(flow), _SERVER, 1024 + (flow >> 16))
    return [packets.geneve(inner) for inner in talk.handshake()]


def _client(flow: int) -> str:
    return f"10.1.{flow >> 8 & 255}.{flow & 255}"
