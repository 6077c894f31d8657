"""GENEVE over sockets: received in batches, returned to where it came from with the source port kept."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import numpy as np
import pytest

from everwall import system
from everwall.limits import (
    FRAME_BYTES,
    GENEVE_PORT,
    HEADROOM_BYTES,
    JUMBO_MTU_MIN,
    UDP_SOURCE_PORTS_MAX,
    frame_bytes_for,
)
from everwall.ports import port as ports
from everwall.verdict import Verdict
from everwall.wire.meta import END, LOCAL_ADDRESS, PEER_ADDRESS, PEER_PORT, START, VERDICT, Batch, make_batch
from tests import needs

pytestmark = pytest.mark.kernel

NODE = "127.0.81.1"
BALANCER = "127.0.81.2"


@pytest.fixture(params=["udp", "raw"])
def port(request: pytest.FixtureRequest) -> Iterator[ports.Port]:
    if request.param == "raw":
        needs.root()
        opened = ports.open_raw(NODE)
    else:
        opened = ports.open_udp(NODE)
    yield opened
    ports.close(opened)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Where a load balancer receives its returns."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((BALANCER, GENEVE_PORT))
        sock.settimeout(5)
        yield sock


def sender(number: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((BALANCER, number))
    return sock


def receive_all(port: ports.Port, batch: Batch, wanted: int) -> int:
    words = np.array(system.poll_words([ports.descriptor(port)]), np.int64)
    assert system.wait(words, 5000) == 1
    assert system.readable(words, 0)
    count = ports.receive(port, batch, len(batch.meta))
    assert count == wanted
    return count


def test_a_packet_tells_where_it_came_from_and_what_it_was_sent_to(port: ports.Port) -> None:
    batch = make_batch()
    with sender(40001) as sock:
        sock.sendto(b"some packet", (NODE, GENEVE_PORT))
        receive_all(port, batch, 1)
    row = batch.meta[0]
    assert bytes(batch.data[0, row[START] : row[END]]) == b"some packet"
    assert row[START] >= HEADROOM_BYTES
    assert (row[PEER_ADDRESS], row[PEER_PORT]) == (ports.address_number(BALANCER), 40001)
    assert row[LOCAL_ADDRESS] == ports.address_number(NODE)
    assert row[VERDICT] == Verdict.FORWARD


def test_returns_keep_the_outer_source_port_of_each_packet(port: ports.Port, listener: socket.socket) -> None:
    batch = make_batch()
    numbers = [40011, 40012, 40011, 40013]
    for i, number in enumerate(numbers):
        with sender(number) as sock:
            sock.sendto(b"packet %d" % i, (NODE, GENEVE_PORT))
    count = receive_all(port, batch, len(numbers))
    assert ports.send(port, batch, np.arange(count, dtype=np.int64), count) == 0
    returned = {listener.recvfrom(100) for _ in numbers}
    assert returned == {(b"packet %d" % i, (NODE, number)) for i, number in enumerate(numbers)}


def test_only_the_named_rows_are_sent(port: ports.Port, listener: socket.socket) -> None:
    batch = make_batch()
    with sender(40021) as sock:
        for i in range(5):
            sock.sendto(b"packet %d" % i, (NODE, GENEVE_PORT))
    receive_all(port, batch, 5)
    assert ports.send(port, batch, np.array([3, 1, 0], np.int64), 2) == 0
    assert [listener.recv(100), listener.recv(100)] == [b"packet 3", b"packet 1"]
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.recv(100)


def test_a_packet_longer_than_a_slot_is_named_oversize_and_empty(port: ports.Port) -> None:
    batch = make_batch()
    with sender(40031) as sock:
        sock.sendto(bytes(FRAME_BYTES), (NODE, GENEVE_PORT))
        sock.sendto(b"next", (NODE, GENEVE_PORT))
        receive_all(port, batch, 2)
    assert batch.meta[0, VERDICT] == Verdict.OVERSIZE
    assert batch.meta[0, START] == batch.meta[0, END]
    assert batch.meta[1, VERDICT] == Verdict.FORWARD


def test_a_jumbo_packet_is_returned_whole_from_a_jumbo_slot(
    port: ports.Port, listener: socket.socket
) -> None:
    """8540 bytes of GENEVE over an inner packet of 8500, as long as AWS's load balancer makes them."""
    batch = make_batch(frame_bytes=frame_bytes_for(JUMBO_MTU_MIN))
    packet = bytes(range(250)) * 34 + bytes(40)
    with sender(40035) as sock:
        sock.sendto(packet, (NODE, GENEVE_PORT))
        receive_all(port, batch, 1)
    assert batch.meta[0, VERDICT] == Verdict.FORWARD
    assert ports.send(port, batch, np.zeros(1, np.int64), 1) == 0
    assert listener.recvfrom(9999) == (packet, (NODE, 40035))


def test_a_packet_the_system_refuses_says_so(port: ports.Port) -> None:
    batch = make_batch()
    with sender(40041) as sock:
        sock.sendto(b"packet", (NODE, GENEVE_PORT))
        receive_all(port, batch, 1)
    batch.meta[0, PEER_ADDRESS] = 0xFFFFFFFF  # broadcast is refused
    assert ports.send(port, batch, np.zeros(1, np.int64), 1) == 1
    assert batch.meta[0, VERDICT] == Verdict.TRANSMIT


def test_the_unprivileged_port_answers_from_a_bounded_number_of_source_ports(
    listener: socket.socket,
) -> None:
    port = ports.open_udp(NODE)
    try:
        batch = make_batch(UDP_SOURCE_PORTS_MAX + 1)
        with sender(40051) as sock:
            sock.sendto(b"packet", (NODE, GENEVE_PORT))
            receive_all(port, batch, 1)
        for i in range(1, len(batch.meta)):
            batch.meta[i], batch.data[i] = batch.meta[0], batch.data[0]
            batch.meta[i, PEER_PORT] = 41000 + i
        rows = np.arange(len(batch.meta), dtype=np.int64)
        assert ports.send(port, batch, rows, len(rows)) == 1
        assert batch.meta[-1, VERDICT] == Verdict.SOURCE_PORTS
        sources = {listener.recvfrom(100)[1][1] for _ in range(UDP_SOURCE_PORTS_MAX)}
        assert len(sources) == UDP_SOURCE_PORTS_MAX
    finally:
        ports.close(port)


def test_an_address_in_use_is_an_error_that_says_so() -> None:
    first = ports.open_udp(NODE)
    try:
        with pytest.raises(OSError, match="in use"):
            ports.open_udp(NODE)
    finally:
        ports.close(first)
