"""Endpoints by UDP on loopback; those behind a device are in test_device."""

from __future__ import annotations

import socket
import time

import numpy as np
import pytest

from everwall.limits import FRAME_BYTES
from everwall.ports import endpoint
from everwall.ports.endpoint import Endpoint
from everwall.verdict import Verdict
from everwall.wire import meta
from everwall.wire.meta import make_batch
from tests.packets import unload
from tests.ports.wires import PATIENCE_S, bring_the_last

pytestmark = pytest.mark.kernel

_LONGEST = FRAME_BYTES - endpoint.START_BYTES - 1


@pytest.fixture
def pair():
    """An endpoint and the socket of its peer."""
    peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    peer.bind(("127.0.0.1", 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        listen = free.getsockname()
    opened = endpoint.open_udp(listen, peer.getsockname())
    peer.connect(listen)
    peer.settimeout(PATIENCE_S)
    yield opened, peer
    opened.close()
    peer.close()


def received(opened: Endpoint, count: int, limit: int = 64):
    rows, batch = endpoint.rows_of([opened]), make_batch()
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        got = endpoint.receive(rows, 0, 77, batch, limit)
        if got:
            assert got == count
            return batch
    raise AssertionError("nothing came")


def test_udp_packets_arrive_bare_with_room_for_geneve(pair):
    opened, peer = pair
    peer.send(b"inner")
    batch = received(opened, 1)
    row = batch.meta[0]
    assert unload(batch, 0) == b"inner"
    assert (row[meta.START], row[meta.BARE], row[meta.ENDPOINT], row[meta.VERDICT]) == (104, 1, 77, 0)


def test_nothing_waiting_is_no_packet(pair):
    assert endpoint.receive(endpoint.rows_of([pair[0]]), 0, 77, make_batch(), 64) == 0


def test_no_more_than_the_limit_is_taken(pair):
    opened, peer = pair
    for number in range(5):
        peer.send(bytes([number]))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
        last.bind(("127.0.0.1", 0))
        bring_the_last(last, last)
    batch = received(opened, 3, limit=3)
    assert [unload(batch, i) for i in range(3)] == [b"\0", b"\1", b"\2"]


def test_packet_that_does_not_fit_is_told_not_cut(pair):
    opened, peer = pair
    peer.send(bytes(_LONGEST))
    assert received(opened, 1).meta[0, meta.VERDICT] == Verdict.FORWARD
    peer.send(bytes(_LONGEST + 1))
    batch = received(opened, 1)
    assert batch.meta[0, meta.VERDICT] == Verdict.OVERSIZE
    assert unload(batch, 0) == b""


def test_udp_sends_to_the_peer_also_after_a_refusal(pair):
    opened, peer = pair
    address = peer.getsockname()
    rows, data = endpoint.rows_of([opened]), np.zeros((1, 64), np.uint8)
    data[0, 10:13] = list(b"out")
    assert endpoint.send(rows, 0, data, 0, 10, 13)
    assert peer.recv(99) == b"out"
    peer.close()
    endpoint.send(rows, 0, data, 0, 10, 13)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(address)
        again.settimeout(PATIENCE_S)
        # The refusal of the last one waits in the socket, and may not cost this packet.
        assert endpoint.send(rows, 0, data, 0, 10, 13)
        assert again.recv(99) == b"out"


def test_udp_takes_packets_of_its_peer_only(pair):
    opened, peer = pair
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"no", peer.getpeername())
    peer.send(b"yes")
    assert unload(received(opened, 1), 0) == b"yes"
