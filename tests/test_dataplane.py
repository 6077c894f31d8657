"""Which port a node takes and why not a better one; what the program on the interface is told before it attaches."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from everwall import dataplane
from everwall.bootstrap.init_cfg import InitCfg
from everwall.bootstrap.networking import Networking
from everwall.dataplane import (
    DataInterface,
    DataPlane,
    DataPlaneError,
    ManagementInterface,
    Wish,
    describe_interfaces,
    find_data_interface,
    find_management_interface,
    open_data_plane,
)
from everwall.limits import GENEVE_PORT, SESSIONS_MIN
from everwall.ports.bpf import BpfError
from everwall.session import control
from everwall.session.table import slots_for
from tests import needs
from tests.namespaces import ip, new_network
from tests.two_interfaces import DATA as ETH0
from tests.two_interfaces import MANAGEMENT as ETH1
from tests.two_interfaces import TwoInterfaces

SOURCES = (IPv4Network("10.40.0.0/25"), IPv4Network("10.40.0.128/25"))


DATA = DataInterface("data0", "10.40.0.11", (IPv4Interface("10.40.0.11/24"),), 1500)


def a_wish(data: DataInterface = DATA, **told: Any) -> Wish:
    """``told``: what stands in the node's configuration."""
    return Wish(InitCfg(max_sessions=1000, **told), data, SOURCES, seed=7)


class Program:
    """Stands for the cut-through; writes down what is done with it."""

    fails_at = ""
    made: list[Program]

    def __init__(self, *, workers: int, slots: int, queues: int, frags: bool = False) -> None:
        self.story: list[Any] = [("load", workers, slots, queues, frags)]
        self.fail("load")
        self.hot = np.zeros((workers * slots, 8), np.int64)
        self.tags = np.zeros(workers * slots, np.uint8)
        self.addresses = np.zeros((workers * slots, 4), np.int64)
        self.control = np.zeros(control.WORDS, np.int64)
        Program.made.append(self)

    def fail(self, step: str) -> None:
        if step == Program.fails_at:
            raise BpfError(f"refused at {step}")

    def configure(self, **told: Any) -> None:
        self.story.append(("configure", told))

    def set_socket(self, queue: int, descriptor: int) -> None:
        self.story.append(("socket", queue, descriptor))

    def room_at(self, queue: int) -> int:
        return 1000 + queue

    def attach(self, interface: str) -> str:
        self.fail("attach")
        self.story.append(("attach", interface))
        return "native"

    def counters(self) -> dict[str, int]:
        return {"bounced": 5, "bounced-bytes": 500}

    def close(self) -> None:
        self.story.append("close")


class Sockets:
    """Stands for an AF_XDP port."""

    closed: list[Any]
    rooms: list[tuple[int, int]]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine on which every port works, without any privilege."""
    Program.fails_at, Program.made, Sockets.closed, Sockets.rooms = "", [], [], []
    monkeypatch.setattr(dataplane, "CutThrough", Program)
    monkeypatch.setattr(dataplane, "receive_queues", lambda interface: 2)
    monkeypatch.setattr(dataplane.ports, "open_xdp", lambda interface, queues, **_: ("xdp", *queues))
    monkeypatch.setattr(
        dataplane.ports, "queue_sockets", lambda port: [(queue, 100 + queue) for queue in port[1:]]
    )
    monkeypatch.setattr(
        dataplane.ports, "tell_room", lambda port, q, at: Sockets.rooms.append((port[1 + q], at))
    )
    monkeypatch.setattr(dataplane.ports, "statistics", lambda port: {"rx-dropped": port[1]})
    monkeypatch.setattr(dataplane, "is_zero_copy", lambda port: False)
    monkeypatch.setattr(dataplane.ports, "open_raw", lambda *_, **__: ("raw",))
    monkeypatch.setattr(dataplane.ports, "open_raw_sender", lambda _: ("raw sender",))
    monkeypatch.setattr(dataplane.ports, "open_udp", lambda *_, **__: ("udp",))
    monkeypatch.setattr(dataplane.ports, "close", Sockets.closed.append)
    return monkeypatch


def opened(wish: Wish) -> tuple[DataPlane, list[str]]:
    """The data plane, and the reasons in the log."""
    with capture_logs() as said:
        plane = open_data_plane(wish)
    return plane, [f"{line['event']}: {line['why']}" for line in said]


def test_the_best_port_is_taken_where_everything_works(machine: pytest.MonkeyPatch) -> None:
    plane, said = opened(a_wish())
    assert (plane.kind, plane.without, said) == ("xdp", "", [])
    assert plane.detail == "native XDP, copy mode, 2 queues"


def test_the_program_knows_everything_before_the_first_packet_is_its_own(machine: pytest.MonkeyPatch) -> None:
    """Tables, sockets, sources and addresses first; an attached program that knows nothing would lose packets."""
    plane, _ = opened(a_wish())
    slots = slots_for(1000)
    told = {
        "seed": 7,
        "sources": [IPv4Network("10.40.0.0/24")],
        "addresses": [IPv4Address("10.40.0.11")],
    }
    assert Program.made[0].story == [
        ("load", 1, slots, 2, False),
        ("configure", told),
        ("socket", 0, 100),
        ("socket", 1, 101),
        ("attach", "data0"),
    ]
    assert Sockets.rooms == [(0, 1000), (1, 1001)]
    (shared,) = plane.shared
    assert shared is not None
    assert shared.hot.shape == (slots, 8)
    assert plane.control is Program.made[0].control
    assert plane.counters() == {
        "cut-through-bounced": 5,
        "cut-through-bounced-bytes": 500,
        "port-rx-dropped": 0,
    }


def test_what_the_system_counts_for_the_ports_is_added_up(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(dataplane.ports, "statistics", lambda port: {"rx-dropped": 1 + port[1]})
    plane, _ = opened(a_wish(workers=2))
    assert plane.counters()["port-rx-dropped"] == 1 + 2


def test_without_the_cut_through_the_program_only_hands_up(machine: pytest.MonkeyPatch) -> None:
    plane, _ = opened(a_wish(cut_through=False))
    assert (plane.kind, plane.without) == ("xdp", "everwall-cut-through is off")
    assert plane.shared == [None]
    assert plane.control is None
    assert Program.made[0].story[0] == ("load", 1, slots_for(SESSIONS_MIN), 2, False), (
        "a table that nobody fills"
    )


@pytest.mark.parametrize("step", ["load", "attach"])
def test_auto_falls_to_the_next_port_and_says_why(machine: pytest.MonkeyPatch, step: str) -> None:
    Program.fails_at = step
    plane, said = opened(a_wish())
    assert plane.kind == "raw"
    assert said == [f"no xdp port: refused at {step}"]
    assert plane.without == "only the xdp port has it"
    if step == "attach":
        assert Program.made[0].story[-1] == "close"
        assert Sockets.closed == [("xdp", 0, 1)], "nothing is left open of what did not work"


def test_auto_falls_twice_for_somebody_who_may_nothing(machine: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError

    Program.fails_at = "load"
    machine.setattr(dataplane.ports, "open_raw", refused)
    plane, said = opened(a_wish())
    assert plane.kind == "udp"
    assert said == ["no xdp port: refused at load", "no raw port: everwall-port=raw needs root (CAP_NET_RAW)"]


def test_a_port_that_was_asked_for_works_or_is_an_error(machine: pytest.MonkeyPatch) -> None:
    Program.fails_at = "attach"
    with pytest.raises(DataPlaneError, match="refused at attach"):
        open_data_plane(a_wish(port="xdp"))
    assert opened(a_wish(port="udp"))[0].kind == "udp"


def test_loopback_has_no_xdp(machine: pytest.MonkeyPatch) -> None:
    lo = DataInterface("lo", "127.0.0.5", (IPv4Interface("127.0.0.1/8"),), 65536)
    plane, said = opened(a_wish(data=lo))
    assert plane.kind == "raw"
    assert said == ["no xdp port: loopback has no native XDP"]


def test_queues_are_dealt_out_and_a_worker_without_one_sends_by_a_raw_socket(
    machine: pytest.MonkeyPatch,
) -> None:
    plane, _ = opened(a_wish(workers=3))
    assert plane.ports == [("xdp", 0), ("xdp", 1), ("raw sender",)]
    assert Program.made[0].story[0][1] == len(plane.shared) == 3
    machine.setattr(dataplane, "receive_queues", lambda interface: 5)
    plane, _ = opened(a_wish(workers=2))
    assert plane.ports == [("xdp", 0, 2, 4), ("xdp", 1, 3)]


def test_packets_above_a_page_take_the_program_for_several_buffers(machine: pytest.MonkeyPatch) -> None:
    jumbo = DataInterface("data0", "10.40.0.11", (IPv4Interface("10.40.0.11/24"),), 9001)
    opened(a_wish(data=jumbo))
    assert Program.made[0].story[0][-1] is True


def test_more_addresses_than_the_program_has_room_for_are_all_ours(machine: pytest.MonkeyPatch) -> None:
    many = tuple(IPv4Interface(f"10.40.0.{last}/24") for last in range(1, 30))
    opened(a_wish(data=DataInterface("data0", "10.40.0.1", many, 1500)))
    assert Program.made[0].story[1][1]["addresses"] == []
    opened(
        a_wish(data=DataInterface("data0", "10.40.0.1", many, 1500), data_address=IPv4Address("10.40.0.1"))
    )
    assert Program.made[1].story[1][1]["addresses"] == [IPv4Address("10.40.0.1")]


# On real interfaces -------------------------------------------------------------------------------------


@pytest.fixture
def veth() -> Iterator[DataInterface]:
    """One end of a veth in a network namespace of its own."""
    needs.xdp()
    with new_network():
        ip("link", "add", "data0", "mtu", "1700", "type", "veth", "peer", "name", "far", "mtu", "1700")
        ip("addr", "add", "10.40.0.11/24", "dev", "data0")
        ip("link", "set", "data0", "up")
        ip("link", "set", "far", "up")
        yield DataInterface("data0", "10.40.0.11", (IPv4Interface("10.40.0.11/24"),), 1700)


def test_a_veth_has_the_xdp_port_and_nothing_is_left_of_it(veth: DataInterface) -> None:
    plane, said = opened(a_wish(data=veth))
    assert (plane.kind, said) == ("xdp", [])
    assert plane.detail.startswith("native XDP, copy mode")
    assert "prog/xdp" in ip("link", "show", "data0")
    plane.close()
    assert "prog/xdp" not in ip("link", "show", "data0")


def test_as_many_queues_as_the_interface_has_are_served() -> None:
    needs.xdp()
    with new_network():
        queues = ("numrxqueues", "4", "numtxqueues", "4")
        ip("link", "add", "data0", "mtu", "1700", *queues, "type", "veth", "peer", "name", "far", *queues)
        ip("link", "set", "data0", "up")
        ip("link", "set", "far", "up")
        assert dataplane.receive_queues("data0") == 4
        wish = a_wish(DataInterface("data0", "10.40.0.11", (), 1700), workers=2, port="xdp")
        plane, _ = opened(wish)
        try:
            served = [[queue for queue, _ in dataplane.ports.queue_sockets(port)] for port in plane.ports]
            assert served == [[0, 2], [1, 3]]
            assert plane.detail == "native XDP, copy mode, 4 queues"
        finally:
            plane.close()


def test_what_the_program_leaves_to_the_kernel_comes_to_no_worker(veth: DataInterface) -> None:
    """Outer fragments, for instance: a worker without a queue would hand them to one that cannot send them."""
    plane, _ = opened(a_wish(data=veth, workers=2, port="xdp"))
    try:
        assert [dataplane.ports.kind_of(port) for port in plane.ports] == ["xdp", "raw"]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as alone:
            alone.bind((veth.address, GENEVE_PORT))  # refused where somebody receives there
    finally:
        plane.close()


def test_an_mtu_that_native_xdp_does_not_take_is_the_reason(veth: DataInterface) -> None:
    ip("link", "set", "far", "mtu", "9000")
    plane, (said,) = opened(a_wish(data=veth))
    plane.close()
    assert plane.kind == "raw"
    assert "too large for native XDP" in said


def test_who_may_nothing_is_told_what_it_takes(veth: DataInterface) -> None:
    """In a process without capabilities, as a node that was started by an ordinary user."""
    setpriv = needs.binary("setpriv")
    code = (
        "from everwall.management import logs; logs.configure()\n"
        "from tests.test_dataplane import a_wish\n"
        "from everwall.dataplane import DataInterface, open_data_plane\n"
        "from ipaddress import IPv4Interface\n"
        "data = DataInterface('data0', '10.40.0.11', (IPv4Interface('10.40.0.11/24'),), 1700)\n"
        "print(open_data_plane(a_wish(data=data)).kind)\n"
    )
    done = subprocess.run(
        [setpriv, "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.splitlines()[-1] == "udp", done.stderr
    said = done.stdout + done.stderr
    assert "no xdp port" in said
    assert "CAP_BPF" in said
    assert "no raw port" in said
    assert "CAP_NET_RAW" in said


# Which interface is for what ------------------------------------------------------------------------


@pytest.fixture
def both() -> Iterator[None]:
    """A machine with eth0 and eth1, and eth2, which has no address."""
    needs.namespaces()
    place = TwoInterfaces()
    with place.machine.entered():
        ip("link", "add", "eth2", "type", "veth", "peer", "name", "eth3")
        yield
    place.close()


@pytest.mark.parametrize(
    ("told", "data", "management", "device"),
    [
        ({"mgmt_interface_swap": True}, f"eth0 {ETH0}", f"eth1 {ETH1}", "eth1"),
        ({}, f"eth1 {ETH1}", f"eth0 {ETH0}", "eth0"),
        ({"data_address": IPv4Address(ETH1)}, f"eth1 {ETH1}", f"eth0 {ETH0}", "eth0"),
        ({"data_interface": "eth0", "mgmt_interface": "eth0"}, f"eth0 {ETH0}", f"eth0 {ETH0}", None),
        ({"data_interface": "eth0", "mgmt_interface": "eth2"}, f"eth0 {ETH0}", "eth2", None),
        ({"data_address": IPv4Address("127.0.0.7")}, "lo 127.0.0.7", "lo 127.0.0.7", None),
    ],
)
def test_which_interface_is_for_what(
    both: None, told: dict[str, Any], data: str, management: str, device: str | None
) -> None:
    config = InitCfg(**told)
    found = find_data_interface(config)
    beside = find_management_interface(config, found)
    assert (found.where, beside.where, beside.device) == (data, management, device)


def test_a_management_interface_that_is_not_there_is_named(both: None) -> None:
    config = InitCfg(mgmt_interface="eth9", data_interface="eth0")
    with pytest.raises(DataPlaneError, match="the management interface eth9 is missing"):
        find_management_interface(config, find_data_interface(config))


def test_it_is_said_why_and_what_the_machine_has_not() -> None:
    static = Networking("static", IPv4Interface("10.70.1.9/24"))
    management = ManagementInterface("eth1", ("10.70.1.5",), shared=False)
    why, warnings = describe_interfaces(
        InitCfg(mgmt_interface_swap=True, networking=static), DATA, management
    )
    assert why == "mgmt-interface-swap is on"
    assert warnings == [
        "type=static: 10.70.1.9 is not an address of eth1; the system sets addresses, Everwall does not"
    ]
    _, warnings = describe_interfaces(InitCfg(), DATA, ManagementInterface("eth1", (), shared=True))
    assert warnings == [
        "the management interface eth1 has no address: the routing table decides how the store is reached"
    ]
    shared = ManagementInterface(DATA.name, (DATA.address,), shared=True)
    why, warnings = describe_interfaces(InitCfg(mgmt_interface_swap=True), DATA, shared)
    assert why == "there is one interface for both: mgmt-interface-swap is on, and nothing is swapped"
    assert warnings == []
