"""Packets of known flows through the load balancer, both ways, on one core and without ports.

As in ``engine``: small UDP packets in a random order of flows, batch after batch inside one compiled
loop. What goes out to the targets is what comes back from them.
"""

from __future__ import annotations

import random
import time

import numba
import numpy as np

from everwall.balancer import gateway
from everwall.balancer.targets import Targets
from everwall.limits import BATCH_PACKETS
from everwall.verdict import Verdict
from everwall.wire import meta
from everwall.wire.geneve import ENCAPSULATION_BYTES
from everwall.wire.meta import Batch
from tests import packets

_FORWARD = int(Verdict.FORWARD)
_BYTES = 256
_ENDPOINT = 1
_START = packets.HEADROOM_BYTES


def measure(seconds: float) -> dict[str, float]:
    """Nanoseconds per packet each way by the number of flows, and of a new flow."""
    results = {}
    for flows in (64, 8192, 65536):
        new, out, back = _run(flows, seconds / 6)
        results[f"ns per packet to a target, {flows} flows"] = out
        results[f"ns per packet from a target, {flows} flows"] = back
        results[f"ns per new flow, {flows} flows"] = new
    return results


@numba.njit(nogil=True, error_model="numpy", _nrt=False)
def _out(tables, data, descriptors, passes, now):  # type: ignore[no-untyped-def]
    for _ in range(passes):
        for number in range(data.shape[0]):
            batch = Batch(data[number], descriptors[number])
            for i in range(BATCH_PACKETS):
                batch.meta[i, meta.START] = _START
                batch.meta[i, meta.VERDICT] = _FORWARD
            gateway.from_endpoint(tables, batch, BATCH_PACKETS, now)


@numba.njit(nogil=True, error_model="numpy", _nrt=False)
def _back(tables, data, descriptors, passes, now):  # type: ignore[no-untyped-def]
    for _ in range(passes):
        for number in range(data.shape[0]):
            batch = Batch(data[number], descriptors[number])
            for i in range(BATCH_PACKETS):
                batch.meta[i, meta.START] = _START - ENCAPSULATION_BYTES
                batch.meta[i, meta.VERDICT] = _FORWARD
            gateway.from_target(tables, batch, BATCH_PACKETS, now)


def _run(flows: int, seconds: float) -> tuple[float, float, float]:
    """ns per new flow, per packet out and per packet back."""
    targets = Targets()
    for number in range(3):
        targets.register(f"fw{number}", f"10.0.0.{number + 1}", 0)
        targets.judge(f"fw{number}", True, targets[f"fw{number}"].reason, 0)
    balancer = gateway.Gateway(
        address=1, endpoints=[_ENDPOINT], targets=targets, now=0, max_flows=2 * flows, seed=1
    )
    for judge in (_out, _back):
        # Compiled before the clock runs.
        judge(balancer.tables, *_batches(0), 1, 1)
    data, descriptors = _batches(flows // BATCH_PACKETS)
    new = _time(_out, balancer.tables, data, descriptors, 1) / flows
    passes = max(1, int(seconds * 1e9 / (200 * flows)))
    out = _time(_out, balancer.tables, data, descriptors, passes) / (passes * flows)
    back = _time(_back, balancer.tables, data, descriptors, passes) / (passes * flows)
    carried = {"to-target": (passes + 1) * flows, "to-endpoint": passes * flows}
    assert balancer.counters == carried, balancer.counters
    return new, out, back


def _time(judge, *arguments) -> float:  # type: ignore[no-untyped-def]
    start = time.perf_counter_ns()
    judge(*arguments, 2)
    return time.perf_counter_ns() - start


def _batches(count: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` batches of one packet each of as many flows, in a random order."""
    order = list(range(count * BATCH_PACKETS))
    random.Random(1).shuffle(order)
    data = np.zeros((count, BATCH_PACKETS, _BYTES), np.uint8)
    descriptors = np.zeros((count, BATCH_PACKETS, meta.COLUMNS), np.int64)
    for number in range(count):
        batch = Batch(data[number], descriptors[number])
        for i, flow in enumerate(order[number * BATCH_PACKETS :][:BATCH_PACKETS]):
            client = f"10.{flow >> 16}.{flow >> 8 & 255}.{flow & 255}"
            packet = packets.udp(client, "192.0.2.1", 4000, 53, b"x" * 64)
            packets.load(batch, i, packet, bare=True, endpoint=_ENDPOINT)
    return data, descriptors
