"""The port's side of AF_XDP's rings, with the kernel's side played by the test: no privilege, and any nonsense."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from everwall.limits import GENEVE_PORT, HEADROOM_BYTES, XDP_FILL_FRAMES, XDP_FRAMES, XDP_PIECES_MAX
from everwall.ports import layout as p
from everwall.ports import port as ports
from everwall.ports import xdp
from everwall.ports.layout import make_port
from everwall.session import control
from everwall.verdict import Verdict
from everwall.wire.meta import END, FRAME, START, VERDICT, make_batch
from tests.packets import udp

pytestmark = pytest.mark.kernel

CHUNK = 2048
ROWS = 64
CONTINUES = 1


class Kernel:
    """A port of one queue whose rings lie in ordinary memory; its socket is none, so every call of the system fails."""

    def __init__(self, start: int = 0) -> None:
        """``start``: of all free-running indices."""
        self.frames = np.zeros(XDP_FRAMES * CHUNK, np.uint8)
        self.rx, self.tx = np.zeros((ROWS, 2), np.int64), np.zeros((ROWS, 2), np.int64)
        self.fill, self.done = np.zeros(XDP_FRAMES, np.int64), np.zeros(XDP_FRAMES, np.int64)
        self.words = np.full(32, start, np.uint32)
        self.words[16:] = 0  # flags: nobody needs to be woken
        self.port = make_port(p.XDP, -1, -1, queues=1, held=4 * ROWS + XDP_PIECES_MAX, free=XDP_FRAMES)
        row = self.port.queues[0]
        word = int(self.words.ctypes.data)
        rings = [(p.RX_PRODUCER, self.rx), (p.TX_PRODUCER, self.tx)]
        rings += [(p.FILL_PRODUCER, self.fill), (p.DONE_PRODUCER, self.done)]
        for k, (first, ring) in enumerate(rings):
            row[first : first + 4] = word + 8 * k, word + 8 * k + 4, ring.ctypes.data, len(ring) - 1
        row[p.TX_FLAGS], row[p.FILL_FLAGS] = word + 64, word + 68
        row[[p.RX_NEXT, p.TX_NEXT, p.FILL_NEXT, p.DONE_NEXT]] = start
        row[p.DESCRIPTOR] = -1
        row[p.FRAMES_AT], row[p.FRAMES_BYTES] = self.frames.ctypes.data, len(self.frames)
        self.port.free[0] = np.arange(XDP_FRAMES) * CHUNK
        row[p.FREE] = XDP_FRAMES
        self.port.info[[p.QUEUES, p.CHUNK_BYTES, p.PIECES, p.LINK]] = (
            1,
            CHUNK,
            XDP_PIECES_MAX,
            0x0202_0202_0202,
        )
        self._filled = start
        xdp.fill(self.port, 0)

    def describe(self, address: int, length: int, options: int = 0) -> None:
        """The next descriptor of the rx ring."""
        at = int(self.words[0])
        self.rx[at % ROWS] = address, length | options << 32
        self.words[0] = (at + 1) & 0xFFFFFFFF

    def frame(self) -> int:
        """A frame that the port has offered."""
        at = self._filled
        assert at != int(self.words[4]), "the port has offered one"
        self._filled = (at + 1) & 0xFFFFFFFF
        self.words[5] = self._filled
        return int(self.fill[at % XDP_FRAMES])

    def deliver(self, packet: bytes, sizes: Sequence[int] = ()) -> None:
        """A packet, in pieces of these sizes and what is left."""
        while packet:
            size = sizes[0] if sizes else len(packet)
            piece, packet, sizes = packet[:size], packet[size:], sizes[1:]
            address = self.frame() + 256
            self.frames[address : address + len(piece)] = np.frombuffer(piece, np.uint8)
            self.describe(address, len(piece), CONTINUES if packet else 0)

    def sent(self) -> list[bytes]:
        """What the tx ring shows, a packet each; taken, and done at once."""
        packets, packet = [], b""
        while self.words[3] != self.words[2]:
            address, word = (int(value) for value in self.tx[int(self.words[3]) % ROWS])
            length, options = word & 0xFFFFFFFF, word >> 32
            packet += bytes(self.frames[address : address + length])
            if options & CONTINUES == 0:
                packets.append(packet)
                packet = b""
            self.done[int(self.words[6]) % XDP_FRAMES] = address
            self.words[6] = (int(self.words[6]) + 1) & 0xFFFFFFFF
            self.words[3] = (int(self.words[3]) + 1) & 0xFFFFFFFF
        assert packet == b"", "a packet ends in the ring that it begins in"
        return packets

    def everything(self) -> int:
        """Frames that somebody has, by the port's own books; those in hand are let go first."""
        xdp._let_go(self.port)
        row = self.port.queues[0]
        outside = (row[p.FILL_NEXT] - row[p.RX_NEXT]) % (1 << 32) + (row[p.TX_NEXT] - row[p.DONE_NEXT]) % (
            1 << 32
        )
        return int(row[p.FREE] + outside)


def packet_of(payload: bytes) -> bytes:
    datagram = udp("10.9.0.1", "10.9.0.2", 40_001, GENEVE_PORT, payload)
    return bytes(range(1, 13)) + b"\x08\x00" + datagram


@pytest.mark.parametrize("start", [0, 0xFFFF_FFF0])
def test_packets_pass_while_the_indices_run_over(start: int) -> None:
    kernel = Kernel(start)
    batch = make_batch()
    for turn in range(20):
        payloads = [b"packet %d of turn %d" % (i, turn) for i in range(30)]
        for payload in payloads:
            kernel.deliver(packet_of(payload))
        assert ports.receive(kernel.port, batch, 64) == 30
        assert [
            bytes(batch.data[i, row[START] : row[END]]) for i, row in enumerate(batch.meta[:30])
        ] == payloads
        assert ports.send(kernel.port, batch, np.arange(30), 30) == 0
        assert [packet[42:] for packet in kernel.sent()] == payloads
    assert kernel.everything() == XDP_FRAMES


def test_a_packet_whose_rest_is_still_to_come_waits_in_the_ring() -> None:
    kernel, batch = Kernel(), make_batch()
    whole = packet_of(bytes(range(200)))
    first, second = kernel.frame(), kernel.frame()
    kernel.deliver(packet_of(b"before"))
    kernel.frames[first : first + 100] = np.frombuffer(whole[:100], np.uint8)
    kernel.frames[second : second + len(whole) - 100] = np.frombuffer(whole[100:], np.uint8)
    kernel.describe(first, 100, CONTINUES)
    assert ports.receive(kernel.port, batch, 64) == 1
    assert ports.receive(kernel.port, batch, 64) == 0
    kernel.describe(second, len(whole) - 100)
    assert ports.receive(kernel.port, batch, 64) == 1
    assert bytes(batch.data[0, HEADROOM_BYTES : batch.meta[0, END]]) == bytes(range(200))
    assert ports.send(kernel.port, batch, np.arange(1), 1) == 0
    assert [packet[42:] for packet in kernel.sent()] == [bytes(range(200))]
    assert kernel.everything() == XDP_FRAMES


def test_as_many_pieces_as_a_packet_may_have_and_not_one_more() -> None:
    kernel, batch = Kernel(), make_batch()
    payload = bytes(range(250)) * 5
    kernel.deliver(packet_of(payload), [60] + [70] * (XDP_PIECES_MAX - 2))
    kernel.deliver(packet_of(payload), [60] + [30] * (XDP_PIECES_MAX - 1))
    kernel.deliver(packet_of(b"after"))
    assert ports.receive(kernel.port, batch, 64) == 3
    assert batch.meta[:3, VERDICT].tolist() == [Verdict.FORWARD, Verdict.OUTER_HEADER, Verdict.FORWARD]
    assert bytes(batch.data[0, HEADROOM_BYTES : batch.meta[0, END]]) == payload
    assert batch.meta[1, START] == batch.meta[1, END]
    assert ports.send(kernel.port, batch, np.array([0, 2]), 2) == 0
    assert [packet[42:] for packet in kernel.sent()] == [payload, b"after"]
    assert kernel.everything() == XDP_FRAMES


@pytest.mark.parametrize(
    ("address", "length"),
    [
        (-CHUNK, 100),
        (XDP_FRAMES * CHUNK, 100),
        (XDP_FRAMES * CHUNK - 50, 100),
        (0, CHUNK + 1),
        (1 << 48 | 256, 100),
        (-(1 << 63), 100),
    ],
)
def test_a_descriptor_that_leads_out_of_our_memory_is_not_followed(address: int, length: int) -> None:
    kernel, batch = Kernel(), make_batch()
    kernel.describe(address, length)
    kernel.deliver(packet_of(b"after"))
    assert ports.receive(kernel.port, batch, 64) == 2
    assert batch.meta[0, VERDICT] == Verdict.OUTER_HEADER
    assert batch.meta[0, START] == batch.meta[0, END]
    assert batch.meta[0, FRAME] == 0
    assert bytes(batch.data[1, HEADROOM_BYTES : batch.meta[1, END]]) == b"after"


def test_an_index_farther_than_the_ring_is_long_is_not_believed() -> None:
    kernel, batch = Kernel(), make_batch()
    kernel.words[0] = ROWS + 1
    assert ports.receive(kernel.port, batch, 64) == 0


def test_more_frames_done_than_the_ring_is_long_are_not_believed() -> None:
    kernel = Kernel()
    free = kernel.port.queues[0, p.FREE]
    kernel.words[6] = XDP_FRAMES + 1
    xdp.receive(kernel.port, make_batch(ROWS, CHUNK), ROWS)
    assert kernel.port.queues[0, p.FREE] == free, "the list of free ones has no room for them"


def test_frames_used_last_are_offered_first() -> None:
    """A few hundred stay in the processor's cache, however many there are."""
    kernel, batch = Kernel(), make_batch()
    seen = set()
    for _ in range(3 * XDP_FRAMES // 32):
        for _ in range(32):
            kernel.deliver(packet_of(b"packet"))
        ports.receive(kernel.port, batch, 64)
        seen |= set(kernel.port.held[: kernel.port.info[p.HELD], p.HELD_FRAME].tolist())
    assert len(seen) <= XDP_FILL_FRAMES + 64


def test_a_tx_ring_without_room_refuses_by_name() -> None:
    kernel, batch = Kernel(), make_batch(ROWS + 6)
    for _ in range(ROWS):
        kernel.deliver(packet_of(b"packet"))
    assert ports.receive(kernel.port, batch, ROWS + 6) == ROWS
    batch.meta[ROWS:], batch.data[ROWS:] = batch.meta[0], batch.data[0]
    batch.meta[ROWS:, FRAME] = 0
    assert ports.send(kernel.port, batch, np.arange(ROWS + 6), ROWS + 6) == 6
    assert (batch.meta[ROWS:, VERDICT] == Verdict.TRANSMIT).all()
    assert len(kernel.sent()) == ROWS
    assert kernel.everything() == XDP_FRAMES


def test_a_jumbo_copy_leaves_in_pieces() -> None:
    kernel, batch = Kernel(), make_batch(frame_bytes=9152)
    kernel.deliver(packet_of(b"packet"))
    ports.receive(kernel.port, batch, 64)
    payload = bytes(range(256)) * 33
    batch.meta[0, FRAME] = 0
    batch.meta[0, END] = HEADROOM_BYTES + len(payload)
    batch.data[0, HEADROOM_BYTES : HEADROOM_BYTES + len(payload)] = np.frombuffer(payload, np.uint8)
    assert ports.send(kernel.port, batch, np.arange(1), 1) == 0
    (packet,) = kernel.sent()
    assert packet[42:] == payload
    assert packet[:12] == b"\x07\x08\x09\x0a\x0b\x0c" + b"\x02" * 6
    assert kernel.everything() == XDP_FRAMES


def test_the_program_is_told_how_much_more_the_queue_takes() -> None:
    kernel = Kernel()
    room = np.zeros(control.ROOM_WORDS, np.int64)
    batch = make_batch(8)
    room[control.HANDED] = 1000
    ports.receive(kernel.port, batch, 8)
    assert room[control.LIMIT] == 0, "nobody asked"
    kernel.port.queues[0, p.ROOM_AT] = room.ctypes.data
    for _ in range(20):
        kernel.deliver(packet_of(b"a" * 40))
    ports.receive(kernel.port, batch, 8)
    assert room[control.LIMIT] == 1000 + ROWS - 12
    ports.receive(kernel.port, batch, 8)
    ports.receive(kernel.port, batch, 8)
    assert room[control.LIMIT] == 1000 + ROWS


def test_a_driver_that_has_taken_all_frames_for_what_comes_has_room_all_the_same() -> None:
    """A zero-copy driver keeps them in its own ring; packets are in them before the program runs."""
    kernel = Kernel()
    room = np.zeros(control.ROOM_WORDS, np.int64)
    kernel.port.queues[0, p.ROOM_AT] = room.ctypes.data
    kernel.port.queues[0, p.FREE] = 0
    while kernel.words[5] != kernel.words[4]:
        kernel.frame()
    ports.receive(kernel.port, make_batch(8), 8)
    assert room[control.LIMIT] == room[control.HANDED] + ROWS
