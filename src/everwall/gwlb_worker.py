"""The compiled loop of the load balancer: endpoints ▸ flow table ▸ targets, and back.

A worker thread enters ``run`` once and stays there, without the interpreter lock, until its control word says
stop. A turn takes what waits at every endpoint and at the port; when nothing waited it sleeps in
poll, at most POLL_MS_MAX, so that an idle load balancer costs nothing.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from everwall.balancer.gateway import Gateway, Tables, age_flows, endpoint_row, from_endpoint, from_target
from everwall.balancer.targets import Targets
from everwall.kernels import kernel
from everwall.limits import BATCH_PACKETS, FRAME_BYTES, MS_NS, POLL_MS_MAX
from everwall.ports import endpoint as bare
from everwall.ports import port as outer
from everwall.ports.endpoint import Endpoint, rows_of
from everwall.ports.port import Port
from everwall.system import clear_signal, monotonic, poll_words, wait
from everwall.verdict import Verdict
from everwall.wire.meta import ENDPOINT, INNER, INNER_END, VERDICT, Batch, make_batch

# Control words
STOP = 0  # 1: leave the loop
HEARTBEAT = 8  # CLOCK_MONOTONIC ns of the last turn; a cache line away

_FORWARD = int(Verdict.FORWARD)
_TRANSMIT = int(Verdict.TRANSMIT)


class Worker(NamedTuple):
    """What one loop works on; made by ``make_worker``."""

    tables: Tables
    port: Port
    batch: Batch
    endpoints: npt.NDArray[np.int64]  # rows of ports.endpoint, in the order of Tables.endpoints
    polled: npt.NDArray[np.int64]
    control: npt.NDArray[np.int64]
    wake: int  # eventfd
    rows: npt.NDArray[np.int64]
    scratch: npt.NDArray[np.int64]


def make_worker(
    gateway: Gateway, port: Port, endpoints: list[Endpoint], frame_bytes: int = FRAME_BYTES
) -> Worker:
    """``endpoints``: an open one for each endpoint of the gateway, in its order."""
    wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    return Worker(
        gateway.tables,
        port,
        make_batch(BATCH_PACKETS, frame_bytes),
        rows_of(endpoints),
        np.array(
            poll_words([wake, outer.descriptor(port), *(each.descriptor for each in endpoints)]), np.int64
        ),
        np.zeros(16, np.int64),
        wake,
        np.zeros(BATCH_PACKETS, np.int64),
        np.zeros(4, np.int64),
    )


def prepare(worker: Worker) -> None:
    """Compile the loop for this worker, or take it from the cache, without entering it."""
    worker.control[STOP] = 1
    run(worker)
    worker.control[STOP] = 0


def stop(worker: Worker) -> None:
    """Make the loop end; it wakes at once."""
    worker.control[STOP] = 1
    os.eventfd_write(worker.wake, 1)


@kernel
def _send_to_targets(worker, count):
    """Send what may go on of the first ``count`` rows, and count what the system refused."""
    meta, rows = worker.batch.meta, worker.rows
    ready = 0
    for i in range(count):
        if meta[i, VERDICT] == _FORWARD:
            rows[ready] = i
            ready += 1
    if ready == 0 or outer.send(worker.port, worker.batch, rows, ready) == 0:
        return
    for k in range(ready):
        verdict = meta[rows[k], VERDICT]
        if verdict != _FORWARD:
            worker.tables.out[_FORWARD] -= 1
            worker.tables.out[verdict] += 1


@kernel
def _send_to_endpoints(worker, count):
    meta = worker.batch.meta
    for i in range(count):
        if meta[i, VERDICT] != _FORWARD:
            continue
        k = endpoint_row(worker.tables, meta[i, ENDPOINT])
        if not bare.send(worker.endpoints, k, worker.batch.data, i, meta[i, INNER], meta[i, INNER_END]):
            worker.tables.back[_FORWARD] -= 1
            worker.tables.back[_TRANSMIT] += 1


@kernel
def run(worker):
    """Work until told to stop; see the module."""
    tables, batch = worker.tables, worker.batch
    while worker.control[STOP] == 0:
        now = monotonic(worker.scratch)
        worker.control[HEARTBEAT] = now
        moved = 0
        for k in range(worker.endpoints.shape[0]):
            count = bare.receive(worker.endpoints, k, tables.endpoints[k], batch, batch.data.shape[0])
            if count > 0:
                from_endpoint(tables, batch, count, now)
                _send_to_targets(worker, count)
                moved += count
        count = outer.receive(worker.port, batch, batch.data.shape[0])
        if count > 0:
            from_target(tables, batch, count, now)
            _send_to_endpoints(worker, count)
            moved += count
        age_flows(tables, now)
        if moved == 0:
            wait(worker.polled, POLL_MS_MAX * MS_NS, worker.scratch)
            clear_signal(worker.wake, worker.scratch)


def warm() -> None:
    """Compile everything that ``run`` needs, or take it from the cache."""
    gateway = Gateway(address=0, endpoints=[], targets=Targets(), now=0, max_flows=8)
    # Any loopback address will do that nobody else is warming up on.
    port = outer.open_udp(f"127.{os.getpid() >> 16 & 127 | 64}.{os.getpid() >> 8 & 255}.{os.getpid() & 255}")
    worker = make_worker(gateway, port, [])
    prepare(worker)
    os.close(worker.wake)
    outer.close(port)
    gateway.from_endpoint(worker.batch, 0, 0)
    gateway.from_target(worker.batch, 0, 0)
    gateway.handle_timer(0)
