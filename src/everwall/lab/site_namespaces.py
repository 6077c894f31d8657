"""Every part in a network namespace of its own, real TCP through an endpoint that the kernel routes into.

That is the root rung, with a TUN device; and the same without root, in a user namespace, with a packet socket.
"""

from __future__ import annotations

import sys

from everwall.lab import topology
from everwall.lab.capabilities import ROOT
from everwall.lab.configuration import GatewayPlace, NodePlace
from everwall.lab.processes import Programs
from everwall.lab.rundir import RunDirectory
from everwall.lab.store import PORT
from everwall.lab.topology import MTU, Topology
from everwall.lab.traffic.driver import Traffic

ICMP_FLOWS = 12
HEALTH_PORT = 80


class NamespaceSite:
    """Namespaces for clients, servers, load balancer, firewalls and store."""

    traffic = "tcp"

    def __init__(
        self,
        directory: RunDirectory,
        firewalls: int,
        port: str,
        cut_through: bool,
        rung: str = ROOT,
        mtu: int = MTU,
    ) -> None:
        self.rung = rung
        self.directory = directory
        self.cut_through = cut_through
        self.topology = Topology(directory, firewalls, mtu)
        self.store_host, self.store_port = topology.STORE, PORT
        self.store_netns: str | None = self.topology.path("store")
        self.nodes = [
            NodePlace(
                name=name,
                netns=self.topology.path(name),
                data_address=topology.node_data_address(index),
                data_interface=topology.NODE_DATA_DEVICE,
                management_interface="mgmt0",
                health_port=HEALTH_PORT,
                port=port,
                cut_through=cut_through,
            )
            for index, name in enumerate(self.topology.nodes)
        ]
        self.gateway = GatewayPlace(
            netns=self.topology.path("gwlb"),
            address=topology.GATEWAY_DATA,
            endpoint={"tun" if rung == ROOT else "packet": topology.ENDPOINT_DEVICE, "mtu": mtu},
            health_port=HEALTH_PORT,
            # Plain sockets return only to the few source ports that a gateway with plain sockets has.
            port="udp" if port == "udp" else "raw",
            xdp_pass=tuple(self.topology.nodes) if port == "xdp" else (),
        )

    def build(self) -> None:
        self.topology.build()

    def connect(self) -> None:
        self.topology.route_through_endpoint()

    def start_traffic(self, programs: Programs, connections: int, probes: int) -> Traffic:
        module = [sys.executable, "-m", "everwall.lab.traffic.server", topology.SERVER]
        server = programs.start("servers", module, self.topology.path("servers"), pipes=True)
        module = [sys.executable, "-m", "everwall.lab.traffic.client", topology.SERVER]
        module += [str(connections), str(probes), str(ICMP_FLOWS)]
        client = programs.start("clients", module, self.topology.path("clients"), pipes=True)
        return Traffic(client, server)

    def cut_data(self, name: str) -> None:
        self.topology.cut_data(name)

    def cut_management(self, name: str) -> None:
        self.topology.cut_management(name)

    def mend(self, name: str) -> None:
        self.topology.mend(name)

    def lost_packets(self) -> dict[str, int]:
        return self.topology.lost_packets()

    def remove(self) -> None:
        self.topology.remove()

    def look_inside(self, pid: int) -> list[str]:
        enter = "" if self.rung == ROOT else f"nsenter --target {pid} --user --mount --preserve-credentials "
        gwlb = self.directory.namespace("gwlb")
        return [
            f"{enter}ip netns | grep {self.directory.namespace('')}",
            f"{enter}nsenter --net={topology.path_of(gwlb)} ip -stats link",
            f"{enter}nsenter --net={topology.path_of(self.directory.namespace('clients'))} ss -tn",
        ]
