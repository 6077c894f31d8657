"""The load balancer's place in the simulated network: polls, batches, both ways."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from everwall.balancer.gateway import Gateway
from everwall.limits import BATCH_PACKETS, HEADROOM_BYTES
from everwall.sim.loop import SECOND, US, Loop
from everwall.verdict import Verdict
from everwall.wire import meta as m
from everwall.wire.meta import make_batch

POLL = 20 * US
"""From the first packet that waits to the poll that takes it and its followers."""
_FORWARD = int(Verdict.FORWARD)


class Balancer:
    """A gateway with two queues; ``to_node`` takes (outer address, GENEVE packet), ``to_hosts`` (endpoint,
    packet)."""

    def __init__(
        self,
        loop: Loop,
        gateway: Gateway,
        to_node: Callable[[int, bytes], None],
        to_hosts: Callable[[int, bytes], None],
    ) -> None:
        self.gateway = gateway
        self._loop = loop
        self._to_node, self._to_hosts = to_node, to_hosts
        self._entering: deque[tuple[int, bytes]] = deque()
        self._returning: deque[tuple[int, bytes]] = deque()
        self._polling = False
        self._batch = make_batch(BATCH_PACKETS)
        loop.after(SECOND, self._age)

    def enter(self, endpoint: int, packet: bytes) -> None:
        """A packet of a host arrives at an endpoint."""
        self._entering.append((endpoint, packet))
        self._wake()

    def returned(self, address: int, outer: bytes) -> None:
        """A GENEVE packet arrives from a node."""
        self._returning.append((address, outer))
        self._wake()

    def _wake(self) -> None:
        if not self._polling:
            self._polling = True
            self._loop.after(POLL, self._poll)

    def _age(self) -> None:
        self.gateway.handle_timer(self._loop.now)
        self._loop.after(SECOND, self._age)

    def _load(self, queue: deque[tuple[int, bytes]], bare: bool) -> int:
        data, meta = self._batch
        count = min(len(queue), BATCH_PACKETS)
        meta[:count] = 0
        for i in range(count):
            where, packet = queue.popleft()
            end = HEADROOM_BYTES + len(packet)
            data[i, HEADROOM_BYTES:end] = np.frombuffer(packet, np.uint8)
            meta[i, m.START] = HEADROOM_BYTES
            meta[i, m.END] = end
            meta[i, m.ENDPOINT if bare else m.PEER_ADDRESS] = where
            meta[i, m.BARE] = int(bare)
        return count

    def _poll(self) -> None:
        self._polling = False
        data, meta = self._batch
        now = self._loop.now
        if self._returning:
            count = self._load(self._returning, False)
            self.gateway.from_target(self._batch, count, now)
            for i in range(count):
                if meta[i, m.VERDICT] == _FORWARD:
                    packet = data[i, meta[i, m.INNER] : meta[i, m.INNER_END]].tobytes()
                    self._to_hosts(int(meta[i, m.ENDPOINT]), packet)
        if self._entering:
            count = self._load(self._entering, True)
            self.gateway.from_endpoint(self._batch, count, now)
            for i in range(count):
                if meta[i, m.VERDICT] == _FORWARD:
                    outer = data[i, meta[i, m.START] : meta[i, m.END]].tobytes()
                    self._to_node(int(meta[i, m.PEER_ADDRESS]), outer)
        if self._entering or self._returning:
            self._wake()
