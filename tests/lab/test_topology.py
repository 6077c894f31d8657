"""The lab's network: what reaches what, what a cut cuts, and that nothing is left of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from pyroute2 import netns

from everwall.lab import rundir, topology
from everwall.lab.launch import inside
from everwall.lab.processes import Programs, wait_until
from everwall.lab.topology import Topology
from tests import needs
from tests.namespaces import ip

PATIENCE_S = 30.0


@pytest.fixture
def network() -> Iterator[Topology]:
    needs.namespaces()
    directory = rundir.create()
    made = Topology(directory, 2)
    try:
        made.build()
        yield made
    finally:
        made.remove()
        directory.close(remove=True)


def reaches(network: Topology, here: str, there: str, address: str) -> bool:
    """Whether a TCP connection from namespace ``here`` reaches ``address`` in ``there``."""
    with inside(network.path(there)):
        listener = socket.create_server((address, 7000))
    with inside(network.path(here)):
        client = socket.socket()
    client.settimeout(0.5)
    with listener, client:
        try:
            client.connect((address, 7000))
        except OSError:
            return False
        return True


def will_reach(network: Topology, here: str, there: str, address: str) -> None:
    """It does, once the kernel has found the time to tell its bridges of a new carrier, which may take a second."""
    way = f"a connection from {here} to {there}"
    wait_until(way, lambda: reaches(network, here, there, address), PATIENCE_S, [])


def test_traffic_is_routed_through_the_load_balancers_namespace(network: Topology) -> None:
    will_reach(network, "clients", "servers", topology.SERVER)


def test_management_and_data_are_two_networks_cut_one_by_one(network: Topology) -> None:
    data, management = topology.node_data_address(0), topology.node_management_address(0)
    will_reach(network, "gwlb", "fw1", data)
    will_reach(network, "store", "fw1", management)
    assert not reaches(network, "gwlb", "fw1", management), (
        "the load balancer is not in the management network"
    )
    network.cut_data("fw1")
    assert not reaches(network, "gwlb", "fw1", data)
    will_reach(network, "store", "fw1", management)
    will_reach(network, "gwlb", "fw2", topology.node_data_address(1))
    network.cut_management("fw2")
    assert not reaches(network, "store", "fw2", topology.node_management_address(1))
    will_reach(network, "gwlb", "fw2", topology.node_data_address(1))
    network.cut_management("fw1")
    network.mend("fw1")
    will_reach(network, "gwlb", "fw1", data)
    will_reach(network, "store", "fw1", management)


def test_entering_a_namespace_is_for_this_thread_and_for_a_while(network: Topology) -> None:
    def names() -> set[str]:
        return {name for _, name in socket.if_nameindex()}

    before = names()
    seen: list[set[str]] = []
    with inside(network.path("fw1")):
        other = threading.Thread(target=lambda: seen.append(names()))
        assert names() == {"lo", "data0", "mgmt0"}
        other.start()
        other.join()
    assert names() == before


def test_a_device_has_an_xdp_program_as_long_as_the_program_that_was_started_with_it(
    network: Topology,
) -> None:
    needs.xdp()
    programs = Programs(network.directory)

    def attached() -> bool:
        with inside(network.path("gwlb")):
            return "prog/xdp" in ip("link", "show", "fw1")

    try:
        program = programs.start("holder", ["sleep", "60"], network.path("gwlb"), xdp_pass=["fw1", "fw2"])
        wait_until("the XDP program", attached, PATIENCE_S, [program])
        will_reach(network, "gwlb", "fw1", topology.node_data_address(0))  # it lets everything pass
    finally:
        programs.stop()
    assert not attached(), "nothing was pinned: it went with its holder"


def test_nothing_is_left_of_a_removed_network(network: Topology) -> None:
    mine = network.directory.namespace("")
    assert sum(name.startswith(mine) for name in netns.listnetns()) == 6
    network.remove()
    assert not any(name.startswith(mine) for name in netns.listnetns())


def test_leftovers_of_a_gone_lab_are_swept_and_a_living_one_is_left_alone(network: Topology) -> None:
    gone = rundir.create()
    left = Topology(gone, 1)
    left.build()
    gone.close(remove=False)
    assert gone.name in topology.sweep_namespaces()
    assert gone.name in rundir.sweep()
    there = netns.listnetns()
    assert not any(name.startswith(gone.namespace("")) for name in there)
    assert any(name.startswith(network.directory.namespace("")) for name in there)
