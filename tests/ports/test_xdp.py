"""What only AF_XDP has: frames that must come back, rings that fill up, queues, headers that nobody checked before."""

from __future__ import annotations

import ctypes
import os
import random
import shlex
import socket
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everwall import system
from everwall.kernels import JIT
from everwall.limits import GENEVE_PORT, MS_NS, SECOND_NS, XDP_FILL_FRAMES, XDP_FRAMES, XDP_RING_ROWS
from everwall.ports import layout as p
from everwall.ports import outer as headers
from everwall.ports import port as ports
from everwall.ports.umem import STATISTICS, is_zero_copy
from everwall.verdict import Verdict
from everwall.wire.meta import END, FRAME, PEER_MAC, PEER_PORT, START, VERDICT, make_batch
from tests import needs
from tests.descriptors import opened
from tests.naive import outer
from tests.namespaces import ip
from tests.packets import checksum
from tests.ports.wires import DEVICE, PATIENCE_S, wire

pytestmark = pytest.mark.kernel


# Frames -------------------------------------------------------------------------------------------------


def settle(port: ports.Port) -> None:
    """Until the kernel has sent everything, and the port has taken its frames back."""
    batch, deadline = make_batch(1), time.monotonic() + PATIENCE_S
    while True:
        assert ports.receive(port, batch, 1) == 0
        if all(row[p.TX_NEXT] == row[p.DONE_NEXT] for row in port.queues):
            return
        assert time.monotonic() < deadline, "the kernel has sent everything after a while"
        system.wait(np.zeros(0, np.int64), MS_NS, np.zeros(2, np.int64))


def frames_of(port: ports.Port, q: int) -> list[int]:
    """Every frame of a queue that is free, or offered to the kernel."""
    row = port.queues[q]
    free = [int(frame) for frame in port.free[q, : row[p.FREE]]]
    at = ctypes.c_uint32.from_address(int(row[p.FILL_CONSUMER])).value
    while at != row[p.FILL_NEXT]:
        place = int(row[p.FILL_RING] + (at & row[p.FILL_MASK]) * 8)
        free.append(ctypes.c_int64.from_address(place).value)
        at = (at + 1) & 0xFFFFFFFF
    return free


@pytest.mark.parametrize("kind", ["xdp", "xdp-jumbo"])
def test_no_frame_is_lost_or_used_twice_whatever_becomes_of_the_packets(kind: str) -> None:
    """Sent, dropped, parked and sent as copies, long and short: in the end every frame is there once."""
    chance = random.Random(7)
    rounds = 1600 if JIT else 60
    with wire(kind) as line, line.socket(40_001) as sender:
        batch, kept = make_batch(), make_batch()
        received = 0
        for _ in range(rounds):
            for _ in range(64):
                long = 6000 if kind == "xdp-jumbo" and chance.random() < 0.1 else 80
                sender.sendto(bytes(chance.randrange(8, long)), (line.node[0], GENEVE_PORT))
            count = ports.receive(line.port, batch, 64)
            if count < 64:
                line.arrive()  # the queue of a veth holds 256: a kernel that falls behind is waited for
            received += count
            rows = np.array([i for i in range(count) if chance.random() < 0.6], np.int64)
            ports.send(line.port, batch, rows, len(rows))
            copies = np.array([i for i in range(count) if chance.random() < 0.3], np.int64)
            kept.data[:], kept.meta[:] = batch.data, batch.meta
            kept.meta[:, FRAME] = 0
            ports.send(line.port, kept, copies, len(copies))
        assert received >= rounds * 60
        line.arrive()
        while ports.receive(line.port, batch, 64):
            pass
        settle(line.port)
        frames = frames_of(line.port, 0)
        chunk = int(line.port.info[p.CHUNK_BYTES])
        assert sorted(frames) == [chunk * k for k in range(XDP_FRAMES)]
        statistics = ports.statistics(line.port)
        assert statistics["tx-invalid-descriptors"] == 0


def test_a_frame_of_an_earlier_batch_is_not_sent_for_a_row_that_still_names_it() -> None:
    with wire("xdp") as line, line.socket(GENEVE_PORT) as listener:
        batch, later = make_batch(), make_batch()
        line.send(b"old")
        line.receive(batch, 1)
        line.send(b"new")
        line.receive(later, 1)
        assert batch.meta[0, FRAME] != later.meta[0, FRAME]
        assert ports.send(line.port, batch, np.zeros(1, np.int64), 1) == 0
        assert listener.recv(100) == b"old"


def test_a_row_may_be_sent_twice() -> None:
    """The second time its frame is gone, and its bytes are as good."""
    with wire("xdp") as line, line.socket(GENEVE_PORT) as listener:
        batch = make_batch()
        line.send(b"packet")
        line.receive(batch, 1)
        assert ports.send(line.port, batch, np.zeros(2, np.int64), 2) == 0
        assert [listener.recv(100), listener.recv(100)] == [b"packet", b"packet"]


def test_a_row_without_the_way_back_is_not_sent() -> None:
    """A row that came by a socket knows no Ethernet address."""
    with wire("xdp") as line:
        batch = make_batch()
        line.send(b"packet")
        line.receive(batch, 1)
        batch.meta[0, FRAME] = batch.meta[0, PEER_MAC] = 0
        assert ports.send(line.port, batch, np.zeros(1, np.int64), 1) == 1
        assert batch.meta[0, VERDICT] == Verdict.TRANSMIT


def test_a_row_longer_than_a_frame_is_oversize_where_a_packet_has_only_one() -> None:
    with wire("xdp") as line:
        batch = make_batch(frame_bytes=9152)
        line.send(b"packet")
        line.receive(batch, 1)
        batch.meta[0, FRAME] = 0
        batch.meta[0, END] = batch.meta[0, START] + 5000
        assert ports.send(line.port, batch, np.zeros(1, np.int64), 1) == 1
        assert batch.meta[0, VERDICT] == Verdict.OVERSIZE


# Full rings ---------------------------------------------------------------------------------------------


def test_what_the_tx_ring_has_no_room_for_is_refused_by_name_and_nothing_is_lost() -> None:
    """The link is down, so the kernel sends nothing and the ring fills; then it is up again."""
    with wire("xdp") as line:
        batch = make_batch()
        line.send(b"packet")
        line.receive(batch, 1)
        batch.meta[0, FRAME] = 0
        ip("link", "set", DEVICE, "down")
        room = min(XDP_RING_ROWS, int(line.port.queues[0, p.FREE]))
        rows = np.zeros(room + 10, np.int64)
        assert ports.send(line.port, batch, rows, len(rows)) == 10
        assert batch.meta[0, VERDICT] == Verdict.TRANSMIT
        ip("link", "set", DEVICE, "up")
        settle(line.port)
        assert len(set(frames_of(line.port, 0))) == XDP_FRAMES


def test_packets_that_nobody_fetches_are_counted_by_the_kernel() -> None:
    with wire("xdp") as line, line.socket(40_001) as sender:
        assert ports.statistics(line.port) == dict.fromkeys(STATISTICS, 0)
        for i in range(XDP_FILL_FRAMES + 20):
            if i % 64 == 0:
                line.arrive()  # else what its queue has no room for is dropped before the port
            sender.sendto(b"packet", (line.node[0], GENEVE_PORT))
        line.arrive()
        statistics = ports.statistics(line.port)
        assert statistics["rx-dropped"] + statistics["rx-ring-full"] == 20
        batch = make_batch()
        received = 0
        while count := ports.receive(line.port, batch, 64):
            received += count
        assert received == XDP_FILL_FRAMES
        sender.sendto(b"and on it goes", (line.node[0], GENEVE_PORT))
        line.receive(batch, 1)


def test_the_other_kinds_count_nothing() -> None:
    with wire("udp") as line:
        assert ports.statistics(line.port) == {}
        assert ports.queue_sockets(line.port) == []


# Queues -------------------------------------------------------------------------------------------------


def wait_for_packet(port: ports.Port) -> None:
    """Sleep as a worker does."""
    words = np.array(system.poll_words([ports.descriptor(port)]), np.int64)
    assert system.wait(words, PATIENCE_S * SECOND_NS, np.zeros(2, np.int64)) == 1


def source_ports(port: ports.Port) -> list[int]:
    """Source ports of the packets that have come, which are sent back."""
    batch = make_batch()
    seen: list[int] = []
    wait_for_packet(port)
    while count := ports.receive(port, batch, 64):
        assert ports.send(port, batch, np.arange(count), count) == 0
        seen += [int(row[PEER_PORT]) for row in batch.meta[:count]]
    return seen


def test_one_port_serves_several_queues() -> None:
    with wire("xdp", queues=[[0, 1]]) as line, line.socket(GENEVE_PORT) as listener:
        numbers = list(range(41_000, 41_040))
        for number in numbers:
            line.send(b"packet", number)
        received = [int(row[p.RX_NEXT]) for row in line.port.queues]
        assert received == [0, 0]
        line.arrive()
        assert sorted(source_ports(line.port)) == numbers
        received = [int(row[p.RX_NEXT]) for row in line.port.queues]
        assert min(received) > 0
        assert sum(received) == 40
        assert {listener.recvfrom(100)[1][1] for _ in numbers} == set(numbers)
        assert [queue for queue, _ in ports.queue_sockets(line.port)] == [0, 1]


def test_each_queue_may_have_a_port_of_its_own() -> None:
    with wire("xdp", queues=[[0], [1]]) as line, line.socket(GENEVE_PORT) as listener:
        numbers = list(range(41_000, 41_040))
        for number in numbers:
            line.send(b"packet", number)
        line.arrive()
        # Both have been woken, if they slept.
        first, second = source_ports(line.port), source_ports(line.others[0])
        assert sorted(first + second) == numbers
        assert {listener.recvfrom(100)[1][1] for _ in numbers} == set(numbers)


def test_a_packet_of_one_port_may_leave_by_another() -> None:
    """A worker that was handed a packet sends it by its own port: a copy that knows the way back."""
    with wire("xdp", queues=[[0], [1]]) as line, line.socket(GENEVE_PORT) as listener:
        batch = make_batch()
        for number in range(41_000, 41_040):
            line.send(b"packet", number)
        line.arrive()
        count = ports.receive(line.port, batch, 64)
        assert count > 0
        batch.meta[:count, FRAME] = 0
        assert ports.send(line.others[0], batch, np.arange(count), count) == 0
        sources = [int(row[PEER_PORT]) for row in batch.meta[:count]]
        assert [listener.recvfrom(100)[1][1] for _ in sources] == sources


def test_a_queue_that_is_taken_or_missing_is_an_error_that_leaves_nothing_behind() -> None:
    with wire("xdp") as line:
        before = opened()
        with pytest.raises(OSError, match="queue 0"):
            ports.open_xdp(DEVICE, [0])
        with pytest.raises(OSError, match="queue 7"):
            ports.open_xdp(DEVICE, [7])
        with pytest.raises(OSError):
            ports.open_xdp("nowhere", [0])
        assert opened() == before
        assert not is_zero_copy(line.port)  # a veth copies


@pytest.mark.parametrize(
    ("without", "said"), [("net_raw", "AF_XDP needs root"), ("ipc_lock", "raise that limit")]
)
def test_a_process_that_may_not_is_told_what_it_lacks(without: str, said: str) -> None:
    program = f"from everwall.ports import port; port.open_xdp({DEVICE!r}, [0])"
    command = f"ulimit -l 64; exec {sys.executable} -c {shlex.quote(program)}"
    with wire("raw"):
        done = subprocess.run(
            [needs.binary("setpriv"), f"--bounding-set=-{without}", "sh", "-c", command],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "NUMBA_DISABLE_JIT": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode != 0
    assert said in done.stderr.splitlines()[-1]


def test_a_driver_without_zero_copy_says_so_when_it_is_asked_for() -> None:
    with wire("raw"), pytest.raises(OSError, match="queue 0"):
        ports.open_xdp(DEVICE, [0], zero_copy=True)


def test_busy_polling_brings_the_packets_all_the_same() -> None:
    with wire("xdp", busy_poll=True) as line, line.socket(GENEVE_PORT) as listener:
        for i in range(200):
            line.send(b"packet %d" % i, 41_000)
            assert source_ports(line.port) == [41_000]
            assert listener.recv(100) == b"packet %d" % i


# Outer headers ------------------------------------------------------------------------------------------

FRAME_BYTES = 120


def frame_of(payload: int = 70, **fields: int) -> bytearray:
    """An Ethernet frame with GENEVE's headers; fields that a test wants otherwise, checksum right."""
    ip_bytes = fields.get("ip_bytes", 28 + payload)
    udp_bytes = fields.get("udp_bytes", 8 + payload)
    fragment, protocol = fields.get("fragment", 0x4000), fields.get("protocol", 17)
    first = fields.get("version", 0x45)
    header = struct.pack(
        "!BBHHHBBHII", first, 0, ip_bytes, 9, fragment, 61, protocol, 0, 0x0A090001, 0x0A090002
    )
    header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    udp = struct.pack("!HHHH", 40_001, fields.get("port", GENEVE_PORT), udp_bytes, 0x1234)
    ethernet = bytes(12) + struct.pack("!H", fields.get("ethertype", 0x0800))
    return bytearray((ethernet + header + udp).ljust(FRAME_BYTES, b"\0"))


def both(frame: bytes, readable: int | None = None) -> int:
    """What the port says, after its twin said the same."""
    memory = np.frombuffer(bytes(frame), np.uint8).copy()
    readable = len(frame) if readable is None else readable
    said = headers.payload_of(memory.ctypes.data, readable, len(frame))
    assert said == outer.payload(bytes(frame), readable)
    return int(said)


def test_a_packet_that_is_ours_tells_its_length_by_udp_not_by_its_frame() -> None:
    assert both(frame_of(70)) == 70
    assert both(frame_of(0)) == 0
    assert both(frame_of(70, udp_bytes=30)) == 22  # something after UDP is no part of it
    assert both(frame_of(70, fragment=0)) == 70


@pytest.mark.parametrize(
    "fields",
    [
        {"ethertype": 0x86DD},
        {"version": 0x65},
        {"version": 0x46},  # options
        {"protocol": 6},
        {"fragment": 0x2000},
        {"fragment": 0x0001},
        {"fragment": 0x1FFF},
        {"port": 6082},
        {"ip_bytes": FRAME_BYTES - 13},  # one byte more than the frame
        {"ip_bytes": 27, "udp_bytes": 8},
        {"udp_bytes": 7},
        {"udp_bytes": 79},  # one byte more than IP
        {"udp_bytes": 0xFFFF},
    ],
    ids=str,
)
def test_headers_that_do_not_add_up_are_not_read_on(fields: dict[str, int]) -> None:
    assert both(frame_of(70, **fields)) == -1


def test_a_wrong_checksum_and_a_short_piece_are_refused() -> None:
    frame = frame_of()
    frame[22] -= 1  # somebody lowered the hop count only
    assert both(frame) == -1
    assert both(frame_of(), 41) == -1
    assert both(frame_of(), 42) == 70


@given(at=st.integers(0, 41), value=st.integers(0, 255), fix=st.booleans())
def test_any_byte_changed_is_judged_as_the_twin_judges_it(at: int, value: int, fix: bool) -> None:
    frame = frame_of()
    frame[at] = value
    if fix:
        frame[24:26] = b"\0\0"
        frame[24:26] = struct.pack("!H", checksum(bytes(frame[14:34])))
    both(frame)


def test_a_return_has_right_headers_whoever_looks() -> None:
    """The whole frame, as the balancer's side of the wire sees it."""
    with wire("xdp") as line:
        batch = make_batch()
        line.send(b"twenty-one bytes long", 40_077)
        line.receive(batch, 1)
        with line.far(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap:
            tap.bind((DEVICE, 0x0800))
            assert ports.send(line.port, batch, np.zeros(1, np.int64), 1) == 0
            tap.settimeout(PATIENCE_S)
            frame = tap.recv(200)
            theirs = tap.getsockname()[4]
        assert frame[:6] == theirs
        assert int.from_bytes(frame[6:12], "little") == line.port.info[p.LINK]
        assert outer.payload(frame, len(frame)) == 21
        assert frame[22] == 64
        assert socket.inet_ntoa(frame[26:30]) == line.node[0]
        assert socket.inet_ntoa(frame[30:34]) == line.balancer
        assert struct.unpack("!HHHH", frame[34:42]) == (40_077, GENEVE_PORT, 29, 0)
        assert frame[42:] == b"twenty-one bytes long"
