"""The loopback rung: no privilege at all, packet-level flows over UDP on 127.x.y.z addresses."""

from __future__ import annotations

import sys

from everwall.lab.configuration import GatewayPlace, NodePlace
from everwall.lab.processes import LabError, Programs
from everwall.lab.rundir import RunDirectory
from everwall.lab.store import free_port
from everwall.lab.topology import node_name
from everwall.lab.traffic.driver import Traffic

HEALTH_PORT = 8080
_ENDPOINT_PORT, _TRAFFIC_PORT = 7081, 7082


class LoopbackSite:
    """Addresses of 127.0.0.0/8 instead of namespaces."""

    rung = "loopback"
    traffic = "packets"
    cut_through = False

    def __init__(self, directory: RunDirectory, firewalls: int) -> None:
        self.directory = directory
        # Two labs of two users may run at once; they differ in the second octet, most likely.
        net = f"127.{64 + int(directory.name, 16) % 128}"
        self.store_host = f"{net}.2.1"
        self.store_port = free_port(self.store_host)
        self.store_netns: str | None = None
        self.nodes = [
            NodePlace(
                name=node_name(index),
                netns=None,
                data_address=f"{net}.1.{11 + index}",
                data_interface="lo",
                management_interface="lo",
                health_port=HEALTH_PORT,
                port="udp",
            )
            for index in range(firewalls)
        ]
        self._endpoint = f"{net}.0.1:{_ENDPOINT_PORT}"
        self._own = f"{net}.0.2:{_TRAFFIC_PORT}"
        self.gateway = GatewayPlace(
            netns=None,
            address=f"{net}.1.1",
            endpoint={"udp": {"listen": self._endpoint, "peer": self._own}},
            health_port=HEALTH_PORT,
            port="udp",
        )

    def build(self) -> None:
        """Loopback is there already."""

    def connect(self) -> None:
        """The endpoint is a socket; nothing has to be routed."""

    def start_traffic(self, programs: Programs, connections: int, probes: int) -> Traffic:
        module = [sys.executable, "-m", "everwall.lab.traffic.packets", self._own, self._endpoint]
        module += [str(connections), str(probes)]
        return Traffic(programs.start("packets", module, pipes=True), None)

    def cut_data(self, name: str) -> None:
        raise LabError("--fail partition and isolate need network namespaces; on loopback nothing can be cut")

    def cut_management(self, name: str) -> None:
        self.cut_data(name)

    def mend(self, name: str) -> None:
        """Nothing was cut."""

    def lost_packets(self) -> dict[str, int]:
        """Loopback loses nothing on the way; what a socket cannot take is lost uncounted."""
        return {}

    def remove(self) -> None:
        """Nothing was made."""

    def look_inside(self, pid: int) -> list[str]:
        return ["ss -lunp"]
