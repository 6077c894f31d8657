"""A kernel that asks through a firewall believes what the firewall says: resets and unreachables of both families."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from everwall.ports import tun
from tests import needs
from tests.cluster import Cluster, Node
from tests.namespaces import ip, new_network, takes_in
from tests.test_answering import refusing

DEVICE = "client0"
CLIENTS = {4: "10.1.0.5/24", 6: "2001:db8:1::5/64"}
SERVERS = {4: "10.1.0.9", 6: "2001:db8:1::9"}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
PATIENCE_S = 20
both_families = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture
def wire() -> Iterator[int]:
    """The far end of the only device in a network of its own, where a client has an address of either family."""
    needs.namespaces()
    needs.device(tun.DEVICE)
    with new_network():
        far = tun.open_tun(DEVICE, 1500)
        try:
            ip("addr", "add", CLIENTS[4], "dev", DEVICE)
            ip("-6", "addr", "add", CLIENTS[6], "dev", DEVICE, "nodad")
            takes_in(CLIENTS[6].partition("/")[0])
            yield far
        finally:
            os.close(far)


def hears(client: socket.socket, wire: int, node: Node, server: str) -> int:
    """The error that a socket has once what it sent to ``server`` has gone through the firewall."""
    ends = ip_address(server).packed
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        select.select([wire], [], [], 0.05)
        with contextlib.suppress(BlockingIOError):
            packet = os.read(wire, 9999)
            if ends in (packet[16:20], packet[24:40]):
                node.judge(packet)
                for made in node.engine.made():
                    os.write(wire, made)
        error = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            return error
    return errno.ETIMEDOUT


def asking(kind: socket.SocketKind, family: int) -> socket.socket:
    made = socket.socket(FAMILIES[family], kind)
    made.setblocking(False)
    return made


@both_families
@pytest.mark.parametrize("action", ["deny", "reset-client", "reset-both"])
def test_a_client_that_is_reset_is_refused_at_once(wire: int, family: int, action: str) -> None:
    node = Cluster().node(refusing(action))
    with asking(socket.SOCK_STREAM, family) as client:
        assert client.connect_ex((SERVERS[family], 80)) == errno.EINPROGRESS
        assert hears(client, wire, node, SERVERS[family]) == errno.ECONNREFUSED
    assert node.engine.counters["resets"] == 1


@both_families
@pytest.mark.parametrize("size", [0, 100, 1400])
def test_a_client_whose_datagram_is_refused_hears_why(wire: int, family: int, size: int) -> None:
    """Also where the quotation is cut: 576 bytes over IPv4."""
    node = Cluster().node(refusing("deny"))
    with asking(socket.SOCK_DGRAM, family) as client:
        client.connect((SERVERS[family], 53))
        client.send(bytes(size))
        heard = hears(client, wire, node, SERVERS[family])
    assert heard == (errno.EHOSTUNREACH if family == 4 else errno.EACCES)


@both_families
def test_a_client_that_is_dropped_with_unreachables_gives_up_at_once(wire: int, family: int) -> None:
    node = Cluster().node(refusing("drop; icmp-unreachable: yes"))
    with asking(socket.SOCK_STREAM, family) as client:
        client.connect_ex((SERVERS[family], 80))
        heard = hears(client, wire, node, SERVERS[family])
    assert heard == (errno.EHOSTUNREACH if family == 4 else errno.EACCES)
