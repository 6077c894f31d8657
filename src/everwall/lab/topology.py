"""The network of the lab, in namespaces of its own.

::

    clients                    gwlb (router and load balancer)                 servers
    10.10.0.10 ───── 10.10.0.1 [from-clients]  [from-servers] 10.20.0.1 ───── 10.20.0.10
                          │            ▲  ▲            │
                          └──► gwlbe0 ─┘  └─ gwlbe0 ◄──┘     by policy routing, as route tables
                                  ║                          send VPC traffic into an endpoint
                               GENEVE
                                  ║
                     bridge data0 10.40.0.1/24, MTU 1700     data network: GENEVE, health
                        ║           ║           ║
                       fw1         fw2         fw3           10.40.0.11, .12, .13
                        │           │           │
                     bridge mgmt0 10.50.0.1/24               management network: store
                                store

All addresses live inside the namespaces; nothing of the machine's own network is touched.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pyroute2 import IPRoute, netns
from pyroute2.netlink.exceptions import NetlinkError

from everwall.lab.launch import inside
from everwall.lab.processes import LabError
from everwall.lab.rundir import PREFIX, RunDirectory, is_alive

CLIENT, CLIENT_GATEWAY = "10.10.0.10", "10.10.0.1"
SERVER, SERVER_GATEWAY = "10.20.0.10", "10.20.0.1"
GATEWAY_DATA = "10.40.0.1"
STORE = "10.50.0.1"
ENDPOINT_DEVICE = "gwlbe0"
NODE_DATA_DEVICE = "data0"
ENDPOINT_TABLE = 100
_LOSSES = ("rx_dropped", "tx_dropped", "rx_errors", "tx_errors")
MTU = 1500
"""Between clients and servers."""
DATA_MTU_MORE = 200
"""Of the data network: room for GENEVE around a packet (68 bytes are needed)."""


def node_name(index: int) -> str:
    """``fw1`` for the first firewall."""
    return f"fw{index + 1}"


def node_data_address(index: int) -> str:
    return f"10.40.0.{11 + index}"


def node_management_address(index: int) -> str:
    return f"10.50.0.{11 + index}"


def path_of(namespace: str) -> str:
    """The file by which a namespace is entered."""
    return f"/run/netns/{namespace}"


class Topology:
    """The namespaces of one lab with their links, addresses and routes."""

    def __init__(self, directory: RunDirectory, firewalls: int, mtu: int = MTU) -> None:
        self.directory = directory
        self.mtu = mtu
        self.firewalls = firewalls
        self.nodes = [node_name(index) for index in range(firewalls)]

    def path(self, role: str) -> str:
        """The file of the namespace of ``clients``, ``servers``, ``gwlb``, ``store`` or a firewall."""
        return path_of(self.directory.namespace(role))

    def build(self) -> None:
        """Make everything; raises LabError. What was made before an error is removed by ``remove``."""
        try:
            for role in ("clients", "servers", "gwlb", "store", *self.nodes):
                _create_namespace(self.directory.namespace(role))
                with inside(self.path(role)):
                    _set("net/ipv6/conf/all/disable_ipv6", 1)
                    _set("net/ipv6/conf/default/disable_ipv6", 1)
            self._build_traffic()
            self._build_data()
            self._build_management()
        except (OSError, NetlinkError) as error:
            raise LabError(f"cannot build the namespaces: {error}") from error

    @contextlib.contextmanager
    def _open(self, role: str) -> Iterator[IPRoute]:
        """Links, addresses and routes of a namespace; the calling thread lives in it meanwhile.

        pyroute2's own way into a namespace forks this process, and the child would clean up after us
        when it is told to end.
        """
        with inside(self.path(role)), IPRoute() as side:
            yield side

    def _build_traffic(self) -> None:
        with self._open("gwlb") as gwlb:
            _up(gwlb, "lo")
            for role, near, far, own in (
                ("clients", "from-clients", CLIENT, CLIENT_GATEWAY),
                ("servers", "from-servers", SERVER, SERVER_GATEWAY),
            ):
                self._veth(gwlb, near, role, "eth0", self.mtu)
                _address(gwlb, near, own)
                _up(gwlb, near)
                with self._open(role) as end:
                    _up(end, "lo")
                    _address(end, "eth0", far)
                    _up(end, "eth0")
                    end.route("add", dst="0.0.0.0/0", gateway=own)
        with inside(self.path("gwlb")):
            _set("net/ipv4/ip_forward", 1)
            # A packet leaves the endpoint on the side it came from or the other one, as it is routed.
            _set("net/ipv4/conf/all/rp_filter", 0)
            _set("net/ipv4/conf/default/rp_filter", 0)
            _set("net/ipv4/conf/all/send_redirects", 0)
            _set("net/ipv4/conf/default/send_redirects", 0)

    def _build_data(self) -> None:
        mtu = self.mtu + DATA_MTU_MORE
        with self._open("gwlb") as gwlb:
            gwlb.link("add", ifname="data0", kind="bridge", mtu=mtu)
            bridge = _index(gwlb, "data0")
            _address(gwlb, "data0", GATEWAY_DATA)
            _up(gwlb, "data0")
            for index, name in enumerate(self.nodes):
                self._veth(gwlb, name, name, NODE_DATA_DEVICE, mtu)
                gwlb.link("set", index=_index(gwlb, name), master=bridge)
                _up(gwlb, name)
                with self._open(name) as node:
                    _up(node, "lo")
                    _address(node, NODE_DATA_DEVICE, node_data_address(index))
                    _up(node, NODE_DATA_DEVICE)

    def _build_management(self) -> None:
        with self._open("store") as store:
            _up(store, "lo")
            store.link("add", ifname="mgmt0", kind="bridge")
            bridge = _index(store, "mgmt0")
            _address(store, "mgmt0", STORE)
            _up(store, "mgmt0")
            for index, name in enumerate(self.nodes):
                self._veth(store, name, name, "mgmt0")
                store.link("set", index=_index(store, name), master=bridge)
                _up(store, name)
                with self._open(name) as node:
                    _address(node, "mgmt0", node_management_address(index))
                    _up(node, "mgmt0")

    def _veth(self, near: IPRoute, name: str, role: str, far_name: str, mtu: int = 1500) -> None:
        peer = {
            "ifname": far_name,
            "net_ns_fd": self.directory.namespace(role),
            "mtu": mtu,
        }
        near.link("add", ifname=name, kind="veth", peer=peer, mtu=mtu)

    def route_through_endpoint(self) -> None:
        """Send what comes from either side into the endpoint, which the load balancer has made by now."""
        with self._open("gwlb") as gwlb:
            _up(gwlb, ENDPOINT_DEVICE)
            gwlb.route(
                "replace",
                dst="0.0.0.0/0",
                oif=_index(gwlb, ENDPOINT_DEVICE),
                scope="link",
                table=ENDPOINT_TABLE,
            )
            for device in ("from-clients", "from-servers"):
                gwlb.rule(
                    "add",
                    FRA_IIFNAME=device,
                    table=ENDPOINT_TABLE,
                    priority=ENDPOINT_TABLE,
                )

    def cut_data(self, name: str) -> None:
        """Cut a firewall off the data network, at the gateway's side; its management network stays."""
        with self._open("gwlb") as gwlb:
            gwlb.link("set", index=_index(gwlb, name), state="down")

    def cut_management(self, name: str) -> None:
        """Cut a firewall off the management network, at the store's side; its data network stays."""
        with self._open("store") as store:
            store.link("set", index=_index(store, name), state="down")

    def mend(self, name: str) -> None:
        """Undo what was cut of a firewall's networks."""
        for role in ("gwlb", "store"):
            with self._open(role) as side:
                _up(side, name)

    def lost_packets(self) -> dict[str, int]:
        """Packets that the kernel dropped at devices of the lab, by ``namespace/device``."""
        found = {}
        for role in ("clients", "servers", "gwlb", "store", *self.nodes):
            with self._open(role) as side:
                for link in side.get_links():
                    counted = link.get_attr("IFLA_STATS64") or {}
                    lost = sum(counted.get(name, 0) for name in _LOSSES)
                    if lost:
                        found[f"{role}/{link.get_attr('IFLA_IFNAME')}"] = lost
        return found

    def remove(self) -> None:
        """Remove every namespace of this lab; links and routes go with them."""
        remove_namespaces(self.directory.name)


def _create_namespace(name: str) -> None:
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"ip netns add {name}: {done.stderr.strip()}")


def _set(name: str, value: int) -> None:
    path = Path("/proc/sys") / name
    if path.exists():
        path.write_text(str(value))


def _index(side: IPRoute, device: str) -> int:
    found = side.link_lookup(ifname=device)
    if not found:
        raise LabError(f"there is no device {device}")
    return int(found[0])


def _up(side: IPRoute, device: str) -> None:
    side.link("set", index=_index(side, device), state="up")


def _address(side: IPRoute, device: str, address: str) -> None:
    side.addr("add", index=_index(side, device), address=address, prefixlen=24)


def remove_namespaces(lab: str) -> None:
    """Remove the namespaces of the lab of that name."""
    for name in netns.listnetns():
        if name.startswith(f"{PREFIX}{lab}-"):
            with contextlib.suppress(OSError):
                netns.remove(name)


def sweep_namespaces() -> list[str]:
    """Remove the namespaces of labs that are gone; returns the labs' names. Root's are root's affair."""
    if os.geteuid() != 0:
        return []
    labs = {name.removeprefix(PREFIX).split("-")[0] for name in netns.listnetns() if name.startswith(PREFIX)}
    gone = sorted(lab for lab in labs if not is_alive(lab))
    for lab in gone:
        remove_namespaces(lab)
    return gone
