"""GENEVE through every kind of port: received in batches, returned to where it came from with the source port kept."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from everwall import system
from everwall.limits import (
    GENEVE_PORT,
    HEADROOM_BYTES,
    JUMBO_MTU_MIN,
    SECOND_NS,
    UDP_SOURCE_PORTS_MAX,
    frame_bytes_for,
)
from everwall.ports import port as ports
from everwall.verdict import Verdict
from everwall.wire.meta import (
    END,
    FRAME,
    LOCAL_ADDRESS,
    PEER_ADDRESS,
    PEER_PORT,
    START,
    VERDICT,
    make_batch,
)
from tests.ports.wires import DEVICE, KINDS, Wire, wire

pytestmark = pytest.mark.kernel


@pytest.fixture(params=KINDS)
def line(request: pytest.FixtureRequest) -> Iterator[Wire]:
    with wire(request.param) as opened:
        yield opened


@pytest.fixture
def listener(line: Wire) -> Iterator[socket.socket]:
    """Where the load balancer receives its returns."""
    with line.socket(GENEVE_PORT) as sock:
        yield sock


def all_rows(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int64)


def test_its_kind_has_a_name(line: Wire) -> None:
    assert ports.kind_of(line.port) == line.kind.split("-")[0]


def test_a_packet_tells_where_it_came_from_and_what_it_was_sent_to(line: Wire) -> None:
    batch = make_batch()
    line.send(b"some packet", 40_001)
    line.receive(batch, 1)
    row = batch.meta[0]
    assert bytes(batch.data[0, row[START] : row[END]]) == b"some packet"
    assert row[START] >= HEADROOM_BYTES
    assert (row[PEER_ADDRESS], row[PEER_PORT]) == (ports.address_number(line.balancer), 40_001)
    assert row[LOCAL_ADDRESS] == ports.address_number(line.node[0])
    assert row[VERDICT] == Verdict.FORWARD


def test_returns_keep_the_outer_source_port_of_each_packet(line: Wire, listener: socket.socket) -> None:
    batch = make_batch()
    numbers = [40_011, 40_012, 40_011, 40_013]
    for i, number in enumerate(numbers):
        line.send(b"packet %d" % i, number)
    count = line.receive(batch, len(numbers))
    assert ports.send(line.port, batch, all_rows(count), count) == 0
    returned = {listener.recvfrom(100) for _ in numbers}
    assert returned == {(b"packet %d" % i, (line.node[0], number)) for i, number in enumerate(numbers)}


def test_returns_leave_from_the_address_that_their_packet_was_sent_to(
    line: Wire, listener: socket.socket
) -> None:
    """A node with several addresses, or one that several load balancers know by different ones."""
    batch = make_batch()
    for to in range(len(line.node)):
        line.send(b"packet", 40_015, to)
    count = line.receive(batch, len(line.node))
    assert ports.send(line.port, batch, all_rows(count), count) == 0
    assert {listener.recvfrom(100)[1] for _ in line.node} == {(address, 40_015) for address in line.node}


def test_only_the_named_rows_are_sent(line: Wire, listener: socket.socket) -> None:
    batch = make_batch()
    for i in range(5):
        line.send(b"packet %d" % i)
    line.receive(batch, 5)
    assert ports.send(line.port, batch, np.array([3, 1, 0], np.int64), 2) == 0
    assert [listener.recv(100), listener.recv(100)] == [b"packet 3", b"packet 1"]
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.recv(100)


@pytest.mark.parametrize("inner", [64, 1400, 8500])
def test_packets_of_every_size_come_back_whole(line: Wire, listener: socket.socket, inner: int) -> None:
    """GENEVE with the load balancer's three options takes 40 bytes of what UDP carries."""
    if inner > 1600 and line.kind == "xdp":
        pytest.skip("this wire has no room for it")
    batch = make_batch(frame_bytes=frame_bytes_for(JUMBO_MTU_MIN))
    packet = random.Random(inner).randbytes(40 + inner)
    line.send(packet, 40_031)
    line.receive(batch, 1)
    row = batch.meta[0]
    assert row[VERDICT] == Verdict.FORWARD
    assert bytes(batch.data[0, row[START] : row[END]]) == packet
    assert ports.send(line.port, batch, all_rows(1), 1) == 0
    assert listener.recvfrom(9999) == (packet, (line.node[0], 40_031))


@pytest.mark.parametrize("inner", [64, 1400, 8500])
def test_a_copy_is_returned_from_its_own_bytes(line: Wire, listener: socket.socket, inner: int) -> None:
    """What was parked, or changed, has left the port's memory long ago."""
    if inner > 1600 and line.kind == "xdp":
        pytest.skip("this wire has no room for it")
    batch = make_batch(frame_bytes=frame_bytes_for(JUMBO_MTU_MIN))
    line.send(bytes(40 + inner), 40_033)
    line.receive(batch, 1)
    kept = make_batch(1, frame_bytes_for(JUMBO_MTU_MIN))
    kept.meta[0] = batch.meta[0]
    kept.meta[0, FRAME] = 0
    packet = random.Random(inner).randbytes(40 + inner)
    kept.data[0, batch.meta[0, START] : batch.meta[0, END]] = np.frombuffer(packet, np.uint8)
    assert ports.receive(line.port, batch, 64) == 0  # the port's own memory of it ends here
    assert ports.send(line.port, kept, all_rows(1), 1) == 0
    assert listener.recvfrom(9999) == (packet, (line.node[0], 40_033))


def test_a_packet_longer_than_a_slot_is_named_oversize_and_empty(line: Wire) -> None:
    batch = make_batch(frame_bytes=512)
    line.send(bytes(512 - HEADROOM_BYTES + 1))
    line.send(b"next")
    line.receive(batch, 2)
    assert batch.meta[0, VERDICT] == Verdict.OVERSIZE
    assert batch.meta[0, START] == batch.meta[0, END]
    assert batch.meta[1, VERDICT] == Verdict.FORWARD


def test_more_than_a_batch_comes_and_goes_in_turns(line: Wire, listener: socket.socket) -> None:
    batch = make_batch(16)
    wanted = {b"packet %d" % i for i in range(100)}
    for packet in sorted(wanted):
        line.send(packet)
    line.arrive()
    returned = set()
    for _ in range(7):
        count = ports.receive(line.port, batch, 16)
        assert ports.send(line.port, batch, all_rows(count), count) == 0
        returned |= {listener.recv(100) for _ in range(count)}
    assert returned == wanted
    assert ports.receive(line.port, batch, 16) == 0


def test_the_limit_of_a_receive_holds(line: Wire) -> None:
    batch = make_batch()
    for _ in range(5):
        line.send(b"packet")
    line.arrive()
    assert ports.receive(line.port, batch, 3) == 3
    assert ports.receive(line.port, batch, 3) == 2


def test_who_sleeps_in_poll_is_woken_by_a_packet(line: Wire) -> None:
    sender = threading.Timer(0.05, line.send, [b"wake up"])
    start = time.monotonic()
    sender.start()
    line.receive(make_batch(), 1)
    assert time.monotonic() - start >= 0.05
    sender.join()


def test_a_packet_that_cannot_be_sent_says_so(line: Wire) -> None:
    if line.kind.startswith("xdp"):
        pytest.skip("it asks nobody for the way: see test_xdp.py")
    batch = make_batch()
    line.send(b"packet")
    line.receive(batch, 1)
    batch.meta[0, PEER_ADDRESS] = 0xFFFFFFFF  # broadcast is refused
    assert ports.send(line.port, batch, np.zeros(1, np.int64), 1) == 1
    assert batch.meta[0, VERDICT] == Verdict.TRANSMIT


def test_other_traffic_of_the_interface_is_left_to_the_kernel(line: Wire) -> None:
    """Health checks and the administrator use the same interface."""
    with socket.socket() as server, line.socket(0, socket.SOCK_STREAM) as client:
        server.bind((line.node[0], 0))
        server.listen(1)
        client.connect(server.getsockname())
        client.sendall(b"are you there?")
        with server.accept()[0] as accepted:
            assert accepted.recv(100) == b"are you there?"
            accepted.sendall(b"yes")
        assert client.recv(100) == b"yes"
    assert ports.receive(line.port, make_batch(), 64) == 0


def test_a_closed_port_holds_nothing_and_gives_nothing(line: Wire) -> None:
    own = {ports.descriptor(line.port)} | {number for _, number in ports.queue_sockets(line.port)}
    ports.close(line.port)
    for number in own:
        with pytest.raises(OSError):
            os.fstat(number)
    assert ports.descriptor(line.port) == -1
    assert ports.receive(line.port, make_batch(), 64) == 0
    ports.close(line.port)  # once more does no harm


# One kind only -------------------------------------------------------------------------------------------


def test_the_unprivileged_port_answers_from_a_bounded_number_of_source_ports() -> None:
    with wire("udp") as line, line.socket(GENEVE_PORT) as listener:
        batch = make_batch(UDP_SOURCE_PORTS_MAX + 1)
        line.send(b"packet", 40_051)
        line.receive(batch, 1)
        for i in range(1, len(batch.meta)):
            batch.meta[i], batch.data[i] = batch.meta[0], batch.data[0]
            batch.meta[i, PEER_PORT] = 41_000 + i
        assert ports.send(line.port, batch, all_rows(len(batch.meta)), len(batch.meta)) == 1
        assert batch.meta[-1, VERDICT] == Verdict.SOURCE_PORTS
        sources = {listener.recvfrom(100)[1][1] for _ in range(UDP_SOURCE_PORTS_MAX)}
        assert len(sources) == UDP_SOURCE_PORTS_MAX


def test_an_address_in_use_is_an_error_that_says_so() -> None:
    with wire("udp") as line, pytest.raises(OSError, match="in use"):
        ports.open_udp(line.node[0])


def test_a_raw_port_that_only_sends_returns_what_another_port_received() -> None:
    with wire("raw") as line, line.socket(GENEVE_PORT) as listener:
        assert line.link is not None
        with line.link.near.entered():
            sender = ports.open_raw_sender(DEVICE)
        batch, wake = make_batch(), os.eventfd(0, os.EFD_NONBLOCK)
        try:
            line.send(b"packet", 40_061)
            line.receive(batch, 1)
            assert ports.receive(sender, make_batch(), 64) == 0
            assert ports.send(sender, batch, all_rows(1), 1) == 0
            assert listener.recvfrom(100) == (b"packet", (line.node[0], 40_061))
            # A worker that has it sleeps until somebody wakes it.
            words = np.array(system.poll_words([ports.descriptor(sender), wake]), np.int64)
            assert system.wait(words, 0, np.zeros(2, np.int64)) == 0
            os.eventfd_write(wake, 1)
            assert system.wait(words, 5 * SECOND_NS, np.zeros(2, np.int64)) == 1
            assert [system.readable(words, i) for i in range(2)] == [False, True]
        finally:
            os.close(wake)
            ports.close(sender)


def test_ports_of_several_workers_share_an_address_and_its_source_ports() -> None:
    """Each takes a part of what comes, and may have to send what another one took."""
    node, balancer = "127.0.81.3", "127.0.81.4"
    pair = [ports.open_udp(node, shared=True) for _ in range(2)]
    way = Wire("udp", pair[0], [node], balancer)
    senders = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(40)]
    try:
        for number, sender in enumerate(senders):
            sender.bind((balancer, 42_000 + number))
            sender.sendto(b"packet", (node, GENEVE_PORT))
        way.arrive()
        batches = [make_batch(), make_batch()]
        came = [ports.receive(port, batch, 64) for port, batch in zip(pair, batches)]
        assert sum(came) == len(senders)
        assert min(came) > 0, "forty source ports are not all spread to one socket"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
            listener.bind((balancer, GENEVE_PORT))
            for port in pair:
                assert ports.send(port, batches[0], all_rows(came[0]), came[0]) == 0
            sources = [listener.recvfrom(100)[1] for _ in range(2 * came[0])]
            assert len(set(sources)) == came[0]
            # A packet whose source port is the receivers' own is refused by name: a socket there would take theirs.
            batches[0].meta[0, PEER_PORT] = GENEVE_PORT
            assert ports.send(pair[0], batches[0], all_rows(1), 1) == 1
            assert batches[0].meta[0, VERDICT] == Verdict.SOURCE_PORTS
    finally:
        for sender in senders:
            sender.close()
        for port in pair:
            ports.close(port)
