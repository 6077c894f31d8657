"""Packet-level traffic for a machine where nothing is allowed: flows made packet by packet.

``python -m everwall.lab.traffic.packets OWN GATEWAY FLOWS UDP_FLOWS``: inner IP packets travel as
UDP datagrams between this program (OWN, as address:port) and the load balancer's endpoint. This one
program is both ends of every flow: what it sends as a client comes back through a firewall and is
answered as a server. The TCP here is a small one, but an honest one: handshake, sequence and
acknowledgement numbers that add up, one exchange under way per flow, retransmission after 200 ms,
doubled each time. Every payload byte is verified by the same streams as the real connections'.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
import time
from typing import Any

from everwall.lab.traffic.client import PROBE_SPREAD_S, TICK_S
from everwall.lab.traffic.control import Handler, serve
from everwall.lab.traffic.fate import Fate
from everwall.lab.traffic.inner import ACK, FIN, PSH, RST, SYN, Segment, parse, tcp, udp
from everwall.lab.traffic.probes import PROBE, Arrivals
from everwall.lab.traffic.stream import DOWN, UP, Corrupt, Stream

CLIENTS = "10.10.0."
SERVER = "10.20.0.10"
TCP_PORT, UDP_PORT = 5001, 5002
EXCHANGE_S = 0.5
"""Mean time between the exchanges of one flow at pace 1."""
UP_BYTES, DOWN_BYTES = 400, 1000
RTO_NS, RTO_MAX_NS = 200_000_000, 60_000_000_000
UDP_FAST_TICKS, UDP_SLOW_TICKS = 2, 20


class End:
    """One end of a flow: what it has sent and what it has received."""

    __slots__ = ("next", "received")

    def __init__(self, first: int) -> None:
        self.next = first
        """Sequence number of the next new byte."""
        self.received = 0
        """Sequence number of the next byte expected from the other end."""


class Flow(Fate):
    """A simulated TCP connection with both its ends."""

    def __init__(self, generator: Generator, number: int) -> None:
        super().__init__()
        self.generator = generator
        self.number = number
        self.source = f"{CLIENTS}{10 + number // 60_000}"
        self.port = 20_000 + number
        self.client = End(1_000 * number + 7)
        self.server = End(5_000 * number + 99)
        self.established = False
        self.up, self.up_check = Stream(number, UP), Stream(number, UP)
        self.down, self.down_check = Stream(number, DOWN), Stream(number, DOWN)
        self.request: bytes | None = None
        self.answer: bytes | None = None
        self.sent_ns = 0
        self.resend_ns = 0
        self.rto_ns = RTO_NS
        self.probe_waiting = False

    # Client's end --------------------------------------------------------------------------------
    def open(self, now: int) -> None:
        self._send_up(SYN, b"")
        self._arm(now)

    def exchange(self, now: int) -> None:
        """Begin an exchange, if none is under way."""
        if not self.established or self.request is not None or self.error or self.corrupt:
            return
        self.request = self.up.take(UP_BYTES)
        self.sent_ns = now
        self._send_up(ACK | PSH, self.request)
        self._arm(now)
        if self.probed_ns and not self.answered_ns:
            self.probe_waiting = True

    def probe(self, now: int) -> None:
        """Something has happened; the exchange of the next moment has to be answered."""
        if self.probed_ns:
            return
        self.probed_ns = now
        self.exchange(now)

    def tick(self, now: int) -> None:
        """Retransmit what was not answered in time."""
        if not self.resend_ns or now < self.resend_ns or self.error:
            return
        self.rto_ns = min(2 * self.rto_ns, RTO_MAX_NS)
        self.resend_ns = now + self.rto_ns
        self._send_up(SYN if not self.established else ACK | PSH, self.request or b"")

    def _arm(self, now: int) -> None:
        self.rto_ns = RTO_NS
        self.resend_ns = now + RTO_NS

    def at_client(self, segment: Segment, now: int) -> None:
        """A segment has reached the client."""
        if segment.flags & RST:
            self.error = "reset"
        elif segment.flags & SYN:
            if not self.established:
                self.established = True
                self.client.next += 1
                self.client.received = (segment.sequence + 1) & 0xFFFFFFFF
                self.resend_ns = 0
                self._send_up(ACK, b"")
                self.exchange(now)
        elif segment.payload and segment.sequence == self.client.received:
            self._answered(segment, now)
        elif segment.payload:
            self._send_up(ACK, b"")

    def _answered(self, segment: Segment, now: int) -> None:
        try:
            self.down_check.verify(segment.payload)
        except Corrupt as error:
            self.corrupt = str(error)
            return
        if self.request is None:
            self.corrupt = "an answer nobody asked for"
            return
        self.client.received = (segment.sequence + len(segment.payload)) & 0xFFFFFFFF
        self.client.next = (self.client.next + len(self.request)) & 0xFFFFFFFF
        self.request = None
        self.resend_ns = 0
        self.note_answer(self.sent_ns, now)
        self._send_up(ACK, b"")
        if self.probe_waiting:
            self.probe_waiting = False
            self.answered_ns = now
        elif self.probed_ns and not self.answered_ns:
            self.exchange(now)

    def _send_up(self, flags: int, payload: bytes) -> None:
        acknowledgement = self.client.received if flags & ACK else 0
        self.generator.send(
            tcp(self.source, SERVER, self.port, TCP_PORT, flags, self.client.next, acknowledgement, payload)
        )

    # Server's end --------------------------------------------------------------------------------
    def at_server(self, segment: Segment) -> None:
        """A segment has reached the server."""
        server = self.server
        if segment.flags & RST:
            self.error = "reset"
        elif segment.flags & SYN:
            server.received = (segment.sequence + 1) & 0xFFFFFFFF
            self._send_down(SYN | ACK, b"", server.next)
        elif segment.payload and segment.sequence == server.received:
            try:
                self.up_check.verify(segment.payload)
            except Corrupt as error:
                self.corrupt = str(error)
                return
            server.received = (server.received + len(segment.payload)) & 0xFFFFFFFF
            server.next = segment.acknowledgement
            self.answer = self.down.take(DOWN_BYTES)
            self._send_down(ACK | PSH, self.answer, server.next)
        elif segment.payload and self.answer is not None:
            # The request came again: its answer was lost.
            self._send_down(ACK | PSH, self.answer, server.next)
        elif segment.flags & FIN:
            server.received = (segment.sequence + 1) & 0xFFFFFFFF
            self._send_down(ACK | FIN, b"", segment.acknowledgement)

    def _send_down(self, flags: int, payload: bytes, sequence: int) -> None:
        self.generator.send(
            tcp(SERVER, self.source, TCP_PORT, self.port, flags, sequence, self.server.received, payload)
        )

    # The lab's questions ---------------------------------------------------------------------------
    def summary(self, now: int) -> dict[str, Any]:
        return {
            "number": self.number,
            "kind": "packets",
            "local": f"{self.source}:{self.port}",
            "verified": self.down_check.position + self.up_check.position,
            **self.told(now, self.sent_ns if self.request is not None else None),
        }


class Generator:
    """All flows, the datagram socket to the endpoint, and the tick."""

    def __init__(self, own: tuple[str, int], gateway: tuple[str, int], flows: int, udp_flows: int) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.bind(own)
        self.socket.connect(gateway)
        self.flows = [Flow(self, number) for number in range(flows)]
        self.by_port = {(flow.source, flow.port): flow for flow in self.flows}
        self.udp_flows = udp_flows
        self.sequences = [0] * udp_flows
        self.fast: frozenset[int] = frozenset()
        self.arrivals = Arrivals()
        self.echoes = Arrivals()
        self.pace = 1.0
        self.refused = 0
        self._started = False
        self._probes: list[tuple[int, Flow]] = []
        self._tasks: list[asyncio.Task[None]] = []

    def send(self, packet: bytes) -> None:
        try:
            self.socket.send(packet)
        except OSError:
            self.refused += 1  # a full buffer or no endpoint yet: lost like any other packet

    def start(self) -> dict[str, Any]:
        asyncio.get_running_loop().add_reader(self.socket, self._receive)
        self._tasks.append(asyncio.create_task(self._tick()))
        return {}

    async def _tick(self) -> None:
        opened = 0
        due = [0.0] * len(self.flows)
        ticks = 0
        while True:
            began = time.monotonic()
            now = time.monotonic_ns()
            for flow in self.flows[opened : opened + 5]:
                flow.open(now)
                due[flow.number] = began + EXCHANGE_S * (0.5 + flow.number % 10 / 10)
            opened = min(opened + 5, len(self.flows))
            for flow in self.flows[:opened]:
                flow.tick(now)
                if due[flow.number] <= began:
                    flow.exchange(now)
                    due[flow.number] = began + EXCHANGE_S / self.pace * (0.7 + flow.number % 7 / 10)
            while self._probes and self._probes[-1][0] <= now:
                self._probes.pop()[1].probe(now)
            for number in range(self.udp_flows):
                every = UDP_FAST_TICKS if number in self.fast else UDP_SLOW_TICKS
                if (ticks + number) % every == 0:
                    self._ping(number)
            ticks += 1
            await asyncio.sleep(max(0.0, TICK_S - (time.monotonic() - began)))

    def _ping(self, number: int) -> None:
        data = PROBE.pack(number, self.sequences[number], time.monotonic_ns())
        self.sequences[number] += 1
        self.send(udp(f"{CLIENTS}9", SERVER, 10_000 + number, UDP_PORT, data))

    def _receive(self) -> None:
        for _ in range(64):
            try:
                packet = self.socket.recv(2048)
            except (BlockingIOError, ConnectionRefusedError):
                return
            with contextlib.suppress(ValueError, struct.error):
                self._arrived(parse(packet), time.monotonic_ns())

    def _arrived(self, segment: Segment, now: int) -> None:
        if segment.protocol == 17:
            if len(segment.payload) != PROBE.size:
                return
            number, _, sent = PROBE.unpack(segment.payload)
            if segment.destination == SERVER:
                self.arrivals.add(number, sent, now)
                self.send(udp(SERVER, segment.source, UDP_PORT, segment.source_port, segment.payload))
            else:
                self.echoes.add(number, sent, now)
        elif segment.destination == SERVER:
            flow = self.by_port.get((segment.source, segment.source_port))
            if flow is not None:
                flow.at_server(segment)
        else:
            flow = self.by_port.get((segment.destination, segment.destination_port))
            if flow is not None:
                flow.at_client(segment, now)

    # Commands ------------------------------------------------------------------------------------
    def set_pace(self, pace: float) -> None:
        self.pace = pace

    def set_fast(self, flows: list[int]) -> None:
        self.fast = frozenset(flows)

    def probe(self) -> None:
        now = time.monotonic_ns()
        step = int(PROBE_SPREAD_S * 1e9) // max(1, len(self.flows))
        for each in self.flows:
            each.forget_probe()
        alive = [flow for flow in self.flows if flow.exchanges]
        self._probes = [(now + i * step, flow) for i, flow in enumerate(alive)][::-1]

    def progress(self) -> dict[str, Any]:
        now = time.monotonic_ns()
        return {
            "established": sum(flow.exchanges > 0 for flow in self.flows),
            "failed": 0,
            "probed": sum(flow.probed_ns > 0 for flow in self.flows),
            "answered": sum(flow.answered_ns > 0 for flow in self.flows),
            "lost": sum(bool(flow.lost(now)) for flow in self.flows),
            "verified": sum(flow.down_check.position + flow.up_check.position for flow in self.flows),
        }

    def sources(self) -> dict[str, Any]:
        return {
            "tcp": [[flow.number, f"{flow.source}:{flow.port}"] for flow in self.flows if flow.exchanges],
            "udp": [[number, f"{CLIENTS}9:{10_000 + number}"] for number in range(self.udp_flows)],
        }

    def report(self, event_ns: int, effective_ns: int) -> dict[str, Any]:
        now = time.monotonic_ns()
        return {
            "connections": [flow.summary(now) for flow in self.flows],
            "probes": self.arrivals.summary(event_ns, effective_ns),
            "udp": [
                row | {"sent": self.sequences[row["flow"]], "fast": row["flow"] in self.fast}
                for row in self.echoes.summary(event_ns, effective_ns)
            ],
            "icmp": [],
        }


def _place(text: str) -> tuple[str, int]:
    host, _, port = text.partition(":")
    return host, int(port)


async def run(arguments: list[str]) -> None:
    own, gateway = _place(arguments[0]), _place(arguments[1])
    generator = Generator(own, gateway, int(arguments[2]), int(arguments[3]))
    handlers: dict[str, Handler] = {
        "ready": dict,
        "start": generator.start,
        "pace": generator.set_pace,
        "fast": generator.set_fast,
        "probe": generator.probe,
        "progress": generator.progress,
        "flows": generator.sources,
        "report": generator.report,
        "stop": dict,
    }
    await serve(handlers)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run(sys.argv[1:]))
