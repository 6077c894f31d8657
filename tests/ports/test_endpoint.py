"""Endpoints with real descriptors: UDP on loopback, TUN in a namespace of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from everwall.ports import endpoint, tun
from everwall.verdict import Verdict
from everwall.wire import meta
from everwall.wire.meta import make_batch
from tests import needs
from tests.packets import unload

pytestmark = pytest.mark.kernel


@pytest.fixture
def pair():
    """An endpoint's descriptor and the socket of its peer."""
    peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    peer.bind(("127.0.0.1", 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        listen = free.getsockname()
    descriptor = endpoint.open_udp(listen, peer.getsockname())
    peer.connect(listen)
    peer.settimeout(5)
    yield descriptor, peer
    os.close(descriptor)
    peer.close()


def received(descriptor: int, count: int, limit: int = 64):
    batch = make_batch()
    until = time.monotonic() + 5
    while time.monotonic() < until:
        got = endpoint.receive(descriptor, 77, batch, limit)
        if got:
            assert got == count
            return batch
    raise AssertionError("nothing came")


def test_udp_packets_arrive_bare_with_room_for_geneve(pair):
    descriptor, peer = pair
    peer.send(b"inner")
    batch = received(descriptor, 1)
    row = batch.meta[0]
    assert unload(batch, 0) == b"inner"
    assert (row[meta.START], row[meta.BARE], row[meta.ENDPOINT], row[meta.VERDICT]) == (104, 1, 77, 0)


def test_nothing_waiting_is_no_packet(pair):
    assert endpoint.receive(pair[0], 77, make_batch(), 64) == 0


def test_no_more_than_the_limit_is_taken(pair):
    descriptor, peer = pair
    for number in range(5):
        peer.send(bytes([number]))
    batch = received(descriptor, 3, limit=3)
    assert [unload(batch, i) for i in range(3)] == [b"\0", b"\1", b"\2"]


def test_packet_that_does_not_fit_is_told_not_cut(pair):
    descriptor, peer = pair
    peer.send(bytes(endpoint.PACKET_BYTES_MAX))
    assert received(descriptor, 1).meta[0, meta.VERDICT] == Verdict.FORWARD
    peer.send(bytes(endpoint.PACKET_BYTES_MAX + 1))
    batch = received(descriptor, 1)
    assert batch.meta[0, meta.VERDICT] == Verdict.OVERSIZE
    assert unload(batch, 0) == b""


def test_udp_sends_to_the_peer_also_after_a_refusal(pair):
    descriptor, peer = pair
    address = peer.getsockname()
    data = np.zeros((1, 64), np.uint8)
    data[0, 10:13] = list(b"out")
    assert endpoint.send(descriptor, data, 0, 10, 13)
    assert peer.recv(99) == b"out"
    peer.close()
    endpoint.send(descriptor, data, 0, 10, 13)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(address)
        again.settimeout(5)
        # The refusal of the last one waits in the socket, and may not cost this packet.
        assert endpoint.send(descriptor, data, 0, 10, 13)
        assert again.recv(99) == b"out"


def test_udp_takes_packets_of_its_peer_only(pair):
    descriptor, peer = pair
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"no", peer.getpeername())
    peer.send(b"yes")
    assert unload(received(descriptor, 1), 0) == b"yes"


@pytest.mark.parametrize(("name", "mtu"), [("", 1500), ("a" * 16, 1500), ("tun0", 67), ("tun0", 9000)])
def test_impossible_tun_devices_are_refused(name, mtu):
    with pytest.raises(ValueError, match=r"must be|has 1 to"):
        tun.open_tun(name, mtu)


_TUN_STORY = """
import os, socket, subprocess
from everwall.ports import endpoint, tun
from everwall.wire.meta import make_batch, START, END
def ip(*words): subprocess.run(["ip", *words], check=True)
number = tun.open_tun("gwlbe0", 1400)
ip("link", "set", "lo", "up"); ip("addr", "add", "10.1.0.1/24", "dev", "gwlbe0")
assert "mtu 1400" in subprocess.run(["ip", "link", "show", "gwlbe0"], capture_output=True, text=True).stdout
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.bind(("10.1.0.1", 5000)); client.settimeout(5)
client.sendto(b"hello", ("10.1.0.2", 6000))
batch = make_batch()
assert endpoint.receive(number, 1, batch, 64) == 1, "only our packet, none of the kernel's own"
start, end = batch.meta[0, START], batch.meta[0, END]
packet = bytes(batch.data[0, start:end])
assert packet[0] == 0x45 and packet.endswith(b"hello")
turned = packet[:12] + packet[16:20] + packet[12:16] + packet[22:24] + packet[20:22] + packet[24:]
batch.data[0, start:end] = list(turned)
assert endpoint.send(number, batch.data, 0, start, end)
assert client.recv(99) == b"hello"
os.close(number)
gone = subprocess.run(["ip", "link", "show", "gwlbe0"], capture_output=True)
assert gone.returncode != 0, "a device that we made goes with us"
"""


def test_kernel_routes_packets_into_a_tun_and_takes_them_from_it():
    needs.namespaces()
    needs.device(tun.DEVICE)
    needs.binary("ip")
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", _TUN_STORY], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
