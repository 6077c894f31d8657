"""A firewall as a load balancer sees it: GENEVE in, GENEVE out, over the engine alone and over every real port.

The stories of this folder are told once and run on each kind of port. There are two load balancers, and the firewall
has two addresses on its data interface.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from everwall import pipeline
from everwall.engine import Engine, EngineConfig
from everwall.limits import GENEVE_PORT, SECOND_NS, frame_bytes_for
from everwall.policy.match import CompiledPolicy, allow_all
from everwall.ports import port as ports
from everwall.ports.port import Port
from everwall.session import image
from everwall.verdict import Verdict
from everwall.wire.meta import END, LOCAL_ADDRESS, PEER_ADDRESS, PEER_PORT, START, VERDICT, Batch, make_batch
from tests import packets
from tests.namespaces import Linked

BALANCERS = ("10.9.0.101", "10.9.0.102")
FIREWALL, FIREWALL_TOO = "10.9.0.1", "10.9.0.2"
SOURCE_PORT = 50_123
DEVICE = "eth0"
KINDS = ("engine", "udp", "raw")


@dataclass(frozen=True)
class Outer:
    """A GENEVE packet on the wire: who sent it to whom."""

    geneve: bytes
    source: str
    source_port: int
    destination: str
    destination_port: int = GENEVE_PORT


def sent(
    geneve: bytes, balancer: str = BALANCERS[0], source_port: int = SOURCE_PORT, to: str = FIREWALL
) -> Outer:
    """A packet of a load balancer to the firewall."""
    return Outer(geneve, balancer, source_port, to)


def returned(packet: Outer, geneve: bytes | None = None) -> Outer:
    """What has to come back for ``packet``: outer addresses swapped, the source port kept, to UDP 6081."""
    return Outer(geneve or packet.geneve, packet.destination, packet.source_port, packet.source)


class Appliance:
    """An engine behind nothing: packets are put into its batch and taken from it."""

    def __init__(self, policy: CompiledPolicy | None = None, **config: object) -> None:
        settings = {"max_sessions": 64, "lookups": 8, "parked_packets": 16, "owner": 1} | config
        self.engine = Engine(EngineConfig(**settings), policy or allow_all())
        self.now = 1_000 * SECOND_NS
        self.batch = make_batch(64, frame_bytes_for(1500))

    def through(self, packet: Outer) -> Outer | None:
        """What comes back for one packet; None where it is dropped, or waits for the store."""
        found = self.receive(packet)
        assert len(found) <= 1, "one packet, one answer"
        return found[0] if found else None

    def passes(self, packet: Outer) -> bool:
        """Whether a packet comes back exactly as it has to."""
        found = self.through(packet)
        assert found in (None, returned(packet)), f"{found} instead of {returned(packet)}"
        return found is not None

    def receive(self, packet: Outer) -> list[Outer]:
        peer, local = (packet.source, packet.source_port), (packet.destination, GENEVE_PORT)
        packets.load(self.batch, 0, packet.geneve, peer=peer, local=local)
        self.batch.meta[0, VERDICT] = Verdict.FORWARD
        return self._judge(1)

    def _judge(self, count: int) -> list[Outer]:
        self.engine.receive(self.batch, count, self.now)
        rows = [i for i in range(count) if self.batch.meta[i, VERDICT] == Verdict.FORWARD]
        return self._send(self.batch, rows)

    def answer(self, found: bool, record: np.ndarray | None = None) -> list[Outer]:
        """The store's answer to the look-up that waits: what of the parked packets comes back."""
        (asked,) = [row for row in self.engine.outbox() if row[image.OP] == image.LOOKUP]
        reply = (asked if record is None else record).copy()
        reply[image.OP] = image.FOUND if found else image.MISSING
        reply[image.TAG] = asked[image.TAG]
        state = self.engine.state
        count = pipeline.answers(state, reply.reshape(1, -1), 1, self.now)
        return self._send(state.sessions.arena, [int(row) for row in state.sessions.released[:count]])

    def _send(self, batch: Batch, rows: list[int]) -> list[Outer]:
        """What the port would write: it takes these columns and the bytes as they are."""
        found = []
        for row in rows:
            meta = batch.meta[row]
            source, destination = (
                socket.inet_ntoa(int(meta[column]).to_bytes(4, "big"))
                for column in (LOCAL_ADDRESS, PEER_ADDRESS)
            )
            geneve = bytes(batch.data[row, meta[START] : meta[END]])
            found.append(Outer(geneve, source, int(meta[PEER_PORT]), destination))
        return found

    def close(self) -> None:
        """Let go of everything."""


class PortAppliance(Appliance):
    """An engine behind a real port, with real load balancer sockets at the other end of a link."""

    def __init__(
        self, kind: str, link: Linked, policy: CompiledPolicy | None = None, **config: object
    ) -> None:
        super().__init__(policy, **config)
        self._link = link
        with self._link.far.entered():
            self.port = _OPEN[kind]()
        self._listeners = {}
        self._senders: dict[tuple[str, int], socket.socket] = {}
        for address in BALANCERS:
            self._listeners[address] = self._socket(address, GENEVE_PORT)

    def _socket(self, address: str, number: int) -> socket.socket:
        with self._link.near.entered():
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((address, number))
        made.setblocking(False)
        return made

    def receive(self, packet: Outer) -> list[Outer]:
        way = (packet.source, packet.source_port)
        if way not in self._senders:
            self._senders[way] = self._socket(*way)
        self._senders[way].sendto(packet.geneve, (packet.destination, GENEVE_PORT))
        deadline = time.monotonic() + 5
        while (count := ports.receive(self.port, self.batch, len(self.batch.meta))) == 0:
            assert time.monotonic() < deadline, "the packet did not reach the port"
        return self._judge(count)

    def _send(self, batch: Batch, rows: list[int]) -> list[Outer]:
        # The udp port opens a socket for each source port when it first needs it.
        with self._link.far.entered():
            assert ports.send(self.port, batch, np.array([*rows, 0], np.int64), len(rows)) == 0
        found: list[Outer] = []
        deadline = time.monotonic() + 2
        while len(found) < len(rows):
            assert time.monotonic() < deadline, "what was sent did not arrive"
            for address, listener in self._listeners.items():
                try:
                    data, (source, number) = listener.recvfrom(1 << 16)
                except BlockingIOError:
                    continue
                found.append(Outer(data, source, number, address))
        return found

    def close(self) -> None:
        ports.close(self.port)
        for each in (*self._listeners.values(), *self._senders.values()):
            each.close()


_OPEN: dict[str, Callable[[], Port]] = {
    "udp": lambda: ports.open_udp("0.0.0.0"),
    "raw": lambda: ports.open_raw("0.0.0.0", DEVICE),
}


def open_link() -> Linked:
    """The network that real ports stand in."""
    return Linked([*BALANCERS], [FIREWALL, FIREWALL_TOO])
