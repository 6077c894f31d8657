"""Packets of 8500 bytes, the longest that AWS's load balancer carries, through load balancer and firewall.

Clients, servers and the data network have the MTUs that this needs; load balancer and firewall are the
real processes, and find out by themselves.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from everwall.dataplane import BOUNCED
from everwall.lab import capabilities, rundir, topology
from everwall.lab.cluster import Cluster
from everwall.lab.launch import inside
from everwall.lab.processes import LabError, Programs
from everwall.lab.site_namespaces import NamespaceSite
from everwall.limits import INNER_MTU_MAX
from tests import needs

pytestmark = pytest.mark.lab

_IP_MTU_DISCOVER, _DO_NOT_FRAGMENT = 10, 2
_TCP_MAXSEG = 2


@pytest.fixture(scope="module", params=["raw", "xdp"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    needs.namespaces()
    port = str(request.param)
    if port == "xdp":
        try:
            capabilities.choose(capabilities.ROOT, port)
        except LabError as error:
            needs.need(False, str(error))
    directory = rundir.create()
    programs = Programs(directory)
    site = NamespaceSite(directory, 1, port, port == "xdp", mtu=INNER_MTU_MAX)
    try:
        site.build()
        made = Cluster(directory, site, programs, resiliency=True)
        made.start(print)
        yield made
    finally:
        programs.stop()
        site.remove()
        directory.close(remove=True)


def in_namespace(cluster: Cluster, role: str, kind: int) -> socket.socket:
    assert isinstance(cluster.site, NamespaceSite)
    with inside(cluster.site.topology.path(role)):
        made = socket.socket(socket.AF_INET, kind)
    made.settimeout(60)  # for all that is sent at once, too
    return made


def test_packets_of_8500_bytes_pass_whole(cluster: Cluster) -> None:
    before = cluster.counters("fw1").get("forward", 0)
    with contextlib.ExitStack() as opened:
        client = opened.enter_context(in_namespace(cluster, "clients", socket.SOCK_DGRAM))
        server = opened.enter_context(in_namespace(cluster, "servers", socket.SOCK_DGRAM))
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _DO_NOT_FRAGMENT)
        server.bind((topology.SERVER, 7000))
        client.connect((topology.SERVER, 7000))
        whole = bytes(range(256)) * 33 + bytes(24)
        assert len(whole) + 28 == INNER_MTU_MAX
        for _ in range(20):
            client.send(whole)
            heard, whom = server.recvfrom(1 << 16)
            assert heard == whole
            server.sendto(heard, whom)
            assert client.recv(1 << 16) == whole
    counted = cluster.counters("fw1")
    assert counted["forward"] - before == 40
    assert "oversize" not in counted
    assert (counted.get(BOUNCED, 0) > 0) == (cluster.site.nodes[0].port == "xdp")


def test_a_connection_uses_the_whole_size(cluster: Cluster) -> None:
    size = 4_000_000
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(in_namespace(cluster, "servers", socket.SOCK_STREAM))
        listener.bind((topology.SERVER, 7000))
        listener.listen()
        client = opened.enter_context(in_namespace(cluster, "clients", socket.SOCK_STREAM))
        client.connect((topology.SERVER, 7000))
        server = opened.enter_context(listener.accept()[0])
        server.settimeout(60)
        sent = bytes(range(250)) * (size // 250)
        sender = threading.Thread(target=client.sendall, args=(sent,))
        sender.start()
        came = b""
        while len(came) < size:
            came += server.recv(1 << 20)
        sender.join()
        assert came == sent
        assert client.getsockopt(socket.IPPROTO_TCP, _TCP_MAXSEG) > 8400
    assert "oversize" not in cluster.counters("fw1")
