"""A port and the balancer that it talks to, on loopback or at the two ends of a veth pair."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from everwall import system
from everwall.limits import GENEVE_PORT, SECOND_NS
from everwall.ports import port as ports
from everwall.ports.bpf import CutThrough
from everwall.ports.interface import mtu_of
from everwall.ports.umem import needs_pieces
from everwall.wire.meta import Batch
from tests import needs
from tests.namespaces import Linked

KINDS = ["udp", "raw", "xdp", "xdp-jumbo"]
"""The last one takes packets in several frames (MTU 9000); a wire of kind xdp has an MTU of 1600."""

DEVICE = "eth0"
PATIENCE_S = 20


@dataclass
class Wire:
    """One kind of port, open; everything of the balancer's happens in a namespace of its own where there is one."""

    kind: str
    port: ports.Port
    node: Sequence[str]
    """Addresses of the port."""
    balancer: str
    link: Linked | None = None
    """Both namespaces, the port's the near one; None on loopback."""
    others: Sequence[ports.Port] = ()
    """Ports of further queues."""

    def far(self) -> contextlib.AbstractContextManager[None]:
        """The balancer's namespace, for the calling thread."""
        return self.link.far.entered() if self.link else contextlib.nullcontext()

    def socket(self, number: int, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
        """A socket of the balancer's, bound to ``number`` (0: any)."""
        with self.far():
            opened = socket.socket(socket.AF_INET, kind)
            opened.bind((self.balancer, number))
            opened.settimeout(PATIENCE_S)
            return opened

    def send(self, packet: bytes, source_port: int = 40_001, to: int = 0) -> None:
        """A packet of the balancer's to address ``to`` of the node."""
        with self.socket(source_port) as opened:
            opened.sendto(packet, (self.node[to], GENEVE_PORT))

    def arrive(self) -> None:
        """Wait until all that was sent is there: a busy kernel delivers later than it sends.

        Packets of one processor keep their order, so what comes last from each of them comes after all others.
        """
        near = self.link.near.entered() if self.link else contextlib.nullcontext()
        with near:
            last = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with last, self.socket(0) as sender:
            last.bind((self.node[0], 0))
            bring_the_last(sender, last)

    def receive(self, batch: Batch, wanted: int) -> int:
        """Wait, and take what has come, which must be ``wanted`` packets."""
        words = np.array(system.poll_words([ports.descriptor(self.port)]), np.int64)
        assert system.wait(words, PATIENCE_S * SECOND_NS, np.zeros(2, np.int64)) == 1
        assert system.readable(words, 0)
        self.arrive()
        count = ports.receive(self.port, batch, len(batch.meta))
        assert count == wanted
        return int(count)


def bring_the_last(sender: socket.socket, last: socket.socket) -> None:
    """A packet from each processor by the way that others went, which ``last`` waits for."""
    last.settimeout(PATIENCE_S)
    ours = os.sched_getaffinity(0)
    try:
        for processor in ours:
            os.sched_setaffinity(0, {processor})
            sender.sendto(b"last", last.getsockname())
            assert last.recv(100) == b"last"
    finally:
        os.sched_setaffinity(0, ours)


@contextlib.contextmanager
def wire(kind: str, *, queues: Sequence[Sequence[int]] = ((0,),), busy_poll: bool = False) -> Iterator[Wire]:
    """``queues``: for kinds of xdp, the queues of each port."""
    if kind == "udp":
        port = ports.open_udp("127.0.81.1")
        try:
            yield Wire(kind, port, ["127.0.81.1"], "127.0.81.2")
        finally:
            ports.close(port)
        return
    needs.namespaces()
    needs.binary("ip")
    if kind != "raw":
        needs.xdp()
    near, far = ["10.81.0.1", "10.81.0.3"], ["10.81.0.2"]
    link = Linked(near, far, mtu=1600 if kind == "xdp" else 9000, queues=sum(len(each) for each in queues))
    program = None
    opened: list[ports.Port] = []
    try:
        with link.near.entered():
            if kind == "raw":
                opened = [ports.open_raw("0.0.0.0", DEVICE)]
            else:
                opened = [ports.open_xdp(DEVICE, each, busy_poll=busy_poll) for each in queues]
                program = _hand_up(opened)
            yield Wire(kind, opened[0], near, far[0], link, opened[1:])
    finally:
        if program is not None:
            program.close()
        for each in opened:
            ports.close(each)
        link.close()


def _hand_up(opened: Sequence[ports.Port]) -> CutThrough:
    """The program that gives packets to the ports; nothing is configured, so nothing is bounced."""
    pairs = [pair for port in opened for pair in ports.queue_sockets(port)]
    program = CutThrough(workers=1, slots=8, queues=len(pairs), frags=needs_pieces(mtu_of(DEVICE)))
    try:
        for queue, descriptor in pairs:
            program.set_socket(queue, descriptor)
        program.attach(DEVICE)
    except BaseException:
        program.close()
        raise
    return program
