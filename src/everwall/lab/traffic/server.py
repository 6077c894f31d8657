"""The server side: answers exchanges, echoes probes, and writes down when each probe arrived.

``python -m everwall.lab.traffic.server ADDRESS`` (JSON lines on stdin and stdout, see control).
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from typing import Any

from everwall.lab.traffic.control import serve
from everwall.lab.traffic.kinds import TCP_PORT, UDP_PORT
from everwall.lab.traffic.probes import PROBE, Arrivals
from everwall.lab.traffic.stream import DOWN, UP, Corrupt, Frames, Stream, frame


class Connection(asyncio.Protocol):
    """One accepted connection; its number comes with its first frame."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.frames = Frames()
        self.number = -1
        self.sequence = 0
        self.corrupt = ""
        self.error = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.corrupt:
            return
        try:
            answers = [self._answer(*each) for each in self._verified(data)]
        except Corrupt as error:
            self.corrupt = str(error)
            return
        if answers and not self.transport.is_closing():
            self.transport.write(b"".join(answers))

    def _verified(self, data: bytes) -> list[tuple[int, int]]:
        verified = []
        for received in self.frames.feed(data):
            if self.number < 0:
                self.number = received.connection
                self.up = Stream(self.number, UP)
                self.down = Stream(self.number, DOWN)
                self.server.connections[self.number] = self
            if received.connection != self.number or received.sequence != self.sequence:
                raise Corrupt(
                    f"frame {received.connection}/{received.sequence}, not {self.number}/{self.sequence}"
                )
            self.sequence += 1
            self.up.verify(received.payload)
            verified.append((received.sequence, received.answer_length))
        return verified

    def _answer(self, sequence: int, length: int) -> bytes:
        return frame(self.number, sequence, self.down.take(length), 0)

    def connection_lost(self, error: Exception | None) -> None:
        self.error = str(error) if error else ""

    def summary(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "verified": self.up.position,
            "corrupt": self.corrupt,
            "error": self.error,
        }


class Server:
    """Everything that listens."""

    def __init__(self) -> None:
        self.connections: dict[int, Connection] = {}
        self.arrivals = Arrivals()

    async def listen(self, address: str) -> None:
        loop = asyncio.get_running_loop()
        self.tcp = await loop.create_server(lambda: Connection(self), address, TCP_PORT, backlog=1024)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.setblocking(False)
        self.udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.udp.bind((address, UDP_PORT))
        loop.add_reader(self.udp, self._echo)

    def _echo(self) -> None:
        """Echo what is waiting, at most a batch so that connections get their turn."""
        for _ in range(64):
            try:
                probe, peer = self.udp.recvfrom(256)
                if len(probe) == PROBE.size:
                    flow, _, sent = PROBE.unpack(probe)
                    self.arrivals.add(flow, sent, time.monotonic_ns())
                self.udp.sendto(probe, peer)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error about an earlier echo; the echo is lost, the flow goes on

    def report(self, event_ns: int, effective_ns: int) -> dict[str, Any]:
        """What arrived; probes are judged against the moment the event took effect."""
        return {
            "connections": [each.summary() for each in self.connections.values()],
            "probes": self.arrivals.summary(event_ns, effective_ns),
        }


async def run(address: str) -> None:
    server = Server()
    await server.listen(address)
    await serve({"ready": dict, "report": server.report, "stop": dict})


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1]))
