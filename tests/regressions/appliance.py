"""A firewall as a load balancer sees it: GENEVE in, GENEVE out, over the engine alone and over every real port.

The stories of this folder are told once and run on each kind of port. There are two load balancers, and the firewall
has two addresses on its data interface.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from dataclasses import dataclass
from ipaddress import IPv4Network

import numpy as np

from everwall import pipeline
from everwall.engine import Engine, EngineConfig
from everwall.limits import GENEVE_PORT, frame_bytes_for
from everwall.policy.match import CompiledPolicy, allow_all
from everwall.ports import port as ports
from everwall.ports.bpf import CutThrough, attach_pass
from everwall.ports.port import Port
from everwall.session import image
from everwall.session.state import MADE, REMATCH_LEFT
from everwall.session.table import SharedTable, slots_for
from everwall.verdict import Verdict
from everwall.wire.meta import END, LOCAL_ADDRESS, PEER_ADDRESS, PEER_PORT, START, VERDICT, Batch, make_batch
from tests import packets
from tests.cutthrough import pass_loop
from tests.namespaces import Linked

BALANCERS = ("10.9.0.101", "10.9.0.102")
FIREWALL, FIREWALL_TOO = "10.9.0.1", "10.9.0.2"
SOURCE_PORT = 50_123
DEVICE = "eth0"
KINDS = ("engine", "udp", "raw", "xdp", "cut-through")
"""``xdp`` hands every packet to the engine; with ``cut-through`` the program answers what it may."""
_SEED = 7
_SESSIONS = 64
_PATIENCE_S = 20
_ETHERTYPE_IPV4 = 0x0800


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

    kind = "engine"
    bounced = 0
    """Packets that a program in the kernel answered."""

    def __init__(
        self,
        policy: CompiledPolicy | None = None,
        program: CutThrough | None = None,
        **config: object,
    ) -> None:
        settings = {"max_sessions": _SESSIONS, "lookups": 8, "parked_packets": 16, "owner": 1, "seed": _SEED}
        engine = EngineConfig(**(settings | config))
        shared = control = None
        if program is not None:
            shared = SharedTable(program.hot, program.tags, program.addresses)
            control = program.control
        self.engine = Engine(engine, policy or allow_all(), shared, control)
        self.now = time.monotonic_ns()
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

    @property
    def cut_through_was_tried(self) -> bool:
        """Whether the kernel answered something, where it is there to do so; it may not elsewhere."""
        return (self.bounced > 0) == (self.kind == "cut-through")

    def talks(self, geneve: bytes, answer: bytes) -> None:
        """Both directions of a flow pass: from here on a cut-through may answer for the engine."""
        for packet in (geneve, answer):
            assert self.passes(sent(packet))

    def _judge(self, count: int) -> list[Outer]:
        self.engine.receive(self.batch, count, self.now)
        rows = [i for i in range(count) if self.batch.meta[i, VERDICT] == Verdict.FORWARD]
        return self._send(self.batch, rows) + self._send_made()

    def _send_made(self) -> list[Outer]:
        """What the firewall says itself, sent as a worker does."""
        sessions = self.engine.state.sessions
        count = int(sessions.words[MADE])
        sessions.words[MADE] = 0
        return self._send(sessions.made, list(range(count))) if count else []

    def replace_policy(self, policy: CompiledPolicy) -> None:
        """Another policy, about which every live session is asked before this returns."""
        self.engine.replace_policy(policy)
        while self.engine.state.sessions.words[REMATCH_LEFT]:
            self.engine.handle_timer(self.now)

    def answer(self, found: bool, record: np.ndarray | None = None) -> list[Outer]:
        """The store's answer to the look-up that waits: what of the parked packets comes back."""
        (asked,) = [row for row in self.engine.outbox() if row[image.OP] == image.LOOKUP]
        reply = (asked if record is None else record).copy()
        reply[image.OP] = image.FOUND if found else image.MISSING
        reply[image.TAG] = asked[image.TAG]
        state = self.engine.state
        count = pipeline.answers(state, reply.reshape(1, -1), 1, self.now)
        released = [int(row) for row in state.sessions.released[:count]]
        return self._send(state.sessions.arena, released) + self._send_made()

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


class Place:
    """A real port in its network, for one firewall after the other: opening it takes longer than a story."""

    def __init__(self, kind: str, link: Linked) -> None:
        self.kind = kind
        self.link = link
        self._opened = contextlib.ExitStack()
        self.program: CutThrough | None = None
        with link.far.entered():
            self.port = self._open()
        self._opened.callback(ports.close, self.port)

    def _open(self) -> Port:
        if self.kind == "udp":
            return ports.open_udp("0.0.0.0")
        if self.kind == "raw":
            return ports.open_raw("0.0.0.0", DEVICE)
        self.program = CutThrough(workers=1, slots=slots_for(_SESSIONS), queues=1)
        self._opened.callback(self.program.close)
        port = ports.open_xdp(DEVICE, [0])
        for q, (queue, descriptor) in enumerate(ports.queue_sockets(port)):
            self.program.set_socket(queue, descriptor)
            ports.tell_room(port, q, self.program.room_at(queue))
        with self.link.near.entered():
            # What is bounced into a veth is lost unless its other end has a program as well.
            self._opened.callback(attach_pass(DEVICE).close)
        self.program.attach(DEVICE)
        return port

    def clean(self) -> CutThrough | None:
        """The program of a cut-through, as if it had never seen a session."""
        if self.program is None or self.kind != "cut-through":
            return None
        for array in (self.program.hot, self.program.tags, self.program.addresses):
            array[:] = 0
        self.program.configure(seed=_SEED, sources=[IPv4Network("10.9.0.0/24")])
        return self.program

    def close(self) -> None:
        self._opened.close()


class PortAppliance(Appliance):
    """An engine behind a real port, with real load balancer sockets at the other end of a link."""

    def __init__(self, place: Place, policy: CompiledPolicy | None = None, **config: object) -> None:
        super().__init__(policy, place.clean(), **config)
        self.kind = place.kind
        self.port = place.port
        self._link = place.link
        self._opened = contextlib.ExitStack()
        self._senders: dict[tuple[str, int], socket.socket] = {}
        self._listeners = {address: self._socket(address, GENEVE_PORT) for address in BALANCERS}

    def _socket(self, address: str, number: int) -> socket.socket:
        with self._link.near.entered():
            made = self._opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        made.bind((address, number))
        made.setblocking(False)
        return made

    def receive(self, packet: Outer) -> list[Outer]:
        way = (packet.source, packet.source_port)
        if way not in self._senders:
            self._senders[way] = self._socket(*way)
        self._alive()
        self._senders[way].sendto(packet.geneve, (packet.destination, GENEVE_PORT))
        return self._come_back()

    def _alive(self) -> None:
        """The dead man's word of a worker: without it no program answers."""
        self.now = max(self.now, time.monotonic_ns())
        pass_loop(self.engine.state.sessions, time.monotonic_ns())

    def _come_back(self) -> list[Outer]:
        """What comes back for the packet that is under way: from the program, or through the engine."""
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            if found := self._heard():
                self.bounced += 1
                return found
            if count := ports.receive(self.port, self.batch, len(self.batch.meta)):
                return self._judge(count)
            time.sleep(0.0005)  # whoever brings it may need this processor
        raise AssertionError("the packet reached nobody")

    def _send(self, batch: Batch, rows: list[int]) -> list[Outer]:
        # The udp port opens a socket for each source port when it first needs it.
        with self._link.far.entered():
            assert ports.send(self.port, batch, np.array([*rows, 0], np.int64), len(rows)) == 0
        found: list[Outer] = []
        deadline = time.monotonic() + _PATIENCE_S
        while len(found) < len(rows):
            assert time.monotonic() < deadline, "what was sent did not arrive"
            found += self._heard()
        return found

    def _heard(self) -> list[Outer]:
        """What has arrived at the load balancers."""
        found = []
        for address, listener in self._listeners.items():
            with contextlib.suppress(BlockingIOError):
                data, (source, number) = listener.recvfrom(1 << 16)
                found.append(Outer(data, source, number, address))
        return found

    # Frames ---------------------------------------------------------------------------------------

    def frame_back(self, geneve: bytes, station: bytes) -> tuple[bytes, bytes, bytes]:
        """(destination, source, firewall's own) MAC address of what comes back for a frame sent by ``station``.

        The load balancer's router may be any of several: frames of one flow come from different stations.
        """
        with self._link.far.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as any_socket:
            any_socket.bind((DEVICE, 0))
            own = any_socket.getsockname()[4]
        header = struct.pack("!HHHH", SOURCE_PORT, GENEVE_PORT, 8 + len(geneve), 0)
        packet = packets.ipv4(BALANCERS[0], FIREWALL, 17, header + geneve)
        with self._link.near.entered():
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        with wire:
            wire.bind((DEVICE, _ETHERTYPE_IPV4))
            wire.setblocking(False)
            self._alive()
            wire.send(own + station + struct.pack("!H", _ETHERTYPE_IPV4) + packet)
            deadline = time.monotonic() + _PATIENCE_S
            while time.monotonic() < deadline:
                if count := ports.receive(self.port, self.batch, len(self.batch.meta)):
                    self.engine.receive(self.batch, count, self.now)
                    assert ports.send(self.port, self.batch, np.arange(count), count) == 0
                with contextlib.suppress(BlockingIOError):
                    frame = wire.recv(1 << 16)
                    if frame.endswith(geneve):
                        return frame[:6], frame[6:12], own
        raise AssertionError("nothing came back")

    def close(self) -> None:
        self._opened.close()


def open_link() -> Linked:
    """The network that real ports stand in."""
    return Linked([*BALANCERS], [FIREWALL, FIREWALL_TOO])
