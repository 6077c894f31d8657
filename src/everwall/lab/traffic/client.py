"""The client side: opens the connections, keeps them busy in their manner, and measures.

``python -m everwall.lab.traffic.client SERVER CONNECTIONS UDP_FLOWS ICMP_FLOWS`` (JSON lines on
stdin and stdout, see control). One loop of 5 ms ticks sends what is due; the event loop reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
import sys
import time
from collections import deque
from typing import Any

from everwall.lab.traffic.control import Handler, serve
from everwall.lab.traffic.fate import Fate
from everwall.lab.traffic.kinds import (
    GREETING_BYTES,
    GREETING_EXCHANGES,
    GREETING_INTERVAL_S,
    PROBE_BYTES,
    TCP_PORT,
    kind_of,
)
from everwall.lab.traffic.pings import Pings
from everwall.lab.traffic.stream import DOWN, UP, Corrupt, Frames, Stream, frame

TICK_S = 0.005
CONNECTS_AT_ONCE = 8
CONNECT_INTERVAL_S = 0.003
CONNECT_SPREAD_S = 3.0
"""Connections are opened one by one at that interval, but all of them within this time."""
PROBE_SPREAD_S = 1.0
"""All connections are probed within this time after the event."""


class Connection(Fate, asyncio.Protocol):
    """One connection and its record."""

    def __init__(self, client: Client, number: int) -> None:
        super().__init__()
        self.client = client
        self.number = number
        self.kind = kind_of(number)
        self.up = Stream(number, UP)
        self.down = Stream(number, DOWN)
        self.frames = Frames()
        self.waiting: deque[tuple[int, int]] = deque()  # (sequence, sent at) of unanswered exchanges
        self.transport: asyncio.Transport | None = None
        self.local = ""
        self.sequence = 0
        self.probe_sequence = 0

    # From the event loop -------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        host, port = transport.get_extra_info("sockname")[:2]
        self.local = f"{host}:{port}"
        self.exchange(GREETING_BYTES, GREETING_BYTES)
        self.client.schedule(self)

    def data_received(self, data: bytes) -> None:
        if self.corrupt:
            return
        now = time.monotonic_ns()
        try:
            for received in self.frames.feed(data):
                if not self.waiting or received.connection != self.number:
                    raise Corrupt(f"an answer nobody asked for: {received.connection}/{received.sequence}")
                sequence, sent = self.waiting.popleft()
                if received.sequence != sequence:
                    raise Corrupt(f"answer {received.sequence} instead of {sequence}")
                self.down.verify(received.payload)
                self.note_answer(sent, now)
                if self.probed_ns and not self.answered_ns and sequence >= self.probe_sequence:
                    self.answered_ns = now
        except Corrupt as error:
            self.corrupt = str(error)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.client.stopping:
            self.error = type(error).__name__ if error else "closed by the server"
        self.transport = None

    @property
    def greeting(self) -> bool:
        """Whether the dialogue at the beginning still goes on."""
        return self.sequence < GREETING_EXCHANGES

    # From the tick -------------------------------------------------------------------------------
    def due(self) -> None:
        """The time of the next exchange has come; with a full window it is left out."""
        if self.greeting:
            if not self.waiting:
                self.exchange(GREETING_BYTES, GREETING_BYTES)
        elif len(self.waiting) < self.kind.window:
            self.exchange(self.kind.up_bytes, self.kind.down_bytes)

    def probe(self, now: int) -> None:
        """A small exchange, window or not; it has to be answered."""
        if self.probed_ns:
            return
        self.probed_ns = now
        self.probe_sequence = self.sequence
        self.exchange(PROBE_BYTES, PROBE_BYTES)

    def exchange(self, up: int, down: int) -> None:
        if self.transport is None or self.corrupt:
            return
        self.waiting.append((self.sequence, time.monotonic_ns()))
        self.transport.write(frame(self.number, self.sequence, self.up.take(up), down))
        self.sequence += 1

    # From the lab --------------------------------------------------------------------------------
    def summary(self, now: int) -> dict[str, Any]:
        return {
            "number": self.number,
            "kind": self.kind.name,
            "local": self.local,
            "verified": self.down.position,
            **self.told(now, self.waiting[0][1] if self.waiting else None),
        }


class Client:
    """All connections, the tick that drives them, and the answers to the lab."""

    def __init__(self, server: str, connections: int, udp_flows: int, icmp_flows: int) -> None:
        self.server = server
        self.connections = [Connection(self, number) for number in range(connections)]
        self.pings = Pings(server, udp_flows, icmp_flows)
        self.pace = 1.0
        self.stopping = False
        self._queue: list[tuple[float, int]] = []
        self._probes: deque[tuple[int, Connection]] = deque()
        self._random = random.Random(connections)
        self._tasks: list[asyncio.Task[None]] = []

    # Traffic -------------------------------------------------------------------------------------
    def start(self) -> dict[str, Any]:
        """Open everything; connections are opened a few at a time."""
        gate = asyncio.Semaphore(CONNECTS_AT_ONCE)
        self._tasks = [asyncio.create_task(self._open(each, gate)) for each in self.connections]
        self._tasks.append(asyncio.create_task(self._tick()))
        self.pings.start(asyncio.get_running_loop())
        return {}

    async def _open(self, connection: Connection, gate: asyncio.Semaphore) -> None:
        interval = min(CONNECT_INTERVAL_S, CONNECT_SPREAD_S / len(self.connections))
        await asyncio.sleep(connection.number * interval)
        async with gate:
            try:
                await asyncio.get_running_loop().create_connection(lambda: connection, self.server, TCP_PORT)
            except OSError as error:
                connection.error = type(error).__name__

    def schedule(self, connection: Connection) -> None:
        kind = connection.kind
        interval = GREETING_INTERVAL_S if connection.greeting else kind.interval_s
        interval *= self._random.uniform(0.7, 1.3)
        if kind.paced and not connection.greeting:
            interval /= self.pace
        heapq.heappush(self._queue, (time.monotonic() + interval, connection.number))

    async def _tick(self) -> None:
        ticks = 0
        while True:
            now = time.monotonic()
            while self._queue and self._queue[0][0] <= now:
                connection = self.connections[heapq.heappop(self._queue)[1]]
                connection.due()
                self.schedule(connection)
            now_ns = time.monotonic_ns()
            while self._probes and self._probes[0][0] <= now_ns:
                self._probes.popleft()[1].probe(now_ns)
            self.pings.tick(ticks, now_ns)
            ticks += 1
            await asyncio.sleep(max(0.0, TICK_S - (time.monotonic() - now)))

    # Commands ------------------------------------------------------------------------------------
    def set_pace(self, pace: float) -> None:
        self.pace = pace

    def set_fast(self, flows: list[int]) -> None:
        """These UDP flows send every 10 ms from now on, the others stay slow."""
        self.pings.set_fast(flows)

    def probe(self) -> None:
        """Something has happened: probe every connection within the next second."""
        now = time.monotonic_ns()
        for each in self.connections:
            each.forget_probe()
        step = int(PROBE_SPREAD_S * 1e9) // max(1, len(self.connections))
        order = list(self.connections)
        self._random.shuffle(order)
        self._probes = deque((now + i * step, each) for i, each in enumerate(order) if each.exchanges)

    def progress(self) -> dict[str, Any]:
        now = time.monotonic_ns()
        return {
            "established": sum(each.exchanges > 0 for each in self.connections),
            "failed": sum(bool(each.error) and not each.exchanges for each in self.connections),
            "probed": sum(each.probed_ns > 0 for each in self.connections),
            "answered": sum(each.answered_ns > 0 for each in self.connections),
            "lost": sum(bool(each.lost(now)) for each in self.connections),
            "verified": sum(each.down.position for each in self.connections),
        }

    def flows(self) -> dict[str, Any]:
        """The source address and port of every flow, so that the lab finds them in the flow table."""
        return {
            "tcp": [[each.number, each.local] for each in self.connections if each.exchanges],
            "udp": self.pings.udp_sources(),
        }

    def report(self, event_ns: int, effective_ns: int) -> dict[str, Any]:
        now = time.monotonic_ns()
        return {
            "connections": [each.summary(now) for each in self.connections],
            "udp": self.pings.udp_report(event_ns, effective_ns),
            "icmp": self.pings.icmp_report(event_ns, effective_ns),
        }

    def stop(self) -> dict[str, Any]:
        """Close every connection in the ordinary way."""
        self.stopping = True
        for each in self.connections:
            if each.transport is not None:
                each.transport.close()
        return {}


async def run(arguments: list[str]) -> None:
    client = Client(arguments[0], *(int(word) for word in arguments[1:4]))
    handlers: dict[str, Handler] = {
        "ready": dict,
        "start": client.start,
        "pace": client.set_pace,
        "fast": client.set_fast,
        "probe": client.probe,
        "progress": client.progress,
        "flows": client.flows,
        "report": client.report,
        "stop": client.stop,
    }
    await serve(handlers)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run(sys.argv[1:]))
